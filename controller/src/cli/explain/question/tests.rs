// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;

use policy::identity::Identity;
use routing::discovery::{Change, Port, ServiceKey, VirtualAddress};
use routing::snapshot::Snapshot;

use super::*;

fn pod(namespace: &str, name: &str, owner: &str) -> Change {
    let space: Namespace = namespace.parse().unwrap();
    let identity =
        Identity::new(&"cluster.local".parse().unwrap(), &space, &"default".parse().unwrap());
    let uid = Workload::pod_key("Kubernetes", namespace, name);
    let mut workload = Workload::new(uid, identity, space);
    workload.name = name.into();
    workload.workload_name = owner.into();
    workload.addresses = vec!["10.244.1.9".parse().unwrap()];
    Change::Workload(workload.into())
}

fn service(key: &str, vip: &str, ports: &[u16]) -> Change {
    let mut service = Service::new(key.parse::<ServiceKey>().unwrap());
    service.canonical = true;
    service.addresses = vec![VirtualAddress::single("".into(), vip.parse().unwrap())];
    let port = |port: &u16| Port {
        service_port: *port,
        target_port: *port,
        app_protocol: AppProtocol::Unknown,
    };
    service.ports = ports.iter().map(port).collect();
    Change::Service(service.into())
}

fn known() -> Known {
    let mut snapshot = Snapshot::default();
    snapshot.discovery.apply([
        pod("shop", "web-1-abc", "web"),
        pod("shop", "web-1-def", "web"),
        pod("shop", "worker-1-abc", "worker"),
        pod("other", "worker-9-xyz", "worker"),
        service("shop/db.shop.svc.cluster.local", "10.96.0.20", &[5432]),
        service("shop/api.shop.svc.cluster.local", "10.96.0.21", &[80, 8080]),
        service("shop/pay.example.com", "10.96.0.22", &[443]),
    ]);
    Known { snapshot, gateways: BTreeMap::new(), origin: String::new() }
}

#[test]
fn callers_are_found_by_name_owner_or_beginning() {
    let cases = [
        ("shop/web-1-def", Ok("web-1-def")),
        ("web", Ok("web-1-abc")),
        ("shop/web-1", Ok("web-1-abc")),
        ("shop/worker", Ok("worker-1-abc")),
        ("worker", Err("may be any of other/worker-9-xyz, shop/worker-1-abc")),
        ("shop/w", Err("may be any of")),
        ("nobody", Err("no workload of this name")),
    ];
    let known = known();
    for (text, want) in cases {
        match (workload(text, &known.snapshot.discovery), want) {
            (Ok(found), Ok(name)) => assert_eq!(*found.name, *name, "{text}"),
            (Err(failure), Err(words)) => {
                assert!(failure.message.contains(words), "{text}: {}", failure.message);
                assert_eq!(failure.code, 2);
            }
            (got, _) => panic!("{text}: {got:?}"),
        }
    }
}

#[test]
fn names_lead_where_dns_would() {
    let cases = [
        // to, address, host of a request
        ("http://db:5432/", Ok(("10.96.0.20:5432", "db:5432"))),
        ("http://api.shop/x", Ok(("10.96.0.21:80", "api.shop"))),
        (
            "http://api.shop.svc.cluster.local.:8080/",
            Ok(("10.96.0.21:8080", "api.shop.svc.cluster.local.:8080")),
        ),
        ("https://pay.example.com/", Ok(("10.96.0.22:443", "pay.example.com"))),
        ("shop/db", Ok(("10.96.0.20:5432", "db.shop:5432"))),
        ("db", Ok(("10.96.0.20:5432", "db.shop:5432"))),
        ("shop/api", Err("has the ports 80, 8080")),
        ("shop/web:80", Ok(("10.244.1.9:80", "web:80"))),
        ("10.1.2.3:4", Ok(("10.1.2.3:4", "10.1.2.3:4"))),
        ("http://nobody/", Err("no Service of this name")),
        ("shop/nobody:1", Err("no Service or pod shop/nobody")),
        ("10.1.2.3", Err("expected a port")),
    ];
    let (known, from) = (known(), "shop".parse().unwrap());
    for (text, want) in cases {
        let target: Target = text.parse().unwrap();
        match (address(&target, &from, &known.snapshot.discovery), want) {
            (Ok((to, host)), Ok((want, name))) => {
                assert_eq!((to.to_string().as_str(), host.as_str()), (want, name), "{text}");
            }
            (Err(failure), Err(words)) => {
                assert!(failure.message.contains(words), "{text}: {}", failure.message);
            }
            (got, _) => panic!("{text}: {got:?}"),
        }
    }
}

#[test]
fn headers_are_name_and_value() {
    let (name, value) = header("End-User:  jason ").unwrap();
    assert_eq!((name.as_str(), value.to_str().unwrap()), ("end-user", "jason"));
    assert!(header("jason").unwrap_err().contains("expected NAME: VALUE"));
    assert!(header("a b: c").is_err());
}
