// SPDX-License-Identifier: Apache-2.0

//! The statuses that are out.
//!
//! Owns: which conditions may be seen, and since when they are as they are. A condition that
//! waits shows its last state, or `Unknown`/`Pending`, until the revision that it belongs to
//! is acknowledged.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::Value;

use super::Status;
use super::rejected::{Rejection, Rejections};
use super::render::{self, Seen, Truth, Was};
use crate::store::Key;

/// What is told about every object.
#[derive(Debug, Default)]
pub struct Board {
    entries: HashMap<Key, Entry>,
    waiting: BTreeSet<(u64, Key)>,
    /// What proxies refuse at present, by object.
    rejected: Rejections,
    /// What differs from what was taken last.
    changed: BTreeSet<Key>,
}

#[derive(Debug)]
struct Entry {
    wanted: Arc<Status>,
    revision: u64,
    attached: BTreeMap<String, usize>,
    seen: Seen,
    acked: bool,
    /// A digest of what is told: the text itself would be the largest part of an entry.
    told: Option<u64>,
}

impl Entry {
    /// Says what is so now; tells whether that differs from before.
    fn render(&mut self, acked: bool, rejected: Option<&Rejection>, moment: Moment<'_>) -> bool {
        self.acked = acked;
        let truth = Truth { acked, rejected, now: moment.now };
        let value = render::render(&self.wanted, &self.attached, truth, &mut self.seen);
        let mut digest = DefaultHasher::new();
        value.hash(&mut digest);
        let told = Some(digest.finish());
        std::mem::replace(&mut self.told, told) != told
    }

    /// What was said last.
    fn value(&self, rejected: Option<&Rejection>) -> Value {
        // Nothing differs from what was seen, so nothing takes the time of now.
        let truth = Truth { acked: self.acked, rejected, now: "" };
        render::render(&self.wanted, &self.attached, truth, &mut self.seen.clone())
    }
}

/// How far the data plane is, and what time it is.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The revision that every client concerned has acknowledged.
    pub acked: u64,
    /// The time in RFC 3339.
    pub now: &'a str,
}

impl Board {
    /// Takes what should be said of an object as of `revision`, or that nothing should.
    ///
    /// The second part of `wanted` counts the routes of each listener of a Gateway.
    pub fn update(
        &mut self,
        key: &Key,
        wanted: Option<(Arc<Status>, BTreeMap<String, usize>)>,
        revision: u64,
        moment: Moment<'_>,
    ) {
        let Some((wanted, attached)) = wanted else {
            self.entries.remove(key);
            self.changed.insert(key.clone());
            return;
        };
        let (seen, told) =
            self.entries.remove(key).map(|entry| (entry.seen, entry.told)).unwrap_or_default();
        let acked = moment.acked >= revision;
        if !acked && wanted.waits() {
            self.waiting.insert((revision, key.clone()));
        }
        let mut entry = Entry { wanted, revision, attached, seen, acked, told };
        if entry.render(acked, self.rejected.get(key), moment) {
            self.changed.insert(key.clone());
        }
        self.entries.insert(key.clone(), entry);
    }

    /// Lets out what waited for a revision that is acknowledged now.
    pub fn acknowledged(&mut self, moment: Moment<'_>) {
        while let Some((revision, key)) = self.waiting.pop_first() {
            if revision > moment.acked {
                self.waiting.insert((revision, key));
                return;
            }
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let due = entry.revision <= moment.acked;
            if due && entry.render(true, self.rejected.get(&key), moment) {
                self.changed.insert(key);
            }
        }
    }

    /// Takes what proxies refuse now, by object; what they take again is put right.
    pub fn rejected(&mut self, rejected: Rejections, moment: Moment<'_>) {
        let before = std::mem::replace(&mut self.rejected, rejected);
        let differs = |key: &&Key| before.get(*key) != self.rejected.get(*key);
        let keys: BTreeSet<&Key> =
            before.keys().chain(self.rejected.keys()).filter(differs).collect();
        for key in keys {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            let acked = entry.revision <= moment.acked;
            if entry.render(acked, self.rejected.get(key), moment) {
                self.changed.insert(key.clone());
            }
        }
    }

