// SPDX-License-Identifier: Apache-2.0

//! Endpoints that failed lately, as data.
//!
//! Owns who is left out and until when. Leaves the clock and the choice to the
//! caller: [`super::Candidates::pick`] takes one that is out when no other is left.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// When an endpoint is left out, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Failures in a row until it is left out; zero: never.
    pub failures: u32,
    /// For how long the first time; each further time adds as much again.
    pub base: Duration,
    /// For how long at most.
    pub longest: Duration,
}

impl Default for Limits {
    /// Three failures, 5 s to 60 s.
    fn default() -> Self {
        Self { failures: 3, base: Duration::from_secs(5), longest: Duration::from_secs(60) }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    failures: u32,
    times: u32,
    until: Option<Instant>,
}

/// Failures of endpoints, by whatever the caller tells them apart with.
#[derive(Clone, Debug)]
pub struct Outliers<K> {
    limits: Limits,
    states: HashMap<K, State>,
}

impl<K: Eq + Hash> Outliers<K> {
    /// Nothing has failed yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, states: HashMap::new() }
    }

    /// Notes a failure; true if the endpoint is left out from now on.
    pub fn failed(&mut self, endpoint: K, now: Instant) -> bool {
        if self.limits.failures == 0 {
            return false;
        }
        let state = self.states.entry(endpoint).or_default();
        state.failures = state.failures.saturating_add(1);
        if state.failures < self.limits.failures || state.until.is_some_and(|until| now < until) {
            return false;
        }
        state.failures = 0;
        state.times = state.times.saturating_add(1);
        let out = self.limits.base.saturating_mul(state.times).min(self.limits.longest);
        state.until = now.checked_add(out);
        true
    }

    /// Notes a success: all failures are forgotten.
    pub fn succeeded(&mut self, endpoint: &K) {
        // The map holds failing endpoints only, so this is most often a miss.
        self.states.remove(endpoint);
    }

    /// Tells whether the endpoint is left out at `now`.
    pub fn is_out(&self, endpoint: &K, now: Instant) -> bool {
        let until = self.states.get(endpoint).and_then(|state| state.until);
        until.is_some_and(|until| now < until)
    }

    /// Forgets endpoints that are gone.
    pub fn retain(&mut self, stays: impl Fn(&K) -> bool) {
        self.states.retain(|endpoint, _| stays(endpoint));
    }

    /// Number of endpoints with failures.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Tells whether no endpoint has failures.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { failures: 2, base: Duration::from_secs(5), longest: Duration::from_secs(12) };

    /// Fails twice at `at`; returns for how many whole seconds the endpoint is out.
    fn fail_twice(outliers: &mut Outliers<&'static str>, at: Instant) -> u64 {
        assert!(!outliers.failed("a", at));
        assert!(outliers.failed("a", at));
        (0..100).find(|s| !outliers.is_out(&"a", at + Duration::from_secs(*s))).unwrap()
    }

    #[test]
    fn failures_in_a_row_leave_an_endpoint_out_longer_each_time() {
        let mut outliers = Outliers::new(LIMITS);
        let start = Instant::now();
        assert_eq!(fail_twice(&mut outliers, start), 5);
        assert_eq!(fail_twice(&mut outliers, start + Duration::from_secs(20)), 10);
        assert_eq!(fail_twice(&mut outliers, start + Duration::from_secs(40)), 12, "the longest");
        assert!(!outliers.is_out(&"b", start), "others are not concerned");
    }

    #[test]
    fn a_success_forgets_all_failures() {
        let mut outliers = Outliers::new(LIMITS);
        let start = Instant::now();
        assert!(!outliers.failed("a", start));
        outliers.succeeded(&"a");
        assert!(!outliers.failed("a", start), "the first failure does not count any more");
        assert!(outliers.failed("a", start));
        outliers.succeeded(&"a");
        assert!(!outliers.is_out(&"a", start));
        assert!(outliers.is_empty());
    }

    #[test]
    fn zero_failures_means_never() {
        let mut outliers = Outliers::new(Limits { failures: 0, ..LIMITS });
        assert!(!outliers.failed("a", Instant::now()));
        assert!(outliers.is_empty());
    }
}
