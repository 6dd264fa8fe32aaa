// SPDX-License-Identifier: Apache-2.0

//! What is where: workloads and services by address and by name.
//!
//! Owns the indices and the rules that break ties. Leaves the way a
//! connection takes to [`crate::l4`] and the choice of an endpoint to
//! [`crate::balance`].
//!
//! Keeps: a clone shares everything; an applied change copies only the shards
//! and lists that hold what changed; the same set of workloads and services
//! gives the same answers, whatever the order they came in.
//!
//! Start at [`Discovery`].

mod address;
mod index;
mod service;
mod shards;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use policy::identity::Namespace;

pub use address::{
    GatewayAddress, GatewayDestination, HBONE_PORT, InvalidServiceKey, NetworkAddress, ServiceKey,
    VirtualAddress,
};
pub use service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope, Port,
    Service, Visibility, WeightedWaypoint,
};
pub(crate) use shards::Shards;
pub(crate) use workload::target_port;
pub use workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, TunnelProtocol,
    Workload, WorkloadType,
};

/// A workload behind a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its ports for this service.
    pub ports: Arc<[Port]>,
}

impl Endpoint {
    /// Port of the workload behind `service_port`, if it serves that port.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        target_port(&self.ports, service_port)
    }
}

/// What an address or a gateway's name stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found<'a> {
    /// A service.
    Service(&'a Arc<Service>),
    /// A workload.
    Workload(&'a Arc<Workload>),
}

/// One change to what is where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A workload is new or has changed.
    Workload(Arc<Workload>),
    /// A service is new or has changed.
    Service(Arc<Service>),
    /// The workload with this uid is gone.
    WorkloadGone(Arc<str>),
    /// The service with this key is gone.
    ServiceGone(ServiceKey),
}

/// All known workloads and services, indexed; cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    workloads: Shards<Arc<str>, Arc<Workload>>,
    /// Best first; a workload that shares its node's addresses is not in here.
    by_address: Shards<NetworkAddress, Arc<[Arc<Workload>]>>,
    by_pod_uid: Shards<Arc<str>, Arc<Workload>>,
    services: Shards<ServiceKey, Arc<Service>>,
    /// In the order of uid.
    endpoints: Shards<ServiceKey, Arc<[Endpoint]>>,
    /// Single addresses and ranges alike; best service first.
    by_vip: Shards<VirtualAddress, Arc<[Arc<Service>]>>,
    by_hostname: Shards<Arc<str>, Arc<[Arc<Service>]>>,
    ranges: index::RangeLengths,
}

impl Discovery {
    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload with this Kubernetes UID.
    pub fn pod(&self, pod_uid: &str) -> Option<&Arc<Workload>> {
        self.by_pod_uid.get(pod_uid)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Number of workloads.
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// The workloads with this address, the best first: pods in the mesh, other
    /// pods, other workloads in the mesh, the rest; ties by uid.
    ///
    /// Those that share their node's addresses are left out.
    pub fn workloads_at(&self, address: &NetworkAddress) -> &[Arc<Workload>] {
        self.by_address.get(address).map_or(&[], |found| found)
    }

    /// The best workload with this address.
    pub fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads_at(address).first()
    }

    /// The service with this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Number of services.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Every service with this hostname, whoever may see it: canonical first, then by namespace.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname).map_or(&[], |found| found)
    }

    /// The service that a caller of `namespace` means by `hostname`: its own
    /// namespace's, else the canonical one, else the first.
    pub fn service_named(&self, hostname: &str, namespace: &Namespace) -> Option<&Arc<Service>> {
        preferred(self.services_named(hostname), namespace)
    }

    /// The endpoints of a service, in the order of uid.
    pub fn endpoints(&self, key: &ServiceKey) -> &[Endpoint] {
        self.endpoints.get(key).map_or(&[], |found| found)
    }

    /// The endpoints of a service as a shared list.
    pub fn endpoints_shared(&self, key: &ServiceKey) -> Option<&Arc<[Endpoint]>> {
        self.endpoints.get(key)
    }

    /// The service that a caller of `namespace` reaches at `address`.
    ///
    /// A single address beats a range. Among services of one address: the
    /// caller's namespace, else the canonical one, else the first by key. Among
    /// ranges: the caller's namespace, then the longest prefix.
    pub fn service_at(
        &self,
        address: &NetworkAddress,
        namespace: &Namespace,
    ) -> Option<&Arc<Service>> {
        let single = VirtualAddress::single(Arc::clone(&address.network), address.address);
        let exact = self.by_vip.get(&single).and_then(|found| preferred(found, namespace));
        exact.or_else(|| self.service_in_range(address, namespace))
    }

    fn service_in_range(
        &self,
        address: &NetworkAddress,
        namespace: &Namespace,
    ) -> Option<&Arc<Service>> {
        let mut other = None;
        for range in self.ranges.around(address.address) {
            let key = VirtualAddress { network: Arc::clone(&address.network), range };
            let found = self.by_vip.get(&key).and_then(|found| preferred(found, namespace));
            match found {
                Some(service) if service.key.namespace == *namespace => return Some(service),
                Some(service) => other = other.or(Some(service)),
                None => {}
            }
        }
        other
    }

    /// What a caller of `namespace` reaches at `address`: a workload, else a service.
    ///
    /// The way of a connection asks for the service first; see [`crate::l4::resolve`].
    pub fn find(&self, address: &NetworkAddress, namespace: &Namespace) -> Option<Found<'_>> {
        let workload = self.workload_at(address).map(Found::Workload);
        workload.or_else(|| self.service_at(address, namespace).map(Found::Service))
    }

    /// What a gateway's name stands for; an address is looked for among
    /// workloads, then among services of any namespace.
    pub fn gateway(&self, gateway: &GatewayAddress, namespace: &Namespace) -> Option<Found<'_>> {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => self.service(key).map(Found::Service),
            GatewayDestination::Address(address) => self.find(address, namespace),
        }
    }

    /// Tells whether `gateway` stands for `workload` itself or a service that it is an endpoint of.
    pub fn is_gateway(&self, gateway: &GatewayAddress, workload: &Workload) -> bool {
        match self.gateway(gateway, &workload.namespace) {
            Some(Found::Service(service)) => workload.services.contains_key(&service.key),
            Some(Found::Workload(found)) => found.uid == workload.uid,
            None => false,
        }
    }

    /// Tells whether some workload or service has `address` in its network.
    pub fn knows(&self, network: &Arc<str>, address: IpAddr, namespace: &Namespace) -> bool {
        self.find(&NetworkAddress::new(Arc::clone(network), address), namespace).is_some()
    }
}

/// Of services in the order of the index the one that `namespace` means.
fn preferred<'a>(found: &'a [Arc<Service>], namespace: &Namespace) -> Option<&'a Arc<Service>> {
    let visible = || found.iter().filter(|service| service.visible_to(namespace));
    visible().find(|service| service.key.namespace == *namespace).or_else(|| visible().next())
}

#[cfg(test)]
mod tests;
