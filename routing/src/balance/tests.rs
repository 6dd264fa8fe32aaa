// SPDX-License-Identifier: Apache-2.0

//! Tables of endpoint choice.

use std::collections::BTreeMap;

use super::*;
use crate::discovery::{AppProtocol, Locality, Port, ServiceKey};

fn workload(name: &str, place: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap();
    let mut workload = Workload::new(name, identity, "default".parse().unwrap());
    let mut parts = place.split('/').map(Arc::<str>::from);
    let mut next = || parts.next().unwrap_or_default();
    workload.locality = Locality { region: next(), zone: next(), subzone: "".into() };
    workload.node = next();
    workload.addresses = vec!["10.0.0.1".parse().unwrap()];
    workload
}

fn endpoint(workload: Workload) -> Endpoint {
    let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Unknown };
    Endpoint { workload: Arc::new(workload), ports: [port].into() }
}

fn service(mode: LoadBalancingMode, preference: &[LocalityScope]) -> Service {
    let mut service = Service::new(ServiceKey::new("default".parse().unwrap(), "s.example"));
    service.load_balancing = Some(LoadBalancing {
        preference: preference.to_vec(),
        mode,
        health: HealthPolicy::OnlyHealthy,
    });
    service
}

fn names(candidates: &Candidates) -> Vec<(&str, u8)> {
    candidates.iter().map(|candidate| (&*candidate.workload.uid, candidate.tier)).collect()
}

