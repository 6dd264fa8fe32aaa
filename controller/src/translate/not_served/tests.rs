// SPDX-License-Identifier: Apache-2.0

//! What is told of objects, and what of them is served.

use std::collections::BTreeSet;

use routing::delta::Resource as Plane;
use routing::discovery::{TunnelProtocol, Workload};

use super::super::Translator;
use super::super::testing::{Edited, run as translated, stores};
use super::*;
use crate::output::{OutputKey, Resource};
use crate::settings::Mesh;

/// Version and rest of an object of each kind that is looked at.
const OBJECTS: [(Kind, &str, &str); 8] = [
    (Kind::Namespace, "v1", ""),
    (Kind::Pod, "v1", "spec: {containers: [{name: c}]}"),
    (Kind::Service, "v1", "spec: {ports: [{port: 80}]}"),
    (Kind::ServiceEntry, "networking.istio.io/v1", "spec: {hosts: [h.example]}"),
    (Kind::WorkloadEntry, "networking.istio.io/v1", "spec: {address: 10.0.0.9}"),
    (
        Kind::Gateway,
        "gateway.networking.k8s.io/v1",
        "spec: {gatewayClassName: istio, listeners: []}",
    ),
    (
        Kind::GatewayClass,
        "gateway.networking.k8s.io/v1",
        "spec: {controllerName: istio.io/mesh-controller}",
    ),
    (Kind::AuthorizationPolicy, "security.istio.io/v1", "spec: {}"),
];

/// An object of a kind named `x`, in namespace `n` if it has one.
fn object(kind: Kind, meta: &str) -> String {
    let (_, version, spec) = OBJECTS.iter().find(|(known, ..)| *known == kind).unwrap();
    let namespace = if kind.is_cluster_wide() { "" } else { "namespace: n, " };
    let kind = kind.as_str();
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, {namespace}{meta}}}\n{spec}\n"
    )
}

/// What `x` of a kind is told among these objects.
fn told(kind: Kind, texts: &[&str]) -> Vec<String> {
    let (stores, mesh) = (stores(texts), Mesh::default());
    let namespace = if kind.is_cluster_wide() { "" } else { "n" };
    let output = run(kind, &Name::new(namespace, "x"), &mut Lookup::new(&stores, &mesh));
    output.map_or_else(Vec::new, |output| notes(&output))
}

fn notes(output: &Output) -> Vec<String> {
    let Output::NotServed(told) = output else { panic!("{output:?}") };
    told.notes.clone()
}

#[test]
fn every_row_is_told_on_each_of_its_kinds_and_what_asks_for_nothing_is_not() {
    for row in ROWS {
        let field = format!("{}s", row.place.as_str());
        for kind in row.kinds {
            let with = |value: &str| {
                let meta = format!("{field}: {{'{}': '{value}'}}", row.key);
                told(*kind, &[&object(*kind, &meta)])
            };
            let want =
                format!("{} {}=odd is not served: {}", row.place.as_str(), row.key, row.instead);
            assert_eq!(with("odd"), [want], "{} {}", kind.as_str(), row.key);
            for value in row.fine.iter().chain(&[""]) {
                assert_eq!(with(value), [""; 0], "{} {}={value}", kind.as_str(), row.key);
            }
        }
    }
}

#[test]
fn rows_differ_and_fit_into_an_event() {
    let keys: BTreeSet<_> = ROWS.iter().map(|row| (row.place.as_str(), row.key)).collect();
    assert_eq!(keys.len(), ROWS.len(), "each key once");
    for row in ROWS {
        assert!(!row.kinds.is_empty() && !row.instead.ends_with('.'), "{}", row.key);
        // Rule: a note of 1024 bytes at most; before it come the field, the key and the value.
        assert!(row.instead.len() < 512, "{}", row.key);
    }
}

/// What is warned of when it is written is told on the object, too.
#[test]
fn the_admission_policy_names_keys_of_the_table() {
    const POLICY: &str = include_str!("../../../deploy/waymark/templates/admission.yaml");
    for (place, name) in [(Place::Label, "labels"), (Place::Annotation, "annotations")] {
        let start = format!("- name: {name}\n      expression: \"[");
        let (_, rest) = POLICY.split_once(&start).unwrap();
        let (list, _) = rest.split_once(']').unwrap();
        let keys: Vec<_> = list.split(", ").map(|key| key.trim_matches('\'')).collect();
        assert!(keys.len() > 5, "{keys:?}");
        for key in keys {
            assert!(ROWS.iter().any(|row| row.place == place && row.key == key), "{name} {key}");
        }
    }
}

