// SPDX-License-Identifier: Apache-2.0

//! Connections and streams that were refused before they were anybody's.
//!
//! Counts them by cause. The first of each cause is worth a line in the log, the rest
//! only when debugging, so that a scan of the ports does not fill it. Leaves what the
//! causes are, and the lines of the tunnel's access log, to its users.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use routing::wire::chain;

/// Why something was refused: a closed set of words.
pub trait Cause: std::fmt::Debug + Copy + Eq + 'static {
    /// All of them, each once.
    const ALL: &'static [Self];

    /// As a label of the counter.
    fn as_str(self) -> &'static str;
}

/// How many were refused, by cause.
#[derive(Debug)]
pub struct Refused<C> {
    counts: Box<[AtomicU64]>,
    causes: PhantomData<fn() -> C>,
}

impl<C: Cause> Default for Refused<C> {
    fn default() -> Self {
        let counts = C::ALL.iter().map(|_| AtomicU64::default()).collect();
        Self { counts, causes: PhantomData }
    }
}

impl<C: Cause> Refused<C> {
    fn counter(&self, cause: C) -> Option<&AtomicU64> {
        self.counts.get(C::ALL.iter().position(|one| *one == cause)?)
    }

    /// Counts one; true for the first of its cause.
    pub fn count(&self, cause: C) -> bool {
        self.counter(cause).is_some_and(|count| count.fetch_add(1, Ordering::Relaxed) == 0)
    }

    /// Counts one, and tells of it in the log.
    pub fn note(&self, cause: C, error: &dyn std::error::Error, peer: SocketAddr) {
        let (first, cause, error) = (self.count(cause), cause.as_str(), chain(error));
        if first {
            tracing::warn!(cause, error, %peer, "connection refused; the next ones are counted");
        } else {
            tracing::debug!(cause, error, %peer, "connection refused");
        }
    }

    /// Those of one cause so far.
    #[must_use]
    pub fn of(&self, cause: C) -> u64 {
        self.counter(cause).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl<C: Cause> Collector for Refused<C> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "waymark_connections_refused",
            "Connections and streams refused before they were routed",
            None,
            MetricType::Counter,
        )?;
        for cause in C::ALL {
            let (labels, count) = ([("cause", cause.as_str())], self.of(*cause));
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    enum Why {
        Late,
        Loud,
    }

    impl Cause for Why {
        const ALL: &'static [Self] = &[Self::Late, Self::Loud];

        fn as_str(self) -> &'static str {
            match self {
                Self::Late => "late",
                Self::Loud => "loud",
            }
        }
    }

    #[test]
    fn the_first_of_each_cause_is_told_from_the_rest() {
        let refused = Refused::<Why>::default();
        assert!(refused.count(Why::Loud) && !refused.count(Why::Loud));
        assert!(refused.count(Why::Late));
        assert_eq!((refused.of(Why::Late), refused.of(Why::Loud)), (1, 2));
    }
}
