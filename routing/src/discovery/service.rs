// SPDX-License-Identifier: Apache-2.0

//! A service: a named set of ports with virtual addresses.
//!
//! Owns what is known of a service by itself. Leaves its endpoints to
//! [`super::Discovery`] and the choice among them to [`crate::balance`].

use std::sync::Arc;

use policy::identity::Namespace;

use super::address::{GatewayAddress, ServiceKey, VirtualAddress};

/// A named set of ports with virtual addresses; its key is unique.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Name of the object it was made from.
    pub name: Arc<str>,
    /// Namespace of that object, and hostname.
    pub key: ServiceKey,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<VirtualAddress>,
    /// Ports that callers may use.
    pub ports: Vec<Port>,
    /// URI names that an endpoint may prove instead of its own identity.
    pub subject_alt_names: Arc<[Arc<str>]>,
    /// The waypoint that service-addressed traffic must enter.
    pub waypoint: Option<GatewayAddress>,
    /// Several waypoints that share the connections; wins over `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How to choose an endpoint; by default any healthy one.
    pub load_balancing: Option<LoadBalancing>,
    /// A client keeps its endpoint as long as that may be chosen (`sessionAffinity: ClientIP`).
    pub client_affinity: bool,
    /// Address families that the service admits.
    pub ip_families: IpFamilies,
    /// Of several services with this hostname the one that other namespaces mean.
    pub canonical: bool,
    /// Gateways at the edge enter the waypoint too.
    pub ingress_use_waypoint: bool,
    /// Who may see the service.
    pub visibility: Visibility,
}

impl Service {
    /// A service without addresses, ports or anything else.
    pub fn new(key: ServiceKey) -> Self {
        let name = key.hostname.split('.').next().unwrap_or_default().into();
        Self {
            name,
            key,
            addresses: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Arc::default(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: None,
            client_affinity: false,
            ip_families: IpFamilies::Automatic,
            canonical: false,
            ingress_use_waypoint: false,
            visibility: Visibility::Public,
        }
    }

    /// Tells whether a caller of `namespace` may see the service.
    pub fn visible_to(&self, namespace: &Namespace) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => self.key.namespace == *namespace,
        }
    }

    /// The port that callers name `service_port`.
    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.service_port == service_port)
    }

    /// Tells whether traffic to the service must enter a waypoint.
    pub fn has_waypoint(&self) -> bool {
        self.waypoint.is_some() || !self.weighted_waypoints.is_empty()
    }
}

/// A port of a service, or of a service at one workload.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Port {
    /// Port that callers use; never zero.
    pub service_port: u16,
    /// Port of the workload. In a service zero means that each workload says
    /// it (a named port); in a workload zero means the same as `service_port`.
    pub target_port: u16,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum AppProtocol {
    /// Not said.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Any TCP.
    Tcp,
    /// TLS of the application.
    Tls,
}

/// One of several waypoints with its share.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub destination: GatewayAddress,
    /// Share relative to the sum of all weights; zero is never chosen.
    pub weight: u32,
}

/// Which endpoints to prefer and which to leave out.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct LoadBalancing {
    /// Scopes, the most important first.
    pub preference: Vec<LocalityScope>,
    /// What the scopes mean.
    pub mode: LoadBalancingMode,
    /// Which health is good enough.
    pub health: HealthPolicy,
}

/// How near an endpoint is: both ends share this.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LocalityScope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Subzone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

/// What the scopes of a service mean.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum LoadBalancingMode {
    /// Nothing: every endpoint is as good.
    #[default]
    Any,
    /// All must match.
    Strict,
    /// The more leading scopes match, the better.
    Failover,
    /// No choice: go to the address that was asked for.
    Passthrough,
}

/// Which health of an endpoint is good enough.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum HealthPolicy {
    /// Healthy ones only.
    #[default]
    OnlyHealthy,
    /// Every one.
    AllowAll,
}

/// Address families of a service.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum IpFamilies {
    /// Not said.
    #[default]
    Automatic,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}
