// SPDX-License-Identifier: Apache-2.0

//! ServiceEntry and WorkloadEntry → services and workloads that the mesh does not run.
//!
//! Rule: Istio's `ambient/services.go`. Hosts of entries without addresses get those of
//! [`crate::api::vip`], which the status tells. What of an entry is not served, [`told`] says.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy::identity::{Identity, Namespace};
use routing::delta::Resource as Plane;
use routing::discovery::{
    AppProtocol, HealthPolicy, LoadBalancing, LoadBalancingMode, Locality, Port, Service,
    ServiceKey, TunnelProtocol, VirtualAddress, Workload, WorkloadType,
};

use super::service::{bound, distribution, ingress_uses, protocol_of};
use super::waypoint::{self, label};
use super::{authorization, guard, peer_authentication, workload};
use crate::api;
use crate::api::istio::{
    EntryPort, ServiceEntry, ServiceEntrySpec, WorkloadEntry, WorkloadEntrySpec,
};
use crate::api::vip;
use crate::output::{Config, Output, Scope};
use crate::status::{Body, Status};
use crate::store::facts::Step;
use crate::store::index::Index;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Outputs of one ServiceEntry: a service per host, a workload per endpoint.
pub fn run_service(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<ServiceEntry>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let Ok(namespace) = name.namespace.parse::<Namespace>() else { return Vec::new() };
    let binding = waypoint::of_service(&object.metadata, look);
    let mut outputs = Vec::new();
    let mut assigned: Vec<(String, IpAddr)> = Vec::new();
    for host in &object.spec.hosts {
        let mut service = Service::new(ServiceKey::new(namespace.clone(), host.as_str()));
        service.name = Arc::clone(&name.name);
        service.addresses = written(object);
        if vip::allocates(object) {
            let rivals = |place: vip::Place| {
                look.list::<ServiceEntry>(Index::Place, &place.text()).into_iter().map(|one| &**one)
            };
            for address in vip::addresses(object, host, rivals) {
                service.addresses.push(VirtualAddress::single("".into(), address));
                assigned.push((host.clone(), address));
            }
        }
        service.ports = object.spec.ports.iter().map(service_port).collect();
        service.subject_alt_names =
            object.spec.subject_alt_names.iter().map(|name| Arc::from(name.as_str())).collect();
        service.load_balancing = load_balancing(object, look);
        service.canonical = true;
        if let Some(binding) = &binding {
            service.waypoint = binding.address();
            service.ingress_use_waypoint = ingress_uses(&object.metadata, look);
        }
        outputs.push(Config::plane(Plane::Service(service.into()), Scope::Everyone));
    }
    let endpoints = endpoints(name, object, look);
    let spec = &object.spec;
    let passes = spec.resolution.as_deref().unwrap_or("NONE") == "NONE";
    let reaches = passes || spec.workload_selector.is_some() || !endpoints.is_empty();
    let mut conditions =
        told::conditions(&told::of_service(spec), reaches && !spec.hosts.is_empty());
    for workload in endpoints {
        outputs.push(Config::plane(Plane::Workload(workload.into()), Scope::Everyone));
    }
    conditions.extend(binding.iter().map(|binding| bound(binding, &Step::Settled, 0)));
    let key = Key { kind: Kind::ServiceEntry, name: name.clone() };
    let generation = object.metadata.generation;
    let body = Body::Entry { conditions, addresses: assigned };
    outputs.push(Output::Status(Status { key, generation, body }.into()));
    outputs
}

/// Outputs of one WorkloadEntry.
pub fn run_workload(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<WorkloadEntry>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let labels = object.all_labels();
    let meta = ObjectMeta { labels: Some(labels), ..object.metadata.clone() };
    let binding = waypoint::of_workload(&meta, look);
    let workload = workload_of(name, object, &meta, look);
    let faults = told::of_workload(&object.spec, "spec");
    let mut conditions = told::conditions(&faults, workload.is_some());
    conditions.extend(told::workload_bound(&meta, binding.as_ref(), look));
    let mut outputs = Vec::new();
    if let Some(mut made) = workload {
        made.waypoint = binding.as_ref().and_then(waypoint::Binding::address);
        // Without a tunnel of its own nobody would keep it.
        let guard =
            if made.native_tunnel { guard::of(&made, binding.as_ref(), look) } else { None };
        if let Some(guard) = guard {
            made.authorization_policies.push(guard.name.clone());
            outputs.push(Config::plane(Plane::Authorization(guard.into()), Scope::Everyone));
        }
        outputs.push(Config::plane(Plane::Workload(made.into()), Scope::Everyone));
    }
    let key = Key { kind: Kind::WorkloadEntry, name: name.clone() };
    let (generation, body) = (object.metadata.generation, Body::Conditions(conditions));
    outputs.push(Output::Status(Status { key, generation, body }.into()));
    outputs
}

