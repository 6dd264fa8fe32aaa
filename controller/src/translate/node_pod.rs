// SPDX-License-Identifier: Apache-2.0

//! Pods → what the agent of their node is told: which belong in the mesh, and how.
//!
//! Rule: enrolment test of Istio's `cni/pkg/util`. A pod is told as soon as it has a node; its
//! addresses may follow. Exempt from capture are the (address, port) pairs that probes and
//! lifecycle hooks name, and nothing else.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, PodSpec, Probe as KubeProbe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use routing::wire::messages::waymark::v1::{NodePod, Probe};

use super::waypoint::label;
use super::{peer_authentication, pod};
use crate::api;
use crate::output::{Config, Output, Resource, Scope};
use crate::store::Name;
use crate::store::facts::Step;
use crate::store::lookup::Lookup;

/// Outputs of one pod.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(object) = look.get::<Pod>(&name.namespace, &name.name) else { return Vec::new() };
    let (Some(spec), Some(uid)) = (&object.spec, &object.metadata.uid) else { return Vec::new() };
    let Some(node) = &spec.node_name else { return Vec::new() };
    let step = look.step(uid);
    if !pod::belongs(object, look) && !matches!(step, Step::Opening | Step::Releasing) {
        return Vec::new();
    }
    // While clients change from plain to HBONE or back, both must reach the application.
    let changing = matches!(step, Step::Joining | Step::Opening | Step::Releasing);
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let (holds, _) = peer_authentication::effective(&name.namespace, &labels, look);
    let annotations = object.metadata.annotations.as_ref();
    let told = NodePod {
        uid: uid.clone(),
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        service_account: pod::service_account(object).to_owned(),
        addresses: pod::addresses(object).into_iter().map(octets).collect(),
        probes: probes(spec),
        dns_capture: !is_false(label(annotations, api::DNS_CAPTURE)),
        bypass_inbound: changing || is_true(label(annotations, api::BYPASS_INBOUND)),
        strict: holds.strict,
        generation: look.told(uid).generation,
    };
    vec![Config::output(Resource::NodePod(told.into()), Scope::Node(node.as_str().into()))]
}

fn is_true(value: Option<&str>) -> bool {
    matches!(value, Some("true" | "1" | "t" | "T" | "True" | "TRUE"))
}

fn is_false(value: Option<&str>) -> bool {
    matches!(value, Some("false" | "0" | "f" | "F" | "False" | "FALSE"))
}

/// The bytes of an address.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Where the kubelet calls the pod.
fn probes(spec: &PodSpec) -> Vec<Probe> {
    let mut found = Vec::new();
    for container in pod::containers(spec) {
        let probes =
            [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        for probe in probes.into_iter().flatten() {
            found.extend(probe_target(spec, probe));
        }
        found.extend(hooks(container).filter_map(|hook| http_target(spec, hook)));
    }
    found.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
    found.dedup();
    found
}

fn hooks(container: &Container) -> impl Iterator<Item = &HTTPGetAction> {
    let lifecycle = container.lifecycle.iter();
    lifecycle
        .flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop])
        .flatten()
        .filter_map(|handler| handler.http_get.as_ref())
}

fn probe_target(spec: &PodSpec, probe: &KubeProbe) -> Option<Probe> {
    if let Some(http) = &probe.http_get {
        return http_target(spec, http);
    }
    if let Some(tcp) = &probe.tcp_socket {
        return target(spec, tcp.host.as_deref(), &tcp.port);
    }
    let grpc = probe.grpc.as_ref()?;
    target(spec, None, &IntOrString::Int(grpc.port))
}

fn http_target(spec: &PodSpec, http: &HTTPGetAction) -> Option<Probe> {
    target(spec, http.host.as_deref(), &http.port)
}

