// SPDX-License-Identifier: Apache-2.0

//! The objects that the benchmark makes, as JSON.
//!
//! Pods and their node have nothing behind them: no kubelet knows the node, and DaemonSets
//! that ask for an operating system leave it alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Namespace of the Gateway, its routes, and their Services.
pub(super) const EDGE: &str = "waymark-bench";
/// Namespace of the pods, which is in the mesh.
pub(super) const PODS: &str = "waymark-bench-pods";
/// The node of the pods.
pub(super) const NODE: &str = "waymark-bench-node";
/// The Gateway.
pub(super) const GATEWAY: &str = "edge";
/// Services that routes send to.
pub(super) const BACKENDS: usize = 50;
/// Pods behind one Service.
const PODS_OF_SERVICE: usize = 10;
/// Header of answers that tells which version of a route made them.
pub(super) const MARK: &str = "x-bench";
/// Where the value of [`MARK`] lies in a route.
pub(super) const MARK_AT: &str = "/spec/rules/0/filters/0/responseHeaderModifier/set/0/value";

pub(super) fn namespace(name: &str) -> Value {
    let mode = if name == PODS { "ambient" } else { "none" };
    json!({"metadata": {"name": name, "labels": {"istio.io/dataplane-mode": mode}}})
}

pub(super) fn gateway() -> Value {
    json!({
        // The thousand requests a second that look for an edit would be written down, and their
        // way to the disk takes more of the machine than they do.
        "metadata": {"name": GATEWAY, "annotations": {"gateway.waymark.dev/access-log": "off"}},
        "spec": {
            "gatewayClassName": "waymark",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
        },
    })
}

/// A Service that no kube-proxy serves: only the mesh is measured.
fn service(name: &str, selector: &Value) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"service.kubernetes.io/service-proxy-name": "none"}},
        "spec": {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn backend_name(route: usize) -> String {
    format!("backend-{}", route % BACKENDS)
}

/// The Service number `at` that routes send to; its endpoint is [`slice()`]'s.
pub(super) fn backend(at: usize) -> Value {
    service(&backend_name(at), &Value::Null)
}

/// Says that this process, at `address`, is behind the Service number `at`.
pub(super) fn slice(at: usize, address: std::net::SocketAddr) -> Value {
    let name = backend_name(at);
    json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/service-name": name,
            "service.kubernetes.io/service-proxy-name": "none",
        }},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": address.port()}],
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
    })
}

pub(super) fn route_name(at: usize) -> String {
    format!("route-{at}")
}

/// Host and path of requests that the route number `at` answers.
///
/// Every other route has a host of its own; the rest share one and differ by path.
pub(super) fn reached(at: usize) -> (String, String) {
    if at.is_multiple_of(2) {
        (format!("r{at}.bench.test"), "/".to_owned())
    } else {
        ("shared.bench.test".to_owned(), format!("/r{at}"))
    }
}

/// The rules of the route number `at`, whose answers bear `mark`.
pub(super) fn rules(at: usize, mark: &str) -> Value {
    let (_, path) = reached(at);
    json!([{
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "filters": [{
            "type": "ResponseHeaderModifier",
            "responseHeaderModifier": {"set": [{"name": MARK, "value": mark}]},
        }],
        "backendRefs": [{"name": backend_name(at), "port": 80}],
    }])
}

pub(super) fn route(at: usize) -> Value {
    let (host, _) = reached(at);
    json!({
        "metadata": {"name": route_name(at)},
        "spec": {
            "parentRefs": [{"name": GATEWAY}],
            "hostnames": [host],
            "rules": rules(at, "0"),
        },
    })
}

/// Number of Services in front of so many pods.
pub(super) fn services_of(pods: usize) -> usize {
    pods.div_ceil(PODS_OF_SERVICE)
}

fn service_name(at: usize) -> String {
    format!("service-{at}")
}

/// The Service number `at` in front of pods.
pub(super) fn pods_service(at: usize) -> Value {
    let name = service_name(at);
    service(&name, &json!({"app": name}))
}

pub(super) fn pod_name(at: usize) -> String {
    format!("pod-{at}")
}

/// The pod number `at`, of `pods` that there are at once.
pub(super) fn pod(at: usize, pods: usize) -> Value {
    let app = service_name(at % services_of(pods).max(1));
    json!({
        "metadata": {
            "name": pod_name(at),
            "labels": {"app": app, "version": "v1", "pod-template-hash": "5d4f6c7b8"},
        },
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "app",
                "image": "registry.bench.test/app:1",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "MODE", "value": "production"}, {"name": "LEVEL", "value": "info"}],
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
            }],
        },
    })
}

/// What a kubelet would say of the pod number `at`: it is ready, at an address of its own.
pub(super) fn pod_status(at: usize) -> Value {
    let address = format!("10.250.{}.{}", (at / 250) % 250, at % 250 + 1);
    let now = Timestamp::now().to_string();
    let kinds = ["Initialized", "PodScheduled", "ContainersReady", "Ready"];
    let conditions =
        kinds.map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}));
    json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "app", "image": "registry.bench.test/app:1", "imageID": "", "ready": true,
            "restartCount": 0, "started": true, "state": {"running": {"startedAt": now}},
        }],
    }})
}

pub(super) fn node() -> Value {
    // Without the label of an operating system no DaemonSet of the mesh comes here.
    json!({"metadata": {"name": NODE}, "spec": {"unschedulable": true}})
}

pub(super) fn node_status() -> Value {
    let now = Timestamp::now().to_string();
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "Bench",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    json!({"status": {"conditions": [ready]}})
}

/// The heartbeat of the node, without which its pods would be taken for lost.
pub(super) fn heartbeat() -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": NODE},
        "spec": {
            "holderIdentity": NODE,
            "leaseDurationSeconds": 40,
            "renewTime": MicroTime(Timestamp::now()),
        },
    })
}
