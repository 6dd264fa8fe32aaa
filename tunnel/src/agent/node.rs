// SPDX-License-Identifier: Apache-2.0

//! All pods of the node that the agent knows, in the mesh or not.
//!
//! Owns: which pods there are, from three sources: the controller (which belong
//! in the mesh), the CNI plug-in (where they live), and what an earlier agent
//! left on disk. Leaves each pod's way to its own task ([`super::pod`]).
//!
//! Keeps: a pod is released only on the controller's word, never for its
//! silence; a pod whose namespace is gone is forgotten.
//!
//! Start at [`Node::put`] and [`Node::place`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::discover;
use super::enrol::{Pace, Phase, Standing, Want};
use super::pod::{self, Event, Place, Remains, Status, Tools};
use super::spec::PodSpec;
use super::zds::ServedPod;
use crate::sys::NetworkNamespace;

/// Longest time between two proofs is this for each pod of the node, and at least a second.
const PROOF_SHARE: Duration = Duration::from_millis(200);
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// The pods of one node; clones share them.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tools: Arc<Tools>,
    proc: PathBuf,
    own: NetworkNamespace,
    pace: watch::Sender<Pace>,
    pods: Mutex<BTreeMap<Arc<str>, Entry>>,
    /// A pod has come whose namespace is not known.
    homeless: Notify,
}

#[derive(Debug)]
struct Entry {
    events: mpsc::UnboundedSender<Event>,
    status: watch::Receiver<Status>,
    /// The controller has spoken of the pod.
    spoken: bool,
    /// The last thing that it said: the pod belongs in the mesh.
    inside: bool,
    /// How much the task was told; what it publishes says how much it has taken in.
    told: u64,
    spec: Option<PodSpec>,
    place: Option<Place>,
}

/// What is kept on disk of one pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// UID of the pod.
    pub uid: Arc<str>,
    /// What the controller said of it, if it belongs in the mesh.
    pub spec: Option<PodSpec>,
    /// File of its namespace, if a plug-in told of it.
    pub netns: Option<PathBuf>,
    /// Addresses that the plug-in told of.
    pub addresses: Vec<IpAddr>,
    /// How far it had come.
    pub remains: Remains,
}

/// What is reported of one pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodReport {
    /// UID of the pod.
    pub uid: Arc<str>,
    /// What others are told.
    pub standing: Standing,
    /// Why, if there is something to say.
    pub reason: String,
    /// Connections older than enrolment that are still open.
    pub older: usize,
    /// Times that lost rules were put back.
    pub repairs: u32,
    /// Plain connections to the pod are not captured.
    pub plain_inbound: bool,
    /// Generation of the description whose rules are in force; 0 before any were.
    pub observed: u64,
}

/// Why a plug-in's call cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The namespace cannot be opened.
    #[error("cannot open the network namespace {0}")]
    Open(PathBuf, #[source] std::io::Error),

    /// The file names the node's own namespace.
    #[error("{0} is the node's own network namespace")]
    Own(PathBuf),

    /// Not proven in time; the reason is that of the last step, or what is waited for.
    #[error("capture was not proven in time: {0}")]
    Late(String),

    /// The pod was deleted meanwhile.
    #[error("the pod is gone")]
    Gone,
}

