// SPDX-License-Identifier: Apache-2.0

//! How many pods a Deployment has: what a cluster writes into its status.

use serde_json::{Value, json};

use super::columns::condition;
use crate::cli::format::{items, number, text};

/// How many pods the Deployment wants.
pub(super) fn wanted(deployment: &Value) -> u64 {
    match deployment.pointer("/spec/replicas") {
        Some(_) => number(deployment, "/spec/replicas"),
        None => 1,
    }
}

/// Fills in the status of `deployment` from `pods`, if it brings none.
///
/// Those made from its newest template are up to date: they share a hash with the youngest.
pub(super) fn count(deployment: &mut Value, pods: &[Value]) {
    let own: Vec<&Value> = pods
        .iter()
        .filter(|pod| {
            is_of(deployment, pod) && pod.pointer("/metadata/deletionTimestamp").is_none()
        })
        .collect();
    let ready = own.iter().filter(|pod| condition(pod, "/status/conditions", "Ready") == "True");
    let ready = ready.count();
    let hash = |pod: &Value| text(pod, "/metadata/labels/pod-template-hash");
    let youngest = own.iter().max_by_key(|pod| text(pod, "/metadata/creationTimestamp"));
    let newest = youngest.map(|pod| hash(pod)).unwrap_or_default();
    let updated = own.iter().filter(|pod| hash(pod) == newest).count();
    let status = json!({
        "replicas": own.len(),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "updatedReplicas": updated,
    });
    if let Some(fields) = deployment.as_object_mut() {
        fields.entry("status").or_insert(status);
    }
}

/// Whether a ReplicaSet of the Deployment owns the pod.
fn is_of(deployment: &Value, pod: &Value) -> bool {
    let set = format!(
        "{}-{}",
        text(deployment, "/metadata/name"),
        text(pod, "/metadata/labels/pod-template-hash")
    );
    let owns = |owner: &Value| text(owner, "/kind") == "ReplicaSet" && text(owner, "/name") == set;
    text(pod, "/metadata/namespace") == text(deployment, "/metadata/namespace")
        && items(pod, "/metadata/ownerReferences").any(owns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, hash: &str, ready: &str, created: &str) -> Value {
        json!({
            "metadata": {
                "namespace": "n", "name": name, "creationTimestamp": created,
                "labels": {"pod-template-hash": hash},
                "ownerReferences": [{"kind": "ReplicaSet", "name": format!("web-{hash}")}],
            },
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[test]
    fn pods_count_for_the_deployment_that_made_them() {
        let mut going = pod("d", "new", "True", "2026-01-03T00:00:00Z");
        going["metadata"]["deletionTimestamp"] = "2026-01-04T00:00:00Z".into();
        let mut foreign = pod("e", "new", "True", "2026-01-03T00:00:00Z");
        foreign["metadata"]["namespace"] = "m".into();
        let pods = [
            pod("a", "old", "True", "2026-01-01T00:00:00Z"),
            pod("b", "new", "True", "2026-01-02T00:00:00Z"),
            pod("c", "new", "False", "2026-01-02T00:00:00Z"),
            going,
            foreign,
        ];
        let mut web = json!({"metadata": {"namespace": "n", "name": "web"}, "spec": {}});
        count(&mut web, &pods);
        let want = json!({
            "replicas": 3, "readyReplicas": 2, "availableReplicas": 2, "updatedReplicas": 2,
        });
        assert_eq!((&web["status"], wanted(&web)), (&want, 1));

        let mut told = json!({"metadata": {"namespace": "n", "name": "web"}, "status": {"x": 1}});
        count(&mut told, &pods);
        assert_eq!(told["status"], json!({"x": 1}));
    }
}
