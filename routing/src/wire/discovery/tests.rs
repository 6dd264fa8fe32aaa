// SPDX-License-Identifier: Apache-2.0

//! Responses, whole and in part wrong.

use policy::authz::Scope;

use super::super::workload::tests::vectors;
use super::*;
use crate::delta::apply;
use crate::snapshot::Snapshot;

fn response(kind: Kind, resources: Vec<(String, Vec<u8>)>) -> xds::DeltaDiscoveryResponse {
    let resource = |(name, value): (String, Vec<u8>)| xds::Resource {
        name,
        resource: Some(prost_types::Any { type_url: kind.type_url().into(), value }),
        ..Default::default()
    };
    xds::DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        resources: resources.into_iter().map(resource).collect(),
        ..Default::default()
    }
}

#[test]
fn all_that_istiod_sends_makes_a_snapshot() {
    let mut snapshot = Snapshot::default();
    for kind in [Kind::Address, Kind::Authorization] {
        let changes = read(&response(kind, vectors(kind.type_url()))).unwrap();
        let (next, rejected) = apply(&snapshot, changes);
        assert_eq!(rejected, [], "{kind:?}");
        snapshot = next;
    }
    assert_eq!(snapshot.discovery.workload_count(), 12);
    assert_eq!(snapshot.discovery.service_count(), 18);
    assert_eq!(snapshot.authorizations.len(), 6);
    let reviews = "bookinfo/reviews.bookinfo.svc.cluster.local".parse().unwrap();
    assert_eq!(snapshot.discovery.endpoints(&reviews).len(), 3);
}

fn reason(change: &Change) -> (&str, &str) {
    match change {
        Change::Unreadable { name, reason, .. } => (name, reason),
        Change::Put(_) | Change::Gone(..) => panic!("{change:?}"),
    }
}

#[test]
fn one_bad_resource_costs_no_other() {
    let mut resources = vectors(Kind::Address.type_url());
    let (good_name, good_body) = resources.swap_remove(0);
    let nameless = istio::workload::Workload { uid: "u".into(), ..Default::default() };
    let nameless = istio::workload::Address {
        r#type: Some(istio::workload::address::Type::Workload(nameless)),
    };
    let mut message = response(
        Kind::Address,
        vec![
            ("garbage".into(), vec![0xff]),
            ("empty".into(), Vec::new()),
            ("u".into(), nameless.encode_to_vec()),
            ("alias".into(), good_body.clone()),
            (good_name, good_body),
        ],
    );
    let other = prost_types::Any { type_url: "other".into(), value: Vec::new() };
    message.resources.push(xds::Resource {
        name: "other".into(),
        resource: Some(other),
        ..Default::default()
    });
    message.resources.push(xds::Resource { name: "none".into(), ..Default::default() });
    message.removed_resources.push("gone".into());
    let changes = read(&message).unwrap();
    assert_eq!(changes.len(), 8);
    assert!(reason(&changes[0]).1.starts_with("message cannot be read: "), "{:?}", changes[0]);
    assert_eq!(reason(&changes[1]), ("empty", "type is missing"));
    assert_eq!(reason(&changes[2]), ("u", "namespace is not legal: \"\" is not a legal namespace"));
    assert!(reason(&changes[3]).1.starts_with("resource calls itself"), "{:?}", changes[3]);
    assert!(matches!(changes[4], Change::Put(_)));
    assert_eq!(reason(&changes[5]), ("other", "kind \"other\" is not known"));
    assert_eq!(reason(&changes[6]), ("none", "resource is missing"));
    assert_eq!(changes[7], Change::Gone(Kind::Address, "gone".into()));
}

#[test]
fn a_bad_policy_tells_what_it_governs_as_far_as_can_be_read() {
    let bad_port = istio::security::Match { destination_ports: vec![0], ..Default::default() };
    let group =
        istio::security::Group { rules: vec![istio::security::Rules { matches: vec![bad_port] }] };
    let policy = istio::security::Authorization {
        name: "p".into(),
        namespace: "ns".into(),
        scope: 2,
        groups: vec![group],
        ..Default::default()
    };
    let bodies = vec![("ns/p".into(), policy.encode_to_vec()), ("ns/q".into(), vec![0xff])];
    let changes = read(&response(Kind::Authorization, bodies)).unwrap();
    let governs = |change: &Change| match change {
        Change::Unreadable { governs, .. } => governs.clone(),
        Change::Put(_) | Change::Gone(..) => panic!("{change:?}"),
    };
    assert_eq!(governs(&changes[0]), Governs::Sessions(Scope::Selector));
    assert_eq!(governs(&changes[1]), Governs::Unknown);
}

#[test]
fn a_kind_that_is_not_known_is_refused_as_a_whole() {
    let message = xds::DeltaDiscoveryResponse { type_url: "other".into(), ..Default::default() };
    assert_eq!(read(&message), Err(WireError::Kind("other".into())));
}

#[test]
fn every_kind_is_read_as_it_was_written() {
    for kind in [Kind::Address, Kind::Authorization] {
        for (name, body) in vectors(kind.type_url()) {
            let (_, resource) = read_resource(kind, &body, &mut Names::default()).unwrap();
            let (written_kind, written_name, written) = write_resource(&resource).unwrap();
            assert_eq!((written_kind, &written_name), (kind, &name));
            let again = read_resource(kind, &written, &mut Names::default()).unwrap();
            assert_eq!(again, (name, resource));
        }
    }
}
