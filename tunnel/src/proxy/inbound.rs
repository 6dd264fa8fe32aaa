// SPDX-License-Identifier: Apache-2.0

//! HBONE connections to a pod, on 15008.
//!
//! Owns the checks of each CONNECT, in their order. Leaves TLS and HTTP/2 to
//! [`crate::hbone::server`] and where a CONNECT ends to `routing::l4::inbound`.
//!
//! Rule: ztunnel's `src/proxy/inbound.rs`.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use policy::authz::Denied;
use policy::peer::Peer;
use routing::discovery::{ApplicationProtocol, Service, Workload};
use routing::l4::inbound::{Arrival, InboundRefusal, arrive};
use routing::l4::{Authority, InvalidAuthority};
use routing::snapshot::Snapshot;
use tokio::net::TcpStream;

use super::Core;
use super::carry::{Side, write_first};
use super::passthrough::{EarlyError, workload_at};
use super::session::{Record, Watched};
use super::{application, headers};
use crate::credentials::Held;
use crate::credentials::revocation::is_revoked;
use crate::hbone::server::{self, AcceptError, Connect, Connection, ConnectionError};
use crate::hbone::{BAGGAGE, FORWARDED, POD_UID, REFUSED_UID};
use crate::inpod::pods::Pod;
use crate::metrics::{Cause, Flag, Reporter, Traffic};
use crate::share::Turn;
use crate::sys;

/// Why a CONNECT was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("authority cannot be read")]
    Authority(#[source] InvalidAuthority),
    #[error("failed to fetch information about local workload")]
    UnknownPod,
    #[error("meant for another pod of this address")]
    OtherPod,
    #[error(transparent)]
    Place(InboundRefusal),
    #[error(transparent)]
    Denied(Denied),
    #[error("application cannot be reached")]
    Dial(#[source] io::Error),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Authority(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            Self::Place(refusal) => {
                StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST)
            }
            Self::UnknownPod | Self::OtherPod | Self::Dial(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn cause(&self) -> Cause {
        match self {
            Self::Authority(_) => Cause::Malformed,
            Self::UnknownPod => Cause::UnknownPod,
            Self::OtherPod => Cause::OtherPod,
            Self::Place(_) => Cause::Foreign,
            Self::Denied(_) => Cause::Denied,
            Self::Dial(_) => Cause::Unreachable,
        }
    }

    fn word(&self) -> Option<&'static str> {
        matches!(self, Self::OtherPod).then_some(REFUSED_UID)
    }

    fn flag(&self) -> Flag {
        match self {
            Self::Denied(_) => Flag::Denied,
            Self::Dial(_) => Flag::Connect,
            Self::Authority(_) | Self::UnknownPod | Self::OtherPod | Self::Place(_) => Flag::None,
        }
    }
}

pub(super) async fn serve(core: &Rc<Core>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let Some(turn) = pod.share.handshake() else {
        core.metrics.process().refused.count(Cause::Overload);
        return;
    };
    let Ok(connected) = stream.local_addr().map(sys::canonical) else { return };
    let refuse = |cause, why: &dyn std::error::Error| core.refused(cause, (peer, connected), why);
    let Some(held) = own_credential(core, pod).await else {
        return refuse(Cause::UnknownPod, &EarlyError::UnknownPod);
    };
    let limits = &core.settings.limits;
    let credential = match held.wait(limits.patience).await {
        Ok(credential) => credential,
        Err(why) => return refuse(Cause::Certificate, &why),
    };
    let accepted = Box::pin(server::accept(stream, peer, &credential, &limits.hbone)).await;
    match accepted {
        Ok(connection) => {
            drop(turn);
            Box::pin(take_all(core, pod, connection, connected)).await;
        }
        Err(why) => refuse(cause_of(&why), &why),
    }
}

fn cause_of(error: &AcceptError) -> Cause {
    match error {
        AcceptError::Tls(error) if is_revoked(error) => Cause::Revoked,
        AcceptError::Tls(_) | AcceptError::Certificate(_) => Cause::Tls,
        AcceptError::Http2(_) => Cause::Http2,
        AcceptError::TimedOut => Cause::TimedOut,
    }
}

/// What the peer did wrong, if it did: a connection that just broke is nobody's fault.
fn fault_of(error: &ConnectionError) -> Option<Cause> {
    match error {
        ConnectionError::Http2(error) => (!error.is_io()).then_some(Cause::Http2),
        ConnectionError::Silent(_) => Some(Cause::Silent),
        ConnectionError::Revoked(_) => Some(Cause::Revoked),
    }
}

async fn own_credential(core: &Core, pod: &Pod) -> Option<Held> {
    let local = core.local(pod).await?;
    Some(pod.credential(&local.identity))
}

/// Takes CONNECT requests until the connection has ended.
async fn take_all(
    core: &Rc<Core>,
    pod: &Arc<Pod>,
    mut connection: Connection<TcpStream>,
    connected: SocketAddr,
) {
    let peer = Arc::clone(connection.peer());
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = connection.next() => next,
            () = pod.stopping(), if !draining => {
                draining = true;
                connection.drain();
                continue;
            }
            () = pod.cut(), if draining => return,
        };
        match next {
            Ok(Some(connect)) => match pod.share.session() {
                Some(turn) => {
                    let (core_, pod, peer) = (Rc::clone(core), Arc::clone(pod), Arc::clone(&peer));
                    core.spawn(async move {
                        Box::pin(session(&core_, &pod, &peer, connected, (connect, turn))).await;
                    });
                }
                None => {
                    core.metrics.process().refused.count(Cause::Overload);
                    connect.refuse(StatusCode::SERVICE_UNAVAILABLE, None);
                }
            },
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, peer = %peer.address, "HBONE connection has failed");
                if let Some(cause) = fault_of(&error) {
                    core.refused(cause, (peer.address, connected), &error);
                }
                return;
            }
        }
    }
}

