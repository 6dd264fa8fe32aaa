// SPDX-License-Identifier: Apache-2.0

//! Sessions are counted under Istio's names, and series end.

use prometheus_client::encoding::text::encode;
use routing::discovery::Change;

use super::*;

fn workload(name: &str) -> Arc<Workload> {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap();
    let uid = format!("Kubernetes//Pod/shop/{name}");
    let mut workload = Workload::new(uid, identity, "shop".parse().unwrap());
    workload.workload_name = name.into();
    workload.canonical_name = name.into();
    Arc::new(workload)
}

#[test]
fn sessions_are_counted_under_istios_names_until_their_workloads_are_gone() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let worker = WorkerMetrics::new(Arc::clone(&metrics));
    let (a, b) = (workload("a"), workload("b"));
    let traffic = Traffic {
        reporter: Reporter::Source,
        source: Some(Arc::clone(&a)),
        source_identity: Some(a.identity.clone()),
        destination: Some(Arc::clone(&b)),
        destination_identity: Some(b.identity.clone()),
        service: None,
    };
    let session = worker.opened(&traffic);
    session.received(10);
    session.sent(20);
    worker.failed(&traffic, Flag::Denied);
    worker.flush();

    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let line = |name: &str, flag: &str| {
        text.lines()
            .find(|line| line.starts_with(name) && line.contains(flag))
            .and_then(|line| line.rsplit(' ').next())
            .map(str::to_owned)
    };
    let ok = "response_flags=\"-\"";
    assert_eq!(line("istio_tcp_connections_opened_total{reporter=\"source\"", ok).unwrap(), "1");
    assert_eq!(line("istio_tcp_connections_closed_total", ok).unwrap(), "0");
    assert_eq!(line("istio_tcp_received_bytes_total", ok).unwrap(), "10");
    assert_eq!(line("istio_tcp_sent_bytes_total", "mutual_tls").unwrap(), "20");
    assert_eq!(line("istio_tcp_connections_failed_total", "DENY").unwrap(), "1");
    assert_eq!(line("istio_tcp_sockets_open", "source").unwrap(), "1");

    let mut discovery = Discovery::default();
    metrics.end_series(&discovery);
    assert_eq!(metrics.series_count(), 1, "the open session keeps its own");
    discovery.apply([Change::Workload(a), Change::Workload(b)]);
    drop(session);
    worker.flush();
    metrics.end_series(&discovery);
    assert_eq!(metrics.series_count(), 1);
    metrics.end_series(&Discovery::default());
    assert_eq!(metrics.series_count(), 0);
}