    /// The objects whose status changed since this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.changed)
    }

    /// Every object that is told something, in no order.
    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys().cloned().collect()
    }

    /// What is told about an object now.
    pub fn get(&self, key: &Key) -> Option<Value> {
        self.entries.get(key).map(|entry| entry.value(self.rejected.get(key)))
    }

    /// Tells whether an object is told that proxies are waited for.
    pub fn is_pending(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.seen.iter().any(Was::is_pending))
    }

    /// Every condition that is False, in order of objects: the object, type, reason and message.
    pub fn refused(&self) -> Vec<(Key, &'static str, &'static str, String)> {
        let mut found = Vec::new();
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        for (key, entry) in entries {
            let conditions = entry.wanted.conditions();
            for condition in conditions.into_iter().filter(|condition| condition.is_bad()) {
                let message = condition.message.clone();
                found.push((key.clone(), condition.kind, condition.reason, message));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Body, Condition};
    use crate::store::{Kind, Name};

    fn key() -> Key {
        Key { kind: Kind::HttpRoute, name: Name::new("n", "r") }
    }

    fn put(board: &mut Board, condition: Condition, revision: u64, acked: u64, now: &str) {
        let body = Body::Conditions(vec![condition]);
        let status = Status { key: key(), generation: Some(3), body };
        board.update(
            &key(),
            Some((status.into(), BTreeMap::new())),
            revision,
            Moment { acked, now },
        );
    }

    fn seen(board: &Board) -> (String, String, String) {
        let value = board.get(&key()).unwrap();
        let condition = &value["conditions"][0];
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("lastTransitionTime"))
    }

    #[test]
    fn a_promise_waits_for_the_acknowledgement_and_a_refusal_does_not() {
        let mut board = Board::default();
        let yes = || Condition::new("Accepted", true, "Accepted", String::new()).after_ack();
        put(&mut board, yes(), 5, 4, "t1");
        assert_eq!(seen(&board), ("Unknown".into(), "Pending".into(), "t1".into()));
        assert!(board.is_pending(&key()));
        board.acknowledged(Moment { acked: 4, now: "t2" });
        assert_eq!(seen(&board).0, "Unknown");
        board.acknowledged(Moment { acked: 5, now: "t3" });
        assert_eq!(seen(&board), ("True".into(), "Accepted".into(), "t3".into()));
        assert!(!board.is_pending(&key()));

        // Still true, of a newer revision: it never flaps.
        put(&mut board, yes(), 6, 5, "t4");
        assert_eq!(seen(&board), ("True".into(), "Accepted".into(), "t3".into()));

        put(&mut board, Condition::new("Accepted", false, "No", String::new()), 7, 5, "t5");
        assert_eq!(seen(&board), ("False".into(), "No".into(), "t5".into()));
        board.acknowledged(Moment { acked: 7, now: "t6" });
        assert_eq!(seen(&board), ("False".into(), "No".into(), "t5".into()));
        assert_eq!(board.refused().len(), 1);

        put(&mut board, yes(), 8, 8, "t7");
        let refusal = BTreeMap::from([(key(), Rejection::of_all("gateway a/b: no"))]);
        board.rejected(refusal, Moment { acked: 8, now: "t8" });
        assert_eq!(seen(&board), ("False".into(), "Invalid".into(), "t8".into()));
        board.rejected(BTreeMap::new(), Moment { acked: 8, now: "t9" });
        assert_eq!(seen(&board), ("True".into(), "Accepted".into(), "t9".into()));
        assert_eq!(board.get(&key()).unwrap()["conditions"][0]["observedGeneration"], 3);
    }
}
