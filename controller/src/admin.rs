// SPDX-License-Identifier: Apache-2.0

//! Admin endpoints: what `waymark status`, `get`, `workloads`, `policies` and `explain` read.
//!
//! Answers are JSON. Whoever can open the socket may ask, or reach the loopback of this
//! machine or pod; on Kubernetes that takes the right to forward ports. [`open`] answers anybody,
//! and tells nothing of the mesh.

mod answers;
mod ca;
mod coverage;
mod open;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::app::Hub;
use crate::settings::Settings;

/// Where the endpoints can be asked; nowhere, if the settings name nothing.
#[derive(Debug, Default)]
pub struct Doors {
    socket: Option<UnixListener>,
    loopback: Option<TcpListener>,
    open: open::Open,
}

/// Kind of a text of metrics.
const METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// Opens the doors that the settings ask for; an old socket in the place of the new one goes.
///
/// Must be called inside a tokio runtime.
///
/// # Errors
///
/// Those of the file system and of sockets; and for an address that others could reach.
pub fn bind(settings: &Settings) -> io::Result<Doors> {
    let socket = settings.admin_socket.as_deref().map(bind_socket).transpose()?;
    let loopback = settings.admin_address.map(bind_loopback).transpose()?;
    Ok(Doors { socket, loopback, open: open::bind(settings)? })
}

fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn bind_loopback(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        let why = format!("{address} is not of this machine alone, and nobody is asked who he is");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers until the task is aborted.
pub async fn run(doors: Doors, hub: Arc<Hub>) {
    let Doors { socket, loopback, open } = doors;
    let also = Arc::clone(&hub);
    tokio::join!(
        open::run(open, &hub),
        async {
            let Some(listener) = socket else { return };
            loop {
                serve(listener.accept().await, &hub).await;
            }
        },
        async {
            let Some(listener) = loopback else { return };
            loop {
                serve(listener.accept().await, &also).await;
            }
        },
    );
    std::future::pending().await
}

/// Serves one connection, beside others.
async fn serve<S, A>(accepted: io::Result<(S, A)>, hub: &Arc<Hub>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = match accepted {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::warn!(%error, "admin connection not accepted");
            return tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let hub = Arc::clone(hub);
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let answer = answer(&hub, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "admin connection ended");
        }
    });
}

fn answer(hub: &Hub, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let query = Query::read(request.uri().query().unwrap_or_default());
    let (kind, body) = match request.uri().path() {
        "/objects" => ("application/json", answers::objects(hub, &query).to_string()),
        "/workloads" => ("application/json", answers::workloads(hub).to_string()),
        "/policies" => ("application/json", answers::policies(hub).to_string()),
        "/ca" => ("application/json", ca::whole(hub).to_string()),
        "/status" => ("application/json", answers::status(hub).to_string()),
        "/snapshot" => ("application/json", answers::snapshot(hub).to_string()),
        "/metrics" => (METRICS, hub.print_metrics()),
        "/readyz" => ("text/plain", "ok\n".to_owned()),
        _ => {
            let mut missing = Response::new(Full::new(Bytes::from_static(
                b"paths: /objects /workloads /policies /status /ca /snapshot /metrics /readyz\n",
            )));
            *missing.status_mut() = StatusCode::NOT_FOUND;
            return missing;
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let value = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}

/// Which objects are asked for; what is not said is not looked at.
#[derive(Debug, Default)]
struct Query {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

impl Query {
    fn read(text: &str) -> Self {
        let mut query = Self::default();
        for (key, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = (!value.is_empty()).then(|| value.to_owned());
            match key {
                "kind" => query.kind = value,
                "ns" => query.namespace = value,
                "name" => query.name = value,
                _ => {}
            }
        }
        query
    }

    /// Kinds compare without case, in the singular or plural: `pod`, `Pods`, `httproutes`.
    fn takes(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let kind = kind.to_ascii_lowercase();
        let kind_fits = self.kind.as_ref().is_none_or(|wanted| {
            let wanted = wanted.to_ascii_lowercase();
            let plural = match kind.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None if kind.ends_with('s') => format!("{kind}es"),
                None => format!("{kind}s"),
            };
            wanted == kind || wanted == plural
        });
        let fits =
            |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|w| w == value);
        kind_fits && fits(&self.namespace, namespace) && fits(&self.name, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_admin_address_is_one_that_nobody_else_reaches() {
        for (address, open) in
            [("127.0.0.1:0", true), ("0.0.0.0:0", false), ("[::]:0", false), ("192.0.2.1:0", false)]
        {
            let bound = bind_loopback(address.parse().unwrap());
            assert_eq!(bound.is_ok(), open, "{address}");
            if let Err(error) = bound {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{address}");
            }
        }
    }
}
