// SPDX-License-Identifier: Apache-2.0

//! From what an apiserver sends to what the stores hold. Pure.
//!
//! Owns: what is left out before an object is kept, besides what [`super::raw`] never reads.
//! Versions change with every write, our own status writes among them; what no translator reads
//! would only take memory.
//! A field that a translator begins to read must be kept here.

use serde_json::{Map, Value};

use super::Standing;
use crate::store::{Kind, Object};

/// Annotation with the whole object once more, as `kubectl apply` wrote it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What is kept of a container.
const CONTAINER: [&str; 7] = [
    "name",
    "ports",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "lifecycle",
    "restartPolicy",
];
/// What is kept of a pod's spec.
const POD_SPEC: [&str; 5] =
    ["nodeName", "serviceAccountName", "hostNetwork", "containers", "initContainers"];
/// What is kept of a pod's status.
const POD_STATUS: [&str; 4] = ["phase", "podIP", "podIPs", "conditions"];
/// The conditions of a pod that are read.
const POD_CONDITIONS: [&str; 2] = ["Ready", "ContainersReady"];
/// What is kept of one; the times tell nothing that a translator reads.
const POD_CONDITION: [&str; 3] = ["type", "status", "reason"];

/// The object as it is kept, and the status that stands in the cluster.
///
/// # Errors
///
/// When the object is not of the kind's form.
pub(super) fn read(
    kind: Kind,
    mut fields: Map<String, Value>,
) -> Result<(Object, Option<Standing>), serde_json::Error> {
    let standing = standing(kind, &mut fields);
    trim(kind, &mut fields);
    Ok((kind.read(Value::Object(fields))?, standing))
}

/// Version and status of an object whose status is ours to write.
fn standing(kind: Kind, fields: &mut Map<String, Value>) -> Option<Standing> {
    has_status(kind).then(|| Standing {
        version: fields
            .get("metadata")
            .and_then(|meta| meta.get("resourceVersion"))
            .and_then(Value::as_str)
            .map(Into::into),
        status: match keeps_status(kind) {
            true => fields.get("status").cloned(),
            false => fields.remove("status"),
        }
        .unwrap_or_default(),
    })
}

/// Tells whether translators read the status of this kind.
fn keeps_status(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::Service | Kind::ServiceEntry)
}

/// Tells whether statuses of this kind are written by us.
fn has_status(kind: Kind) -> bool {
    match kind {
        Kind::GatewayClass
        | Kind::Gateway
        | Kind::ListenerSet
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::UdpRoute
        | Kind::BackendTlsPolicy
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::Service => true,
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::ServiceAccount
        | Kind::Secret
        | Kind::ConfigMap
        | Kind::Deployment
        | Kind::HorizontalPodAutoscaler
        | Kind::PodDisruptionBudget
        | Kind::EndpointSlice
        | Kind::ReferenceGrant => false,
    }
}

fn trim(kind: Kind, fields: &mut Map<String, Value>) {
    if let Some(meta) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
    }
    match kind {
        // Besides names and labels only their taints are read.
        Kind::Node => {
            fields.remove("status");
            if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
                spec.retain(|name, _| name == "taints");
            }
        }
        // Only their names and labels are read.
        Kind::Namespace
        | Kind::Deployment
        | Kind::HorizontalPodAutoscaler
        | Kind::PodDisruptionBudget => {
            fields.remove("spec");
            fields.remove("status");
        }
        Kind::ServiceAccount => {
            fields.remove("secrets");
            fields.remove("imagePullSecrets");
        }
        Kind::Pod => pod(fields),
        Kind::Service => {
            if let Some(status) = fields.get_mut("status").and_then(Value::as_object_mut) {
                status.remove("conditions");
            }
        }
        // Its addresses are read.
        Kind::ServiceEntry => {
            if let Some(status) = fields.get_mut("status").and_then(Value::as_object_mut) {
                status.retain(|name, _| name == "addresses");
            }
        }
        Kind::Secret
        | Kind::ConfigMap
        | Kind::EndpointSlice
        | Kind::ReferenceGrant
        | Kind::GatewayClass
        | Kind::Gateway
        | Kind::ListenerSet
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::UdpRoute
        | Kind::BackendTlsPolicy
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::WorkloadEntry => {}
    }
}

fn pod(fields: &mut Map<String, Value>) {
    if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|name, _| POD_SPEC.contains(&name.as_str()));
        for list in ["containers", "initContainers"] {
            let all = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in all.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.retain(|name, _| CONTAINER.contains(&name.as_str()));
            }
        }
    }
    if let Some(status) = fields.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|name, _| POD_STATUS.contains(&name.as_str()));
        let mut all = status.get_mut("conditions").and_then(Value::as_array_mut);
        let is_read = |condition: &Value| {
            let kind = condition.get("type").and_then(Value::as_str);
            kind.is_some_and(|kind| POD_CONDITIONS.contains(&kind))
        };
        if let Some(all) = &mut all {
            all.retain(is_read);
        }
        for condition in all.into_iter().flatten().filter_map(Value::as_object_mut) {
            condition.retain(|name, _| POD_CONDITION.contains(&name.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(kind: Kind, value: Value) -> Result<(Object, Option<Standing>), serde_json::Error> {
        super::read(kind, value.as_object().unwrap().clone())
    }

    #[test]
    fn a_status_write_of_ours_leaves_the_kept_object_as_it_is() {
        let route = |version: &str, status: Value| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "r", "namespace": "n", "generation": 2, "resourceVersion": version,
                    "annotations": {LAST_APPLIED: version}},
                "spec": {"parentRefs": [{"name": "g"}]},
                "status": status,
            })
        };
        let (before, _) = read(Kind::HttpRoute, route("1", json!({}))).unwrap();
        let parents = json!({"parents": [{"controllerName": "x", "parentRef": {"name": "g"}}]});
        let (after, standing) = read(Kind::HttpRoute, route("2", parents.clone())).unwrap();
        assert_eq!(before, after);
        assert_eq!(after.meta().generation, Some(2));
        let standing = standing.unwrap();
        assert_eq!((standing.version.as_deref(), standing.status), (Some("2"), parents));
    }

    #[test]
    fn a_pod_keeps_what_translators_read_and_no_more() {
        let value = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "p"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "hostNetwork": true,
                "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}],
                    "ports": [{"containerPort": 80}], "readinessProbe": {"tcpSocket": {"port": 80}}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Initialized", "status": "True"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"}]},
        });
        let Object::Pod(pod) = read(Kind::Pod, value).unwrap().0 else { panic!("a pod") };
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("n1"));
        assert!(
            crate::translate::pod::is_ready(&pod) && crate::translate::pod::is_host_network(&pod)
        );
        assert_eq!(crate::translate::pod::addresses(&pod).len(), 1);
        assert!(spec.volumes.is_none() && spec.containers[0].env.is_none());
        assert!(spec.containers[0].ports.is_some() && spec.containers[0].readiness_probe.is_some());
        let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
        assert_eq!((conditions.len(), &conditions[0].last_transition_time), (2, &None));
        assert_eq!(conditions[1].reason.as_deref(), Some("ContainersNotReady"));
    }

    #[test]
    fn an_object_that_is_not_of_its_form_is_an_error() {
        assert!(read(Kind::Pod, json!({"metadata": {"name": 7}})).is_err());
    }
}
