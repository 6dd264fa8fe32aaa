// SPDX-License-Identifier: Apache-2.0

//! The HBONE connections of one worker, by who opens them to whom.
//!
//! Owns: which connection carries a new stream, when another one is opened
//! beside it, and when an idle one is closed. Leaves dialling to the caller.
//!
//! Keeps: the key is compared in full, so a stream never rides on a connection
//! of another identity, certificate, workload or pod; of many streams that
//! want the same new connection one opens it and the others wait for that one.
//!
//! Start at [`Pool::open`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use h2::client::SendRequest;
use http::{HeaderMap, StatusCode};
use policy::identity::Identity;
use routing::l4::Expected;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::client::{self, Ask, ConnectError, SharedConnectError};
use super::stream::Stream;
use super::{Limits, REFUSED, REFUSED_UID};
use crate::credentials::Credential;

/// What a connection is for. Equal keys may share one.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Key {
    /// Who opens it.
    pub source: Identity,
    /// [`Credential::epoch`] of the certificate it is opened with.
    pub epoch: u64,
    /// The pod it is opened from: Kubernetes UID, or any word for the process itself.
    pub source_pod: Arc<str>,
    /// Uid of the workload it is opened to.
    pub workload: Arc<str>,
    /// Kubernetes UID of that pod, if it has one.
    pub pod_uid: Option<Arc<str>>,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Whom the other side must prove to be.
    pub expected: Expected,
}

/// Why a stream was not opened; nothing of it was sent.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no connection to carry it.
    #[error(transparent)]
    Connect(SharedConnectError),
    /// The other side answered with another status than 200.
    #[error("http status: {status}{}", if *.other_pod { ", another pod" } else { "" })]
    Refused {
        /// The status.
        status: StatusCode,
        /// The address belongs to another pod by now.
        other_pod: bool,
    },
    /// The connection broke before the answer.
    #[error("CONNECT failed")]
    Broken(#[source] Arc<h2::Error>),
    /// There was no answer in time.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008")]
    TimedOut,
}

impl OpenError {
    /// Tells whether another endpoint may do better. A refusal by policy is final.
    #[must_use]
    pub fn try_elsewhere(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status != StatusCode::UNAUTHORIZED,
            Self::Connect(_) | Self::Broken(_) | Self::TimedOut => true,
        }
    }
}

type Connecting = Shared<LocalBoxFuture<'static, Result<Connection, SharedConnectError>>>;

/// All connections of one worker; cloning gives the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    limits: Limits,
    entries: RefCell<HashMap<Key, Entry>>,
}

#[derive(Default)]
struct Entry {
    connections: Vec<Connection>,
    connecting: Option<Connecting>,
}

#[derive(Clone)]
struct Connection {
    send: SendRequest<Bytes>,
    state: Arc<ConnectionState>,
    /// When the pool last looked, and how many streams were opened until then.
    looked: (Instant, usize),
}

#[derive(Default)]
struct ConnectionState {
    active: AtomicUsize,
    opened: AtomicUsize,
    closed: AtomicBool,
}

/// One stream's place on a connection.
struct Place(Arc<ConnectionState>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("keys", &self.inner.entries.borrow().len()).finish()
    }
}

impl Connection {
    fn take_place(&self) -> Place {
        self.state.active.fetch_add(1, Ordering::Relaxed);
        self.state.opened.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.state))
    }

    fn active(&self) -> usize {
        self.state.active.load(Ordering::Relaxed)
    }

    fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Relaxed)
    }
}

