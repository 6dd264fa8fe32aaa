// SPDX-License-Identifier: Apache-2.0

//! When it is time to write an object's status: the first change at once, further ones when
//! they pause, or after a second at the latest. What only waits for proxies gets a pause, in
//! which they mostly answer: then there is one write. Pure; the caller brings the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::Key;

/// The pause that ends a series of changes.
const QUIET: Duration = Duration::from_millis(50);
/// The longest that a change waits.
const LONGEST: Duration = Duration::from_secs(1);

/// Which objects wait, and which were written lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waiting: BTreeMap<Key, Waiting>,
    written: BTreeMap<Key, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: Instant,
    due: Instant,
    /// Nothing is to be said yet but that proxies are waited for.
    pending: bool,
}

impl Pace {
    /// Takes a change of an object's status; `pending` tells that it waits for proxies.
    pub(super) fn changed(&mut self, key: Key, pending: bool, now: Instant) {
        let lately = self.written.get(&key).is_some_and(|at| now.duration_since(*at) < LONGEST);
        let Some(waiting) = self.waiting.get_mut(&key) else {
            let due = if lately || pending { now + QUIET } else { now };
            self.waiting.insert(key, Waiting { first: now, due, pending });
            return;
        };
        // The proxies answered: to this nothing was written yet.
        let answered = waiting.pending && !pending && !lately;
        waiting.due = if answered { now } else { (now + QUIET).min(waiting.first + LONGEST) };
        waiting.pending &= pending;
    }

    /// Takes a write that failed, to be tried again at `due`.
    pub(super) fn again(&mut self, key: Key, due: Instant) {
        self.waiting.entry(key).or_insert(Waiting { first: due, due, pending: false });
    }

    /// When the next object is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// The objects whose time has come; they count as written.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Key> {
        self.written.retain(|_, at| now.duration_since(*at) < LONGEST);
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.due <= now);
        let due: Vec<Key> = due.map(|(key, _)| key.clone()).collect();
        for key in &due {
            self.waiting.remove(key);
            self.written.insert(key.clone(), now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, Name};

    #[test]
    fn the_first_change_goes_at_once_and_a_series_is_one_write() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let key = || Key { kind: Kind::Gateway, name: Name::new("n", "g") };
        let mut pace = Pace::default();
        assert_eq!(pace.next(), None);
        pace.changed(key(), false, at(0));
        assert_eq!(pace.due(at(0)), [key()], "the first at once");

        // One that follows waits for a pause.
        pace.changed(key(), false, at(10));
        pace.changed(key(), false, at(40));
        assert_eq!(pace.next(), Some(at(90)));
        assert!(pace.due(at(89)).is_empty());
        assert_eq!(pace.due(at(90)), [key()]);

        // A series without a pause is written after a second.
        for millis in (100..1100).step_by(20) {
            pace.changed(key(), false, at(millis));
            assert!(pace.due(at(millis)).is_empty(), "at {millis}");
        }
        assert_eq!(pace.next(), Some(at(1100)));
        assert_eq!(pace.due(at(1100)), [key()]);

        // After a quiet time the first goes at once again; a failure waits.
        pace.changed(key(), false, at(3000));
        assert_eq!(pace.due(at(3000)), [key()]);
        pace.again(key(), at(4000));
        assert!(pace.due(at(3999)).is_empty());
        assert_eq!(pace.due(at(4000)), [key()]);
    }

    #[test]
    fn what_proxies_answer_soon_is_one_write_and_at_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let key = || Key { kind: Kind::HttpRoute, name: Name::new("n", "r") };
        let mut pace = Pace::default();
        pace.changed(key(), true, at(0));
        assert!(pace.due(at(5)).is_empty(), "nothing is to be said yet");
        pace.changed(key(), false, at(6));
        assert_eq!(pace.due(at(6)), [key()]);
        assert_eq!(pace.next(), None);

        // Proxies that take longer are told of, and what they say then is a further change.
        pace.changed(key(), true, at(5000));
        assert!(pace.due(at(5049)).is_empty());
        assert_eq!(pace.due(at(5050)), [key()]);
        pace.changed(key(), false, at(5060));
        assert_eq!(pace.next(), Some(at(5110)));
    }
}