/// The workload that a WorkloadEntry is, without its waypoint; none if it cannot be reached.
fn workload_of(
    name: &Name,
    object: &WorkloadEntry,
    meta: &ObjectMeta,
    look: &mut Lookup<'_>,
) -> Option<Workload> {
    let labels = meta.labels.as_ref()?;
    let cluster = &look.mesh().cluster_id;
    let uid =
        format!("{cluster}/networking.istio.io/WorkloadEntry/{}/{}", name.namespace, name.name);
    let mut made = base(&uid, &name.namespace, &object.spec, look)?;
    made.name = Arc::clone(&name.name);
    let named = label(Some(labels), api::WORKLOAD_NAME);
    made.workload_name = named.map_or_else(|| Arc::clone(&name.name), Arc::from);
    place_by(labels, &mut made);
    name_for_telemetry(&mut made, labels);
    for service in workload::selecting(&name.namespace, labels, look) {
        let service_name = service.metadata.name.as_deref().unwrap_or_default();
        let host = api::service_host(&name.namespace, service_name);
        let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let ports = listed.filter_map(|port| {
            let service_port = u16::try_from(port.port).ok()?;
            let named = port.name.as_ref().and_then(|name| object.spec.ports.get(name)).copied();
            let target_port = named.or_else(|| number(port.target_port.as_ref(), service_port))?;
            Some(Port { service_port, target_port, app_protocol: AppProtocol::Unknown })
        });
        made.services
            .insert(ServiceKey::new(made.namespace.clone(), host.as_str()), ports.collect());
    }
    made.services.extend(services_of(&name.namespace, labels, &object.spec.ports, look));
    govern(&mut made, labels, look);
    Some(made)
}

fn number(
    target: Option<&k8s_openapi::apimachinery::pkg::util::intstr::IntOrString>,
    service_port: u16,
) -> Option<u16> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    match target {
        None => Some(service_port),
        Some(IntOrString::Int(port)) => u16::try_from(*port).ok(),
        Some(IntOrString::String(name)) => name.parse().ok(),
    }
}

/// The ServiceEntries that select a workload, with their ports; `named` are those that the
/// workload gives by their names in the ServiceEntry.
pub fn services_of(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    named: &BTreeMap<String, u16>,
    look: &mut Lookup<'_>,
) -> HashMap<ServiceKey, Arc<[Port]>> {
    let found = look.selecting::<ServiceEntry>(namespace, labels, |entry| {
        entry
            .spec
            .workload_selector
            .as_ref()
            .map(|selector| &selector.labels)
            .filter(|l| !l.is_empty())
    });
    let Ok(namespace) = namespace.parse::<Namespace>() else { return HashMap::new() };
    let hosts =
        found.into_iter().flat_map(|entry| entry.spec.hosts.iter().map(move |h| (entry, h)));
    hosts
        .map(|(entry, host)| {
            (ServiceKey::new(namespace.clone(), host.as_str()), ports_of(&entry.spec, named))
        })
        .collect()
}

/// The ports of a ServiceEntry as one of its endpoints has them.
///
/// Rule: `ports` of `WorkloadEntry` in Istio's API: what the endpoint says by the port's name,
/// else `targetPort`, else the number.
fn ports_of(spec: &ServiceEntrySpec, named: &BTreeMap<String, u16>) -> Arc<[Port]> {
    let port = |port: &EntryPort| Port {
        service_port: port.number,
        target_port: named.get(&port.name).copied().or(port.target_port).unwrap_or(port.number),
        app_protocol: AppProtocol::Unknown,
    };
    spec.ports.iter().map(port).collect()
}

fn service_port(port: &EntryPort) -> Port {
    let said =
        port.protocol.as_deref().unwrap_or_else(|| port.name.split('-').next().unwrap_or_default());
    Port {
        service_port: port.number,
        target_port: port.target_port.unwrap_or(port.number),
        app_protocol: protocol_of(said),
    }
}

/// The addresses that the entry writes.
fn written(object: &ServiceEntry) -> Vec<VirtualAddress> {
    let parsed = object.spec.addresses.iter().filter_map(|text| told::range(text));
    parsed.map(|range| VirtualAddress { network: "".into(), range }).collect()
}

fn load_balancing(object: &ServiceEntry, look: &mut Lookup<'_>) -> Option<LoadBalancing> {
    if object.spec.resolution.as_deref().unwrap_or("NONE") == "NONE" {
        return Some(LoadBalancing {
            preference: Vec::new(),
            mode: LoadBalancingMode::Passthrough,
            health: HealthPolicy::AllowAll,
        });
    }
    let own = label(object.metadata.annotations.as_ref(), api::TRAFFIC_DISTRIBUTION);
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let inherited = || {
        let namespace = look.get::<KubeNamespace>("", namespace)?;
        label(namespace.metadata.annotations.as_ref(), api::TRAFFIC_DISTRIBUTION)
    };
    let preference = distribution(own.or_else(inherited)?);
    (!preference.is_empty()).then_some(LoadBalancing {
        preference,
        mode: LoadBalancingMode::Failover,
        health: HealthPolicy::OnlyHealthy,
    })
}

