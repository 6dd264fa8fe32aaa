// SPDX-License-Identifier: Apache-2.0

//! The indices against a scan of everything, and single rules of ties.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn at(address: &str) -> NetworkAddress {
    NetworkAddress::new("".into(), address.parse().unwrap())
}

fn service(key: &str, addresses: &[&str]) -> Service {
    let mut service = Service::new(key.parse().unwrap());
    service.addresses = addresses
        .iter()
        .map(|range| VirtualAddress { network: "".into(), range: range.parse().unwrap() })
        .collect();
    service
}

fn discovery(services: impl IntoIterator<Item = Service>) -> Discovery {
    let mut discovery = Discovery::default();
    discovery.apply(services.into_iter().map(|one| Change::Service(Arc::new(one))));
    discovery
}

fn found(discovery: &Discovery, address: &str, from: &str) -> String {
    let service = discovery.service_at(&at(address), &namespace(from));
    service.map_or_else(String::new, |service| service.key.to_string())
}

#[test]
fn ties_at_one_address_go_to_namespace_then_canonical_then_first() {
    let mut canonical = service("c/x.example", &["10.0.0.1/32"]);
    canonical.canonical = true;
    let mut hidden = service("a/x.example", &["10.0.0.1/32"]);
    hidden.visibility = Visibility::Namespace;
    let others =
        [service("b/x.example", &["10.0.0.1/32"]), service("d/x.example", &["10.0.0.1/32"])];
    let all = discovery(others.into_iter().chain([canonical, hidden]));
    let cases = [("a", "a"), ("b", "b"), ("d", "d"), ("other", "c")];
    for (from, want) in cases {
        assert_eq!(found(&all, "10.0.0.1", from), format!("{want}/x.example"), "from {from}");
        let named = all.service_named("x.example", &namespace(from)).unwrap();
        assert_eq!(named.key.namespace.as_str(), want, "by name from {from}");
    }
}

#[test]
fn an_address_beats_a_range_and_a_namespace_beats_a_prefix() {
    let all = discovery([
        service("a/wide.example", &["10.0.0.0/8"]),
        service("b/narrow.example", &["10.1.0.0/16"]),
        service("c/single.example", &["10.1.2.3/32"]),
    ]);
    let cases = [
        ("10.1.2.3", "a", "c/single.example"),
        ("10.1.2.4", "other", "b/narrow.example"),
        ("10.1.2.4", "a", "a/wide.example"),
        ("10.2.0.0", "b", "a/wide.example"),
        ("11.0.0.0", "a", ""),
    ];
    for (address, from, want) in cases {
        assert_eq!(found(&all, address, from), want, "{address} from {from}");
    }
}

fn workload(uid: &str, tunnel: TunnelProtocol) -> Workload {
    let identity = "spiffe://cluster.local/ns/a/sa/a".parse().unwrap();
    let mut workload = Workload::new(uid, identity, namespace("a"));
    workload.addresses = vec!["10.0.0.1".parse().unwrap()];
    workload.tunnel = tunnel;
    workload
}

#[test]
fn ties_among_workloads_go_to_pods_in_the_mesh_first() {
    let mut discovery = Discovery::default();
    let order = [
        ("K//Pod/a/mesh", TunnelProtocol::Hbone),
        ("K//Pod/a/plain", TunnelProtocol::None),
        ("K/networking.istio.io/WorkloadEntry/a/mesh", TunnelProtocol::Hbone),
        ("K/networking.istio.io/WorkloadEntry/a/plain", TunnelProtocol::None),
    ];
    for (uid, tunnel) in order.iter().rev() {
        discovery.apply([Change::Workload(Arc::new(workload(uid, *tunnel)))]);
    }
    let uids: Vec<_> = discovery.workloads_at(&at("10.0.0.1")).iter().map(|w| &*w.uid).collect();
    assert_eq!(uids, order.map(|(uid, _)| uid));
}

