// SPDX-License-Identifier: Apache-2.0

//! An HTTP/1.1 and HTTP/2 server that ends without losing a request.
//!
//! On SIGTERM it goes on answering for a while, asks its clients to close, and leaves
//! when the last request is done, so a rolling update or a scale-down costs nothing.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The most bytes of a request body that a service reads.
const MAX_BODY: usize = 1 << 20;

/// How long new connections are still taken after SIGTERM: the time in which callers
/// learn that this instance is going.
const LINGER: Duration = Duration::from_secs(3);

/// How long open requests may take after that.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves `answer` on all addresses, IPv4 and IPv6, at `port` until SIGTERM or SIGINT.
///
/// Prints one line for each request: peer, method, path, status, milliseconds.
///
/// # Errors
///
/// When the port cannot be had or signals cannot be watched.
pub async fn serve<A, F>(port: u16, answer: A) -> anyhow::Result<()>
where
    A: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Bytes>> + Send + 'static,
{
    let listener = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let answer = Arc::new(answer);
    let graceful = GracefulShutdown::new();
    let mut leave_at = None;
    loop {
        let lingered = async {
            match leave_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = listener.accept() => {
                // A connection that died in the queue is no reason to stop.
                let Ok((stream, peer)) = taken else { continue };
                let answer = Arc::clone(&answer);
                let service = service_fn(move |request| one(Arc::clone(&answer), request, peer));
                let server = auto::Builder::new(TokioExecutor::new());
                let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    // The peer went away: its request is its own loss, and is logged there.
                    drop(connection.await);
                });
            }
            _ = terminate.recv() => leave_at = Some(tokio::time::Instant::now() + LINGER),
            _ = interrupt.recv() => leave_at = Some(tokio::time::Instant::now()),
            () = lingered => break,
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        anyhow::bail!("requests were still open after {DRAIN:?}");
    }
    Ok(())
}

async fn one<A, F>(
    answer: Arc<A>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    A: Fn(Request<Bytes>) -> F,
    F: Future<Output = Response<Bytes>>,
{
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let line = format!("{} {} {}", canonical(peer), head.method, head.uri);
    let response = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => answer(Request::from_parts(head, body.to_bytes())).await,
        Err(_) => crate::http_call::reply(
            http::StatusCode::PAYLOAD_TOO_LARGE,
            "text/plain",
            "request body is too large",
        ),
    };
    // A closed log pipe must not end the service.
    drop(writeln!(
        std::io::stdout(),
        "{line} {} {} ms",
        response.status().as_u16(),
        begun.elapsed().as_millis()
    ));
    Ok(response.map(Full::new))
}

/// `peer` without the IPv6 wrapping that a dual-stack socket gives IPv4 addresses.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
