// SPDX-License-Identifier: Apache-2.0

//! Upstream connections of one core, by key.
//!
//! A key says everything that makes two connections differ, and is compared in full: a
//! connection made for one identity, certificate, workload or trust is never used for another.
//! HTTP/1 connections go back when their exchange is over, and are looked at once before they
//! are used again; HTTP/2 connections are shared while they have free streams, and requests
//! that come while one is being made wait for it. A map holds no key without connections.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ::h2::client::SendRequest;
use bytes::Bytes;
use pingora_core::connectors::http::v2::ConnectionRef;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::v2::client::drive_connection;
use policy::identity::Identity;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::upstream::{h1, h2};
use super::{ByteStream, Error, Limits, Protocol, Upstream};

/// All that makes one upstream connection differ from another.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// Where the connection goes.
    pub address: SocketAddr,
    /// Who we are on it; none in plain text.
    pub source: Option<Identity>,
    /// Which certificate proves that; a new one makes older connections unreachable.
    pub epoch: u64,
    /// UID of the workload there, so that an address that moves on takes no connection along.
    pub workload: Option<Arc<str>>,
    /// Who must be there.
    pub identity: Option<Identity>,
    /// The gateway of another network, or a waypoint, that the way goes through.
    pub via: Option<SocketAddr>,
    /// TLS towards the backend: authorities, names, client certificate; a text that says it all.
    pub tls: Option<Arc<str>>,
    /// What is spoken, as far as known before dialling.
    pub protocol: Protocol,
}

/// A connection just made.
pub struct Dialed {
    /// The stream, ready for HTTP.
    pub io: Box<dyn ByteStream>,
    /// What ALPN or configuration says is spoken; [`Protocol::Sniff`] counts as HTTP/1.
    pub protocol: Protocol,
}

impl std::fmt::Debug for Dialed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Dialed").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// Why there is no upstream connection.
#[derive(Debug, thiserror::Error)]
pub enum GetError<E: std::error::Error + 'static> {
    /// The caller's dial failed.
    #[error("cannot connect")]
    Dial(#[source] E),
    /// The connection is there, but HTTP on it failed.
    #[error(transparent)]
    Http(#[from] Error),
}

/// Upstream connections of one core; clones share them.
#[derive(Debug)]
pub struct Pool<K>(Rc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    limits: Arc<Limits>,
    places: RefCell<HashMap<K, Rc<Place>>>,
}

/// The connections of one key.
#[derive(Default)]
struct Place {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Multiplexed>>,
    dialing: Cell<bool>,
    dialed: Notify,
    /// Dropped from the pool: nothing comes back.
    closed: Cell<bool>,
}

struct Idle {
    request: Box<h1::Http1>,
    since: Instant,
}

struct Multiplexed {
    connection: ConnectionRef,
    requests: SendRequest<Bytes>,
    made: Instant,
    used: Instant,
}

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<K: Clone + Eq + Hash> Pool<K> {
    /// An empty pool.
    #[must_use]
    pub fn new(limits: Arc<Limits>) -> Self {
        Self(Rc::new(Inner { limits, places: RefCell::default() }))
    }

    /// A place for one request: on a connection that is there, else on one from `dial`.
    ///
    /// With `expect` HTTP/2, requests for one key that come while it is dialled wait for that
    /// connection. Cancel safe: dropped while dialling, the next in line dials.
    ///
    /// # Errors
    ///
    /// That of `dial`, or [`Error::UpstreamHandshake`].
    pub async fn get<E: std::error::Error + 'static>(
        &self,
        key: &K,
        expect: Protocol,
        dial: impl AsyncFnOnce() -> Result<Dialed, E>,
    ) -> Result<Upstream, GetError<E>> {
        let place = self.place(key);
        let _turn = loop {
            if let Some(upstream) = place.reuse(&self.0.limits).await {
                return Ok(upstream);
            }
            if expect != Protocol::Http2 {
                break None;
            }
            let wait = place.dialed.notified();
            if !place.dialing.replace(true) {
                break Some(Turn(&place));
            }
            wait.await;
        };
        let Dialed { io, protocol } = dial().await.map_err(GetError::Dial)?;
        if protocol == Protocol::Http2 {
            Ok(place.multiplex(io, &self.0.limits).await?)
        } else {
            let (place, limits) = (Rc::downgrade(&place), Arc::clone(&self.0.limits));
            let home = Home { place, made: Instant::now(), limits: Arc::clone(&limits) };
            Ok(Upstream::http1(Box::new(h1::Http1::new(io, limits, home)), false))
        }
    }

    /// Drops the connections of all keys but those that `keep` wants; running exchanges finish,
    /// and their connections are then closed.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.0.places.borrow_mut().retain(|key, place| {
            let keep = keep(key);
            place.closed.set(!keep);
            keep
        });
    }

    /// Connections held for later, over all keys.
    #[must_use]
    pub fn held(&self) -> usize {
        let places = self.0.places.borrow();
        places.values().map(|place| place.idle.borrow().len() + place.shared.borrow().len()).sum()
    }

    /// Closes what was unused too long, again and again; runs until dropped, beside the pool.
    pub async fn sweep(&self) {
        let pause = (self.0.limits.pooled_idle / 4).max(Duration::from_millis(10));
        loop {
            tokio::time::sleep(pause).await;
            let now = Instant::now();
            self.0.places.borrow_mut().retain(|_, place| !place.sweep(now, &self.0.limits));
        }
    }

    fn place(&self, key: &K) -> Rc<Place> {
        let mut places = self.0.places.borrow_mut();
        match places.get(key) {
            Some(place) => Rc::clone(place),
            None => {
                let place = Rc::new(Place::default());
                places.insert(key.clone(), Rc::clone(&place));
                place
            }
        }
    }
}

