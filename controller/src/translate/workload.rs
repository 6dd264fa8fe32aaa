// SPDX-License-Identifier: Apache-2.0

//! Pods → workloads, and the guard in front of those behind a waypoint.
//!
//! Rule: Istio's `ambient/workloads.go`; a pod takes HBONE once its agent has proven the
//! capture (or another agent says so by annotation).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use policy::identity::{Identity, Namespace};
use routing::delta::Resource as Plane;
use routing::discovery::{
    AppProtocol, Health, Locality, NetworkMode, Port, ServiceKey, TunnelProtocol, Workload,
    WorkloadType,
};

use super::waypoint::{self, label};
use super::{authorization, entry, guard, peer_authentication, pod};
use crate::api;
use crate::output::{Config, Output, Scope};
use crate::store::Name;
use crate::store::facts::{PodState, Step};
use crate::store::lookup::Lookup;

/// Outputs of one pod.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(object) = look.get::<Pod>(&name.namespace, &name.name) else { return Vec::new() };
    if pod::is_terminal(object) || pod::addresses(object).is_empty() {
        return Vec::new();
    }
    let Some(mut workload) = base(name, object, look) else { return Vec::new() };
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let selecting = selecting(&name.namespace, &labels, look);
    if pod::takes_work(object, &selecting, look) {
        workload.health = Health::Healthy;
    }
    workload.services = services(object, &selecting);
    workload.services.extend(entry::services_of(&name.namespace, &labels, &BTreeMap::new(), look));
    workload.authorization_policies = authorization::selecting(&name.namespace, &labels, look);
    workload.authorization_policies.extend(peer_authentication::policies_of(
        &name.namespace,
        &labels,
        look,
    ));
    let mut outputs = Vec::new();
    if !waypoint::is_gateways_own(&object.metadata) && !pod::is_host_network(object) {
        let bound = waypoint::of_workload(&object.metadata, look);
        workload.waypoint = bound.as_ref().and_then(waypoint::Binding::address);
        if let Some(guard) = guard::of(&workload, bound.as_ref(), look) {
            workload.authorization_policies.push(guard.name.clone());
            outputs.push(Config::plane(Plane::Authorization(guard.into()), Scope::Everyone));
        }
    }
    outputs.push(Config::plane(Plane::Workload(workload.into()), Scope::Everyone));
    outputs
}

/// What the pod says by itself.
fn base(name: &Name, object: &Pod, look: &mut Lookup<'_>) -> Option<Workload> {
    let namespace: Namespace = name.namespace.parse().ok()?;
    let identity = Identity::new(
        &look.mesh().trust_domain.parse().ok()?,
        &namespace,
        &pod::service_account(object).parse().ok()?,
    );
    let cluster = &look.mesh().cluster_id;
    let uid = Workload::pod_key(cluster, &name.namespace, &name.name);
    let mut workload = Workload::new(uid, identity, namespace);
    workload.name = Arc::clone(&name.name);
    workload.cluster = Arc::clone(cluster);
    workload.pod_uid = object.metadata.uid.as_deref().map(Arc::from);
    workload.addresses = pod::addresses(object);
    workload.workload_name = pod::workload_name(object).into();
    workload.workload_type = WorkloadType::Pod;
    let (canonical_name, canonical_revision) = pod::canonical(object);
    workload.canonical_name = canonical_name.into();
    workload.canonical_revision = canonical_revision.into();
    workload.health = Health::Unhealthy;
    if pod::is_host_network(object) {
        workload.network_mode = NetworkMode::Host;
    }
    if takes_hbone(object, look) {
        workload.tunnel = TunnelProtocol::Hbone;
    }
    let own = |key| label(object.metadata.labels.as_ref(), key);
    if own(api::TUNNEL) == Some("http") {
        workload.tunnel = TunnelProtocol::Hbone;
        workload.native_tunnel = true;
    }
    let node = object.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    workload.node = node.unwrap_or_default().into();
    workload.locality = node.map(|node| locality(node, look)).unwrap_or_default();
    if let Some(subzone) = own(api::SUBZONE) {
        workload.locality.subzone = subzone.into();
    }
    Some(workload)
}

/// Tells whether the pod's capture is proven.
fn takes_hbone(object: &Pod, look: &mut Lookup<'_>) -> bool {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let since = look.told(uid).since;
    let proven = look.pod(uid).map(|fact| {
        // Else it is of an earlier stay in the mesh.
        let of_now = fact.state != PodState::Enrolled || fact.observed_generation >= since;
        if of_now { fact.state } else { PodState::Pending }
    });
    let said = label(object.metadata.annotations.as_ref(), api::REDIRECTION) == Some("enabled");
    match proven {
        // One that is to leave takes plain bytes before clients are told of it as plain, and
        // that is before its agent lets it go.
        Some(PodState::Enrolled) => pod::belongs(object, look) || look.step(uid) == Step::Opening,
        Some(PodState::Released | PodState::Failed | PodState::Pending) => false,
        None => said,
    }
}

fn locality(node: &str, look: &mut Lookup<'_>) -> Locality {
    let labels = look.get::<Node>("", node).and_then(|node| node.metadata.labels.as_ref());
    let text = |key| label(labels, key).unwrap_or_default().into();
    Locality { region: text(api::REGION), zone: text(api::ZONE), subzone: text(api::SUBZONE) }
}

