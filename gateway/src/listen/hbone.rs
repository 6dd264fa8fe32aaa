// SPDX-License-Identifier: Apache-2.0

//! CONNECT streams of the mesh, and what each of them asks for.
//!
//! Owns the check of the authority: a waypoint takes what is addressed to the
//! services and workloads that it is the waypoint of, and nothing else. The
//! peer was proven by the tunnel's server before a stream gets here.
//!
//! Rule: ztunnel's `src/proxy`.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use policy::peer::Peer;
use routing::discovery::{AppProtocol, Found, Workload};
use routing::l4::Authority;
use routing::l4::inbound::{InboundRefusal, destined};
use routing::serving::targets;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tunnel::hbone::server::{self, AcceptError, Connect, ConnectionError};
use tunnel::hbone::{POD_UID, REFUSED_UID};

use super::hello;
use super::refused::Cause;
use super::sniff;
use super::tcp::http;
use crate::dial::{VISITED, has_passed};
use crate::exchange::{Arrival, Entry, Told};
use crate::http::{ByteStream, Protocol};
use crate::l4;
use crate::rewound::Rewound;
use crate::state::{Loaded, OfCore};
use crate::worker::Worker;

/// Why an HBONE connection ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HboneError {
    /// There is no certificate to answer with.
    #[error("this gateway has no certificate")]
    NoCertificate,
    /// Too many handshakes run on this core.
    #[error("too many handshakes")]
    Overload,
    /// The peer did not prove itself.
    #[error("peer was not accepted")]
    Accept(#[source] AcceptError),
    /// The connection broke.
    #[error("connection broke")]
    Connection(#[source] ConnectionError),
}

impl HboneError {
    /// What it is counted as.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::NoCertificate => Cause::Certificate,
            Self::Overload => Cause::Overload,
            Self::Accept(AcceptError::TimedOut) => Cause::TimedOut,
            Self::Accept(_) => Cause::Tls,
            Self::Connection(_) => Cause::Broken,
        }
    }
}

/// Serves the CONNECT streams of one connection until it ends.
pub(super) async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    remote: SocketAddr,
    drain: CancellationToken,
) -> Result<(), HboneError> {
    let credential = worker.shared.credential.current().ok_or(HboneError::NoCertificate)?;
    let handshake = worker.admit_handshake().ok_or(HboneError::Overload)?;
    let limits = tunnel::hbone::Limits::default();
    let accepting = server::accept(stream, remote, &credential, &limits);
    let mut connection = Box::pin(accepting).await.map_err(HboneError::Accept)?;
    drop(handshake);
    let peer = worker.known(connection.peer());
    let mut drained = false;
    loop {
        let connect = tokio::select! {
            next = connection.next() => next.map_err(HboneError::Connection)?,
            () = drain.cancelled(), if !drained => {
                drained = true;
                connection.drain();
                continue;
            }
        };
        let Some(connect) = connect else { return Ok(()) };
        let (worker, peer, drain) = (Rc::clone(&worker), Arc::clone(&peer), drain.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(worker, connect, peer, drain).await {
                tracing::debug!(%error, "CONNECT stream ended before it was answered");
            }
        });
    }
}

/// Why a CONNECT is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum NotOurs {
    /// The authority cannot be read.
    #[error("authority is malformed")]
    Malformed,
    /// It is meant for another pod that had this address.
    #[error("meant for another pod")]
    OtherPod,
    /// It is nothing that this gateway is the waypoint of.
    #[error("not what this gateway is the waypoint of")]
    Foreign(#[source] InboundRefusal),
    /// The request was here before.
    #[error("request has passed this gateway before")]
    Again,
}

impl NotOurs {
    /// The answer to the CONNECT, and a word for our own tunnels.
    fn answer(&self) -> (StatusCode, Option<&'static str>) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, None),
            Self::OtherPod => (StatusCode::SERVICE_UNAVAILABLE, Some(REFUSED_UID)),
            Self::Foreign(refusal) => {
                let status = StatusCode::from_u16(refusal.status());
                (status.unwrap_or(StatusCode::BAD_REQUEST), None)
            }
            Self::Again => (StatusCode::LOOP_DETECTED, None),
        }
    }
}

