// SPDX-License-Identifier: Apache-2.0

//! What the controller counts; names that begin with `pilot` are those that Istio's dashboards ask.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::ca::authority::InForce;

/// What names of our own begin with.
const PREFIX: &str = "waymark";

/// Counters of the controller, with the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    clients: Family<VersionLabels, Gauge>,
    services: Gauge,
    batches: Histogram,
    certificates: Family<CertificateLabels, Counter>,
}

/// Labels of a certificate series: at most two.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CertificateLabels {
    issued: bool,
}

/// Labels of the series that tell a version: one.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct VersionLabels {
    version: &'static str,
}

const VERSION: VersionLabels = VersionLabels { version: env!("CARGO_PKG_VERSION") };

impl Metrics {
    /// Fresh counters, and what `ca` tells of itself.
    pub fn of(ca: Arc<InForce>) -> Self {
        let mut metrics = Self::new();
        let own = metrics.registry.sub_registry_with_prefix(PREFIX);
        own.register_collector(Box::new(Authority(ca)));
        metrics
    }

    /// Fresh counters.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let (clients, services) = (Family::default(), Gauge::default());
        let version = Info::new([("version", VERSION.version)]);
        registry.register("pilot", "Version of this controller", version);
        registry.register("pilot_xds", "Clients connected to this controller", clients.clone());
        registry.register(
            "pilot_services",
            "Services that this controller knows",
            services.clone(),
        );
        let own = registry.sub_registry_with_prefix(PREFIX);
        let batches = Histogram::new(exponential_buckets(0.000_1, 4.0, 9));
        let certificates = Family::default();
        own.register(
            "controller_batch_seconds",
            "Time from a change of objects to finished outputs",
            batches.clone(),
        );
        own.register(
            "controller_certificates",
            "Certificate requests, by whether one was issued",
            certificates.clone(),
        );
        Self { registry, clients, services, batches, certificates }
    }

    /// Counts one batch.
    pub fn batch(&self, took: Duration) {
        self.batches.observe(took.as_secs_f64());
    }

    /// Counts one certificate request.
    pub fn certificate(&self, issued: bool) {
        self.certificates.get_or_create(&CertificateLabels { issued }).inc();
    }

    /// All series as text, with the clients and Services of now.
    pub fn print(&self, clients: usize, services: usize) -> String {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.clients.get_or_create(&VERSION).set(number(clients));
        self.services.set(number(services));
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
