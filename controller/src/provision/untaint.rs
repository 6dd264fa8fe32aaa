// SPDX-License-Identifier: Apache-2.0

//! Takes the startup taint off a node once a pod that starts there is captured.
//!
//! Nodes that are made with the taint take no ordinary pod before: none can start outside the
//! mesh, or wait for an agent that is not there yet. The agent's own word decides: its plug-in
//! is in the chain and a tunnel is connected. Tunnels and agents tolerate every taint.
//!
//! Rule: Istio's `taint.enabled`, which goes by the readiness of the agent's pod.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use crate::app::Hub;
use crate::lead::dirty::Outbox;
use crate::source::kubernetes::Cluster;
use crate::store::Stores;

/// How long a failed write waits.
const RETRY: Duration = Duration::from_secs(1);

/// Takes taints off for as long as the future lives.
pub async fn run(
    hub: Arc<Hub>,
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    mut leads: watch::Receiver<bool>,
) {
    let Some(key) = hub.settings.startup_taint.clone() else {
        return std::future::pending().await;
    };
    loop {
        let names = tokio::select! {
            names = outbox.nodes.take() => names,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                let leads = *leads.borrow_and_update();
                if leads { all(&hub.read().stores) } else { BTreeSet::new() }
            }
        };
        if !*leads.borrow() {
            continue;
        }
        for name in names {
            if !is_due(&hub.read().stores, &name, &key) {
                continue;
            }
            match take_off(&cluster, &name, &key).await {
                Ok(true) => {
                    tracing::info!(node = name, taint = key, "node serves: startup taint taken off")
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(node = name, %error, "startup taint not taken off; it is tried again");
                    tokio::time::sleep(RETRY).await;
                    outbox.nodes.add([name]);
                }
            }
        }
    }
}

fn all(stores: &Stores) -> BTreeSet<String> {
    stores.all::<Node>().map(|node| node.name_any()).collect()
}

/// Whether a node bears the taint although it serves.
fn is_due(stores: &Stores, name: &str, key: &str) -> bool {
    let Some(node) = stores.get::<Node>("", name) else { return false };
    let uid = node.metadata.uid.as_deref().unwrap_or_default();
    let serves = stores.facts.node(name).is_some_and(|fact| fact.serving && fact.uid == uid);
    serves && without(taints(node), key).is_some()
}

fn taints(node: &Node) -> &[Taint] {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    taints.unwrap_or_default()
}

/// The taints without those of the key; none if there is no such.
fn without(taints: &[Taint], key: &str) -> Option<Vec<Taint>> {
    let kept: Vec<Taint> = taints.iter().filter(|taint| taint.key != key).cloned().collect();
    (kept.len() < taints.len()).then_some(kept)
}

/// Takes the taint off; tells whether it was there.
async fn take_off(cluster: &Cluster, name: &str, key: &str) -> kube::Result<bool> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let Some(node) = api.get_opt(name).await? else { return Ok(false) };
    let Some(kept) = without(taints(&node), key) else { return Ok(false) };
    // The version goes along: a taint that somebody puts on meanwhile is not lost.
    let patch = json!({
        "metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": kept},
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Object;
    use crate::store::facts::NodeFact;

    const KEY: &str = "cni.istio.io/not-ready";

    fn node(name: &str, keys: &[&str]) -> Node {
        let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
        let taints: Vec<_> = keys.iter().map(taint).collect();
        let value = json!({"metadata": {"name": name, "uid": "1"}, "spec": {"taints": taints}});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_taint_goes_once_the_agent_says_that_the_node_serves() {
        let mut stores = Stores::default();
        for (name, keys) in [("new", vec!["other", KEY]), ("old", vec!["other"])] {
            stores.put(Object::Node(node(name, &keys).into()));
        }
        assert!(!is_due(&stores, "new", KEY), "nobody has spoken of it");
        let reason = "no tunnel is connected to the agent".to_owned();
        stores.facts.set_node("new", NodeFact { reason, ..NodeFact::default() });
        assert!(!is_due(&stores, "new", KEY), "it does not serve");
        let serves = NodeFact { uid: "1".into(), serving: true, ..NodeFact::default() };
        for name in ["new", "old", "unknown"] {
            assert!(stores.facts.set_node(name, serves.clone()).is_some());
            assert!(stores.facts.set_node(name, serves.clone()).is_none(), "no change");
        }
        assert!(is_due(&stores, "new", KEY));
        assert!(!is_due(&stores, "old", KEY), "it bears another taint");
        assert!(!is_due(&stores, "unknown", KEY), "there is no such node");
        stores.facts.set_node("new", NodeFact { uid: "0".into(), ..serves });
        assert!(!is_due(&stores, "new", KEY), "that was another node of its name");
        assert_eq!(all(&stores), ["new", "old"].map(str::to_owned).into());
    }

    #[test]
    fn other_taints_stay() {
        let bearing = node("n", &["a", KEY, "b", KEY]);
        let kept = without(taints(&bearing), KEY).unwrap();
        assert_eq!(kept.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(without(&kept, KEY), None);
        assert_eq!(without(taints(&Node::default()), KEY), None);
    }
}
