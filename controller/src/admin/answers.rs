// SPDX-License-Identifier: Apache-2.0

//! What the admin endpoints answer.

use std::collections::BTreeSet;
use std::time::Instant;

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use policy::authz::{Action, Authorization, Scope, Target};
use policy::jwt::RequestAuthentication;
use routing::delta::Resource as Plane;
use routing::discovery::{Health, TunnelProtocol, Workload};
use serde_json::{Value, json};

use super::{Query, coverage};
use crate::app::{Hub, State};
use crate::lead::Leader;
use crate::output::Family;
use crate::store::index::Index;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Stores};
use crate::translate::{leave, pod};

/// All objects that a query takes, with the status that is out; secrets without their data.
pub(super) fn objects(hub: &Hub, query: &Query) -> Value {
    let state = hub.read();
    let mut items = Vec::new();
    for kind in Kind::ALL {
        for name in state.stores.names(*kind) {
            if !query.takes(kind.as_str(), &name.namespace, &name.name) {
                continue;
            }
            let key = Key { kind: *kind, name };
            items.extend(object(&state, &key));
        }
    }
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn object(state: &State, key: &Key) -> Option<Value> {
    let mut value = state.stores.object(key)?.to_json().ok()?;
    let fields = value.as_object_mut()?;
    if key.kind == Kind::Secret {
        for field in ["data", "stringData"] {
            if let Some(Value::Object(data)) = fields.get_mut(field) {
                data.values_mut().for_each(|value| *value = Value::Null);
            }
        }
    }
    if let Some(Value::Object(told)) = state.board.get(key) {
        let status = fields.entry("status").or_insert_with(|| json!({}));
        if let Value::Object(status) = status {
            for (field, value) in told {
                status.insert(field, value);
            }
        }
    }
    Some(value)
}

/// Every workload: addresses, node, waypoint, protocol, identity, policies, enrolment.
pub(super) fn workloads(hub: &Hub) -> Value {
    let state = hub.read();
    let waypoints = coverage::waypoints(&state);
    let listed = state.published.plane().filter_map(|plane| {
        let Plane::Workload(workload) = plane else { return None };
        let services = workload.services.keys().filter_map(|service| waypoints.get(service));
        let through: BTreeSet<String> = services.map(ToString::to_string).collect();
        Some(workload_line(workload, &through, &state.stores, hub))
    });
    let mut listed: Vec<Value> = listed.collect();
    listed.sort_by_key(|line| line.get("uid").map(ToString::to_string));
    json!(listed)
}

fn workload_line(
    workload: &Workload,
    through: &BTreeSet<String>,
    stores: &Stores,
    hub: &Hub,
) -> Value {
    let uid = workload.pod_uid.as_deref().unwrap_or_default();
    let found = stores.list::<Pod>(Index::Uid, uid).into_iter().next();
    let wanted = found.is_some_and(|found| {
        let mut look = Lookup::new(stores, &hub.mesh);
        pod::belongs(found, &mut look)
    });
    let fact = stores.facts.pod(uid);
    let services: Vec<_> = workload.services.keys().map(ToString::to_string).collect();
    let policies: Vec<_> =
        workload.authorization_policies.iter().map(ToString::to_string).collect();
    json!({
        "uid": workload.uid.as_ref(),
        "podUid": workload.pod_uid.as_deref(),
        "name": workload.name.as_ref(),
        "namespace": workload.namespace.as_str(),
        "addresses": workload.addresses,
        "node": workload.node.as_ref(),
        "protocol": match workload.tunnel { TunnelProtocol::Hbone => "HBONE", TunnelProtocol::None => "TCP" },
        "identity": workload.identity.to_string(),
        "waypoint": workload.waypoint.as_ref().map(ToString::to_string),
        "serviceWaypoints": through,
        "healthy": workload.health == Health::Healthy,
        "services": services,
        "policies": policies,
        "workload": workload.workload_name.as_ref(),
        "enrolment": {
            "wanted": wanted,
            "state": fact.map(|fact| fact.state),
            "reason": fact.map(|fact| fact.reason.as_str()),
            "olderConnections": fact.map(|fact| fact.older_connections),
            "repairs": fact.map(|fact| fact.repairs),
        },
    })
}

/// Every policy in force, written or made, with the workloads that list it.
pub(super) fn policies(hub: &Hub) -> Value {
    let state = hub.read();
    let mut workloads: Vec<&Workload> = Vec::new();
    let mut found: Vec<(&'static str, &Authorization)> = Vec::new();
    for plane in state.published.plane() {
        if let Plane::Workload(workload) = plane {
            workloads.push(workload);
        } else if let Plane::Authorization(policy) = plane {
            found.push(("tunnel", policy));
        } else if let Plane::GatewayAuthorization(policy) = plane {
            found.push(("gateway", policy));
        }
    }
    let line = |(enforced, policy): (&str, &Authorization)| {
        let listing = workloads
            .iter()
            .filter(|workload| workload.authorization_policies.contains(&policy.name))
            .map(|workload| workload.uid.as_ref());
        let (scope, targets) = match &policy.scope {
            Scope::Global => ("mesh", Vec::new()),
            Scope::Namespace => ("namespace", Vec::new()),
            Scope::Selector => ("workloads", Vec::new()),
            Scope::Targets(targets) => ("targets", targets.iter().map(target_name).collect()),
        };
        json!({
            "name": policy.name.to_string(),
            "enforcedBy": enforced,
            "scope": scope,
            "targets": targets,
            "action": match policy.action {
                Action::Allow => "ALLOW", Action::Deny => "DENY",
                Action::Audit => "AUDIT", Action::Custom => "CUSTOM",
            },
            "dryRun": policy.dry_run,
            "unsupported": policy.unsupported.as_deref(),
            "rules": policy.rules.len(),
            "workloads": listing.collect::<Vec<_>>(),
        })
    };
    let tokens = state.published.plane().filter_map(|plane| {
        let Plane::RequestAuthentication(one) = plane else { return None };
        Some(token_line(one))
    });
    let mut lines: Vec<Value> = found.into_iter().map(line).chain(tokens).collect();
    lines.sort_by_key(|line| line.get("name").map(ToString::to_string));
    json!(lines)
}

/// A RequestAuthentication as a line among the policies.
fn token_line(one: &RequestAuthentication) -> Value {
    let keyless = one.rules.iter().find(|rule| rule.keys.is_empty());
    json!({
        "name": one.name.to_string(),
        "enforcedBy": "gateway",
        "scope": "targets",
        "targets": one.targets.iter().map(target_name).collect::<Vec<_>>(),
        "action": "JWT",
        "dryRun": false,
        "unsupported": keyless.map(|rule| format!("tokens of {}, which has no keys", rule.issuer)),
        "rules": one.rules.len(),
        "workloads": [],
    })
}

fn target_name(target: &Target) -> String {
    match target {
        Target::Service(key) => format!("Service {key}"),
        Target::Gateway(name) => format!("Gateway {name}"),
        Target::Class(name) => format!("GatewayClass {name}"),
    }
}

/// Mesh health: clients and what they acknowledged, what was refused and why, pods, files.
pub(super) fn status(hub: &Hub) -> Value {
    let now = Instant::now();
    let state = hub.read();
    let revision = state.published.revision();
    let refused: Vec<_> = state
        .board
        .refused()
        .into_iter()
        .map(|(key, kind, reason, message)| {
            json!({ "object": key.to_string(), "type": kind, "reason": reason, "message": message })
        })
        .collect();
    let resources: serde_json::Map<_, _> = Family::ALL
        .into_iter()
        .map(|family| (family.type_url().to_owned(), state.published.count(family).into()))
        .collect();
    json!({
        "revision": revision,
        "acknowledged": hub.clients.acknowledged(revision, now),
        "leads": state.part.leads(),
        "leader": leader(hub),
        "followers": hub.followers.list(),
        "clients": hub.clients.list(now),
        "ca": super::ca::summary(hub, &state),
        "refused": refused,
        "problems": state.problems,
        "notServed": not_served(&state),
        "pods": pods(&state, hub),
        "agents": agents(&state),
        "leaving": leave::order(&mut Lookup::new(&state.stores, &hub.mesh)).map(|order| order.id.to_string()),
        "unguarded": coverage::unguarded(&state),
        "udp": coverage::udp(&state),
        "resources": resources,
    })
}

/// What objects ask for that is not served.
fn not_served(state: &State) -> Vec<Value> {
    let told = state.graph.table.not_served();
    let lines = told.into_iter().flat_map(|told| {
        told.notes.iter().map(|note| json!({"object": told.key.to_string(), "message": note}))
    });
    lines.collect()
}

/// The controller that leads, if another does and this one hears it.
fn leader(hub: &Hub) -> Option<String> {
    match &*hub.leader.borrow() {
        Leader::Other { name, .. } if hub.link.is_up() => Some(name.clone()),
        Leader::Other { .. } | Leader::Me | Leader::Nobody => None,
    }
}

/// What the agent of each node reports of it; those that have not reported are left out.
fn agents(state: &State) -> Vec<Value> {
    let line = |node: &Node| {
        let name = node.metadata.name.as_deref()?;
        let fact = state.stores.facts.node(name)?;
        Some(json!({
            "node": name, "serving": fact.serving, "reason": fact.reason, "left": fact.left,
        }))
    };
    state.stores.all::<Node>().filter_map(|node| line(node)).collect()
}

fn pods(state: &State, hub: &Hub) -> Vec<Value> {
    let line = |found: &Pod| {
        let mut look = Lookup::new(&state.stores, &hub.mesh);
        let wanted = pod::belongs(found, &mut look);
        let uid = found.metadata.uid.as_deref().unwrap_or_default();
        let fact = state.stores.facts.pod(uid);
        (wanted || fact.is_some()).then(|| {
            json!({
                "pod": format!(
                    "{}/{}",
                    found.metadata.namespace.as_deref().unwrap_or_default(),
                    found.metadata.name.as_deref().unwrap_or_default()
                ),
                "uid": uid,
                "node": found.spec.as_ref().and_then(|spec| spec.node_name.as_deref()),
                "wanted": wanted,
                "state": fact.map(|fact| fact.state),
                "reason": fact.map(|fact| fact.reason.as_str()),
                "olderConnections": fact.map(|fact| fact.older_connections),
                "repairs": fact.map(|fact| fact.repairs),
            })
        })
    };
    state.stores.all::<Pod>().filter_map(|found| line(found)).collect()
}

/// Everything that proxies are sent, as on the wire: what `explain` builds its snapshot from.
pub(super) fn snapshot(hub: &Hub) -> Value {
    let state = hub.read();
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut resources = Vec::new();
    for family in Family::ALL {
        // Keys stay where they are needed; no decision depends on them.
        if matches!(family, Family::Secret | Family::NodePod | Family::Roots) {
            continue;
        }
        for entry in state.published.all(family) {
            resources.push(json!({
                "type": family.type_url(),
                "name": entry.versioned.name.as_ref(),
                "base64": encode(&entry.versioned.body),
            }));
        }
    }
    json!({ "revision": state.published.revision(), "resources": resources })
}
