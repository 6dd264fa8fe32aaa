// SPDX-License-Identifier: Apache-2.0

//! Nodes and Pods as an apiserver would show them. Pure.
//!
//! Owns: metadata and spec that admission and scheduling fill in, and the status that a
//! kubelet reports.
//!
//! Start at [`pod`] and [`pod_status`].

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::container::State;
use super::pod::Sandbox;
use crate::local::address::Pair;
use crate::local::plan::{Owner, OwnerKind};

/// A time as Kubernetes writes it: whole seconds, UTC.
pub(super) fn timestamp(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// A random UUID of version 4.
pub(super) fn new_uid() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// The Node called `name`.
pub(crate) fn node(name: &str, uid: &str, addresses: Pair, created: OffsetDateTime) -> Value {
    let internal: Vec<Value> =
        addresses.texts().iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": uid,
            "creationTimestamp": timestamp(created),
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "status": {
            "addresses": internal,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

/// What is decided when a pod is made.
#[derive(Clone, Debug)]
pub(crate) struct Birth {
    /// Its name.
    pub(crate) name: String,
    /// Its UID.
    pub(crate) uid: String,
    /// Its node.
    pub(crate) node: String,
    /// When.
    pub(crate) created: OffsetDateTime,
}

/// Metadata and spec of a new pod of `owner`.
pub(crate) fn pod(owner: &Owner, birth: &Birth) -> Value {
    let mut object = serde_json::to_value(&owner.template).unwrap_or_default();
    let spec_default = json!({});
    let mut spec = object.get_mut("spec").map_or(spec_default, Value::take);
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("nodeName".into(), birth.node.clone().into());
        spec.entry("serviceAccountName").or_insert("default".into());
        spec.entry("restartPolicy").or_insert("Always".into());
        if let OwnerKind::StatefulSet { .. } = owner.kind {
            spec.entry("hostname").or_insert(birth.name.clone().into());
        }
    }
    let mut metadata = object.get_mut("metadata").map_or(json!({}), Value::take);
    if let Some(map) = metadata.as_object_mut() {
        map.insert("name".into(), birth.name.clone().into());
        map.insert("namespace".into(), owner.key.namespace.clone().into());
        map.insert("uid".into(), birth.uid.clone().into());
        map.insert("creationTimestamp".into(), timestamp(birth.created).into());
        map.entry("labels").or_insert(json!({}));
    }
    own(&mut metadata, owner, birth);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// Labels and owner reference that tell whose pod it is.
fn own(metadata: &mut Value, owner: &Owner, birth: &Birth) {
    let (kind, name, label) = match owner.kind {
        OwnerKind::Pod => return,
        OwnerKind::Deployment { .. } => {
            ("ReplicaSet", format!("{}-{}", owner.key.name, owner.hash), "pod-template-hash")
        }
        OwnerKind::StatefulSet { .. } => {
            ("StatefulSet", owner.key.name.clone(), "controller-revision-hash")
        }
        OwnerKind::DaemonSet => ("DaemonSet", owner.key.name.clone(), "controller-revision-hash"),
    };
    if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
        labels.insert(label.into(), owner.hash.clone().into());
        if let OwnerKind::StatefulSet { .. } = owner.kind {
            labels.insert("statefulset.kubernetes.io/pod-name".into(), birth.name.clone().into());
        }
    }
    if let Some(map) = metadata.as_object_mut() {
        let reference = json!([{
            "apiVersion": "apps/v1", "kind": kind, "name": name,
            "uid": format!("{}.{}", owner.key.namespace, name), "controller": true,
        }]);
        map.insert("ownerReferences".into(), reference);
    }
}

/// What a pod is doing, as far as its status tells.
#[derive(Clone, Debug)]
pub(super) struct Health {
    /// Whether something holds its containers up.
    pub(super) sandbox: Sandbox,
    /// Names and states of its containers.
    pub(super) containers: Vec<(String, State)>,
    /// The same of its init containers.
    pub(super) init: Vec<(String, State)>,
    /// Why it can never run.
    pub(super) broken: Option<(&'static str, String)>,
}

impl Health {
    /// Whether the pod takes traffic, its end aside.
    pub(super) fn ready(&self) -> bool {
        !self.containers.is_empty() && self.containers.iter().all(|(_, state)| state.ready)
    }

    /// The phase, as Kubernetes words it.
    pub(super) fn phase(&self) -> &'static str {
        let done = |(_, state): &(String, State)| state.done;
        let failed = |(_, state): &(String, State)| state.done && state.exit_code != Some(0);
        if self.init.iter().any(failed) {
            "Failed"
        } else if !self.containers.is_empty() && self.containers.iter().all(done) {
            if self.containers.iter().any(failed) { "Failed" } else { "Succeeded" }
        } else if self.containers.iter().any(|(_, state)| state.started.is_some()) {
            "Running"
        } else {
            "Pending"
        }
    }
}

/// The status of a pod. `changed` is when its readiness last turned.
pub(super) fn pod_status(
    health: &Health,
    node: Pair,
    addresses: Pair,
    spec: &Value,
    changed: OffsetDateTime,
) -> Value {
    let truth = |value: bool| if value { "True" } else { "False" };
    let time = timestamp(changed);
    let condition = |kind: &str, value: bool| json!({"type": kind, "status": truth(value), "lastTransitionTime": time});
    let ready = health.ready();
    let ips = |pair: Pair| pair.texts().iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    let mut status = json!({
        "phase": health.phase(),
        "podIP": addresses.v4.to_string(),
        "podIPs": ips(addresses),
        "hostIP": node.v4.to_string(),
        "hostIPs": ips(node),
        "conditions": [
            condition("PodScheduled", true),
            condition("PodReadyToStartContainers", health.sandbox.ready),
            condition("Initialized", health.init.iter().all(|(_, state)| state.exit_code == Some(0))),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "containerStatuses": statuses(&health.containers, spec, "containers", health),
    });
    if !health.init.is_empty()
        && let Some(map) = status.as_object_mut()
    {
        map.insert(
            "initContainerStatuses".into(),
            statuses(&health.init, spec, "initContainers", health),
        );
    }
    if let (Some(why), Some(map)) = (&health.sandbox.waiting, status.as_object_mut()) {
        map.insert("message".into(), why.clone().into());
    }
    status
}

fn statuses(states: &[(String, State)], spec: &Value, list: &str, health: &Health) -> Value {
    let image = |name: &str| {
        let containers = spec.get(list).and_then(Value::as_array).into_iter().flatten();
        let found = containers
            .into_iter()
            .find(|container| container.get("name").and_then(Value::as_str) == Some(name));
        found.and_then(|container| container.get("image").cloned()).unwrap_or_default()
    };
    let one = |(name, state): &(String, State)| {
        json!({
            "name": name,
            "image": image(name),
            "imageID": "",
            "ready": state.ready,
            "started": state.pid.is_some(),
            "restartCount": state.restarts,
            "containerID": state.pid.map(|pid| format!("process://{pid}")),
            "state": current(state, health),
        })
    };
    states.iter().map(one).collect()
}

fn current(state: &State, health: &Health) -> Value {
    if let Some((reason, message)) = &health.broken {
        return json!({"waiting": {"reason": reason, "message": message}});
    }
    let started = state.started.map(timestamp);
    if state.pid.is_some() {
        return json!({"running": {"startedAt": started}});
    }
    if state.done {
        let code = state.exit_code.unwrap_or_default();
        let reason = if code == 0 { "Completed" } else { "Error" };
        return json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": started}});
    }
    let reason = state.waiting.unwrap_or("ContainerCreating");
    json!({"waiting": {"reason": reason, "message": state.message}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(states: &[State]) -> Health {
        let containers = states.iter().map(|state| ("c".to_owned(), state.clone())).collect();
        Health { sandbox: Sandbox::default(), containers, init: Vec::new(), broken: None }
    }

    #[test]
    fn phase_and_readiness_follow_the_containers() {
        let now = Some(OffsetDateTime::UNIX_EPOCH);
        let idle = State::default();
        let running = State { pid: Some(9), started: now, ready: true, ..State::default() };
        let unready = State { ready: false, ..running.clone() };
        let done = State { done: true, exit_code: Some(0), started: now, ..State::default() };
        let failed = State { exit_code: Some(1), ..done.clone() };
        let cases = [
            (vec![idle.clone()], "Pending", false),
            (vec![running.clone()], "Running", true),
            (vec![running.clone(), unready], "Running", false),
            (vec![running, idle], "Running", false),
            (vec![done.clone()], "Succeeded", false),
            (vec![done, failed], "Failed", false),
        ];
        for (states, phase, ready) in cases {
            let health = health(&states);
            assert_eq!((health.phase(), health.ready()), (phase, ready), "{states:?}");
        }
    }

    #[test]
    fn uids_are_uuids_and_differ() {
        let (one, two) = (new_uid(), new_uid());
        assert_ne!(one, two);
        assert_eq!(one.len(), 36);
        assert_eq!(one.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&one.as_bytes()[19]), "{one}");
    }
}
