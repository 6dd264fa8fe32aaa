// SPDX-License-Identifier: Apache-2.0

//! Batches, rejections, and what stays shared.

use policy::authz::{Action, InForce};

use super::*;
use crate::discovery::Discovery;

fn workload(name: &str) -> Workload {
    let identity = "spiffe://cluster.local/ns/default/sa/a".parse().unwrap();
    Workload::new(format!("Kubernetes//Pod/default/{name}"), identity, "default".parse().unwrap())
}

fn put(workload: Workload) -> Change {
    Change::Put(Resource::Workload(Arc::new(workload)))
}

fn uids(discovery: &Discovery) -> Vec<String> {
    let mut uids: Vec<_> = discovery.workloads().map(|one| one.uid.to_string()).collect();
    uids.sort();
    uids
}

#[test]
fn a_batch_gives_the_next_snapshot_and_leaves_the_old_one_alone() {
    let (one, rejected) = apply(&Snapshot::default(), [put(workload("a")), put(workload("b"))]);
    assert_eq!((one.revision, rejected), (1, Vec::new()));
    let gone = Change::Gone(Kind::Address, "Kubernetes//Pod/default/a".into());
    let (two, _) = apply(&one, [gone, put(workload("c"))]);
    assert_eq!(uids(&one.discovery), ["Kubernetes//Pod/default/a", "Kubernetes//Pod/default/b"]);
    assert_eq!(uids(&two.discovery), ["Kubernetes//Pod/default/b", "Kubernetes//Pod/default/c"]);
    assert_eq!(two.revision, 2);
}

#[test]
fn changes_count_in_their_order() {
    let gone = || Change::Gone(Kind::Address, "Kubernetes//Pod/default/a".into());
    let (there, _) = apply(&Snapshot::default(), [gone(), put(workload("a"))]);
    assert_eq!(there.discovery.workload_count(), 1);
    let (not_there, _) = apply(&Snapshot::default(), [put(workload("a")), gone()]);
    assert_eq!(not_there.discovery.workload_count(), 0);
}

#[test]
fn a_service_is_taken_out_by_its_key() {
    let key: ServiceKey = "default/a.example".parse().unwrap();
    let service = Arc::new(Service::new(key.clone()));
    let (one, _) = apply(&Snapshot::default(), [Change::Put(Resource::Service(service))]);
    assert!(one.discovery.service(&key).is_some());
    let (two, _) = apply(&one, [Change::Gone(Kind::Address, key.to_string().into())]);
    assert!(two.discovery.service(&key).is_none());
}

fn policy(name: &str, scope: Scope) -> Authorization {
    Authorization {
        name: PolicyName::new("default", name),
        scope,
        action: Action::Allow,
        dry_run: false,
        unsupported: None,
        rules: Vec::new(),
    }
}

fn unreadable(kind: Kind, name: &str, governs: Governs) -> Change {
    Change::Unreadable { kind, name: name.into(), reason: "odd".into(), governs }
}

#[test]
fn what_cannot_be_read_leaves_the_last_good_version_in_force() {
    let good = put(workload("a"));
    let (one, _) = apply(&Snapshot::default(), [good]);
    let name = "Kubernetes//Pod/default/a";
    let (two, rejected) = apply(&one, [unreadable(Kind::Address, name, Governs::Unknown)]);
    assert!(two.discovery.workload(name).is_some());
    let want = Rejected { kind: Kind::Address, name: name.into(), reason: "odd".into() };
    assert_eq!(rejected, [want]);

    let good = Change::Put(Resource::Authorization(Arc::new(policy("p", Scope::Namespace))));
    let (one, _) = apply(&Snapshot::default(), [good]);
    let bad = unreadable(Kind::Authorization, "default/p", Governs::Sessions(Scope::Global));
    let (two, rejected) = apply(&one, [bad]);
    let kept = two.authorizations.policy(&PolicyName::new("default", "p")).unwrap();
    assert_eq!((kept.unsupported.is_none(), rejected.len()), (true, 1));
}

