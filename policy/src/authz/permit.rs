// SPDX-License-Identifier: Apache-2.0

//! The outcome of a decision: a proof of yes, or a no that names its policy.

use std::sync::Arc;

use super::PolicyName;

/// The policy and rule that decided; rules count from zero.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// The policy.
    pub policy: PolicyName,
    /// Index of its rule.
    pub rule: usize,
}

/// Proof that the policies in force allow a session or request.
///
/// Only [`super::evaluate`] makes one; what needs permission takes it by type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Permit {
    by: Option<Decision>,
}

impl Permit {
    pub(super) fn new(by: Option<Decision>) -> Self {
        Self { by }
    }

    /// The ALLOW rule that matched; none if no ALLOW policy is in force.
    pub fn by(&self) -> Option<&Decision> {
        self.by.as_ref()
    }
}

/// Why a session or request is refused.
///
/// [`Denied::Missing`] alone may turn into a permit without a change of policy,
/// so a new session may wait for it; the others are final.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Denied {
    /// A rule of a DENY policy matched.
    #[error("denied by rule {} of policy {}", .0.rule, .0.policy)]
    Rule(Decision),
    /// ALLOW policies are in force and no rule of them matched; the first is named.
    #[error("no rule of policy {0} allows this")]
    NotAllowed(PolicyName),
    /// A policy in force cannot be served as written, so it refuses.
    #[error("policy {policy} refuses everything, for it cannot be served: {reason}")]
    Unsupported {
        /// The policy.
        policy: PolicyName,
        /// What cannot be served.
        reason: Arc<str>,
    },
    /// A policy in force has not arrived yet.
    #[error("policy {0} has not arrived yet")]
    Missing(PolicyName),
}

impl Denied {
    /// The policy that refused.
    pub fn policy(&self) -> &PolicyName {
        match self {
            Self::Rule(Decision { policy, .. })
            | Self::NotAllowed(policy)
            | Self::Unsupported { policy, .. }
            | Self::Missing(policy) => policy,
        }
    }
}
