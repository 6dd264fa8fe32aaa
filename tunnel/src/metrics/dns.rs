// SPDX-License-Identifier: Apache-2.0

//! Counters of name queries, under Istio's names.
//!
//! A worker adds to its own cells ([`Names`]) and hands them over with its other sums.
//! Series are by the canonical service that asks; they end with the last of its workloads
//! that did.
//!
//! Rule: ztunnel's `src/dns/metrics.rs`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use routing::discovery::{Discovery, Workload};

use super::collect::or_unknown;

/// Upper bounds of the histogram, in seconds; the last one holds the rest.
const BUCKETS: [f64; 7] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0, f64::INFINITY];

/// How a query came.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

impl Transport {
    fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Tells series of queries apart.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Asker {
    service: Arc<str>,
    revision: Arc<str>,
    kind: &'static str,
    transport: Transport,
}

impl Asker {
    fn labels(&self) -> [(&'static str, String); 4] {
        [
            ("request_query_type", self.kind.to_owned()),
            ("request_protocol", self.transport.as_str().to_owned()),
            ("source_canonical_service", or_unknown(&self.service)),
            ("source_canonical_revision", or_unknown(&self.revision)),
        ]
    }
}

/// The kinds of records that are told apart: clients may ask for 65,536.
#[expect(clippy::wildcard_enum_match_arm, reason = "whatever is not told apart")]
fn name_of(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::ANY => "ANY",
        RecordType::CNAME => "CNAME",
        RecordType::HTTPS => "HTTPS",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::SVCB => "SVCB",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}

#[derive(Clone, Debug, Default)]
struct Counts {
    requests: u64,
    forwarded: u64,
    failures: u64,
    times: [u64; BUCKETS.len()],
    seconds: f64,
    /// The workload that asked last.
    uid: Option<Arc<str>>,
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.forwarded += more.forwarded;
        self.failures += more.failures;
        self.seconds += more.seconds;
        self.times.iter_mut().zip(more.times).for_each(|(all, more)| *all += more);
        self.uid = more.uid.or(self.uid.take());
    }
}

/// The queries that one worker has counted.
#[derive(Debug, Default)]
pub struct Names(RefCell<HashMap<Asker, Counts>>);

impl Names {
    /// Counts a query of `source`; the handle counts what comes of it.
    pub fn asked(
        &self,
        source: Option<&Workload>,
        kind: RecordType,
        transport: Transport,
    ) -> Asker {
        let text =
            |of: fn(&Workload) -> &Arc<str>| source.map_or_else(Arc::default, |w| of(w).clone());
        let asker = Asker {
            service: text(|workload| &workload.canonical_name),
            revision: text(|workload| &workload.canonical_revision),
            kind: name_of(kind),
            transport,
        };
        let uid = source.map(|source| Arc::clone(&source.uid));
        self.add(&asker, Counts { requests: 1, uid, ..Counts::default() });
        asker
    }

    /// Counts that the query was handed on: how long that took, and whether somebody answered.
    pub fn forwarded(&self, asker: &Asker, time: Duration, answered: bool) {
        let seconds = time.as_secs_f64();
        let failures = u64::from(!answered);
        let mut counts = Counts { forwarded: 1, failures, seconds, ..Counts::default() };
        let place = BUCKETS.iter().zip(&mut counts.times).find(|(bound, _)| seconds <= **bound);
        if let Some((_, count)) = place {
            *count = 1;
        }
        self.add(asker, counts);
    }

    fn add(&self, asker: &Asker, counts: Counts) {
        let mut all = self.0.borrow_mut();
        match all.get_mut(asker) {
            Some(sum) => sum.add(counts),
            None => drop(all.insert(asker.clone(), counts)),
        }
    }

    pub(super) fn flush(&self, sums: &Sums) {
        let own = self.0.take();
        if own.is_empty() {
            return;
        }
        let mut all = sums.lock();
        for (asker, counts) in own {
            all.entry(asker).or_default().add(counts);
        }
    }
}

/// The queries that all workers have counted.
#[derive(Debug, Default)]
pub(super) struct Sums(Mutex<HashMap<Asker, Counts>>);

type Of<T> = fn(&Counts) -> T;

const COUNTERS: [(&str, &str, Of<u64>); 3] = [
    ("istio_dns_requests", "Name queries", |counts| counts.requests),
    ("istio_dns_upstream_requests", "Name queries handed on", |counts| counts.forwarded),
    ("istio_dns_upstream_failures", "Name queries that nobody answered", |counts| counts.failures),
];

impl Sums {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Asker, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end_series(&self, discovery: &Discovery) {
        let known = |uid: &Arc<str>| discovery.workload(uid).is_some();
        self.lock().retain(|_, counts| counts.uid.as_ref().is_none_or(known));
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.lock();
        for (name, help, of) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (asker, counts) in &*all {
                let labels = asker.labels();
                let mut one = family.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, _, u64>(&of(counts), None)?;
            }
        }
        let mut times = encoder.encode_descriptor(
            "istio_dns_upstream_request_duration_seconds",
            "Time until a query that was handed on was answered, or given up",
            None,
            MetricType::Histogram,
        )?;
        for (asker, counts) in all.iter().filter(|(_, counts)| counts.forwarded > 0) {
            let buckets: Vec<_> = BUCKETS.into_iter().zip(counts.times).collect();
            let labels = asker.labels();
            let mut one = times.encode_family(&labels)?;
            one.encode_histogram::<NoLabelSet>(counts.seconds, counts.forwarded, &buckets, None)?;
        }
        Ok(())
    }
}