#[test]
fn an_address_that_came_back_belongs_to_the_new_pod() {
    let mut old = workload("K//Pod/a/a-old", TunnelProtocol::Hbone);
    old.health = Health::Unhealthy;
    let new = workload("K//Pod/a/b-new", TunnelProtocol::Hbone);
    let mut discovery = Discovery::default();
    discovery.apply([old, new].map(|one| Change::Workload(Arc::new(one))));
    assert_eq!(&*discovery.workload_at(&at("10.0.0.1")).unwrap().uid, "K//Pod/a/b-new");
}

#[test]
fn an_endpoint_may_come_before_its_service() {
    let key: ServiceKey = "a/x.example".parse().unwrap();
    let mut endpoint = workload("u", TunnelProtocol::None);
    endpoint.services.insert(key.clone(), Arc::from([]));
    let mut discovery = Discovery::default();
    discovery.apply([Change::Workload(Arc::new(endpoint))]);
    assert!(discovery.service(&key).is_none());
    assert_eq!(discovery.endpoints(&key).len(), 1);
    discovery.apply([Change::Service(Arc::new(Service::new(key.clone())))]);
    assert_eq!(discovery.endpoints(&key).len(), 1);
    discovery.apply([Change::WorkloadGone("u".into())]);
    assert!(discovery.endpoints(&key).is_empty());
}

#[test]
fn a_new_pod_of_an_old_name_is_found_by_its_own_uid() {
    let mut old = workload("K//Pod/a/x", TunnelProtocol::Hbone);
    old.pod_uid = Some("1".into());
    let new = Workload { pod_uid: Some("2".into()), ..old.clone() };
    let mut discovery = Discovery::default();
    discovery.apply([Change::Workload(Arc::new(old))]);
    discovery.apply([Change::Workload(Arc::new(new))]);
    assert!(discovery.pod("1").is_none());
    assert_eq!(&*discovery.pod("2").unwrap().uid, "K//Pod/a/x");
}

#[test]
fn one_changed_workload_copies_little() {
    let mut old = discovery([service("a/web", &["10.9.0.1/32"])]);
    let many = (0..5_000_u16).map(|i| {
        let mut one = workload(&format!("K//Pod/a/{i}"), TunnelProtocol::Hbone);
        let [high, low] = i.to_be_bytes();
        one.addresses = vec![IpAddr::from([10, 0, high, low])];
        Change::Workload(Arc::new(one))
    });
    old.apply(many);
    let mut new = old.clone();
    let mut changed = Workload::clone(old.workload("K//Pod/a/7").unwrap());
    changed.health = Health::Unhealthy;
    new.apply([Change::Workload(Arc::new(changed))]);
    assert_eq!(new.workloads.shared(&old.workloads), 255);
    assert_eq!(new.by_address.shared(&old.by_address), 255);
    assert_eq!(new.services.shared(&old.services), 1, "it is in one shard, which stays");
    assert_eq!(old.workload("K//Pod/a/7").unwrap().health, Health::Healthy);
}

