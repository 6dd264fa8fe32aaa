// SPDX-License-Identifier: Apache-2.0

//! Objects from an apiserver: one watch for each kind that it serves.
//!
//! Owns: which watches run (definitions may come and go; Secrets and ConfigMaps are [`named`]),
//! that the first batch holds everything there is, which namespaces are left out, and what
//! stands in the cluster as status ([`Standing`]), which the writers compare with. One watch is
//! [`watch`]'s, the form of what is sent [`raw`]'s and of what is kept [`object`]'s.
//!
//! Keeps: events are batched only while the previous batch is being worked on.
//!
//! Start at [`Watches::next`].

mod client;
mod named;
mod object;
mod raw;
pub mod retry;
mod served;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::PartialObjectMeta;
use kube::core::discovery::ApiResource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::client::Apiserver;
use self::named::{Named, is_by_name};
pub use self::raw::Raw;
use self::retry::retry;
use self::watch::{Scope, Seen};
use super::{Batch, Change, Problem};
use crate::discovery::Selectors;
use crate::settings::Mesh;
use crate::status::packed::Packed;
use crate::store::{Key, Kind};
use crate::translate::{guard, leave};

/// Events that wait for the engine.
const QUEUE: usize = 4096;
/// How long objects that a batch names are waited for.
const LATE: Duration = Duration::from_secs(5);
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
    /// The way to it for watches of single objects.
    apart: Client,
    served: Mutex<HashMap<Kind, ApiResource>>,
    standing: Mutex<HashMap<Key, Kept>>,
    selectors: Selectors,
    left_out: channel::Sender<LeftOut>,
}

/// A [`Standing`] as it is kept.
struct Kept {
    version: Option<Arc<str>>,
    status: Packed,
    /// A write of ours gave this version, and changed nothing but the status.
    ours: bool,
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
    pub fn new(apiserver: Apiserver, selectors: Selectors) -> Self {
        Self {
            client: apiserver.shared,
            apart: apiserver.apart,
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
    pub fn api(&self, key: &Key) -> Option<Api<Raw>> {
        self.api_by(&self.client, key)
    }

    /// The endpoint for a watch of that object alone.
    fn api_apart(&self, key: &Key) -> Option<Api<Raw>> {
        self.api_by(&self.apart, key)
    }

    fn api_by(&self, client: &Client, key: &Key) -> Option<Api<Raw>> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let resource = served.get(&key.kind)?;
        Some(if key.kind.is_cluster_wide() {
            Api::all_with(client.clone(), resource)
        } else {
            Api::namespaced_with(client.clone(), &key.name.namespace, resource)
        })
    }

    /// Group and version under which a kind is served; none if it is not.
    pub fn api_version(&self, kind: Kind) -> Option<String> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(&kind).map(|resource| resource.api_version.clone())
    }

    /// What stands as the status of an object; none if it is not there.
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = standing.get(key)?;
        Some(Standing { version: kept.version.clone(), status: kept.status.value() })
    }

    /// Takes what stands as the status of an object.
    pub(crate) fn set_standing(&self, key: &Key, now: Option<Standing>) {
        self.keep(key, now, false);
    }

    /// Takes what stands after the status of an object was written here.
    pub(crate) fn wrote(&self, key: &Key, now: Standing) {
        self.keep(key, Some(now), true);
    }

    /// Tells whether this version of an object came of a write of ours: nothing but the status
    /// differs from the version before.
    fn is_own(&self, key: &Key, version: Option<&str>) -> bool {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = standing.get(key).filter(|kept| kept.ours);
        kept.is_some_and(|kept| version.is_some() && kept.version.as_deref() == version)
    }

    fn keep(&self, key: &Key, now: Option<Standing>, ours: bool) {
        let now = now.map(|now| {
            let status = Packed::from(&now.status);
            Kept { version: now.version, status, ours }
        });
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
    named: Named,
    definitions: mpsc::Receiver<()>,
    problems: BTreeMap<Key, Problem>,
    /// What came in and was not given on yet.
    pending: Batch,
    /// Until when objects that it names are waited for.
    late: Option<Instant>,
    started: bool,
}

