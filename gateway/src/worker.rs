// SPDX-License-Identifier: Apache-2.0

//! What one core keeps: its pools, its handles to metrics, its chance.
//!
//! A [`Worker`] is made on the core's own thread by [`tunnel::worker`] and
//! never leaves it, so nothing here takes a lock. What all cores share is in
//! [`Shared`].

use std::cell::{Cell, Ref, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use http::HeaderValue;
use policy::identity::Identity;
use policy::peer::Peer;
use rand::RngCore as _;
use routing::backend::{BackendTls, BackendTlsName, Secret};
use routing::balance::outlier::{Limits as OutlierLimits, Outliers};
use routing::balance::{Candidate, Candidates, Rolls, Want};
use routing::discovery::{Service, Workload};
use routing::l4;
use routing::listener::{Listener, ListenerName, Protocol};
use rustls::ServerConfig;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tunnel::credentials::trust::Trust;
use tunnel::credentials::{Credential, Held};
use tunnel::hbone;

use crate::access_log::AccessLog;
use crate::dial::{DialError, Target, Terms};
use crate::http::{Limits, Pool, PoolKey, Protocol as HttpProtocol};
use crate::listen::Listening;
use crate::listen::refused::Refused;
use crate::metrics::{Metrics, PerCore};
use crate::settings::Settings;
use crate::state::{Loaded, OfCore, State};
use crate::tls::client::Client;
use crate::tls::{self, TlsError};
use crate::trace::Traces;

/// What all workers of the process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) http_limits: Arc<Limits>,
    pub(crate) state: State,
    pub(crate) listening: Listening,
    pub(crate) connections: Connections,
    pub(crate) refused: Arc<Refused>,
    /// The gateway's own certificate.
    pub(crate) credential: Held,
    /// What is told of the mesh's roots.
    pub(crate) trust: Arc<Trust>,
    pub(crate) access_log: AccessLog,
    pub(crate) traces: Traces,
    pub(crate) metrics: Arc<Metrics>,
    /// Name of the own pod, for pool keys.
    pub(crate) pod: Arc<str>,
    /// Who we are, for the telemetry of the other side.
    pub(crate) baggage: Option<HeaderValue>,
    /// True once the first full configuration is here.
    pub(crate) synced: watch::Sender<bool>,
    /// Cancelled when the process is to end gracefully.
    pub(crate) drain: CancellationToken,
}

/// Connections of clients that are open, over all cores.
#[derive(Debug, Default)]
pub(crate) struct Connections(Arc<AtomicUsize>);

/// Counts as one open connection until dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<AtomicUsize>);

impl Connections {
    /// Counts one more.
    pub(crate) fn enter(&self) -> Open {
        self.0.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(&self.0))
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One core's own things.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstreams: Pool<PoolKey>,
    pub(crate) tunnels: hbone::pool::Pool,
    pub(crate) metrics: RefCell<PerCore>,
    /// What was in use when this core last looked: cores count references to it on their own.
    loaded: RefCell<Rc<OfCore>>,
    /// Wakes sessions that last, at every change of the snapshot.
    changed: Rc<Notify>,
    /// Identities that peers proved; as many as the mesh has.
    identities: RefCell<HashSet<Identity>>,
    /// The own certificate, as the last change told.
    credential: Rc<RefCell<Option<Arc<Credential>>>>,
    rolls: RefCell<Rolls>,
    outliers: RefCell<Outliers<Arc<str>>>,
    candidates: RefCell<CandidateCache>,
    backend_tls: RefCell<HashMap<BackendTlsName, BackendTlsEntry>>,
    listener_tls: RefCell<HashMap<ListenerName, ListenerTlsEntry>>,
    requests: Places,
    handshakes: Places,
    mirrors: Places,
}

