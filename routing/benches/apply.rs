// SPDX-License-Identifier: Apache-2.0

//! Cost of changes to 100,000 workloads behind 1,000 services.

#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use divan::Bencher;
use routing::balance::Rolls;
use routing::delta::{Change, Resource, apply};
use routing::discovery::{
    AppProtocol, Health, Port, Service, ServiceKey, TunnelProtocol, VirtualAddress, Workload,
};
use routing::l4;
use routing::snapshot::Snapshot;

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 1_000;

fn main() {
    divan::main();
}

fn port() -> Port {
    Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http11 }
}

fn key(number: u32) -> ServiceKey {
    let hostname = format!("service-{number}.default.svc.cluster.local");
    ServiceKey::new("default".parse().expect("a namespace"), hostname)
}

fn ip(base: u32, number: u32) -> IpAddr {
    IpAddr::from((base + number).to_be_bytes())
}

fn workload(number: u32) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/default/sa/service-{}", number % SERVICES);
    let uid = Workload::pod_key("Kubernetes", "default", &format!("pod-{number}"));
    let namespace = "default".parse().expect("a namespace");
    let mut workload = Workload::new(uid, identity.parse().expect("an identity"), namespace);
    workload.addresses = vec![ip(0x0a00_0000, number)];
    workload.tunnel = TunnelProtocol::Hbone;
    workload.services.insert(key(number % SERVICES), [port()].into());
    workload
}

fn put(workload: Workload) -> Change {
    Change::Put(Resource::Workload(Arc::new(workload)))
}

fn all() -> Vec<Change> {
    let services = (0..SERVICES).map(|number| {
        let mut service = Service::new(key(number));
        service.addresses = vec![VirtualAddress::single("".into(), ip(0x6400_0000, number))];
        service.ports = vec![port()];
        Change::Put(Resource::Service(Arc::new(service)))
    });
    services.chain((0..WORKLOADS).map(|number| put(workload(number)))).collect()
}

/// The first batch of a new proxy: nothing is shared, everything is indexed.
#[divan::bench(sample_count = 5)]
fn everything(bencher: Bencher<'_, '_>) {
    let changes = all();
    bencher
        .with_inputs(|| changes.clone())
        .bench_local_values(|changes| apply(&Snapshot::default(), changes).0);
}

/// One pod becomes ready: the usual change. Everything else must stay shared.
#[divan::bench]
fn one_workload(bencher: Bencher<'_, '_>) {
    let (snapshot, _) = apply(&Snapshot::default(), all());
    let mut changed = workload(4_711);
    changed.health = Health::Unhealthy;
    let change = put(changed);
    bencher.bench_local(|| apply(black_box(&snapshot), [change.clone()]).0);
}

/// The way of one connection to a service of 100 endpoints.
#[divan::bench]
fn resolve(bencher: Bencher<'_, '_>) {
    let (snapshot, _) = apply(&Snapshot::default(), all());
    let source = workload(1);
    let mut rolls = Rolls::new(1);
    bencher.bench_local(|| {
        let service = u32::try_from(rolls.below(u64::from(SERVICES))).unwrap_or_default();
        let target = (ip(0x6400_0000, service), 80).into();
        l4::resolve(&source, target, &snapshot.discovery, rolls.roll())
    });
}
