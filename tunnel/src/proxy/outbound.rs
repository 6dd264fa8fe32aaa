// SPDX-License-Identifier: Apache-2.0

//! Connections that a pod opens, captured on 15001.
//!
//! Owns the steps: original destination, the way, trying its hops until one
//! takes the connection, carrying. Leaves the way to `routing::l4`.
//!
//! Keeps: a hop is left for the next one only while nothing was sent; traffic
//! for the mesh never goes out as plain bytes.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use rand::Rng as _;
use routing::discovery::{Service, Workload};
use routing::l4::{self, Dial, Hop, Refusal, Tunnel};
use tokio::net::TcpStream;

use super::Core;
use super::carry::Side;
use super::headers;
use super::passthrough::EarlyError;
use super::session::Record;
use super::span::SessionSpan;
use crate::credentials::CredentialError;
use crate::credentials::revocation::is_revoked;
use crate::hbone::client::{Ask, ConnectError};
use crate::hbone::pool::{Key, OpenError};
use crate::inpod::pods::Pod;
use crate::inpod::proof::Way;
use crate::metrics::{Flag, Reporter, Traffic};
use crate::sys::{self, SocketSettings};
use crate::trace::TRACEPARENT;

/// Why a hop did not take the connection.
#[derive(Debug, thiserror::Error)]
enum HopError {
    #[error("connection failed")]
    Dial(#[source] io::Error),
    #[error("name {0} cannot be resolved")]
    Resolve(Arc<str>, #[source] io::Error),
    #[error(transparent)]
    Open(OpenError),
    #[error("no certificate")]
    Credential(#[source] CredentialError),
    #[error("authority cannot be sent")]
    Authority(#[source] http::Error),
}

impl HopError {
    fn try_elsewhere(&self) -> bool {
        match self {
            Self::Open(error) => error.try_elsewhere(),
            Self::Dial(_) | Self::Resolve(..) => true,
            Self::Credential(_) | Self::Authority(_) => false,
        }
    }

    fn flag(&self) -> Flag {
        match self {
            Self::Credential(_) => Flag::Identity,
            Self::Open(OpenError::Connect(why)) => match **why {
                ConnectError::Tls(ref error) if is_revoked(error) => Flag::Revoked,
                ConnectError::Tls(_) => Flag::Tls,
                ConnectError::Http2(_) => Flag::Http2,
                ConnectError::Credential(_) => Flag::Identity,
                ConnectError::Dial(_) | ConnectError::TimedOut | ConnectError::Ended => {
                    Flag::Connect
                }
            },
            Self::Open(_) | Self::Dial(_) | Self::Resolve(..) | Self::Authority(_) => Flag::Connect,
        }
    }
}

/// The pod that opens, and the address that it asked for.
struct From<'a> {
    pod: &'a Pod,
    local: &'a Arc<Workload>,
    client: SocketAddr,
    service: Option<&'a Arc<Service>>,
    /// The span that what comes of it belongs to.
    trace: Option<HeaderValue>,
}

pub(super) async fn serve(core: &Rc<Core>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let mut stream = stream;
    let early = |target, why: EarlyError| core.closed_early(Reporter::Source, peer, target, &why);
    let target = match sys::original_destination(&stream, peer) {
        Ok(target) if Way::Outbound.is_probe(target) => {
            if let Err(error) = core.prover.take(&mut stream, Way::Outbound, &pod.uid).await {
                tracing::debug!(%error, "probe of capture failed");
            }
            return;
        }
        Ok(target) => target,
        Err(error) => return early(peer, EarlyError::NotCaptured(error)),
    };
    let Some(local) = core.local(pod).await else {
        return early(target, EarlyError::UnknownPod);
    };
    let span = core.span(Reporter::Source, None);
    let trace = span.as_ref().and_then(SessionSpan::header);
    let mut record = Record::new(traffic(&local), peer, target).traced(span);
    let way = {
        let snapshot = core.shared.snapshot();
        l4::resolve(&local, target, &snapshot.discovery, rand::rng().random())
    };
    let way = match way {
        Ok(way) => way,
        Err(refusal) => return core.failed(&record, flag_of(&refusal), &refusal),
    };
    record.traffic.service = way.service.clone();
    let service = way.service.as_ref();
    let from = From { pod, local: &local, client: peer, service, trace };
    match core.reach(&from, way.hops, &mut record).await {
        Ok(server) => core.carry(pod, record, (Side::Tcp(stream), server), None).await,
        Err(error) => core.failed(&record, error.flag(), &error),
    }
}

fn flag_of(refusal: &Refusal) -> Flag {
    if matches!(refusal, Refusal::OwnPort(_)) { Flag::None } else { Flag::Connect }
}

fn traffic(local: &Arc<Workload>) -> Traffic {
    Traffic {
        reporter: Reporter::Source,
        source: Some(Arc::clone(local)),
        source_identity: None,
        destination: None,
        destination_identity: None,
        service: None,
    }
}

impl Core {
    /// Tries the hops until one takes the connection; those that failed lately come last.
    async fn reach(
        &self,
        from: &From<'_>,
        hops: Vec<Hop>,
        record: &mut Record,
    ) -> Result<Side, HopError> {
        let mut hops = hops;
        if hops.len() > 1 {
            hops.sort_by_key(|hop| {
                endpoint(hop).is_some_and(|workload| self.is_out(&workload.uid))
            });
        }
        let mut last = HopError::Dial(io::ErrorKind::AddrNotAvailable.into());
        for hop in hops {
            let endpoint = endpoint(&hop).map(|workload| Arc::clone(&workload.uid));
            let result = self.try_hop(from, hop, record).await;
            if let Some(uid) = endpoint {
                let mut outliers = self.outliers.borrow_mut();
                match &result {
                    Ok(_) => outliers.succeeded(&uid),
                    Err(error) if error.try_elsewhere() => {
                        outliers.failed(uid, Instant::now());
                    }
                    Err(_) => {}
                }
            }
            match result {
                Err(error) if error.try_elsewhere() => {
                    tracing::debug!(%error, "endpoint did not take the connection");
                    last = error;
                }
                result => return result,
            }
        }
        Err(last)
    }

    async fn try_hop(
        &self,
        from: &From<'_>,
        hop: Hop,
        record: &mut Record,
    ) -> Result<Side, HopError> {
        record.traffic.source_identity = None;
        record.traffic.destination_identity = None;
        record.traffic.destination = endpoint(&hop).cloned();
        record.authority = None;
        match hop {
            Hop::Passthrough(target) => {
                record.destination = Some(target);
                self.dial(from.pod, target, None).await.map(Side::Tcp).map_err(HopError::Dial)
            }
            Hop::Direct { to, .. } => {
                let target = resolve(to).await?;
                record.destination = Some(target);
                self.dial(from.pod, target, None).await.map(Side::Tcp).map_err(HopError::Dial)
            }
            Hop::Tunnel(tunnel) => {
                let pod_uid = tunnel.endpoint.pod_uid.clone();
                self.tunnel(from, tunnel, pod_uid.as_deref(), record).await
            }
            Hop::Waypoint(tunnel) => self.tunnel(from, tunnel, None, record).await,
        }
    }

    async fn tunnel(
        &self,
        from: &From<'_>,
        tunnel: Tunnel,
        pod_uid: Option<&str>,
        record: &mut Record,
    ) -> Result<Side, HopError> {
        let address = resolve(tunnel.to).await?;
        record.destination = Some(address);
        record.authority = Some(tunnel.authority.to_string());
        let held = from.pod.credential(&from.local.identity);
        let credential =
            held.wait(self.settings.limits.patience).await.map_err(HopError::Credential)?;
        record.traffic.source_identity = Some(from.local.identity.clone());
        record.traffic.destination_identity = Some(tunnel.expected.identity.clone());
        let service = from.service.map(|service| &**service);
        let mut headers = headers::connect(from.local, from.client, service, pod_uid);
        if let Some(trace) = &from.trace {
            headers.insert(TRACEPARENT, trace.clone());
        }
        let ask = Ask::new(&tunnel.authority, headers).map_err(HopError::Authority)?;
        let key = Key {
            source: from.local.identity.clone(),
            epoch: credential.epoch(),
            source_pod: Arc::clone(&from.pod.uid),
            workload: Arc::clone(&tunnel.endpoint.uid),
            pod_uid: tunnel.endpoint.pod_uid.clone(),
            address,
            expected: tunnel.expected,
        };
        let dial = || self.dial_hbone(from.pod, address);
        let opened = self.pool.open(&key, &credential, &ask, dial).await;
        opened.map(|(stream, _)| Side::Hbone(stream)).map_err(HopError::Open)
    }

    /// A connection for HBONE from inside the pod; the pool outlives this call.
    fn dial_hbone(
        &self,
        pod: &Pod,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<TcpStream>> + 'static + use<> {
        let mark = self.settings.mark;
        let keepalive = self.settings.limits.keepalive;
        let settings = SocketSettings { mark, ..SocketSettings::default() };
        let socket = pod.netns.enter(|| sys::client_tcp(address, None, settings));
        async move {
            let stream = socket??.connect(address).await?;
            sys::tune_tcp(&stream, Some(keepalive))?;
            Ok(stream)
        }
    }
}

fn endpoint(hop: &Hop) -> Option<&Arc<Workload>> {
    match hop {
        Hop::Direct { endpoint, .. } => Some(endpoint),
        Hop::Tunnel(tunnel) | Hop::Waypoint(tunnel) => Some(&tunnel.endpoint),
        Hop::Passthrough(_) => None,
    }
}

/// The address to dial; a name is resolved by the node's resolver.
async fn resolve(to: Dial) -> Result<SocketAddr, HopError> {
    match to {
        Dial::Address(address) => Ok(address),
        Dial::Name(name, port) => {
            let found = tokio::net::lookup_host((&*name, port)).await;
            let first = found.and_then(|mut found| {
                found.next().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
            });
            first.map_err(|error| HopError::Resolve(name, error))
        }
    }
}
