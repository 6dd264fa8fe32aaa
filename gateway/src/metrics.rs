// SPDX-License-Identifier: Apache-2.0

//! Istio's request and connection metrics, and how they are scraped.
//!
//! Owns the series. A core keeps handles to those it has used ([`PerCore`]),
//! so a request costs one look-up by a few numbers and some adds; texts are
//! made, and the one lock taken, when a series is new. A series ends with its
//! workloads: [`Metrics::forget`].
//!
//! Rule: names and labels of Istio's telemetry (Istio's standard metrics).

mod labels;
mod series;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

pub use labels::{Ends, Reporter, RequestProtocol};
use labels::{Key, LabelSet, Pins};
use series::{HttpSeries, TcpSeries, write_counters, write_histograms};

use crate::reply::Flag;

/// What happened to one request.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// HTTP or gRPC.
    pub protocol: RequestProtocol,
    /// Status of the response.
    pub code: u16,
    /// Status of gRPC, if it is a gRPC response.
    pub grpc: Option<u16>,
    /// Why the response is not the backend's own.
    pub flag: Flag,
    /// From the request's head to the last byte of the response.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// Messages of a gRPC call, from the client and to it.
    pub messages: (u64, u64),
}

/// All series of this process.
#[derive(Debug, Default)]
pub struct Metrics {
    http: Mutex<HashMap<LabelSet, Arc<HttpSeries>>>,
    tcp: Mutex<HashMap<LabelSet, Arc<TcpSeries>>>,
}

impl Metrics {
    /// Drops every series one of whose workloads `gone` names; counts start
    /// anew if it comes back. Cores let go with their next change of snapshot.
    pub fn forget(&self, gone: impl Fn(&str) -> bool) {
        lock(&self.http).retain(|labels, _| !labels.workloads().any(&gone));
        lock(&self.tcp).retain(|labels, _| !labels.workloads().any(&gone));
    }

    fn http(&self, key: &Key, ends: &Ends<'_>) -> Arc<HttpSeries> {
        Arc::clone(lock(&self.http).entry(LabelSet::new(key, ends)).or_default())
    }

    fn tcp(&self, key: &Key, ends: &Ends<'_>) -> Arc<TcpSeries> {
        Arc::clone(lock(&self.tcp).entry(LabelSet::new(key, ends)).or_default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handles that one core holds to the series it uses.
#[derive(Debug)]
pub struct PerCore {
    metrics: Arc<Metrics>,
    revision: u64,
    http: HashMap<Key, (Arc<HttpSeries>, Pins)>,
    tcp: HashMap<Key, (Arc<TcpSeries>, Pins)>,
}

impl PerCore {
    /// No handle yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, revision: 0, http: HashMap::new(), tcp: HashMap::new() }
    }

    /// Counts a request that is over, as of the snapshot of `revision`.
    pub fn request(&mut self, revision: u64, ends: &Ends<'_>, outcome: &Outcome) {
        self.renew(revision);
        let key = Key::http(ends, outcome);
        let metrics = &self.metrics;
        let (series, _) = self
            .http
            .entry(key)
            .or_insert_with_key(|key| (metrics.http(key, ends), Pins::new(ends)));
        series.count(outcome);
    }

    /// The series of a connection below HTTP.
    pub fn connection(&mut self, revision: u64, ends: &Ends<'_>, flag: Flag) -> Connection {
        self.renew(revision);
        let metrics = &self.metrics;
        let (series, _) = self
            .tcp
            .entry(Key::tcp(ends, flag))
            .or_insert_with_key(|key| (metrics.tcp(key, ends), Pins::new(ends)));
        Connection(Arc::clone(series))
    }

    /// Lets go of all handles when the world has changed.
    fn renew(&mut self, revision: u64) {
        if revision != self.revision {
            self.revision = revision;
            self.http.clear();
            self.tcp.clear();
        }
    }
}

/// Series of one connection below HTTP.
#[derive(Clone, Debug)]
pub struct Connection(Arc<TcpSeries>);

impl Connection {
    /// Counts that it was opened.
    pub fn opened(&self) {
        self.0.opened();
    }

    /// Counts that it is closed, and its bytes: `received` from client to server.
    pub fn closed(&self, received: u64, sent: u64) {
        self.0.closed(received, sent);
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let http: Vec<_> = {
            let series = lock(&self.http);
            series.iter().map(|(labels, one)| (labels.clone(), Arc::clone(one))).collect()
        };
        let (name, help) = ("istio_requests", "Requests");
        write_counters(
            encoder.encode_descriptor(name, help, None, MetricType::Counter)?,
            &http,
            HttpSeries::requests,
        )?;
        for (name, help, read) in HttpSeries::HISTOGRAMS {
            let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            write_histograms(descriptor, &http, read)?;
        }
        let grpc: Vec<_> = http.into_iter().filter(|(labels, _)| labels.is_grpc()).collect();
        for (name, help, read) in HttpSeries::MESSAGES {
            write_counters(
                encoder.encode_descriptor(name, help, None, MetricType::Counter)?,
                &grpc,
                read,
            )?;
        }
        let tcp: Vec<_> = {
            let series = lock(&self.tcp);
            series.iter().map(|(labels, one)| (labels.clone(), Arc::clone(one))).collect()
        };
        for (name, help, read) in TcpSeries::COUNTERS {
            write_counters(
                encoder.encode_descriptor(name, help, None, MetricType::Counter)?,
                &tcp,
                read,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