#[test]
fn a_policy_that_never_had_a_good_version_refuses_what_it_governs() {
    let mut other = workload("b");
    other.namespace = "other".parse().unwrap();
    let mut lists = other.clone();
    lists.authorization_policies = vec![PolicyName::new("default", "p")];
    let refused = |snapshot: &Snapshot, workload: &Workload| {
        let mut in_force = snapshot.authorizations.in_force(workload);
        in_force.any(|one| matches!(one, InForce::Known(policy) if policy.unsupported.is_some()))
    };
    let cases = [
        ("mesh", Governs::Sessions(Scope::Global), [true, true, true]),
        ("namespace", Governs::Sessions(Scope::Namespace), [true, false, true]),
        ("selector", Governs::Sessions(Scope::Selector), [false, false, true]),
        ("unknown", Governs::Unknown, [true, false, true]),
    ];
    for (name, governs, want) in cases {
        let bad = unreadable(Kind::Authorization, "default/p", governs);
        let (snapshot, _) = apply(&Snapshot::default(), [bad]);
        let found = [&workload("a"), &other, &lists].map(|one| refused(&snapshot, one));
        assert_eq!(found, want, "{name}");
        let gone = Change::Gone(Kind::Authorization, "default/p".into());
        let (snapshot, _) = apply(&snapshot, [gone]);
        assert!(!refused(&snapshot, &workload("a")), "{name}: gone is gone");
    }
}

#[test]
fn a_policy_over_requests_that_never_had_a_good_version_refuses_too() {
    let gateway = Target::Gateway("default/gw".into());
    let other = Target::Gateway("default/other".into());
    let cases = [
        ("targets", Governs::Requests(vec![gateway.clone()]), [1, 0]),
        ("unknown", Governs::Unknown, [1, 1]),
    ];
    for (name, governs, want) in cases {
        let bad = unreadable(Kind::GatewayAuthorization, "default/p", governs);
        let (snapshot, _) = apply(&Snapshot::default(), [bad]);
        let count = |target: &Target| snapshot.serving.policies(target).count();
        assert_eq!([count(&gateway), count(&other)], want, "{name}");
        let gone = Change::Gone(Kind::GatewayAuthorization, "default/p".into());
        let (snapshot, _) = apply(&snapshot, [gone]);
        assert_eq!(snapshot.serving.policies(&gateway).count(), 0, "{name}: gone is gone");
    }
}

#[test]
fn a_policy_that_a_workload_lists_and_that_is_not_here_is_said_to_be_missing() {
    let mut lists = workload("a");
    let name = PolicyName::new("default", "p");
    lists.authorization_policies = vec![name.clone()];
    let empty = Snapshot::default();
    let missing = |snapshot: &Snapshot| {
        let mut in_force = snapshot.authorizations.in_force(&lists);
        in_force.any(|one| matches!(one, InForce::Missing(found) if *found == name))
    };
    assert!(missing(&empty));
    let here = Change::Put(Resource::Authorization(Arc::new(policy("p", Scope::Selector))));
    let (snapshot, _) = apply(&empty, [here]);
    assert!(!missing(&snapshot));
    assert_eq!(snapshot.authorizations.in_force(&lists).count(), 1);
}

#[test]
fn a_policy_that_moves_to_another_scope_is_in_force_there_alone() {
    let put = |scope| Change::Put(Resource::Authorization(Arc::new(policy("p", scope))));
    let mut other = workload("b");
    other.namespace = "other".parse().unwrap();
    let (one, _) = apply(&Snapshot::default(), [put(Scope::Global)]);
    assert_eq!(one.authorizations.in_force(&other).count(), 1);
    let (two, _) = apply(&one, [put(Scope::Namespace)]);
    assert_eq!(two.authorizations.in_force(&other).count(), 0);
    assert_eq!(two.authorizations.in_force(&workload("a")).count(), 1);
    let (three, _) = apply(&two, [put(Scope::Selector)]);
    assert_eq!(three.authorizations.in_force(&workload("a")).count(), 0);
    assert_eq!(three.authorizations.len(), 1);
}

#[test]
fn a_name_that_cannot_be_one_of_its_kind_is_rejected() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Address) {
        let (_, rejected) = apply(&Snapshot::default(), [Change::Gone(kind, "noslash".into())]);
        assert_eq!(rejected.len(), 1, "{kind:?}");
    }
}

#[test]
fn every_kind_has_its_own_name_on_the_stream() {
    for kind in Kind::ALL {
        assert_eq!(Kind::of_type_url(kind.type_url()), Some(kind));
    }
    assert_eq!(Kind::of_type_url("type.googleapis.com/other"), None);
}
