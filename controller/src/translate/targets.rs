// SPDX-License-Identifier: Apache-2.0

//! What a policy of Istio points at by `targetRefs`, and what is told about a policy.

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use k8s_openapi::api::core::v1::Service;
use policy::authz::Target;

use super::shape;
use super::waypoint;
use crate::api;
use crate::api::istio::{ServiceEntry, TargetRef};
use crate::status::Condition;
use crate::store::Name;
use crate::store::lookup::Lookup;

/// What is worth telling about a policy.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Reason and message of what makes the policy refuse all that it selects.
    pub(super) refused: Option<(&'static str, String)>,
    /// Reason and message of what takes nothing from it but should be known.
    pub(super) noticed: Option<(&'static str, String)>,
    /// The waypoint that the policy shuts out.
    pub(super) waypoint: Option<String>,
    /// What is told of a policy that is in force as written.
    pub(super) in_force: Option<String>,
}

impl Notes {
    pub(super) fn refuse(&mut self, reason: &'static str, message: &str) {
        self.refused.get_or_insert_with(|| (reason, message.to_owned()));
    }

    pub(super) fn notice(&mut self, reason: &'static str, message: String) {
        self.noticed.get_or_insert((reason, message));
    }

    /// The conditions that follow: `Accepted`, and `own`, which tells who enforces the policy.
    pub(super) fn conditions(self, own: &'static str) -> Vec<Condition> {
        let kinds = ["Accepted", own];
        match (self.refused, self.noticed) {
            (Some((reason, message)), _) | (None, Some((reason, message))) => {
                kinds.map(|kind| Condition::new(kind, false, reason, message.clone())).into()
            }
            (None, None) => {
                let message = self.in_force.unwrap_or_else(|| "in force".to_owned());
                kinds
                    .map(|kind| Condition::new(kind, true, "Accepted", message.clone()).after_ack())
                    .into()
            }
        }
    }
}

/// The things a policy points at; those that are not there are kept and told.
pub(super) fn find_targets(
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
            (api::NETWORKING_GROUP, "ServiceEntry") => {
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
