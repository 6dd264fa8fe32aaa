// SPDX-License-Identifier: Apache-2.0

//! Admin, metrics and readiness over HTTP.
//!
//! Owns the three listeners and their paths. Leaves what a dump holds to
//! [`dump`]. Rule: ztunnel's `src/admin.rs`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::inpod::pods::Pods;
use crate::proxy::TunnelWorkers;
use crate::settings::Settings;
use crate::state::Shared;
use crate::sys::{self, SocketSettings};

mod dump;

/// Longest wait for the counters of workers before a scrape.
const FLUSH: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type SetLevels = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Levels of the log, which may be changed while it runs.
pub struct Levels {
    first: String,
    now: Mutex<String>,
    set: SetLevels,
}

impl std::fmt::Debug for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Levels").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Levels {
    /// Levels `now`, which `set` changes.
    pub fn new(
        now: String,
        set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { first: now.clone(), now: Mutex::new(now), set: Box::new(set) }
    }

    fn change(&self, directives: &str) -> Result<(), String> {
        (self.set)(directives)?;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = directives.to_owned();
        Ok(())
    }

    fn now(&self) -> String {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What admin shows and changes.
#[derive(Debug)]
pub struct Admin {
    /// Values of the process.
    pub settings: Arc<Settings>,
    /// The snapshot.
    pub shared: Arc<Shared>,
    /// Pods that are served.
    pub pods: Arc<Pods>,
    /// Certificates.
    pub credentials: Credentials,
    /// Workers, whose counters are asked for.
    pub workers: TunnelWorkers,
    /// Metrics.
    pub registry: Arc<Registry>,
    /// Whether the agent's pods are all served.
    pub agent: watch::Receiver<bool>,
    /// Levels of the log.
    pub levels: Levels,
    /// Ends the process.
    pub end: CancellationToken,
}

/// Which of the listeners a request came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Door {
    Admin,
    Stats,
    Readiness,
}

/// Opens the three listeners and serves them.
///
/// # Errors
///
/// When one of them cannot be opened.
pub async fn start(admin: Admin) -> std::io::Result<()> {
    let admin = Arc::new(admin);
    let settings = Arc::clone(&admin.settings);
    for (door, address) in [
        (Door::Admin, settings.admin),
        (Door::Stats, settings.stats),
        (Door::Readiness, settings.readiness),
    ] {
        let listener = open(address)?;
        tokio::spawn(serve(Arc::clone(&admin), door, listener));
    }
    Ok(())
}

fn open(address: SocketAddr) -> std::io::Result<TcpListener> {
    // A process that ends and its successor share the ports for a while.
    let settings = SocketSettings { reuse_port: true, ..SocketSettings::default() };
    let address = match address.ip().is_unspecified() && address.is_ipv6() {
        true => sys::any_address(address.port()),
        false => address,
    };
    let listener = sys::listen_tcp(address, settings)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(admin: Arc<Admin>, door: Door, listener: TcpListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, ?door, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(answer(&admin, door, &request).await) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
            // A client that goes away has nobody to tell.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(admin: &Admin, door: Door, request: &Request<Incoming>) -> Answer {
    let path = request.uri().path();
    match (door, path, request.method()) {
        (Door::Readiness, "/healthz/ready", _) => readiness(admin),
        (Door::Stats, "/metrics" | "/stats/prometheus", _) => metrics(admin, request).await,
        (Door::Admin, "/", _) => text(StatusCode::OK, "text/html", INDEX),
        (Door::Admin, "/config_dump", _) => config_dump(admin),
        (Door::Admin, "/logging", _) => logging(admin, request.uri().query().unwrap_or_default()),
        (Door::Admin, "/quitquitquit", &Method::POST) => {
            admin.end.cancel();
            text(StatusCode::OK, TEXT, "shutdown now\n")
        }
        (Door::Admin, "/quitquitquit", _) => {
            text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use POST\n")
        }
        (Door::Admin | Door::Stats | Door::Readiness, _, _) => {
            text(StatusCode::NOT_FOUND, TEXT, "not found\n")
        }
    }
}

const INDEX: &str = "<html><body><h1>waymark-tunnel</h1><ul>\
<li><a href=\"config_dump\">config_dump</a></li><li><a href=\"logging\">logging</a></li>\
<li>quitquitquit (POST)</li></ul></body></html>";

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}

fn readiness(admin: &Admin) -> Answer {
    let mut pending = Vec::new();
    if !*admin.shared.is_synced().borrow() {
        pending.push("state manager");
    }
    if !*admin.agent.borrow() {
        pending.push("workload proxy manager");
    }
    match pending.is_empty() {
        true => text(StatusCode::OK, TEXT, "ready\n"),
        false => {
            let body = format!("not ready, pending: {}\n", pending.join(", "));
            text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, body)
        }
    }
}

async fn metrics(admin: &Admin, request: &Request<Incoming>) -> Answer {
    let (tell, mut told) = mpsc::channel::<()>(1);
    for worker in admin.workers.iter() {
        let tell = tell.clone();
        worker.run(move |core| async move {
            core.metrics.flush();
            drop(tell);
        });
    }
    drop(tell);
    // Counters of a worker that is late come with the next scrape.
    drop(tokio::time::timeout(FLUSH, told.recv()).await);
    let accept = request.headers().get(http::header::ACCEPT);
    let open = accept
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let mut body = String::new();
    if prometheus_client::encoding::text::encode(&mut body, &admin.registry).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "metrics cannot be written\n");
    }
    text(StatusCode::OK, if open { OPEN_METRICS } else { TEXT }, body)
}

fn config_dump(admin: &Admin) -> Answer {
    let body = serde_json::to_vec_pretty(&dump::dump(admin));
    match body {
        Ok(body) => text(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn logging(admin: &Admin, query: &str) -> Answer {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    for pair in pairs {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let result = match key {
            "reset" => admin.levels.change(&admin.levels.first),
            // istioctl writes scope:level where the filter wants scope=level.
            "level" => {
                let directives = value.replace("%2C", ",").replace("%3A", ":");
                admin
                    .levels
                    .change(&directives.replace("::", "\0").replace(':', "=").replace('\0', "::"))
            }
            _ => Err(format!("unknown parameter {key:?}")),
        };
        if let Err(error) = result {
            return text(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n"));
        }
    }
    text(StatusCode::OK, TEXT, format!("current log level is {}\n", admin.levels.now()))
}
