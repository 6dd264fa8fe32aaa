// SPDX-License-Identifier: Apache-2.0

//! Which way a connection goes.
//!
//! Owns the decision of the outbound side, and in [`inbound`] that of the
//! inbound side. Leaves the choice among endpoints to [`crate::balance`], and
//! dialling to the tunnel.
//!
//! Keeps: a waypoint that is declared is never walked around; a service that
//! cannot be reached is refused, not passed through.
//!
//! Start at [`resolve`].

mod authority;
pub mod inbound;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use policy::identity::Identity;

pub use self::authority::{Authority, InvalidAuthority};
use crate::balance::{self, Candidate, Candidates, Rolls, Want};
use crate::discovery::{
    Discovery, Found, GatewayAddress, LoadBalancingMode, NetworkAddress, Service, ServiceKey,
    TunnelProtocol, Workload,
};
use crate::gateway::GatewayKind;

/// Ports of the tunnel itself in every pod: outbound, inbound, HBONE.
pub const OWN_PORTS: [u16; 3] = [15001, 15006, 15008];

/// Most endpoints that one connection tries.
pub const MOST_HOPS: usize = 8;

/// The way of one connection: what to try, in this order, until one took it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Way {
    /// The service that was addressed, if one was.
    pub service: Option<Arc<Service>>,
    /// What to try; never empty.
    pub hops: Vec<Hop>,
}

/// One thing to try.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hop {
    /// Plain TCP to an endpoint outside the mesh.
    Direct {
        /// Where.
        to: Dial,
        /// The endpoint.
        endpoint: Arc<Workload>,
    },
    /// HBONE to an endpoint in the mesh.
    Tunnel(Tunnel),
    /// HBONE to a waypoint, which goes on from there.
    Waypoint(Tunnel),
    /// Plain TCP to the very address that was asked for; nothing is known of it.
    Passthrough(SocketAddr),
}

/// A CONNECT to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// Where HBONE is spoken.
    pub to: Dial,
    /// Who speaks it there: the endpoint or the waypoint.
    pub endpoint: Arc<Workload>,
    /// What the CONNECT asks for.
    pub authority: Authority,
    /// Whom the other side must prove to be.
    pub expected: Expected,
}

/// Where to dial.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Dial {
    /// An address.
    Address(SocketAddr),
    /// A name to resolve first, and a port.
    Name(Arc<str>, u16),
}

/// Whom the other side must prove to be: any one of these.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Expected {
    /// Identity of the workload.
    pub identity: Identity,
    /// URI names that the service admits besides.
    pub alternatives: Arc<[Arc<str>]>,
}

impl Expected {
    fn of(workload: &Workload, service: Option<&Service>) -> Self {
        let alternatives = service.map(|service| Arc::clone(&service.subject_alt_names));
        Self { identity: workload.identity.clone(), alternatives: alternatives.unwrap_or_default() }
    }

    /// Tells whether `proven` will do.
    pub fn admits(&self, proven: &Identity) -> bool {
        *proven == self.identity || self.alternatives.iter().any(|name| **name == *proven.as_str())
    }
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A port of the tunnel at a loopback or own address.
    #[error("port {0} is the tunnel's own")]
    OwnPort(u16),
    /// The service has no such port.
    #[error("service {service} has no port {port}")]
    NoPort {
        /// The service.
        service: ServiceKey,
        /// The port that was asked for.
        port: u16,
    },
    /// No endpoint of the service may be chosen.
    #[error("service {0} has no healthy endpoint")]
    NoEndpoint(ServiceKey),
    /// The waypoint that is declared is not known.
    #[error("waypoint {0} is unknown")]
    WaypointUnknown(GatewayAddress),
    /// The waypoint that is declared has no endpoint to take traffic.
    #[error("waypoint {0} has no healthy endpoint")]
    WaypointAbsent(GatewayAddress),
    /// Weighted waypoints are declared and all weights are zero.
    #[error("no waypoint of service {0} has a weight")]
    WaypointWeights(ServiceKey),
    /// The workload has no address that can be dialled.
    #[error("workload {0} has no address")]
    NoAddress(Arc<str>),
}

