// SPDX-License-Identifier: Apache-2.0

//! The engine from the outside: real client, real backend, the engine between them on
//! in-memory streams, all on one core.

mod bodies;
mod copies;
mod framing;
mod heads;
mod limits;
mod pool;
mod streams;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{JoinHandle, LocalSet};
use tokio_util::sync::CancellationToken;

use super::*;

/// What a backend does with each connection.
type Backend = Rc<dyn Fn(DuplexStream)>;

/// One gateway with one backend behind it.
#[derive(Clone)]
struct Rig {
    limits: Arc<Limits>,
    pool: Pool<&'static str>,
    speaks: Protocol,
    backend: Backend,
    /// Bytes that a stream in memory holds before its writer must wait.
    depth: usize,
    dials: Rc<Cell<usize>>,
    drain: CancellationToken,
    errors: Rc<RefCell<Vec<String>>>,
}

impl Rig {
    fn new(speaks: Protocol, backend: impl Fn(DuplexStream) + 'static) -> Self {
        Self::with(Limits::default(), speaks, backend)
    }

    fn with(limits: Limits, speaks: Protocol, backend: impl Fn(DuplexStream) + 'static) -> Self {
        let limits = Arc::new(limits);
        Self {
            pool: Pool::new(Arc::clone(&limits)),
            limits,
            speaks,
            backend: Rc::new(backend),
            depth: 64 << 10,
            dials: Rc::default(),
            drain: CancellationToken::new(),
            errors: Rc::default(),
        }
    }

    fn terms(&self, protocol: Protocol) -> Terms {
        Terms {
            protocol,
            secure: false,
            limits: Arc::clone(&self.limits),
            drain: self.drain.clone(),
        }
    }

    /// A client's connection, and how it ended.
    fn connect(&self, protocol: Protocol) -> (DuplexStream, JoinHandle<Ended>) {
        let (ours, theirs) = duplex(self.depth);
        let rig = self.clone();
        let ended = tokio::task::spawn_local(async move {
            let handler = async |down: &mut Downstream| {
                if let Err(error) = rig.exchange(down).await {
                    rig.errors.borrow_mut().push(format!("{error:?}"));
                    if !down.started() && error.side() != Side::Downstream {
                        let _gone = down
                            .reply(ResponseHead::new(StatusCode::BAD_GATEWAY), Bytes::new())
                            .await;
                    }
                }
            };
            serve(theirs, rig.terms(protocol), handler).await
        });
        (ours, ended)
    }

    /// What the exchange of the gateway does, at its plainest: three tries.
    async fn exchange(&self, down: &mut Downstream) -> Result<(), Error> {
        let mut carry = Carry::new(&self.limits);
        let mut tries = 3;
        loop {
            let mut up = self.upstream().await?;
            tries -= 1;
            let head = down.request_head();
            match carry.respond(down, &mut up, head).await {
                Ok(head) => return carry.deliver(down, up, head).await,
                Err(error)
                    if tries > 0 && error.retry() == Retry::Always && carry.can_retry(down) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn upstream(&self) -> Result<Upstream, Error> {
        let dial = async || {
            self.dials.set(self.dials.get() + 1);
            let (ours, theirs) = duplex(self.depth);
            (self.backend)(theirs);
            Ok::<_, Infallible>(Dialed { io: Box::new(ours), protocol: self.speaks })
        };
        match self.pool.get(&"backend", self.speaks, dial).await {
            Ok(upstream) => Ok(upstream),
            Err(GetError::Http(error)) => Err(error),
            Err(GetError::Dial(never)) => match never {},
        }
    }
}

/// Runs a test on one core, as the gateway runs.
async fn on_core<T>(work: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(work).await
}

/// A backend that answers each connection's requests from a list, byte for byte.
///
/// It reads a head, and a body of the length it announces, before each answer.
fn scripted(answers: &'static [&'static str]) -> impl Fn(DuplexStream) {
    move |mut io| {
        tokio::task::spawn_local(async move {
            for answer in answers {
                if read_request(&mut io).await.is_none() {
                    return;
                }
                if io.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            // Whatever comes now is not answered; the connection stays open.
            let _read = io.read_to_end(&mut Vec::new()).await;
        });
    }
}

/// A backend that answers every request with what it has seen of it.
fn echo(mut io: DuplexStream) {
    tokio::task::spawn_local(async move {
        while let Some(request) = read_request(&mut io).await {
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{request}", request.len());
            if io.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
    });
}

/// Reads one request, body included; none at the end of the stream.
async fn read_request(io: &mut DuplexStream) -> Option<String> {
    let head = read_head(io).await?;
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some((_, rest)) = lower.split_once("content-length: ") {
        let length: usize = rest.split("\r\n").next()?.parse().ok()?;
        body.resize(length, 0);
        io.read_exact(&mut body).await.ok()?;
    } else if lower.contains("transfer-encoding: chunked") {
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(io.read_u8().await.ok()?);
        }
    }
    Some(head + &String::from_utf8_lossy(&body))
}

/// Reads bytes up to and with the blank line.
async fn read_head(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Reads one response of known length, and returns it whole.
async fn read_response(io: &mut DuplexStream) -> String {
    let head = read_head(io).await.expect("a response head");
    let lower = head.to_ascii_lowercase();
    let length = lower
        .split_once("content-length: ")
        .and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    io.read_exact(&mut body).await.expect("a whole body");
    head + &String::from_utf8_lossy(&body)
}

/// The status line's code.
fn status(response: &str) -> u16 {
    response.get(9..12).and_then(|code| code.parse().ok()).expect("a status line")
}

/// Sends `bytes` on a fresh connection and returns all that comes until it is closed.
async fn talk(rig: &Rig, bytes: &[u8]) -> String {
    let (mut io, _ended) = rig.connect(Protocol::Http1);
    io.write_all(bytes).await.expect("the gateway reads");
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.expect("the gateway closes");
    String::from_utf8_lossy(&all).into_owned()
}