impl Worker {
    /// The worker of this thread; its upkeep runs until the thread ends.
    pub(crate) fn start(shared: Arc<Shared>) -> Self {
        let upstreams = Pool::new(Arc::clone(&shared.http_limits));
        let tunnels = hbone::pool::Pool::new(hbone::Limits::default());
        let sweep = upstreams.clone();
        tokio::task::spawn_local(async move { sweep.sweep().await });
        tokio::task::spawn_local(tunnels.clone().close_idle());
        let worker = Self {
            upstreams,
            tunnels,
            metrics: RefCell::new(PerCore::new(Arc::clone(&shared.metrics))),
            loaded: RefCell::new(Rc::new(OfCore::new(shared.state.load()))),
            changed: Rc::default(),
            identities: RefCell::default(),
            credential: Rc::new(RefCell::new(shared.credential.current())),
            rolls: RefCell::new(Rolls::new(rand::rng().next_u64())),
            outliers: RefCell::new(Outliers::new(OutlierLimits::default())),
            candidates: RefCell::default(),
            backend_tls: RefCell::default(),
            listener_tls: RefCell::default(),
            requests: Places::new(shared.settings.limits.requests),
            handshakes: Places::new(shared.settings.limits.handshakes),
            mirrors: Places::new(shared.settings.limits.mirrors),
            shared,
        };
        worker.follow_changes();
        worker.follow_credential();
        worker
    }