async fn answer(
    worker: Rc<Worker>,
    connect: Connect,
    peer: Arc<Peer>,
    drain: CancellationToken,
) -> io::Result<()> {
    let loaded = worker.load();
    let uid = connect.head().headers.get(POD_UID).map(http::HeaderValue::as_bytes);
    let visited = connect.head().headers.get(VISITED).and_then(|visited| visited.to_str().ok());
    let again = visited.is_some_and(|visited| has_passed(loaded.gateway.as_str(), visited));
    let visited: Option<Arc<str>> = visited.map(Arc::from);
    let entry = if meant_for_other(&loaded.own, uid) {
        Err(NotOurs::OtherPod)
    } else if again {
        Err(NotOurs::Again)
    } else {
        entry(&loaded, connect.authority(), &peer)
    };
    let (entry, local) = match entry {
        Ok(found) => found,
        Err(why) => {
            worker.shared.refused.note(Cause::Connect, &why, peer.address);
            let (status, word) = why.answer();
            connect.refuse(status, word);
            return Ok(());
        }
    };
    let (targets, spoken) = match &entry {
        Entry::Service(service, port) => {
            let spoken = service.port(*port).map(|port| port.app_protocol);
            (vec![targets::of_service(&service.key)], spoken.unwrap_or_default())
        }
        Entry::Workload(workload) => {
            let port = local.port();
            (targets::of_workload(workload, port).collect(), workload.app_protocol(port))
        }
        Entry::Port(_) => (Vec::new(), AppProtocol::Unknown),
    };
    let told = Told::new(&peer, None, &worker.shared.settings.identity);
    let arrival = Arrival { peer, local, entry, targets, visited, tls: None, told };
    let stream = connect.accept(HeaderMap::new())?;
    let taken = Taken { worker, loaded, arrival, drain };
    Box::pin(taken.carry(spoken, stream)).await
}

/// A CONNECT that was taken.
struct Taken {
    worker: Rc<Worker>,
    loaded: Rc<OfCore>,
    arrival: Arrival,
    drain: CancellationToken,
}

impl Taken {
    /// Hands the stream to HTTP or to `l4`, as its port says or its first bytes tell.
    async fn carry(self, spoken: AppProtocol, mut stream: impl ByteStream) -> io::Result<()> {
        match spoken {
            AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => {
                self.http(stream).await;
            }
            AppProtocol::Unknown if asks_http(&self.loaded, &self.arrival) => {
                self.http(stream).await;
            }
            AppProtocol::Unknown => {
                let (is_http, said) = sniff::is_http(&mut stream).await?;
                let stream = Rewound::new(said, stream);
                if is_http {
                    self.http(stream).await;
                } else {
                    self.raw(stream, None).await;
                }
            }
            AppProtocol::Tcp => self.raw(stream, None).await,
            AppProtocol::Tls => {
                let limit = self.worker.shared.settings.limits.handshake;
                let reading = hello::read(&mut stream, bytes::Bytes::new());
                let hello =
                    tokio::time::timeout(limit, reading).await?.map_err(io::Error::other)?;
                let stream = Rewound::new(hello.bytes, stream);
                self.raw(stream, hello.sni.as_deref()).await;
            }
        }
        Ok(())
    }

    async fn http(self, stream: impl ByteStream) {
        http(self.worker, stream, Protocol::Sniff, self.arrival, self.drain).await;
    }

    async fn raw(self, stream: impl ByteStream, sni: Option<&str>) {
        let rule = l4_rule(&self.loaded, &self.arrival, sni);
        l4::carry(&self.worker, &self.arrival, rule, stream, &self.drain).await;
    }
}

/// Tells whether routes or policies look at HTTP, so that bytes must not pass unread.
fn asks_http(loaded: &Loaded, arrival: &Arrival) -> bool {
    let serving = loaded.serving();
    let mut targets = loaded.targets().chain(&arrival.targets);
    let policies = targets.any(|target| serving.policies(target).any(|policy| policy.asks_http()));
    let routed = match &arrival.entry {
        Entry::Service(service, port) => {
            let rules = serving.service_rules(&service.key, *port, namespace(&arrival.peer));
            rules.ask_http()
        }
        Entry::Workload(_) | Entry::Port(_) => false,
    };
    policies || routed
}

/// The rule for a stream that is not HTTP; none sends it straight on.
fn l4_rule(
    loaded: &Loaded,
    arrival: &Arrival,
    sni: Option<&str>,
) -> Option<Arc<routing::route::Rule>> {
    let Entry::Service(service, port) = &arrival.entry else { return None };
    let serving = loaded.serving();
    let rules = serving.service_rules(&service.key, *port, namespace(&arrival.peer));
    rules.connection(sni).cloned()
}

fn namespace(peer: &Peer) -> Option<&str> {
    peer.identity.as_ref().map(policy::identity::Identity::namespace)
}

fn meant_for_other(own: &Workload, uid: Option<&[u8]>) -> bool {
    match (&own.pod_uid, uid) {
        (Some(own), Some(meant)) => own.as_bytes() != meant,
        _ => false,
    }
}

/// What `authority` stands for, if this gateway is its waypoint.
fn entry(loaded: &Loaded, authority: &str, peer: &Peer) -> Result<(Entry, SocketAddr), NotOurs> {
    let authority: Authority = authority.parse().map_err(|_| NotOurs::Malformed)?;
    let destined = destined(&loaded.own, peer, &authority, &loaded.snapshot.discovery);
    let destined = destined.map_err(NotOurs::Foreign)?;
    let entry = match destined.found {
        Found::Service(service) => Entry::Service(Arc::clone(service), authority.port()),
        Found::Workload(workload) => Entry::Workload(Arc::clone(workload)),
    };
    Ok((entry, destined.at))
}
