// SPDX-License-Identifier: Apache-2.0

//! What the rules of 5,000 routes take in memory once they have come in one by one.
//!
//! Half of the routes have a host of their own, half share one and differ by path: the shape of
//! the routes that the bench on a cluster makes.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints, and fails by panicking"
)]

use std::alloc::System;

use prost::Message as _;
use routing::delta::{Change, Resource, apply};
use routing::snapshot::Snapshot;
use routing::wire;
use routing::wire::messages::waymark::v1 as messages;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

const ROUTES: usize = 5_000;
/// Snapshots that requests may still hold while the next are made.
const HELD: usize = 3;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let messages: Vec<Vec<u8>> = (0..ROUTES).map(|at| message(at).encode_to_vec()).collect();
    let before = ALLOCATOR.stats();
    let mut held = vec![Snapshot::default(); HELD];
    for bytes in &messages {
        let message = messages::Route::decode(bytes.as_slice()).expect("a message");
        let rule = wire::route::read(&message).expect("a rule");
        let last = held.last().cloned().unwrap_or_default();
        let (next, rejected) = apply(&last, [Change::Put(Resource::Rule(rule.into()))]);
        assert!(rejected.is_empty(), "all are taken");
        held.remove(0);
        held.push(next);
    }
    let last = held.pop().unwrap_or_default();
    drop(held);
    assert_eq!(last.serving.rule_count(), ROUTES, "all are there");
    let made = ALLOCATOR.stats() - before;
    let blocks = made.allocations - made.deallocations;
    let bytes = made.bytes_allocated - made.bytes_deallocated;
    println!("routes                     {ROUTES:>8}");
    println!("blocks of one              {:>8.1}", ratio(blocks, ROUTES));
    println!("bytes of one               {:>8.0}", ratio(bytes, ROUTES));
    println!("all of them, live          {:>8.1} MiB", ratio(bytes, 1 << 20));
}

fn message(at: usize) -> messages::Route {
    let (host, path) = if at.is_multiple_of(2) {
        (format!("r{at}.bench.test"), "/".to_owned())
    } else {
        ("shared.bench.test".to_owned(), format!("/r{at}"))
    };
    let listener = "waymark-bench/edge/http".to_owned();
    let key = format!("waymark-bench/backend-{}.waymark-bench.svc.cluster.local", at % 2);
    let service = messages::ServicePort { key, port: 80 };
    let header = messages::Header { name: "x-bench-mark".to_owned(), value: "0".to_owned() };
    let change = messages::HeaderModifier { set: vec![header], ..Default::default() };
    messages::Route {
        name: format!("HTTPRoute/waymark-bench/route-{at}/0"),
        created: 1_700_000_000_000_000_000,
        parents: vec![messages::RouteParent {
            parent: Some(messages::route_parent::Parent::Listener(listener)),
            hostnames: vec![host],
        }],
        matches: vec![messages::RouteMatch {
            path: Some(messages::PathMatch {
                kind: Some(messages::path_match::Kind::Prefix(path)),
            }),
            ..Default::default()
        }],
        filters: vec![messages::RouteFilter {
            kind: Some(messages::route_filter::Kind::ResponseHeaders(change)),
        }],
        backends: vec![messages::RouteBackend {
            target: Some(messages::Target { kind: Some(messages::target::Kind::Service(service)) }),
            weight: 1,
            filters: Vec::new(),
        }],
        ..Default::default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(number: usize, of: usize) -> f64 {
    number as f64 / of as f64
}
