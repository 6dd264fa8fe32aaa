// SPDX-License-Identifier: Apache-2.0

//! AuthorizationPolicy → policies for sessions (selector) and for requests (targetRefs, and at
//! the ingress gateways that a selector finds).
//!
//! Owns which of the two a policy is, whom it selects, and its conditions; the rules are read
//! by [`rules`]. Where Istio drops what a tunnel cannot ask (an L7 field in a selector policy),
//! or what it cannot serve, this refuses: the policy travels with the reason, and whoever
//! enforces it refuses all that it selects.

mod admits;
pub(super) mod gateways;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::authz::{Action, Authorization, PolicyName, Scope, Target};
use routing::delta::Resource as Plane;

use super::targets::{Notes, find_targets};
use super::waypoint::label;
use crate::api;
use crate::api::istio::AuthorizationPolicy;
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
    let selected = gateways::selected(&name.namespace, object.spec.selector.as_ref(), look);
    let mut at_gateways = Notes::default();
    if !selected.gateways.is_empty() {
        let target = |gateway: &Name| Target::Gateway(gateway.to_string().into());
        let scope = Scope::Targets(selected.gateways.iter().map(target).collect());
        let policy = policy(name, object, scope, (&mut at_gateways, look.mesh()));
        let resource = Plane::GatewayAuthorization(policy.into());
        let gateways = selected.gateways.into_iter().collect();
        outputs.push(Config::plane(resource, output::Scope::Gateways(gateways)));
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

fn status(name: &Name, object: &AuthorizationPolicy, own: &'static str, notes: Notes) -> Output {
    let shut_out = notes.waypoint.clone();
    let mut conditions = notes.conditions(own);
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
