// SPDX-License-Identifier: Apache-2.0

//! What applications say to each other: the servers of a pod, and one exchange of each kind.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use routing::discovery::{AppProtocol, Port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use waymark_tests::netns::Pod;

/// Ports of the servers in a pod.
pub(crate) const ECHO: u16 = 8080;
const GREET: u16 = 8081;
const HTTP: u16 = 8082;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Talk {
    /// Bytes both ways; the client ends its side first and still hears the answer.
    Raw,
    /// The server speaks first, and ends first.
    Greet,
    /// Two requests on one connection.
    Http1,
    /// Two requests at once on one connection, with prior knowledge.
    Http2,
    /// A call whose status comes in trailers.
    Grpc,
}

impl Talk {
    pub(crate) const ALL: [Self; 5] =
        [Self::Raw, Self::Greet, Self::Http1, Self::Http2, Self::Grpc];

    /// Port of the server in the pod.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Raw => ECHO,
            Self::Greet => GREET,
            Self::Http1 | Self::Http2 | Self::Grpc => HTTP,
        }
    }

    /// Port of a service for this kind of traffic, as its manifest would say.
    pub(crate) fn service_port(self) -> Port {
        let (service_port, app_protocol) = match self {
            Self::Raw => (80, AppProtocol::Tcp),
            Self::Greet => (81, AppProtocol::Tcp),
            Self::Http1 => (82, AppProtocol::Http11),
            Self::Http2 => (83, AppProtocol::Http2),
            Self::Grpc => (84, AppProtocol::Grpc),
        };
        Port { service_port, target_port: self.port(), app_protocol }
    }

    /// One exchange over `stream`; `word` is in the request and in the answer.
    pub(crate) async fn exchange(self, stream: TcpStream, word: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Raw => raw(stream, word).await,
            Self::Greet => greet(stream, word).await,
            Self::Http1 => http1_requests(stream, word).await,
            Self::Http2 => http2_requests(stream, word).await,
            Self::Grpc => grpc_call(stream, word).await,
        }
    }
}

/// Serves a pod's applications; tells the address that each caller shows.
pub(crate) fn applications(pod: &Pod) -> mpsc::UnboundedReceiver<SocketAddr> {
    let (tell, told) = mpsc::unbounded_channel();
    for v6 in [false, true] {
        for port in [ECHO, GREET, HTTP] {
            let listener = pod.netns.listen(SocketAddr::new(pod.ip(v6), port)).unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                while let Ok((stream, peer)) = listener.accept().await {
                    let _nobody_asks = tell.send(peer);
                    tokio::spawn(application(stream, port));
                }
            });
        }
    }
    told
}

async fn application(mut stream: TcpStream, port: u16) -> anyhow::Result<()> {
    match port {
        GREET => {
            stream.write_all(b"220 ready\r\n").await?;
            let length = stream.read_u32().await?;
            let mut word = vec![0; usize::try_from(length)?];
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await?;
        }
        HTTP => {
            let server = auto::Builder::new(TokioExecutor::new());
            let served = server.serve_connection(TokioIo::new(stream), service_fn(answer));
            // The client leaves when it has what it wants.
            drop(served.await);
        }
        _ => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await?;
        }
    }
    Ok(())
}

type Pieces = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, hyper::Error>>>>;

/// Sends back the body of a request, with trailers if it is gRPC.
async fn answer(request: Request<Incoming>) -> Result<Response<Pieces>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut frames = vec![Ok(Frame::data(body))];
    let kind = head.headers.get("content-type").cloned();
    if kind.as_ref().is_some_and(|kind| kind == "application/grpc") {
        let status = ("grpc-status".parse().unwrap(), HeaderValue::from_static("0"));
        frames.push(Ok(Frame::trailers(HeaderMap::from_iter([status]))));
    }
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    let version = format!("{:?}", head.version);
    response.headers_mut().insert("x-version", HeaderValue::try_from(version).unwrap());
    if let Some(kind) = kind {
        response.headers_mut().insert("content-type", kind);
    }
    Ok(response)
}

async fn raw(mut stream: TcpStream, word: &[u8]) -> anyhow::Result<()> {
    for part in word.chunks(1024) {
        stream.write_all(part).await?;
        let mut back = vec![0; part.len()];
        stream.read_exact(&mut back).await?;
        ensure!(back == part, "bytes have changed");
    }
    let (mut read, mut write) = stream.split();
    write.write_all(word).await?;
    write.shutdown().await?;
    let mut rest = Vec::new();
    read.read_to_end(&mut rest).await?;
    ensure!(rest == word, "after the client's end: {} bytes", rest.len());
    Ok(())
}

async fn greet(mut stream: TcpStream, word: &[u8]) -> anyhow::Result<()> {
    let mut banner = [0; 11];
    stream.read_exact(&mut banner).await.context("the server speaks first")?;
    ensure!(&banner == b"220 ready\r\n", "{banner:?}");
    stream.write_u32(u32::try_from(word.len())?).await?;
    stream.write_all(word).await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    ensure!(rest == word, "before the server's end: {} bytes", rest.len());
    Ok(())
}

fn request(word: &[u8], uri: &str, kind: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::post(uri).body(Full::new(Bytes::copy_from_slice(word))).unwrap();
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(kind));
    headers.insert("te", HeaderValue::from_static("trailers"));
    request
}

async fn is_echo(
    response: Response<Incoming>,
    word: &[u8],
    version: Version,
) -> anyhow::Result<Option<HeaderMap>> {
    let (head, body) = response.into_parts();
    ensure!(head.status == 200, "{head:?}");
    let seen = head.headers.get("x-version").and_then(|seen| seen.to_str().ok());
    ensure!(seen == Some(&format!("{version:?}")), "the server saw {seen:?}");
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    ensure!(body.to_bytes() == word, "the body has changed");
    Ok(trailers)
}

async fn http1_requests(stream: TcpStream, word: &[u8]) -> anyhow::Result<()> {
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    for _ in 0..2 {
        send.ready().await?;
        let mut request = request(word, "/talk", "text/plain");
        request.headers_mut().insert("host", HeaderValue::from_static("talk"));
        is_echo(send.send_request(request).await?, word, Version::HTTP_11).await?;
    }
    Ok(())
}

async fn http2_client(stream: TcpStream) -> anyhow::Result<http2::SendRequest<Full<Bytes>>> {
    let io = TokioIo::new(stream);
    let (send, connection) = http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(send)
}

async fn http2_requests(stream: TcpStream, word: &[u8]) -> anyhow::Result<()> {
    let mut send = http2_client(stream).await?;
    let mut other = send.clone();
    let uri = "http://talk/talk";
    let (one, two) = tokio::join!(
        send.send_request(request(word, uri, "text/plain")),
        other.send_request(request(word, uri, "text/plain")),
    );
    is_echo(one?, word, Version::HTTP_2).await?;
    is_echo(two?, word, Version::HTTP_2).await?;
    Ok(())
}

async fn grpc_call(stream: TcpStream, word: &[u8]) -> anyhow::Result<()> {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(word.len())?);
    message.put_slice(word);
    let mut send = http2_client(stream).await?;
    let call = request(&message, "http://talk/talk.Talk/Say", "application/grpc");
    let trailers = is_echo(send.send_request(call).await?, &message, Version::HTTP_2).await?;
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    ensure!(status.is_some_and(|status| status == "0"), "trailers: {trailers:?}");
    Ok(())
}
