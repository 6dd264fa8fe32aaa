// SPDX-License-Identifier: Apache-2.0

//! A connection to a port, until it is known whose it is.
//!
//! Owns the steps before the protocol: PROXY protocol, ClientHello, TLS. Then
//! it belongs to HTTP, to `l4`, or to HBONE.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use policy::peer::Peer;
use routing::listener::{Listener, Protocol as Spoken, TlsMode};
use routing::ports::{Port, Transport};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::hello::{self, HelloError};
use super::proxy_protocol::{self, ProxyProtocolError, Said};
use super::refused::Cause;
use super::{canonical, hbone};
use crate::exchange::{self, Arrival, Entry, TlsSession, Told};
use crate::http::{ByteStream, Downstream, Protocol, Terms, serve as serve_http};
use crate::l4;
use crate::rewound::Rewound;
use crate::tls::server::{client_certificate, client_identity};
use crate::worker::Worker;

/// Why a connection ended before it was anybody's.
#[derive(Debug, thiserror::Error)]
pub(super) enum EarlyEnd {
    /// The socket cannot be used.
    #[error("socket failed")]
    Socket(#[source] io::Error),
    /// Too many handshakes run on this core.
    #[error("too many handshakes")]
    Overload,
    /// Nothing is served on the port any more.
    #[error("nothing is served on the port")]
    NoListener,
    /// The header of the balancer in front is missing or broken.
    #[error("no usable PROXY protocol header")]
    ProxyProtocol(#[source] ProxyProtocolError),
    /// There is no usable ClientHello.
    #[error("no usable ClientHello")]
    Hello(#[source] HelloError),
    /// No listener or route is for the server name.
    #[error("nothing is served for server name {0:?}")]
    NoName(Option<String>),
    /// The listener has no usable certificate.
    #[error("listener cannot speak TLS: {0}")]
    Certificate(Arc<str>),
    /// The handshake failed.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// It took too long.
    #[error("handshake took too long")]
    TimedOut,
    /// HBONE ended early.
    #[error("HBONE failed")]
    Hbone(#[source] hbone::HboneError),
}

impl EarlyEnd {
    /// What it is counted as.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Socket(_) => Cause::Socket,
            Self::Overload => Cause::Overload,
            Self::NoListener | Self::NoName(_) => Cause::NoListener,
            Self::ProxyProtocol(_) => Cause::ProxyProtocol,
            Self::Hello(_) | Self::Tls(_) => Cause::Tls,
            Self::Certificate(_) => Cause::Certificate,
            Self::TimedOut => Cause::TimedOut,
            Self::Hbone(error) => error.cause(),
        }
    }
}

/// A connection on its way.
struct Incoming<S> {
    worker: Rc<Worker>,
    stream: S,
    /// The client, as far as the listener believes what it is told.
    client: SocketAddr,
    local: SocketAddr,
    port: u16,
    drain: CancellationToken,
}

/// Serves a connection that came to `port`, to its end.
pub(super) async fn serve(
    worker: Rc<Worker>,
    stream: std::net::TcpStream,
    remote: SocketAddr,
    port: u16,
    drain: CancellationToken,
) -> Result<(), EarlyEnd> {
    let stream = TcpStream::from_std(stream).map_err(EarlyEnd::Socket)?;
    stream.set_nodelay(true).map_err(EarlyEnd::Socket)?;
    let local = canonical(stream.local_addr().map_err(EarlyEnd::Socket)?);
    let loaded = worker.load();
    let place = loaded.serving().ports().at(port, Transport::Tcp).ok_or(EarlyEnd::NoListener)?;
    let any = place.listeners().next().ok_or(EarlyEnd::NoListener)?;
    let mut incoming = Incoming { worker, stream, client: remote, local, port, drain };
    let mut first = Bytes::new();
    if place.listeners().any(|listener| listener.proxy_protocol) {
        first = incoming.proxy_protocol().await?;
    }
    match any.protocol {
        Spoken::Http => {
            Box::pin(incoming.rewind(first).http(Protocol::Sniff, None)).await;
            Ok(())
        }
        Spoken::Https | Spoken::Tls => Box::pin(incoming.tls(place, first)).await,
        Spoken::Tcp => {
            let rules = loaded.serving().listener_rules(&any.name);
            let rule = rules.and_then(|rules| rules.tcp()).cloned();
            Box::pin(incoming.rewind(first).raw(rule, None)).await;
            Ok(())
        }
        Spoken::Hbone => {
            let Incoming { worker, stream, client, drain, .. } = incoming;
            let serving = hbone::serve(worker, stream, client, drain);
            Box::pin(serving).await.map_err(EarlyEnd::Hbone)
        }
        // Datagrams have no connections.
        Spoken::Udp => Err(EarlyEnd::NoListener),
    }
}

impl Incoming<TcpStream> {
    fn limit(&self) -> Duration {
        self.worker.shared.settings.limits.handshake
    }

    /// Reads who the client is; gives what was read after that.
    async fn proxy_protocol(&mut self) -> Result<Bytes, EarlyEnd> {
        let _place = self.worker.admit_handshake().ok_or(EarlyEnd::Overload)?;
        let limit = self.limit();
        let read = timeout(limit, proxy_protocol::read(&mut self.stream)).await;
        let (said, rest) =
            read.map_err(|_| EarlyEnd::TimedOut)?.map_err(EarlyEnd::ProxyProtocol)?;
        if let Said::Client { source, .. } = said {
            self.client = canonical(source);
        }
        Ok(rest)
    }

    fn rewind(self, first: Bytes) -> Incoming<Rewound<TcpStream, Bytes>> {
        self.with(|stream| Rewound::new(first, stream))
    }

    /// Reads the ClientHello, and serves the listener that it asks for.
    ///
    /// A name that nobody serves is refused by a plain close: nothing was written yet.
    async fn tls(mut self, place: &Port, first: Bytes) -> Result<(), EarlyEnd> {
        let handshake = self.worker.admit_handshake().ok_or(EarlyEnd::Overload)?;
        let limit = self.limit();
        let read = timeout(limit, hello::read(&mut self.stream, first)).await;
        let hello = read.map_err(|_| EarlyEnd::TimedOut)?.map_err(EarlyEnd::Hello)?;
        let sni = hello.sni.as_deref();
        let Some(listener) = place.by_sni(sni) else { return Err(EarlyEnd::NoName(hello.sni)) };
        let mut session = TlsSession { sni: sni.map(Arc::from), ..TlsSession::default() };
        let mode = listener.tls.as_ref().map(|tls| tls.mode);
        if mode == Some(TlsMode::Passthrough) {
            drop(handshake);
            let rule = self.tls_rule(listener, sni);
            let rule = rule.ok_or(EarlyEnd::NoName(hello.sni))?;
            Box::pin(self.rewind(hello.bytes).raw(Some(rule), Some(session))).await;
            return Ok(());
        }
        let loaded = self.worker.load();
        let config = self.worker.listener_tls(&loaded, listener).map_err(EarlyEnd::Certificate)?;
        let Incoming { worker, stream, client, local, port, drain } = self.rewind(hello.bytes);
        let accepting = TlsAcceptor::from(config).accept(stream);
        let accepted = timeout(limit, Box::pin(accepting)).await;
        let stream = accepted.map_err(|_| EarlyEnd::TimedOut)?.map_err(EarlyEnd::Tls)?;
        drop(handshake);
        let tls = stream.get_ref().1;
        let shown = tls.peer_certificates().unwrap_or_default();
        session.client = shown.first().and_then(client_certificate);
        let validation = listener.tls.as_ref().and_then(|tls| tls.client_validation.as_ref());
        let mesh = worker.shared.credential.current();
        let own = &worker.shared.settings.trust_domains;
        session.identity = client_identity(shown, validation, own, mesh.as_deref());
        let protocol = match tls.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            Some(b"http/1.1") => Protocol::Http1,
            _ => Protocol::Sniff,
        };
        let incoming = Incoming { worker, stream, client, local, port, drain };
        if listener.protocol == Spoken::Https {
            Box::pin(incoming.http(protocol, Some(session))).await;
        } else {
            let rule = incoming.tls_rule(listener, session.sni.as_deref());
            let name = session.sni.as_deref().map(str::to_owned);
            let rule = rule.ok_or(EarlyEnd::NoName(name))?;
            Box::pin(incoming.raw(Some(rule), Some(session))).await;
        }
        Ok(())
    }
}

impl<S> Incoming<S> {
    fn with<T>(self, change: impl FnOnce(S) -> T) -> Incoming<T> {
        let Self { worker, stream, client, local, port, drain } = self;
        Incoming { worker, stream: change(stream), client, local, port, drain }
    }

