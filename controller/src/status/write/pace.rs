// SPDX-License-Identifier: Apache-2.0

//! When it is time to write an object's status: the first change at once, further ones when
//! they pause, or after a second at the latest: a Gateway's count of routes, once no more come.
//! What only waits for proxies gets a pause, in which they mostly answer: then there is one
//! write. Gateways go before routes, of which there are many. No object is written twice at
//! once. Pure; the caller brings the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::store::Key;

/// The pause that ends a series of changes.
const QUIET: Duration = Duration::from_millis(50);
/// The pause for proxies to answer, longer than a busy machine takes.
const ANSWER: Duration = Duration::from_millis(200);
/// The longest that a change waits.
const LONGEST: Duration = Duration::from_secs(1);

/// Which objects wait, which are written now, and which were lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waiting: BTreeMap<Key, Waiting>,
    /// Those whose time has come, in the order of their kinds.
    due: BTreeSet<Key>,
    /// Those that are being written.
    begun: BTreeSet<Key>,
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
        if self.due.contains(&key) {
            // It is written as it is then.
            return;
        }
        let lately = self.written.get(&key).is_some_and(|at| now.duration_since(*at) < LONGEST);
        let Some(waiting) = self.waiting.get_mut(&key) else {
            let due = match (pending, lately) {
                (true, _) => now + ANSWER,
                (false, true) => now + QUIET,
                (false, false) => now,
            };
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
        let waiting = Waiting { first: due, due, pending: false };
        self.waiting.entry(key).or_insert(waiting);
    }

    /// When the next object that waits is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Begins to write the next object whose time has come; it counts as written.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Key> {
        let come = self.waiting.extract_if(.., |_, waiting| waiting.due <= now);
        self.due.extend(come.map(|(key, _)| key));
        let key = self.due.iter().find(|key| !self.begun.contains(*key))?.clone();
        self.due.remove(&key);
        self.begun.insert(key.clone());
        self.written.retain(|_, at| now.duration_since(*at) < LONGEST);
        self.written.insert(key.clone(), now);
        Some(key)
    }

    /// Notes that a write has ended.
    pub(super) fn ended(&mut self, key: &Key) {
        self.begun.remove(key);
    }

    /// Forgets what waits: another writes.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.due.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, Name};

    /// Writes all whose time has come.
    fn due(pace: &mut Pace, now: Instant) -> Vec<Key> {
        let due: Vec<Key> = std::iter::from_fn(|| pace.begin(now)).collect();
        due.iter().for_each(|key| pace.ended(key));
        due
    }

    #[test]
    fn the_first_change_goes_at_once_and_a_series_is_one_write() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let key = || Key { kind: Kind::Gateway, name: Name::new("n", "g") };
        let mut pace = Pace::default();
        assert_eq!(pace.next(), None);
        pace.changed(key(), false, at(0));
        assert_eq!(due(&mut pace, at(0)), [key()], "the first at once");

        // One that follows waits for a pause.
        pace.changed(key(), false, at(10));
        pace.changed(key(), false, at(40));
        assert_eq!(pace.next(), Some(at(90)));
        assert!(due(&mut pace, at(89)).is_empty());
        assert_eq!(due(&mut pace, at(90)), [key()]);

        // A series without a pause is written after a second.
        for millis in (100..1100).step_by(20) {
            pace.changed(key(), false, at(millis));
            assert!(due(&mut pace, at(millis)).is_empty(), "at {millis}");
        }
        assert_eq!(pace.next(), Some(at(1100)));
        assert_eq!(due(&mut pace, at(1100)), [key()]);

        // After a quiet time the first goes at once again; a failure waits.
        pace.changed(key(), false, at(3000));
        assert_eq!(due(&mut pace, at(3000)), [key()]);
        pace.again(key(), at(4000));
        assert!(due(&mut pace, at(3999)).is_empty());
        assert_eq!(due(&mut pace, at(4000)), [key()]);
    }

    #[test]
    fn what_proxies_answer_soon_is_one_write_and_at_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let key = || Key { kind: Kind::HttpRoute, name: Name::new("n", "r") };
        let mut pace = Pace::default();
        pace.changed(key(), true, at(0));
        assert!(due(&mut pace, at(5)).is_empty(), "nothing is to be said yet");
        pace.changed(key(), false, at(6));
        assert_eq!(due(&mut pace, at(6)), [key()]);
        assert_eq!(pace.next(), None);

        // Proxies that take longer are told of, and what they say then is a further change.
        pace.changed(key(), true, at(5000));
        assert!(due(&mut pace, at(5199)).is_empty());
        assert_eq!(due(&mut pace, at(5200)), [key()]);
        pace.changed(key(), false, at(5210));
        assert_eq!(pace.next(), Some(at(5260)));
    }

    #[test]
    fn gateways_go_first_and_no_object_is_written_twice_at_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let key = |kind, name| Key { kind, name: Name::new("n", name) };
        let (gateway, first, second) =
            (key(Kind::Gateway, "g"), key(Kind::HttpRoute, "a"), key(Kind::HttpRoute, "b"));
        let mut pace = Pace::default();
        pace.changed(first.clone(), false, at(0));
        pace.changed(second.clone(), false, at(0));
        assert_eq!(pace.begin(at(0)), Some(first.clone()));
        // It is due before the second route has begun.
        pace.changed(gateway.clone(), false, at(1));
        assert_eq!(pace.begin(at(1)), Some(gateway.clone()));
        pace.changed(second.clone(), false, at(1));
        assert_eq!(pace.begin(at(1)), Some(second.clone()));
        assert_eq!((pace.begin(at(1)), pace.next()), (None, None), "each once");
        pace.ended(&second);

        // What changes while it is written is written again, afterwards.
        pace.changed(gateway.clone(), false, at(2));
        pace.changed(first.clone(), false, at(3));
        pace.ended(&first);
        assert_eq!(pace.begin(at(60)), Some(first.clone()));
        pace.ended(&first);
        assert_eq!(pace.begin(at(60)), None);
        assert_eq!(pace.next(), None, "nothing but the end of a write is waited for");
        pace.ended(&gateway);
        assert_eq!(pace.begin(at(60)), Some(gateway.clone()));

        pace.ended(&gateway);
        pace.changed(gateway, false, at(70));
        pace.clear();
        assert_eq!((pace.begin(at(2000)), pace.next()), (None, None));
    }

    #[test]
    fn a_count_is_written_once_no_more_routes_come() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let key = |kind, name: &str| Key { kind, name: Name::new("n", name) };
        let gateway = key(Kind::Gateway, "g");
        let mut pace = Pace::default();
        pace.changed(gateway.clone(), false, at(0));
        assert_eq!(pace.begin(at(0)), Some(gateway.clone()), "the first time at once");
        pace.ended(&gateway);
        for route in 0..15 {
            pace.changed(key(Kind::TcpRoute, &route.to_string()), true, at(10 + route * 10));
            pace.changed(gateway.clone(), false, at(10 + route * 10));
            assert_eq!(pace.begin(at(10 + route * 10)), None);
        }
        // What is still to be said of the routes themselves changes no count.
        assert_eq!(pace.begin(at(199)), None);
        assert_eq!(pace.begin(at(200)), Some(gateway));
    }
}
