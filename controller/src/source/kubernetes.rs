// SPDX-License-Identifier: Apache-2.0

//! Objects from an apiserver: one watch for each kind that it serves.
//!
//! Owns: which watches run (definitions may come and go), that the first batch holds everything
//! there is, which namespaces are left out, and what stands in the cluster as status
//! ([`Standing`]), which the writers compare with. One watch is [`watch`]'s, the form of kept objects [`object`]'s.
//!
//! Keeps: events are batched only while the previous batch is being worked on.
//!
//! Start at [`Watches::next`].

mod object;
mod served;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::core::discovery::ApiResource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinHandle;

use self::watch::Seen;
use super::{Batch, Problem};
use crate::discovery::Selectors;
use crate::status::packed::Packed;
use crate::store::{Key, Kind};

/// Events that wait for the engine.
const QUEUE: usize = 4096;
/// How long changes of definitions are gathered.
const SETTLE: Duration = Duration::from_millis(200);

/// What stands in the cluster as the status of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Version of the object, as the apiserver counts.
    pub version: Option<Arc<str>>,
    /// The status.
    pub status: Value,
}

/// The apiserver, and what is known of it.
pub struct Cluster {
    /// The way to it.
    pub client: Client,
    served: Mutex<HashMap<Kind, ApiResource>>,
    standing: Mutex<HashMap<Key, Kept>>,
    selectors: Selectors,
    left_out: channel::Sender<LeftOut>,
}

/// A [`Standing`] as it is kept.
struct Kept {
    version: Option<Arc<str>>,
    status: Packed,
}

/// Namespaces that the mesh does not look at.
#[derive(Clone, Debug, Default, PartialEq)]
struct LeftOut {
    names: BTreeSet<Arc<str>>,
    /// Counts those that came in: their objects have to be read.
    came_in: u64,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// A cluster of which nothing is known yet, and the namespaces in it that are looked at.
    pub fn new(client: Client, selectors: Selectors) -> Self {
        Self {
            client,
            served: Mutex::default(),
            standing: Mutex::default(),
            selectors,
            left_out: channel::Sender::default(),
        }
    }

    /// Takes the labels of a namespace, or that it is gone. Until they are known its objects
    /// are taken.
    fn see_namespace(&self, name: &str, labels: Option<Option<&BTreeMap<String, String>>>) {
        self.left_out.send_if_modified(|left_out| match labels {
            Some(labels) if self.selectors.take(name, labels) => {
                let came_in = left_out.names.remove(name);
                left_out.came_in += u64::from(came_in);
                came_in
            }
            Some(_) => left_out.names.insert(name.into()),
            // Its objects are gone, or go.
            None => left_out.names.remove(name),
        });
    }

    /// The endpoint of an object; none if its kind is not served.
    pub fn api(&self, key: &Key) -> Option<Api<DynamicObject>> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let resource = served.get(&key.kind)?;
        Some(if key.kind.is_cluster_wide() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), &key.name.namespace, resource)
        })
    }

    /// What stands as the status of an object; none if it is not there.
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = standing.get(key)?;
        Some(Standing { version: kept.version.clone(), status: kept.status.value() })
    }

    /// Takes what stands as the status of an object.
    pub(crate) fn set_standing(&self, key: &Key, now: Option<Standing>) {
        let now = now.map(|now| Kept { version: now.version, status: Packed::from(&now.status) });
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            Some(now) => standing.insert(key.clone(), now),
            None => standing.remove(key),
        };
    }
}

/// Follows an apiserver.
#[derive(Debug)]
pub struct Watches {
    cluster: Arc<Cluster>,
    inbox: mpsc::Receiver<Seen>,
    out: mpsc::Sender<Seen>,
    running: HashMap<Kind, JoinHandle<()>>,
    definitions: mpsc::Receiver<()>,
    problems: BTreeMap<Key, Problem>,
    started: bool,
}

