// SPDX-License-Identifier: Apache-2.0

//! From a hop to a stream that HTTP, or plain bytes, can be spoken on.
//!
//! Owns making connections to backends: HBONE as this gateway, TLS as the
//! backend's policy asks, plain TCP to what is outside the mesh. Also the key
//! that tells two such connections apart. Which endpoint it is, is chosen
//! before; see `exchange::choose`.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use routing::discovery::Workload;
use routing::l4::{Authority, Dial, Hop, Tunnel};
use routing::wire::chain;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tunnel::credentials::Credential;
use tunnel::hbone::client::Ask;
use tunnel::hbone::pool::{Key, OpenError};
use tunnel::hbone::{self, stream::Stream};

use crate::http::{ByteStream, Dialed, PoolKey, Protocol};
use crate::reply::Refusal;
use crate::tls::client::Client;
use crate::worker::Worker;

/// Names of the gateways that a request has passed, on the CONNECT to a waypoint.
pub(crate) const VISITED: HeaderName = HeaderName::from_static("x-waymark-visited");

/// Why there is no stream to an endpoint; nothing of the request was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The name does not resolve.
    #[error("name of the backend does not resolve")]
    Resolve(#[source] io::Error),
    /// TCP failed.
    #[error("backend cannot be reached")]
    Connect(#[source] io::Error),
    /// It took too long.
    #[error("connection to the backend timed out")]
    TimedOut,
    /// HBONE failed, or the other tunnel refused.
    #[error("no tunnel to the backend")]
    Tunnel(#[source] OpenError),
    /// The authority cannot be written.
    #[error("the backend has no legal authority")]
    Authority(#[source] http::Error),
    /// TLS with the backend failed.
    #[error("TLS with the backend failed")]
    Tls(#[source] io::Error),
    /// There is no certificate to prove who we are.
    #[error("this gateway has no certificate")]
    NoCertificate,
}

impl DialError {
    /// Tells whether another endpoint may do better.
    pub(crate) fn try_elsewhere(&self) -> bool {
        match self {
            Self::Tunnel(error) => error.try_elsewhere(),
            Self::Resolve(_) | Self::Connect(_) | Self::TimedOut | Self::Tls(_) => true,
            Self::Authority(_) | Self::NoCertificate => false,
        }
    }
}

impl DialError {
    /// What the client is told when no other endpoint is left.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::NoCertificate => Refusal::NoCertificate,
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::TimedOut
            | Self::Tunnel(_)
            | Self::Authority(_)
            | Self::Tls(_) => Refusal::Connect(chain(self).into()),
        }
    }
}

/// Everything needed to reach one endpoint, resolved, and what tells its connections apart.
#[derive(Debug)]
pub(crate) struct Target {
    way: Way,
    key: PoolKey,
}

impl Deref for Target {
    type Target = Way;

    fn deref(&self) -> &Way {
        &self.way
    }
}

/// The way to one endpoint.
#[derive(Debug)]
pub(crate) struct Way {
    /// Where TCP goes.
    address: SocketAddr,
    /// The tunnel to go through, with the certificate to use.
    tunnel: Option<(Tunnel, Arc<Credential>)>,
    /// The workload at the other end, unless nothing is known of it.
    endpoint: Option<Arc<Workload>>,
    /// TLS inside all that.
    tls: Option<Arc<Client>>,
    /// What is to be spoken.
    protocol: Protocol,
    /// Waypoints that the request has passed, told to the next one.
    visited: Option<Arc<str>>,
}

/// What is to be made of a hop.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// TLS towards the backend.
    pub(crate) tls: Option<Arc<Client>>,
    /// What is to be spoken.
    pub(crate) protocol: Protocol,
    /// Waypoints that the request has passed before this gateway.
    pub(crate) visited: Option<Arc<str>>,
}

impl Target {
    /// Resolves `hop`; TLS as `terms` say, and then their protocol.
    ///
    /// # Errors
    ///
    /// [`DialError::Resolve`] or [`DialError::NoCertificate`].
    pub(crate) async fn new(worker: &Worker, hop: &Hop, terms: Terms) -> Result<Self, DialError> {
        let Terms { tls, protocol, visited } = terms;
        let (to, tunnel, endpoint) = match hop {
            Hop::Direct { to, endpoint } => (to.clone(), None, Some(endpoint)),
            Hop::Tunnel(tunnel) | Hop::Waypoint(tunnel) => {
                (tunnel.to.clone(), Some(tunnel), Some(&tunnel.endpoint))
            }
            Hop::Passthrough(address) => (Dial::Address(*address), None, None),
        };
        let tunnel = match tunnel {
            None => None,
            Some(tunnel) => {
                let own = worker.credential().ok_or(DialError::NoCertificate)?;
                Some((tunnel.clone(), Arc::clone(&own)))
            }
        };
        let address = match to {
            Dial::Address(address) => address,
            Dial::Name(name, port) => resolve(&name, port).await?,
        };
        let visited = matches!(hop, Hop::Waypoint(_)).then(|| passed(worker, visited.as_deref()));
        let endpoint = endpoint.cloned();
        let way = Way { address, tunnel, endpoint, tls, protocol, visited };
        Ok(Self { key: way.pool_key(), way })
    }

    /// What makes a connection to this target differ from any other.
    pub(crate) fn key(&self) -> &PoolKey {
        &self.key
    }
}

impl Way {
    /// The workload that was chosen.
    pub(crate) fn endpoint(&self) -> Option<&Arc<Workload>> {
        self.endpoint.as_ref()
    }

    /// Where TCP goes.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// True if the hop is in mutual TLS of the mesh.
    pub(crate) fn is_tunnelled(&self) -> bool {
        self.tunnel.is_some()
    }

    /// Where the stream ends, seen from within the tunnel if there is one.
    fn inner_address(&self) -> SocketAddr {
        match &self.tunnel {
            Some((Tunnel { authority: Authority::Address(inner), .. }, _)) => *inner,
            Some((Tunnel { authority: Authority::Name(_, port), .. }, _)) => {
                SocketAddr::new(self.address.ip(), *port)
            }
            None => self.address,
        }
    }

    fn pool_key(&self) -> PoolKey {
        let tunnel = self.tunnel.as_ref();
        let name = match tunnel.map(|(tunnel, _)| &tunnel.authority) {
            Some(Authority::Name(name, _)) => Some(Arc::clone(name)),
            Some(Authority::Address(_)) | None => None,
        };
        let pod = self.endpoint.as_ref();
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.word));
        PoolKey {
            address: self.inner_address(),
            source: tunnel.map(|(_, own)| own.identity().clone()),
            epoch: tunnel.map_or(0, |(_, own)| own.epoch()),
            workload: pod.map(|pod| Arc::clone(pod.pod_uid.as_ref().unwrap_or(&pod.uid))),
            identity: tunnel.map(|(tunnel, _)| tunnel.expected.identity.clone()),
            via: tunnel.map(|_| self.address),
            // TLS, a name within a tunnel and waypoints on the way never come together.
            tls: tls.or(name).or_else(|| self.visited.clone()),
            protocol: self.protocol,
        }
    }

    /// What is to be spoken.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Connects, for HTTP.
    ///
    /// # Errors
    ///
    /// See [`DialError`].
    pub(crate) async fn dial(&self, worker: &Worker) -> Result<Dialed, DialError> {
        let config = |tls: &Client| match self.protocol {
            Protocol::Http2 => Arc::clone(&tls.http2),
            Protocol::Http1 | Protocol::Sniff => Arc::clone(&tls.any),
        };
        let Some(tls) = &self.tls else {
            return Ok(Dialed { io: self.open(worker).await?, protocol: self.protocol });
        };
        let stream = self.handshake(worker, tls, config(tls)).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        let protocol = if chosen == Some(&b"h2"[..]) { Protocol::Http2 } else { Protocol::Http1 };
        if self.protocol == Protocol::Http2 && protocol != Protocol::Http2 {
            let refused = io::Error::new(io::ErrorKind::Unsupported, "backend speaks no HTTP/2");
            return Err(DialError::Tls(refused));
        }
        Ok(Dialed { io: Box::new(stream), protocol })
    }

    /// Connects, for bytes.
    ///
    /// # Errors
    ///
    /// See [`DialError`].
    pub(crate) async fn dial_raw(&self, worker: &Worker) -> Result<Box<dyn ByteStream>, DialError> {
        match &self.tls {
            None => self.open(worker).await,
            Some(tls) => {
                let stream = self.handshake(worker, tls, Arc::clone(&tls.raw)).await?;
                Ok(Box::new(stream))
            }
        }
    }

    async fn handshake(
        &self,
        worker: &Worker,
        tls: &Client,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<tokio_rustls::client::TlsStream<Box<dyn ByteStream>>, DialError> {
        let stream = self.open(worker).await?;
        let connecting = TlsConnector::from(config).connect(tls.name.clone(), stream);
        let limit = worker.shared.settings.limits.connect;
        let done = tokio::time::timeout(limit, connecting).await;
        done.map_err(|_| DialError::TimedOut)?.map_err(DialError::Tls)
    }

    async fn open(&self, worker: &Worker) -> Result<Box<dyn ByteStream>, DialError> {
        match &self.tunnel {
            Some((tunnel, own)) => Ok(Box::new(self.tunnelled(worker, tunnel, own).await?)),
            None => {
                let connecting = connect(self.address);
                let limit = worker.shared.settings.limits.connect;
                let done = tokio::time::timeout(limit, connecting).await;
                let stream = done.map_err(|_| DialError::TimedOut)?.map_err(DialError::Connect)?;
                Ok(Box::new(stream))
            }
        }
    }

    async fn tunnelled(
        &self,
        worker: &Worker,
        tunnel: &Tunnel,
        own: &Arc<Credential>,
    ) -> Result<Stream, DialError> {
        let endpoint = &tunnel.endpoint;
        let key = Key {
            source: own.identity().clone(),
            epoch: own.epoch(),
            source_pod: Arc::clone(&worker.shared.pod),
            workload: Arc::clone(&endpoint.uid),
            pod_uid: endpoint.pod_uid.clone(),
            address: self.address,
            expected: tunnel.expected.clone(),
        };
        let mut headers = HeaderMap::with_capacity(3);
        if let Some(visited) = self.visited.as_deref().and_then(|visited| visited.parse().ok()) {
            headers.insert(VISITED, visited);
        }
        if let Some(uid) = endpoint.pod_uid.as_deref().and_then(|uid| uid.parse().ok()) {
            headers.insert(hbone::POD_UID, uid);
        }
        if let Some(baggage) = &worker.shared.baggage {
            headers.insert(hbone::BAGGAGE, HeaderValue::clone(baggage));
        }
        let ask = Ask::new(&tunnel.authority, headers).map_err(DialError::Authority)?;
        let address = self.address;
        let opened = worker.tunnels.open(&key, own, &ask, move || connect(address)).await;
        opened.map(|(stream, _)| stream).map_err(DialError::Tunnel)
    }
}

/// Waypoints on the way so far, and this gateway.
fn passed(worker: &Worker, before: Option<&str>) -> Arc<str> {
    let own = worker.shared.settings.gateway.as_str();
    match before {
        Some(before) => format!("{before},{own}").into(),
        None => own.into(),
    }
}

/// Tells whether `visited` names this gateway, which a request must not enter twice.
pub(crate) fn has_passed(gateway: &str, visited: &str) -> bool {
    visited.split(',').any(|one| one.trim() == gateway)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn resolve(name: &str, port: u16) -> Result<SocketAddr, DialError> {
    let mut found = tokio::net::lookup_host((name, port)).await.map_err(DialError::Resolve)?;
    let none = || io::Error::new(io::ErrorKind::NotFound, "no address");
    found.next().ok_or_else(|| DialError::Resolve(none()))
}