/// A change over few names and addresses, so that they meet often.
fn change() -> impl Strategy<Value = Change> {
    let ips = || prop::collection::vec((0_u8..4).prop_map(|n| IpAddr::from([10, 0, 0, n])), 0..3);
    let names = || prop::sample::select(vec!["a", "b", "c"]);
    let key = || (names(), names()).prop_map(|(ns, host)| format!("{ns}/{host}.example"));
    let keys = prop::collection::btree_set(key(), 0..3);
    let put_workload = (names(), names(), ips(), keys, any::<bool>(), any::<bool>()).prop_map(
        |(ns, name, addresses, keys, pod, mesh)| {
            let kind = if pod { "/Pod" } else { "x.io/Entry" };
            let identity = format!("spiffe://cluster.local/ns/{ns}/sa/{name}").parse().unwrap();
            let uid = format!("K/{kind}/{ns}/{name}");
            let mut one = Workload::new(uid, identity, namespace(ns));
            one.addresses = addresses;
            one.tunnel = if mesh { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            one.services = keys.iter().map(|key| (key.parse().unwrap(), Arc::from([]))).collect();
            Change::Workload(Arc::new(one))
        },
    );
    let range = (0_u8..4, prop::sample::select(vec![24_u8, 31, 32])).prop_map(|(n, length)| {
        let range = ipnet::IpNet::new(IpAddr::from([10, 0, 0, n]), length).unwrap().trunc();
        VirtualAddress { network: "".into(), range }
    });
    let put_service = (key(), prop::collection::vec(range, 0..3), any::<bool>(), any::<bool>())
        .prop_map(|(key, addresses, canonical, hidden)| {
            let mut one = Service::new(key.parse().unwrap());
            one.addresses = addresses;
            one.canonical = canonical;
            one.visibility = if hidden { Visibility::Namespace } else { Visibility::Public };
            Change::Service(Arc::new(one))
        });
    let drop_workload = (names(), names(), any::<bool>()).prop_map(|(ns, name, pod)| {
        let kind = if pod { "/Pod" } else { "x.io/Entry" };
        Change::WorkloadGone(format!("K/{kind}/{ns}/{name}").into())
    });
    let drop_service = key().prop_map(|key| Change::ServiceGone(key.parse().unwrap()));
    prop_oneof![3 => put_workload, 3 => put_service, 1 => drop_workload, 1 => drop_service]
}

/// Everything that is there, to be scanned.
#[derive(Default)]
struct Scan {
    workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    services: BTreeMap<ServiceKey, Arc<Service>>,
}

impl Scan {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Workload(one) => drop(self.workloads.insert(Arc::clone(&one.uid), one)),
            Change::Service(one) => drop(self.services.insert(one.key.clone(), one)),
            Change::WorkloadGone(uid) => drop(self.workloads.remove(&uid)),
            Change::ServiceGone(key) => drop(self.services.remove(&key)),
        }
    }

    fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        let here = self.workloads.values().filter(|one| one.addresses.contains(&address.address));
        here.min_by_key(|one| {
            let mesh = one.tunnel == TunnelProtocol::Hbone;
            match (one.is_pod(), mesh) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            }
        })
    }

    fn service_at(&self, address: &NetworkAddress, from: &Namespace) -> Option<&Arc<Service>> {
        let seen = self.services.values().filter(|one| one.visible_to(from));
        let best = |single: bool| {
            let around = seen.clone().flat_map(|one| one.addresses.iter().map(move |at| (one, at)));
            around
                .filter(|(_, at)| at.range.contains(&address.address))
                .filter(|(_, at)| (at.range.prefix_len() == 32) == single)
                .min_by_key(|(one, at)| {
                    let foreign = one.key.namespace != *from;
                    (foreign, 32 - at.range.prefix_len(), !one.canonical, one.key.clone())
                })
                .map(|(one, _)| one)
        };
        best(true).or_else(|| best(false))
    }

    fn endpoints(&self, key: &ServiceKey) -> Vec<&Arc<str>> {
        let of = self.workloads.values().filter(|one| one.services.contains_key(key));
        of.map(|one| &one.uid).collect()
    }
}

proptest! {
    #[test]
    fn the_index_answers_as_a_scan_does(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..8),
    ) {
        let (mut discovery, mut scan) = (Discovery::default(), Scan::default());
        for batch in batches {
            batch.iter().for_each(|change| scan.apply(change));
            discovery.apply(batch);
        }
        for n in 0..5 {
            let address = NetworkAddress::new("".into(), IpAddr::from([10, 0, 0, n]));
            prop_assert_eq!(discovery.workload_at(&address), scan.workload_at(&address));
            for from in ["a", "b", "z"].map(namespace) {
                let found = discovery.service_at(&address, &from);
                prop_assert_eq!(found, scan.service_at(&address, &from), "{} from {}", n, from);
            }
        }
        for key in scan.services.keys() {
            let found: Vec<_> = discovery.endpoints(key).iter().map(|one| &one.workload.uid).collect();
            prop_assert_eq!(found, scan.endpoints(key));
        }
        prop_assert_eq!(discovery.workload_count(), scan.workloads.len());
        prop_assert_eq!(discovery.service_count(), scan.services.len());
        for host in ["a.example", "b.example", "c.example"] {
            let named = scan.services.keys().filter(|key| &*key.hostname == host).count();
            prop_assert_eq!(discovery.services_named(host).len(), named);
        }
    }
}