/// Says which way a connection from the pod `source` to `target` goes.
///
/// `roll` is the chance of this connection; the same roll gives the same way.
///
/// # Errors
///
/// See [`Refusal`]; the connection must be closed, never passed through.
///
/// # Rule
///
/// Decision table of Istio's ztunnel, `src/state.rs`, on one network.
/// Two departures: a waypoint that is declared and absent refuses, and further
/// endpoints are named to be tried while nothing was sent.
pub fn resolve(
    source: &Workload,
    target: SocketAddr,
    discovery: &Discovery,
    roll: u64,
) -> Result<Way, Refusal> {
    let own = target.ip().is_loopback() || source.addresses.contains(&target.ip());
    if own && OWN_PORTS.contains(&target.port()) {
        return Err(Refusal::OwnPort(target.port()));
    }
    let ask = Ask { source, target, discovery };
    let mut rolls = Rolls::new(roll);
    let address = NetworkAddress::new(Arc::clone(&source.network), target.ip());
    if let Some(service) = discovery.service_at(&address, &source.namespace) {
        let hops = ask.to_service(service, &mut rolls)?;
        return Ok(Way { service: Some(Arc::clone(service)), hops });
    }
    let hops = match discovery.workload_at(&address) {
        Some(workload) => ask.to_workload(workload, &mut rolls)?,
        None => vec![Hop::Passthrough(target)],
    };
    Ok(Way { service: None, hops })
}

/// One question, while it is answered.
struct Ask<'a> {
    source: &'a Workload,
    target: SocketAddr,
    discovery: &'a Discovery,
}

impl Ask<'_> {
    fn to_service(&self, service: &Arc<Service>, rolls: &mut Rolls) -> Result<Vec<Hop>, Refusal> {
        if let Some(waypoints) = self.waypoints_of(service, rolls)? {
            return self.to_waypoints(&waypoints, rolls);
        }
        let mode = service.load_balancing.as_ref().map(|balancing| balancing.mode);
        if mode == Some(LoadBalancingMode::Passthrough) {
            return Ok(vec![Hop::Passthrough(self.target)]);
        }
        let port = self.target.port();
        if service.port(port).is_none() {
            return Err(Refusal::NoPort { service: service.key.clone(), port });
        }
        let endpoints = self.discovery.endpoints(&service.key);
        let candidates = Candidates::of(self.source, service, endpoints, Want::Port(port));
        let order = match self.source.addresses.first() {
            Some(client) if service.client_affinity => candidates.order_for(*client, MOST_HOPS),
            _ => candidates.order(rolls, MOST_HOPS),
        };
        let hops = order.into_iter().filter_map(|candidate| {
            self.to_endpoint(&candidate.workload, Some(service), candidate.port)
        });
        let hops: Vec<Hop> = hops.collect();
        if hops.is_empty() { Err(Refusal::NoEndpoint(service.key.clone())) } else { Ok(hops) }
    }

    fn to_workload(
        &self,
        workload: &Arc<Workload>,
        rolls: &mut Rolls,
    ) -> Result<Vec<Hop>, Refusal> {
        if let Some(waypoint) = &workload.waypoint
            && !self.discovery.is_gateway(waypoint, self.source)
        {
            return self.to_waypoints(std::slice::from_ref(waypoint), rolls);
        }
        let hop = self.to_endpoint(workload, None, self.target.port());
        Ok(vec![hop.ok_or_else(|| Refusal::NoAddress(Arc::clone(&workload.uid)))?])
    }

    /// Waypoints that traffic to `service` must enter, in the order to try them.
    fn waypoints_of(
        &self,
        service: &Service,
        rolls: &mut Rolls,
    ) -> Result<Option<Vec<GatewayAddress>>, Refusal> {
        let mut left: Vec<_> =
            service.weighted_waypoints.iter().filter(|weighted| weighted.weight > 0).collect();
        let mut ordered = Vec::new();
        while !left.is_empty() {
            let total = left.iter().map(|weighted| u64::from(weighted.weight)).sum();
            let mut point = rolls.below(total);
            let chosen = left.iter().position(|weighted| {
                let weight = u64::from(weighted.weight);
                let hit = point < weight;
                point = point.saturating_sub(weight);
                hit
            });
            ordered.push(left.swap_remove(chosen.unwrap_or_default()).destination.clone());
        }
        if service.weighted_waypoints.is_empty() {
            ordered.extend(service.waypoint.clone());
        } else if ordered.is_empty() {
            return Err(Refusal::WaypointWeights(service.key.clone()));
        }
        // The waypoint itself goes on to the service, or it would never arrive.
        let itself = ordered.iter().any(|one| self.discovery.is_gateway(one, self.source));
        Ok((!ordered.is_empty() && !itself).then_some(ordered))
    }

    fn to_waypoints(
        &self,
        waypoints: &[GatewayAddress],
        rolls: &mut Rolls,
    ) -> Result<Vec<Hop>, Refusal> {
        let mut hops = Vec::new();
        let mut first_refusal = None;
        for waypoint in waypoints {
            match self.to_waypoint(waypoint, rolls) {
                Ok(found) => hops.extend(found),
                Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
            }
        }
        match first_refusal {
            Some(refusal) if hops.is_empty() => Err(refusal),
            _ => {
                hops.truncate(MOST_HOPS);
                Ok(hops)
            }
        }
    }

    fn to_waypoint(
        &self,
        waypoint: &GatewayAddress,
        rolls: &mut Rolls,
    ) -> Result<Vec<Hop>, Refusal> {
        let absent = || Refusal::WaypointAbsent(waypoint.clone());
        let port = waypoint.hbone_port;
        match self.discovery.gateway(waypoint, &self.source.namespace) {
            None => Err(Refusal::WaypointUnknown(waypoint.clone())),
            Some(Found::Workload(workload)) => {
                Ok(vec![self.waypoint_hop(workload, None, port).ok_or_else(absent)?])
            }
            Some(Found::Service(service)) => {
                let endpoints = self.discovery.endpoints(&service.key);
                let candidates =
                    Candidates::of(self.source, service, endpoints, Want::Waypoint(port));
                let order = candidates.order(rolls, MOST_HOPS);
                let hop = |candidate: &Candidate| {
                    self.waypoint_hop(&candidate.workload, Some(service), candidate.port)
                };
                let hops: Vec<Hop> = order.into_iter().filter_map(hop).collect();
                if hops.is_empty() { Err(absent()) } else { Ok(hops) }
            }
        }
    }

    fn waypoint_hop(
        &self,
        workload: &Arc<Workload>,
        service: Option<&Service>,
        port: u16,
    ) -> Option<Hop> {
        Some(Hop::Waypoint(Tunnel {
            to: self.dial(workload, service, port)?,
            endpoint: Arc::clone(workload),
            authority: Authority::Address(self.target),
            expected: Expected::of(workload, service),
        }))
    }

    fn to_endpoint(
        &self,
        workload: &Arc<Workload>,
        service: Option<&Service>,
        port: u16,
    ) -> Option<Hop> {
        hop_to_endpoint(workload, service, port, self.target.ip())
    }

    fn dial(&self, workload: &Workload, service: Option<&Service>, port: u16) -> Option<Dial> {
        dial(workload, service, port, self.target.ip())
    }
}