impl Pool {
    /// An empty pool; must be used on one worker only.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { inner: Rc::new(Inner { limits, entries: RefCell::default() }) }
    }

    /// Opens a stream on a connection for `key`, which `dial` makes if need be.
    ///
    /// Gives the stream and the headers of the answer. Cancel safe: a stream
    /// that nobody waits for is reset, a connection under way stays in the pool.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn open<S, D, F>(
        &self,
        key: &Key,
        credential: &Arc<Credential>,
        ask: &Ask,
        dial: D,
    ) -> Result<(Stream, HeaderMap), OpenError>
    where
        D: Fn() -> F,
        F: Future<Output = io::Result<S>> + 'static,
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        loop {
            let (connection, place, fresh) =
                self.connection(key, credential, &dial).await.map_err(OpenError::Connect)?;
            match self.request(&connection, place, ask).await {
                // The connection ended before it took the stream: another one will.
                Err(OpenError::Broken(error)) if !fresh && was_not_taken(&error) => {
                    connection.state.closed.store(true, Ordering::Relaxed);
                }
                // The other side answers sooner, whatever its application does: it is dead.
                Err(OpenError::TimedOut) => {
                    connection.state.closed.store(true, Ordering::Relaxed);
                    return Err(OpenError::TimedOut);
                }
                result => return result,
            }
        }
    }

    /// Forgets the connections whose key is `gone`: their streams go on, new ones never use them.
    pub fn remove(&self, gone: impl Fn(&Key) -> bool) {
        self.inner.entries.borrow_mut().retain(|key, _| !gone(key));
    }

    /// Number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        let entries = self.inner.entries.borrow();
        entries.values().map(|entry| entry.connections.len()).sum()
    }

    /// Closes connections that carry nothing, for ever; the owner spawns it once.
    pub async fn close_idle(self) {
        let mut tick =
            tokio::time::interval((self.inner.limits.idle / 4).max(Duration::from_millis(10)));
        loop {
            let now = tick.tick().await;
            self.sweep(now);
        }
    }

    fn sweep(&self, now: Instant) {
        let idle = self.inner.limits.idle;
        self.inner.entries.borrow_mut().retain(|_, entry| {
            entry.connections.retain_mut(|connection| {
                let opened = connection.state.opened.load(Ordering::Relaxed);
                if connection.active() > 0 || opened != connection.looked.1 {
                    connection.looked = (now, opened);
                }
                connection.is_open() && now.duration_since(connection.looked.0) < idle
            });
            !entry.connections.is_empty() || entry.connecting.is_some()
        });
    }

    /// A connection with a place on it; true if it was made for this call.
    async fn connection<S, D, F>(
        &self,
        key: &Key,
        credential: &Arc<Credential>,
        dial: &D,
    ) -> Result<(Connection, Place, bool), SharedConnectError>
    where
        D: Fn() -> F,
        F: Future<Output = io::Result<S>> + 'static,
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        loop {
            let connecting = {
                let mut entries = self.inner.entries.borrow_mut();
                let entry = entries.entry(key.clone()).or_default();
                entry.connections.retain(Connection::is_open);
                let best = entry.connections.iter().min_by_key(|connection| connection.active());
                let limits = &self.inner.limits;
                let usable = best.filter(|best| {
                    let streams = limits.client_streams.min(best.send.current_max_send_streams());
                    best.active() < streams
                });
                let taken = usable.map(|best| (best.clone(), best.take_place()));
                let spread = entry.connections.len() < limits.connections
                    && best.is_some_and(|best| best.active() > limits.busy_streams);
                if entry.connecting.is_none() && (taken.is_none() || spread) {
                    entry.connecting = Some(self.connect(key, credential, dial()));
                }
                match (taken, &entry.connecting) {
                    (Some((connection, place)), _) => return Ok((connection, place, false)),
                    (None, Some(connecting)) => connecting.clone(),
                    (None, None) => return Err(Arc::new(ConnectError::Ended)),
                }
            };
            let connection = connecting.await?;
            let streams = self.inner.limits.client_streams;
            // One that broke already must fail its stream: dialling again could go on for ever.
            if !connection.is_open() || connection.active() < streams {
                let place = connection.take_place();
                return Ok((connection, place, true));
            }
        }
    }

    /// Starts to connect, whoever waits for it.
    fn connect<S>(
        &self,
        key: &Key,
        credential: &Arc<Credential>,
        dial: impl Future<Output = io::Result<S>> + 'static,
    ) -> Connecting
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (tell, told) = oneshot::channel();
        let (pool, key, credential) = (self.clone(), key.clone(), Arc::clone(credential));
        tokio::task::spawn_local(async move {
            let limits = pool.inner.limits;
            let connect = Box::pin(async {
                let stream = dial.await.map_err(ConnectError::Dial)?;
                client::connect(stream, &credential, &key.expected, &limits).await
            });
            let result = tokio::time::timeout(limits.handshake, connect).await;
            let result = match result.unwrap_or(Err(ConnectError::TimedOut)) {
                Ok((send, drive)) => {
                    let state = Arc::<ConnectionState>::default();
                    let ended = Arc::clone(&state);
                    tokio::task::spawn_local(async move {
                        drive.await;
                        ended.closed.store(true, Ordering::Relaxed);
                    });
                    Ok(Connection { send, state, looked: (Instant::now(), 0) })
                }
                Err(error) => Err(Arc::new(error)),
            };
            pool.connected(&key, &result);
            // Nobody may be waiting any more.
            drop(tell.send(result));
        });
        let ended = |_| Err(Arc::new(ConnectError::Ended));
        told.map(move |result| result.unwrap_or_else(ended)).boxed_local().shared()
    }

    fn connected(&self, key: &Key, result: &Result<Connection, SharedConnectError>) {
        let mut entries = self.inner.entries.borrow_mut();
        // Removed meanwhile: those who wait may use it, nobody else will.
        let Some(entry) = entries.get_mut(key) else { return };
        entry.connecting = None;
        match result {
            Ok(connection) => entry.connections.push(connection.clone()),
            Err(_) if entry.connections.is_empty() => {
                entries.remove(key);
            }
            Err(_) => {}
        }
    }

    async fn request(
        &self,
        connection: &Connection,
        place: Place,
        ask: &Ask,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        let broken = |error| OpenError::Broken(Arc::new(error));
        let mut send = connection.send.clone();
        let exchange = async {
            poll_fn(|context| send.poll_ready(context)).await.map_err(broken)?;
            let (answer, transmit) = send.send_request(ask.request(), false).map_err(broken)?;
            let (head, receive) = answer.await.map_err(broken)?.into_parts();
            if head.status != StatusCode::OK {
                let why = head.headers.get(REFUSED);
                let other_pod = why.is_some_and(|why| why == REFUSED_UID);
                return Err(OpenError::Refused { status: head.status, other_pod });
            }
            Ok((Stream::new(transmit, receive, Some(Arc::new(place))), head.headers))
        };
        let result = tokio::time::timeout(self.inner.limits.answer, exchange).await;
        result.unwrap_or(Err(OpenError::TimedOut))
    }
}

/// Tells whether the peer surely did nothing with the stream.
fn was_not_taken(error: &h2::Error) -> bool {
    error.is_go_away()
        || error.is_io()
        || error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || error.reason().is_none()
}

#[cfg(test)]
mod tests;