impl Watches {
    /// Starts a watch for each kind that is served, and for the objects that are read although
    /// no object names them.
    ///
    /// # Errors
    ///
    /// When the apiserver cannot be asked what it serves.
    pub async fn new(cluster: Arc<Cluster>, mesh: &Mesh) -> kube::Result<Self> {
        let (out, inbox) = mpsc::channel(QUEUE);
        let (told, definitions) = mpsc::channel(1);
        tokio::spawn(follow_definitions(cluster.client.clone(), told));
        // They are core kinds: known before the first of them is followed.
        *cluster.served.lock().unwrap_or_else(PoisonError::into_inner) =
            served::kinds(&cluster.client).await?;
        let mut named = Named::new(Arc::clone(&cluster), out.clone());
        named.add(&guard::mesh_config(mesh));
        named.add(&leave::key(mesh));
        let namespace = mesh.root_namespace.to_string();
        tokio::spawn(named::follow_defaults(cluster.client.clone(), namespace, out.clone()));
        let mut watches = Self {
            cluster,
            inbox,
            out,
            running: HashMap::new(),
            named,
            definitions,
            problems: BTreeMap::new(),
            pending: Batch::default(),
            late: None,
            started: false,
        };
        watches.start_served().await?;
        Ok(watches)
    }

    /// The next batch; the first holds everything there is, later ones wait for an event.
    ///
    /// Cancel safe: what came in is kept for the next call.
    pub async fn next(&mut self) -> Batch {
        if !self.started {
            self.first().await;
        }
        while self.started && self.pending.changes.is_empty() {
            tokio::select! {
                Some(seen) = self.inbox.recv() => self.take(seen),
                Some(()) = self.definitions.recv() => self.look_again().await,
            }
            while let Ok(seen) = self.inbox.try_recv() {
                self.take(seen);
            }
        }
        self.read_named().await;
        self.started = true;
        let changes = std::mem::take(&mut self.pending.changes);
        Batch { changes, problems: self.problems.values().cloned().collect() }
    }

    /// Waits until every kind that is served was told whole.
    async fn first(&mut self) {
        let mut waiting: BTreeSet<Kind> = self.running.keys().copied().collect();
        let mut defaults = false;
        while !waiting.is_empty() || !defaults {
            let Some(seen) = self.inbox.recv().await else { return };
            match &seen {
                Seen::Synced(Scope::All(kind)) => {
                    waiting.remove(kind);
                }
                Seen::DefaultsSynced => defaults = true,
                Seen::Synced(Scope::One(_))
                | Seen::Change(_)
                | Seen::Unreadable(..)
                | Seen::Default(..) => {}
            }
            self.take(seen);
        }
    }

    /// Waits until what the batch names was read, too.
    ///
    /// Cancel safe: the next call waits for the rest of the time.
    async fn read_named(&mut self) {
        while !self.named.waiting().is_empty() {
            let late = *self.late.get_or_insert_with(|| Instant::now() + LATE);
            tokio::select! {
                Some(seen) = self.inbox.recv() => self.take(seen),
                () = tokio::time::sleep_until(late) => {
                    let waiting = std::mem::take(self.named.waiting());
                    tracing::warn!(?waiting, "not read in time; they count as missing until they are");
                }
            }
        }
        self.late = None;
    }

    fn take(&mut self, seen: Seen) {
        match seen {
            // Of one that nobody names any more something may still have been under way.
            Seen::Change(change) if !self.named.follows(&change.key()) => {}
            Seen::Change(change) => {
                let unnamed = self.named.note(&change);
                self.pending.changes.push(change);
                unnamed.into_iter().for_each(|key| self.forget(key));
            }
            Seen::Default(key, true) => self.named.add(&key),
            Seen::Default(key, false) => {
                if self.named.remove(&key) {
                    self.forget(key);
                }
            }
            Seen::Unreadable(key, Some(_)) if !self.named.follows(&key) => {}
            Seen::Unreadable(key, Some(problem)) => {
                if self.problems.get(&key) != Some(&problem) {
                    tracing::warn!(%problem, "object not in force as it stands");
                }
                self.problems.insert(key, problem);
            }
            Seen::Unreadable(key, None) => {
                self.problems.remove(&key);
            }
            Seen::Synced(Scope::One(key)) => self.named.told(&key),
            Seen::Synced(Scope::All(_)) | Seen::DefaultsSynced => {}
        }
    }

    /// Nobody names this object any more.
    fn forget(&mut self, key: Key) {
        self.problems.remove(&key);
        self.pending.changes.push(Change::Gone(key));
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
        for (kind, resource) in served.iter().filter(|(kind, _)| !is_by_name(**kind)) {
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
            let what = watch::all(&cluster, *kind, resource);
            let task = tokio::spawn(watch::follow(cluster, Scope::All(*kind), what, out));
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
    let events = watcher(api, watcher::Config::default()).backoff(retry());
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
