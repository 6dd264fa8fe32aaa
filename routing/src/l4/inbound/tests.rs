// SPDX-License-Identifier: Apache-2.0

//! Authorities at a pod, row by row.

use super::super::tests::{World, by_name, ip, key, pod, serves, service, world};
use super::*;
use crate::discovery::{ApplicationProtocol, Change};

fn ask(world: &World, local: &str, authority: &str) -> Result<String, InboundRefusal> {
    let uid = Workload::pod_key("Kubernetes", "default", local);
    let local = world.discovery.workload(&uid).unwrap();
    let connected = SocketAddr::new(local.addresses[0], 15008);
    let arrival = arrive(local, connected, &authority.parse().unwrap(), &world.discovery)?;
    Ok(arrival.upstream.to_string())
}

#[test]
fn a_connect_ends_at_its_pod_or_nowhere() {
    let world = world();
    let not_here = |authority: &str| Err(InboundRefusal::NotHere(authority.parse().unwrap()));
    let no_port = |authority: &str| Err(InboundRefusal::NoPort(authority.parse().unwrap()));
    let end = |upstream: &str| Ok(upstream.to_owned());
    let plain = "plain.default.svc.cluster.local";
    let cases = [
        ("own address", "server", "10.0.0.2:8080", end("10.0.0.2:8080")),
        ("any port of it", "server", "10.0.0.2:22", end("10.0.0.2:22")),
        ("own port", "server", "10.0.0.2:15006", Err(InboundRefusal::OwnPort(15006))),
        ("address of another pod", "server", "10.0.0.3:8080", not_here("10.0.0.3:8080")),
        ("unknown address", "server", "1.1.1.1:80", not_here("1.1.1.1:80")),
        ("loopback", "server", "127.0.0.1:80", not_here("127.0.0.1:80")),
        ("VIP of a service that it serves", "server", "10.96.0.1:80", not_here("10.96.0.1:80")),
        ("hostname", "server", &format!("{plain}:80"), end("10.0.0.2:8080")),
        ("hostname, other port", "server", &format!("{plain}:81"), no_port(&format!("{plain}:81"))),
        ("unknown hostname", "server", "x.example:80", no_port("x.example:80")),
        ("hostname of others", "client", &format!("{plain}:80"), no_port(&format!("{plain}:80"))),
        ("waypoint: pod behind it", "proxy", "10.0.0.3:8080", end("10.0.0.9:8080")),
        ("waypoint: pod not behind it", "proxy", "10.0.0.2:8080", not_here("10.0.0.2:8080")),
    ];
    for (name, local, authority, want) in cases {
        assert_eq!(ask(&world, local, authority), want, "{name}");
    }
}

#[test]
fn an_application_tunnel_takes_every_destination_on_its_port() {
    let mut world = world();
    let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) };
    world.workload("proxy", |proxy| proxy.application_tunnel = Some(tunnel));
    let uid = Workload::pod_key("Kubernetes", "default", "proxy");
    let local = world.discovery.workload(&uid).unwrap();
    let connected = SocketAddr::new(ip("10.0.0.9"), 15008);
    let authority = "10.96.0.2:80".parse().unwrap();
    let arrival = arrive(local, connected, &authority, &world.discovery).unwrap();
    assert_eq!(arrival.upstream, SocketAddr::new(ip("10.0.0.9"), 15088));
    assert_eq!(arrival.application, Some(tunnel));
    assert_eq!(arrival.service.unwrap().key, world.guarded);
}

#[test]
fn refusals_are_answered_as_istio_answers_them() {
    let authority: Authority = "10.0.0.1:80".parse().unwrap();
    assert_eq!(InboundRefusal::NotHere(authority.clone()).status(), 400);
    assert_eq!(InboundRefusal::NoPort(authority).status(), 503);
    assert_eq!(InboundRefusal::OwnPort(15008).status(), 503);
}

#[test]
fn a_waypoint_takes_what_declared_it_and_nothing_else() {
    let mut world = world();
    let canary = key("default", "canary.default.svc.cluster.local");
    let other = key("default", "other.default.svc.cluster.local");
    let mut other_service = service(&other, "10.96.0.7", 80);
    other_service.waypoint = Some(by_name(&canary));
    world.discovery.apply([
        Change::Service(Arc::new(service(&canary, "10.96.0.8", 15008))),
        Change::Workload(Arc::new(serves(
            pod("default", "canary", "10.0.0.8"),
            &canary,
            15008,
            15008,
        ))),
        Change::Service(Arc::new(other_service)),
    ]);
    let proxy = world.discovery.workload("Kubernetes//Pod/default/proxy").unwrap();
    let peer = Peer::proven(world.client.identity.clone(), "10.0.0.9:1".parse().unwrap());
    let name = |authority: &str| {
        let authority = authority.parse().unwrap();
        destined(proxy, &peer, &authority, &world.discovery).map(|destined| {
            let name = match destined.found {
                Found::Service(service) => service.key.to_string(),
                Found::Workload(workload) => workload.uid.to_string(),
            };
            (name, destined.at.to_string())
        })
    };
    let guarded = world.guarded.to_string();
    let found = |name: &str, at: &str| Ok((name.to_owned(), at.to_owned()));
    assert_eq!(name("10.96.0.2:80"), found(&guarded, "10.96.0.2:80"));
    assert_eq!(name("[::ffff:10.96.0.2]:80"), found(&guarded, "10.96.0.2:80"));
    assert_eq!(name("guarded.default.svc.cluster.local:80"), found(&guarded, "10.96.0.2:80"));
    let pod = "Kubernetes//Pod/default/behind";
    assert_eq!(name("10.0.0.3:8080"), found(pod, "10.0.0.3:8080"));
    assert!(matches!(name("10.96.0.2:81"), Err(InboundRefusal::NoPort(_))));
    for refused in ["10.96.0.7:80", "10.96.0.1:80", "10.0.0.2:80", "1.1.1.1:80", "x.example:80"] {
        assert!(matches!(name(refused), Err(InboundRefusal::NotHere(_))), "{refused}");
    }
}
