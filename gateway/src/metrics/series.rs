// SPDX-License-Identifier: Apache-2.0

//! Counters and histograms of one label set, and their text form.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

use super::Outcome;
use super::labels::LabelSet;

/// How a value is read off a series.
pub(super) type Read<S, T> = fn(&S) -> T;

/// How a histogram is found in a series.
type Place<S> = for<'a> fn(&'a S) -> &'a Histogram;

/// Upper bounds of the buckets, those of Envoy; the last bucket is open.
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// A histogram over [`BOUNDS`]; the sum is kept in thousandths.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    thousandths: AtomicU64,
}

impl Histogram {
    fn observe(&self, value: f64, thousandths: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.thousandths.fetch_add(thousandths, Relaxed);
    }

    fn write(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = as_float(self.thousandths.load(Relaxed)) / 1_000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Exact up to 2^53, which no count or sum of a process reaches.
#[expect(clippy::cast_precision_loss, reason = "metrics are floats to Prometheus anyway")]
fn as_float(value: u64) -> f64 {
    value as f64
}

/// Metrics of requests with one label set.
#[derive(Debug, Default)]
pub(super) struct HttpSeries {
    requests: AtomicU64,
    milliseconds: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

impl HttpSeries {
    /// Name, help text and place of each histogram.
    pub(super) const HISTOGRAMS: [(&'static str, &'static str, Place<Self>); 3] = [
        ("istio_request_duration_milliseconds", "Duration of requests", |s| &s.milliseconds),
        ("istio_request_bytes", "Sizes of request bodies", |s| &s.request_bytes),
        ("istio_response_bytes", "Sizes of response bodies", |s| &s.response_bytes),
    ];

    /// Name, help text and place of each counter that only gRPC calls have.
    pub(super) const MESSAGES: [(&'static str, &'static str, Read<Self, u64>); 2] = [
        ("istio_request_messages", "gRPC messages from the client", |s| {
            s.request_messages.load(Relaxed)
        }),
        ("istio_response_messages", "gRPC messages to the client", |s| {
            s.response_messages.load(Relaxed)
        }),
    ];

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(super) fn count(&self, outcome: &Outcome) {
        self.requests.fetch_add(1, Relaxed);
        let micros = u64::try_from(outcome.duration.as_micros()).unwrap_or(u64::MAX);
        self.milliseconds.observe(as_float(micros) / 1_000.0, micros);
        for (histogram, bytes) in [
            (&self.request_bytes, outcome.request_bytes),
            (&self.response_bytes, outcome.response_bytes),
        ] {
            histogram.observe(as_float(bytes), bytes.saturating_mul(1_000));
        }
        if outcome.messages != (0, 0) {
            self.request_messages.fetch_add(outcome.messages.0, Relaxed);
            self.response_messages.fetch_add(outcome.messages.1, Relaxed);
        }
    }
}

/// Metrics of connections with one label set.
#[derive(Debug, Default)]
pub(super) struct TcpSeries {
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

impl TcpSeries {
    /// Name, help text and place of each counter.
    pub(super) const COUNTERS: [(&'static str, &'static str, Read<Self, u64>); 4] = [
        ("istio_tcp_connections_opened", "Connections opened", |s| s.opened.load(Relaxed)),
        ("istio_tcp_connections_closed", "Connections closed", |s| s.closed.load(Relaxed)),
        ("istio_tcp_received_bytes", "Bytes from client to server", |s| s.received.load(Relaxed)),
        ("istio_tcp_sent_bytes", "Bytes from server to client", |s| s.sent.load(Relaxed)),
    ];

    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self, received: u64, sent: u64) {
        self.closed.fetch_add(1, Relaxed);
        self.received.fetch_add(received, Relaxed);
        self.sent.fetch_add(sent, Relaxed);
    }
}

/// Writes one counter of every series.
pub(super) fn write_counters<S>(
    mut encoder: MetricEncoder<'_>,
    all: &[(LabelSet, Arc<S>)],
    read: Read<S, u64>,
) -> fmt::Result {
    for (labels, series) in all {
        let labels = labels.as_slice();
        encoder
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, _, u64>(&read(series), None)?;
    }
    Ok(())
}

/// Writes one histogram of every series.
pub(super) fn write_histograms<S>(
    mut encoder: MetricEncoder<'_>,
    all: &[(LabelSet, Arc<S>)],
    read: Place<S>,
) -> fmt::Result {
    for (labels, series) in all {
        let labels = labels.as_slice();
        read(series).write(encoder.encode_family(&labels)?)?;
    }
    Ok(())
}