/// A probe that names another host does not concern the pod, unless it is one of its addresses:
/// the agent compares.
fn target(spec: &PodSpec, host: Option<&str>, port: &IntOrString) -> Option<Probe> {
    let address = match host.filter(|host| !host.is_empty()) {
        Some(host) => octets(host.parse().ok()?),
        None => Vec::new(),
    };
    let port = u32::from(pod::target_port(spec, port)?);
    Some(Probe { address, port })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::testing::stores;
    use super::*;
    use crate::settings::Mesh;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {istio.io/dataplane-mode: ambient}}\n";

    #[test]
    fn every_place_that_the_kubelet_calls_is_told_and_no_other() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [
                {
                    "name": "a",
                    "ports": [{"name": "admin", "containerPort": 9000}],
                    "startupProbe": {"tcpSocket": {"port": 8081}},
                    "readinessProbe": {"httpGet": {"path": "/", "port": "admin"}},
                    "livenessProbe": {"grpc": {"port": 8082}},
                    "lifecycle": {
                        "postStart": {"httpGet": {"host": "10.0.0.9", "port": 8083}},
                        "preStop": {"exec": {"command": ["true"]}},
                    },
                },
                {
                    "name": "b",
                    "readinessProbe": {"exec": {"command": ["true"]}},
                    "livenessProbe": {"httpGet": {"port": "of-nobody"}},
                    "startupProbe": {"tcpSocket": {"host": "other.example", "port": 8084}},
                },
            ],
            "initContainers": [
                {"name": "c", "restartPolicy": "Always", "readinessProbe": {"grpc": {"port": 8085}}},
                {"name": "d", "readinessProbe": {"grpc": {"port": 8086}}},
            ],
        }))
        .unwrap();
        let found: Vec<_> = probes(&spec).into_iter().map(|one| (one.address, one.port)).collect();
        let any = [8081, 8082, 8085, 9000].map(|port| (Vec::new(), port));
        let named = (vec![10, 0, 0, 9], 8083);
        assert_eq!(found, any.into_iter().chain([named]).collect::<Vec<_>>());
    }

    /// What the agent is told of a pod with these annotations and labels.
    fn told(annotations: &str, labels: &str) -> Option<NodePod> {
        told_in(&Mesh::default(), annotations, labels)
    }

    fn told_in(mesh: &Mesh, annotations: &str, labels: &str) -> Option<NodePod> {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: n, uid: u, annotations: {{{annotations}}}, labels: {{{labels}}}}}\n\
             spec: {{nodeName: n1, containers: [{{name: c}}]}}\n"
        );
        let stores = stores(&[NAMESPACE, &pod]);
        let outputs = run(&Name::new("n", "p"), &mut Lookup::new(&stores, mesh));
        outputs.into_iter().find_map(|output| {
            let Output::Config(config) = output else { return None };
            match &config.resource {
                Resource::NodePod(told) => Some(NodePod::clone(told)),
                Resource::Plane(_) | Resource::Roots(_) => None,
            }
        })
    }

    #[test]
    fn annotations_of_a_pod_say_what_of_it_is_captured() {
        let rows = [
            ("", (true, false)),
            ("ambient.istio.io/dns-capture: 'false'", (false, false)),
            ("ambient.istio.io/dns-capture: 'true'", (true, false)),
            ("ambient.istio.io/bypass-inbound-capture: 'true'", (true, true)),
            ("ambient.istio.io/bypass-inbound-capture: 'no'", (true, false)),
        ];
        for (annotations, want) in rows {
            let told = told(annotations, "").unwrap();
            assert_eq!((told.dns_capture, told.bypass_inbound), want, "{annotations}");
        }
        assert_eq!(told("sidecar.istio.io/status: '{}'", ""), None);
        assert_eq!(told("", "istio.io/dataplane-mode: none"), None);
        for (excluded, inside) in [("other", true), ("n", false)] {
            let mesh = Mesh { excluded: [Arc::from(excluded)].into(), ..Mesh::default() };
            for labels in ["", "istio.io/dataplane-mode: ambient"] {
                let told = told_in(&mesh, "", labels);
                assert_eq!(told.is_some(), inside, "{excluded}, {labels}");
            }
            let stores = stores(&[NAMESPACE]);
            let outside = pod::outside_namespaces(&mut Lookup::new(&stores, &mesh), &stores);
            assert!(outside.contains(&excluded.to_owned()), "{outside:?}");
            assert_eq!(outside.contains(&"n".to_owned()), !inside, "{outside:?}");
        }
    }
}
