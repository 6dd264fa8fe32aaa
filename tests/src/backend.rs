// SPDX-License-Identifier: Apache-2.0

//! A backend that tells what reached it, over HTTP/1.1, HTTP/2 and TLS.
//!
//! The path steers it: `/status/CODE` answers with that status, `/hang` never answers,
//! `/drop` closes the connection, `/slow/MILLISECONDS` answers late, `/flaky/N/ID` fails
//! with 503 the first N times it is asked for that ID, `/ws` echoes after an upgrade.
//! Everything else is answered with [`Seen`] as JSON.

#![expect(clippy::missing_errors_doc, reason = "a test fails with whatever failed")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What reached a backend.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Seen {
    /// Name of the backend.
    pub backend: String,
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Host that was asked for.
    pub host: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Headers; several values of one name are joined.
    pub headers: BTreeMap<String, String>,
    /// Length of the body.
    pub body: usize,
}

/// A backend that runs until it is dropped.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    name: String,
    requests: AtomicUsize,
    connections: AtomicUsize,
    flaky: Mutex<HashMap<String, usize>>,
}

impl Backend {
    /// Listens at `address`, port 0 for any; in TLS if `tls` is given.
    pub async fn start(
        name: &str,
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            name: name.to_owned(),
            requests: AtomicUsize::default(),
            connections: AtomicUsize::default(),
            flaky: Mutex::default(),
        });
        let weak = Arc::downgrade(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(state) = weak.upgrade() else { return };
                state.connections.fetch_add(1, Ordering::SeqCst);
                match tls.clone() {
                    None => drop(tokio::spawn(serve(stream, state))),
                    Some(tls) => drop(tokio::spawn(async move {
                        if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                            Box::pin(serve(stream, state)).await;
                        }
                    })),
                }
            }
        });
        Ok(Self { address, state })
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    let http = Builder::new(TokioExecutor::new());
    let serving = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
    // How the client leaves is its own affair.
    drop(serving.await);
}

type Answer = Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>>;

async fn answer(mut request: Request<Incoming>, state: Arc<State>) -> Answer {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    match (parts.next().unwrap_or_default(), parts.next()) {
        ("status", Some(code)) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = code.parse()?;
            return Ok(response);
        }
        ("hang", _) => std::future::pending().await,
        ("drop", _) => return Err("told to drop".into()),
        ("slow", Some(millis)) => tokio::time::sleep(Duration::from_millis(millis.parse()?)).await,
        ("flaky", Some(times)) if !state.recovered(&path, times.parse()?) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
        ("ws", _) => return Ok(echo(&mut request)),
        _ => {}
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    let host = head.headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()));
    let host = host.map(std::borrow::Cow::into_owned);
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in head.headers.iter().chain(trailers.iter().flatten()) {
        let value = String::from_utf8_lossy(value.as_bytes());
        let entry = headers.entry(name.to_string()).or_default();
        if !entry.is_empty() {
            entry.push_str(", ");
        }
        entry.push_str(&value);
    }
    let seen = Seen {
        backend: state.name.clone(),
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        host: head.uri.authority().map(ToString::to_string).or(host).unwrap_or_default(),
        version: format!("{:?}", head.version),
        headers,
        body: body.to_bytes().len(),
    };
    let mut response = Response::new(Full::from(serde_json::to_vec(&seen)?));
    response.headers_mut().insert("server", HeaderValue::from_static("backend"));
    Ok(response)
}

impl State {
    /// True once `what` was asked for more than `times` times.
    fn recovered(&self, what: &str, times: usize) -> bool {
        let mut flaky = self.flaky.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = flaky.entry(what.to_owned()).or_default();
        *asked += 1;
        *asked > times
    }
}

/// Agrees to an upgrade, then sends back what comes.
fn echo(request: &mut Request<Incoming>) -> Response<Full<Bytes>> {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
            // Ends with either side.
            drop(tokio::io::copy(&mut read, &mut write).await);
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    response
}
