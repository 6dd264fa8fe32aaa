// SPDX-License-Identifier: Apache-2.0

//! Load that is counted: HTTP and raw TCP clients, and the servers they talk to.
//!
//! Owns: how a request is judged good, which failures there are, latency in a histogram
//! from just before a request is sent until its answer is whole. Closed loop unless a
//! rate is given; with a rate, latency counts from the intended time of sending.
//!
//! Keeps: every run is bounded in time and in connections; a report adds up
//! (`sent = good + failed`).
//!
//! Start at [`http::run`], [`tcp::run`] and [`serve`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub mod http;
pub mod serve;
pub mod tcp;

/// What a run did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Report {
    /// Requests, exchanges or connections begun.
    pub sent: u64,
    /// Those that ended as they should.
    pub good: u64,
    /// The others, by cause.
    pub failed: BTreeMap<String, u64>,
    /// Good HTTP answers by status, or by another key the run names.
    pub answers: BTreeMap<String, u64>,
    /// Application bytes moved, both ways.
    pub bytes: u64,
    /// How long the run took, in seconds.
    pub seconds: f64,
    /// Latency of good ones in microseconds: 50th, 90th, 99th, 99.9th percentile, greatest.
    pub micros: [u64; 5],
}

impl Report {
    /// All failures together.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// Runs all clients at once, and adds up what they did.
async fn all(
    clients: impl Iterator<Item = impl Future<Output = Tally> + Send + 'static>,
) -> Report {
    let begun = Instant::now();
    let clients: Vec<_> = clients.map(tokio::spawn).collect();
    let mut all = Tally::new();
    for one in clients {
        match one.await {
            Ok(tally) => all.add(&tally),
            Err(_) => all.failed("client panicked"),
        }
    }
    all.finish(begun.elapsed())
}

/// Collects what one or many connections did.
#[derive(Debug)]
pub(crate) struct Tally {
    report: Report,
    latency: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        // Grows by itself, so no value and no sum of two can be refused.
        let latency = Histogram::new(3).unwrap_or_else(|_| unreachable!("3 digits are legal"));
        Self { report: Report::default(), latency }
    }

    pub(crate) fn good(&mut self, took: Duration, bytes: u64, answer: &str) {
        self.report.sent += 1;
        self.report.good += 1;
        self.report.bytes += bytes;
        if !answer.is_empty() {
            count(&mut self.report.answers, answer);
        }
        self.latency += u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 8);
    }

    pub(crate) fn failed(&mut self, cause: &str) {
        self.report.sent += 1;
        count(&mut self.report.failed, cause);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.report.sent += other.report.sent;
        self.report.good += other.report.good;
        self.report.bytes += other.report.bytes;
        for (key, n) in &other.report.failed {
            *self.report.failed.entry(key.clone()).or_default() += n;
        }
        for (key, n) in &other.report.answers {
            *self.report.answers.entry(key.clone()).or_default() += n;
        }
        self.latency += &other.latency;
    }

    pub(crate) fn finish(mut self, took: Duration) -> Report {
        self.report.seconds = took.as_secs_f64();
        let at = |q| self.latency.value_at_quantile(q);
        self.report.micros = [at(0.5), at(0.9), at(0.99), at(0.999), self.latency.max()];
        self.report
    }
}

fn count(map: &mut BTreeMap<String, u64>, key: &str) {
    match map.get_mut(key) {
        Some(n) => *n += 1,
        None => drop(map.insert(key.to_owned(), 1)),
    }
}

/// When a run ends: at its deadline, or earlier when told to.
#[derive(Clone, Debug)]
pub struct Until {
    deadline: tokio::time::Instant,
    stop: tokio_util::sync::CancellationToken,
}

impl Until {
    /// Ends after `length`, or when [`Until::stop`] is called on any clone.
    pub fn after(length: Duration) -> Self {
        Self {
            deadline: tokio::time::Instant::now() + length,
            stop: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// Ends the run: requests in flight are finished, no new one is begun.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub(crate) fn over(&self) -> bool {
        self.stop.is_cancelled() || tokio::time::Instant::now() >= self.deadline
    }
}
