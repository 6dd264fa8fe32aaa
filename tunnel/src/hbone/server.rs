// SPDX-License-Identifier: Apache-2.0

//! HBONE connections that others open to us.
//!
//! Owns TLS, the HTTP/2 connection and its CONNECT requests. Leaves to the
//! caller which of them are taken.
//!
//! Keeps: before [`accept`] has returned nothing was asked of us that was not
//! in the name of a proven [`Peer`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use policy::peer::Peer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::io::LargeReads;
use super::keepalive::{self, Silent};
use super::stream::Stream;
use super::{Limits, REFUSED};
use crate::credentials::Credential;
use crate::credentials::revocation::{Revoked, Role};
use crate::credentials::verify::{CertificateError, identity_of};

/// Why a connection did not come to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// TLS failed; the peer proved nothing.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The certificate names no workload.
    #[error("peer certificate is not one of a workload")]
    Certificate(#[source] CertificateError),
    /// HTTP/2 failed.
    #[error("HTTP/2 handshake failed")]
    Http2(#[source] h2::Error),
    /// The peer took too long.
    #[error("handshake took too long")]
    TimedOut,
}

/// Why a connection ended other than by its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The peer broke the protocol or the connection.
    #[error("HTTP/2 connection failed")]
    Http2(#[source] h2::Error),
    /// The peer is gone without a word.
    #[error("connection is dead")]
    Silent(#[source] Silent),
    /// The peer's issuer has withdrawn its certificate.
    #[error("connection is not trusted any more")]
    Revoked(#[source] Revoked),
}

/// A connection with a proven peer.
pub struct Connection<S> {
    inner: h2::server::Connection<TlsStream<LargeReads<S>>, Bytes>,
    peer: Arc<Peer>,
    keepalive: Pin<Box<dyn Future<Output = Silent> + Send>>,
    withdrawn: Pin<Box<dyn Future<Output = Revoked> + Send>>,
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Does TLS and HTTP/2 with a client at `address`, as the owner of `credential`.
///
/// # Errors
///
/// See [`AcceptError`]; the stream is closed then.
pub async fn accept<S>(
    stream: S,
    address: SocketAddr,
    credential: &Credential,
    limits: &Limits,
) -> Result<Connection<S>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Box::pin(async {
        let acceptor = TlsAcceptor::from(credential.server());
        let stream = acceptor.accept(LargeReads::new(stream)).await.map_err(AcceptError::Tls)?;
        let chain = stream.get_ref().1.peer_certificates();
        let withdrawn = Box::pin(credential.withdrawn(Role::Client, chain));
        let leaf = chain.and_then(<[_]>::first);
        let leaf = leaf.ok_or(AcceptError::Certificate(CertificateError::NoName))?;
        let identity = identity_of(leaf).map_err(AcceptError::Certificate)?;
        let mut inner = builder(limits).handshake(stream).await.map_err(AcceptError::Http2)?;
        let keepalive = Box::pin(keepalive::watch(inner.ping_pong(), *limits));
        let peer = Arc::new(Peer::proven(identity, address));
        Ok(Connection { inner, peer, keepalive, withdrawn })
    });
    tokio::time::timeout(limits.handshake, handshake).await.map_err(|_| AcceptError::TimedOut)?
}

fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.frame)
        .max_header_list_size(limits.server_headers)
        .max_concurrent_streams(limits.server_streams)
        .max_send_buffer_size(limits.server_send_buffer);
    builder
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The next CONNECT; `None` once the connection has ended well.
    ///
    /// Drives the connection and all its streams: it must be called until it
    /// ends. Cancel safe. What is not a CONNECT is answered 400 here.
    ///
    /// # Errors
    ///
    /// See [`ConnectionError`]; all streams are gone then.
    pub async fn next(&mut self) -> Result<Option<Connect>, ConnectionError> {
        loop {
            let next = tokio::select! {
                next = self.inner.accept() => next,
                silent = &mut self.keepalive => return Err(ConnectionError::Silent(silent)),
                revoked = &mut self.withdrawn => return Err(ConnectionError::Revoked(revoked)),
            };
            match next {
                None => return Ok(None),
                Some(Err(error)) => return Err(ConnectionError::Http2(error)),
                Some(Ok((request, respond))) => {
                    let (head, receive) = request.into_parts();
                    let connect = Connect { head, receive, respond };
                    if connect.head.method == Method::CONNECT {
                        return Ok(Some(connect));
                    }
                    connect.refuse(StatusCode::BAD_REQUEST, None);
                }
            }
        }
    }

    /// Takes no new streams; those that are open go on. The peer is told.
    pub fn drain(&mut self) {
        self.inner.graceful_shutdown();
    }

    /// Ends all streams at once.
    pub fn close(&mut self) {
        self.inner.abrupt_shutdown(Reason::NO_ERROR);
    }
}

/// A CONNECT that awaits its answer; dropping it resets the stream.
pub struct Connect {
    head: Parts,
    receive: RecvStream,
    respond: SendResponse<Bytes>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").field("uri", &self.head.uri).finish_non_exhaustive()
    }
}

impl Connect {
    /// Its head.
    #[must_use]
    pub fn head(&self) -> &Parts {
        &self.head
    }

    /// Its authority as text; empty if there is none.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.head.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// Answers 200 and gives the stream.
    ///
    /// # Errors
    ///
    /// When the peer has reset the stream meanwhile.
    pub fn accept(mut self, headers: HeaderMap) -> io::Result<Stream> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let transmit = self.respond.send_response(response, false).map_err(io::Error::other)?;
        Ok(Stream::new(transmit, self.receive, None))
    }

    /// Answers `status`, with a word for Waymark's own tunnels if there is one.
    pub fn refuse(mut self, status: StatusCode, why: Option<&'static str>) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if let Some(why) = why {
            response.headers_mut().insert(REFUSED, HeaderValue::from_static(why));
        }
        // A peer that has reset the stream needs no answer.
        drop(self.respond.send_response(response, true));
    }
}
