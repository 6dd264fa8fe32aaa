// SPDX-License-Identifier: Apache-2.0

//! What 5,000 routes and 2,000 pods take in the controller's memory, by part.
//!
//! The objects are those that the bench on a cluster makes. Not counted: clients, and the
//! statuses that stand in the cluster.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints, and fails by panicking"
)]

use std::alloc::System;
use std::collections::BTreeMap;
use std::sync::Arc;

use controller::graph::Graph;
use controller::output::{Output, OutputKey};
use controller::serve::config::Published;
use controller::settings::Mesh;
use controller::source::kubernetes::Raw;
use controller::status::Board;
use controller::status::board::Moment;
use controller::store::{Kind, ReadKey, Stores};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

const ROUTES: usize = 5_000;
const PODS: usize = 2_000;
const BACKENDS: usize = 50;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Blocks that were ever made, and blocks and bytes that are live.
#[derive(Clone, Copy, Default)]
struct Count {
    made: isize,
    live: isize,
    bytes: isize,
}

impl Count {
    fn now() -> Self {
        let stats = ALLOCATOR.stats();
        let of = |made: usize, gone: usize| made.cast_signed() - gone.cast_signed();
        Self {
            made: stats.allocations.cast_signed(),
            live: of(stats.allocations, stats.deallocations),
            bytes: of(stats.bytes_allocated, stats.bytes_deallocated),
        }
    }

    fn add(&mut self, before: Self, after: Self) {
        self.made += after.made - before.made;
        self.live += after.live - before.live;
        self.bytes += after.bytes - before.bytes;
    }
}

/// A controller as far as it keeps things, and what each of its parts has come to.
#[derive(Default)]
struct Controller {
    mesh: Mesh,
    stores: Stores,
    graph: Graph,
    published: Published,
    board: Board,
    parts: BTreeMap<&'static str, Count>,
}

impl Controller {
    /// Does something, and counts what it leaves behind.
    fn part<T>(&mut self, part: &'static str, work: impl FnOnce(&mut Self) -> T) -> T {
        self.parts.entry(part).or_default();
        let before = Count::now();
        let done = work(self);
        let after = Count::now();
        self.parts.entry(part).or_default().add(before, after);
        done
    }

    fn put(&mut self, kind: Kind, value: &Value) {
        let text = value.to_string();
        let object = self.part("1 objects", |_| {
            let raw: Raw = serde_json::from_str(&text).expect("an object");
            kind.read(Value::Object(raw.fields)).expect("one of its kind")
        });
        let touched: Vec<ReadKey> = self.part("2 stores", |own| own.stores.put(object));
        let changed =
            self.part("3 graph and outputs", |own| own.graph.run(&own.stores, &own.mesh, &touched));
        let revision =
            self.part("4 published", |own| own.published.update(&own.graph.table, &changed));
        // Proxies acknowledge it, and what they were waited for with is written.
        self.part("5 statuses", |own| {
            for key in &changed {
                let OutputKey::Status(key) = key else { continue };
                let status = own.graph.table.get(&OutputKey::Status(key.clone()));
                let Some(Output::Status(status)) = status else { continue };
                let moment = |acked| Moment { acked, now: "2026-01-01T00:00:00Z" };
                let wanted = Some((Arc::clone(status), BTreeMap::new()));
                own.board.update(key, wanted, revision, moment(revision - 1));
                own.board.acknowledged(moment(revision));
                for key in own.board.take_changed() {
                    std::hint::black_box(own.board.get(&key));
                }
            }
        });
    }
}

fn main() {
    let mut controller = Controller::default();
    controller.put(Kind::Namespace, &json!({"metadata": meta("", "bench")}));
    let pods = json!({"name": "pods", "labels": {"istio.io/dataplane-mode": "ambient"}});
    controller.put(Kind::Namespace, &json!({"metadata": pods}));
    let gateway = json!({
        "metadata": meta("bench", "edge"),
        "spec": {
            "gatewayClassName": "waymark",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
        },
    });
    controller.put(Kind::Gateway, &gateway);
    for at in 0..BACKENDS {
        controller.put(Kind::Service, &service("bench", &format!("backend-{at}"), &Value::Null));
    }
    controller.parts.clear();
    for at in 0..ROUTES {
        controller.put(Kind::HttpRoute, &route(at));
    }
    report("routes", ROUTES, &controller.parts);
    for at in 0..PODS / 10 {
        let name = format!("service-{at}");
        controller.put(Kind::Service, &service("pods", &name, &json!({"app": name})));
    }
    controller.parts.clear();
    for at in 0..PODS {
        controller.put(Kind::Pod, &pod(at));
    }
    report("pods", PODS, &controller.parts);
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn report(what: &str, number: usize, parts: &BTreeMap<&str, Count>) {
    println!("{number} {what}         made blocks   live blocks    live bytes     MiB of all");
    let mut all = Count::default();
    for (part, count) in parts {
        all.add(Count::default(), *count);
        line(part, number as f64, *count);
    }
    line("together", number as f64, all);
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn line(part: &str, number: f64, count: Count) {
    let of_one = |count: isize| count as f64 / number;
    println!(
        "{part:<20}{:>14.1}{:>14.1}{:>14.0}{:>15.1}",
        of_one(count.made),
        of_one(count.live),
        of_one(count.bytes),
        count.bytes as f64 / f64::from(1 << 20),
    );
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": namespace,
        "uid": format!("0f5c6f2e-6c1f-4f0c-9f43-{:0>12}", name.len()),
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    })
}

fn service(namespace: &str, name: &str, selector: &Value) -> Value {
    json!({
        "metadata": meta(namespace, name),
        "spec": {
            "clusterIP": "10.96.0.1",
            "selector": selector,
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
    })
}

/// Every other route has a host of its own; the rest share one and differ by path.
fn route(at: usize) -> Value {
    let (host, path) = if at.is_multiple_of(2) {
        (format!("r{at}.bench.test"), "/".to_owned())
    } else {
        ("shared.bench.test".to_owned(), format!("/r{at}"))
    };
    let group = "gateway.networking.k8s.io";
    let backend = format!("backend-{}", at % BACKENDS);
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": meta("bench", &format!("route-{at}")),
        "spec": {
            "parentRefs": [{"group": group, "kind": "Gateway", "name": "edge"}],
            "hostnames": [host],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": path}}],
                "filters": [{
                    "type": "ResponseHeaderModifier",
                    "responseHeaderModifier": {"set": [{"name": "x-bench", "value": "0"}]},
                }],
                "backendRefs": [
                    {"group": "", "kind": "Service", "name": backend, "port": 80, "weight": 1},
                ],
            }],
        },
    })
}

fn pod(at: usize) -> Value {
    let app = format!("service-{}", at % (PODS / 10));
    let address = format!("10.250.{}.{}", (at / 250) % 250, at % 250 + 1);
    json!({
        "metadata": {
            "name": format!("pod-{at}"),
            "namespace": "pods",
            "uid": format!("0f5c6f2e-6c1f-4f0c-9f43-{at:0>12}"),
            "labels": {"app": app, "version": "v1", "pod-template-hash": "5d4f6c7b8"},
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": "node",
            "serviceAccountName": "default",
            "containers": [{
                "name": "app",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1,
                    "failureThreshold": 3},
            }],
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {"type": "ContainersReady", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
        },
    })
}
