// SPDX-License-Identifier: Apache-2.0

//! What a scrape shows after requests were counted.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;
use routing::discovery::{Service, Workload};

fn workload(name: &str, revision: &str) -> Arc<Workload> {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap();
    let uid = format!("Kubernetes//Pod/shop/{name}-1");
    let mut workload = Workload::new(uid, identity, "shop".parse().unwrap());
    workload.workload_name = name.into();
    workload.canonical_name = name.into();
    workload.canonical_revision = revision.into();
    Arc::new(workload)
}

/// What the ends of the tests point at.
struct World {
    source: Arc<Workload>,
    destination: Arc<Workload>,
    service: Arc<Service>,
}

impl World {
    fn new() -> Self {
        let key = "shop/reviews.shop.svc.cluster.local".parse().unwrap();
        let (source, destination) = (workload("web", "v1"), workload("reviews", "v2"));
        Self { source, destination, service: Arc::new(Service::new(key)) }
    }

    fn ends(&self) -> Ends<'_> {
        Ends {
            reporter: Reporter::Waypoint,
            source: Some(&self.source),
            source_identity: Some(&self.source.identity),
            destination: Some(&self.destination),
            service: Some(&self.service),
            mutual_tls: true,
        }
    }
}

fn outcome(code: u16) -> Outcome {
    Outcome {
        protocol: RequestProtocol::Http,
        code,
        grpc: None,
        flag: Flag::None,
        duration: Duration::from_micros(2_500),
        request_bytes: 0,
        response_bytes: 300,
        messages: (0, 0),
    }
}

fn scrape(metrics: &Arc<Metrics>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(metrics)));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn requests_are_scraped_with_the_labels_that_kiali_groups_by() {
    let metrics = Arc::new(Metrics::default());
    let mut core = PerCore::new(Arc::clone(&metrics));
    let world = World::new();
    let ends = world.ends();
    core.request(1, &ends, &outcome(200));
    core.request(1, &ends, &outcome(200));
    core.request(2, &ends, &outcome(503));
    let text = scrape(&metrics);
    let labels = "reporter=\"waypoint\",source_workload=\"web\",source_canonical_service=\"web\",\
        source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_app=\"web\",\
        source_version=\"v1\",source_cluster=\"Kubernetes\",\
        destination_service=\"reviews.shop.svc.cluster.local\",\
        destination_service_namespace=\"shop\",destination_service_name=\"reviews\",\
        destination_workload=\"reviews\",destination_canonical_service=\"reviews\",\
        destination_canonical_revision=\"v2\",destination_workload_namespace=\"shop\",\
        destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\",\
        destination_app=\"reviews\",destination_version=\"v2\",destination_cluster=\"Kubernetes\",\
        request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",\
        response_flags=\"-\",connection_security_policy=\"mutual_tls\"";
    assert!(text.contains(&format!("istio_requests_total{{{labels}}} 2\n")));
    assert!(text.contains(&format!("istio_request_duration_milliseconds_sum{{{labels}}} 5.0\n")));
    let bucket = |le, count| {
        format!("istio_request_duration_milliseconds_bucket{{le=\"{le}\",{labels}}} {count}\n")
    };
    for (le, count) in [("1.0", 0), ("5.0", 2), ("+Inf", 2)] {
        assert!(text.contains(&bucket(le, count)), "bucket {le}");
    }
    assert!(text.contains(&format!("istio_response_bytes_sum{{{labels}}} 600.0\n")));
    assert!(text.contains("response_code=\"503\""));
}

#[test]
fn messages_are_counted_of_grpc_calls_only() {
    let metrics = Arc::new(Metrics::default());
    let mut core = PerCore::new(Arc::clone(&metrics));
    let world = World::new();
    core.request(1, &world.ends(), &outcome(200));
    let text = scrape(&metrics);
    assert!(!text.contains("istio_request_messages_total{"), "not of HTTP");
    let call = Outcome {
        protocol: RequestProtocol::Grpc,
        grpc: Some(0),
        messages: (2, 5),
        ..outcome(200)
    };
    core.request(1, &world.ends(), &call);
    core.request(1, &world.ends(), &call);
    let text = scrape(&metrics);
    for (name, value) in
        [("istio_request_messages_total", 4), ("istio_response_messages_total", 10)]
    {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with(&format!("}} {value}")), "{line}");
        assert!(line.contains("request_protocol=\"grpc\""), "{line}");
    }
}

#[test]
fn connections_are_counted_by_direction_of_bytes() {
    let metrics = Arc::new(Metrics::default());
    let connection =
        PerCore::new(Arc::clone(&metrics)).connection(1, &World::new().ends(), Flag::None);
    connection.opened();
    connection.closed(10, 20);
    let text = scrape(&metrics);
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 10),
        ("istio_tcp_sent_bytes_total", 20),
    ] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with(&format!("}} {value}")), "{line}");
        assert!(line.contains("request_protocol=\"tcp\"") && !line.contains("response_code"));
    }
}

#[test]
fn series_end_with_their_workloads() {
    let metrics = Arc::new(Metrics::default());
    let mut core = PerCore::new(Arc::clone(&metrics));
    let world = World::new();
    core.request(1, &world.ends(), &outcome(200));
    metrics.forget(|uid| uid == "Kubernetes//Pod/shop/other-1");
    assert!(scrape(&metrics).contains("istio_requests_total{"));
    metrics.forget(|uid| uid == "Kubernetes//Pod/shop/reviews-1");
    assert!(!scrape(&metrics).contains("istio_requests_total{"));
    core.request(2, &world.ends(), &outcome(200));
    assert!(scrape(&metrics).contains("} 1\n"), "counts start anew");
}
