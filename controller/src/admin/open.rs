// SPDX-License-Identifier: Apache-2.0

//! What whoever reaches the pod may ask: metrics and the version, and whether it is ready.
//!
//! Nothing of objects, policies or workloads: who may ask for those goes through the loopback.
//! Ports and paths are istiod's, where Prometheus and Kiali look for them.
//!
//! Keeps: few connections at once, one request each, none for long; the mesh is not served here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::METRICS;
use crate::app::Hub;
use crate::settings::Settings;

/// Most connections at once at one door; others wait.
const CONNECTIONS: usize = 64;
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(10);

/// Doors for everybody; none that the settings do not name.
#[derive(Debug, Default)]
pub(super) struct Open {
    monitoring: Option<TcpListener>,
    ready: Option<TcpListener>,
}

/// Opens the doors that the settings ask for.
///
/// # Errors
///
/// Those of sockets.
pub(super) fn bind(settings: &Settings) -> io::Result<Open> {
    let bind = |address: SocketAddr| {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    Ok(Open {
        monitoring: settings.monitoring_address.map(bind).transpose()?,
        ready: settings.ready_address.map(bind).transpose()?,
    })
}

/// Answers until the task is aborted.
pub(super) async fn run(open: Open, hub: &Arc<Hub>) {
    tokio::join!(door(open.monitoring, hub, monitoring), door(open.ready, hub, ready));
}

/// What is answered to a path: kind and text.
type Answer = fn(&Hub, &str) -> Option<(&'static str, String)>;

fn monitoring(hub: &Hub, path: &str) -> Option<(&'static str, String)> {
    match path {
        "/metrics" => Some((METRICS, hub.print_metrics())),
        "/version" => Some(("text/plain", env!("CARGO_PKG_VERSION").to_owned())),
        _ => None,
    }
}

/// Who is answered at all is answered by a controller that has read everything there is.
fn ready(_: &Hub, path: &str) -> Option<(&'static str, String)> {
    (path == "/ready").then(|| ("text/plain", "ready\n".to_owned()))
}

async fn door(listener: Option<TcpListener>, hub: &Arc<Hub>, answer: Answer) {
    let Some(listener) = listener else { return };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let hub = Arc::clone(hub);
                tokio::spawn(async move {
                    serve(stream, &hub, answer).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection for metrics not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, hub: &Hub, answer: Answer) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = response(answer(hub, request.uri().path()));
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LIFE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection for metrics ended"),
        Err(_) => tracing::debug!("connection for metrics took too long"),
    }
}

fn response(answer: Option<(&'static str, String)>) -> Response<Full<Bytes>> {
    let status = if answer.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let (kind, text) = answer.unwrap_or(("text/plain", "there is nothing here\n".to_owned()));
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// The status and the text that a door answers with.
    async fn asked(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: istiod\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // One request a connection: it ends by itself.
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), text.to_owned())
    }

    #[tokio::test]
    async fn anybody_is_told_version_metrics_and_readiness_and_nothing_of_the_mesh() {
        let directory = tempfile::tempdir().unwrap();
        let at = |flag: &str| format!("--{flag}={}", directory.path().display());
        let settings = |more: &[&str]| {
            let base = ["controller", &at("folder"), &at("ca-dir"), "--listen=127.0.0.1:0"];
            Settings::parse_from(base.iter().chain(more))
        };
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\n\
                       spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}\n";
        std::fs::write(directory.path().join("web.yaml"), service).unwrap();
        let app = crate::app::start(settings(&[])).await.unwrap();
        let doors = ["--monitoring-address=127.0.0.1:0", "--ready-address=127.0.0.1:0"];
        let open = bind(&settings(&doors)).unwrap();
        let monitoring = open.monitoring.as_ref().unwrap().local_addr().unwrap();
        let ready = open.ready.as_ref().unwrap().local_addr().unwrap();
        let hub = Arc::clone(&app.hub);
        tokio::spawn(async move { run(open, &hub).await });

        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(asked(monitoring, "/version").await, ("200".to_owned(), version.to_owned()));
        let (status, metrics) = asked(monitoring, "/metrics").await;
        assert_eq!(status, "200");
        for line in [
            format!("pilot_info{{version=\"{version}\"}} 1"),
            format!("pilot_xds{{version=\"{version}\"}} 0"),
            "pilot_services 1".to_owned(),
            "waymark_controller_authority_refused 0".to_owned(),
        ] {
            assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
        }
        assert_eq!(asked(ready, "/ready").await.0, "200");
        for (address, path) in
            [(monitoring, "/ready"), (monitoring, "/status"), (ready, "/objects"), (ready, "/")]
        {
            assert_eq!(asked(address, path).await.0, "404", "{path}");
        }
    }
}
