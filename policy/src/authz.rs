// SPDX-License-Identifier: Apache-2.0

//! Authorization policies and the one decision over them.
//!
//! Owns one type for both kinds of policy: those for sessions, as tunnels get
//! them, and those for requests, as gateways do. A policy is any-of rules; a
//! rule is all-of clauses; a clause is any-of matches; a match is all-of its
//! fields. So a policy without rules matches nothing, a rule without clauses
//! matches everything, and a match without a field matches nothing.
//!
//! Keeps: only [`evaluate`] makes a [`Permit`]; what is unknown refuses. A
//! rule may ask what the request cannot answer (a path, of a plain session):
//! then a DENY counts as a match and an ALLOW does not.
//!
//! Start at [`evaluate`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use clause::{Clause, Field, HeaderField, Match, Rule};
pub use matcher::{AccountMatch, InvalidPattern, PathMatch, PathTemplate, StringMatch};
pub use permit::{Decision, Denied, Permit};

mod clause;
mod matcher;
mod permit;

/// Name of a policy: `<namespace>/<name>`, as on the wire.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PolicyName(Arc<str>);

impl PolicyName {
    /// Puts namespace and name together.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// `<namespace>/<name>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace part.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The part after the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }
}

/// Text that is not `<namespace>/<name>`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} names no policy, wanted <namespace>/<name>")]
pub struct InvalidPolicyName(pub String);

impl FromStr for PolicyName {
    type Err = InvalidPolicyName;

    fn from_str(text: &str) -> Result<Self, InvalidPolicyName> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self(text.into()))
            }
            _ => Err(InvalidPolicyName(text.to_owned())),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a policy does with what it matches.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// Once any such policy selects the traffic, one of them must match.
    Allow,
    /// A match refuses.
    Deny,
    /// A match is recorded.
    Audit,
    /// A match would ask an external service. Not served: refuses all it selects.
    Custom,
}

/// Where a policy is in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's own namespace.
    Namespace,
    /// The workloads that list the policy by name.
    Selector,
    /// What the policy points at; such policies are for gateways only.
    Targets(Vec<Target>),
}

/// What a policy for gateways points at.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Target {
    /// A Service or ServiceEntry: `<namespace>/<hostname>`.
    Service(Arc<str>),
    /// A Gateway: `<namespace>/<name>`.
    Gateway(Arc<str>),
    /// Every Gateway of a class.
    Class(Arc<str>),
}

/// One authorization policy, for sessions or for requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authorization {
    /// Its name.
    pub name: PolicyName,
    /// Where it is in force.
    pub scope: Scope,
    /// What it does with what it matches.
    pub action: Action,
    /// Only recorded, never enforced.
    pub dry_run: bool,
    /// Why the policy cannot be served as written. An ALLOW, DENY or CUSTOM
    /// policy then refuses all traffic that it selects.
    pub unsupported: Option<Arc<str>>,
    /// Any-of; none matches nothing.
    pub rules: Vec<Rule>,
}
