// SPDX-License-Identifier: Apache-2.0

//! Takes the CNI plug-in's calls: HTTP over a Unix socket.
//!
//! Owns: the two calls and their JSON. Leaves what they mean to [`super::node`].
//!
//! Keeps: `/cmdadd` is answered when the pod may start: its capture is proven,
//! or it is known to stay outside the mesh. Whoever can open the socket file is
//! trusted, so only root can.
//!
//! Rule: paths and names of fields as of Istio's node agent, and `podUid`.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tracing::{debug, warn};

use super::enrol::Standing;
use super::node::{Node, PlaceError};

/// Longest body of a call, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Longest time until a pod's capture must be proven.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the plug-in says of a pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// File of the network namespace; empty at `/cmddel` if it is gone.
    #[serde(alias = "Netns", default)]
    pub netns: PathBuf,
    /// Name of the pod.
    #[serde(alias = "PodName", default)]
    pub pod_name: String,
    /// Namespace of the pod.
    #[serde(alias = "PodNamespace", default)]
    pub pod_namespace: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Addresses of the pod.
    #[serde(alias = "IPs", default)]
    pub ips: Vec<IpAddr>,
    /// The pod may start at once: its namespace is outside the mesh. Should it belong in
    /// the mesh by its own label, it is enrolled while it runs.
    #[serde(default)]
    pub outside: bool,
}

/// Answer to a call that succeeded.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Placed {
    /// The pod is in the mesh.
    pub enrolled: bool,
}

/// Answer to a call that did not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refused {
    /// Why.
    pub error: String,
}

/// Listens at `path`; an older socket file there is replaced.
///
/// # Errors
///
/// When the path cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves calls for as long as the future lives.
pub async fn serve(node: Node, listener: &UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot take a plug-in's call");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = node.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let node = node.clone();
                async move { Ok::<_, Infallible>(answer(&node, request).await) }
            });
            if let Err(error) =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            {
                debug!(%error, "plug-in's connection ended");
            }
        });
    }
}

async fn answer(node: &Node, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only POST".to_owned());
    }
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
    };
    let call: Call = match serde_json::from_slice(&body) {
        Ok(call) => call,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    if call.pod_uid.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "podUid is empty".to_owned());
    }
    match head.uri.path() {
        "/cmdadd" => match add(node, call).await {
            Ok(standing) => {
                reply(StatusCode::OK, &Placed { enrolled: standing == Standing::Enrolled })
            }
            Err(error @ PlaceError::Late(_)) => {
                refuse(StatusCode::GATEWAY_TIMEOUT, error.to_string())
            }
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        "/cmddel" => {
            node.vacated(&call.pod_uid, &call.netns);
            reply(StatusCode::OK, &Placed { enrolled: false })
        }
        path => refuse(StatusCode::NOT_FOUND, format!("no call {path}")),
    }
}

async fn add(node: &Node, call: Call) -> Result<Standing, PlaceError> {
    let patience = if call.outside { Duration::ZERO } else { PATIENCE };
    match node.place(&call.pod_uid, &call.netns, call.ips, patience).await {
        Err(PlaceError::Late(_)) if call.outside => Ok(Standing::Pending),
        outcome => outcome,
    }
}

fn refuse(status: StatusCode, error: String) -> Response<Full<Bytes>> {
    reply(status, &Refused { error })
}

fn reply(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