#[test]
fn a_long_value_is_not_repeated_and_the_meshs_own_cluster_asks_for_nothing() {
    let config = "annotations: {proxy.istio.io/config: \"a: b\\nc: d\\n\"}";
    let want =
        ["annotation proxy.istio.io/config is not served: proxies of this mesh do not read it"];
    assert_eq!(told(Kind::Pod, &[&object(Kind::Pod, config)]), want);
    let of = |cluster: &str| {
        let labels = format!("labels: {{{}: {cluster}}}", table::CLUSTER);
        told(Kind::WorkloadEntry, &[&object(Kind::WorkloadEntry, &labels)]).len()
    };
    assert_eq!((of("Kubernetes"), of("other")), (0, 1));
}

#[test]
fn what_a_field_asks_for_is_told_like_a_label() {
    let entry = |to: &str| {
        let text =
            object(Kind::ServiceEntry, "").replace("spec: {", &format!("spec: {{exportTo: {to}, "));
        told(Kind::ServiceEntry, &[&text])
    };
    assert_eq!(
        entry("['.', other]"),
        ["spec.exportTo=.,other is not served: it is visible in every namespace"]
    );
    assert_eq!(entry("['*']"), [""; 0]);

    let labels = "spec: {labels: {topology.istio.io/cluster: far}, ";
    let text = object(Kind::WorkloadEntry, "").replace("spec: {", labels);
    assert_eq!(told(Kind::WorkloadEntry, &[&text]).len(), 1, "labels of the spec count");

    let inside = "spec: {infrastructure: {annotations: {sidecar.istio.io/logLevel: debug}}, ";
    let text = object(Kind::Gateway, "").replace("spec: {", inside);
    let notes = told(Kind::Gateway, &[&text]);
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    let begin = "spec.infrastructure: annotation sidecar.istio.io/logLevel=debug is not served: ";
    assert!(note.starts_with(begin), "{note}");
}

#[test]
fn what_others_wrote_or_serve_is_left_alone() {
    let rev = "labels: {istio.io/rev: canary}";
    let cases = [
        (Kind::Pod, "annotations: {sidecar.istio.io/status: '{}'}, labels: {istio.io/rev: canary}"),
        (
            Kind::Pod,
            "labels: {istio.io/rev: canary, gateway.istio.io/managed: istio.io-gateway-controller}",
        ),
        (
            Kind::Service,
            "labels: {istio.io/global: 'true', gateway.istio.io/managed: istio.io-mesh-controller}",
        ),
    ];
    for (kind, meta) in cases {
        assert_eq!(told(kind, &[&object(kind, meta)]), [""; 0], "{meta}");
    }
    let strange =
        object(Kind::Gateway, rev).replace("gatewayClassName: istio", "gatewayClassName: other");
    assert_eq!(told(Kind::Gateway, &[&strange]), [""; 0]);
    let strange = object(Kind::GatewayClass, "labels: {istio.io/waypoint-for: odd}")
        .replace("istio.io/mesh-controller", "other.example/controller");
    assert_eq!(told(Kind::GatewayClass, &[&strange]), [""; 0]);
}

/// A waypoint in namespace `b`.
fn waypoint(label: &str, from: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: b, labels: {{{label}}}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, \
         allowedRoutes: {{namespaces: {{from: {from}}}}}}}]}}\n"
    )
}

