// SPDX-License-Identifier: Apache-2.0

//! Statuses as JSON, as Kubernetes writes them.
//!
//! Owns observedGeneration and lastTransitionTime: a condition keeps its time while its status
//! stays as it is. Pure; the caller brings the time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

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
    // Mostly there are as many conditions as before, and no room is left over.
    let old = std::mem::replace(seen, Vec::with_capacity(seen.len()));
    let mut pen = Pen { generation: status.generation, truth, old, new: seen };
    match &status.body {
        Body::Conditions(conditions) => object([("conditions", pen.all("", conditions))]),
        Body::Entry { conditions, addresses } => {
            let conditions = pen.all("", conditions);
            let address = |(host, address): &(String, IpAddr)| {
                object([("value", address.to_string().into()), ("host", host.as_str().into())])
            };
            let addresses = addresses.iter().map(address).collect();
            object([("conditions", conditions), ("addresses", addresses)])
        }
        Body::Class { conditions, features } => {
            let features = features.iter().map(|name| object([("name", (*name).into())])).collect();
            object([("conditions", pen.all("", conditions)), ("supportedFeatures", features)])
        }
        Body::Gateway { conditions, addresses, listeners, sets } => {
            let address = |(kind, value): &(&str, String)| {
                object([("type", (*kind).into()), ("value", value.as_str().into())])
            };
            let listeners =
                listeners.iter().map(|listener| pen.listener(listener, attached)).collect();
            object([
                ("addresses", addresses.iter().map(address).collect()),
                ("conditions", pen.all("", conditions)),
                ("listeners", listeners),
                ("attachedListenerSets", (*sets).into()),
            ])
        }
        Body::Set { conditions, listeners } => {
            let listeners =
                listeners.iter().map(|listener| pen.listener(listener, attached)).collect();
            object([("conditions", pen.all("", conditions)), ("listeners", listeners)])
        }
        Body::Parents { fields: (list, reference), parents } => {
            let entries =
                (0..).zip(parents).map(|(at, parent)| pen.parent(at, reference, parent)).collect();
            object([(*list, entries)])
        }
    }
}

/// An object of these fields. `json!` copies each value that it is given, and so on every level
/// all that lies below.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

struct Pen<'a> {
    generation: Option<i64>,
    truth: Truth<'a>,
    old: Seen,
    new: &'a mut Seen,
}

impl Pen<'_> {
    fn all(&mut self, at: &str, conditions: &[Condition]) -> Value {
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
        let mut value = object([
            ("type", condition.kind.into()),
            ("status", status.into()),
            ("reason", reason.into()),
            ("message", message.into()),
            ("lastTransitionTime", (*since).into()),
        ]);
        if let (Some(generation), Some(fields)) = (self.generation, value.as_object_mut()) {
            fields.insert("observedGeneration".to_owned(), generation.into());
        }
        self.new.push(Was { at, status, since });
        value
    }

    fn listener(&mut self, listener: &ListenerStatus, attached: &BTreeMap<String, usize>) -> Value {
        let kind =
            |kind: &&str| object([("group", api::GATEWAY_GROUP.into()), ("kind", (*kind).into())]);
        let rejected = self.truth.rejected.and_then(|one| one.of_listener(&listener.name));
        let conditions = listener.conditions.iter();
        let conditions = conditions.map(|one| self.one(&listener.name, one, rejected)).collect();
        object([
            ("name", listener.name.as_str().into()),
            ("attachedRoutes", attached.get(&listener.name).copied().unwrap_or(0).into()),
            ("supportedKinds", listener.kinds.iter().map(kind).collect()),
            ("conditions", conditions),
        ])
    }

    fn parent(&mut self, at: usize, reference: &str, parent: &ParentStatus) -> Value {
        object([
            (reference, parent.reference.value()),
            ("controllerName", parent.controller.into()),
            ("conditions", self.all(&at.to_string(), &parent.conditions)),
        ])
    }
}
