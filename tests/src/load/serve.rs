// SPDX-License-Identifier: Apache-2.0

//! Servers for the load: HTTP with a fixed answer, TCP echo, and one that speaks first.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What a TCP server does with a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Talk {
    /// Sends back what it gets.
    Echo,
    /// Reads 4 bytes of length, that many bytes, and sends as many back.
    Exchange,
    /// Sends `hello\n` at once, then sends back what it gets.
    SpeakFirst,
    /// Reads until the end, then sends the number of bytes and their CRC32 as text.
    Swallow,
}

/// Answers each HTTP/1.1 or HTTP/2 request with `name` and `size` bytes, until dropped.
///
/// The answer carries `x-served-by: name` and `x-peer: ADDRESS` and reads the whole
/// request body first. A gRPC health check is answered that all is well.
pub async fn http(listener: TcpListener, name: String, size: usize) {
    let body = Bytes::from(vec![b'x'; size]);
    let name: std::sync::Arc<str> = name.into();
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        drop(stream.set_nodelay(true));
        let (body, name) = (body.clone(), std::sync::Arc::clone(&name));
        let service = service_fn(move |request| {
            let (body, name) = (body.clone(), std::sync::Arc::clone(&name));
            answer(request, body, name, peer)
        });
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    body: Bytes,
    name: std::sync::Arc<str>,
    peer: SocketAddr,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let checks = request.uri().path() == HEALTH;
    drop(request.into_body().collect().await);
    if checks {
        return Ok(healthy());
    }
    let mut response = Response::new(Full::new(body).boxed());
    let fields = [("x-served-by", name.to_string()), ("x-peer", peer.to_string())];
    for (field, value) in fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(field, value);
        }
    }
    Ok(response)
}

/// Path of a gRPC health check. Rule: `grpc.health.v1.Health` of gRPC's health checking protocol.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// `HealthCheckResponse { status: SERVING }`, as gRPC sends it.
fn healthy() -> Response<BoxBody<Bytes, Infallible>> {
    let status = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let message = Full::new(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]));
    let mut response =
        Response::new(message.with_trailers(std::future::ready(Some(Ok(status)))).boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Serves raw TCP in the way `talk` says, until dropped.
pub async fn tcp(listener: TcpListener, talk: Talk) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        drop(stream.set_nodelay(true));
        tokio::spawn(async move { drop(one(stream, talk).await) });
    }
}

async fn one(mut stream: TcpStream, talk: Talk) -> std::io::Result<()> {
    if talk == Talk::SpeakFirst {
        stream.write_all(b"hello\n").await?;
    }
    let mut buffer = vec![0; 64 * 1024];
    match talk {
        Talk::Echo | Talk::SpeakFirst => loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return stream.shutdown().await;
            }
            let Some(part) = buffer.get(..read) else { return Ok(()) };
            stream.write_all(part).await?;
        },
        Talk::Exchange => loop {
            let Ok(length) = stream.read_u32().await else { return Ok(()) };
            let length = usize::try_from(length).unwrap_or(0).min(1 << 20);
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let Some(part) = buffer.get_mut(..length) else { return Ok(()) };
            stream.read_exact(part).await?;
            stream.write_all(part).await?;
        },
        Talk::Swallow => {
            let (mut total, mut crc) = (0_u64, crc32fast::Hasher::new());
            loop {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    break;
                }
                total += u64::try_from(read).unwrap_or(0);
                crc.update(buffer.get(..read).unwrap_or_default());
            }
            stream.write_all(format!("{total} {:08x}\n", crc.finalize()).as_bytes()).await?;
            stream.shutdown().await
        }
    }
}
