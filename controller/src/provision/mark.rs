// SPDX-License-Identifier: Apache-2.0

//! Says on each pod whether its capture is proven.
//!
//! The annotation `ambient.istio.io/redirection` is what Istio's tools and users look at, and
//! what a controller goes by after a restart until agents have reported.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;

use crate::api;
use crate::app::Hub;
use crate::lead::dirty::Outbox;
use crate::source::kubernetes::Cluster;
use crate::store::facts::PodState;
use crate::store::index::Index;

/// How long a failed write waits.
const RETRY: Duration = Duration::from_secs(1);

/// Writes annotations for as long as the future lives.
pub async fn run(
    hub: Arc<Hub>,
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    mut leads: watch::Receiver<bool>,
) {
    loop {
        let uids = tokio::select! {
            uids = outbox.pods.take() => uids,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                let leads = *leads.borrow_and_update();
                let state = hub.read();
                let known = state.stores.facts.pods().map(|(uid, _)| uid.to_string());
                if leads { known.collect() } else { Default::default() }
            }
        };
        if !*leads.borrow() {
            continue;
        }
        for uid in uids {
            if let Err(error) = write(&hub, &cluster, &uid).await {
                tracing::warn!(uid, %error, "pod not marked; it is tried again");
                tokio::time::sleep(RETRY).await;
                outbox.pods.add([uid]);
            }
        }
    }
}

async fn write(hub: &Hub, cluster: &Cluster, uid: &str) -> kube::Result<()> {
    let Some((namespace, name, mark)) = wanted(hub, uid) else { return Ok(()) };
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    // The UID goes along: another pod of that name is not touched.
    let patch = json!({"metadata": {"uid": uid, "annotations": {api::REDIRECTION: mark}}});
    match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Namespace and name of a pod whose annotation differs from what is proven, and what it should be.
fn wanted(hub: &Hub, uid: &str) -> Option<(String, String, Option<&'static str>)> {
    let state = hub.read();
    let fact = state.stores.facts.pod(uid)?;
    let mark = (fact.state == PodState::Enrolled).then_some("enabled");
    let pod = *state.stores.list::<Pod>(Index::Uid, uid).first()?;
    let meta = &pod.metadata;
    let standing = meta.annotations.as_ref().and_then(|all| all.get(api::REDIRECTION));
    if standing.map(String::as_str) == mark {
        return None;
    }
    Some((meta.namespace.clone()?, meta.name.clone()?, mark))
}
