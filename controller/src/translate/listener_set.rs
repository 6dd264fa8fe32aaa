// SPDX-License-Identifier: Apache-2.0

//! ListenerSets: more listeners for a Gateway, and what the set is told.
//!
//! Owns which sets a Gateway takes and in which order ([`of_gateway`]); the entries themselves
//! are judged with those of the Gateway, in [`super::listener`], and sent from there.
//!
//! Rule: `ListenerSet` in Gateway API `apis/v1/listenerset_types.go` (GEP-1713).

use std::sync::Arc;

use gateway_api::experimental::gateways::Gateway;
use gateway_api::listenersets::ListenerSet;

use super::listener::{self, Judged, Owner};
use super::{allowed, gateway, shape};
use crate::api;
use crate::output::Output;
use crate::status::{Body, Condition, Status};
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Outputs of one ListenerSet: its status, if its Gateway is ours.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(set) = look.get::<ListenerSet>(&name.namespace, &name.name) else {
        return Vec::new();
    };
    let Some(parent) = gateway_of(set, look) else { return Vec::new() };
    let Some(class) = shape::class(&parent.spec.gateway_class_name, look) else {
        return Vec::new();
    };
    let (conditions, listeners) = if allowed::listener_set(parent, &name.namespace, look) {
        let owner = Owner::Set(name.clone());
        let judged = listener::judge(parent, class.role, look);
        let own: Vec<&Judged> = judged.iter().filter(|one| one.owner == owner).collect();
        let serving = gateway::is_serving(parent, look);
        let listeners = own.iter().map(|one| one.status(serving)).collect();
        (conditions(&own, serving), listeners)
    } else {
        let no = |kind| {
            let message = "the Gateway takes no ListenerSets of this namespace".to_owned();
            Condition::new(kind, false, "NotAllowed", message)
        };
        (vec![no("Accepted"), no("Programmed")], Vec::new())
    };
    let key = Key { kind: Kind::ListenerSet, name: name.clone() };
    let body = Body::Set { conditions, listeners };
    vec![Output::Status(Status { key, generation: set.metadata.generation, body }.into())]
}

fn conditions(own: &[&Judged], serving: bool) -> Vec<Condition> {
    if !own.iter().any(|one| one.resource.is_some()) {
        let no = |kind| {
            let message = "no listener of the set can be served".to_owned();
            Condition::new(kind, false, "ListenersNotValid", message)
        };
        return vec![no("Accepted"), no("Programmed")];
    }
    let all = own.iter().all(|one| one.resource.is_some());
    let reason = if all { "Accepted" } else { "ListenersNotValid" };
    let programmed = if serving {
        Condition::new("Programmed", true, "Programmed", String::new()).after_ack()
    } else {
        let message = "no proxy of the Gateway is ready yet".to_owned();
        Condition::new("Programmed", false, "Pending", message)
    };
    vec![Condition::new("Accepted", true, reason, String::new()), programmed]
}

/// The Gateway that a set belongs to; none if it is not there.
pub fn gateway_of<'a>(set: &ListenerSet, look: &mut Lookup<'a>) -> Option<&'a Arc<Gateway>> {
    let parent = &set.spec.parent_ref;
    let group = parent.group.as_deref().unwrap_or(api::GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if group != api::GATEWAY_GROUP || kind != "Gateway" {
        return None;
    }
    let own = set.metadata.namespace.as_deref().unwrap_or_default();
    look.get::<Gateway>(parent.namespace.as_deref().unwrap_or(own), &parent.name)
}

/// The sets that a Gateway takes, in the order in which their listeners go before others: the
/// oldest first, then by namespace and name.
pub fn of_gateway<'a>(gateway: &Gateway, look: &mut Lookup<'a>) -> Vec<&'a Arc<ListenerSet>> {
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let mut sets =
        look.list::<ListenerSet>(Index::Parent, &index::object("Gateway", namespace, name));
    sets.retain(|set| {
        let own = set.metadata.namespace.as_deref().unwrap_or_default();
        allowed::listener_set(gateway, own, look)
    });
    // By name they are in order already, and the sort keeps the order of equals.
    sets.sort_by_key(|set| {
        set.metadata.creation_timestamp.as_ref().map(|time| time.0.as_nanosecond())
    });
    sets
}

#[cfg(test)]
mod tests;
