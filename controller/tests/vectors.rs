// SPDX-License-Identifier: Apache-2.0

//! The objects of a real cluster in, and what Istio's control plane made of them out.
//!
//! Compared field by field; order inside repeated fields is free. Each difference that is meant
//! stands in a list below, with its reason; any other fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use controller::graph::Graph;
use controller::output::{Family, Output, OutputKey};
use controller::settings::Mesh;
use controller::store::{Kind, Stores};
use prost::Message as _;
use routing::wire::messages::istio::security::{Action, Authorization};
use routing::wire::messages::istio::workload::{Address, Service, Workload, address::Type};

/// Policies with an L7 field and a selector: istiod drops the field, which opens or closes more
/// than was written; here they refuse all that they select.
const REFUSED: &[&str] = &["bookinfo/l7-deny", "bookinfo/l7-on-ztunnel"];

/// Endpoints without labels: istiod lets every selector of the namespace select them.
const UNLABELLED: &[&str] = &[
    "Kubernetes/networking.istio.io/ServiceEntry/bookinfo/dns/api.example.org",
    "Kubernetes/networking.istio.io/ServiceEntry/bookinfo/ext/10.200.0.5",
];

/// Prefix of the policies that keep a pod behind its waypoint.
const GUARD: &str = "bookinfo/waymark-guard-";

type Resources = BTreeMap<(Family, String), Vec<u8>>;

fn wanted() -> Resources {
    let text = include_str!("vectors/istiod-bookinfo/resources.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    all.into_iter()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap().to_owned();
            let body = STANDARD.decode(text("base64")).unwrap();
            ((Family::of(&text("type")).unwrap(), text("name")), body)
        })
        .collect()
}

fn made() -> Resources {
    let text = include_str!("vectors/istiod-bookinfo/objects.json");
    let objects: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let mut stores = Stores::default();
    for object in objects {
        let text = |field: &str| object[field].as_str().unwrap().to_owned();
        if let Some(kind) = Kind::of(&text("apiVersion"), &text("kind")) {
            stores.put(kind.read(object).unwrap());
        }
    }
    let graph = Graph::full(&stores, &Mesh::default());
    let mut found = Resources::new();
    for (key, output) in graph.table.all() {
        if let (OutputKey::Config(family, name), Output::Config(config)) = (key, output)
            && matches!(family, Family::Address | Family::Authorization)
        {
            found.insert((*family, name.to_string()), config.resource.encode().unwrap());
        }
    }
    found
}

fn address(body: &[u8]) -> Address {
    let mut address = Address::decode(body).unwrap();
    match address.r#type.as_mut().unwrap() {
        Type::Workload(workload) => sort_workload(workload),
        Type::Service(service) => sort_service(service),
    }
    address
}

fn sort_workload(workload: &mut Workload) {
    workload.addresses.sort();
    workload.authorization_policies.sort();
    for ports in workload.services.values_mut() {
        ports.ports.sort_by_key(|port| port.service_port);
    }
}

fn sort_service(service: &mut Service) {
    service.ports.sort_by_key(|port| port.service_port);
    service.addresses.sort_by(|a, b| a.address.cmp(&b.address));
}

/// Takes out of ours what we mean to say beyond istiod.
fn without_ours(name: &str, mut ours: Address) -> Address {
    match ours.r#type.as_mut().unwrap() {
        Type::Workload(workload) => {
            // The pod's UID travels so that an address that comes back is not mistaken.
            let is_pod = name.contains("//Pod/");
            assert_eq!(workload.extensions.len(), usize::from(is_pod), "{name}");
            workload.extensions.clear();
            workload.authorization_policies.retain(|policy| !policy.starts_with(GUARD));
        }
        // Gateways at the edge enter the waypoint unless they are told not to.
        Type::Service(service) => {
            assert_eq!(service.ingress_use_waypoint, service.waypoint.is_some(), "{name}");
            service.ingress_use_waypoint = false;
        }
    }
    ours
}

#[test]
fn addresses_are_those_of_istiod() {
    let (wanted, made) = (wanted(), made());
    let names = |all: &Resources| -> BTreeSet<String> {
        all.keys()
            .filter(|(family, _)| *family == Family::Address)
            .map(|(_, n)| n.clone())
            .collect()
    };
    let expected = names(&wanted);
    assert_eq!(names(&made), expected);
    for name in expected {
        let key = (Family::Address, name.clone());
        let mut theirs = address(&wanted[&key]);
        if let (true, Some(Type::Workload(workload))) =
            (UNLABELLED.contains(&name.as_str()), theirs.r#type.as_mut())
        {
            workload.authorization_policies.clear();
        }
        let ours = without_ours(&name, address(&made[&key]));
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn policies_are_those_of_istiod_or_refuse_more() {
    let (wanted, made) = (wanted(), made());
    let of = |all: &Resources| -> BTreeMap<String, Authorization> {
        let policies = all.iter().filter(|((family, _), _)| *family == Family::Authorization);
        policies
            .map(|((_, name), body)| {
                (name.clone(), sorted(Authorization::decode(body.as_slice()).unwrap()))
            })
            .collect()
    };
    let (theirs, ours) = (of(&wanted), of(&made));
    for (name, theirs) in &theirs {
        let ours = &ours[name];
        if REFUSED.contains(&name.as_str()) {
            assert_eq!(ours.action(), Action::Deny, "{name}");
            assert_eq!(ours.scope, theirs.scope, "{name}");
            assert!(
                ours.groups.iter().any(|group| group.rules.is_empty()),
                "{name} matches everything"
            );
        } else {
            assert_eq!(ours, theirs, "{name}");
        }
    }
    let more: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
    assert!(more.iter().all(|name| name.starts_with(GUARD)), "{more:?}");
    let guarded: BTreeSet<_> =
        more.iter().map(|name| name[GUARD.len()..name.len() - 9].to_owned()).collect();
    let expected =
        ["details-v1", "productpage-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
    assert_eq!(guarded, expected.map(str::to_owned).into());
    for name in more {
        let text = format!("{:?}", ours[name]);
        assert_eq!(ours[name].action(), Action::Deny);
        assert!(text.contains("cluster.local/ns/bookinfo/sa/waypoint"), "{text}");
    }
}

/// Rules, clauses and matches in an order of their own.
fn sorted(mut policy: Authorization) -> Authorization {
    for group in &mut policy.groups {
        for rules in &mut group.rules {
            rules.matches.sort_by_key(|one| format!("{one:?}"));
        }
        group.rules.sort_by_key(|rules| format!("{rules:?}"));
    }
    policy.groups.sort_by_key(|group| format!("{group:?}"));
    policy
}
