// SPDX-License-Identifier: Apache-2.0

//! Whether a CONNECT that came to a pod is for that pod, and where it ends there.
//!
//! Owns the check of the authority. Leaves the certificate, the policy and the
//! dialling to the tunnel.
//!
//! Keeps: traffic never leaves the pod it came to.
//!
//! Start at [`arrive`]; a waypoint that takes HBONE itself asks [`destined`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use policy::identity::Identity;
use policy::peer::Peer;

use super::{Authority, OWN_PORTS};
use crate::discovery::{
    ApplicationTunnel, Discovery, Found, NetworkAddress, Service, ServiceKey, Workload,
};

/// Where an admitted CONNECT ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// Address of the pod itself, and port of the application.
    pub upstream: SocketAddr,
    /// The service that was asked for, if one was.
    pub service: Option<Arc<Service>>,
    /// How the application takes the stream, if in a special way.
    pub application: Option<ApplicationTunnel>,
}

/// Why a CONNECT does not end here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InboundRefusal {
    /// The authority names an address that is not the pod's and not behind it.
    #[error("{0} is not served by this workload")]
    NotHere(Authority),
    /// The service is not known, or the pod is no endpoint of it on that port.
    #[error("{0} has no port at this workload")]
    NoPort(Authority),
    /// The port is the tunnel's own.
    #[error("port {0} is the tunnel's own")]
    OwnPort(u16),
}

impl InboundRefusal {
    /// Status of the answer to the CONNECT (ztunnel's `src/proxy/inbound.rs`).
    pub fn status(&self) -> u16 {
        match self {
            Self::NotHere(_) => 400,
            Self::NoPort(_) | Self::OwnPort(_) => 503,
        }
    }
}

/// Says where a CONNECT for `authority` ends at the pod `local`, whose address
/// and port the TCP connection was made to is `connected`.
///
/// # Errors
///
/// See [`InboundRefusal`].
///
/// # Rule
///
/// Steps 3 to 5 of `build_inbound_request` in Istio's ztunnel, `src/proxy/inbound.rs`.
pub fn arrive(
    local: &Workload,
    connected: SocketAddr,
    authority: &Authority,
    discovery: &Discovery,
) -> Result<Arrival, InboundRefusal> {
    let service = service_of(local, connected, authority, discovery)?;
    let tunnelled = local.application_tunnel.and_then(|tunnel| tunnel.port);
    let port = match (&service, tunnelled) {
        (_, Some(port)) => port,
        (Some(service), None) => local
            .target_port(&service.key, authority.port())
            .ok_or_else(|| InboundRefusal::NoPort(authority.clone()))?,
        (None, None) => authority.port(),
    };
    if OWN_PORTS.contains(&port) {
        return Err(InboundRefusal::OwnPort(port));
    }
    let upstream = SocketAddr::new(connected.ip(), port);
    Ok(Arrival { upstream, service, application: local.application_tunnel })
}

/// The service that `authority` names, or none if it names the pod.
fn service_of(
    local: &Workload,
    connected: SocketAddr,
    authority: &Authority,
    discovery: &Discovery,
) -> Result<Option<Arc<Service>>, InboundRefusal> {
    let ip = match authority {
        Authority::Name(name, _) => {
            return own_service(local, name, discovery)
                .map(Some)
                .ok_or_else(|| InboundRefusal::NoPort(authority.clone()));
        }
        Authority::Address(address) => address.ip(),
    };
    if ip == connected.ip() || local.addresses.contains(&ip) {
        return Ok(None);
    }
    let address = NetworkAddress::new(Arc::clone(&local.network), ip);
    let found = discovery.service_at(&address, &local.namespace);
    if local.application_tunnel.is_some() {
        return Ok(found.cloned());
    }
    match behind(local, &address, discovery) {
        Some(Found::Service(service)) => Ok(Some(Arc::clone(service))),
        Some(Found::Workload(_)) => Ok(None),
        None => Err(InboundRefusal::NotHere(authority.clone())),
    }
}

/// The service of this name that `local` is an endpoint of; its own namespace first.
fn own_service(local: &Workload, name: &str, discovery: &Discovery) -> Option<Arc<Service>> {
    let own = ServiceKey::new(local.namespace.clone(), name);
    let named = discovery.services_named(name).iter();
    let mut serving = named.filter(|service| local.services.contains_key(&service.key));
    if local.services.contains_key(&own) {
        return discovery.service(&own).cloned();
    }
    serving.next().cloned()
}

/// What `address` stands for, if `local` is the waypoint in front of it.
fn behind<'a>(
    local: &Workload,
    address: &NetworkAddress,
    discovery: &'a Discovery,
) -> Option<Found<'a>> {
    let service = discovery.service_at(address, &local.namespace);
    if let Some(service) = service.filter(|service| fronts_service(local, service, discovery)) {
        return Some(Found::Service(service));
    }
    let workload = discovery.workload_at(address)?;
    let waypoint = workload.waypoint.as_ref()?;
    discovery.is_gateway(waypoint, local).then_some(Found::Workload(workload))
}

fn fronts_service(local: &Workload, service: &Service, discovery: &Discovery) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|weighted| &weighted.destination);
    let mut waypoints = weighted.chain(&service.waypoint);
    waypoints.any(|waypoint| discovery.is_gateway(waypoint, local))
}

/// What a CONNECT to a waypoint is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destined<'a> {
    /// The service or workload that was asked for.
    pub found: Found<'a>,
    /// The address and port that were asked for; a name stands for its first address.
    pub at: SocketAddr,
}

/// What the CONNECT of `peer` to the waypoint `local` is for: a service or
/// workload that declared it.
///
/// # Errors
///
/// [`InboundRefusal::NotHere`] if the authority stands for nothing, or for
/// something that did not declare this waypoint; [`InboundRefusal::NoPort`] for
/// a service without such a port.
pub fn destined<'a>(
    local: &Workload,
    peer: &Peer,
    authority: &Authority,
    discovery: &'a Discovery,
) -> Result<Destined<'a>, InboundRefusal> {
    let namespace = peer.identity.as_ref().map(Identity::to_namespace);
    let caller = namespace.as_ref().unwrap_or(&local.namespace);
    let not_here = || InboundRefusal::NotHere(authority.clone());
    let ip = authority.ip().map(|ip| ip.to_canonical());
    let address = ip.map(|ip| NetworkAddress::new(Arc::clone(&local.network), ip));
    let service = match (authority, &address) {
        (Authority::Name(name, _), _) => discovery.service_named(name, caller),
        (Authority::Address(_), Some(address)) => discovery.service_at(address, caller),
        (Authority::Address(_), None) => None,
    };
    let port = authority.port();
    let at = |ip| SocketAddr::new(ip, port);
    if let Some(service) = service {
        if !fronts_service(local, service, discovery) {
            return Err(not_here());
        }
        if service.port(port).is_none() {
            return Err(InboundRefusal::NoPort(authority.clone()));
        }
        let first = || service.addresses.first().map(|vip| vip.range.addr());
        let ip = ip.or_else(first).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        return Ok(Destined { found: Found::Service(service), at: at(ip) });
    }
    let (ip, address) = ip.zip(address).ok_or_else(not_here)?;
    match behind(local, &address, discovery) {
        Some(found @ Found::Workload(_)) => Ok(Destined { found, at: at(ip) }),
        Some(Found::Service(_)) | None => Err(not_here()),
    }
}

#[cfg(test)]
mod tests;
