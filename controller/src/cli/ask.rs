// SPDX-License-Identifier: Apache-2.0

//! One HTTP exchange over a stream that is open already: a Unix socket of a world, a forwarded
//! port of a pod.

use std::error::Error;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Failure;

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Status code.
    pub(super) status: StatusCode,
    /// Body.
    pub(super) body: Bytes,
}

impl Answer {
    /// The answer, if it is no refusal.
    pub(super) fn checked(self) -> Result<Self, Failure> {
        if self.status.is_success() {
            return Ok(self);
        }
        let message = format!("refused: {}", String::from_utf8_lossy(&self.body).trim());
        Err(Failure { message, code: 1 })
    }

    /// The JSON of an answer that is no refusal.
    pub(super) fn json(self) -> Result<Value, Failure> {
        let answer = self.checked()?;
        serde_json::from_slice(&answer.body).map_err(Failure::from_error)
    }
}

/// Sends `method path` and takes the whole answer.
pub(super) async fn exchange<S>(
    stream: S,
    method: Method,
    path: &str,
) -> Result<Answer, Box<dyn Error>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "waymark")
        .body(Full::new(Bytes::new()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(Answer { status, body })
}
