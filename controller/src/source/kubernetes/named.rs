// SPDX-License-Identifier: Apache-2.0

//! Secrets and ConfigMaps, followed one by one and only where another object names them.
//!
//! A watch of one name holds no more than that object, and needs no right to read others: the
//! apiserver takes `resourceNames` into account for it. What an object names is told by its
//! indices ([`crate::store::Object::named`]); a batch is given on only when what it names was
//! read, so that no certificate is missed for a moment. ConfigMaps with the defaults of a class
//! are found by their label; of all others not even the names are asked for.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::retry::retry;
use super::watch::{self, Scope, Seen};
use super::{Change, Cluster};
use crate::api;
use crate::store::{Key, Kind, Name};

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
    /// Follows nothing yet.
    pub(super) fn new(cluster: Arc<Cluster>, out: mpsc::Sender<Seen>) -> Self {
        let (names, followed, waiting) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { cluster, out, names, followed, waiting }
    }

    /// Tells whether an object is followed still, by its name or with all of its kind.
    pub(super) fn follows(&self, key: &Key) -> bool {
        !is_by_name(key.kind) || self.followed.contains_key(key)
    }

    /// Takes a change of an object that may name others; gives those that nobody names any more.
    pub(super) fn note(&mut self, change: &Change) -> Vec<Key> {
        let key = change.key();
        let now: BTreeSet<Key> = match change {
            Change::Put(object) => object.named().into_iter().collect(),
            Change::Gone(_) => BTreeSet::new(),
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

    /// Follows an object, once more if it is followed already.
    pub(super) fn add(&mut self, key: &Key) {
        let (count, task) = self.followed.entry(key.clone()).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        self.waiting.insert(key.clone());
        let (cluster, out) = (Arc::clone(&self.cluster), self.out.clone());
        *task = Some(tokio::spawn(follow(cluster, key.clone(), out)));
    }

    /// Follows it once less; tells whether nobody names it any more.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
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
    let Some(api) = cluster.api_apart(&key) else { return };
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name.name));
    Box::pin(watch::follow(cluster, Scope::One(key), (api, config), out)).await;
}

/// Tells which ConfigMaps of `namespace` hold the defaults of a class, for as long as the future
/// lives.
pub(super) async fn follow_defaults(client: Client, namespace: String, out: mpsc::Sender<Seen>) {
    let maps: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(api::DEFAULTS_FOR_CLASS);
    let mut events = pin!(watcher(maps, config).backoff(retry()));
    let mut defaults = Defaults::default();
    while let Some(event) = events.next().await {
        let seen = match event {
            Ok(event) => defaults.take(event),
            Err(error) => {
                tracing::warn!(%error, "watch of defaults of classes failed; it is tried again");
                Vec::new()
            }
        };
        for seen in seen {
            if out.send(seen).await.is_err() {
                return;
            }
        }
    }
}

/// ConfigMaps with defaults of a class.
#[derive(Debug, Default)]
struct Defaults {
    known: BTreeSet<Key>,
    /// Those of the list that is being read.
    listed: Option<BTreeSet<Key>>,
}

impl Defaults {
    fn take(&mut self, event: Event<PartialObjectMeta<ConfigMap>>) -> Vec<Seen> {
        let key = |map: PartialObjectMeta<ConfigMap>| Key {
            kind: Kind::ConfigMap,
            name: Name::new(map.namespace().as_deref().unwrap_or_default(), &map.name_any()),
        };
        match event {
            Event::Init => {
                self.listed = Some(BTreeSet::new());
                Vec::new()
            }
            Event::InitApply(map) => {
                let key = key(map);
                self.listed.get_or_insert_default().insert(key.clone());
                self.add(key)
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<Key> = self.known.difference(&listed).cloned().collect();
                let mut seen: Vec<Seen> =
                    gone.into_iter().flat_map(|gone| self.remove(gone)).collect();
                seen.push(Seen::DefaultsSynced);
                seen
            }
            Event::Apply(map) => self.add(key(map)),
            Event::Delete(map) => self.remove(key(map)),
        }
    }

    fn add(&mut self, key: Key) -> Vec<Seen> {
        if self.known.insert(key.clone()) { vec![Seen::Default(key, true)] } else { Vec::new() }
    }

    fn remove(&mut self, key: Key) -> Vec<Seen> {
        if self.known.remove(&key) { vec![Seen::Default(key, false)] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests;
