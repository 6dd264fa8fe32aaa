// SPDX-License-Identifier: Apache-2.0

//! Plain connections to a pod, captured on 15006.
//!
//! Owns the steps: original destination, policy without an identity, the
//! application with the caller's address.
//!
//! Rule: ztunnel's `src/proxy/inbound_passthrough.rs`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use policy::peer::Peer;
use routing::discovery::{NetworkAddress, Workload};
use routing::l4::OWN_PORTS;
use routing::snapshot::Snapshot;
use tokio::net::TcpStream;

use super::Core;
use super::carry::Side;
use super::inbound::service_guess;
use super::session::{Record, Watched};
use crate::inpod::pods::Pod;
use crate::inpod::proof::Way;
use crate::metrics::{Flag, Reporter, Traffic};
use crate::sys;

/// Why a plain connection was closed before a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum EarlyError {
    /// It was not captured, or goes to a port of the tunnel.
    #[error("port {0} is the tunnel's own")]
    OwnPort(u16),
    /// The kernel does not know where it was going.
    #[error("original destination is not known")]
    NotCaptured(#[source] std::io::Error),
    /// The controller has not told who the pod is.
    #[error("failed to fetch information about local workload")]
    UnknownPod,
}

pub(super) async fn serve(core: &Rc<Core>, pod: &Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let mut stream = stream;
    let target = sys::original_destination(&stream, peer);
    let target = match target.map_err(EarlyError::NotCaptured) {
        Ok(target) if Way::Inbound.is_probe(target) => {
            if let Err(error) = core.prover.take(&mut stream, Way::Inbound, &pod.uid).await {
                tracing::debug!(%error, "probe of capture failed");
            }
            return;
        }
        Ok(target) if OWN_PORTS.contains(&target.port()) => {
            let why = EarlyError::OwnPort(target.port());
            return core.closed_early(Reporter::Destination, peer, target, &why);
        }
        Ok(target) => target,
        Err(why) => return core.closed_early(Reporter::Destination, peer, peer, &why),
    };
    let Some(local) = core.local(pod).await else {
        return core.closed_early(Reporter::Destination, peer, target, &EarlyError::UnknownPod);
    };
    let caller = Peer::plain(peer);
    let span = core.span(Reporter::Destination, None);
    let record = Record::new(traffic(core, &local, peer, target), peer, target).traced(span);
    if let Err(denied) = core.permit(&local, &caller, target).await {
        return core.failed(&record, Flag::Denied, &denied);
    }
    let source = core.source_for(peer, target);
    match core.dial(pod, target, source).await {
        Ok(application) => {
            let watched = Watched { local: &local, peer: &caller, target };
            let sides = (Side::Tcp(stream), Side::Tcp(application));
            core.carry(pod, record, sides, Some(watched)).await;
        }
        Err(error) => core.failed(&record, Flag::Connect, &error),
    }
}

fn traffic(core: &Core, local: &Arc<Workload>, peer: SocketAddr, target: SocketAddr) -> Traffic {
    let snapshot = core.shared.snapshot();
    Traffic {
        reporter: Reporter::Destination,
        source: workload_at(&snapshot, local, peer),
        source_identity: None,
        destination: Some(Arc::clone(local)),
        destination_identity: None,
        service: service_guess(&snapshot, local, None, target.port()),
    }
}

/// The workload at `address` in the network of `local`.
pub(super) fn workload_at(
    snapshot: &Snapshot,
    local: &Workload,
    address: SocketAddr,
) -> Option<Arc<Workload>> {
    let address = NetworkAddress::new(Arc::clone(&local.network), address.ip());
    snapshot.discovery.workload_at(&address).cloned()
}

impl Core {
    /// The address to show the application: the caller's, unless it is the
    /// application's own or addresses are not kept.
    pub(super) fn source_for(&self, peer: SocketAddr, target: SocketAddr) -> Option<SocketAddr> {
        let keep = self.settings.keep_source
            && peer.ip() != target.ip()
            && peer.is_ipv4() == target.is_ipv4()
            && !target.ip().is_loopback();
        keep.then(|| SocketAddr::new(peer.ip(), 0))
    }
}
