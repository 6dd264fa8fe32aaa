// SPDX-License-Identifier: Apache-2.0

//! Tells a node's agent of a pod's network namespace, in the place of a container runtime.
//!
//! Owns: the two calls of the agent's socket that the CNI plug-in makes in a cluster.
//! The answer to `cmdadd` for a pod in the mesh comes when its capture is proven.
//!
//! Start at [`call`].

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;

/// Longest wait for the proof of capture, as in a cluster.
const LIMIT: Duration = Duration::from_secs(60);

/// What the agent is told of a pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodNetwork {
    /// Path of its network namespace.
    pub(super) netns: String,
    /// Its name.
    pub(super) pod_name: String,
    /// Its namespace.
    pub(super) pod_namespace: String,
    /// Its UID.
    pub(super) pod_uid: String,
    /// Its addresses.
    pub(super) ips: Vec<String>,
}

/// Why the agent did not take a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The agent cannot be reached.
    #[error("the node's agent does not answer")]
    Away(#[source] std::io::Error),

    /// It refused or failed.
    #[error("the node's agent refused: {0}")]
    Refused(String),
}

/// Posts `pod` to `path` (`/cmdadd` or `/cmddel`) of the agent at `socket`.
///
/// # Errors
///
/// See [`CallError`]; both are worth another try.
pub(super) async fn call(
    socket: &Path,
    path: &'static str,
    pod: &PodNetwork,
) -> Result<(), CallError> {
    let away = CallError::Away;
    let stream = UnixStream::connect(socket).await.map_err(away)?;
    let other = |cause: hyper::Error| CallError::Away(std::io::Error::other(cause));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    let connection = tokio::spawn(connection);
    let body = serde_json::to_vec(pod).map_err(|cause| CallError::Refused(cause.to_string()))?;
    let request = http::Request::post(path)
        .header("host", "agent")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|cause| CallError::Refused(cause.to_string()))?;
    let answered = tokio::time::timeout(LIMIT, sender.send_request(request)).await;
    let result = match answered {
        Ok(Ok(response)) if response.status().is_success() => Ok(()),
        Ok(Ok(response)) => {
            let status = response.status();
            let body = response.into_body().collect().await.map_err(other)?.to_bytes();
            let text = String::from_utf8_lossy(&body);
            Err(CallError::Refused(format!("{status} {}", text.trim())))
        }
        Ok(Err(cause)) => Err(other(cause)),
        Err(_) => Err(CallError::Refused(format!("no answer within {} s", LIMIT.as_secs()))),
    };
    connection.abort();
    result
}
