// SPDX-License-Identifier: Apache-2.0

//! Token bucket: how much of something one may do per second.
//!
//! Owns the arithmetic. The caller gives the time, so the bucket is pure and
//! needs no timer; each core or connection keeps its own.

use std::time::{Duration, Instant};

/// Longest wait that is told, in seconds: a year. What takes longer never comes.
const LONGEST_WAIT: f64 = 31_536_000.0;

/// A rate and how far it may be exceeded for a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens that come back each second; zero or less never fills.
    pub per_second: f64,
    /// Tokens a full bucket holds.
    pub burst: f64,
}

/// A bucket that fills with time and is emptied by use.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, filled: now }
    }

    /// Takes `count` tokens if all are there.
    ///
    /// A clock that goes back fills nothing and takes nothing away.
    ///
    /// # Errors
    ///
    /// [`Wait`] if there are too few; nothing is taken then.
    pub fn take(&mut self, rate: Rate, count: f64, now: Instant) -> Result<(), Wait> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_second.max(0.0)).min(rate.burst);
        self.filled = self.filled.max(now);
        if count <= self.tokens {
            self.tokens -= count;
            return Ok(());
        }
        let seconds = (count - self.tokens) / rate.per_second;
        let comes = count <= rate.burst && (0.0..=LONGEST_WAIT).contains(&seconds);
        Err(Wait(comes.then(|| Duration::from_secs_f64(seconds))))
    }
}

/// How long until the tokens asked for are there; none if that never comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("rate is used up")]
pub struct Wait(pub Option<Duration>);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test starts its virtual time somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 5.0 };

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        for n in 0..5 {
            assert_eq!(bucket.take(RATE, 1.0, start), Ok(()), "token {n} of the burst");
        }
        let wait = bucket.take(RATE, 1.0, start).unwrap_err();
        assert_eq!(wait, Wait(Some(Duration::from_millis(100))));
        let later = start + Duration::from_millis(101);
        assert_eq!(bucket.take(RATE, 1.0, later), Ok(()));
        assert!(bucket.take(RATE, 1.0, later).is_err());
    }

    #[test]
    fn what_never_fits_never_comes() {
        let start = Instant::now();
        assert_eq!(Bucket::new(RATE, start).take(RATE, 6.0, start), Err(Wait(None)));
        let dry = Rate { per_second: 0.0, burst: 0.0 };
        assert_eq!(Bucket::new(dry, start).take(dry, 1.0, start), Err(Wait(None)));
    }

    proptest! {
        #[test]
        fn no_window_gives_more_than_burst_and_rate(steps in proptest::collection::vec(0_u64..300, 1..80)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(RATE, start);
            let (mut now, mut taken) = (start, 0.0);
            for step in steps {
                now += Duration::from_millis(step);
                if bucket.take(RATE, 1.0, now).is_ok() {
                    taken += 1.0;
                }
            }
            let seconds = (now - start).as_secs_f64();
            prop_assert!(taken <= RATE.burst + RATE.per_second * seconds + 1e-6);
        }
    }
}
