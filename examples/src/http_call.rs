// SPDX-License-Identifier: Apache-2.0

//! One HTTP/1.1 GET over a connection of its own.
//!
//! A new connection for each call is on purpose: a balancer that decides per connection
//! then shows its choice at every page.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The most bytes of an answer that a service reads.
const MAX_ANSWER: usize = 1 << 20;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The whole call took longer than its limit.
    #[error("no answer within {0:?}")]
    TooSlow(Duration),
    /// No connection, or the connection broke.
    #[error("cannot reach {authority}: {cause}")]
    Unreachable {
        /// `host:port` that was called.
        authority: String,
        /// What the system or the peer said.
        cause: String,
    },
}

/// Calls `http://authority/path` with `headers` and reads the whole answer.
///
/// # Errors
///
/// [`CallError`]; an answer with an error status is an answer, not an error.
pub async fn get(
    authority: &str,
    path: &str,
    headers: &HeaderMap,
    limit: Duration,
) -> Result<Response<Bytes>, CallError> {
    match tokio::time::timeout(limit, get_unlimited(authority, path, headers)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(cause)) => Err(CallError::Unreachable {
            authority: authority.to_owned(),
            cause: format!("{cause:#}"),
        }),
        Err(_) => Err(CallError::TooSlow(limit)),
    }
}

async fn get_unlimited(
    authority: &str,
    path: &str,
    headers: &HeaderMap,
) -> anyhow::Result<Response<Bytes>> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request =
        Request::get(path).header(http::header::HOST, authority).body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(headers.clone());
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER)
        .collect()
        .await
        .map_err(|cause| anyhow::anyhow!("answer is not readable: {cause}"))?
        .to_bytes();
    drop(sender);
    driver.abort();
    Ok(Response::from_parts(head, body))
}

/// An answer of this service itself.
pub fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Bytes> {
    reply(status, "application/json", value.to_string())
}