    /// Waits for the next change of the snapshot. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Keeps this core's copy of the certificate that of the process.
    fn follow_credential(&self) {
        let (held, copy) = (self.shared.credential.clone(), Rc::clone(&self.credential));
        tokio::task::spawn_local(async move {
            let mut changes = held.changes();
            loop {
                changes.mark_unchanged();
                copy.replace(held.current());
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// The own certificate, unless there is none or it has expired.
    pub(crate) fn credential(&self) -> Option<Ref<'_, Arc<Credential>>> {
        let credential = Ref::filter_map(self.credential.borrow(), Option::as_ref);
        credential.ok().filter(|credential| credential.is_valid_at(SystemTime::now()))
    }

    /// Lets go of connections to workloads that are gone, whenever the world changes.
    fn follow_changes(&self) {
        let (upstreams, tunnels) = (self.upstreams.clone(), self.tunnels.clone());
        let (shared, changed) = (Arc::clone(&self.shared), Rc::clone(&self.changed));
        let mut changes = shared.state.changes();
        tokio::task::spawn_local(async move {
            while changes.changed().await.is_ok() {
                changed.notify_waiters();
                let loaded = shared.state.load();
                let discovery = &loaded.snapshot.discovery;
                let there =
                    |uid: &str| discovery.workload(uid).is_some() || discovery.pod(uid).is_some();
                upstreams.retain(|key| key.workload.as_deref().is_none_or(there));
                tunnels.remove(|key| {
                    let pod = key.pod_uid.as_deref();
                    pod.map_or_else(|| !there(&key.workload), |uid| discovery.pod(uid).is_none())
                });
            }
        });
    }

    /// What is in use now.
    pub(crate) fn load(&self) -> Rc<OfCore> {
        let now = self.shared.state.peek();
        let mut loaded = self.loaded.borrow_mut();
        if !loaded.is(&now) {
            *loaded = Rc::new(OfCore::new(Arc::clone(&now)));
        }
        Rc::clone(&loaded)
    }

    /// The same peer, its identity one object with that of earlier peers who proved it.
    pub(crate) fn known(&self, peer: &Arc<Peer>) -> Arc<Peer> {
        let Some(identity) = &peer.identity else { return Arc::clone(peer) };
        let mut identities = self.identities.borrow_mut();
        match identities.get(identity) {
            Some(known) => Arc::new(Peer::proven(known.clone(), peer.address)),
            None => {
                identities.insert(identity.clone());
                Arc::clone(peer)
            }
        }
    }

    /// A uniform number.
    pub(crate) fn roll(&self) -> u64 {
        self.rolls.borrow_mut().roll()
    }

    /// A uniform number from zero to one.
    pub(crate) fn fraction(&self) -> f64 {
        let high = u32::try_from(self.roll() >> 32).unwrap_or_default();
        f64::from(high) / f64::from(u32::MAX)
    }

    /// Notes how an attempt at an endpoint went.
    pub(crate) fn attempted(&self, uid: &Arc<str>, well: bool) {
        let mut outliers = self.outliers.borrow_mut();
        if well {
            outliers.succeeded(uid);
        } else if outliers.failed(Arc::clone(uid), Instant::now()) {
            tracing::info!(%uid, "endpoint is left out for a while");
        }
    }

    /// The endpoints of `service` that may be chosen for its port.
    pub(crate) fn candidates(
        &self,
        loaded: &Loaded,
        service: &Arc<Service>,
        port: u16,
    ) -> Rc<Candidates> {
        let mut cache = self.candidates.borrow_mut();
        let revision = loaded.snapshot.revision;
        if cache.revision != revision {
            *cache = CandidateCache { revision, ..CandidateCache::default() };
        }
        // Keeping the service keeps its place from being another's.
        let key = (Arc::as_ptr(service).addr(), port);
        let (found, _) = cache.by_port.entry(key).or_insert_with(|| {
            let endpoints = loaded.snapshot.discovery.endpoints(&service.key);
            let found = Candidates::of(&loaded.own, service, endpoints, Want::Port(port));
            (Rc::new(found), Arc::clone(service))
        });
        Rc::clone(found)
    }

    /// The way to `candidate` of `service`, made once per snapshot and certificate.
    ///
    /// # Errors
    ///
    /// As [`Target::new`].
    pub(crate) async fn target(
        &self,
        candidate: &Candidate,
        service: &Arc<Service>,
        terms: &Terms,
        family: IpAddr,
    ) -> Option<Result<Rc<Target>, DialError>> {
        let place = TargetPlace {
            workload: Arc::as_ptr(&candidate.workload).addr(),
            port: candidate.port,
            service: Arc::as_ptr(service).addr(),
            tls: terms.tls.as_ref().map_or(0, |tls| Arc::as_ptr(tls).addr()),
            protocol: terms.protocol,
            epoch: self.credential().map(|credential| credential.epoch()),
        };
        if let Some((target, _)) = self.candidates.borrow().targets.get(&place) {
            return Some(Ok(Rc::clone(target)));
        }
        let hop = l4::hop_to_endpoint(&candidate.workload, Some(service), candidate.port, family)?;
        // A name is resolved anew each time.
        let named = candidate.workload.addresses.is_empty();
        let target = match Target::new(self, &hop, terms.clone()).await {
            Ok(target) => Rc::new(target),
            Err(error) => return Some(Err(error)),
        };
        if !named {
            let kept = (Rc::clone(&target), Arc::clone(&candidate.workload));
            self.candidates.borrow_mut().targets.insert(place, kept);
        }
        Some(Ok(target))
    }

    /// A choice among `candidates`; those in `tried`, and those that failed lately, come last.
    pub(crate) fn pick<'a>(
        &self,
        candidates: &'a Candidates,
        (service, client): (&Service, IpAddr),
        tried: &[Arc<str>],
    ) -> Option<&'a Candidate> {
        let now = Instant::now();
        let out = |one: &Candidate| {
            let uid = &one.workload.uid;
            tried.contains(uid) || self.outliers.borrow().is_out(uid, now)
        };
        candidates.pick_for(service, client, &mut self.rolls.borrow_mut(), out)
    }

    /// TLS towards a backend; made anew when its policy or our certificate has changed.
    ///
    /// # Errors
    ///
    /// Why it cannot be made; nothing may be sent then.
    pub(crate) fn backend_tls(
        &self,
        policy: &Arc<BackendTls>,
        own: Option<&Arc<Secret>>,
    ) -> Result<Arc<Client>, Arc<str>> {
        let mut cache = self.backend_tls.borrow_mut();
        if let Some(entry) = cache.get(&policy.name)
            && Arc::ptr_eq(&entry.policy, policy)
            && same(entry.own.as_ref(), own)
        {
            return entry.made.clone();
        }
        let made = tls::client::config(policy, own.map(|secret| &**secret));
        let made = made.map(Arc::new).map_err(|error| told("TLS to backend", &error));
        let entry = BackendTlsEntry { policy: Arc::clone(policy), own: own.cloned(), made };
        let made = entry.made.clone();
        cache.insert(policy.name.clone(), entry);
        made
    }

    /// TLS of a listener; made anew when the listener or one of its certificates has changed.
    ///
    /// # Errors
    ///
    /// Why it cannot be made; every handshake is refused then.
    pub(crate) fn listener_tls(
        &self,
        loaded: &Loaded,
        listener: &Arc<Listener>,
    ) -> Result<Arc<ServerConfig>, Arc<str>> {
        let Some(tls) = &listener.tls else { return Err("listener has no TLS".into()) };
        let serving = loaded.serving();
        let now = || tls.secrets.iter().map(|name| serving.secret(name));
        let mut cache = self.listener_tls.borrow_mut();
        if let Some(entry) = cache.get(&listener.name)
            && Arc::ptr_eq(&entry.listener, listener)
            && entry.secrets.iter().zip(now()).all(|(then, now)| same(then.as_ref(), now))
        {
            return entry.made.clone();
        }
        let secret = |name: &_| serving.secret(name).map(|secret| &**secret);
        let made = tls::server::config(tls, secret, listener.protocol == Protocol::Https);
        let made = made.map_err(|error| told("TLS of listener", &error));
        let secrets = now().map(Option::<&_>::cloned).collect();
        let entry = ListenerTlsEntry { listener: Arc::clone(listener), secrets, made };
        let made = entry.made.clone();
        cache.insert(listener.name.clone(), entry);
        made
    }

    /// A place for one more request; none if there are too many.
    pub(crate) fn admit_request(&self) -> Option<Place> {
        self.requests.take()
    }

    /// A place for one more handshake; none if there are too many.
    pub(crate) fn admit_handshake(&self) -> Option<Place> {
        self.handshakes.take()
    }

    /// A place for one more mirrored request; none if there are too many.
    pub(crate) fn admit_mirror(&self) -> Option<Place> {
        self.mirrors.take()
    }
}

/// Candidates of services, as of one revision.
#[derive(Debug, Default)]
struct CandidateCache {
    revision: u64,
    by_port: HashMap<(usize, u16), (Rc<Candidates>, Arc<Service>)>,
    targets: HashMap<TargetPlace, (Rc<Target>, Arc<Workload>)>,
}

/// What makes the way to one endpoint differ from others, by the places of what it is made of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct TargetPlace {
    workload: usize,
    port: u16,
    service: usize,
    tls: usize,
    protocol: HttpProtocol,
    epoch: Option<u64>,
}

/// TLS towards a backend, and what it was made of.
#[derive(Debug)]
struct BackendTlsEntry {
    policy: Arc<BackendTls>,
    own: Option<Arc<Secret>>,
    made: Result<Arc<Client>, Arc<str>>,
}

/// TLS of a listener, and what it was made of.
#[derive(Debug)]
struct ListenerTlsEntry {
    listener: Arc<Listener>,
    secrets: Vec<Option<Arc<Secret>>>,
    made: Result<Arc<ServerConfig>, Arc<str>>,
}

/// Tells whether both are the same object, or nothing.
fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Logs an error with its cause, and gives its text.
fn told(what: &'static str, error: &TlsError) -> Arc<str> {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(%error, cause, what, "TLS cannot be used");
    error.to_string().into()
}

/// A limited number of places.
#[derive(Debug)]
struct Places {
    taken: Rc<Cell<usize>>,
    limit: usize,
}

impl Places {
    fn new(limit: usize) -> Self {
        Self { taken: Rc::default(), limit }
    }

    fn take(&self) -> Option<Place> {
        if self.taken.get() >= self.limit {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Place(Rc::clone(&self.taken)))
    }
}

/// One of a limited number of places; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