/// Tells whether the gateway or waypoint `own` must enter the waypoint of
/// `service`, for what it sends to its virtual address.
///
/// A waypoint never enters itself, and an ingress leaves out waypoints of
/// services that do not want it. A service without a virtual address is
/// reached directly.
pub fn enters_waypoint(
    own: &Workload,
    kind: GatewayKind,
    service: &Service,
    discovery: &Discovery,
) -> bool {
    let left_out = kind == GatewayKind::Ingress && !service.ingress_use_waypoint;
    let weighted = service.weighted_waypoints.iter().map(|weighted| &weighted.destination);
    let mut all = service.waypoint.iter().chain(weighted);
    let itself = all.any(|waypoint| discovery.is_gateway(waypoint, own));
    service.has_waypoint() && !service.addresses.is_empty() && !left_out && !itself
}

/// The way from the gateway or waypoint `own` to `port` of `service` through the
/// service's waypoint; see [`enters_waypoint`].
///
/// # Errors
///
/// See [`Refusal`]; [`Refusal::NoEndpoint`] too if the service's address has
/// come to mean another one.
pub fn through_waypoint(
    own: &Workload,
    service: &Service,
    port: u16,
    discovery: &Discovery,
    roll: u64,
) -> Result<Way, Refusal> {
    let none = || Refusal::NoEndpoint(service.key.clone());
    let vip = service.addresses.first().ok_or_else(none)?.range.addr();
    let way = resolve(own, SocketAddr::new(vip, port), discovery, roll)?;
    let same = way.service.as_ref().is_some_and(|found| found.key == service.key);
    if same { Ok(way) } else { Err(none()) }
}

/// The hop to one endpoint, on `port` of the workload: HBONE if it is in the
/// mesh, else plain. `target` is the address that was asked for; its family is
/// kept where the endpoint has it. None: the workload cannot be dialled.
pub fn hop_to_endpoint(
    workload: &Arc<Workload>,
    service: Option<&Service>,
    port: u16,
    target: IpAddr,
) -> Option<Hop> {
    match workload.tunnel {
        TunnelProtocol::None => Some(Hop::Direct {
            to: dial(workload, service, port, target)?,
            endpoint: Arc::clone(workload),
        }),
        TunnelProtocol::Hbone => {
            let to = dial(workload, service, crate::discovery::HBONE_PORT, target)?;
            let authority = match &to {
                Dial::Address(to) => Authority::Address(SocketAddr::new(to.ip(), port)),
                Dial::Name(name, _) => Authority::Name(Arc::clone(name), port),
            };
            Some(Hop::Tunnel(Tunnel {
                to,
                endpoint: Arc::clone(workload),
                authority,
                expected: Expected::of(workload, service),
            }))
        }
    }
}

fn dial(workload: &Workload, service: Option<&Service>, port: u16, target: IpAddr) -> Option<Dial> {
    match balance::address(workload, service, target) {
        Some(ip) => Some(Dial::Address(SocketAddr::new(ip, port))),
        None => workload.hostname.clone().map(|name| Dial::Name(name, port)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
