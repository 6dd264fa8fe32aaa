// SPDX-License-Identifier: Apache-2.0

//! Conditions: what translators decided, let out once the data plane follows.
//!
//! Owns the shape of statuses, which conditions wait for acknowledgement, and the board of
//! what was let out. Everything False, and all that concerns references only, goes out at
//! once; what promises traffic waits for every ready client concerned.
//!
//! [`mod@write`] brings them to Kubernetes. Start at [`Board::update`].

pub mod board;
pub mod packed;
pub mod rejected;
pub mod render;
pub mod write;

pub use board::Board;

use std::net::IpAddr;

use self::packed::Packed;
use crate::store::Key;

/// One condition, before it has a time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Condition {
    /// Type.
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: bool,
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
    /// Waits until every client concerned has acknowledged the config.
    pub waits: bool,
}

impl Condition {
    /// A condition that waits for nothing.
    pub fn new(kind: &'static str, status: bool, reason: &'static str, message: String) -> Self {
        Self { kind, status, reason, message, waits: false }
    }

    /// Tells whether the condition says that something is wrong.
    ///
    /// `Conflicted` and its like are wrong when they are true.
    pub fn is_bad(&self) -> bool {
        match self.kind {
            "Conflicted" | "PartiallyInvalid" | "InsecureFrontendValidationMode" => self.status,
            _ => !self.status,
        }
    }

    /// The same, to be let out after the acknowledgement.
    #[must_use]
    pub fn after_ack(self) -> Self {
        Self { waits: true, ..self }
    }
}

/// Status of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The object.
    pub key: Key,
    /// Its generation that was looked at.
    pub generation: Option<i64>,
    /// What is said.
    pub body: Body,
}

/// What is said about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Conditions of the object itself.
    Conditions(Vec<Condition>),
    /// A ServiceEntry.
    Entry {
        /// Its conditions.
        conditions: Vec<Condition>,
        /// Hosts with addresses that they were given.
        addresses: Vec<(String, IpAddr)>,
    },
    /// A Gateway with its listeners.
    Gateway {
        /// Conditions of the Gateway.
        conditions: Vec<Condition>,
        /// Type and value of each address.
        addresses: Vec<(&'static str, String)>,
        /// Its listeners.
        listeners: Vec<ListenerStatus>,
        /// How many ListenerSets it takes.
        sets: usize,
    },
    /// A ListenerSet with its listeners.
    Set {
        /// Conditions of the set.
        conditions: Vec<Condition>,
        /// Its listeners.
        listeners: Vec<ListenerStatus>,
    },
    /// A GatewayClass.
    Class {
        /// Conditions of the class.
        conditions: Vec<Condition>,
        /// Names of features, sorted.
        features: Vec<&'static str>,
    },
    /// A route, one entry per parent of ours; or a policy, one per ancestor.
    Parents {
        /// The field that takes the entries, and the field in each that names the parent.
        fields: (&'static str, &'static str),
        /// The entries.
        parents: Vec<ParentStatus>,
    },
}

/// Status of one listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerStatus {
    /// Name of the listener.
    pub name: String,
    /// Kinds it takes, with their group.
    pub kinds: Vec<&'static str>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// Status towards one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentStatus {
    /// The reference, as the object writes it.
    pub reference: Packed,
    /// Name of our controller for that parent.
    pub controller: &'static str,
    /// Conditions.
    pub conditions: Vec<Condition>,
}
