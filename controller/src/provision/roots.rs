// SPDX-License-Identifier: Apache-2.0

//! The roots in force in every namespace, as ConfigMap `istio-ca-root-cert`.
//!
//! Owns: made where it lacks, put right where it differs, changed with the authority, in
//! namespaces that the mesh looks at; only while this controller leads.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use super::apply::MANAGER;
use crate::ca::authority::Authority;
use crate::discovery::Selectors;
use crate::source::kubernetes::retry::retry;

/// Name of the ConfigMap.
pub const NAME: &str = "istio-ca-root-cert";
/// Its key.
pub const KEY: &str = "root-cert.pem";
/// How long failed writes wait.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of the namespaces.
#[derive(Debug, Default)]
struct Known {
    selectors: Selectors,
    namespaces: BTreeSet<String>,
    roots: BTreeMap<String, String>,
    listed: (bool, bool),
}

impl Known {
    fn namespace(&mut self, event: Event<Namespace>) {
        match event {
            Event::Init => self.namespaces.clear(),
            Event::InitDone => self.listed.0 = true,
            Event::InitApply(object) | Event::Apply(object) => {
                let name = object.name_any();
                let taken = self.selectors.take(&name, object.metadata.labels.as_ref());
                // Nothing can be made in one that is going.
                if !taken || object.metadata.deletion_timestamp.is_some() {
                    self.namespaces.remove(&name);
                } else {
                    self.namespaces.insert(name);
                }
            }
            Event::Delete(object) => {
                self.namespaces.remove(&object.name_any());
            }
        }
    }

    fn root(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => self.roots.clear(),
            Event::InitDone => self.listed.1 = true,
            Event::InitApply(object) | Event::Apply(object) => {
                let root = object.data.as_ref().and_then(|data| data.get(KEY)).cloned();
                self.roots.insert(object.namespace().unwrap_or_default(), root.unwrap_or_default());
            }
            Event::Delete(object) => {
                self.roots.remove(&object.namespace().unwrap_or_default());
            }
        }
    }

    /// Namespaces whose root lacks or differs; none before everything was told.
    fn due(&self, root: &str) -> Vec<String> {
        let stands = |namespace: &&String| self.roots.get(*namespace).is_some_and(|r| r == root);
        if self.listed != (true, true) {
            return Vec::new();
        }
        self.namespaces.iter().filter(|namespace| !stands(namespace)).cloned().collect()
    }
}

/// Keeps the roots in force in every namespace for as long as the future lives.
pub async fn run(
    client: Client,
    mut authorities: watch::Receiver<Arc<Authority>>,
    selectors: Selectors,
    mut leads: watch::Receiver<bool>,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let roots = watcher(Api::<ConfigMap>::all(client.clone()), config).backoff(retry());
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespaces = watcher(namespaces, watcher::Config::default()).backoff(retry());
    let (mut roots, mut namespaces) = (pin!(roots), pin!(namespaces));
    let mut known = Known { selectors, ..Known::default() };
    let mut failed = false;
    loop {
        tokio::select! {
            Some(event) = namespaces.next() => match event {
                Ok(event) => known.namespace(event),
                Err(error) => tracing::warn!(%error, "watch of namespaces failed; it is tried again"),
            },
            Some(event) = roots.next() => match event {
                Ok(event) => known.root(event),
                Err(error) => tracing::warn!(%error, "watch of roots failed; it is tried again"),
            },
            changed = leads.changed() => if changed.is_err() { return },
            changed = authorities.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        failed = false;
        if !*leads.borrow_and_update() {
            continue;
        }
        let root = authorities.borrow_and_update().bundle();
        for namespace in known.due(&root) {
            match write(&client, &namespace, &root).await {
                Ok(()) => {
                    known.roots.insert(namespace, root.clone());
                }
                Err(error) => {
                    failed = true;
                    tracing::warn!(namespace, %error, "root certificate not published; it is tried again");
                }
            }
        }
    }
}

async fn write(client: &Client, namespace: &str, root: &str) -> kube::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let value = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {"istio.io/config": "true"}},
        "data": {KEY: root},
    });
    let params = PatchParams::apply(MANAGER).force();
    match api.patch(NAME, &params, &Patch::Apply(value)).await {
        Ok(_) => Ok(()),
        // The namespace is going, or gone.
        Err(kube::Error::Api(status))
            if status.code == 404 || status.message.contains("being terminated") =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
    }

    fn root(namespace: &str, text: &str) -> ConfigMap {
        let meta = json!({"name": NAME, "namespace": namespace});
        serde_json::from_value(json!({"metadata": meta, "data": {KEY: text}})).unwrap()
    }

    #[test]
    fn a_root_is_due_where_it_lacks_or_differs() {
        let mut known = Known::default();
        known.namespace(Event::InitApply(namespace("a")));
        known.namespace(Event::InitApply(namespace("b")));
        known.namespace(Event::InitDone);
        assert!(known.due("new").is_empty(), "the roots are not told yet");
        known.root(Event::InitApply(root("a", "old")));
        known.root(Event::InitDone);
        assert_eq!(known.due("new"), ["a", "b"]);
        known.root(Event::Apply(root("a", "new")));
        known.root(Event::Apply(root("b", "new")));
        assert!(known.due("new").is_empty());
        known.root(Event::Delete(root("b", "new")));
        assert_eq!(known.due("new"), ["b"]);
        let mut going = namespace("b");
        going.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        known.namespace(Event::Apply(going));
        assert!(known.due("new").is_empty(), "it is going");
        known.selectors = r#"[{"matchLabels": {"mesh": "yes"}}]"#.parse().unwrap();
        known.namespace(Event::Apply(namespace("b")));
        assert!(known.due("new").is_empty(), "it is not looked at");
    }
}
