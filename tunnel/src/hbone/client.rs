// SPDX-License-Identifier: Apache-2.0

//! HBONE connections that we open.
//!
//! Owns TLS, the HTTP/2 connection and the CONNECT request. Leaves dialling to
//! the caller and the choice of a connection to [`super::pool`].

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Uri, Version};
use routing::l4::{Authority, Expected};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::Limits;
use super::io::LargeReads;
use super::keepalive;
use crate::credentials::revocation::Role;
use crate::credentials::{Credential, CredentialError};

/// Why a connection could not be opened; nothing was sent over it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address could not be reached.
    #[error("destination cannot be reached")]
    Dial(#[source] io::Error),
    /// TLS failed, or the peer is not whom we expect.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// HTTP/2 failed.
    #[error("HTTP/2 handshake failed")]
    Http2(#[source] h2::Error),
    /// Our own certificate cannot be used.
    #[error("own certificate cannot be used")]
    Credential(#[source] CredentialError),
    /// It took too long.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008")]
    TimedOut,
    /// The worker ended meanwhile.
    #[error("the worker is ending")]
    Ended,
}

/// What [`connect`] gives: a handle for streams, and what moves the bytes.
pub type Connected<D> = (SendRequest<Bytes>, D);

/// Does TLS and HTTP/2 with a server that must be one of `expected`.
///
/// The future that comes with it drives the connection and must be spawned on
/// the same worker; it completes when the connection has ended.
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn connect<S>(
    stream: S,
    credential: &Credential,
    expected: &Expected,
    limits: &Limits,
) -> Result<Connected<impl Future<Output = ()> + use<S>>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = credential.client(expected).map_err(ConnectError::Credential)?;
    // Neither sent nor checked: peers are known by identity.
    let name = ServerName::try_from("hbone.invalid")
        .map_err(|error| ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connecting = TlsConnector::from(config).connect(name, LargeReads::new(stream));
    let stream = connecting.await.map_err(ConnectError::Tls)?;
    let chain = stream.get_ref().1.peer_certificates();
    let withdrawn = Box::pin(credential.withdrawn(Role::Server, chain));
    let handshake = builder(limits).handshake::<_, Bytes>(stream);
    let (send, mut connection) = handshake.await.map_err(ConnectError::Http2)?;
    let watch = keepalive::watch(connection.ping_pong(), *limits);
    let drive = async move {
        tokio::select! {
            result = connection => if let Err(error) = result {
                tracing::debug!(%error, "HBONE connection ended");
            },
            silent = watch => tracing::debug!(%silent, "HBONE connection is dead"),
            revoked = withdrawn => tracing::warn!(%revoked, "HBONE connection is cut"),
        }
    };
    Ok((send, drive))
}

fn builder(limits: &Limits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.frame)
        .max_header_list_size(limits.client_headers)
        .initial_max_send_streams(limits.client_streams)
        .max_send_buffer_size(limits.client_send_buffer)
        .enable_push(false);
    builder
}

/// What one CONNECT asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    authority: Uri,
    headers: HeaderMap,
}

impl Ask {
    /// A CONNECT to `authority`; `headers` go with it.
    ///
    /// # Errors
    ///
    /// When the authority is none of HTTP.
    pub fn new(authority: &Authority, headers: HeaderMap) -> Result<Self, http::Error> {
        let authority = Uri::builder().authority(authority.to_string()).build()?;
        Ok(Self { authority, headers })
    }

    pub(super) fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.authority.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// A connect failure that several waiters share.
pub type SharedConnectError = Arc<ConnectError>;
