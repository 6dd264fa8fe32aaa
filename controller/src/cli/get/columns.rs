// SPDX-License-Identifier: Apache-2.0

//! The columns of each kind, as `kubectl get` shows them, and those that say how its status is.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::replicas;
use crate::api;
use crate::cli::format::{items, number, text, texts};

/// One column.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Shown only when more is wanted.
    pub(super) wide: bool,
    pub(super) cell: fn(&Value, OffsetDateTime) -> String,
}

const fn column(title: &'static str, cell: fn(&Value, OffsetDateTime) -> String) -> Column {
    Column { title, wide: false, cell }
}

const fn wide(title: &'static str, cell: fn(&Value, OffsetDateTime) -> String) -> Column {
    Column { title, wide: true, cell }
}

const NAMESPACE: Column = column("NAMESPACE", |object, _| text(object, "/metadata/namespace"));
pub(super) const NAME: Column = column("NAME", |object, _| text(object, "/metadata/name"));
const AGE: Column =
    column("AGE", |object, now| age(&text(object, "/metadata/creationTimestamp"), now));
const LABELS: Column = wide("LABELS", |object, _| pairs(object, "/metadata/labels"));

/// The columns of a kind.
pub(super) fn columns(kind: &str) -> Vec<Column> {
    match kind {
        "Pod" => pod_columns(),
        "Service" => service_columns(),
        "Node" => node_columns(),
        "Namespace" => namespace_columns(),
        "Gateway" => gateway_columns(),
        "GatewayClass" => class_columns(),
        "AuthorizationPolicy" => policy_columns(),
        "Deployment" => deployment_columns(),
        "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" | "UDPRoute" => route_columns(),
        _ => vec![NAMESPACE, NAME, AGE, LABELS],
    }
}

fn pod_columns() -> Vec<Column> {
    vec![
        NAMESPACE,
        NAME,
        column("READY", |pod, _| {
            let all = items(pod, "/spec/containers").count();
            let ready = items(pod, "/status/containerStatuses")
                .filter(|status| status.get("ready") == Some(&Value::Bool(true)))
                .count();
            format!("{ready}/{all}")
        }),
        column("STATUS", |pod, _| pod_status(pod)),
        column("RESTARTS", |pod, _| {
            let restarts = items(pod, "/status/containerStatuses")
                .filter_map(|status| status.get("restartCount").and_then(Value::as_u64));
            restarts.sum::<u64>().to_string()
        }),
        AGE,
        wide("IP", |pod, _| text(pod, "/status/podIP")),
        wide("NODE", |pod, _| text(pod, "/spec/nodeName")),
        LABELS,
    ]
}

fn service_columns() -> Vec<Column> {
    vec![
        NAMESPACE,
        NAME,
        column("TYPE", |service, _| text(service, "/spec/type")),
        column("CLUSTER-IP", |service, _| text(service, "/spec/clusterIP")),
        column("EXTERNAL-IP", |service, _| {
            let ips =
                items(service, "/status/loadBalancer/ingress").map(|ingress| text(ingress, "/ip"));
            ips.collect::<Vec<_>>().join(",")
        }),
        column("PORT(S)", |service, _| {
            let port = |port: &Value| {
                let protocol = text(port, "/protocol");
                let protocol = if protocol.is_empty() { "TCP".to_owned() } else { protocol };
                format!("{}/{protocol}", text(port, "/port"))
            };
            items(service, "/spec/ports").map(port).collect::<Vec<_>>().join(",")
        }),
        AGE,
        wide("SELECTOR", |service, _| pairs(service, "/spec/selector")),
    ]
}

fn node_columns() -> Vec<Column> {
    vec![
        NAME,
        column("STATUS", |node, _| {
            if condition(node, "/status/conditions", "Ready") == "True" {
                "Ready"
            } else {
                "NotReady"
            }
            .to_owned()
        }),
        AGE,
        column("INTERNAL-IP", |node, _| {
            items(node, "/status/addresses")
                .next()
                .map(|address| text(address, "/address"))
                .unwrap_or_default()
        }),
    ]
}

fn namespace_columns() -> Vec<Column> {
    vec![
        NAME,
        column("MESH", |object, _| label(object, api::DATAPLANE_MODE)),
        column("WAYPOINT", |object, _| label(object, api::USE_WAYPOINT)),
        AGE,
        LABELS,
    ]
}

fn gateway_columns() -> Vec<Column> {
    vec![
        NAMESPACE,
        NAME,
        column("CLASS", |gateway, _| text(gateway, "/spec/gatewayClassName")),
        column("ADDRESS", |gateway, _| {
            items(gateway, "/status/addresses")
                .next()
                .map(|address| text(address, "/value"))
                .unwrap_or_default()
        }),
        column("ACCEPTED", |gateway, _| condition(gateway, "/status/conditions", "Accepted")),
        column("PROGRAMMED", |gateway, _| condition(gateway, "/status/conditions", "Programmed")),
        AGE,
        wide("REASON", |gateway, _| reasons(gateway, "/status/conditions")),
    ]
}

fn class_columns() -> Vec<Column> {
    vec![
        NAME,
        column("CONTROLLER", |class, _| text(class, "/spec/controllerName")),
        column("ACCEPTED", |class, _| condition(class, "/status/conditions", "Accepted")),
        AGE,
    ]
}

