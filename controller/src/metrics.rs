// SPDX-License-Identifier: Apache-2.0

//! What the controller counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Counters of the controller, with the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    batches: Histogram,
    certificates: Family<CertificateLabels, Counter>,
}

/// Labels of a certificate series: at most two.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CertificateLabels {
    issued: bool,
}

impl Metrics {
    /// Fresh counters.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("waymark");
        let batches = Histogram::new(exponential_buckets(0.000_1, 4.0, 9));
        let certificates = Family::default();
        registry.register(
            "controller_batch_seconds",
            "Time from a change of objects to finished outputs",
            batches.clone(),
        );
        registry.register(
            "controller_certificates",
            "Certificate requests, by whether one was issued",
            certificates.clone(),
        );
        Self { registry, batches, certificates }
    }

    /// Counts one batch.
    pub fn batch(&self, took: Duration) {
        self.batches.observe(took.as_secs_f64());
    }

    /// Counts one certificate request.
    pub fn certificate(&self, issued: bool) {
        self.certificates.get_or_create(&CertificateLabels { issued }).inc();
    }

    /// All series as text.
    pub fn print(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
