// SPDX-License-Identifier: Apache-2.0

//! Who was given a certificate of which root.
//!
//! Owns the newest leaf of each holder, so that it can be told when none of an old root is in
//! use. Leaves who may have which to [`super::authorise`]. In memory alone: controllers tell each
//! other what they give ([`crate::lead`]); what was given before all of them started is not known.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use policy::identity::Identity;
use time::OffsetDateTime;
use tokio::sync::watch;

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
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// The pod that asked.
    pub caller: Bound,
    /// The identity that it asked for, if not its own.
    pub asked: Option<Identity>,
}

/// The newest leaf of each holder.
#[derive(Debug, Default)]
pub struct Ledger {
    held: Mutex<Held>,
    /// Counts what was noted.
    revision: watch::Sender<u64>,
}

/// UID of the pod that asked, and what it asked for.
type Place = (String, Option<Identity>);

#[derive(Debug, Default)]
struct Held {
    /// Each with the revision that brought it.
    leaves: HashMap<Place, (u64, Holder, Leaf)>,
    /// Revision → what it brought; what was replaced meanwhile is left out.
    order: BTreeMap<u64, Place>,
    revision: u64,
    /// At how many those that have ended are looked for.
    sweep_at: usize,
}

impl Held {
    fn put(&mut self, place: Place, holder: Holder, leaf: Leaf) {
        self.revision += 1;
        self.order.insert(self.revision, place.clone());
        if let Some((old, ..)) = self.leaves.insert(place, (self.revision, holder, leaf)) {
            self.order.remove(&old);
        }
        if self.leaves.len() > self.sweep_at.max(FIRST_SWEEP) {
            let now = OffsetDateTime::now_utc();
            self.leaves.retain(|_, (_, _, leaf)| leaf.not_after > now);
            let leaves = &self.leaves;
            self.order.retain(|_, place| leaves.contains_key(place));
            self.sweep_at = self.leaves.len() * 2;
        }
    }
}

impl Ledger {
    /// Notes that `caller` was given `leaf`, for `asked` or for itself.
    pub fn note(&self, caller: Bound, asked: Option<Identity>, leaf: Leaf) {
        let place = (caller.pod.uid.clone(), asked.clone());
        let mut held = self.held();
        held.put(place, Holder { caller, asked }, leaf);
        self.revision.send_replace(held.revision);
    }

    /// Takes what another controller gave; what was given last counts.
    pub fn merge(&self, leaves: impl IntoIterator<Item = (Holder, Leaf)>) {
        let mut held = self.held();
        let before = held.revision;
        for (holder, leaf) in leaves {
            let place = (holder.caller.pod.uid.clone(), holder.asked.clone());
            let known = held.leaves.get(&place).map(|(_, _, known)| known.given_at);
            if known.is_none_or(|known| known < leaf.given_at) {
                held.put(place, holder, leaf);
            }
        }
        if held.revision != before {
            self.revision.send_replace(held.revision);
        }
    }

    /// Every holder of a leaf that lives at `now`.
    pub fn alive(&self, now: OffsetDateTime) -> Vec<(Holder, Leaf)> {
        let held = self.held();
        let alive = held.leaves.values().filter(|(_, _, leaf)| leaf.not_after > now);
        alive.map(|(_, holder, leaf)| (holder.clone(), leaf.clone())).collect()
    }

    /// What came after `revision`, and the newest revision.
    pub fn since(&self, revision: u64) -> (u64, Vec<(Holder, Leaf)>) {
        let held = self.held();
        let newer = held.order.range(revision.saturating_add(1)..);
        let newer = newer.filter_map(|(_, place)| held.leaves.get(place));
        let newer = newer.map(|(_, holder, leaf)| (holder.clone(), leaf.clone())).collect();
        (held.revision, newer)
    }

    /// The revision, whenever something was noted.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn of_what_two_controllers_gave_the_newest_counts_at_both() {
        let named = |name: &str| Named { name: name.into(), uid: format!("{name}-uid") };
        let holder = |name: &str| Holder {
            caller: Bound {
                namespace: "app".into(),
                service_account: "web".into(),
                pod: named(name),
                node: named("n1"),
            },
            asked: None,
        };
        let now = OffsetDateTime::now_utc();
        let leaf = |root: &str, second| Leaf {
            root: root.to_owned(),
            trusted: vec![root.to_owned()],
            given_at: now + Duration::seconds(second),
            not_after: now + Duration::hours(1),
        };
        let (here, there) = (Ledger::default(), Ledger::default());
        here.note(holder("a").caller, None, leaf("old", 1));
        here.note(holder("b").caller, None, leaf("old", 1));
        there.note(holder("a").caller, None, leaf("new", 2));
        let (seen, told) = here.since(0);
        assert_eq!(told.len(), 2);
        there.merge(told);
        here.merge(there.since(0).1);
        for ledger in [&here, &there] {
            let alive = ledger.alive(now).into_iter();
            let mut roots: Vec<_> =
                alive.map(|(holder, leaf)| (holder.caller.pod.name, leaf.root)).collect();
            roots.sort();
            assert_eq!(roots, [("a".into(), "new".into()), ("b".into(), "old".into())]);
        }
        let (newest, told) = here.since(seen);
        assert_eq!(told.into_iter().map(|(_, leaf)| leaf.root).collect::<Vec<_>>(), ["new"]);
        // What comes back is nothing new: it does not go round for ever.
        here.merge(there.since(0).1);
        assert_eq!(here.since(newest), (newest, Vec::new()));
    }
}
