// SPDX-License-Identifier: Apache-2.0

//! Statuses as JSON, as Kubernetes writes them.
//!
//! Owns observedGeneration and lastTransitionTime: a condition keeps its time while its status
//! stays as it is. Pure; the caller brings the time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::rejected::Rejection;
use super::{Body, Condition, ListenerStatus, ParentStatus, Status};
use crate::api;

/// The last state of each condition.
pub type Seen = Vec<Was>;

/// The last state of a condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Was {
    /// Where it stands, and its type.
    at: Box<str>,
    status: &'static str,
    since: Box<str>,
}

impl Was {
    /// Tells whether proxies were waited for.
    pub fn is_pending(&self) -> bool {
        self.status == "Unknown"
    }
}

impl Status {
    /// Tells whether any condition waits.
    pub fn waits(&self) -> bool {
        self.conditions().iter().any(|condition| condition.waits)
    }

    /// All conditions.
    pub fn conditions(&self) -> Vec<&Condition> {
        match &self.body {
            Body::Conditions(conditions)
            | Body::Entry { conditions, .. }
            | Body::Class { conditions, .. } => conditions.iter().collect(),
            Body::Gateway { conditions, listeners, .. } | Body::Set { conditions, listeners } => {
                let of_listeners = listeners.iter().flat_map(|listener| &listener.conditions);
                conditions.iter().chain(of_listeners).collect()
            }
            Body::Parents { parents, .. } => {
                parents.iter().flat_map(|parent| &parent.conditions).collect()
            }
        }
    }
}

/// What the data plane says, and when this is.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    /// Every client concerned has acknowledged the config.
    pub acked: bool,
    /// What clients refuse of it.
    pub rejected: Option<&'a Rejection>,
    /// Now, in RFC 3339.
    pub now: &'a str,
}

/// The status as JSON; waiting conditions show their last state until they are acknowledged.
pub fn render(
    status: &Status,
    attached: &BTreeMap<String, usize>,
    truth: Truth<'_>,
    seen: &mut Seen,
) -> Value {
    let old = std::mem::take(seen);
    let mut pen = Pen { generation: status.generation, truth, old, new: seen };
    match &status.body {
        Body::Conditions(conditions) => json!({ "conditions": pen.all("", conditions) }),
        Body::Entry { conditions, addresses } => {
            let conditions = pen.all("", conditions);
            let addresses: Vec<_> = addresses
                .iter()
                .map(|(host, address)| json!({ "value": address, "host": host }))
                .collect();
            json!({ "conditions": conditions, "addresses": addresses })
        }
        Body::Class { conditions, features } => {
            let features: Vec<_> = features.iter().map(|name| json!({ "name": name })).collect();
            json!({ "conditions": pen.all("", conditions), "supportedFeatures": features })
        }
        Body::Gateway { conditions, addresses, listeners, sets } => {
            let addresses: Vec<_> = addresses
                .iter()
                .map(|(kind, value)| json!({ "type": kind, "value": value }))
                .collect();
            let listeners: Vec<_> =
                listeners.iter().map(|listener| pen.listener(listener, attached)).collect();
            let conditions = pen.all("", conditions);
            json!({
                "addresses": addresses, "conditions": conditions, "listeners": listeners,
                "attachedListenerSets": sets,
            })
        }
        Body::Set { conditions, listeners } => {
            let listeners: Vec<_> =
                listeners.iter().map(|listener| pen.listener(listener, attached)).collect();
            json!({ "conditions": pen.all("", conditions), "listeners": listeners })
        }
        Body::Parents { fields: (list, reference), parents } => {
            let entries: Vec<_> =
                (0..).zip(parents).map(|(at, parent)| pen.parent(at, reference, parent)).collect();
            json!({ (*list): entries })
        }
    }
}

struct Pen<'a> {
    generation: Option<i64>,
    truth: Truth<'a>,
    old: Seen,
    new: &'a mut Seen,
}

impl Pen<'_> {
    fn all(&mut self, at: &str, conditions: &[Condition]) -> Vec<Value> {
        let rejected = self.truth.rejected.and_then(Rejection::of_object);
        conditions.iter().map(|condition| self.one(at, condition, rejected)).collect()
    }

    fn one(&mut self, at: &str, condition: &Condition, rejected: Option<&str>) -> Value {
        let at: Box<str> = format!("{at}/{}", condition.kind).into();
        let before = self.old.iter().find(|was| was.at == at);
        let wanted = if condition.status { "True" } else { "False" };
        let was_so = before.is_some_and(|was| was.status == wanted);
        let (status, reason, message) = match rejected {
            Some(reason) if condition.waits => ("False", "Invalid", reason),
            None if condition.waits && !self.truth.acked && !was_so => {
                ("Unknown", "Pending", "the proxies have not all acknowledged it yet")
            }
            Some(_) | None => (wanted, condition.reason, condition.message.as_str()),
        };
        let since = match before {
            Some(was) if was.status == status => was.since.clone(),
            _ => self.truth.now.into(),
        };
        self.new.push(Was { at, status, since: since.clone() });
        let mut value = json!({
            "type": condition.kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since,
        });
        if let (Some(generation), Some(fields)) = (self.generation, value.as_object_mut()) {
            fields.insert("observedGeneration".to_owned(), generation.into());
        }
        value
    }

    fn listener(&mut self, listener: &ListenerStatus, attached: &BTreeMap<String, usize>) -> Value {
        let kinds: Vec<_> = listener
            .kinds
            .iter()
            .map(|kind| json!({ "group": api::GATEWAY_GROUP, "kind": kind }))
            .collect();
        let rejected = self.truth.rejected.and_then(|one| one.of_listener(&listener.name));
        let conditions = listener.conditions.iter();
        let conditions: Vec<_> =
            conditions.map(|one| self.one(&listener.name, one, rejected)).collect();
        json!({
            "name": listener.name,
            "attachedRoutes": attached.get(&listener.name).copied().unwrap_or(0),
            "supportedKinds": kinds,
            "conditions": conditions,
        })
    }

    fn parent(&mut self, at: usize, reference: &str, parent: &ParentStatus) -> Value {
        json!({
            (reference): parent.reference.value(),
            "controllerName": parent.controller,
            "conditions": self.all(&at.to_string(), &parent.conditions),
        })
    }
}
