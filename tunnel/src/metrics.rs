// SPDX-License-Identifier: Apache-2.0

//! Counters of sessions, under Istio's names.
//!
//! Owns what is counted and the text of it. A session looks its series up once
//! and adds to cells of its worker; workers hand their sums over once a second
//! and before each scrape. A series ends when its workloads are gone.
//!
//! Rule: ztunnel's `src/proxy/metrics.rs`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use policy::identity::Identity;
use prometheus_client::registry::Registry;
use routing::discovery::{Discovery, Service, ServiceKey, Workload};

use crate::refused::Refused;

mod cause;
mod collect;
pub mod dns;
mod process;

pub use cause::Cause;
pub use process::Process;

/// Which end counts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reporter {
    /// The end that opened.
    Source,
    /// The end that was opened to.
    Destination,
}

impl Reporter {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How a session ended, as Istio's response flags.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Flag {
    /// Well, or not yet.
    #[default]
    None,
    /// Refused by policy.
    Denied,
    /// The other side could not be reached.
    Connect,
    /// TLS failed.
    Tls,
    /// HTTP/2 failed.
    Http2,
    /// There is no certificate.
    Identity,
    /// The peer's certificate was withdrawn.
    Revoked,
}

impl Flag {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Denied => "DENY",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::Http2 => "H2_HANDSHAKE_FAILURE",
            Self::Identity => "IDENTITY_ERROR",
            Self::Revoked => "CERT_REVOKED",
        }
    }
}

/// Who talks to whom, as far as it is known.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Which end we are.
    pub reporter: Reporter,
    /// The workload that opened.
    pub source: Option<Arc<Workload>>,
    /// What it proved.
    pub source_identity: Option<Identity>,
    /// The workload that was opened to.
    pub destination: Option<Arc<Workload>>,
    /// What it proved.
    pub destination_identity: Option<Identity>,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
}

/// Tells series apart.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct SeriesKey {
    reporter: Reporter,
    source: Option<Arc<str>>,
    source_identity: Option<Identity>,
    destination: Option<Arc<str>>,
    destination_identity: Option<Identity>,
    service: Option<ServiceKey>,
    flag: Flag,
}

impl SeriesKey {
    fn of(traffic: &Traffic, flag: Flag) -> Self {
        let uid = |workload: &Option<Arc<Workload>>| workload.as_ref().map(|w| Arc::clone(&w.uid));
        Self {
            reporter: traffic.reporter,
            source: uid(&traffic.source),
            source_identity: traffic.source_identity.clone(),
            destination: uid(&traffic.destination),
            destination_identity: traffic.destination_identity.clone(),
            service: traffic.service.as_ref().map(|service| service.key.clone()),
            flag,
        }
    }
}

/// What is counted of one series.
#[derive(Debug, Default)]
struct Counts<C> {
    opened: C,
    closed: C,
    failed: C,
    received: C,
    sent: C,
}

#[derive(Debug)]
struct Series {
    labels: Vec<(&'static str, String)>,
    counts: Counts<AtomicU64>,
}

/// All series of the process, and counters without labels.
#[derive(Debug, Default)]
pub struct Metrics {
    series: Mutex<HashMap<SeriesKey, Arc<Series>>>,
    open_inbound: AtomicI64,
    open_outbound: AtomicI64,
    /// Pods that are served.
    pub active_pods: AtomicI64,
    /// Pods that could not be served yet.
    pub pending_pods: AtomicI64,
    /// Pods whose serving began.
    pub pods_started: AtomicU64,
    /// Pods whose serving ended.
    pub pods_stopped: AtomicU64,
    /// Connections and CONNECT requests of which no session came.
    pub refused: Refused<Cause>,
    names: dns::Sums,
}

impl Metrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Arc::new(Self::default());
        registry.register_collector(Box::new(Arc::clone(&metrics)));
        registry.register_collector(Box::new(Process));
        metrics
    }

    fn series(&self, traffic: &Traffic, key: &SeriesKey) -> Arc<Series> {
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = all.get(key) {
            return Arc::clone(series);
        }
        let labels = collect::labels(traffic, key.flag);
        let series = Arc::new(Series { labels, counts: Counts::default() });
        all.insert(key.clone(), Arc::clone(&series));
        series
    }

    /// Ends the series of workloads that `discovery` no longer knows; those that
    /// sessions still use stay until these have ended.
    pub fn end_series(&self, discovery: &Discovery) {
        let known = |uid: &Option<Arc<str>>| {
            uid.as_ref().is_none_or(|uid| discovery.workload(uid).is_some())
        };
        self.names.end_series(discovery);
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|key, series| {
            Arc::strong_count(series) > 1 || (known(&key.source) && known(&key.destination))
        });
    }

    /// Number of series.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn open(&self, reporter: Reporter) -> &AtomicI64 {
        match reporter {
            Reporter::Source => &self.open_outbound,
            Reporter::Destination => &self.open_inbound,
        }
    }
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The counters of one worker.
#[derive(Debug)]
pub struct WorkerMetrics {
    metrics: Arc<Metrics>,
    series: RefCell<HashMap<SeriesKey, Rc<WorkerSeries>>>,
    /// Name queries.
    pub names: dns::Names,
}

