// SPDX-License-Identifier: Apache-2.0

//! From a rule to a backend, and from a backend to one endpoint after another.
//!
//! Owns the order of endpoints to try and what is spoken to them. Weights are
//! routing's, connections are `dial`'s. Takes the permit by type: nothing is
//! chosen for a request that policy has not let in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::vec::IntoIter;

use policy::authz::Permit;
use routing::balance::Candidates;
use routing::discovery::{AppProtocol, Service, ServiceKey, Workload};
use routing::filter::Filter;
use routing::l4::{self, Hop};
use routing::route::BackendTarget;
use routing::split;

use super::Asked;
use super::match_route::Matched;
use crate::dial::{DialError, Target, Terms};
use crate::http::Protocol;
use crate::reply::Refusal;
use crate::state::Loaded;
use crate::tls::client::Client;
use crate::worker::Worker;

/// Where a request goes, before an endpoint is chosen.
#[derive(Clone, Debug)]
pub(crate) enum Backend<'a> {
    /// A port of a service.
    Service {
        /// The service.
        service: &'a Arc<Service>,
        /// Its port.
        port: u16,
        /// Filters for what goes there.
        filters: &'a [Filter],
    },
    /// A port of one workload.
    Workload {
        /// The workload.
        workload: &'a Arc<Workload>,
        /// The address that was asked for, and its port.
        at: SocketAddr,
    },
}

impl<'a> Backend<'a> {
    /// Filters for what goes there.
    pub(crate) fn filters(&self) -> &'a [Filter] {
        match self {
            Self::Service { filters, .. } => filters,
            Self::Workload { .. } => &[],
        }
    }

    /// Tells whether its clients keep their endpoint.
    pub(crate) fn keeps_clients(&self) -> bool {
        matches!(self, Self::Service { service, .. } if service.client_affinity)
    }

    fn app_protocol(&self) -> AppProtocol {
        match self {
            Self::Service { service, port, .. } => {
                service.port(*port).map_or(AppProtocol::Unknown, |port| port.app_protocol)
            }
            Self::Workload { workload, at } => workload.app_protocol(at.port()),
        }
    }

    /// What is spoken to it, for a request that came by HTTP/2 or is a gRPC call.
    pub(crate) fn protocol(&self, grpc: bool, upgrade: bool) -> Protocol {
        match self.app_protocol() {
            _ if upgrade => Protocol::Http1,
            AppProtocol::Http2 | AppProtocol::Grpc => Protocol::Http2,
            AppProtocol::Http11 => Protocol::Http1,
            AppProtocol::Unknown | AppProtocol::Tcp | AppProtocol::Tls => {
                if grpc {
                    Protocol::Http2
                } else {
                    Protocol::Http1
                }
            }
        }
    }
}

/// The backend of a request that was let in.
///
/// # Errors
///
/// [`Refusal::NoBackend`] or [`Refusal::UnknownService`].
pub(super) fn backend<'a>(
    asked: &Asked<'a>,
    _let_in: &Permit,
    matched: &Matched<'a>,
) -> Result<Backend<'a>, Refusal> {
    if let Some(rule) = matched.rule {
        let chosen = split::choose(&rule.backends, asked.worker.roll());
        let chosen = chosen.map_err(Refusal::NoBackend)?;
        return of_target(asked.loaded, &chosen.target, &chosen.filters);
    }
    match (matched.service, matched.workload) {
        (Some(service), _) => Ok(Backend::Service { service, port: matched.port, filters: &[] }),
        (None, Some(workload)) => Ok(Backend::Workload { workload, at: asked.arrival.local }),
        (None, None) => Err(Refusal::NoRoute),
    }
}

/// The backend that `target` stands for.
///
/// # Errors
///
/// [`Refusal::NoBackend`] or [`Refusal::UnknownService`].
pub(crate) fn of_target<'a>(
    loaded: &'a Loaded,
    target: &BackendTarget,
    filters: &'a [Filter],
) -> Result<Backend<'a>, Refusal> {
    match target {
        BackendTarget::Service { key, port } => {
            let service = loaded.snapshot.discovery.service(key);
            let service = service.ok_or_else(|| Refusal::UnknownService(key.clone()))?;
            Ok(Backend::Service { service, port: *port, filters })
        }
        BackendTarget::Invalid { reason } => {
            Err(Refusal::NoBackend(split::NoBackend::Invalid(Arc::clone(reason))))
        }
    }
}