impl Place {
    async fn reuse(self: &Rc<Self>, limits: &Arc<Limits>) -> Option<Upstream> {
        let now = Instant::now();
        while let Some(Idle { mut request, since }) = self.next_idle() {
            let fresh =
                now - since < limits.pooled_idle && now - request.made() < limits.pooled_age;
            if fresh && request.is_quiet() {
                return Some(Upstream::http1(request, true));
            }
        }
        loop {
            let (connection, requests) = self.next_shared(now, limits)?;
            // None, or an error: it has begun to close, which marks it; take another.
            if let Ok(Some(session)) = connection.spawn_stream().await {
                let request = h2::Http2::new(session, requests, Arc::clone(limits));
                return Some(Upstream::http2(request, true));
            }
            connection.mark_shutdown();
        }
    }

    fn next_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop()
    }

    fn next_shared(
        &self,
        now: Instant,
        limits: &Limits,
    ) -> Option<(ConnectionRef, SendRequest<Bytes>)> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|one| !one.connection.is_closed() && !one.connection.is_shutting_down());
        let one = shared.iter_mut().find(|one| {
            now - one.made < limits.pooled_age && one.connection.free_stream_slots() > 0
        })?;
        one.used = now;
        Some((one.connection.clone(), one.requests.clone()))
    }

    /// Speaks HTTP/2 on a fresh stream, and gives its first place.
    async fn multiplex(
        self: &Rc<Self>,
        io: Box<dyn ByteStream>,
        limits: &Arc<Limits>,
    ) -> Result<Upstream, Error> {
        let mut builder = ::h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(limits.stream_buffer);
        let handshake = tokio::time::timeout(limits.head_time, builder.handshake(io)).await;
        let (requests, connection) = match handshake {
            Ok(Ok(made)) => made,
            Ok(Err(cause)) => return Err(Error::UpstreamHandshake(cause.into())),
            Err(elapsed) => return Err(Error::UpstreamHandshake(elapsed.into())),
        };
        let (closed, watch) = watch::channel(false);
        let lost = Arc::new(AtomicBool::new(false));
        let connection_ref = ConnectionRef::new(
            requests.clone(),
            watch,
            Arc::clone(&lost),
            0,
            limits.upstream_streams,
            Digest::default(),
        );
        tokio::spawn(drive_connection(connection, 0, closed, Some(limits.ping), lost));
        let spawned = connection_ref.spawn_stream().await;
        let session = spawned
            .map_err(|cause| Error::UpstreamHandshake(cause))?
            .ok_or(Error::UpstreamRefused)?;
        if !self.closed.get() {
            let now = Instant::now();
            self.shared.borrow_mut().push(Multiplexed {
                connection: connection_ref,
                requests: requests.clone(),
                made: now,
                used: now,
            });
        }
        let request = h2::Http2::new(session, requests, Arc::clone(limits));
        Ok(Upstream::http2(request, false))
    }

    /// Drops what is too old; true if nothing is left and nobody is at it.
    fn sweep(self: &Rc<Self>, now: Instant, limits: &Limits) -> bool {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|one| now - one.since < limits.pooled_idle);
        let mut shared = self.shared.borrow_mut();
        shared.retain(|one| {
            let busy = !one.connection.is_idle();
            busy || !one.connection.is_closed() && now - one.used < limits.pooled_idle
        });
        let unused = Rc::strong_count(self) == 1 && Rc::weak_count(self) == 0;
        unused && idle.is_empty() && shared.is_empty()
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (idle, shared) = (self.idle.borrow().len(), self.shared.borrow().len());
        out.debug_struct("Place")
            .field("idle", &idle)
            .field("shared", &shared)
            .finish_non_exhaustive()
    }
}

/// The right to dial for a key; given up, the others look again.
struct Turn<'a>(&'a Place);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}

/// Where an HTTP/1 connection goes back to.
pub(super) struct Home {
    place: Weak<Place>,
    pub(super) made: Instant,
    limits: Arc<Limits>,
}

impl Home {
    /// Puts a connection back, unless its key was dropped or has enough.
    pub(super) fn put_back(request: Box<h1::Http1>) {
        let home = request.home();
        let Some(place) = home.place.upgrade().filter(|place| !place.closed.get()) else { return };
        let now = Instant::now();
        let mut idle = place.idle.borrow_mut();
        if idle.len() < home.limits.pooled && now - home.made < home.limits.pooled_age {
            idle.push(Idle { request, since: now });
        }
    }
}