#[test]
fn locality_decides_who_is_a_candidate_and_in_which_tier() {
    use LoadBalancingMode::{Any, Failover, Strict};
    use LocalityScope::{Network, Node, Region, Zone};
    let source = workload("source", "r1/z1/n1");
    let endpoints: Vec<Endpoint> =
        [("same-node", "r1/z1/n1"), ("same-zone", "r1/z1/n2"), ("far", "r2/z1/n3")]
            .map(|(name, place)| endpoint(workload(name, place)))
            .into();
    type Row<'a> = (&'a str, LoadBalancingMode, &'a [LocalityScope], &'a [(&'a str, u8)]);
    let cases: [Row<'_>; 6] = [
        ("any", Any, &[], &[("same-node", 0), ("same-zone", 0), ("far", 0)]),
        ("strict node", Strict, &[Node], &[("same-node", 0)]),
        ("strict zone", Strict, &[Region, Zone], &[("same-node", 0), ("same-zone", 0)]),
        (
            "failover stops at the first miss",
            Failover,
            &[Region, Zone],
            &[("same-node", 2), ("same-zone", 2), ("far", 4)],
        ),
        (
            "network in front, as PreferClose",
            Failover,
            &[Network, Region, Zone],
            &[("same-node", 0), ("same-zone", 0), ("far", 2)],
        ),
        (
            "as PreferSameNode",
            Failover,
            &[Network, Region, Zone, Node],
            &[("same-node", 0), ("same-zone", 1), ("far", 3)],
        ),
    ];
    for (name, mode, preference, want) in cases {
        let service = service(mode, preference);
        let found = Candidates::of(&source, &service, &endpoints, Want::Port(80));
        assert_eq!(names(&found), want, "{name}");
    }
}

#[test]
fn only_what_can_take_the_connection_is_a_candidate() {
    let source = workload("source", "");
    let change = |name: &str, change: fn(&mut Workload)| {
        let mut workload = workload(name, "");
        change(&mut workload);
        endpoint(workload)
    };
    let endpoints = [
        change("good", |_| {}),
        change("by-name", |w| {
            w.addresses.clear();
            w.hostname = Some("x.example".into());
        }),
        change("unhealthy", |w| w.health = Health::Unhealthy),
        change("nowhere", |w| w.addresses.clear()),
        change("no-capacity", |w| w.capacity = 0),
        change("other-network", |w| w.network = "elsewhere".into()),
    ];
    let mut service = service(LoadBalancingMode::Any, &[]);
    let found = Candidates::of(&source, &service, &endpoints, Want::Port(80));
    assert_eq!(names(&found), [("good", 0), ("by-name", 0)]);
    assert!(found.iter().all(|candidate| candidate.port == 8080));
    assert!(Candidates::of(&source, &service, &endpoints, Want::Port(81)).is_empty());

    service.load_balancing =
        Some(LoadBalancing { health: HealthPolicy::AllowAll, ..LoadBalancing::default() });
    let found = Candidates::of(&source, &service, &endpoints, Want::Port(80));
    assert_eq!(names(&found), [("good", 0), ("by-name", 0), ("unhealthy", 0)]);
}

fn candidates(capacities: &[(&str, u32)]) -> Candidates {
    let endpoints: Vec<Endpoint> = capacities
        .iter()
        .map(|(name, capacity)| {
            let mut workload = workload(name, "");
            workload.capacity = *capacity;
            endpoint(workload)
        })
        .collect();
    let service = service(LoadBalancingMode::Any, &[]);
    Candidates::of(&workload("source", ""), &service, &endpoints, Want::Port(80))
}

#[test]
fn picks_follow_capacity() {
    let candidates = candidates(&[("one", 1), ("three", 3), ("none", 0)]);
    let mut rolls = Rolls::new(1);
    let mut counts = BTreeMap::<Arc<str>, u32>::new();
    for _ in 0..4_000 {
        let picked = candidates.pick(&mut rolls, |_| false).unwrap();
        *counts.entry(Arc::clone(&picked.workload.uid)).or_default() += 1;
    }
    assert!(!counts.contains_key("none"));
    assert!((900..1_100).contains(&counts["one"]), "{counts:?}");
}

#[test]
fn one_that_is_out_is_picked_only_when_no_other_is_left() {
    let all = candidates(&[("a", 1), ("b", 1000)]);
    let mut rolls = Rolls::new(2);
    for _ in 0..100 {
        let picked = all.pick(&mut rolls, |candidate| &*candidate.workload.uid == "b").unwrap();
        assert_eq!(&*picked.workload.uid, "a");
    }
    assert!(all.pick(&mut rolls, |_| true).is_some(), "the last one is never left out");
    assert!(candidates(&[]).pick(&mut rolls, |_| false).is_none());
}

#[test]
fn order_names_each_once_best_tier_first() {
    let source = workload("source", "r1/z1/n1");
    let mut endpoints: Vec<Endpoint> =
        (0..20).map(|i| endpoint(workload(&format!("near-{i:02}"), "r1/z1/n1"))).collect();
    endpoints.extend((0..20).map(|i| endpoint(workload(&format!("far-{i:02}"), "r2/z9/n9"))));
    let service = service(LoadBalancingMode::Failover, &[LocalityScope::Region]);
    let candidates = Candidates::of(&source, &service, &endpoints, Want::Port(80));

    let order = candidates.order(&mut Rolls::new(3), 25);
    let near = order.iter().take_while(|c| c.workload.uid.starts_with("near")).count();
    assert_eq!((order.len(), near), (25, 20), "the far ones come after all near ones");
    let mut unique: Vec<_> = order.iter().map(|c| Arc::clone(&c.workload.uid)).collect();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 25);

    let again = candidates.order(&mut Rolls::new(3), 25);
    assert_eq!(order, again, "the same roll gives the same order");
    let other = candidates.order(&mut Rolls::new(4), 25);
    assert_ne!(order, other);
}

#[test]
fn the_less_loaded_of_two_wins() {
    let candidates = candidates(&[("busy", 1), ("idle", 1)]);
    let mut rolls = Rolls::new(5);
    let load = |candidate: &Candidate| u64::from(&*candidate.workload.uid == "busy");
    for _ in 0..50 {
        let picked = candidates.least_loaded(&mut rolls, |_| false, load).unwrap();
        assert_eq!(&*picked.workload.uid, "idle");
        let out = |candidate: &Candidate| &*candidate.workload.uid == "idle";
        let picked = candidates.least_loaded(&mut rolls, out, load).unwrap();
        assert_eq!(&*picked.workload.uid, "busy", "one that is out does not win by being idle");
    }
}

#[test]
fn address_keeps_the_family_asked_for_where_it_can() {
    let both = ["10.0.0.1", "fd00::1"];
    type Row<'a> = (&'a str, &'a [&'a str], IpFamilies, &'a str, Option<&'a str>);
    let cases: [Row<'_>; 8] = [
        ("the very address", &both, IpFamilies::V4, "fd00::1", Some("fd00::1")),
        ("restricted to v4", &both, IpFamilies::V4, "fd00::9", Some("10.0.0.1")),
        ("restricted to v6", &both, IpFamilies::V6, "10.0.0.9", Some("fd00::1")),
        ("restricted, none there", &["10.0.0.1"], IpFamilies::V6, "10.0.0.9", None),
        ("same family v6", &both, IpFamilies::Automatic, "fd00::9", Some("fd00::1")),
        ("same family v4", &both, IpFamilies::Dual, "10.0.0.9", Some("10.0.0.1")),
        ("other family", &["fd00::1"], IpFamilies::Automatic, "10.0.0.9", Some("fd00::1")),
        ("nothing", &[], IpFamilies::Automatic, "10.0.0.9", None),
    ];
    for (name, addresses, families, target, want) in cases {
        let mut workload = workload("w", "");
        workload.addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let mut service = service(LoadBalancingMode::Any, &[]);
        service.ip_families = families;
        let found = address(&workload, Some(&service), target.parse().unwrap());
        assert_eq!(found, want.map(|ip| ip.parse().unwrap()), "{name}");
    }
}

#[test]
fn rolls_are_even_below_their_end() {
    let mut rolls = Rolls::new(6);
    let mut counts = [0_u32; 7];
    for _ in 0..7_000 {
        counts[usize::try_from(rolls.below(7)).unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    assert_eq!(rolls.below(0), 0);
}
