// SPDX-License-Identifier: Apache-2.0

//! A collector of spans: takes OTLP over gRPC, and reads what a test wants to know.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Method that exporters call.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A span as it was sent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: Vec<u8>,
    /// Itself.
    pub id: Vec<u8>,
    /// The span that it belongs to; empty for the first of its trace.
    pub parent: Vec<u8>,
    /// Name.
    pub name: String,
    /// Those attributes whose values are text.
    pub attributes: BTreeMap<String, String>,
}

/// A collector that runs until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    spans: mpsc::UnboundedReceiver<anyhow::Result<Vec<Span>>>,
    waiting: Vec<Span>,
}

impl Collector {
    /// Listens on a free port of loopback.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (tell, spans) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if tell.is_closed() {
                    return;
                }
                let tell = tell.clone();
                let service = service_fn(move |request| take(request, tell.clone()));
                tokio::spawn(async move {
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    // The exporter leaves when it likes.
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Ok(Self { address, spans, waiting: Vec::new() })
    }

    /// The next span; waits until one is sent.
    pub async fn next(&mut self) -> anyhow::Result<Span> {
        while self.waiting.is_empty() {
            self.waiting = self.spans.recv().await.context("the collector has ended")??;
        }
        Ok(self.waiting.remove(0))
    }
}

async fn take(
    request: Request<Incoming>,
    tell: mpsc::UnboundedSender<anyhow::Result<Vec<Span>>>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    // A test that is over asks no more.
    drop(tell.send(read(&path, &body)));
    let mut answer = http::Response::new(Full::default());
    let headers = answer.headers_mut();
    headers.insert("grpc-status", http::HeaderValue::from_static("0"));
    headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
    Ok(answer)
}

fn read(path: &str, body: &[u8]) -> anyhow::Result<Vec<Span>> {
    ensure!(path == EXPORT, "{path} is not what collectors are asked for");
    // One message: a flag for compression, and its length.
    let message = body.get(5..).context("no message")?;
    ensure!(body.first() == Some(&0), "compressed");
    let mut spans = Vec::new();
    for resource in nested(message, 1)? {
        for scope in nested(resource, 2)? {
            for span in nested(scope, 2)? {
                spans.push(span_of(span)?);
            }
        }
    }
    Ok(spans)
}

fn span_of(span: &[u8]) -> anyhow::Result<Span> {
    let one = |number| anyhow::Ok(nested(span, number)?.into_iter().next().unwrap_or_default());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut attributes = BTreeMap::new();
    for attribute in nested(span, 9)? {
        let key = nested(attribute, 1)?.concat();
        let value = nested(&nested(attribute, 2)?.concat(), 1)?.concat();
        attributes.insert(text(&key), text(&value));
    }
    Ok(Span {
        trace: one(1)?.to_vec(),
        id: one(2)?.to_vec(),
        parent: one(4)?.to_vec(),
        name: text(one(5)?),
        attributes,
    })
}

/// The fields of a protobuf message that have this number and a length.
fn nested(message: &[u8], number: u64) -> anyhow::Result<Vec<&[u8]>> {
    let mut rest = message;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let length = match key & 7 {
            0 => {
                varint(&mut rest)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut rest)?)?,
            5 => 4,
            kind => anyhow::bail!("field of kind {kind}"),
        };
        let (field, behind) = rest.split_at_checked(length).context("a field is cut")?;
        rest = behind;
        if key == number << 3 | 2 {
            found.push(field);
        }
    }
    Ok(found)
}

fn varint(rest: &mut &[u8]) -> anyhow::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first().context("a number is cut")?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    anyhow::bail!("a number without end")
}
