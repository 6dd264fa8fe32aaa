// SPDX-License-Identifier: Apache-2.0

//! What is written of a status, given what stands. Pure.
//!
//! Owns: entries and conditions of other controllers stay; a condition keeps its time while its
//! status stays, over restarts too; what stands already is not written again.

use serde_json::{Map, Value};

use crate::api;
use crate::source::kubernetes::Standing;
use crate::status::render::object;
use crate::store::Kind;

/// Lists with one entry for each controller and parent.
const LISTS: [&str; 2] = ["parents", "ancestors"];
/// Conditions of ours on objects that have others, too: on all of them, then on entries alone.
const OURS: [&str; 3] = ["istio.io/WaypointBound", "Accepted", "PartiallyInvalid"];

/// The merge patch that brings the status to `wanted`; none if it stands.
pub(super) fn patch(kind: Kind, wanted: Option<Value>, standing: &Standing) -> Option<Value> {
    let before = &standing.status;
    let mut shared = shares(kind);
    let mut fields = Map::new();
    match wanted {
        Some(Value::Object(wanted)) => {
            for (name, value) in wanted {
                let old = before.get(&name);
                let new = match name.as_str() {
                    "parents" | "ancestors" => {
                        shared = true;
                        entries(value, old)
                    }
                    "conditions" => conditions(value, old, shares(kind).then(|| ours(kind))),
                    "listeners" => listeners(value, old),
                    _ => value,
                };
                fields.insert(name, new);
            }
        }
        Some(_) | None => {
            shared = true;
            for name in LISTS {
                if let Some(old) = before.get(name) {
                    fields.insert(name.to_owned(), entries(Value::Null, Some(old)));
                }
            }
            if let (true, Some(old)) = (shares(kind), before.get("conditions")) {
                let kept = conditions(Value::Null, Some(old), Some(ours(kind)));
                fields.insert("conditions".to_owned(), kept);
            }
        }
    }
    let stands = fields.iter().all(|(name, value)| match before.get(name) {
        Some(old) => old == value,
        None => value.as_array().is_some_and(Vec::is_empty),
    });
    if stands {
        return None;
    }
    let status = Value::Object(fields);
    // Others write the same list: the write counts only for what was read.
    Some(match &standing.version {
        Some(version) if shared => {
            let version = object([("resourceVersion", (**version).into())]);
            object([("status", status), ("metadata", version)])
        }
        Some(_) | None => object([("status", status)]),
    })
}

/// Tells whether others write conditions of such objects.
fn shares(kind: Kind) -> bool {
    matches!(kind, Kind::Service | Kind::ServiceEntry | Kind::WorkloadEntry)
}

/// Conditions that are ours on such objects, told or not.
fn ours(kind: Kind) -> &'static [&'static str] {
    if kind == Kind::Service { OURS.get(..1).unwrap_or_default() } else { &OURS }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// The entries of a list; none of what is no list.
fn taken(value: Value) -> Vec<Value> {
    match value {
        Value::Array(all) => all,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            Vec::new()
        }
    }
}

/// Entries of others as they stand, then ours.
fn entries(wanted: Value, old: Option<&Value>) -> Value {
    let controller = |entry: &Value| {
        let name = entry.get("controllerName").and_then(Value::as_str).unwrap_or_default();
        api::class_of_controller(name).is_some()
    };
    let foreign = list(old).filter(|entry| !controller(entry)).cloned();
    let ours = taken(wanted).into_iter().map(|entry| {
        let same = |old: &&Value| {
            ["parentRef", "ancestorRef", "controllerName"]
                .iter()
                .all(|field| old.get(field) == entry.get(field))
        };
        let before = list(old).find(same);
        with_conditions(entry, before)
    });
    foreign.chain(ours).collect()
}

fn listeners(wanted: Value, old: Option<&Value>) -> Value {
    let listener = |entry: Value| {
        let same = |old: &&Value| old.get("name") == entry.get("name");
        let before = list(old).find(same);
        with_conditions(entry, before)
    };
    taken(wanted).into_iter().map(listener).collect()
}

fn with_conditions(mut entry: Value, old: Option<&Value>) -> Value {
    if let Some(own) = entry.get_mut("conditions") {
        *own = conditions(own.take(), old.and_then(|old| old.get("conditions")), None);
    }
    entry
}

/// Our conditions with the times that stand; with those of others, if `ours` tells them apart.
fn conditions(wanted: Value, old: Option<&Value>, ours: Option<&[&str]>) -> Value {
    let find = |kind: Option<&Value>| list(old).find(|old| old.get("type") == kind);
    let wanted = taken(wanted);
    let mine = |kind: Option<&Value>| {
        let known =
            |ours: &[&str]| kind.and_then(Value::as_str).is_some_and(|kind| ours.contains(&kind));
        ours.is_none_or(known) || wanted.iter().any(|wanted| wanted.get("type") == kind)
    };
    let foreign = list(old).filter(|old| !mine(old.get("type"))).cloned();
    let foreign: Vec<Value> = foreign.collect();
    let told = wanted.into_iter().map(|condition| match find(condition.get("type")) {
        Some(old) => since(condition, old),
        None => condition,
    });
    foreign.into_iter().chain(told).collect()
}

/// A condition that follows one that stands.
fn since(mut condition: Value, old: &Value) -> Value {
    let Some(fields) = condition.as_object_mut() else { return condition };
    let status = |of: Option<&Value>, text: &str| of.and_then(Value::as_str) == Some(text);
    // After a start it is not known yet what the proxies have: what was true stays so.
    if status(fields.get("status"), "Unknown") && status(old.get("status"), "True") {
        for field in ["status", "reason", "message"] {
            fields.insert(field.to_owned(), old.get(field).cloned().unwrap_or_default());
        }
    }
    let stays = fields.get("status") == old.get("status");
    if let (true, Some(time)) = (stays, old.get("lastTransitionTime")) {
        fields.insert("lastTransitionTime".to_owned(), time.clone());
    }
    condition
}

#[cfg(test)]
mod tests;
