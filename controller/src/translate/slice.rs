// SPDX-License-Identifier: Apache-2.0

//! EndpointSlices of Services without a selector → workloads.
//!
//! Those of other Services repeat what pods say already, and pods say more; on Kubernetes they
//! are not even watched.
//!
//! Rule: Istio's `ambient/workloads.go`: such an endpoint has no identity, waypoint or locality
//! of its own, and does not claim its address; names that stand for addresses are not served.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use policy::identity::{Identity, Namespace};
use routing::delta::Resource as Plane;
use routing::discovery::{AppProtocol, Health, NetworkMode, Port, ServiceKey, Workload};

use super::waypoint::label;
use crate::api;
use crate::output::{Config, Output, Scope};
use crate::store::Name;
use crate::store::lookup::Lookup;

/// Label: the Service that a slice belongs to.
const SERVICE: &str = "kubernetes.io/service-name";

/// Outputs of one EndpointSlice.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(slice) = look.get::<EndpointSlice>(&name.namespace, &name.name) else {
        return Vec::new();
    };
    let Some(service) = label(slice.metadata.labels.as_ref(), SERVICE) else { return Vec::new() };
    let Some(object) = look.get::<Service>(&name.namespace, service) else { return Vec::new() };
    let spec = object.spec.as_ref();
    let selects = spec.and_then(|spec| spec.selector.as_ref()).is_some_and(|s| !s.is_empty());
    if selects || spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        return Vec::new();
    }
    let listed = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let ports: Arc<[Port]> = ports(listed, slice.ports.as_deref().unwrap_or_default()).into();
    let host = api::service_host(&name.namespace, service);
    let none_is_ready = !slice.endpoints.iter().any(is_ready);
    let made = slice.endpoints.iter().filter_map(|endpoint| {
        let mut workload = workload(name, endpoint, look)?;
        if is_ready(endpoint) || (none_is_ready && serves(endpoint)) {
            workload.health = Health::Healthy;
        }
        let key = ServiceKey::new(workload.namespace.clone(), host.as_str());
        workload.services.insert(key, Arc::clone(&ports));
        Some(Config::plane(Plane::Workload(workload.into()), Scope::Everyone))
    });
    made.collect()
}

/// The ports of the Service that the slice serves, joined by name.
fn ports(service: &[ServicePort], slice: &[EndpointPort]) -> Vec<Port> {
    let mut found: Vec<Port> = Vec::new();
    for port in service {
        let same = |other: &&EndpointPort| {
            other.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
        };
        let target = slice.iter().find(same).and_then(|other| other.port).unwrap_or(0);
        let (Ok(service_port), Ok(target_port)) = (u16::try_from(port.port), u16::try_from(target))
        else {
            continue;
        };
        if target_port != 0 && !found.iter().any(|known| known.service_port == service_port) {
            found.push(Port { service_port, target_port, app_protocol: AppProtocol::Unknown });
        }
    }
    found
}

fn workload(name: &Name, endpoint: &Endpoint, look: &Lookup<'_>) -> Option<Workload> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let namespace: Namespace = name.namespace.parse().ok()?;
    let account = Workload::DEFAULT_SERVICE_ACCOUNT.parse().ok()?;
    let identity = Identity::new(&look.mesh().trust_domain.parse().ok()?, &namespace, &account);
    let cluster = &look.mesh().cluster_id;
    let uid = format!(
        "{cluster}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
        name.namespace, name.name
    );
    let mut made = Workload::new(uid, identity, namespace);
    made.name = Arc::clone(&name.name);
    made.cluster = Arc::clone(cluster);
    made.addresses = vec![address];
    // The address may be a pod's: that pod, and not this, is asked for by it.
    made.network_mode = NetworkMode::Host;
    made.health = Health::Unhealthy;
    Some(made)
}

/// Not told means ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
}

/// Tells whether the endpoint serves still although it is on its way out: the last resort of a
/// slice without a ready one.
///
/// Rule: Kubernetes' KEP 1669, as kube-proxy has it.
fn serves(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_some_and(|all| all.serving == Some(true) && all.terminating == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Resource;
    use crate::settings::Mesh;
    use crate::source::document;
    use crate::store::Stores;
    use std::path::Path;

    const ENDPOINTS: &str = "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}, {addresses: [name.example]}";

    fn outputs(selector: &str, endpoints: &str) -> Vec<Workload> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n}}\nspec: {{{selector} ports: [{{name: a, port: 80}}, {{name: b, port: 81}}]}}\n---\n\
            apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-1, namespace: n, labels: {{kubernetes.io/service-name: s}}}}\n\
            addressType: IPv4\nports: [{{name: a, port: 3000}}]\n\
            endpoints: [{endpoints}]\n"
        );
        let mut stores = Stores::default();
        let parsed = document::parse(Path::new("f"), &text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        for placed in parsed.objects {
            stores.put(placed.object);
        }
        let mesh = Mesh::default();
        let made = run(&Name::new("n", "s-1"), &mut Lookup::new(&stores, &mesh));
        let workload = |output| {
            let Output::Config(config) = output else { return None };
            let Resource::Plane(Plane::Workload(one)) = &config.resource else { return None };
            Some((**one).clone())
        };
        made.into_iter().filter_map(workload).collect()
    }

    #[test]
    fn a_service_without_a_selector_has_the_endpoints_that_are_written() {
        let made = outputs("", ENDPOINTS);
        let uids: Vec<_> = made.iter().map(|one| &*one.uid).collect();
        let uid = |ip: &str| format!("Kubernetes/discovery.k8s.io/EndpointSlice/n/s-1/{ip}");
        assert_eq!(uids, [uid("10.0.0.1"), uid("10.0.0.2")], "a name is no address");
        assert_eq!((made[0].health, made[1].health), (Health::Healthy, Health::Unhealthy));
        let key = ServiceKey::new("n".parse().unwrap(), "s.n.svc.cluster.local");
        let ports = &made[0].services[&key];
        assert_eq!(ports.len(), 1, "port b has no endpoints");
        assert_eq!((ports[0].service_port, ports[0].target_port), (80, 3000));
        assert_eq!(made[0].network_mode, NetworkMode::Host, "it claims no address");

        assert!(outputs("selector: {app: s},", ENDPOINTS).is_empty(), "pods speak for themselves");
    }

    #[test]
    fn endpoints_that_end_serve_while_there_is_no_other() {
        let ends = |serving| {
            format!("conditions: {{ready: false, serving: {serving}, terminating: true}}")
        };
        let healthy = |first: &str| -> Vec<bool> {
            let listed = format!(
                "{{addresses: [10.0.0.1], {first}}}, {{addresses: [10.0.0.2], {}}}, {{addresses: [10.0.0.3], {}}}",
                ends(true),
                ends(false)
            );
            outputs("", &listed).iter().map(|one| one.health == Health::Healthy).collect()
        };
        assert_eq!(healthy("conditions: {ready: true}"), [true, false, false]);
        assert_eq!(healthy("conditions: {ready: false, serving: true}"), [false, true, false]);
    }
}
