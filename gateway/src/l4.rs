// SPDX-License-Identifier: Apache-2.0

//! Connections and datagrams that are routed without looking inside.
//!
//! Owns TCP and TLS routes, TLS passed through, and UDP (in [`udp`]). No HTTP
//! code is involved: a policy over such a connection that asks about HTTP
//! refuses it.
//!
//! Keeps: an open connection ends when its permit is withdrawn.

pub(crate) mod udp;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use routing::discovery::Service;
use routing::gateway::LogFormat;
use routing::route::Rule;
use routing::split;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::access_log;
use crate::dial::Target;
use crate::exchange::{Arrival, Backend, Chosen, Entry, To, decide, ends, of_target};
use crate::http::{ByteStream, Protocol};
use crate::metrics::Connection;
use crate::reply::{Flag, Refusal};
use crate::state::OfCore;
use crate::worker::Worker;

/// Endpoints tried before the connection is given up.
const ATTEMPTS: usize = 3;
/// Bytes moved at once.
const CHUNK: usize = 16 << 10;

/// Carries one connection by `rule`, or straight to what was called, to its end.
pub(crate) async fn carry(
    worker: &Rc<Worker>,
    arrival: &Arrival,
    rule: Option<Arc<Rule>>,
    stream: impl ByteStream,
    drain: &CancellationToken,
) {
    let (start, begun) = (SystemTime::now(), Instant::now());
    let loaded = worker.load();
    let mut session = Session {
        worker,
        loaded: &loaded,
        arrival,
        rule,
        service: None,
        target: None,
        counted: None,
        received: Rc::default(),
        sent: Rc::default(),
    };
    let refusal = session.run(stream, drain).await.err();
    let flag = refusal.as_ref().map_or(Flag::None, |refusal| refusal.answer().flag);
    if session.counted.is_none() {
        // Never opened, so nothing else has counted it.
        session.count(flag).closed(0, 0);
    }
    if let Some(format) = loaded.log_format() {
        session.log(format, start, begun.elapsed(), refusal.as_ref());
    }
}

/// One connection, and what is noted while it runs.
struct Session<'a> {
    worker: &'a Rc<Worker>,
    loaded: &'a Rc<OfCore>,
    arrival: &'a Arrival,
    rule: Option<Arc<Rule>>,
    service: Option<&'a Arc<Service>>,
    target: Option<Rc<Target>>,
    counted: Option<Connection>,
    /// Bytes from the client.
    received: Rc<Cell<u64>>,
    /// Bytes to the client.
    sent: Rc<Cell<u64>>,
}

impl<'a> Session<'a> {
    async fn run(
        &mut self,
        stream: impl ByteStream,
        drain: &CancellationToken,
    ) -> Result<(), Refusal> {
        let remote = self.arrival.peer.address.ip().to_canonical();
        decide(self.loaded, self.arrival, remote, None).map_err(Refusal::Denied)?;
        let rule = self.rule.clone();
        let backend = self.backend(rule.as_deref())?;
        if let Backend::Service { service, .. } = &backend {
            self.service = Some(service);
        }
        let upstream = self.connect(&backend).await?;
        let counted = self.count(Flag::None);
        counted.opened();
        self.counted = Some(counted.clone());
        let limits = &self.worker.shared.settings.limits;
        let decided_at = self.loaded.snapshot.revision;
        let result = tokio::select! {
            biased;
            refusal = withdrawn(self.worker, self.arrival, decided_at) => Err(refusal),
            () = over(drain, limits.drain) => Ok(()),
            () = idle(&self.received, &self.sent, limits.tcp_idle) => Ok(()),
            // How it ended, well or by a reset, is the two ends' affair.
            _ended = join(stream, upstream, &self.received, &self.sent) => Ok(()),
        };
        counted.closed(self.received.get(), self.sent.get());
        result
    }

