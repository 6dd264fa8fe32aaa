// SPDX-License-Identifier: Apache-2.0

//! How long a watch that failed waits before it is tried again.
//!
//! Owns the longest wait. Once an apiserver has restarted, each watch fails twice: nobody is
//! there, then what it knows is too old. With the waits of client-go, half a minute and more by
//! then, kinds come back up to a minute apart: a Gateway is seen long after its pods, and replicas
//! publish different things meanwhile.

use std::time::Duration;

use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use rand::Rng as _;

/// The first wait.
const FIRST: Duration = Duration::from_millis(800);
/// The longest.
const LONGEST: Duration = Duration::from_secs(4);
/// Time without a failure after which the first wait is next again.
const QUIET: Duration = Duration::from_secs(120);

/// Waits of one watch.
pub type Retry = ResetTimerBackoff<Growing>;

/// The waits of a watch that has not failed yet.
pub fn retry() -> Retry {
    ResetTimerBackoff::new(Growing::default(), QUIET)
}

/// Waits that grow to the longest; a quarter of each is chance, so that not all ask at once.
#[derive(Debug)]
pub struct Growing(Duration);

impl Default for Growing {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Iterator for Growing {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0.mul_f64(rand::rng().random_range(0.75..1.0));
        self.0 = self.0.saturating_mul(2).min(LONGEST);
        Some(wait)
    }
}

impl Backoff for Growing {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut growing = Growing::default();
        let first = growing.next().unwrap();
        assert!(first >= FIRST.mul_f64(0.75) && first <= FIRST, "{first:?}");
        let later: Vec<Duration> = growing.by_ref().take(20).collect();
        assert!(later.iter().all(|wait| *wait <= LONGEST), "{later:?}");
        assert!(later.last().unwrap() >= &LONGEST.mul_f64(0.75), "{later:?}");
        growing.reset();
        assert!(growing.next().unwrap() <= FIRST);
    }
}
