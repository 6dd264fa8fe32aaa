// SPDX-License-Identifier: Apache-2.0

//! How long to wait before the next try.

use std::time::Duration;

use rand::Rng as _;

/// Waits that double, with up to a fifth of chance on top.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// From 10 ms to 15 s: reconnecting to the controller.
    pub const CONTROLLER: Self = Self::new(Duration::from_millis(10), Duration::from_secs(15));

    /// Waits from `first` up to `most`.
    #[must_use]
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// Notes a success: the next wait is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The time to wait now.
    pub fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        now.mul_f64(1.0 + rand::rng().random_range(0.0..0.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        for (round, want) in [1, 2, 3, 3].into_iter().enumerate() {
            let wait = backoff.wait().as_secs_f64();
            let least = f64::from(want);
            assert!(wait >= least && wait <= least * 1.2, "round {round}: {wait}");
        }
        backoff.reset();
        assert!(backoff.wait() < Duration::from_secs(2));
    }
}