/// What a CONNECT is for, once it may be.
struct Admitted {
    local: Arc<Workload>,
    arrival: Arrival,
    application: TcpStream,
}

async fn session(
    core: &Rc<Core>,
    pod: &Pod,
    peer: &Arc<Peer>,
    connected: SocketAddr,
    (connect, _turn): (Connect, Turn),
) {
    let text = connect.authority().to_owned();
    let span = core.span(Reporter::Destination, Some(&connect.head().headers));
    let mut record = Record::new(unknown_traffic(peer), peer.address, connected).traced(span);
    record.authority = Some(text.clone());
    let admitted = match admit(core, pod, peer, (connected, &text, &connect), &mut record).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            core.refused_connect(&record, (refused.cause(), refused.flag()), &refused);
            return connect.refuse(refused.status(), refused.word());
        }
    };
    let mut answer = HeaderMap::new();
    if let Some(baggage) = headers::baggage(&admitted.local) {
        answer.insert(BAGGAGE, baggage);
    }
    let stream = match connect.accept(answer) {
        Ok(stream) => stream,
        Err(error) => return core.failed(&record, Flag::None, &error),
    };
    let target = admitted.arrival.upstream;
    let watched = Watched { local: &admitted.local, peer, target };
    let sides = (Side::Hbone(stream), Side::Tcp(admitted.application));
    core.carry(pod, record, sides, Some(watched)).await;
}

/// Checks a CONNECT in the order of the protocol, and reaches the application.
async fn admit(
    core: &Rc<Core>,
    pod: &Pod,
    peer: &Peer,
    (connected, text, connect): (SocketAddr, &str, &Connect),
    record: &mut Record,
) -> Result<Admitted, Refused> {
    let authority: Authority = text.parse().map_err(Refused::Authority)?;
    let local = core.local(pod).await.ok_or(Refused::UnknownPod)?;
    let wanted = connect.head().headers.get(POD_UID);
    if wanted.is_some_and(|wanted| wanted.as_bytes() != pod.uid.as_bytes()) {
        return Err(Refused::OtherPod);
    }
    let arrival = {
        let snapshot = core.shared.snapshot();
        record.traffic.source = workload_at(&snapshot, &local, peer.address);
        record.traffic.destination = Some(Arc::clone(&local));
        record.traffic.destination_identity = Some(local.identity.clone());
        let arrival =
            arrive(&local, connected, &authority, &snapshot.discovery).map_err(Refused::Place)?;
        let host = forwarded_host(&connect.head().headers);
        let guess = || service_guess(&snapshot, &local, host, arrival.upstream.port());
        record.traffic.service = arrival.service.clone().or_else(guess);
        arrival
    };
    record.destination = Some(arrival.upstream);
    core.permit(&local, peer, arrival.upstream).await.map_err(Refused::Denied)?;
    let application =
        reach(core, pod, peer, (&arrival, &authority)).await.map_err(Refused::Dial)?;
    Ok(Admitted { local, arrival, application })
}

/// Connects to the application, as it wants to be connected to.
async fn reach(
    core: &Core,
    pod: &Pod,
    peer: &Peer,
    (arrival, authority): (&Arrival, &Authority),
) -> io::Result<TcpStream> {
    let protocol = arrival.application.map(|application| application.protocol);
    if protocol != Some(ApplicationProtocol::Proxy) {
        let source = core.source_for(peer.address, arrival.upstream);
        return core.dial(pod, arrival.upstream, source).await;
    }
    let loopback = match arrival.upstream {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let target = SocketAddr::new(loopback, arrival.upstream.port());
    let mut stream = core.dial(pod, target, None).await?;
    let asked = authority.ip().map(|ip| SocketAddr::new(ip, authority.port()));
    let head = application::proxy_head(peer, asked.unwrap_or(arrival.upstream));
    write_first(&mut stream, &head).await?;
    Ok(stream)
}

fn unknown_traffic(peer: &Peer) -> Traffic {
    Traffic {
        reporter: Reporter::Destination,
        source: None,
        source_identity: peer.identity.clone(),
        destination: None,
        destination_identity: None,
        service: None,
    }
}

/// The service that the client says it asked for.
fn forwarded_host(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    text.split(';').find_map(|part| part.trim().strip_prefix("host="))
}

/// The service that a session to `port` of `local` most likely is for, for
/// telemetry only: the one that the client names, else one with that port.
pub(super) fn service_guess(
    snapshot: &Snapshot,
    local: &Workload,
    host: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let named = host.and_then(|host| {
        let mut services = local.services.keys();
        services.find(|key| &*key.hostname == host)
    });
    let by_port = || {
        let mut services = local.services.iter();
        let found = services.find(|(_, ports)| {
            ports.iter().any(|one| one.target_port == port || one.service_port == port)
        });
        found.map(|(key, _)| key)
    };
    snapshot.discovery.service(named.or_else(by_port)?).cloned()
}
