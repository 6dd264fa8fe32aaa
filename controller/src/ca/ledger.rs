// SPDX-License-Identifier: Apache-2.0

//! Who was given a certificate of which root.
//!
//! Owns the newest leaf of each holder, so that it can be told when none of an old root is in
//! use. Leaves who may have which to [`super::authorise`]. In memory alone: what was given
//! before this controller started is not known here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use policy::identity::Identity;
use time::OffsetDateTime;

use super::token::Bound;

/// Holders that are remembered before those that hold nothing any more are looked for.
const FIRST_SWEEP: usize = 1024;

/// A leaf that was given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    /// Fingerprint of its root.
    pub root: String,
    /// Fingerprints of all roots that came with it.
    pub trusted: Vec<String>,
    /// When it was given.
    pub given_at: OffsetDateTime,
    /// End of its life.
    pub not_after: OffsetDateTime,
}

/// Who holds a leaf, and of whom.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The pod that asked.
    pub caller: Bound,
    /// The identity that it asked for, if not its own.
    pub asked: Option<Identity>,
}

/// The newest leaf of each holder.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// By UID of the pod that asked, and what it asked for.
    leaves: HashMap<(String, Option<Identity>), (Holder, Leaf)>,
    /// At how many those that have ended are looked for.
    sweep_at: usize,
}

impl Ledger {
    /// Notes that `caller` was given `leaf`, for `asked` or for itself.
    pub fn note(&self, caller: Bound, asked: Option<Identity>, leaf: Leaf) {
        let key = (caller.pod.uid.clone(), asked.clone());
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.leaves.insert(key, (Holder { caller, asked }, leaf));
        if held.leaves.len() > held.sweep_at.max(FIRST_SWEEP) {
            let now = OffsetDateTime::now_utc();
            held.leaves.retain(|_, (_, leaf)| leaf.not_after > now);
            held.sweep_at = held.leaves.len() * 2;
        }
    }

    /// Every holder of a leaf that lives at `now`.
    pub fn alive(&self, now: OffsetDateTime) -> Vec<(Holder, Leaf)> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.leaves.values().filter(|(_, leaf)| leaf.not_after > now).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::token::Named;
    use time::Duration;

    #[test]
    fn a_holder_is_known_by_its_newest_leaf_until_that_ends() {
        let named = |name: &str| Named { name: name.into(), uid: format!("{name}-uid") };
        let tunnel = Bound {
            namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
            pod: named("ztunnel-1"),
            node: named("n1"),
        };
        let now = OffsetDateTime::now_utc();
        let leaf = |root: &str, hours| Leaf {
            root: root.to_owned(),
            trusted: vec![root.to_owned()],
            given_at: now,
            not_after: now + Duration::hours(hours),
        };
        let web: Identity = "spiffe://cluster.local/ns/app/sa/web".parse().unwrap();
        let ledger = Ledger::default();
        ledger.note(tunnel.clone(), None, leaf("old", 3));
        ledger.note(tunnel.clone(), Some(web.clone()), leaf("old", 1));
        ledger.note(tunnel, Some(web), leaf("new", 2));
        let roots = |at: OffsetDateTime| {
            let mut alive: Vec<_> =
                ledger.alive(at).into_iter().map(|(_, leaf)| leaf.root).collect();
            alive.sort();
            alive
        };
        assert_eq!(roots(now), ["new", "old"]);
        assert_eq!(roots(now + Duration::hours(2)), ["old"]);
        assert!(roots(now + Duration::hours(4)).is_empty());
    }
}
