// SPDX-License-Identifier: Apache-2.0

//! A workload: a pod, a virtual machine or another thing with an address.
//!
//! Owns what is known of one workload. Leaves how it is found to
//! [`super::Discovery`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use policy::authz::PolicyName;
use policy::identity::{Identity, Namespace};

use super::address::{GatewayAddress, NetworkAddress, ServiceKey};
use super::service::{AppProtocol, Port};

/// A pod, a virtual machine or another thing with an address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// Unique in the mesh, for example `Kubernetes//Pod/namespace/name`.
    pub uid: Arc<str>,
    /// Kubernetes UID of the pod. Unlike `uid` a later pod of the same name has another one.
    pub pod_uid: Option<Arc<str>>,
    /// Name of the object it was made from.
    pub name: Arc<str>,
    /// Namespace of that object.
    pub namespace: Namespace,
    /// Identity that it proves.
    pub identity: Identity,
    /// Addresses within `network`.
    pub addresses: Vec<IpAddr>,
    /// DNS name to resolve when there is no address.
    pub hostname: Option<Arc<str>>,
    /// Network of the addresses; empty: the default one.
    pub network: Arc<str>,
    /// Whether the addresses are its own.
    pub network_mode: NetworkMode,
    /// Gateway into its network, for callers of other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// How it takes traffic of the mesh.
    pub tunnel: TunnelProtocol,
    /// The application speaks HBONE itself.
    pub native_tunnel: bool,
    /// How tunnelled traffic is handed to the application.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The waypoint that workload-addressed traffic must enter.
    pub waypoint: Option<GatewayAddress>,
    /// Services that it is an endpoint of, and on which ports.
    pub services: BTreeMap<ServiceKey, Arc<[Port]>>,
    /// Policies that select it.
    pub authorization_policies: Vec<PolicyName>,
    /// Whether it takes new work.
    pub health: Health,
    /// Weight among endpoints: 1 by default, zero is never chosen.
    pub capacity: u32,
    /// Node that it runs on; empty: not known.
    pub node: Arc<str>,
    /// Where the node stands.
    pub locality: Locality,
    /// Cluster that it runs in; `Kubernetes` by default.
    pub cluster: Arc<str>,
    /// Owner, for example the deployment.
    pub workload_name: Arc<str>,
    /// Kind of `workload_name`.
    pub workload_type: WorkloadType,
    /// Application name for telemetry.
    pub canonical_name: Arc<str>,
    /// Application version for telemetry.
    pub canonical_revision: Arc<str>,
}

impl Workload {
    /// Trust domain when none is said.
    pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
    /// Service account when none is said.
    pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
    /// Cluster when none is said.
    pub const DEFAULT_CLUSTER: &str = "Kubernetes";

    /// A healthy workload outside the mesh, without addresses or services.
    pub fn new(uid: impl Into<Arc<str>>, identity: Identity, namespace: Namespace) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            uid: uid.into(),
            pod_uid: None,
            name: Arc::clone(&empty),
            namespace,
            identity,
            addresses: Vec::new(),
            hostname: None,
            network: Arc::clone(&empty),
            network_mode: NetworkMode::Standard,
            network_gateway: None,
            tunnel: TunnelProtocol::None,
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            services: BTreeMap::new(),
            authorization_policies: Vec::new(),
            health: Health::Healthy,
            capacity: 1,
            node: Arc::clone(&empty),
            locality: Locality::default(),
            cluster: Self::DEFAULT_CLUSTER.into(),
            workload_name: Arc::clone(&empty),
            workload_type: WorkloadType::Deployment,
            canonical_name: Arc::clone(&empty),
            canonical_revision: empty,
        }
    }

    /// Uid of a pod by the name it has in a cluster.
    pub fn pod_key(cluster: &str, namespace: &str, name: &str) -> String {
        format!("{cluster}//Pod/{namespace}/{name}")
    }

    /// Tells whether it was made from a pod.
    pub fn is_pod(&self) -> bool {
        self.uid.split_once('/').is_some_and(|(_, rest)| rest.starts_with("/Pod/"))
    }

    /// Its addresses with their network.
    pub fn network_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        self.addresses.iter().map(|ip| NetworkAddress::new(Arc::clone(&self.network), *ip))
    }

    /// Port behind `service_port` of the service, if it is an endpoint on that port.
    pub fn target_port(&self, service: &ServiceKey, service_port: u16) -> Option<u16> {
        target_port(self.services.get(service)?, service_port)
    }

    /// The services that target `port` of the workload, with what is spoken there.
    pub fn services_on(&self, port: u16) -> impl Iterator<Item = (&ServiceKey, AppProtocol)> {
        self.services.iter().filter_map(move |(key, ports)| {
            let mut targets = ports.iter().filter(|one| target(one) == port);
            targets.next().map(|one| (key, one.app_protocol))
        })
    }

    /// What is spoken on `port` of the workload, as the first service says that targets it.
    pub fn app_protocol(&self, port: u16) -> AppProtocol {
        self.services_on(port).next().map_or(AppProtocol::Unknown, |(_, spoken)| spoken)
    }
}

/// Port of the workload behind `service_port`, if `ports` has it.
pub(crate) fn target_port(ports: &[Port], service_port: u16) -> Option<u16> {
    ports.iter().find(|port| port.service_port == service_port).map(target)
}

/// Port of the workload: the service's own unless it names another.
fn target(port: &Port) -> u16 {
    if port.target_port == 0 { port.service_port } else { port.target_port }
}

/// How a workload takes traffic of the mesh.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum TunnelProtocol {
    /// As plain bytes.
    #[default]
    None,
    /// Inside HBONE.
    Hbone,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum NetworkMode {
    /// Own network namespace.
    #[default]
    Standard,
    /// Shares the node's addresses, so an address does not tell who it is.
    Host,
}

/// Whether a workload takes new work.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready, or on its way out.
    Unhealthy,
}

/// How tunnelled traffic is handed to the application.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ApplicationTunnel {
    /// What goes before the bytes.
    pub protocol: ApplicationProtocol,
    /// Port of the application; none: the one that was asked for.
    pub port: Option<u16>,
}

/// What goes before the bytes of a tunnelled stream.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ApplicationProtocol {
    /// Nothing.
    #[default]
    None,
    /// A PROXY protocol v2 head.
    Proxy,
}

/// Kind of object that owns a workload.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum WorkloadType {
    /// Deployment.
    #[default]
    Deployment,
    /// CronJob.
    CronJob,
    /// Pod without an owner of another kind.
    Pod,
    /// Job.
    Job,
}

/// Where a node stands, from wide to narrow; empty: not known.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone of the region.
    pub zone: Arc<str>,
    /// Subzone of the zone.
    pub subzone: Arc<str>,
}
