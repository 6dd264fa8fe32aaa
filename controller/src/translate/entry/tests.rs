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
        Output::Status(_) | Output::Object(_) | Output::Attached(_) | Output::NotServed(_) => None,
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

/// Status, reason and message by type.
fn conditions(made: &Made) -> BTreeMap<&'static str, (bool, &'static str, String)> {
    let all = made.status().conditions();
    all.into_iter().map(|one| (one.kind, (one.status, one.reason, one.message.clone()))).collect()
}

#[test]
fn what_of_a_service_entry_is_not_served_is_told_by_its_field() {
    let rows: [(&str, &[&str]); 7] = [
        ("resolution: STATIC", &[]),
        (
            "resolution: NONE, addresses: [10.9.0.0/16, 10.9.0.0/40, x]",
            &["addresses[1]", "addresses[2]"],
        ),
        (
            "resolution: ODD, endpoints: [{address: 10.1.0.1}]",
            &["spec.resolution \"ODD\" is none of"],
        ),
        (
            "resolution: STATIC, workloadSelector: {labels: {a: b}}, endpoints: [{address: 10.1.0.1}]",
            &["spec.endpoints are left out"],
        ),
        (
            "resolution: STATIC, endpoints: [{address: 10.1.0.1}, {address: 'unix:///x'}, {ports: {tls: 1}}]",
            &["endpoints[1].address \"unix:///x\"", "endpoints[2].address is missing"],
        ),
        (
            "resolution: DNS, endpoints: [{address: db.example}, {address: db.example, serviceAccount: A/B}]",
            &["endpoints[1].serviceAccount \"A/B\""],
        ),
        ("resolution: DNS, endpoints: [{address: db.example.}, {address: 'fd00::1'}]", &[]),
    ];
    for (spec, parts) in rows {
        let told = conditions(&made("", spec, ""));
        assert!(told["Accepted"].0, "{spec}");
        match told.get("PartiallyInvalid") {
            Some((status, reason, message)) => {
                assert_eq!((*status, *reason), (true, "UnsupportedValue"), "{spec}");
                assert_eq!(message.split("; ").count(), parts.len(), "{message}");
                for part in parts {
                    assert!(message.contains(part), "{part} in {message}");
                }
            }
            None => assert!(parts.is_empty(), "{spec}"),
        }
    }
    let wrong = made("", "resolution: STATIC, endpoints: [{address: 'a b'}]", "");
    let (status, reason, message) = &conditions(&wrong)["Accepted"];
    assert_eq!((*status, *reason), (false, "Invalid"), "nothing is left: {message}");
    assert!(message.contains("spec.endpoints[0].address \"a b\""), "{message}");
    assert!(workloads(&wrong).is_empty());
}

#[test]
fn a_wildcard_host_is_nobodys_endpoint_and_its_entry_is_told() {
    let of = |hosts: &str, spec: &str| {
        let text = entry("", spec, "").replace("a.example, b.example", hosts);
        run(&stores(&[&text]), Translator::ServiceEntry, "n/out")
    };
    let both = of("'*.a.example', b.example", "resolution: DYNAMIC_DNS");
    let names: Vec<_> = workloads(&both).iter().map(|one| one.hostname.as_deref()).collect();
    assert_eq!(names, [Some("b.example")]);
    let message = &conditions(&both)["PartiallyInvalid"].2;
    assert!(message.contains("spec.hosts[0] \"*.a.example\""), "{message}");
    let alone = conditions(&of("'*.a.example'", "resolution: DYNAMIC_DNS"));
    assert_eq!((alone["Accepted"].0, alone["Accepted"].1), (false, "Invalid"));
    for served in ["resolution: NONE", "resolution: DNS, endpoints: [{address: b.example}]"] {
        let told = conditions(&of("'*.a.example'", served));
        assert!(told["Accepted"].0 && !told.contains_key("PartiallyInvalid"), "{served}");
    }
}

fn workload_entry(labels: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: vm, namespace: n, labels: {{{labels}}}}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn a_workload_entry_is_told_whether_it_is_served() {
    let of = |spec: &str| {
        let made = run(&stores(&[&workload_entry("", spec)]), Translator::WorkloadEntry, "n/vm");
        (workloads(&made).len(), conditions(&made)["Accepted"].clone())
    };
    let (served, told) = of("address: 10.2.0.1");
    assert_eq!((served, told.0), (1, true));
    for (spec, field) in [
        ("address: ''", "spec.address is missing"),
        ("address: 'unix:///x'", "spec.address \"unix:///x\""),
        ("address: 10.2.0.1, serviceAccount: A/B", "spec.serviceAccount \"A/B\""),
    ] {
        let (served, (status, reason, message)) = of(spec);
        assert_eq!((served, status, reason), (0, false, "Invalid"), "{spec}");
        assert!(message.contains(field), "{message}");
    }
}

