// SPDX-License-Identifier: Apache-2.0

//! AuthorizationPolicy → policies for sessions (selector) and for requests (targetRefs, and at
//! the ingress gateways that a selector finds).
//!
//! Owns which of the two a policy is, whom it selects, and its conditions; the rules are read
//! by [`rules`]. Where Istio drops what a tunnel cannot ask (an L7 field in a selector policy),
//! or what it cannot serve, this refuses: the policy travels with the reason, and whoever
//! enforces it refuses all that it selects.

mod admits;
mod gateways;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use k8s_openapi::api::core::v1::Service;
use policy::authz::{Action, Authorization, PolicyName, Scope, Target};
use routing::delta::Resource as Plane;

use super::shape;
use super::waypoint::{self, label};
use crate::api;
use crate::api::istio::{AuthorizationPolicy, ServiceEntry, TargetRef};
use crate::output::{self, Config, Output};
use crate::settings::Mesh;
use crate::status::{Body, Condition, Status};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Outputs of one AuthorizationPolicy.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<AuthorizationPolicy>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let targets: Vec<_> = object.spec.target_refs.iter().chain(&object.spec.target_ref).collect();
    if targets.is_empty() {
        return without_targets(name, object, look);
    }
    let mut notes = Notes::default();
    if object.spec.selector.is_some() {
        notes.refuse("Invalid", "selector and targetRefs exclude each other");
    }
    let scope = Scope::Targets(find_targets(name, &targets, look, &mut notes));
    let policy = policy(name, object, scope, (&mut notes, look.mesh()));
    let resource = Plane::GatewayAuthorization(policy.into());
    let sent = Config::plane(resource, output::Scope::AllGateways);
    vec![sent, status(name, object, "WaypointAccepted", notes)]
}

/// A policy for the workloads that it selects: for their tunnels, and for ingress gateways.
fn without_targets(
    name: &Name,
    object: &AuthorizationPolicy,
    look: &mut Lookup<'_>,
) -> Vec<Output> {
    let mut outputs = Vec::new();
    let selected = gateways::selected(object, look);
    let mut at_gateways = Notes::default();
    if !selected.gateways.is_empty() {
        let target = |gateway: &Name| Target::Gateway(gateway.to_string().into());
        let scope = Scope::Targets(selected.gateways.iter().map(target).collect());
        let policy = policy(name, object, scope, (&mut at_gateways, look.mesh()));
        let resource = Plane::GatewayAuthorization(policy.into());
        outputs.push(Config::plane(resource, output::Scope::Gateways(selected.gateways)));
    }
    let mut notes = Notes::default();
    let policy = policy(name, object, own_scope(object, look), (&mut notes, look.mesh()));
    let open = policy.action == Action::Allow && !policy.dry_run && policy.unsupported.is_none();
    if open {
        notes.waypoint = admits::refused_waypoint(object, &policy, look);
    }
    if policy.action != Action::Audit {
        outputs.push(Config::plane(Plane::Authorization(policy.into()), output::Scope::Everyone));
    }
    outputs.push(if selected.nothing_else {
        status(name, object, "WaypointAccepted", at_gateways)
    } else {
        status(name, object, "ZtunnelAccepted", notes)
    });
    outputs
}

/// The policy itself, for whom `scope` says: gateways if it names targets, else tunnels.
fn policy(
    name: &Name,
    object: &AuthorizationPolicy,
    scope: Scope,
    (notes, mesh): (&mut Notes, &Mesh),
) -> Authorization {
    let session = !matches!(scope, Scope::Targets(_));
    let action = action(object, session, notes);
    let rules = match rules::read(object, session, mesh) {
        Ok(rules) => rules,
        Err(refused) => {
            notes.refuse(refused.reason, &refused.message);
            Vec::new()
        }
    };
    Authorization {
        name: PolicyName::new(&name.namespace, &name.name),
        scope,
        action,
        dry_run: dry_run(object),
        unsupported: notes.refused.as_ref().map(|(_, message)| Arc::from(message.as_str())),
        rules,
    }
}

