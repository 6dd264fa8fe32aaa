// SPDX-License-Identifier: Apache-2.0

//! The translators: pure functions from one primary object, and what they looked up, to outputs.

pub mod allowed;
pub mod attach;
pub mod authorization;
pub mod backend;
pub mod backend_tls;
pub mod certificate;
pub mod class;
pub mod entry;
pub mod filters;
pub mod frontend;
pub mod gateway;
pub mod grpc_route;
pub mod guard;
pub mod http_route;
pub mod l4_route;
pub mod leave;
pub mod listener;
pub mod listener_set;
pub mod node_pod;
pub mod not_served;
pub mod parameters;
pub mod peer_authentication;
pub mod pod;
pub mod reference_grant;
pub mod request_authentication;
pub mod roots;
pub mod route;
pub mod routes;
pub mod service;
pub mod shape;
pub mod slice;
mod targets;
#[cfg(test)]
pub(crate) mod testing;
pub mod waypoint;
pub mod workload;

use crate::output::Output;
use crate::store::lookup::Lookup;
use crate::store::{Kind, Name};

/// A translator.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Translator {
    /// What holds for the whole mesh and belongs to no single object.
    Mesh,
    /// Namespaces: what they ask for that is not served.
    Namespace,
    /// Pods as workloads.
    Workload,
    /// Pods as their agents see them.
    NodePod,
    /// Services.
    Service,
    /// EndpointSlices of Services without a selector.
    EndpointSlice,
    /// ServiceEntries.
    ServiceEntry,
    /// WorkloadEntries.
    WorkloadEntry,
    /// AuthorizationPolicies.
    Authorization,
    /// PeerAuthentications.
    PeerAuthentication,
    /// RequestAuthentications.
    RequestAuthentication,
    /// Secrets that Gateways name.
    Secret,
    /// GatewayClasses.
    GatewayClass,
    /// Gateways.
    Gateway,
    /// ListenerSets.
    ListenerSet,
    /// HTTPRoutes.
    HttpRoute,
    /// GRPCRoutes.
    GrpcRoute,
    /// TLSRoutes.
    TlsRoute,
    /// TCPRoutes.
    TcpRoute,
    /// UDPRoutes.
    UdpRoute,
    /// BackendTLSPolicies.
    BackendTls,
}

impl Translator {
    /// The kind of its primary object; none for [`Self::Mesh`].
    pub fn primary(self) -> Option<Kind> {
        match self {
            Self::Mesh => None,
            Self::Namespace => Some(Kind::Namespace),
            Self::Workload | Self::NodePod => Some(Kind::Pod),
            Self::Service => Some(Kind::Service),
            Self::EndpointSlice => Some(Kind::EndpointSlice),
            Self::ServiceEntry => Some(Kind::ServiceEntry),
            Self::WorkloadEntry => Some(Kind::WorkloadEntry),
            Self::Authorization => Some(Kind::AuthorizationPolicy),
            Self::PeerAuthentication => Some(Kind::PeerAuthentication),
            Self::RequestAuthentication => Some(Kind::RequestAuthentication),
            Self::Secret => Some(Kind::Secret),
            Self::GatewayClass => Some(Kind::GatewayClass),
            Self::Gateway => Some(Kind::Gateway),
            Self::ListenerSet => Some(Kind::ListenerSet),
            Self::HttpRoute => Some(Kind::HttpRoute),
            Self::GrpcRoute => Some(Kind::GrpcRoute),
            Self::TlsRoute => Some(Kind::TlsRoute),
            Self::TcpRoute => Some(Kind::TcpRoute),
            Self::UdpRoute => Some(Kind::UdpRoute),
            Self::BackendTls => Some(Kind::BackendTlsPolicy),
        }
    }

    /// Outputs for the primary object `name`; none if it is not there.
    pub fn run(self, name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
        let mut outputs = match self {
            Self::Mesh => [roots::run(look), peer_authentication::run_mesh(look)].concat(),
            Self::Namespace => Vec::new(),
            Self::Workload => workload::run(name, look),
            Self::NodePod => node_pod::run(name, look),
            Self::Service => service::run(name, look),
            Self::EndpointSlice => slice::run(name, look),
            Self::ServiceEntry => entry::run_service(name, look),
            Self::WorkloadEntry => entry::run_workload(name, look),
            Self::Authorization => authorization::run(name, look),
            Self::PeerAuthentication => peer_authentication::run(name, look),
            Self::RequestAuthentication => request_authentication::run(name, look),
            Self::Secret => certificate::run(name, look),
            Self::GatewayClass => class::run(name, look),
            Self::Gateway => gateway::run(name, look),
            Self::ListenerSet => listener_set::run(name, look),
            Self::HttpRoute => http_route::run(name, look),
            Self::GrpcRoute => grpc_route::run(name, look),
            Self::TlsRoute => l4_route::run_tls(name, look),
            Self::TcpRoute => l4_route::run_tcp(name, look),
            Self::UdpRoute => l4_route::run_udp(name, look),
            Self::BackendTls => backend_tls::run(name, look),
        };
        // Pods have two translators; one tells.
        let tells = self.primary().filter(|_| self != Self::NodePod);
        outputs.extend(tells.and_then(|kind| not_served::run(kind, name, look)));
        outputs
    }
}