impl Node {
    /// No pods yet. `own` is the node's namespace, `proc` where its processes are seen.
    #[must_use]
    pub fn new(
        tools: Arc<Tools>,
        own: NetworkNamespace,
        proc: PathBuf,
        pace: watch::Sender<Pace>,
    ) -> Self {
        let (pods, homeless) = (Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { tools, proc, own, pace, pods, homeless }) }
    }

    /// Takes up what an earlier agent left; before any tunnel may connect.
    pub fn restore(&self, records: Vec<Record>) {
        let homeless = records.iter().filter(|record| record.netns.is_none());
        let mut found = self.discover(&homeless.map(|record| Arc::clone(&record.uid)).collect());
        for record in records {
            let place = match &record.netns {
                Some(path) => self.open(path, record.addresses).ok(),
                None => found.remove(&record.uid),
            };
            if place.is_none() && record.netns.is_some() {
                // Its file is gone, so is the pod.
                continue;
            }
            let served = matches!(
                record.remains.phase,
                Phase::Handed | Phase::Captured | Phase::Enrolled | Phase::Idle
            );
            if let (true, Some(spec)) = (served, &record.spec) {
                let netns = place.as_ref().map(|place| Arc::clone(&place.namespace));
                let uid = Arc::clone(&record.uid);
                self.inner.tools.zds.restore(ServedPod { uid, who: spec.who(), netns });
            }
            self.with(|pods| {
                let entry = self.start(&record.uid, (record.spec.clone(), record.remains));
                let entry = pods.entry(Arc::clone(&record.uid)).or_insert(entry);
                entry.spec = record.spec;
                entry.settle(place);
            });
        }
    }

    /// The controller says that a pod belongs in the mesh, and how.
    pub fn put(&self, spec: PodSpec) {
        self.inner.tools.metrics.event("add");
        let uid = Arc::clone(&spec.uid);
        let homeless = self.with(|pods| {
            let entry = pods
                .entry(Arc::clone(&uid))
                .or_insert_with(|| self.start(&uid, (None, Remains::default())));
            entry.spec = Some(spec.clone());
            entry.want(Want::Inside, Some(spec));
            entry.place.is_none()
        });
        if homeless {
            self.inner.homeless.notify_one();
        }
    }

    /// The controller says that a pod does not, or no longer, belong in the mesh.
    pub fn let_go(&self, uid: &str) {
        self.inner.tools.metrics.event("delete");
        self.with(|pods| {
            if let Some(entry) = pods.get_mut(uid) {
                entry.want(Want::Outside, None);
            }
        });
    }

    /// The controller knows a pod and leaves it outside; what it said before counts more.
    pub fn stays_outside(&self, uid: &str) {
        self.with(|pods| {
            if let Some(entry) = pods.get_mut(uid).filter(|entry| !entry.spoken) {
                entry.want(Want::Outside, None);
            }
        });
    }

    /// The controller has named all pods that belong in the mesh.
    pub fn complete(&self, inside: &BTreeSet<String>) {
        let strangers: Vec<Arc<str>> = self.with(|pods| {
            let left_over = |entry: &Entry| entry.status.borrow().phase != Phase::Outside;
            let pods =
                pods.iter().filter(|(uid, entry)| !inside.contains(&***uid) && left_over(entry));
            pods.map(|(uid, _)| Arc::clone(uid)).collect()
        });
        for uid in strangers {
            info!(uid = &*uid, "pod of an earlier agent is no longer in the mesh");
            self.let_go(&uid);
        }
    }

    /// The CNI plug-in says where a pod lives; done once that needs no waiting any more:
    /// it is enrolled, or known to stay outside.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]. A pod that is late is tried on all the same.
    pub async fn place(
        &self,
        uid: &str,
        path: &Path,
        addresses: Vec<IpAddr>,
        patience: Duration,
    ) -> Result<Standing, PlaceError> {
        self.inner.tools.metrics.plugin_request();
        let place = self.open(path, addresses)?;
        let uid: Arc<str> = uid.into();
        let (told, mut status) = self.with(|pods| {
            let entry = pods
                .entry(Arc::clone(&uid))
                .or_insert_with(|| self.start(&uid, (None, Remains::default())));
            entry.settle(Some(place));
            (entry.told, entry.status.clone())
        });
        let settled = |status: &Status| {
            let enrolled = status.standing == Standing::Enrolled;
            let decided = match status.want {
                Want::Outside => true,
                Want::Inside => enrolled,
                Want::Unknown => false,
            };
            decided && status.heard >= told
        };
        let wait = async { status.wait_for(settled).await.map(|status| status.standing) };
        match tokio::time::timeout(patience, wait).await {
            Ok(standing) => standing.map_err(|_| PlaceError::Gone),
            Err(_) => Err(PlaceError::Late(waits_for(&status.borrow()))),
        }
    }

    /// The CNI plug-in says that a sandbox of the pod is gone; `path` is the file of its
    /// namespace, empty if the runtime does not know it any more.
    ///
    /// Rule: runtimes may say so of an older sandbox at any time, also when the pod lives in
    /// another one already (CNI specification, DEL).
    pub fn vacated(&self, uid: &str, path: &Path) {
        let lived_there = |entry: &Entry| entry.lived_in(path);
        if self.with(|pods| pods.get(uid).is_some_and(lived_there)) {
            self.forget(uid);
        }
    }

    /// Forgets where a pod lives, and the pod itself unless the controller wants it in the mesh:
    /// it may get another sandbox, and the controller describes it only once.
    fn forget(&self, uid: &str) {
        let known = self.with(|pods| {
            let Some(entry) = pods.get_mut(uid) else { return false };
            if entry.inside {
                entry.vacate();
            } else if let Some(entry) = pods.remove(uid) {
                entry.tell(Event::Gone);
            }
            true
        });
        if known {
            self.changed();
        }
    }

    /// A tunnel has connected.
    pub fn tunnel_connected(&self) {
        self.with(|pods| pods.values().for_each(|entry| entry.tell(Event::Tunnel)));
    }

    /// Forgets pods whose namespace is gone.
    pub fn sweep(&self) {
        let gone: Vec<Arc<str>> = self.with(|pods| {
            let gone = pods.iter().filter(|(_, entry)| entry.is_over());
            gone.map(|(uid, _)| Arc::clone(uid)).collect()
        });
        gone.iter().for_each(|uid| self.forget(uid));
    }

    /// Resolves when a pod has come whose namespace is not known.
    pub async fn homeless(&self) {
        self.inner.homeless.notified().await;
    }

    /// Looks for namespaces that are not known yet, once for all pods.
    pub async fn look_for_namespaces(&self) {
        let homeless: BTreeSet<Arc<str>> = self.with(|pods| {
            let lost = pods.iter().filter(|(_, entry)| entry.inside && entry.place.is_none());
            lost.map(|(uid, _)| Arc::clone(uid)).collect()
        });
        if homeless.is_empty() {
            return;
        }
        let node = self.clone();
        let found = tokio::task::spawn_blocking(move || node.discover(&homeless)).await;
        for (uid, place) in found.unwrap_or_default() {
            info!(uid = &*uid, "network namespace found by the pod's processes");
            self.with(|pods| {
                if let Some(entry) = pods.get_mut(&uid).filter(|entry| entry.place.is_none()) {
                    entry.settle(Some(place));
                }
            });
        }
    }

    /// Pods of whose place in the mesh the controller has not spoken yet.
    #[must_use]
    pub fn undecided(&self) -> bool {
        self.with(|pods| {
            pods.values().any(|e| e.place.is_some() && e.status.borrow().want == Want::Unknown)
        })
    }

    /// Nothing of the mesh is left in any pod, and none is on its way in.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.with(|pods| {
            pods.values().all(|entry| {
                let status = entry.status.borrow();
                status.phase == Phase::Outside && status.want != Want::Inside
            })
        })
    }

    /// The longest drain is this from now on.
    pub fn set_drain(&self, drain: Duration) {
        self.inner.pace.send_if_modified(|pace| std::mem::replace(&mut pace.drain, drain) != drain);
    }

    /// What is to be told to the controller of every pod.
    #[must_use]
    pub fn report(&self) -> Vec<PodReport> {
        self.with(|pods| {
            let report = |(uid, entry): (&Arc<str>, &Entry)| {
                let status = entry.status.borrow();
                PodReport {
                    uid: Arc::clone(uid),
                    standing: status.standing,
                    reason: status.reason.clone(),
                    older: status.older.len(),
                    repairs: status.repairs,
                    plain_inbound: status.plain_inbound,
                    observed: status.observed,
                }
            };
            pods.iter().map(report).collect()
        })
    }

    /// What is to be kept on disk.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.with(|pods| {
            let record = |(uid, entry): (&Arc<str>, &Entry)| {
                let status = entry.status.borrow();
                let remains = Remains {
                    phase: status.phase,
                    older: status.older.clone(),
                    repairs: status.repairs,
                    observed: status.observed,
                };
                let place = entry.place.as_ref();
                Record {
                    uid: Arc::clone(uid),
                    spec: entry.spec.clone(),
                    netns: place.and_then(|place| place.path.clone()),
                    addresses: place.map(|place| place.addresses.clone()).unwrap_or_default(),
                    remains,
                }
            };
            pods.iter().map(record).collect()
        })
    }

    /// Runs `work` on the pods; nothing in it awaits or panics.
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<Arc<str>, Entry>) -> T) -> T {
        let mut pods = self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pods.len();
        let result = work(&mut pods);
        if pods.len() != before {
            let share = PROOF_SHARE.saturating_mul(u32::try_from(pods.len()).unwrap_or(u32::MAX));
            let proof = PROOF_INTERVAL.max(share);
            self.inner.pace.send_modify(|pace| pace.proof = proof);
        }
        result
    }

    fn start(&self, uid: &Arc<str>, left: (Option<PodSpec>, Remains)) -> Entry {
        let (events, inbox) = mpsc::unbounded_channel();
        let (sender, status) = watch::channel(Status::new(&left.1));
        let tools = Arc::clone(&self.inner.tools);
        tokio::spawn(pod::run(Arc::clone(uid), tools, left, inbox, sender));
        Entry { events, status, spoken: false, inside: false, told: 0, spec: None, place: None }
    }

    fn changed(&self) {
        self.inner.tools.changed.send_modify(|count| *count += 1);
    }

    fn open(&self, path: &Path, addresses: Vec<IpAddr>) -> Result<Place, PlaceError> {
        let namespace = NetworkNamespace::open(path)
            .map_err(|error| PlaceError::Open(path.to_owned(), error))?;
        if namespace.id() == self.inner.own.id() {
            return Err(PlaceError::Own(path.to_owned()));
        }
        Ok(Place { path: Some(path.to_owned()), namespace: Arc::new(namespace), addresses })
    }

    fn discover(&self, uids: &BTreeSet<Arc<str>>) -> BTreeMap<Arc<str>, Place> {
        if uids.is_empty() {
            return BTreeMap::new();
        }
        let found = discover::find(&self.inner.proc, uids, &self.inner.own);
        let place =
            |namespace| Place { path: None, namespace: Arc::new(namespace), addresses: Vec::new() };
        found.into_iter().map(|(uid, namespace)| (uid, place(namespace))).collect()
    }
}

