// SPDX-License-Identifier: Apache-2.0

//! The supervisor's own socket: what `waymark` asks of it from outside.
//!
//! Owns: `DELETE /pods/NAMESPACE/NAME?grace=SECONDS`, over HTTP on a Unix socket that only
//! the owner of the world can open.
//!
//! Start at [`serve`].

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

/// A wish from outside.
#[derive(Debug)]
pub(super) struct Delete {
    /// Namespace of the pod.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// Its grace period, unless its own shall hold.
    pub(super) grace: Option<Duration>,
    /// Whether there is such a pod.
    pub(super) found: oneshot::Sender<bool>,
}

/// Takes wishes at `path` until dropped.
///
/// # Errors
///
/// If the socket cannot be made.
pub(super) fn serve(path: &Path, wishes: mpsc::UnboundedSender<Delete>) -> std::io::Result<()> {
    let listener = UnixListener::bind(path)?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let wishes = wishes.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, wishes.clone()));
                // A client that breaks off has its answer or wants none.
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    wishes: mpsc::UnboundedSender<Delete>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let Some((namespace, name)) = pod_of(request.uri().path()) else {
        return Ok(reply(StatusCode::NOT_FOUND, "no such path"));
    };
    if request.method() != Method::DELETE {
        return Ok(reply(StatusCode::METHOD_NOT_ALLOWED, "only DELETE"));
    }
    let query = request.uri().query().unwrap_or_default();
    let grace = query
        .strip_prefix("grace=")
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs);
    let (found, told) = oneshot::channel();
    drop(wishes.send(Delete { namespace, name, grace, found }));
    Ok(match told.await {
        Ok(true) => reply(StatusCode::OK, "deleted"),
        Ok(false) => reply(StatusCode::NOT_FOUND, "no such pod"),
        Err(_) => reply(StatusCode::SERVICE_UNAVAILABLE, "the world is ending"),
    })
}

/// `/pods/NAMESPACE/NAME`.
fn pod_of(path: &str) -> Option<(String, String)> {
    let (namespace, name) = path.strip_prefix("/pods/")?.split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}

fn reply(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
