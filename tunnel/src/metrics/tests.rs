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
    assert_eq!(line("istio_tcp_sent_bytes_total", ok).unwrap(), "20");
    assert!(text.lines().filter(|line| line.contains(ok)).all(|line| line.contains("mutual_tls")));
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

#[test]
fn name_queries_are_counted_by_who_asks_and_what_comes_of_them() {
    use hickory_proto::rr::RecordType;
    use std::time::Duration;

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let workers = [0, 1].map(|_| WorkerMetrics::new(Arc::clone(&metrics)));
    let web = workload("web");
    for worker in &workers {
        let asked = |kind| worker.names.asked(Some(&web), kind, dns::Transport::Udp);
        asked(RecordType::A);
        let asker = asked(RecordType::Unknown(4242));
        worker.names.forwarded(&asker, Duration::from_millis(5), true);
        worker.names.forwarded(&asker, Duration::from_secs(9), false);
        worker.names.asked(None, RecordType::A, dns::Transport::Tcp);
        worker.flush();
    }
    let scrape = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let web_labels = "source_canonical_service=\"web\",source_canonical_revision=\"unknown\"";
    let unknown = web_labels.replace("web", "unknown");
    let other = format!("request_query_type=\"other\",request_protocol=\"udp\",{web_labels}");
    let lines = [
        format!(
            "istio_dns_requests_total{{request_query_type=\"A\",request_protocol=\"udp\",{web_labels}}} 2"
        ),
        format!(
            "istio_dns_requests_total{{request_query_type=\"A\",request_protocol=\"tcp\",{unknown}}} 2"
        ),
        format!("istio_dns_upstream_requests_total{{{other}}} 4"),
        format!("istio_dns_upstream_failures_total{{{other}}} 2"),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.001\",{}}} 0", other),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.01\",{}}} 2", other),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"+Inf\",{}}} 4", other),
        format!("istio_dns_upstream_request_duration_seconds_count{{{other}}} 4"),
    ];
    let text = scrape();
    for line in lines {
        assert!(text.lines().any(|one| one == line), "{line} in {text}");
    }
    for name in ["process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    metrics.end_series(&Discovery::default());
    assert!(!scrape().contains(web_labels), "series end with their workloads");
}
