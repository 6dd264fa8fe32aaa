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

pub use clause::{ClaimField, Clause, Field, HeaderField, Match, Rule};
pub use matcher::{AccountMatch, InvalidPattern, PathMatch, PathTemplate, StringMatch};
pub use permit::{Decision, Denied, Permit};

mod answer;
mod clause;
mod domains;
mod matcher;
mod permit;
#[cfg(test)]
mod tests;

use answer::Answer;

use crate::request::Request;

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

impl Authorization {
    /// Tells whether some rule asks what only HTTP can answer.
    pub fn asks_http(&self) -> bool {
        let clauses = self.rules.iter().flat_map(|rule| &rule.clauses);
        clauses.flat_map(|clause| &clause.matches).any(Match::asks_http)
    }

    /// The first rule that matches, where an unknown answer counts as `unknown`.
    fn matching_rule(&self, request: &Request<'_>, unknown: bool) -> Option<usize> {
        self.rules.iter().position(|rule| match rule.answer(request) {
            Answer::Yes => true,
            Answer::Unknown => unknown,
            Answer::No => false,
        })
    }

    /// Why the policy refuses all it selects, if it does.
    fn refusal(&self) -> Option<Arc<str>> {
        match (&self.unsupported, self.action) {
            (Some(reason), _) => Some(Arc::clone(reason)),
            (None, Action::Custom) => Some(Arc::from("CUSTOM asks an external service")),
            (None, Action::Allow | Action::Deny | Action::Audit) => None,
        }
    }
}

/// One policy in force, which may not be here yet.
#[derive(Clone, Copy, Debug)]
pub enum InForce<'a> {
    /// The policy itself.
    Known(&'a Authorization),
    /// Named by the workload, not yet arrived.
    Missing(&'a PolicyName),
}

impl<'a> From<&'a Authorization> for InForce<'a> {
    fn from(policy: &'a Authorization) -> Self {
        InForce::Known(policy)
    }
}

/// A policy that is only recorded: AUDIT that matched, or dry run of any kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Recorded<'a> {
    /// The policy.
    pub policy: &'a PolicyName,
    /// Its action.
    pub action: Action,
    /// The rule that matched; for a dry run of ALLOW, none means none did.
    pub rule: Option<usize>,
}

/// Decides whether `policies`, all those in force for it, let `request` through.
///
/// Order: CUSTOM, then DENY, then whether every policy has arrived, then ALLOW:
/// once a policy allows anything, one must allow this. Nothing is allocated on
/// the way to a permit.
///
/// # Errors
///
/// [`Denied`], which names the policy, and the rule where one decided.
///
/// # Rule
///
/// `ztunnel` `src/state/policy.rs` and Istio's "implicit enablement" of
/// AuthorizationPolicy; where those let through what they cannot judge, this refuses.
pub fn evaluate<'a, I>(policies: I, request: &Request<'_>) -> Result<Permit, Denied>
where
    I: IntoIterator,
    I::Item: Into<InForce<'a>>,
{
    evaluate_and_record(policies, request, |_| {})
}

/// [`evaluate`], telling `record` of every policy that is only recorded.
///
/// # Errors
///
/// As [`evaluate`].
pub fn evaluate_and_record<'a, I>(
    policies: I,
    request: &Request<'_>,
    mut record: impl FnMut(Recorded<'a>),
) -> Result<Permit, Denied>
where
    I: IntoIterator,
    I::Item: Into<InForce<'a>>,
{
    let mut so_far = SoFar::default();
    for policy in policies {
        match policy.into() {
            InForce::Missing(name) => so_far.missing = so_far.missing.or(Some(name)),
            InForce::Known(policy) => match recorded(policy, request) {
                Some(only) => {
                    if only.rule.is_some() || policy.dry_run {
                        record(only);
                    }
                }
                None => so_far.enforce(policy, request),
            },
        }
    }
    so_far.verdict()
}

/// What a policy that is only recorded says; none if it is enforced.
fn recorded<'a>(policy: &'a Authorization, request: &Request<'_>) -> Option<Recorded<'a>> {
    if !policy.dry_run && policy.action != Action::Audit {
        return None;
    }
    let unknown = policy.action != Action::Allow;
    let rule = policy.matching_rule(request, unknown);
    Some(Recorded { policy: &policy.name, action: policy.action, rule })
}

/// Findings of one pass over the policies in force.
#[derive(Default)]
struct SoFar<'a> {
    custom: Option<&'a Authorization>,
    denied: Option<(&'a Authorization, Option<usize>)>,
    missing: Option<&'a PolicyName>,
    first_allow: Option<&'a PolicyName>,
    allowed: Option<(&'a PolicyName, usize)>,
}

impl<'a> SoFar<'a> {
    fn enforce(&mut self, policy: &'a Authorization, request: &Request<'_>) {
        match policy.action {
            Action::Custom => self.custom = self.custom.or(Some(policy)),
            Action::Deny | Action::Allow if policy.unsupported.is_some() => {
                self.denied = self.denied.or(Some((policy, None)));
            }
            Action::Deny => {
                if self.denied.is_none() && self.custom.is_none() {
                    let rule = policy.matching_rule(request, true);
                    self.denied = rule.map(|rule| (policy, Some(rule)));
                }
            }
            Action::Allow => {
                self.first_allow = self.first_allow.or(Some(&policy.name));
                if self.allowed.is_none() && self.denied.is_none() {
                    let rule = policy.matching_rule(request, false);
                    self.allowed = rule.map(|rule| (&policy.name, rule));
                }
            }
            Action::Audit => {}
        }
    }

    fn verdict(self) -> Result<Permit, Denied> {
        let refuser = self.custom.map(|policy| (policy, None)).or(self.denied);
        if let Some((policy, rule)) = refuser {
            let name = policy.name.clone();
            return Err(match (rule, policy.refusal()) {
                (Some(rule), _) => Denied::Rule(Decision { policy: name, rule }),
                (None, reason) => {
                    Denied::Unsupported { policy: name, reason: reason.unwrap_or_default() }
                }
            });
        }
        match (self.missing, self.first_allow, self.allowed) {
            (Some(name), _, _) => Err(Denied::Missing(name.clone())),
            (None, Some(first), None) => Err(Denied::NotAllowed(first.clone())),
            (None, _, allowed) => Ok(Permit::new(
                allowed.map(|(policy, rule)| Decision { policy: policy.clone(), rule }),
            )),
        }
    }
}