/// The Services that select the pod, with the ports that it has.
fn services(object: &Pod, selecting: &[&Arc<Service>]) -> BTreeMap<ServiceKey, Arc<[Port]>> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = BTreeMap::new();
    for service in selecting {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let host = api::service_host(namespace, name);
        let Ok(namespace) = namespace.parse() else { continue };
        let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let mut ports: Vec<Port> = Vec::new();
        for port in listed {
            let Some(port) = workload_port(object, port) else { continue };
            if !ports.iter().any(|known| known.service_port == port.service_port) {
                ports.push(port);
            }
        }
        found.insert(ServiceKey::new(namespace, host.as_str()), ports.into());
    }
    found
}

/// The Services of `namespace` that select `labels`.
pub fn selecting<'a>(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    look: &mut Lookup<'a>,
) -> Vec<&'a Arc<Service>> {
    look.selecting::<Service>(namespace, labels, |service| {
        let spec = service.spec.as_ref()?;
        let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
        selector.filter(|_| spec.type_.as_deref() != Some("ExternalName"))
    })
}

/// The port of a Service as the pod has it; none if the pod lacks the port it names.
pub fn workload_port(object: &Pod, port: &ServicePort) -> Option<Port> {
    let service_port = u16::try_from(port.port).ok()?;
    let target = match &port.target_port {
        Some(target) => pod::target_port(object.spec.as_ref()?, target)?,
        None => pod::target_port(object.spec.as_ref()?, &IntOrString::Int(port.port))?,
    };
    Some(Port { service_port, target_port: target, app_protocol: AppProtocol::Unknown })
}

#[cfg(test)]
mod tests {
    use crate::output::{Family, Output, OutputKey, Resource};
    use crate::translate::testing::Edited;
    use routing::delta::Resource as Plane;
    use routing::discovery::Health;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {selector: {app: web, v: '1'}, ports: [{port: 80}]}\n";
    const READY: &str = "{type: Ready, status: 'True'}";
    /// What Kubernetes writes once nothing is heard from the node.
    const UNHEARD: &str = "{type: Ready, status: 'False'}, {type: ContainersReady, status: 'True'}";

    fn pod(name: &str, version: &str, conditions: &str) -> String {
        let address = if name == "a" { "10.0.0.1" } else { "10.0.0.2" };
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: app, uid: {name}, labels: {{app: web, v: '{version}'}}}}\n\
             spec: {{nodeName: n1, containers: [{{name: c}}]}}\nstatus: {{podIP: {address}, conditions: [{conditions}]}}\n"
        )
    }

    fn is_healthy(world: &Edited, name: &str) -> bool {
        let key = OutputKey::Config(
            Family::Address,
            format!("Kubernetes//Pod/app/{name}").as_str().into(),
        );
        let Some(Output::Config(config)) = world.table().get(&key) else { panic!("no {name}") };
        let Resource::Plane(Plane::Workload(workload)) = &config.resource else { panic!("{name}") };
        workload.health == Health::Healthy
    }

    #[test]
    fn pods_of_unheard_nodes_are_the_last_resort_of_their_service() {
        let mut world = Edited::default();
        world.put(SERVICE);
        world.put(&pod("a", "1", UNHEARD));
        world.put(&pod("b", "1", READY));
        assert!(!is_healthy(&world, "a") && is_healthy(&world, "b"), "another is ready");
        world.put(&pod("b", "1", UNHEARD));
        assert!(is_healthy(&world, "a") && is_healthy(&world, "b"), "no node is heard");
        world.put(&pod("b", "1", READY));
        assert!(!is_healthy(&world, "a") && is_healthy(&world, "b"), "one is heard again");
        world.put(&pod("b", "2", READY));
        assert!(is_healthy(&world, "a"), "the Service does not select the other any more");
    }

    #[test]
    fn what_a_kubelet_or_an_end_says_holds() {
        let says = "{type: Ready, status: 'False', reason: ReadinessGatesNotReady}, {type: ContainersReady, status: 'True'}";
        let containers = "{type: Ready, status: 'False'}, {type: ContainersReady, status: 'False'}";
        for conditions in [says, containers, "{type: Ready, status: 'False'}", ""] {
            let mut world = Edited::default();
            world.put(SERVICE);
            world.put(&pod("a", "1", conditions));
            assert!(!is_healthy(&world, "a"), "{conditions}");
        }
        let mut world = Edited::default();
        world.put(SERVICE);
        let leaving = pod("a", "1", UNHEARD)
            .replace("uid: a", "uid: a, deletionTimestamp: '2026-01-01T00:00:00Z'");
        world.put(&leaving);
        assert!(!is_healthy(&world, "a"), "not heard and on its way out");
        world.put(&leaving.replace(UNHEARD, READY));
        assert!(is_healthy(&world, "a"), "it serves still, and there is no other");
        world.put(&pod("b", "1", READY));
        assert!(!is_healthy(&world, "a"), "there is another");
        world.put(&pod("b", "1", UNHEARD));
        world.put(&SERVICE.replace("selector: {app: web, v: '1'}", "selector: {app: none}"));
        assert!(!is_healthy(&world, "b"), "no Service needs it");
    }
}
