// SPDX-License-Identifier: Apache-2.0

//! Labels of a series, and all counters as a scrape prints them.

use std::fmt::Error;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use routing::discovery::Workload;

use super::{Counts, Flag, Metrics, Reporter, Traffic};

const UNKNOWN: &str = "unknown";

pub(super) fn or_unknown(text: &str) -> String {
    if text.is_empty() { UNKNOWN.to_owned() } else { text.to_owned() }
}

/// What telemetry says of a workload.
struct Named {
    workload: String,
    service: String,
    revision: String,
    namespace: String,
    cluster: String,
    region: String,
    zone: String,
}

impl Named {
    fn of(workload: Option<&Workload>) -> Self {
        let Some(workload) = workload else {
            let unknown = || UNKNOWN.to_owned();
            return Self {
                workload: unknown(),
                service: unknown(),
                revision: unknown(),
                namespace: unknown(),
                cluster: unknown(),
                region: unknown(),
                zone: unknown(),
            };
        };
        Self {
            workload: or_unknown(&workload.workload_name),
            service: or_unknown(&workload.canonical_name),
            revision: or_unknown(&workload.canonical_revision),
            namespace: or_unknown(workload.namespace.as_str()),
            cluster: or_unknown(&workload.cluster),
            region: or_unknown(&workload.locality.region),
            zone: or_unknown(&workload.locality.zone),
        }
    }
}

/// Labels of a series, in Istio's order.
pub(super) fn labels(traffic: &Traffic, flag: Flag) -> Vec<(&'static str, String)> {
    let source = Named::of(traffic.source.as_deref());
    let destination = Named::of(traffic.destination.as_deref());
    let principal = |identity: &Option<policy::identity::Identity>| {
        identity.as_ref().map_or_else(|| UNKNOWN.to_owned(), ToString::to_string)
    };
    let (service, service_namespace, service_name) = match &traffic.service {
        Some(service) => (
            service.key.hostname.to_string(),
            service.key.namespace.to_string(),
            service.name.to_string(),
        ),
        None => (UNKNOWN.to_owned(), destination.namespace.clone(), UNKNOWN.to_owned()),
    };
    let mutual = traffic.source_identity.is_some() && traffic.destination_identity.is_some();
    vec![
        ("reporter", traffic.reporter.as_str().to_owned()),
        ("source_workload", source.workload),
        ("source_canonical_service", source.service.clone()),
        ("source_canonical_revision", source.revision.clone()),
        ("source_workload_namespace", source.namespace),
        ("source_principal", principal(&traffic.source_identity)),
        ("source_app", source.service),
        ("source_version", source.revision),
        ("source_cluster", source.cluster),
        ("destination_service", service),
        ("destination_service_namespace", service_namespace),
        ("destination_service_name", service_name),
        ("destination_workload", destination.workload),
        ("destination_canonical_service", destination.service.clone()),
        ("destination_canonical_revision", destination.revision.clone()),
        ("destination_workload_namespace", destination.namespace),
        ("destination_principal", principal(&traffic.destination_identity)),
        ("destination_app", destination.service),
        ("destination_version", destination.revision),
        ("destination_cluster", destination.cluster),
        ("request_protocol", "tcp".to_owned()),
        ("response_flags", flag.as_str().to_owned()),
        ("connection_security_policy", if mutual { "mutual_tls" } else { UNKNOWN }.to_owned()),
        ("source_region", source.region),
        ("source_zone", source.zone),
        ("destination_region", destination.region),
        ("destination_zone", destination.zone),
    ]
}

type Labels = [(&'static str, String)];
type OfSeries = fn(&Counts<AtomicU64>) -> &AtomicU64;

/// Names are without the suffix that counters get.
const FAMILIES: [(&str, &str, OfSeries); 5] = [
    ("istio_tcp_connections_opened", "TCP sessions opened", |counts| &counts.opened),
    ("istio_tcp_connections_closed", "TCP sessions closed", |counts| &counts.closed),
    ("istio_tcp_connections_failed", "TCP sessions that never began", |counts| &counts.failed),
    ("istio_tcp_received_bytes", "Bytes from client to server", |counts| &counts.received),
    ("istio_tcp_sent_bytes", "Bytes from server to client", |counts| &counts.sent),
];

fn counter(encoder: &mut MetricEncoder<'_>, value: u64) -> Result<(), Error> {
    encoder.encode_counter::<[(&str, &str); 0], u64, f64>(&value, None)
}

impl Metrics {
    fn encode_series(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, of) in FAMILIES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in all.values() {
                let value = of(&series.counts).load(Ordering::Relaxed);
                let labels: &Labels = &series.labels;
                counter(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut open = encoder.encode_descriptor(
            "istio_tcp_sockets_open",
            "Sessions that are open now",
            None,
            MetricType::Gauge,
        )?;
        for reporter in [Reporter::Source, Reporter::Destination] {
            let value = self.open(reporter).load(Ordering::Relaxed);
            open.encode_family(&[("reporter", reporter.as_str())])?.encode_gauge(&value)?;
        }
        let mut build = encoder.encode_descriptor(
            "istio_build",
            "Build of this component",
            None,
            MetricType::Gauge,
        )?;
        let labels = [("component", "ztunnel"), ("tag", env!("CARGO_PKG_VERSION"))];
        build.encode_family(&labels)?.encode_gauge(&1_i64)?;
        let gauges: [(&str, &str, &AtomicI64); 2] = [
            ("workload_manager_active_proxy_count", "Pods that are served", &self.active_pods),
            (
                "workload_manager_pending_proxy_count",
                "Pods that could not be served yet",
                &self.pending_pods,
            ),
        ];
        for (name, help, value) in gauges {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&value.load(Ordering::Relaxed))?;
        }
        let counters: [(&str, &str, &AtomicU64); 2] = [
            ("workload_manager_proxies_started", "Pods whose serving began", &self.pods_started),
            ("workload_manager_proxies_stopped", "Pods whose serving ended", &self.pods_stopped),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter(&mut family, value.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.encode_series(&mut encoder)?;
        self.encode_process(&mut encoder)?;
        self.names.encode(&mut encoder)?;
        self.refused.encode(encoder)
    }
}
