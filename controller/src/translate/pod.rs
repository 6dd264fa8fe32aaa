// SPDX-License-Identifier: Apache-2.0

//! What translators ask of a pod: addresses, readiness, ports, owner, whether it belongs in
//! the mesh.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodCondition, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::leave;
use super::waypoint::label;
use crate::api;
use crate::store::Stores;
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;

/// Namespaces whose pods never belong in the mesh, besides the root namespace.
pub const OUTSIDE: [&str; 1] = ["kube-system"];

/// Tells whether the pod takes new work: Ready, and not on its way out.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && says_ready(pod)
}

/// Tells whether the pod's probes pass, on its way out or not.
fn says_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Tells whether the pod was ready when its kubelet was last heard, and it is Kubernetes that
/// says otherwise since: nothing was heard from the node.
///
/// Rule: `MarkPodsNotReady` of Kubernetes' node lifecycle controller, which gives no reason; a
/// kubelet that takes a pod for not ready always names one.
fn is_unheard(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let find = |name| conditions.unwrap_or_default().iter().find(|one| one.type_ == name);
    let gives_no_reason = |one: &PodCondition| one.reason.as_deref().unwrap_or_default().is_empty();
    pod.metadata.deletion_timestamp.is_none()
        && find("Ready").is_some_and(|one| one.status == "False" && gives_no_reason(one))
        && find("ContainersReady").is_some_and(|one| one.status == "True")
}

/// Tells whether work may be given to any of the pods.
///
/// The last resort are those of nodes that are not heard: after an apiserver was away all of
/// them can be such, although every pod serves, and refusing everything would help nobody.
pub fn any_serves<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> bool {
    pods.into_iter().any(|pod| is_ready(pod) || is_unheard(pod))
}

/// Tells whether work may be given to the pod: it is ready, or a last resort.
///
/// That is one whose node is not heard, or which serves still although it is on its way out,
/// when a Service that selects it has no ready pod.
///
/// Rule: for pods on their way out Kubernetes' KEP 1669, as kube-proxy has it.
pub fn takes_work(pod: &Pod, services: &[&Arc<Service>], look: &mut Lookup<'_>) -> bool {
    if is_ready(pod) || !(is_unheard(pod) || says_ready(pod)) {
        return is_ready(pod);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    services.iter().any(|service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let Some((key, value)) = selector.and_then(BTreeMap::first_key_value) else { return false };
        let others = look.list::<Pod>(Index::Label, &index::label(namespace, key, value));
        !others.into_iter().any(|other| is_ready(other) && selects(selector, other))
    })
}

fn selects(selector: Option<&BTreeMap<String, String>>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.into_iter().flatten().all(|(key, value)| label(labels, key) == Some(value))
}

/// Tells whether the pod has ended for good.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Tells whether the pod shares the addresses of its node.
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The addresses of the pod; one that does not parse is left out.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut found: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if found.is_empty() {
        found.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    found
}

/// The service account that the pod runs as.
pub fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.service_account_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
}

/// The containers that run for as long as the pod does.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let lasting = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(lasting);
    spec.containers.iter().chain(sidecars)
}

/// The port of the pod that `target` names; a number stands for itself.
pub fn target_port(spec: &PodSpec, target: &IntOrString) -> Option<u16> {
    match target {
        IntOrString::Int(port) => u16::try_from(*port).ok().filter(|port| *port != 0),
        IntOrString::String(name) => match name.parse::<u16>() {
            Ok(port) => Some(port),
            Err(_) => containers(spec)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|port| port.name.as_deref() == Some(name))
                .and_then(|port| u16::try_from(port.container_port).ok()),
        },
    }
}

/// Name of what owns the pod: a Deployment rather than its ReplicaSet; the pod itself if nothing does.
pub fn workload_name(pod: &Pod) -> &str {
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.as_ref();
    if let Some(name) = label(labels, api::WORKLOAD_NAME) {
        return name;
    }
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners.find(|owner| owner.controller == Some(true)) else { return own };
    if owner.kind != "ReplicaSet" {
        return &owner.name;
    }
    let hash = label(labels, "pod-template-hash");
    let bare = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
    bare.or_else(|| owner.name.rsplit_once('-').map(|(name, _)| name)).unwrap_or(&owner.name)
}

/// Telemetry name and revision of the pod.
pub fn canonical(pod: &Pod) -> (&str, &str) {
    let labels = pod.metadata.labels.as_ref();
    let first = |keys: [&str; 3]| keys.into_iter().find_map(|key| label(labels, key));
    let name = first([api::CANONICAL_NAME, "app.kubernetes.io/name", "app"]);
    let revision = first([api::CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
    (name.unwrap_or_else(|| workload_name(pod)), revision.unwrap_or("latest"))
}

/// Tells whether pods of `namespace` can belong in the mesh at all.
pub fn namespace_can_enrol(namespace: &str, look: &Lookup<'_>) -> bool {
    let mesh = look.mesh();
    let excluded = mesh.excluded.iter().any(|name| **name == *namespace);
    !excluded && !OUTSIDE.contains(&namespace) && *mesh.root_namespace != *namespace
}

/// Tells whether the pod belongs in the mesh.
///
/// Rule: Istio's default enablement selectors; never host network, injected or terminal pods.
/// None does while the mesh leaves the cluster.
pub fn belongs(pod: &Pod, look: &mut Lookup<'_>) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let injected = label(pod.metadata.annotations.as_ref(), api::SIDECAR_STATUS).is_some();
    if is_host_network(pod) || injected || is_terminal(pod) || !namespace_can_enrol(namespace, look)
    {
        return false;
    }
    if leave::is_ordered(look) {
        return false;
    }
    match label(pod.metadata.labels.as_ref(), api::DATAPLANE_MODE) {
        Some("ambient") => true,
        Some("none") => false,
        Some(_) | None => look.get::<Namespace>("", namespace).is_some_and(|n| is_ambient(n)),
    }
}

/// Tells whether pods of the namespace belong in the mesh unless they say otherwise.
fn is_ambient(namespace: &Namespace) -> bool {
    label(namespace.metadata.labels.as_ref(), api::DATAPLANE_MODE) == Some("ambient")
}

/// Namespaces whose pods need not wait for the mesh: those that are not labelled or not looked
/// at, and those that never belong in it. One that is not known is not among them.
pub fn outside_namespaces(look: &mut Lookup<'_>, stores: &Stores) -> Vec<String> {
    let leaves = leave::is_ordered(look);
    let plain = |namespace: &Namespace| {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let taken = look.mesh().discovery.take(name, namespace.metadata.labels.as_ref());
        leaves || !is_ambient(namespace) || !taken || !namespace_can_enrol(name, look)
    };
    let mesh = look.mesh();
    let told = mesh.excluded.iter().chain([&mesh.root_namespace]).map(ToString::to_string);
    let never: Vec<String> = OUTSIDE.iter().map(ToString::to_string).chain(told).collect();
    let known = stores.all::<Namespace>().filter(|namespace| plain(namespace));
    let mut all: Vec<String> =
        known.filter_map(|namespace| namespace.metadata.name.clone()).chain(never).collect();
    all.sort();
    all.dedup();
    all
}
