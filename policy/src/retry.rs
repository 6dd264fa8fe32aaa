// SPDX-License-Identifier: Apache-2.0

//! Which failures are worth another attempt, and how long to wait before it.
//!
//! Owns the rule; counting attempts and sleeping are the gateway's. Rule:
//! GEP-1731 and `HTTPRouteRetry` in Gateway API `apis/v1/httproute_types.go`;
//! RFC 9110 §9.2.2 for what may be sent twice.

use std::time::Duration;

use http::Method;

/// How far a failed attempt got, seen from the backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No connection was made, or the backend refused the stream before it
    /// looked at it: nothing can have happened.
    Unsent,
    /// The connection broke, or was reset, before a response head.
    Broken,
    /// The backend gave no response within the limit of one attempt.
    TimedOut,
    /// The backend answered with this status.
    Status(u16),
}

/// How often a rule's requests are tried again, and after what.
///
/// The default is what a rule has that says nothing about retries: two more
/// attempts where nothing can have happened, or nothing can have changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Attempts after the first; zero means none.
    pub attempts: u32,
    /// Statuses that are tried again, each 400 to 599.
    pub codes: Vec<u16>,
    /// Shortest wait before the first retry, doubled for each after; zero means at once.
    pub backoff: Duration,
    /// Whether the rule asked for retries, which then hold for every method.
    pub asked: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, codes: Vec::new(), backoff: Duration::ZERO, asked: false }
    }
}

impl Retry {
    /// Longest wait between two attempts.
    pub const MAX_BACKOFF: Duration = Duration::from_secs(60);

    /// Tells whether a request with `method`, `done` attempts old, may be tried again.
    pub fn allows(&self, failure: Failure, method: &Method, done: u32) -> bool {
        if done > self.attempts {
            return false;
        }
        match failure {
            Failure::Unsent => true,
            Failure::Broken => self.asked || method.is_idempotent(),
            Failure::TimedOut => self.asked,
            Failure::Status(code) => self.codes.contains(&code),
        }
    }

    /// How long to wait before attempt `done + 1`; `roll` is uniform in 0 to 1.
    ///
    /// Between the rule's backoff, doubled for each attempt, and twice that, so
    /// that callers do not come back in step. Never above [`Self::MAX_BACKOFF`].
    pub fn wait(&self, done: u32, roll: f64) -> Duration {
        let doublings = done.saturating_sub(1).min(16);
        let base = self.backoff.saturating_mul(1 << doublings).min(Self::MAX_BACKOFF);
        (base + base.mul_f64(roll.clamp(0.0, 1.0))).min(Self::MAX_BACKOFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_again_depends_on_how_far_it_got() {
        let asked = Retry { attempts: 1, codes: vec![503], backoff: Duration::ZERO, asked: true };
        let silent = Retry::default();
        let never = Retry { attempts: 0, ..asked.clone() };
        let cases = [
            // rule, failure, method, attempts made, tried again
            (&silent, Failure::Unsent, Method::POST, 1, true),
            (&silent, Failure::Unsent, Method::POST, 2, true),
            (&silent, Failure::Unsent, Method::POST, 3, false),
            (&silent, Failure::Broken, Method::GET, 1, true),
            (&silent, Failure::Broken, Method::POST, 1, false),
            (&silent, Failure::TimedOut, Method::GET, 1, false),
            (&silent, Failure::Status(503), Method::GET, 1, false),
            (&asked, Failure::Broken, Method::POST, 1, true),
            (&asked, Failure::TimedOut, Method::POST, 1, true),
            (&asked, Failure::Status(503), Method::POST, 1, true),
            (&asked, Failure::Status(500), Method::POST, 1, false),
            (&asked, Failure::Status(503), Method::POST, 2, false),
            (&never, Failure::Unsent, Method::GET, 1, false),
        ];
        for (rule, failure, method, done, want) in cases {
            let got = rule.allows(failure, &method, done);
            assert_eq!(got, want, "{failure:?} {method} after {done} by {rule:?}");
        }
    }

    #[test]
    fn waits_double_with_jitter_up_to_the_limit() {
        let rule = Retry { backoff: Duration::from_millis(100), ..Retry::default() };
        let cases = [(1, 0.0, 100), (1, 1.0, 200), (2, 0.0, 200), (3, 0.5, 600), (99, 1.0, 60_000)];
        for (done, roll, want) in cases {
            assert_eq!(rule.wait(done, roll), Duration::from_millis(want), "{done} {roll}");
        }
        assert_eq!(Retry::default().wait(3, 1.0), Duration::ZERO);
    }
}