#[derive(Debug)]
struct WorkerSeries {
    counts: Counts<Cell<u64>>,
    all: Arc<Series>,
}

/// The counters of one session on its worker.
#[derive(Debug)]
pub struct SessionCounters {
    series: Rc<WorkerSeries>,
    metrics: Arc<Metrics>,
    reporter: Reporter,
    sent: Cell<u64>,
    received: Cell<u64>,
}

fn add(cell: &Cell<u64>, count: u64) {
    cell.set(cell.get().wrapping_add(count));
}

impl WorkerMetrics {
    /// Counters that are handed over to `metrics`.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, series: RefCell::default(), names: dns::Names::default() }
    }

    /// The counters of the process.
    #[must_use]
    pub fn process(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn find(&self, traffic: &Traffic, flag: Flag) -> Rc<WorkerSeries> {
        let key = SeriesKey::of(traffic, flag);
        let mut series = self.series.borrow_mut();
        if let Some(found) = series.get(&key) {
            return Rc::clone(found);
        }
        let all = self.metrics.series(traffic, &key);
        let new = Rc::new(WorkerSeries { counts: Counts::default(), all });
        series.insert(key, Rc::clone(&new));
        new
    }

    /// Counts a session as opened; the handle counts it closed when dropped.
    #[must_use]
    pub fn opened(&self, traffic: &Traffic) -> SessionCounters {
        let series = self.find(traffic, Flag::None);
        add(&series.counts.opened, 1);
        self.metrics.open(traffic.reporter).fetch_add(1, Ordering::Relaxed);
        let (metrics, reporter) = (Arc::clone(&self.metrics), traffic.reporter);
        SessionCounters { series, metrics, reporter, sent: Cell::new(0), received: Cell::new(0) }
    }

    /// Counts a session that never began.
    pub fn failed(&self, traffic: &Traffic, flag: Flag) {
        add(&self.find(traffic, flag).counts.failed, 1);
    }

    /// Hands all sums over; forgets series that no session uses.
    pub fn flush(&self) {
        self.names.flush(&self.metrics.names);
        self.series.borrow_mut().retain(|_, series| {
            let (from, to) = (&series.counts, &series.all.counts);
            for (cell, all) in [
                (&from.opened, &to.opened),
                (&from.closed, &to.closed),
                (&from.failed, &to.failed),
                (&from.received, &to.received),
                (&from.sent, &to.sent),
            ] {
                all.fetch_add(cell.take(), Ordering::Relaxed);
            }
            Rc::strong_count(series) > 1
        });
    }
}

impl SessionCounters {
    /// Bytes went from the client to the server.
    pub fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        add(&self.received, bytes);
        add(&self.series.counts.received, bytes);
    }

    /// Bytes went from the server to the client.
    pub fn sent(&self, bytes: usize) {
        let bytes = bytes as u64;
        add(&self.sent, bytes);
        add(&self.series.counts.sent, bytes);
    }

    /// Bytes of this session: from client to server, and from server to client.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

impl Drop for SessionCounters {
    fn drop(&mut self) {
        add(&self.series.counts.closed, 1);
        self.metrics.open(self.reporter).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
