// SPDX-License-Identifier: Apache-2.0

//! Readiness, metrics and the agent's view of its pods, over HTTP.
//!
//! Owns: the paths. Tells nothing that a pod of the node must not know, and
//! changes nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::debug;

use super::node::Node;

/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// What the paths answer from.
#[derive(Debug)]
pub struct Admin {
    /// Pods of the node.
    pub node: Node,
    /// All metrics.
    pub registry: Registry,
    /// The agent can do its work.
    pub ready: watch::Receiver<bool>,
}

/// Serves one address for as long as the future lives.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve(admin: Arc<Admin>, listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = admin.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                debug!(%error, %peer, "admin connection ended");
            }
        });
    }
}

/// Opens a listener for [`serve`].
///
/// # Errors
///
/// When the address cannot be bound.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => reply(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" if *self.ready.borrow() => {
                reply(StatusCode::OK, "text/plain", "ready\n".to_owned())
            }
            "/readyz" => {
                reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n".to_owned())
            }
            "/metrics" | "/stats/prometheus" => {
                let mut text = String::new();
                match encode(&mut text, &self.registry) {
                    Ok(()) => reply(
                        StatusCode::OK,
                        "application/openmetrics-text; version=1.0.0; charset=utf-8",
                        text,
                    ),
                    Err(error) => {
                        reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string())
                    }
                }
            }
            "/pods" => reply(StatusCode::OK, "application/json", self.pods()),
            _ => reply(StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
        }
    }

    fn pods(&self) -> String {
        let pods: Vec<_> = self
            .node
            .report()
            .into_iter()
            .map(|pod| {
                json!({
                    "uid": pod.uid, "state": format!("{:?}", pod.standing), "reason": pod.reason,
                    "olderConnections": pod.older, "repairs": pod.repairs,
                })
            })
            .collect();
        json!(pods).to_string()
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