/// The endpoints of one backend, one after another.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    worker: &'a Worker,
    loaded: &'a Loaded,
    order: Order<'a>,
    terms: Terms,
    /// Who asks, for services whose clients keep their endpoint.
    client: IpAddr,
    tried: Vec<Arc<str>>,
}

#[derive(Debug)]
enum Order<'a> {
    /// Any of these, by chance.
    Endpoints { candidates: Rc<Candidates>, service: &'a Arc<Service> },
    /// These, in order.
    Hops(IntoIter<Hop>),
}

impl<'a> Chosen<'a> {
    /// The endpoints of `backend`, to speak `protocol` with, for a request of `client` that has
    /// passed the waypoints `visited`.
    ///
    /// # Errors
    ///
    /// Why there is none, or nothing may be sent to them.
    pub(crate) fn new(
        worker: &'a Worker,
        loaded: &'a Loaded,
        backend: &Backend<'a>,
        protocol: Protocol,
        (client, visited): (IpAddr, Option<&Arc<str>>),
    ) -> Result<Self, Refusal> {
        let (order, tls) = match backend {
            Backend::Service { service, port, .. } => {
                let discovery = &loaded.snapshot.discovery;
                let kind = worker.shared.settings.role.kind();
                if l4::enters_waypoint(&loaded.own, kind, service, discovery) {
                    let roll = worker.roll();
                    let way = l4::through_waypoint(&loaded.own, service, *port, discovery, roll);
                    (Order::Hops(way.map_err(Refusal::NoWay)?.hops.into_iter()), None)
                } else {
                    let candidates = worker.candidates(loaded, service, *port);
                    if candidates.is_empty() {
                        return Err(Refusal::NoEndpoint(service.key.clone()));
                    }
                    let order = Order::Endpoints { candidates, service };
                    (order, backend_tls(worker, loaded, &service.key, *port)?)
                }
            }
            Backend::Workload { workload, at } => {
                let hop = l4::hop_to_endpoint(workload, None, at.port(), at.ip());
                let none = || Refusal::NoWay(l4::Refusal::NoAddress(Arc::clone(&workload.uid)));
                (Order::Hops(vec![hop.ok_or_else(none)?].into_iter()), None)
            }
        };
        let protocol = match (&tls, protocol) {
            // With TLS both sides agree on it.
            (Some(_), Protocol::Http1) => Protocol::Sniff,
            (_, protocol) => protocol,
        };
        let terms = Terms { tls, protocol, visited: visited.cloned() };
        Ok(Self { worker, loaded, order, terms, client, tried: Vec::new() })
    }

    /// The next endpoint; none once all that may be tried were.
    ///
    /// # Errors
    ///
    /// [`DialError`] if this one cannot be dialled at all.
    pub(crate) async fn next(&mut self) -> Option<Result<Rc<Target>, DialError>> {
        let hop = match &mut self.order {
            Order::Hops(hops) => hops.next()?,
            Order::Endpoints { candidates, service } => {
                let asks = (&***service, self.client);
                let candidate = self.worker.pick(candidates, asks, &self.tried)?;
                self.tried.push(Arc::clone(&candidate.workload.uid));
                let family = service.addresses.first().map(|vip| vip.range.addr());
                let family = family.unwrap_or_else(|| own_address(self.loaded));
                return self.worker.target(candidate, service, &self.terms, family).await;
            }
        };
        Some(Target::new(self.worker, &hop, self.terms.clone()).await.map(Rc::new))
    }
}

fn own_address(loaded: &Loaded) -> IpAddr {
    loaded.own.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn backend_tls(
    worker: &Worker,
    loaded: &Loaded,
    service: &ServiceKey,
    port: u16,
) -> Result<Option<Arc<Client>>, Refusal> {
    let serving = loaded.serving();
    let Some(policy) = serving.backend_tls(service, port) else { return Ok(None) };
    let broken = || Refusal::BackendTls(service.clone());
    if policy.invalid.is_some() {
        return Err(broken());
    }
    let gateway = serving.gateway(&loaded.gateway);
    let own = match gateway.and_then(|gateway| gateway.client_certificate.as_ref()) {
        Some(name) => Some(serving.secret(name).ok_or_else(broken)?),
        None => None,
    };
    worker.backend_tls(policy, own).map(Some).map_err(|_| broken())
}
