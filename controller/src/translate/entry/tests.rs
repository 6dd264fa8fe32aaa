// SPDX-License-Identifier: Apache-2.0

//! ServiceEntries by how they resolve and where their addresses come from.

use super::super::Translator;
use super::super::testing::{Made, run, stores};
use super::*;
use crate::output::Resource;

fn entry(labels: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: out, namespace: n, labels: {{{labels}}}}}\n\
         spec: {{hosts: [a.example, b.example], ports: [{{number: 443, name: tls}}], {spec}}}\n\
         status: {{{status}}}\n"
    )
}

fn made(labels: &str, spec: &str, status: &str) -> Made {
    run(&stores(&[&entry(labels, spec, status)]), Translator::ServiceEntry, "n/out")
}

fn planes(made: &Made) -> impl Iterator<Item = &Plane> {
    made.0.iter().filter_map(|output| match output {
        Output::Config(config) => match &config.resource {
            Resource::Plane(plane) => Some(plane),
            Resource::NodePod(_) | Resource::Roots(_) => None,
        },
        Output::Status(_) | Output::Object(_) | Output::Attached(..) | Output::NotServed(_) => None,
    })
}

/// Host and virtual addresses of each service.
fn services(made: &Made) -> Vec<(String, Vec<String>)> {
    let all = planes(made).filter_map(|plane| {
        let Plane::Service(service) = plane else { return None };
        let addresses = service.addresses.iter().map(|one| one.range.to_string());
        Some((service.key.hostname.to_string(), addresses.collect()))
    });
    all.collect()
}

fn workloads(made: &Made) -> Vec<&Arc<Workload>> {
    let all = planes(made).filter_map(|plane| {
        let Plane::Workload(workload) = plane else { return None };
        Some(workload)
    });
    all.collect()
}

#[test]
fn addresses_are_the_written_the_assigned_or_derived_ones() {
    let derived = services(&made("", "resolution: DNS", ""));
    for (host, addresses) in &derived {
        let [v4, v6] = addresses.as_slice() else { panic!("{host}: {addresses:?}") };
        assert!(v4.starts_with("240.240.") && v4.ends_with("/32"), "{v4}");
        assert!(v6.starts_with("2001:2::") && v6.ends_with("/128"), "{v6}");
    }
    assert_eq!(derived, services(&made("", "resolution: DNS", "")), "over a restart");
    assert_ne!(derived[0].1, derived[1].1, "each host has its own");

    let of = |labels, spec, status| -> Vec<Vec<String>> {
        services(&made(labels, spec, status)).into_iter().map(|(_, all)| all).collect()
    };
    let none = vec![Vec::<String>::new(); 2];
    let off = "networking.istio.io/enable-autoallocate-ip: 'false'";
    assert_eq!(of(off, "resolution: DNS", ""), none);
    assert_eq!(of("", "resolution: NONE", ""), none);
    assert_eq!(of("", "location: MESH_EXTERNAL", ""), none, "NONE when it is not said");
    let ranges = of("", "resolution: NONE, addresses: [10.9.0.0/16, 10.8.0.1]", "");
    assert_eq!(ranges, vec![vec!["10.9.0.0/16".to_owned(), "10.8.0.1/32".to_owned()]; 2]);
    let assigned = "addresses: [{value: 240.240.9.9, host: a.example}]";
    let both = of("", "resolution: STATIC", assigned);
    assert_eq!(both[0], ["240.240.9.9/32"]);
    assert_eq!(both[1], derived[1].1, "another host's address is not its own");
}

#[test]
fn where_a_call_goes_is_as_the_resolution_says() {
    let modes = |spec| -> Vec<Option<LoadBalancingMode>> {
        let made = made("", spec, "");
        let all = planes(&made).filter_map(|plane| {
            let Plane::Service(service) = plane else { return None };
            Some(service.load_balancing.as_ref().map(|one| one.mode))
        });
        all.collect()
    };
    assert_eq!(modes("resolution: NONE"), [Some(LoadBalancingMode::Passthrough); 2]);
    assert_eq!(modes("resolution: STATIC"), [None; 2]);
    assert_eq!(workloads(&made("", "resolution: NONE", "")).len(), 0);

    let by_name = made("", "resolution: DNS", "");
    let names: Vec<_> = workloads(&by_name).iter().map(|one| one.hostname.as_deref()).collect();
    assert_eq!(names, [Some("a.example"), Some("b.example")], "each host is its own endpoint");

    let endpoints = "resolution: STATIC, endpoints: [{address: 10.1.0.1, ports: {tls: 8443}, weight: 3}, {address: db.example}]";
    let listed = made("", endpoints, "");
    let [first, second] = workloads(&listed)[..] else { panic!("two endpoints") };
    assert_eq!(first.addresses, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!((first.capacity, second.hostname.as_deref()), (3, Some("db.example")));
    let key = ServiceKey::new("n".parse().unwrap(), "b.example");
    let targets = [first, second].map(|one| one.services[&key][0].target_port);
    assert_eq!(targets, [8443, 443]);
}

#[test]
fn a_workload_entry_stands_behind_what_selects_it() {
    let selector = "resolution: STATIC, workloadSelector: {labels: {app: vm}}";
    let object = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: n}\n\
        spec: {address: 10.2.0.1, labels: {app: vm}, serviceAccount: vm-sa, weight: 2, locality: r/z, network: far}\n";
    let stores = stores(&[&entry("", selector, ""), object]);
    let made = run(&stores, Translator::WorkloadEntry, "n/vm");
    let [one] = workloads(&made)[..] else { panic!("one workload") };
    assert_eq!(one.identity.to_string(), "spiffe://cluster.local/ns/n/sa/vm-sa");
    assert_eq!((one.capacity, &*one.network, &*one.locality.zone), (2, "far", "z"));
    let hosts: Vec<&str> = one.services.keys().map(|key| &*key.hostname).collect();
    assert_eq!(hosts, ["a.example", "b.example"]);
    assert!(workloads(&run(&stores, Translator::ServiceEntry, "n/out")).is_empty());
}
