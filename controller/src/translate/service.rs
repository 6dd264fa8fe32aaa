// SPDX-License-Identifier: Apache-2.0

//! Kubernetes Services → services of the mesh, and the `WaypointBound` condition.
//!
//! Rule: Istio's `ambient/services.go` (ports, families, locality), but for the waypoint:
//! one that is declared is always published, and gateways at the edge enter it unless told not to.

mod behind;

use k8s_openapi::api::core::v1::{Namespace, Service as Object, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use routing::delta::Resource as Plane;
use routing::discovery::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope, Port,
    Service, ServiceKey, VirtualAddress,
};

use super::waypoint::{self, Binding, State, label};
use crate::api;
use crate::output::{Config, Output, Scope};
use crate::status::{Body, Condition, Status};
use crate::store::facts::Step;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Outputs of one Service.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(object) = look.get::<Object>(&name.namespace, &name.name) else { return Vec::new() };
    let Some(spec) = &object.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let Ok(namespace) = name.namespace.parse() else { return Vec::new() };
    let host = api::service_host(&name.namespace, &name.name);
    let mut service = Service::new(ServiceKey::new(namespace, host.as_str()));
    service.name = name.name.as_ref().into();
    service.addresses = addresses(spec);
    service.ports = ports(spec);
    service.load_balancing = load_balancing(&object.metadata, spec, look);
    service.client_affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    service.ip_families = families(spec);
    service.canonical = true;

    let binding = waypoint::of_service(&object.metadata, look);
    let step = look.step(&service.key.to_string());
    service.waypoint = match (&binding, &step) {
        (Some(_), Step::Waiting) => None,
        (Some(binding), _) => binding.address(),
        (None, Step::Leaving(address)) => Some(address.clone()),
        (None, _) => None,
    };
    service.ingress_use_waypoint =
        service.waypoint.is_some() && ingress_uses(&object.metadata, look);
    let config = Config::of(Plane::Service(service.clone().into()), Scope::Everyone);
    let config = match &step {
        Step::Left(address) if binding.is_none() => {
            service.waypoint = Some(address.clone());
            config.held_for(address, Plane::Service(service.into()))
        }
        Step::Waiting
        | Step::Published
        | Step::Settled
        | Step::Leaving(_)
        | Step::Left(_)
        | Step::Joining
        | Step::Opening
        | Step::Releasing => config,
    };
    let mut outputs = vec![Output::Config(config.into())];
    let key = Key { kind: Kind::Service, name: name.clone() };
    match binding {
        Some(binding) => {
            let unguarded = behind::unguarded(object, look);
            outputs.push(status(key, &object.metadata, &binding, &step, unguarded));
        }
        None if waypoint::is_gateways_own(&object.metadata) => {}
        None => outputs.extend(behind::closed_by(object, look).map(|text| {
            let closed = Condition::new("istio.io/WaypointBound", false, "GuardedByAnother", text);
            let body = Body::Conditions(vec![closed]);
            Output::Status(Status { key, generation: object.metadata.generation, body }.into())
        })),
    }
    outputs
}

/// Tells whether gateways at the edge enter the waypoint of this Service: yes unless told not to.
pub fn ingress_uses(meta: &ObjectMeta, look: &mut Lookup<'_>) -> bool {
    let own = label(meta.labels.as_ref(), api::INGRESS_USE_WAYPOINT);
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let inherited = || {
        let namespace = look.get::<Namespace>("", namespace)?;
        label(namespace.metadata.labels.as_ref(), api::INGRESS_USE_WAYPOINT)
    };
    !matches!(own.or_else(inherited), Some("false" | "0" | "f" | "F" | "False" | "FALSE"))
}

/// The virtual addresses: cluster IPs only.
pub fn addresses(spec: &ServiceSpec) -> Vec<VirtualAddress> {
    let listed = spec.cluster_ips.clone().unwrap_or_default();
    let single = spec.cluster_ip.iter().cloned();
    let texts = if listed.is_empty() { single.collect() } else { listed };
    let parse = |text: &String| text.parse().ok();
    texts.iter().filter_map(parse).map(|ip| VirtualAddress::single("".into(), ip)).collect()
}

fn ports(spec: &ServiceSpec) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    let mut listed: Vec<_> = spec.ports.iter().flatten().collect();
    // One number may serve TCP and UDP; the mesh names ports by number, and TCP is what it carries.
    listed.sort_by_key(|port| port.protocol.as_deref().unwrap_or("TCP") != "TCP");
    for port in listed {
        let Ok(service_port) = u16::try_from(port.port) else { continue };
        if ports.iter().any(|known| known.service_port == service_port) {
            continue;
        }
        let target_port = match &port.target_port {
            Some(IntOrString::Int(number)) => u16::try_from(*number).unwrap_or(service_port),
            Some(IntOrString::String(_)) => 0,
            None => service_port,
        };
        ports.push(Port { service_port, target_port, app_protocol: app_protocol(port) });
    }
    ports
}

