// SPDX-License-Identifier: Apache-2.0

//! RequestAuthentication → which tokens gateways take: those that it points at, and the ingress
//! gateways that a selector finds.
//!
//! Owns whom it governs and its conditions; the rules are read by [`rules`]. A rule that cannot be
//! served as written travels without keys, so that every token of its issuer is refused: it must
//! not pass for a request without one. Tunnels read no tokens, and the status says so.

mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use policy::authz::{PolicyName, Target};
use policy::jwt::RequestAuthentication as Domain;
use routing::delta::Resource as Plane;

use super::authorization::gateways;
use super::targets::{Notes, find_targets};
use crate::api::istio::RequestAuthentication;
use crate::output::{Config, Output, Scope};
use crate::status::{Body, Status};
use crate::store::facts::KeySource;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Outputs of one RequestAuthentication.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<RequestAuthentication>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let mut notes = Notes::default();
    let refs: Vec<_> = object.spec.target_refs.iter().chain(&object.spec.target_ref).collect();
    let (targets, scope) = if refs.is_empty() {
        let selected = selected(name, object, look, &mut notes);
        let target = |gateway: &Name| Target::Gateway(gateway.to_string().into());
        (selected.iter().map(target).collect(), Scope::Gateways(selected.into_iter().collect()))
    } else {
        if object.spec.selector.is_some() {
            notes.refuse("Invalid", "selector and targetRefs exclude each other");
        }
        (find_targets(name, &refs, look, &mut notes), Scope::AllGateways)
    };
    // What is wrong with the object as a whole takes the keys of every rule.
    let whole = notes.refused.is_some();
    let mut rules = rules::read(object, look, &mut notes);
    if whole {
        rules.iter_mut().for_each(|rule| rule.keys.clear());
    }
    let mut outputs = Vec::new();
    if !targets.is_empty() {
        let name = PolicyName::new(&name.namespace, &name.name);
        let domain = Domain { name, targets, rules, unreadable: None };
        outputs.push(Config::plane(Plane::RequestAuthentication(domain.into()), scope));
    }
    let key = Key { kind: Kind::RequestAuthentication, name: name.clone() };
    let generation = object.metadata.generation;
    let body = Body::Conditions(notes.conditions("WaypointAccepted"));
    outputs.push(Output::Status(Status { key, generation, body }.into()));
    outputs
}

/// The ingress Gateways that one without targetRefs selects.
fn selected(
    name: &Name,
    object: &RequestAuthentication,
    look: &mut Lookup<'_>,
    notes: &mut Notes,
) -> BTreeSet<Name> {
    let selected = gateways::selected(&name.namespace, object.spec.selector.as_ref(), look);
    let others =
        "tunnels read no tokens; for a workload, targetRefs point at a Service with a waypoint";
    if selected.gateways.is_empty() {
        let text = format!("no ingress gateway is selected, so nothing enforces it: {others}");
        notes.notice("AncestorNotBound", text);
    } else if !selected.nothing_else {
        let names: Vec<String> = selected.gateways.iter().map(ToString::to_string).collect();
        let text = format!("in force at the gateways {}; {others}", names.join(", "));
        notes.in_force = Some(text);
    }
    selected.gateways
}

/// Where keys are fetched that `object` asks for, and within how many milliseconds.
pub fn sources(object: &RequestAuthentication) -> impl Iterator<Item = (KeySource, u64)> {
    object.spec.jwt_rules.iter().filter_map(rules::source)
}

/// A source as people write it.
pub(crate) fn in_words(source: &KeySource) -> Arc<str> {
    match source {
        KeySource::Uri(uri) => Arc::clone(uri),
        KeySource::Issuer(issuer) => rules::discovery(issuer).into(),
    }
}

#[cfg(test)]
mod tests;