/// Tells whether addresses of hosts or endpoints are looked up.
fn resolves(spec: &ServiceEntrySpec) -> bool {
    matches!(spec.resolution.as_deref(), Some("DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS"))
}

/// The endpoints written into an entry; without any, a DNS entry is its own endpoint.
fn endpoints(name: &Name, object: &ServiceEntry, look: &mut Lookup<'_>) -> Vec<Workload> {
    let spec = &object.spec;
    if spec.workload_selector.is_some() {
        return Vec::new();
    }
    let by_host =
        |host: &String| WorkloadEntrySpec { address: Some(host.clone()), ..Default::default() };
    let listed: Vec<(WorkloadEntrySpec, &[String])> = if spec.endpoints.is_empty() && resolves(spec)
    {
        let known = spec.hosts.iter().filter(|host| !told::is_wildcard(host));
        known.map(|host| (by_host(host), std::slice::from_ref(host))).collect()
    } else {
        spec.endpoints.iter().map(|endpoint| (endpoint.clone(), spec.hosts.as_slice())).collect()
    };
    let mut made = Vec::new();
    for (endpoint, hosts) in listed {
        let Some(address) = endpoint.address.as_deref() else { continue };
        let cluster = &look.mesh().cluster_id;
        let uid = format!(
            "{cluster}/networking.istio.io/ServiceEntry/{}/{}/{address}",
            name.namespace, name.name
        );
        let Some(mut workload) = base(&uid, &name.namespace, &endpoint, look) else { continue };
        workload.name = Arc::clone(&name.name);
        workload.workload_name = Arc::clone(&name.name);
        // Istio names it by the entry, not by the labels of the endpoint.
        let labels = object.metadata.labels.clone().unwrap_or_default();
        name_for_telemetry(&mut workload, &labels);
        for host in hosts {
            let key = ServiceKey::new(workload.namespace.clone(), host.as_str());
            workload.services.insert(key, ports_of(spec, &endpoint.ports));
        }
        made.push(workload);
    }
    made
}

/// What an endpoint says by itself; none if it cannot be served, of which [`told`] tells.
fn base(
    uid: &str,
    namespace: &str,
    spec: &WorkloadEntrySpec,
    look: &Lookup<'_>,
) -> Option<Workload> {
    if !told::of_workload(spec, "").is_empty() {
        return None;
    }
    let namespace: Namespace = namespace.parse().ok()?;
    let account = spec.service_account.as_deref().unwrap_or("default").parse().ok()?;
    let identity = Identity::new(&look.mesh().trust_domain.parse().ok()?, &namespace, &account);
    let mut made = Workload::new(uid, identity, namespace);
    made.cluster = Arc::clone(&look.mesh().cluster_id);
    made.workload_type = WorkloadType::Pod;
    match spec.address.as_deref()?.parse::<IpAddr>() {
        Ok(address) => made.addresses.push(address),
        Err(_) => made.hostname = spec.address.as_deref().map(Arc::from),
    }
    made.network = spec.network.as_deref().unwrap_or_default().into();
    made.capacity = spec.weight.unwrap_or(1);
    let mut parts = spec.locality.as_deref().unwrap_or_default().splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default().into();
    made.locality = Locality { region: part(), zone: part(), subzone: part() };
    place_by(&spec.labels, &mut made);
    Some(made)
}

/// What labels say of where a workload is and how it is reached, unless its fields say it.
fn place_by(labels: &BTreeMap<String, String>, made: &mut Workload) {
    let said = |key| label(Some(labels), key);
    if said(api::TUNNEL) == Some("http") {
        made.tunnel = TunnelProtocol::Hbone;
        made.native_tunnel = true;
    }
    for (field, key) in
        [(&mut made.network, api::NETWORK), (&mut made.locality.subzone, api::SUBZONE)]
    {
        if field.is_empty() {
            *field = said(key).unwrap_or_default().into();
        }
    }
}

fn name_for_telemetry(made: &mut Workload, labels: &BTreeMap<String, String>) {
    let first = |keys: [&str; 3]| keys.into_iter().find_map(|key| label(Some(labels), key));
    let name = first([api::CANONICAL_NAME, "app.kubernetes.io/name", "app"]);
    let revision = first([api::CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
    made.canonical_name = name.unwrap_or(&made.name).into();
    made.canonical_revision = revision.unwrap_or("latest").into();
}

fn govern(made: &mut Workload, labels: &BTreeMap<String, String>, look: &mut Lookup<'_>) {
    let namespace = made.namespace.to_string();
    made.authorization_policies = authorization::selecting(&namespace, labels, look);
    made.authorization_policies.extend(peer_authentication::policies_of(&namespace, labels, look));
}

#[cfg(test)]
mod tests;