    fn tls_rule(
        &self,
        listener: &Listener,
        sni: Option<&str>,
    ) -> Option<Arc<routing::route::Rule>> {
        let loaded = self.worker.load();
        let rules = loaded.serving().listener_rules(&listener.name)?;
        rules.over_tls(sni).cloned()
    }

    fn arrival(&self, tls: Option<TlsSession>) -> Arrival {
        let identity = tls.as_ref().and_then(|tls| tls.identity.clone());
        let peer = match identity {
            Some(identity) => Peer::proven(identity, self.client),
            None => Peer::plain(self.client),
        };
        let told = Told::new(&peer, tls.as_ref(), &self.worker.shared.settings.identity);
        Arrival {
            peer: Arc::new(peer),
            told,
            local: self.local,
            entry: Entry::Port(self.port),
            targets: Vec::new(),
            visited: None,
            tls,
        }
    }
}

impl<S: ByteStream> Incoming<S> {
    async fn http(self, protocol: Protocol, tls: Option<TlsSession>) {
        let arrival = self.arrival(tls);
        http(self.worker, self.stream, protocol, arrival, self.drain).await;
    }

    async fn raw(self, rule: Option<Arc<routing::route::Rule>>, tls: Option<TlsSession>) {
        let arrival = self.arrival(tls);
        if rule.is_some() {
            l4::carry(&self.worker, &arrival, rule, self.stream, &self.drain).await;
        }
    }
}

/// Serves HTTP on a stream, to its end.
pub(super) async fn http(
    worker: Rc<Worker>,
    stream: impl ByteStream,
    protocol: Protocol,
    arrival: Arrival,
    drain: CancellationToken,
) {
    let limits = Arc::clone(&worker.shared.http_limits);
    let secure = arrival.is_secure();
    let handler = async |down: &mut Downstream| exchange::run(&worker, &arrival, down).await;
    let terms = Terms { protocol, secure, limits, drain };
    let ended = Box::pin(serve_http(stream, terms, handler)).await;
    tracing::debug!(?ended, peer = %arrival.peer.address, "HTTP connection ended");
}
