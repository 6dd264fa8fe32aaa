// SPDX-License-Identifier: Apache-2.0

//! What operators and the kubelet ask: readiness, metrics, what is served.
//!
//! Owns the three ports and their answers. Names and ports are Istio's:
//! 15021 `/healthz/ready`, 15020 `/metrics` and `/stats/prometheus`, and 15000
//! for the rest, on loopback.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::worker::Shared;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// A client of these ports that says nothing is cut off.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which of the ports it is.
#[derive(Clone, Debug)]
pub(crate) enum Face {
    /// For operators; the token ends the process.
    Admin(CancellationToken),
    /// For the kubelet.
    Readiness,
    /// For Prometheus.
    Stats,
}

/// Answers on `listener` until the process ends.
pub(crate) async fn serve(listener: TcpListener, face: Face, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (face, shared) = (face.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&face, &request, &shared);
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // Whoever asked is gone, or broke the protocol: nobody is left to be told.
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn answer(face: &Face, request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let get = request.method() == Method::GET || request.method() == Method::HEAD;
    match (face, request.uri().path()) {
        (Face::Readiness | Face::Admin(_), "/healthz/ready") if get => readiness(shared),
        (Face::Stats | Face::Admin(_), "/metrics" | "/stats/prometheus") if get => {
            let accept = request.headers().get(ACCEPT).map(HeaderValue::as_bytes);
            let accept = accept.unwrap_or_default();
            let open = accept.windows(11).any(|part| part == b"openmetrics");
            if open {
                reply(StatusCode::OK, OPENMETRICS, scrape(shared))
            } else {
                let mut body = String::new();
                let done = prometheus_text::encode(&mut body, &registry(shared));
                encoded(done, body)
            }
        }
        (Face::Admin(_), "/config_dump") if get => {
            reply(StatusCode::OK, "application/json", dump(shared).to_string())
        }
        (Face::Admin(_), "/") if get => {
            let paths = "/config_dump\n/healthz/ready\n/quitquitquit (POST)\n/stats/prometheus\n";
            reply(StatusCode::OK, "text/plain", paths.to_owned())
        }
        (Face::Admin(quit), "/quitquitquit") if request.method() == Method::POST => {
            quit.cancel();
            reply(StatusCode::OK, "text/plain", "ending\n".to_owned())
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn encoded(done: std::fmt::Result, body: String) -> Response<Full<Bytes>> {
    match done {
        Ok(()) => reply(StatusCode::OK, PROMETHEUS, body),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", text)
        }
    }
}

fn readiness(shared: &Shared) -> Response<Full<Bytes>> {
    let pending = pending(shared);
    if pending.is_empty() && !*shared.synced.borrow() {
        return unready("configuration");
    }
    if pending.is_empty() {
        reply(StatusCode::OK, "text/plain", "ready\n".to_owned())
    } else {
        unready(&pending.join(", "))
    }
}

fn unready(pending: &str) -> Response<Full<Bytes>> {
    let body = format!("not ready, pending: {pending}\n");
    reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", body)
}

/// What keeps the gateway from serving what its snapshot says.
pub(crate) fn pending(shared: &Shared) -> Vec<String> {
    let mut pending = Vec::new();
    if shared.drain.is_cancelled() {
        pending.push("the end".to_owned());
    }
    if shared.credential.current().is_none() {
        pending.push("certificate".to_owned());
    }
    let loaded = shared.state.load();
    let (bound, failed) = (shared.listening.bound(), shared.listening.failed());
    for (port, transport, _) in loaded.serving().ports().iter() {
        match failed.get(&(port, transport)) {
            Some(why) => pending.push(format!("port {port} ({why})")),
            None if bound.contains_key(&(port, transport)) => {}
            None => pending.push(format!("port {port}")),
        }
    }
    pending
}

/// All series in OpenMetrics text; empty if they cannot be written.
pub(crate) fn scrape(shared: &Shared) -> String {
    let mut body = String::new();
    match text::encode(&mut body, &registry(shared)) {
        Ok(()) => body,
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            String::new()
        }
    }
}

fn registry(shared: &Shared) -> Registry {
    let mut registry = Registry::default();
    let build: Family<[(&str, &str); 2], Gauge> = Family::default();
    let labels = [("component", "waymark-gateway"), ("tag", env!("CARGO_PKG_VERSION"))];
    build.get_or_create(&labels).set(1);
    registry.register("istio_build", "Version of this process", build);
    registry.register_collector(Box::new(Arc::clone(&shared.metrics)));
    registry.register_collector(Box::new(Arc::clone(&shared.refused)));
    let own = registry.sub_registry_with_prefix("waymark");
    let open = i64::try_from(shared.connections.count()).unwrap_or(i64::MAX);
    own.register("connections_open", "Connections of clients", ConstGauge::new(open));
    own.register(
        "access_log_dropped",
        "Lines of the access log dropped for its writer was too slow",
        ConstCounter::new(shared.access_log.dropped()),
    );
    let revision = i64::try_from(shared.state.load().snapshot.revision).unwrap_or(i64::MAX);
    own.register("snapshot_revision", "Revision of the snapshot in use", ConstGauge::new(revision));
    registry
}

/// What is served, for people.
fn dump(shared: &Shared) -> serde_json::Value {
    let loaded = shared.state.load();
    let serving = loaded.serving();
    let bound = shared.listening.bound();
    let listeners: Vec<_> = serving
        .listeners()
        .map(|listener| {
            json!({
                "name": listener.name.as_str(),
                "port": listener.port,
                "protocol": format!("{:?}", listener.protocol),
            })
        })
        .collect();
    let mut rules: Vec<_> = serving.rules().map(|rule| rule.name.to_string()).collect();
    rules.sort();
    let ports: Vec<_> = bound
        .iter()
        .map(|((port, _), at)| json!({"port": port, "address": at.to_string()}))
        .collect();
    let credential = shared.credential.current();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gateway": shared.settings.gateway.as_str(),
        "identity": shared.settings.identity.as_str(),
        "certificate": credential.map(|credential| json!({
            "serial": credential.epoch(),
            "expires": humantime(credential.not_after()),
        })),
        "revision": loaded.snapshot.revision,
        "workloads": loaded.snapshot.discovery.workload_count(),
        "services": loaded.snapshot.discovery.service_count(),
        "listeners": listeners,
        "ports": ports,
        "rules": rules,
        "pending": pending(shared),
    })
}

fn humantime(at: std::time::SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