/// What is spoken on a port: its `appProtocol`, else the first part of its name.
///
/// Rule: Istio, "Explicit protocol selection".
pub fn app_protocol(port: &ServicePort) -> AppProtocol {
    match &port.app_protocol {
        Some(said) => protocol_of(said),
        None => {
            let name = port.name.as_deref().unwrap_or_default();
            if name.eq_ignore_ascii_case("grpc-web") || name.starts_with("grpc-web-") {
                return protocol_of("grpc-web");
            }
            protocol_of(name.split('-').next().unwrap_or_default())
        }
    }
}

/// What a protocol name means.
pub fn protocol_of(name: &str) -> AppProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" | "grpc-web" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "redis" | "mysql" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn families(spec: &ServiceSpec) -> IpFamilies {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let has = |family: &str| families.iter().any(|listed| listed == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::V4,
        (false, true) => IpFamilies::V6,
        (false, false) => IpFamilies::Automatic,
    }
}

fn load_balancing(
    meta: &ObjectMeta,
    spec: &ServiceSpec,
    look: &mut Lookup<'_>,
) -> Option<LoadBalancing> {
    let health = if spec.publish_not_ready_addresses == Some(true) {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        let preference = vec![LocalityScope::Node];
        return Some(LoadBalancing { preference, mode: LoadBalancingMode::Strict, health });
    }
    let own = spec.traffic_distribution.as_deref();
    let annotation = label(meta.annotations.as_ref(), api::TRAFFIC_DISTRIBUTION);
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let inherited = || {
        let namespace = look.get::<Namespace>("", namespace)?;
        label(namespace.metadata.annotations.as_ref(), api::TRAFFIC_DISTRIBUTION)
    };
    let wanted = own.or(annotation).or_else(inherited).unwrap_or_default();
    let preference = distribution(wanted);
    match (preference.is_empty(), health) {
        (true, HealthPolicy::OnlyHealthy) => None,
        (true, HealthPolicy::AllowAll) => {
            Some(LoadBalancing { preference, mode: LoadBalancingMode::Any, health })
        }
        (false, _) => Some(LoadBalancing { preference, mode: LoadBalancingMode::Failover, health }),
    }
}

/// The scopes that a traffic distribution prefers; none for one that is not known.
pub fn distribution(text: &str) -> Vec<LocalityScope> {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    match text.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => vec![Network, Region, Zone],
        "prefersamenode" => vec![Network, Region, Zone, Subzone, Node],
        _ => Vec::new(),
    }
}

/// The status of a Service that names a waypoint.
fn status(key: Key, meta: &ObjectMeta, binding: &Binding, step: &Step, unguarded: usize) -> Output {
    let body = Body::Conditions(vec![bound(binding, step, unguarded)]);
    Output::Status(Status { key, generation: meta.generation, body }.into())
}

/// The `WaypointBound` condition; `unguarded` counts pods that are not in the mesh.
pub fn bound(binding: &Binding, step: &Step, unguarded: usize) -> Condition {
    let gateway = &binding.gateway;
    let (bound, reason, message) = match binding.state {
        State::Ready | State::NotReady if *step == Step::Waiting => (
            false,
            "WaypointIsNotReady",
            format!("Waypoint {gateway} is starting; traffic goes direct until it is ready"),
        ),
        State::Ready => {
            (true, "WaypointAccepted", format!("Successfully attached to waypoint {gateway}"))
        }
        State::NotReady => (
            false,
            "WaypointIsNotReady",
            format!("Waypoint {gateway} has no ready pod: traffic is refused"),
        ),
        State::Absent => (
            false,
            "WaypointMissing",
            format!("Gateway {gateway} does not exist: traffic is refused"),
        ),
        State::Denied => (
            false,
            "AttachmentDenied",
            format!(
                "Waypoint {gateway} does not admit this namespace (allowedRoutes): traffic is refused"
            ),
        ),
        State::WrongTraffic => (
            false,
            "UnsupportedTrafficType",
            format!(
                "Waypoint {gateway} is not for services (istio.io/waypoint-for): traffic is refused"
            ),
        ),
    };
    let message = match unguarded {
        0 => message,
        count => format!(
            "{message}. Pods and WorkloadEntries that are not in the mesh, which nothing guards: {count}"
        ),
    };
    let condition = Condition::new("istio.io/WaypointBound", bound, reason, message);
    if bound { condition.after_ack() } else { condition }
}