/// What a pod waits for that is not enrolled, if nothing failed.
fn waits_for(status: &Status) -> String {
    if !status.reason.is_empty() {
        return status.reason.clone();
    }
    let text = match (status.want, status.phase) {
        (Want::Unknown, _) => "the controller has not said whether it belongs in the mesh",
        (_, Phase::Outside | Phase::Withdrawn) => "the tunnel has not taken it yet",
        (_, Phase::Handed | Phase::Idle) => "its rules are not set yet",
        (_, Phase::Captured | Phase::Enrolled) => "its capture is being proven",
    };
    text.to_owned()
}

impl Entry {
    fn tell(&self, event: Event) {
        if self.events.send(event).is_err() {
            warn!("a pod's task has ended early");
        }
    }

    fn want(&mut self, want: Want, spec: Option<PodSpec>) {
        self.spoken = true;
        self.inside = want == Want::Inside;
        self.told += 1;
        self.tell(Event::Want(want, spec, self.told));
    }

    fn settle(&mut self, place: Option<Place>) {
        let Some(place) = place else { return };
        self.told += 1;
        self.tell(Event::Namespace(Box::new(place.clone()), self.told));
        self.place = Some(place);
    }

    fn vacate(&mut self) {
        if self.place.take().is_some() {
            self.told += 1;
            self.tell(Event::Vacated(self.told));
        }
    }

    /// Tells whether `path` named the namespace in which the pod lives, as far as is known.
    fn lived_in(&self, path: &Path) -> bool {
        match &self.place {
            None => true,
            Some(Place { path: Some(own), .. }) => own == path || !own.exists(),
            // Found by its processes: it is gone unless the file says otherwise.
            Some(Place { path: None, namespace, .. }) => {
                NetworkNamespace::open(path).map_or(true, |found| found.id() == namespace.id())
            }
        }
    }

    /// Its namespace is gone, or it was let go and nobody holds a namespace for it.
    fn is_over(&self) -> bool {
        let status = self.status.borrow();
        match self.place.as_ref().and_then(|place| place.path.as_ref()) {
            Some(path) => !path.exists(),
            None => status.want == Want::Outside && status.phase == Phase::Outside,
        }
    }
}