    /// Where the connection goes.
    fn backend(&self, rule: Option<&Rule>) -> Result<Backend<'a>, Refusal> {
        if let Some(rule) = rule {
            let chosen = split::choose(&rule.backends, self.worker.roll());
            return of_target(self.loaded, &chosen.map_err(Refusal::NoBackend)?.target, &[]);
        }
        match &self.arrival.entry {
            Entry::Service(service, port) => {
                Ok(Backend::Service { service, port: *port, filters: &[] })
            }
            Entry::Workload(workload) => Ok(Backend::Workload { workload, at: self.arrival.local }),
            Entry::Port(_) => Err(Refusal::NoRoute),
        }
    }

    async fn connect(&mut self, backend: &Backend<'a>) -> Result<Box<dyn ByteStream>, Refusal> {
        let client = self.arrival.peer.address.ip();
        let visited = (client, self.arrival.visited.as_ref());
        let mut chosen = Chosen::new(self.worker, self.loaded, backend, Protocol::Sniff, visited)?;
        let mut failure = Refusal::Connect("no endpoint is left".into());
        for _ in 0..ATTEMPTS {
            let Some(target) = chosen.next().await else { break };
            let error = match target {
                Ok(target) => {
                    self.target = Some(Rc::clone(&target));
                    let dialed = Box::pin(target.dial_raw(self.worker)).await;
                    if let Some(endpoint) = target.endpoint() {
                        self.worker.attempted(&endpoint.uid, dialed.is_ok());
                    }
                    match dialed {
                        Ok(stream) => return Ok(stream),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            failure = error.refusal();
            if !error.try_elsewhere() {
                break;
            }
        }
        Err(failure)
    }

    fn count(&self, flag: Flag) -> Connection {
        let to = To {
            service: self.service,
            endpoint: self.target.as_deref().and_then(|target| target.endpoint()),
            tunnelled: self.target.as_deref().is_some_and(|target| target.is_tunnelled()),
        };
        let ends = ends(self.worker, self.loaded, self.arrival, to);
        self.worker.metrics.borrow_mut().connection(self.loaded.snapshot.revision, &ends, flag)
    }

    fn log(
        &self,
        format: LogFormat,
        start: SystemTime,
        duration: Duration,
        refusal: Option<&Refusal>,
    ) {
        let answer = refusal.map(Refusal::answer);
        let cluster = self.service.map(|service| service.key.to_string());
        let failure = match refusal {
            Some(Refusal::Connect(why)) => Some(&**why),
            _ => None,
        };
        let entry = access_log::Entry {
            start,
            http: None,
            flag: answer.map_or(Flag::None, |answer| answer.flag),
            detail: answer.map_or("-", |answer| answer.detail),
            denied: refusal.and_then(Refusal::denied),
            authentication: None,
            failure,
            received: self.received.get(),
            sent: self.sent.get(),
            duration,
            upstream: self.target.as_deref().map(|target| target.address()),
            cluster: cluster.as_deref(),
            local: self.arrival.local,
            remote: self.arrival.peer.address,
            sni: self.arrival.sni(),
            route: self.rule.as_ref().map(|rule| &rule.name as &dyn std::fmt::Display),
        };
        self.worker.shared.access_log.write(entry.line(format));
    }
}

/// Waits until a change of policy refuses what was let in before.
async fn withdrawn(worker: &Worker, arrival: &Arrival, mut decided_at: u64) -> Refusal {
    let remote = arrival.peer.address.ip().to_canonical();
    loop {
        let loaded = worker.load();
        if loaded.snapshot.revision != decided_at {
            decided_at = loaded.snapshot.revision;
            if let Err(denied) = decide(&loaded, arrival, remote, None) {
                return Refusal::Denied(denied);
            }
        }
        drop(loaded);
        worker.changed().await;
    }
}

/// Waits for `drain`, and then as long as running connections are given.
async fn over(drain: &CancellationToken, limit: Duration) {
    drain.cancelled().await;
    tokio::time::sleep(limit).await;
}

/// Waits until neither count has moved for `limit`.
async fn idle(received: &Cell<u64>, sent: &Cell<u64>, limit: Duration) {
    let mut seen = (received.get(), sent.get());
    loop {
        tokio::time::sleep(limit).await;
        let now = (received.get(), sent.get());
        if now == seen {
            return;
        }
        seen = now;
    }
}

/// Moves bytes both ways until both ends are done; half-closed connections stay so.
async fn join(
    client: impl AsyncRead + AsyncWrite,
    server: impl AsyncRead + AsyncWrite,
    received: &Cell<u64>,
    sent: &Cell<u64>,
) -> io::Result<()> {
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let up = pump(client_read, server_write, received);
    let down = pump(server_read, client_write, sent);
    tokio::try_join!(up, down).map(|_| ())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
) -> io::Result<()> {
    let mut buffer = bytes::BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if from.read_buf(&mut buffer).await? == 0 {
            return to.shutdown().await;
        }
        while !buffer.is_empty() {
            let moved = to.write_buf(&mut buffer).await?;
            count.set(count.get() + u64::try_from(moved).unwrap_or_default());
        }
        to.flush().await?;
    }
}