fn policy_columns() -> Vec<Column> {
    vec![
        NAMESPACE,
        NAME,
        column("ACTION", |policy, _| {
            let action = text(policy, "/spec/action");
            if action.is_empty() { "ALLOW".to_owned() } else { action }
        }),
        column("ACCEPTED", |policy, _| accepted(policy)),
        AGE,
        wide("REASON", |policy, _| reasons(policy, "/status/conditions")),
    ]
}

fn deployment_columns() -> Vec<Column> {
    vec![
        NAMESPACE,
        NAME,
        column("READY", |object, _| {
            let ready = number(object, "/status/readyReplicas");
            format!("{ready}/{}", replicas::wanted(object))
        }),
        column("UP-TO-DATE", |object, _| number(object, "/status/updatedReplicas").to_string()),
        column("AVAILABLE", |object, _| number(object, "/status/availableReplicas").to_string()),
        AGE,
        LABELS,
    ]
}

fn route_columns() -> Vec<Column> {
    vec![
        NAMESPACE,
        NAME,
        column("HOSTNAMES", |route, _| texts(route, "/spec/hostnames").join(",")),
        column("PARENTS", |route, _| {
            let parent = |parent: &Value| {
                let kind = text(parent, "/kind");
                let kind = if kind.is_empty() { "Gateway".to_owned() } else { kind };
                format!("{kind}/{}", text(parent, "/name"))
            };
            items(route, "/spec/parentRefs").map(parent).collect::<Vec<_>>().join(",")
        }),
        column("ACCEPTED", |route, _| parents(route, "Accepted")),
        column("RESOLVED", |route, _| parents(route, "ResolvedRefs")),
        AGE,
        wide("REASON", |route, _| {
            let reasons =
                items(route, "/status/parents").map(|parent| reasons(parent, "/conditions"));
            reasons.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
        }),
    ]
}

/// `True` if all parents say so, else the first other word.
fn parents(route: &Value, kind: &str) -> String {
    let told: Vec<String> = items(route, "/status/parents")
        .map(|parent| condition(parent, "/conditions", kind))
        .collect();
    told.iter().find(|word| *word != "True").or(told.first()).cloned().unwrap_or_default()
}

/// The condition `Accepted`, by ancestors if the policy has them.
fn accepted(policy: &Value) -> String {
    let own = condition(policy, "/status/conditions", "Accepted");
    let mut ancestors =
        items(policy, "/status/ancestors").map(|one| condition(one, "/conditions", "Accepted"));
    if own.is_empty() { ancestors.next().unwrap_or_default() } else { own }
}

pub(in crate::cli) fn condition(object: &Value, list: &str, kind: &str) -> String {
    let found = items(object, list).find(|condition| text(condition, "/type") == kind);
    found.map(|condition| text(condition, "/status")).unwrap_or_default()
}

/// Why conditions are not true.
fn reasons(object: &Value, list: &str) -> String {
    let bad = items(object, list).filter(|condition| text(condition, "/status") != "True");
    let words = bad.map(|condition| {
        format!("{}: {}", text(condition, "/reason"), text(condition, "/message"))
    });
    words.collect::<Vec<_>>().join("; ")
}

/// Rule: the STATUS column of `kubectl get pods`.
fn pod_status(pod: &Value) -> String {
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return "Terminating".to_owned();
    }
    let phase = text(pod, "/status/phase");
    let waiting =
        items(pod, "/status/containerStatuses").map(|status| text(status, "/state/waiting/reason"));
    let why = waiting.filter(|reason| !reason.is_empty()).last();
    match (phase.as_str(), why) {
        ("Succeeded", _) => "Completed".to_owned(),
        ("Failed", _) => "Error".to_owned(),
        (_, Some(reason)) => reason,
        (_, None) => phase,
    }
}

fn label(object: &Value, name: &str) -> String {
    let labels = object.pointer("/metadata/labels");
    labels
        .and_then(|labels| labels.get(name))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn pairs(object: &Value, pointer: &str) -> String {
    let map = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    let pairs = map.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    pairs.collect::<Vec<_>>().join(",")
}

/// How long ago, in the two largest units that say something.
fn age(created: &str, now: OffsetDateTime) -> String {
    let Ok(created) = OffsetDateTime::parse(created, &Rfc3339) else {
        return "<unknown>".to_owned();
    };
    let seconds = (now - created).whole_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{}m{}s", seconds / 60, seconds % 60),
        600..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_of_a_pod_is_what_keeps_it() {
        let waiting = json!([{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        let cases = [
            (json!({"status": {"phase": "Running"}}), "Running"),
            (json!({"status": {"phase": "Succeeded"}}), "Completed"),
            (
                json!({"status": {"phase": "Running", "containerStatuses": waiting}}),
                "CrashLoopBackOff",
            ),
            (
                json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}}),
                "Terminating",
            ),
        ];
        for (pod, want) in cases {
            assert_eq!(pod_status(&pod), want, "{pod}");
        }
    }

    #[test]
    fn ages_grow_coarser() {
        let now = OffsetDateTime::parse("2026-01-02T00:00:00Z", &Rfc3339).unwrap();
        let cases = [
            ("2026-01-01T23:59:30Z", "30s"),
            ("2026-01-01T23:55:30Z", "4m30s"),
            ("2026-01-01T23:00:00Z", "60m"),
            ("2026-01-01T12:00:00Z", "12h"),
            ("2025-12-01T00:00:00Z", "32d"),
            ("never", "<unknown>"),
        ];
        for (created, want) in cases {
            assert_eq!(age(created, now), want, "{created}");
        }
    }
}