impl Watches {
    /// Starts a watch for each kind that is served.
    ///
    /// # Errors
    ///
    /// When the apiserver cannot be asked what it serves.
    pub async fn new(cluster: Arc<Cluster>) -> kube::Result<Self> {
        let (out, inbox) = mpsc::channel(QUEUE);
        let (told, definitions) = mpsc::channel(1);
        tokio::spawn(follow_definitions(cluster.client.clone(), told));
        let mut watches = Self {
            cluster,
            inbox,
            out,
            running: HashMap::new(),
            definitions,
            problems: BTreeMap::new(),
            started: false,
        };
        watches.start_served().await?;
        Ok(watches)
    }

    /// The next batch; the first holds everything there is, later ones wait for an event.
    pub async fn next(&mut self) -> Batch {
        let mut batch = Batch::default();
        if !self.started {
            self.first(&mut batch).await;
        }
        while self.started && batch.changes.is_empty() {
            tokio::select! {
                Some(seen) = self.inbox.recv() => self.take(seen, &mut batch),
                Some(()) = self.definitions.recv() => self.look_again().await,
            }
            while let Ok(seen) = self.inbox.try_recv() {
                self.take(seen, &mut batch);
            }
        }
        self.started = true;
        batch.problems = self.problems.values().cloned().collect();
        batch
    }

    /// Waits until every kind that is served was told whole.
    async fn first(&mut self, batch: &mut Batch) {
        let mut waiting: BTreeSet<Kind> = self.running.keys().copied().collect();
        while !waiting.is_empty() {
            let Some(seen) = self.inbox.recv().await else { return };
            if let Seen::Synced(kind) = &seen {
                waiting.remove(kind);
            }
            self.take(seen, batch);
        }
    }

    fn take(&mut self, seen: Seen, batch: &mut Batch) {
        match seen {
            Seen::Change(change) => batch.changes.push(change),
            Seen::Unreadable(key, Some(problem)) => {
                if self.problems.get(&key) != Some(&problem) {
                    tracing::warn!(%problem, "object not in force as it stands");
                }
                self.problems.insert(key, problem);
            }
            Seen::Unreadable(key, None) => {
                self.problems.remove(&key);
            }
            Seen::Synced(_) => {}
        }
    }

    /// Asks again what is served, after definitions changed.
    async fn look_again(&mut self) {
        tokio::time::sleep(SETTLE).await;
        while self.definitions.try_recv().is_ok() {}
        if let Err(error) = self.start_served().await {
            tracing::warn!(%error, "cannot ask what the apiserver serves");
        }
    }

    async fn start_served(&mut self) -> kube::Result<()> {
        let served = served::kinds(&self.cluster.client).await?;
        for (kind, resource) in &served {
            let running = self.running.get(kind).is_some_and(|task| !task.is_finished());
            let known = self.cluster.served.lock().unwrap_or_else(PoisonError::into_inner);
            let same = known.get(kind).is_some_and(|known| known.version == resource.version);
            drop(known);
            if running && same {
                continue;
            }
            tracing::info!(kind = kind.as_str(), version = resource.api_version, "watching");
            if let Some(older) = self.running.remove(kind) {
                older.abort();
            }
            let (cluster, out) = (Arc::clone(&self.cluster), self.out.clone());
            let task = tokio::spawn(watch::follow(cluster, *kind, resource.clone(), out));
            self.running.insert(*kind, task);
        }
        // The watch of a kind that is gone goes on: it finds nothing, and tells so.
        *self.cluster.served.lock().unwrap_or_else(PoisonError::into_inner) = served;
        Ok(())
    }
}

/// Tells of each change of a definition.
async fn follow_definitions(client: Client, told: mpsc::Sender<()>) {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            // One that waits already tells of this change too.
            Ok(_) => match told.try_send(()) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
                Err(mpsc::error::TrySendError::Closed(())) => return,
            },
            Err(error) => tracing::warn!(%error, "watch of definitions failed; it is tried again"),
        }
    }
}