/// A waypoint of the namespace with a ready pod.
fn waypoint(serves: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: wp, namespace: n, labels: {{istio.io/waypoint-for: {serves}}}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: wp-1, namespace: n, labels: \
         {{gateway.networking.k8s.io/gateway-name: wp}}}}\nspec: {{containers: []}}\n\
         status: {{phase: Running, podIP: 10.0.0.9, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

#[test]
fn a_workload_entry_is_told_of_its_waypoint_and_that_nothing_guards_it() {
    const USES: &str = "istio.io/use-waypoint: wp";
    let of = |labels: &str, more: &[&str]| {
        let object = workload_entry(labels, "address: 10.2.0.1");
        let texts: Vec<&str> = [object.as_str()].into_iter().chain(more.iter().copied()).collect();
        run(&stores(&texts), Translator::WorkloadEntry, "n/vm")
    };
    let bound = |made: &Made| conditions(made).get("istio.io/WaypointBound").cloned();
    assert_eq!(bound(&of("", &[])), None);
    let inherits = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {istio.io/use-waypoint: wp}}\n";
    let rows = [
        (of(USES, &[]), (false, "WaypointMissing")),
        (of(USES, &[&waypoint("service")]), (false, "UnsupportedTrafficType")),
        (of(USES, &[&waypoint("all")]), (true, "WaypointAccepted")),
        (of("", &[&waypoint("workload"), inherits]), (true, "WaypointAccepted")),
    ];
    for (made, want) in &rows {
        let (status, reason, message) = bound(made).unwrap();
        assert_eq!((status, reason), *want, "{message}");
        let is_bound = reason != "UnsupportedTrafficType";
        assert_eq!(workloads(made)[0].waypoint.is_some(), is_bound, "{message}");
        assert_eq!(message.contains("Nothing refuses calls"), is_bound, "{message}");
    }
    let none = of("", &[&waypoint("service"), inherits]);
    assert_eq!(bound(&none), None, "what the namespace says is for its Services");
}

#[test]
fn only_a_workload_entry_with_a_tunnel_has_a_guard() {
    let guards = |labels: &str| {
        let object = workload_entry(labels, "address: 10.2.0.1");
        let made = run(&stores(&[&object, &waypoint("all")]), Translator::WorkloadEntry, "n/vm");
        let policies =
            planes(&made).filter(|plane| matches!(plane, Plane::Authorization(_))).count();
        let named = workloads(&made)[0].authorization_policies.len();
        let message = conditions(&made)["istio.io/WaypointBound"].2.clone();
        (policies, named, message.contains("for the entry's own tunnel to refuse"))
    };
    assert_eq!(guards("istio.io/use-waypoint: wp"), (0, 0, false));
    let tunnel = "istio.io/use-waypoint: wp, networking.istio.io/tunnel: http";
    assert_eq!(guards(tunnel), (1, 1, true));
}

#[test]
fn a_service_counts_the_workload_entries_that_nothing_guards() {
    let service = "apiVersion: v1\nkind: Service\n\
                   metadata: {name: web, namespace: n, labels: {istio.io/use-waypoint: wp}}\n\
                   spec: {clusterIP: 10.96.0.1, selector: {app: vm}, ports: [{port: 80}]}\n";
    let of = |labels: &str, spec: &str| {
        let object = workload_entry(labels, &format!("address: 10.2.0.1, {spec}"));
        let texts = [service, &object, &waypoint("service")];
        let made = run(&stores(&texts), Translator::Service, "n/web");
        conditions(&made)["istio.io/WaypointBound"].2.clone()
    };
    let unguarded = "Pods and WorkloadEntries that are not in the mesh, which nothing guards: 1";
    for (labels, spec) in [("app: vm", ""), ("", "labels: {app: vm}")] {
        let message = of(labels, spec);
        assert!(message.ends_with(unguarded), "{message}");
    }
    for labels in ["app: other", "app: vm, networking.istio.io/tunnel: http"] {
        let message = of(labels, "");
        assert!(!message.contains("nothing guards"), "{message}");
    }
}

#[test]
fn a_workload_entry_says_by_the_name_of_a_port_where_it_takes_it() {
    let workload = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
        metadata: {name: w, namespace: n}\n\
        spec: {address: 192.0.2.7, labels: {app: out}, ports: {tls: 6443, other: 9}}\n";
    let selecting = entry("", "resolution: STATIC, workloadSelector: {labels: {app: out}}", "");
    let made = run(&stores(&[&selecting, workload]), Translator::WorkloadEntry, "n/w");
    let all = workloads(&made);
    let [workload] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(workload.services.len(), 2, "both hosts");
    for ports in workload.services.values() {
        let [port] = &**ports else { panic!("{ports:?}") };
        assert_eq!((port.service_port, port.target_port), (443, 6443));
    }
}
