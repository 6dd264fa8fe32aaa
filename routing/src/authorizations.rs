// SPDX-License-Identifier: Apache-2.0

//! Which authorization policies are in force for a workload.
//!
//! Owns the policies by name and by scope. Leaves their meaning to
//! [`policy::authz`].
//!
//! Keeps: a policy that was sent but could never be read refuses what it
//! governs, and a policy that a workload lists but that is not here is said to
//! be missing; neither is ever just left out.
//!
//! Start at [`Authorizations::in_force`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use policy::authz::{
    Action, Authorization, Denied, InForce, Permit, PolicyName, Recorded, Scope,
    evaluate_and_record,
};
use policy::peer::Peer;
use policy::request::Request;

use crate::discovery::{Shards, Workload};

/// All authorization policies for sessions; cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Authorizations {
    policies: Shards<PolicyName, Arc<Authorization>>,
    global: Arc<BTreeMap<PolicyName, Arc<Authorization>>>,
    by_namespace: Shards<Arc<str>, Arc<BTreeMap<PolicyName, Arc<Authorization>>>>,
}

impl Authorizations {
    /// The policy with this name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Authorization>> {
        self.policies.get(name)
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.values()
    }

    /// Number of policies.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Tells whether there is no policy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The policies in force for `workload`: those of the mesh, of its
    /// namespace, and those that it lists, each in the order of name.
    pub fn in_force<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = InForce<'a>> {
        let own = self.by_namespace.get(workload.namespace.as_str());
        let own = own.into_iter().flat_map(|policies| policies.values());
        let listed = workload.authorization_policies.iter().filter_map(|name| {
            let Some(policy) = self.policies.get(name) else { return Some(InForce::Missing(name)) };
            let counted = match policy.scope {
                Scope::Global => true,
                Scope::Namespace => name.namespace() == workload.namespace.as_str(),
                Scope::Selector | Scope::Targets(_) => false,
            };
            (!counted).then_some(InForce::Known(policy))
        });
        self.global.values().chain(own).map(|policy| InForce::Known(policy)).chain(listed)
    }

    /// Asks the policies in force for `local` about a session from `peer` to
    /// `target`, an address and port of the workload. `record` is told of each
    /// policy that is only recorded.
    ///
    /// # Errors
    ///
    /// The policy that refuses.
    pub fn judge<'a>(
        &'a self,
        local: &'a Workload,
        peer: &Peer,
        target: SocketAddr,
        record: impl FnMut(Recorded<'a>),
    ) -> Result<Permit, Denied> {
        evaluate_and_record(self.in_force(local), &Request::session(peer, target), record)
    }

    /// Takes a new or changed policy in.
    pub fn put(&mut self, policy: Arc<Authorization>) {
        self.remove(&policy.name);
        match policy.scope {
            Scope::Global => {
                Arc::make_mut(&mut self.global).insert(policy.name.clone(), Arc::clone(&policy));
            }
            Scope::Namespace => {
                let namespace = policy.name.namespace();
                let mut own = self.by_namespace.get(namespace).cloned().unwrap_or_default();
                Arc::make_mut(&mut own).insert(policy.name.clone(), Arc::clone(&policy));
                self.by_namespace.insert(namespace.into(), own);
            }
            Scope::Selector | Scope::Targets(_) => {}
        }
        self.policies.insert(policy.name.clone(), policy);
    }

    /// Takes a policy out.
    pub fn remove(&mut self, name: &PolicyName) {
        let Some(old) = self.policies.remove(name) else { return };
        match old.scope {
            Scope::Global => {
                Arc::make_mut(&mut self.global).remove(name);
            }
            Scope::Namespace => {
                let Some(own) = self.by_namespace.get(name.namespace()) else { return };
                let mut own = Arc::clone(own);
                Arc::make_mut(&mut own).remove(name);
                if own.is_empty() {
                    self.by_namespace.remove(name.namespace());
                } else {
                    self.by_namespace.insert(name.namespace().into(), own);
                }
            }
            Scope::Selector | Scope::Targets(_) => {}
        }
    }

    /// Notes that the policy was sent and could not be read.
    ///
    /// The last good version stays in force. If there never was one, a policy
    /// that refuses takes its place: over `scope` if that much could be read,
    /// else over the policy's namespace and the workloads that list it.
    pub fn unreadable(&mut self, name: &PolicyName, scope: Option<Scope>, reason: &str) {
        if self.policy(name).is_none() {
            self.put(Arc::new(Authorization {
                name: name.clone(),
                scope: scope.unwrap_or(Scope::Namespace),
                action: Action::Deny,
                dry_run: false,
                unsupported: Some(reason.into()),
                rules: Vec::new(),
            }));
        }
    }
}
