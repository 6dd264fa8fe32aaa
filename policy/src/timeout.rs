// SPDX-License-Identifier: Apache-2.0

//! Limits of one request: the whole, and each attempt at a backend.
//!
//! Zero in the API means "no limit"; here that is `None`, so no code can take
//! a zero for an instant timeout. Rule: GEP-1742 and `HTTPRouteTimeouts` in
//! Gateway API `apis/v1/httproute_types.go`.

use std::time::{Duration, Instant};

/// Limits of a rule's requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timeouts {
    /// From the request's head until the last byte of the response; none: no limit.
    pub request: Option<Duration>,
    /// Of one attempt at a backend; none: no limit but the request's.
    pub backend_request: Option<Duration>,
}

impl Timeouts {
    /// Takes the API's values, where zero is no limit.
    pub fn new(request: Option<Duration>, backend_request: Option<Duration>) -> Self {
        let limit = |value: Option<Duration>| value.filter(|value| !value.is_zero());
        Self { request: limit(request), backend_request: limit(backend_request) }
    }

    /// When a request that began at `start` must be over; none: never.
    pub fn deadline(&self, start: Instant) -> Option<Instant> {
        self.request.and_then(|limit| start.checked_add(limit))
    }

    /// When an attempt that begins `now` must be over, for a request with `deadline`.
    pub fn attempt_deadline(&self, now: Instant, deadline: Option<Instant>) -> Option<Instant> {
        let attempt = self.backend_request.and_then(|limit| now.checked_add(limit));
        match (attempt, deadline) {
            (Some(attempt), Some(deadline)) => Some(attempt.min(deadline)),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test starts its virtual time somewhere")]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit_and_the_sooner_deadline_holds() {
        let second = Duration::from_secs;
        let start = Instant::now();
        let cases = [
            // request, backend request, deadline, attempt's deadline when begun 2 s later
            (None, None, None, None),
            (Some(0), Some(0), None, None),
            (Some(10), None, Some(10), Some(10)),
            (None, Some(3), None, Some(5)),
            (Some(10), Some(3), Some(10), Some(5)),
            (Some(4), Some(3), Some(4), Some(4)),
            (Some(0), Some(3), None, Some(5)),
        ];
        for (request, backend, whole, attempt) in cases {
            let timeouts = Timeouts::new(request.map(second), backend.map(second));
            let deadline = timeouts.deadline(start);
            let name = format!("{request:?} {backend:?}");
            assert_eq!(deadline.map(|at| at - start), whole.map(second), "{name}");
            let got = timeouts.attempt_deadline(start + second(2), deadline);
            assert_eq!(got.map(|at| at - start), attempt.map(second), "{name}");
        }
    }
}