#[test]
fn a_waypoint_that_is_named_in_vain_is_told() {
    let names = "labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b}";
    let (all, services) = ("istio.io/waypoint-for: all", "istio.io/waypoint-for: service");
    let absent = object(Kind::Namespace, "");
    let rows = [
        (absent.as_str(), "is not there; ", "is not there; "),
        (
            &waypoint(all, "Same"),
            "does not admit the namespace; ",
            "does not admit the namespace; ",
        ),
        (&waypoint(services, "Same"), "is not for workloads", "does not admit the namespace; "),
        (&waypoint(services, "All"), "is not for workloads", ""),
        (&waypoint(all, "All"), "", ""),
    ];
    for (gateway, workload, namespace) in rows {
        // A WorkloadEntry has a condition.
        let kinds =
            [(Kind::Pod, workload), (Kind::WorkloadEntry, ""), (Kind::Namespace, namespace)];
        for (kind, want) in kinds {
            let texts = [gateway, &object(kind, names)];
            let told = told(kind, &texts).concat();
            let begin = "label istio.io/use-waypoint binds to nothing: Gateway b/wp ";
            let right = if want.is_empty() {
                told.is_empty()
            } else {
                told.starts_with(&format!("{begin}{want}"))
            };
            assert!(right, "{} {gateway}: {told}", kind.as_str());
        }
    }
    let none = object(Kind::Pod, "labels: {istio.io/use-waypoint: none}");
    assert_eq!(told(Kind::Pod, &[&none]), [""; 0]);
}

#[test]
fn a_waypoint_that_comes_takes_the_word_back() {
    let mut world = Edited::default();
    world.put(&object(
        Kind::Pod,
        "uid: u, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b}",
    ));
    let key = || OutputKey::NotServed(Key { kind: Kind::Pod, name: Name::new("n", "x") });
    let Some(Output::NotServed(told)) = world.table().get(&key()) else { panic!("it is told") };
    assert_eq!(told.uid.as_deref(), Some("u"));
    world.put(&waypoint("istio.io/waypoint-for: all", "All"));
    assert!(world.table().get(&key()).is_none());
    world.remove(Kind::Gateway, "b/wp");
    assert_eq!(notes(world.table().get(&key()).unwrap()).len(), 1);
    world.remove(Kind::Pod, "n/x");
    assert!(world.table().not_served().is_empty());
}

fn workload_of(texts: &[&str], translator: Translator) -> Workload {
    let made = translated(&stores(texts), translator, "n/x");
    let found = made.0.iter().find_map(|output| {
        let Output::Config(config) = output else { return None };
        let Resource::Plane(Plane::Workload(workload)) = &config.resource else { return None };
        Some(workload.as_ref().clone())
    });
    found.unwrap()
}

#[test]
fn labels_of_a_pod_say_that_it_takes_hbone_and_where_it_is() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.istio.io/subzone: rack}}\n";
    let pod = |labels: &str| {
        let spec = "spec: {nodeName: n1, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.1}";
        let text = object(Kind::Pod, labels).replace("spec: {containers: [{name: c}]}", spec);
        workload_of(&[node, &text], Translator::Workload)
    };
    let plain = pod("uid: u");
    assert_eq!((plain.tunnel, plain.native_tunnel), (TunnelProtocol::None, false));
    assert_eq!(&*plain.locality.subzone, "rack");
    let labelled =
        pod("uid: u, labels: {networking.istio.io/tunnel: http, topology.istio.io/subzone: own}");
    assert_eq!((labelled.tunnel, labelled.native_tunnel), (TunnelProtocol::Hbone, true));
    assert_eq!(&*labelled.locality.subzone, "own");
}

#[test]
fn labels_of_a_workload_entry_say_what_its_fields_leave_open() {
    let labels = "labels: {networking.istio.io/tunnel: http, topology.istio.io/subzone: rack, \
                  topology.istio.io/network: far, service.istio.io/workload-name: vm}";
    let text = object(Kind::WorkloadEntry, labels);
    let entry = workload_of(&[&text], Translator::WorkloadEntry);
    assert_eq!((entry.tunnel, entry.native_tunnel), (TunnelProtocol::Hbone, true));
    let said = [&*entry.locality.subzone, &*entry.network, &*entry.workload_name];
    assert_eq!(said, ["rack", "far", "vm"]);
    let fields = text.replace("spec: {", "spec: {network: near, locality: r/z/s, ");
    let entry = workload_of(&[&fields], Translator::WorkloadEntry);
    assert_eq!([&*entry.locality.subzone, &*entry.network], ["s", "near"], "fields go first");
    let bare = workload_of(&[&object(Kind::WorkloadEntry, "")], Translator::WorkloadEntry);
    assert_eq!(
        (bare.tunnel, &*bare.network, &*bare.workload_name),
        (TunnelProtocol::None, "", "x")
    );
}