/// What is worth telling about a policy.
#[derive(Debug, Default)]
struct Notes {
    /// Reason and message of what makes the policy refuse all that it selects.
    refused: Option<(&'static str, String)>,
    /// Reason and message of what takes nothing from it but should be known.
    noticed: Option<(&'static str, String)>,
    /// The waypoint that the policy shuts out.
    waypoint: Option<String>,
}

impl Notes {
    fn refuse(&mut self, reason: &'static str, message: &str) {
        self.refused.get_or_insert_with(|| (reason, message.to_owned()));
    }

    fn notice(&mut self, reason: &'static str, message: String) {
        self.noticed.get_or_insert((reason, message));
    }
}

fn own_scope(object: &AuthorizationPolicy, look: &Lookup<'_>) -> Scope {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let selects = object.spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
    if selects {
        Scope::Selector
    } else if *look.mesh().root_namespace == *namespace {
        Scope::Global
    } else {
        Scope::Namespace
    }
}

fn action(object: &AuthorizationPolicy, session: bool, notes: &mut Notes) -> Action {
    match object.spec.action.as_deref().unwrap_or("ALLOW") {
        "ALLOW" => Action::Allow,
        "DENY" => Action::Deny,
        "AUDIT" => {
            if session {
                let text = "AUDIT acts at gateways and with targetRefs only".to_owned();
                notes.notice("UnsupportedValue", text);
            }
            Action::Audit
        }
        "CUSTOM" => {
            notes.refuse(
                "UnsupportedValue",
                "action CUSTOM is not served: traffic that the policy selects is refused",
            );
            Action::Custom
        }
        other => {
            let text = format!("action {other:?} is unknown, wanted ALLOW, DENY, AUDIT or CUSTOM");
            notes.refuse("Invalid", &text);
            Action::Deny
        }
    }
}

fn dry_run(object: &AuthorizationPolicy) -> bool {
    let value = label(object.metadata.annotations.as_ref(), api::DRY_RUN);
    matches!(value, Some("true" | "1" | "t" | "T" | "True" | "TRUE"))
}

/// The things a policy points at; those that are not there are kept and told.
fn find_targets(
    name: &Name,
    refs: &[&TargetRef],
    look: &mut Lookup<'_>,
    notes: &mut Notes,
) -> Vec<Target> {
    let mut targets = Vec::new();
    for target in refs {
        if target.namespace.as_deref().is_some_and(|namespace| *namespace != *name.namespace) {
            notes.refuse("Invalid", "targetRefs point into the policy's own namespace only");
        }
        match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") => service_target(name, target, look, notes, &mut targets),
            ("networking.istio.io", "ServiceEntry") => {
                entry_target(name, target, look, notes, &mut targets);
            }
            (api::GATEWAY_GROUP, "Gateway") => {
                let key = format!("{}/{}", name.namespace, target.name);
                if look.get::<Gateway>(&name.namespace, &target.name).is_none() {
                    notes.notice("TargetNotFound", format!("Gateway {key} does not exist"));
                }
                targets.push(Target::Gateway(key.into()));
            }
            (api::GATEWAY_GROUP, "GatewayClass") => {
                class_target(name, target, look, notes, &mut targets);
            }
            (group, kind) => {
                let text = format!("targetRefs of kind {kind} of group {group:?} are not served");
                notes.refuse("Invalid", &text);
            }
        }
    }
    targets
}

fn service_target(
    name: &Name,
    target: &TargetRef,
    look: &mut Lookup<'_>,
    notes: &mut Notes,
    targets: &mut Vec<Target>,
) {
    let key = api::service_key(&name.namespace, &target.name);
    match look.get::<Service>(&name.namespace, &target.name) {
        None => {
            let text = format!("Service {}/{} does not exist", name.namespace, target.name);
            notes.notice("TargetNotFound", text);
        }
        Some(object) => {
            if waypoint::of_service(&object.metadata, look).is_none() {
                let text = format!(
                    "Service {}/{} has no waypoint (istio.io/use-waypoint): nothing enforces the policy",
                    name.namespace, target.name
                );
                notes.notice("AncestorNotBound", text);
            }
        }
    }
    targets.push(Target::Service(key.into()));
}

fn entry_target(
    name: &Name,
    target: &TargetRef,
    look: &mut Lookup<'_>,
    notes: &mut Notes,
    targets: &mut Vec<Target>,
) {
    match look.get::<ServiceEntry>(&name.namespace, &target.name) {
        None => {
            let text = format!("ServiceEntry {}/{} does not exist", name.namespace, target.name);
            notes.notice("TargetNotFound", text);
        }
        Some(entry) => targets.extend(
            entry
                .spec
                .hosts
                .iter()
                .map(|host| Target::Service(format!("{}/{host}", name.namespace).into())),
        ),
    }
}

fn class_target(
    name: &Name,
    target: &TargetRef,
    look: &mut Lookup<'_>,
    notes: &mut Notes,
    targets: &mut Vec<Target>,
) {
    if *name.namespace != *look.mesh().root_namespace {
        let text = format!(
            "targetRefs of kind GatewayClass are for policies of namespace {} only",
            look.mesh().root_namespace
        );
        notes.refuse("Invalid", &text);
        return;
    }
    let known = look.get::<GatewayClass>("", &target.name).is_some();
    if !known && shape::class(&target.name, look).is_none() {
        notes.notice("TargetNotFound", format!("GatewayClass {} does not exist", target.name));
    }
    targets.push(Target::Class(target.name.as_str().into()));
}

fn status(name: &Name, object: &AuthorizationPolicy, own: &'static str, notes: Notes) -> Output {
    let mut conditions: Vec<_> = match (notes.refused, notes.noticed) {
        (Some((reason, message)), _) | (None, Some((reason, message))) => ["Accepted", own]
            .map(|kind| Condition::new(kind, false, reason, message.clone()))
            .into(),
        (None, None) => ["Accepted", own]
            .map(|kind| Condition::new(kind, true, "Accepted", "in force".to_owned()).after_ack())
            .into(),
    };
    let shut_out = notes.waypoint;
    conditions.extend(
        shut_out.map(|text| Condition::new("WaypointAdmitted", false, "WaypointRefused", text)),
    );
    let key = Key { kind: Kind::AuthorizationPolicy, name: name.clone() };
    let generation = object.metadata.generation;
    Output::Status(Status { key, generation, body: Body::Conditions(conditions) }.into())
}

/// The selector policies, of its namespace and of the root namespace, that select a workload.
pub fn selecting(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    look: &mut Lookup<'_>,
) -> Vec<PolicyName> {
    let root = Arc::clone(&look.mesh().root_namespace);
    let mut namespaces = vec![namespace];
    if *root != *namespace {
        namespaces.push(&root);
    }
    let mut names = Vec::new();
    for namespace in namespaces {
        let found = look.selecting::<AuthorizationPolicy>(namespace, labels, |policy| {
            let spec = &policy.spec;
            let targeted = spec.target_ref.is_some() || !spec.target_refs.is_empty();
            let selector = spec.selector.as_ref().map(|selector| &selector.match_labels);
            let sent = spec.action.as_deref() != Some("AUDIT") && !targeted;
            selector.filter(|labels| !labels.is_empty() && sent)
        });
        names.extend(found.into_iter().map(|policy| {
            PolicyName::new(namespace, policy.metadata.name.as_deref().unwrap_or_default())
        }));
    }
    names
}

#[cfg(test)]
mod tests;
