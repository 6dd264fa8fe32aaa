// SPDX-License-Identifier: Apache-2.0

//! `waymark get`: objects with their status, as `kubectl get` shows them.
//!
//! Owns: short names of kinds and the columns of each.

use std::process::ExitCode;

use http::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Failure;
use super::format::{FormatArgs, items, or_none, show, text, texts};
use super::world::{World, WorldArgs};
use crate::local::paths;
use crate::store::Kind;

/// Short names, as in Kubernetes.
const SHORT: [(&str, &str); 13] = [
    ("po", "Pod"),
    ("svc", "Service"),
    ("no", "Node"),
    ("ns", "Namespace"),
    ("sa", "ServiceAccount"),
    ("cm", "ConfigMap"),
    ("deploy", "Deployment"),
    ("gc", "GatewayClass"),
    ("gtw", "Gateway"),
    ("refgrant", "ReferenceGrant"),
    ("btlspolicy", "BackendTLSPolicy"),
    ("ap", "AuthorizationPolicy"),
    ("pa", "PeerAuthentication"),
];

/// Arguments of `waymark get`.
#[derive(clap::Args, Debug)]
pub(super) struct GetArgs {
    /// Kind, in the singular, plural or short: `pods`, `gateway`, `httproutes`, `svc`.
    kind: String,
    /// Name of one object.
    name: Option<String>,
    /// Namespace; all by default.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    world: WorldArgs,
}

/// Shows the objects that `args` means.
pub(super) fn get(args: &GetArgs) -> Result<ExitCode, Failure> {
    let kind = kind_of(&args.kind)?;
    let world = World::find(&args.world)?;
    let mut path = format!("/objects?kind={kind}");
    for (key, value) in [("ns", &args.namespace), ("name", &args.name)] {
        if let Some(value) = value {
            path += &format!("&{key}={value}");
        }
    }
    let answer: Value = world.ask_json(paths::CONTROLLER_SOCKET, Method::GET, &path)?;
    let found: Vec<&Value> = items(&answer, "/items").collect();
    if let (Some(name), true) = (&args.name, found.is_empty()) {
        return Err(Failure { message: format!("no {kind} {name}"), code: 1 });
    }
    let now = OffsetDateTime::now_utc();
    let columns = columns(kind);
    let head = columns
        .iter()
        .filter(|column| args.format.wide() || !column.wide)
        .map(|column| column.title.to_owned());
    let row = |object: &&Value| {
        columns
            .iter()
            .filter(|column| args.format.wide() || !column.wide)
            .map(|column| or_none((column.cell)(object, now)))
            .collect()
    };
    let mut rows = vec![head.collect()];
    rows.extend(found.iter().map(row));
    let shown = match (&args.name, found.as_slice()) {
        (Some(_), [one]) => (*one).clone(),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": found}),
    };
    show(args.format, &shown, rows)?;
    Ok(ExitCode::SUCCESS)
}

/// The kind that a user's word means.
fn kind_of(word: &str) -> Result<&'static str, Failure> {
    let lower = word.to_ascii_lowercase();
    if let Some((_, kind)) = SHORT.iter().find(|(short, _)| *short == lower) {
        return Ok(kind);
    }
    let fits = |kind: &&str| {
        let kind = kind.to_ascii_lowercase();
        let plural = match kind.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o'])) {
            Some(stem) => format!("{stem}ies"),
            None if kind.ends_with('s') => format!("{kind}es"),
            None => format!("{kind}s"),
        };
        kind == lower || plural == lower
    };
    let mut kinds = Kind::ALL.iter().map(|kind| kind.as_str());
    kinds.find(fits).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        Failure { message: format!("no kind {word}; there are {}", known.join(", ")), code: 2 }
    })
}

struct Column {
    title: &'static str,
    wide: bool,
    cell: fn(&Value, OffsetDateTime) -> String,
}

const fn column(title: &'static str, cell: fn(&Value, OffsetDateTime) -> String) -> Column {
    Column { title, wide: false, cell }
}

const fn wide(title: &'static str, cell: fn(&Value, OffsetDateTime) -> String) -> Column {
    Column { title, wide: true, cell }
}

const NAMESPACE: Column = column("NAMESPACE", |object, _| text(object, "/metadata/namespace"));
const NAME: Column = column("NAME", |object, _| text(object, "/metadata/name"));
const AGE: Column =
    column("AGE", |object, now| age(&text(object, "/metadata/creationTimestamp"), now));
const LABELS: Column = wide("LABELS", |object, _| pairs(object, "/metadata/labels"));

fn columns(kind: &str) -> Vec<Column> {
    match kind {
        "Pod" => vec![
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
        ],
        "Service" => vec![
            NAMESPACE,
            NAME,
            column("TYPE", |service, _| text(service, "/spec/type")),
            column("CLUSTER-IP", |service, _| text(service, "/spec/clusterIP")),
            column("EXTERNAL-IP", |service, _| {
                let ips = items(service, "/status/loadBalancer/ingress")
                    .map(|ingress| text(ingress, "/ip"));
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
        ],
        "Node" => vec![
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
        ],
        "Namespace" => vec![
            NAME,
            column("MESH", |object, _| label(object, crate::api::DATAPLANE_MODE)),
            column("WAYPOINT", |object, _| label(object, crate::api::USE_WAYPOINT)),
            AGE,
            LABELS,
        ],
        "Gateway" => vec![
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
            column("PROGRAMMED", |gateway, _| {
                condition(gateway, "/status/conditions", "Programmed")
            }),
            AGE,
            wide("REASON", |gateway, _| reasons(gateway, "/status/conditions")),
        ],
        "GatewayClass" => vec![
            NAME,
            column("CONTROLLER", |class, _| text(class, "/spec/controllerName")),
            column("ACCEPTED", |class, _| condition(class, "/status/conditions", "Accepted")),
            AGE,
        ],
        "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" | "UDPRoute" => route_columns(),
        "AuthorizationPolicy" => vec![
            NAMESPACE,
            NAME,
            column("ACTION", |policy, _| {
                let action = text(policy, "/spec/action");
                if action.is_empty() { "ALLOW".to_owned() } else { action }
            }),
            column("ACCEPTED", |policy, _| accepted(policy)),
            AGE,
            wide("REASON", |policy, _| reasons(policy, "/status/conditions")),
        ],
        "Deployment" => vec![
            NAMESPACE,
            NAME,
            column("REPLICAS", |object, _| {
                let replicas = text(object, "/spec/replicas");
                if replicas.is_empty() { "1".to_owned() } else { replicas }
            }),
            AGE,
            LABELS,
        ],
        _ => vec![NAMESPACE, NAME, AGE, LABELS],
    }
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

fn condition(object: &Value, list: &str, kind: &str) -> String {
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
    let Ok(created) = OffsetDateTime::parse(created, &Rfc3339) else { return String::new() };
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
    use super::*;

    #[test]
    fn words_for_kinds_are_those_of_kubectl() {
        let cases = [
            ("pods", Some("Pod")),
            ("po", Some("Pod")),
            ("HTTPRoute", Some("HTTPRoute")),
            ("httproutes", Some("HTTPRoute")),
            ("gatewayclasses", Some("GatewayClass")),
            ("authorizationpolicies", Some("AuthorizationPolicy")),
            ("svc", Some("Service")),
            ("dreams", None),
        ];
        for (word, want) in cases {
            assert_eq!(kind_of(word).ok(), want, "{word}");
        }
    }

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
            ("never", ""),
        ];
        for (created, want) in cases {
            assert_eq!(age(created, now), want, "{created}");
        }
    }
}
