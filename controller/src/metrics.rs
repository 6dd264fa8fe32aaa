// SPDX-License-Identifier: Apache-2.0

//! What the controller counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::ca::authority::InForce;

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
    /// Fresh counters, and what `ca` tells of itself.
    pub fn of(ca: Arc<InForce>) -> Self {
        let mut metrics = Self::new();
        metrics.registry.register_collector(Box::new(Authority(ca)));
        metrics
    }

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

/// Prints the state of the certificate authority.
#[derive(Debug)]
struct Authority(Arc<InForce>);

impl Collector for Authority {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let authority = self.0.now();
        let ends = authority.roots.iter().map(|root| root.not_after);
        let end = ends.chain([authority.not_after]).min();
        let gauges = [
            (
                "controller_authority_expiry_timestamp_seconds",
                "When the first of the roots in force and the certificate that signs ends",
                end.map_or(0, time::OffsetDateTime::unix_timestamp),
            ),
            (
                "controller_authority_refused",
                "1 while the newest texts of the authority are not in force",
                i64::from(self.0.refused().is_some()),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
