// SPDX-License-Identifier: Apache-2.0

//! Secrets and ConfigMaps, followed one by one and only where another object names them.
//!
//! A watch of one name holds no more than that object, and needs no right to read others: the
//! apiserver takes `resourceNames` into account for it. What an object names is told by its
//! indices ([`Object::named`]); a batch is given on only when what it names was read, so that
//! no certificate is missed for a moment.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::watch::{self, Scope, Seen};
use super::{Change, Cluster};
use crate::store::{Key, Kind};

/// Tells whether objects of this kind are followed by name.
pub(super) fn is_by_name(kind: Kind) -> bool {
    matches!(kind, Kind::Secret | Kind::ConfigMap)
}

/// Objects that are followed by name.
#[derive(Debug)]
pub(super) struct Named {
    cluster: Arc<Cluster>,
    out: mpsc::Sender<Seen>,
    /// Object → what it names.
    names: HashMap<Key, BTreeSet<Key>>,
    /// Object that is named → how often, and its watch.
    followed: HashMap<Key, (usize, Option<JoinHandle<()>>)>,
    /// Objects that were not told of yet.
    waiting: BTreeSet<Key>,
}

impl Named {
    /// Follows nothing but `always`.
    pub(super) fn new(cluster: Arc<Cluster>, out: mpsc::Sender<Seen>, always: &[Key]) -> Self {
        let (names, followed, waiting) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        let mut named = Self { cluster, out, names, followed, waiting };
        always.iter().for_each(|key| named.add(key));
        named
    }

    /// Takes a change of an object that may name others; gives those that nobody names any more.
    pub(super) fn note(&mut self, change: &Change) -> Vec<Key> {
        let (key, now) = match change {
            Change::Put(object) => {
                let named = object.named().into_iter().filter(|key| is_by_name(key.kind));
                (object.key(), named.collect())
            }
            Change::Gone(key) => (key.clone(), BTreeSet::new()),
        };
        let before = self.names.remove(&key).unwrap_or_default();
        for fresh in now.difference(&before) {
            self.add(fresh);
        }
        let gone = before.difference(&now).filter(|gone| self.remove(gone)).cloned().collect();
        if !now.is_empty() {
            self.names.insert(key, now);
        }
        gone
    }

    /// What stands there was told, or cannot be.
    pub(super) fn told(&mut self, key: &Key) {
        self.waiting.remove(key);
    }

    /// Objects that were not told of yet.
    pub(super) fn waiting(&mut self) -> &mut BTreeSet<Key> {
        &mut self.waiting
    }

    fn add(&mut self, key: &Key) {
        let (count, task) = self.followed.entry(key.clone()).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        self.waiting.insert(key.clone());
        let (cluster, out) = (Arc::clone(&self.cluster), self.out.clone());
        *task = Some(tokio::spawn(follow(cluster, key.clone(), out)));
    }

    /// Tells whether nobody names it any more.
    fn remove(&mut self, key: &Key) -> bool {
        let Some((count, task)) = self.followed.get_mut(key) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        if let Some(task) = task {
            task.abort();
        }
        self.followed.remove(key);
        self.waiting.remove(key);
        true
    }
}

async fn follow(cluster: Arc<Cluster>, key: Key, out: mpsc::Sender<Seen>) {
    let Some(api) = cluster.api(&key) else { return };
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name.name));
    watch::follow(cluster, Scope::One(key), (api, config), out).await;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::discovery::Selectors;
    use crate::source::document;
    use crate::store::Name;

    fn gateway(name: &str, secrets: &[&str]) -> Change {
        let refs: Vec<String> = secrets.iter().map(|name| format!("{{name: {name}}}")).collect();
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: n}}\nspec:\n  gatewayClassName: istio\n  listeners:\n  - {{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{}]}}}}\n",
            refs.join(", ")
        );
        let placed = document::parse(Path::new("f"), &text).objects.into_iter().next().unwrap();
        Change::Put(placed.object)
    }

    #[tokio::test]
    async fn a_secret_is_followed_while_any_object_names_it() {
        let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let client = kube::Client::try_from(nowhere).unwrap();
        let cluster = Arc::new(Cluster::new(client, Selectors::default()));
        let (out, _inbox) = mpsc::channel(1);
        let key = |kind, name: &str| Key { kind, name: Name::new("n", name) };
        let always = key(Kind::ConfigMap, "mesh");
        let mut named = Named::new(cluster, out, std::slice::from_ref(&always));
        let secret = |name| key(Kind::Secret, name);
        assert!(named.note(&gateway("g1", &["a", "b"])).is_empty());
        assert!(named.note(&gateway("g2", &["b"])).is_empty());
        let waiting = [secret("a"), secret("b"), always].into();
        assert_eq!(*named.waiting(), waiting);
        named.told(&secret("b"));
        assert_eq!(named.note(&gateway("g1", &["c"])), [secret("a")]);
        assert!(!named.waiting().contains(&secret("a")), "nobody waits for it");
        assert!(!named.waiting().contains(&secret("b")), "it was told once");
        assert_eq!(named.note(&Change::Gone(key(Kind::Gateway, "g2"))), [secret("b")]);
        assert_eq!(named.note(&Change::Gone(key(Kind::Gateway, "g2"))), []);
        assert_eq!(named.followed.len(), 2, "the one that always is, and one that is named");
    }
}
