// SPDX-License-Identifier: Apache-2.0

//! Which tokens of end users are taken where.
//!
//! Owns RequestAuthentications by name. There are few, and they change seldom: whoever serves
//! requests keeps them by target, and knows by [`Authentications::is`] when to look again.
//!
//! Keeps: one that was sent but could never be read refuses what it governs.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::authz::{PolicyName, Target};
use policy::jwt::RequestAuthentication;

/// All RequestAuthentications; cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Authentications(Arc<BTreeMap<PolicyName, Arc<RequestAuthentication>>>);

impl Authentications {
    /// All of them, in the order of name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.0.values()
    }

    /// Those in force for any of `targets`, each once, in the order of name.
    pub fn of<'a>(
        &'a self,
        targets: &'a [Target],
    ) -> impl Iterator<Item = &'a Arc<RequestAuthentication>> {
        self.all().filter(|one| {
            one.targets.is_empty() || one.targets.iter().any(|target| targets.contains(target))
        })
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether nothing has changed since `other` was.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes one in, in place of the one with its name.
    pub fn put(&mut self, one: Arc<RequestAuthentication>) {
        Arc::make_mut(&mut self.0).insert(one.name.clone(), one);
    }

    /// Takes one out.
    pub fn remove(&mut self, name: &PolicyName) {
        if self.0.contains_key(name) {
            Arc::make_mut(&mut self.0).remove(name);
        }
    }

    /// Notes that one was sent and could not be read.
    ///
    /// The last good version stays in force. If there never was one, every request to `targets`
    /// is refused, or every request at all if those could not be read either.
    pub fn unreadable(&mut self, name: &PolicyName, targets: Vec<Target>, reason: &str) {
        if !self.0.contains_key(name) {
            self.put(Arc::new(RequestAuthentication {
                name: name.clone(),
                targets,
                rules: Vec::new(),
                unreadable: Some(reason.into()),
            }));
        }
    }
}
