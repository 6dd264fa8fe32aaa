// SPDX-License-Identifier: Apache-2.0

//! Every way between two pods carries every kind of traffic: captured or not, same or
//! other node, with or without a waypoint, IPv4 and IPv6.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use policy::authz::PolicyName;
use routing::delta::{Kind, Resource};
use tunnel::settings::Limits;
use waymark_tests::node::World;

use super::talk::Talk;
use crate::{Pair, behind, deny_all_but, ping, put, service_for_all, soon};

/// Enough for several frames of every protocol on the way.
const WORD: usize = 100_000;

/// One way.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Way {
    /// The client is captured.
    from: bool,
    /// The server is captured.
    to: bool,
    /// Both on node 1; else the server is on node 2.
    near: bool,
    /// The service has a waypoint, and the server is guarded.
    waypoint: bool,
}

fn all_ways() -> Vec<Way> {
    let bit = |index: u32, bit: u32| index & (1 << bit) != 0;
    (0..16)
        .map(|at| Way { from: bit(at, 0), to: bit(at, 1), near: bit(at, 2), waypoint: bit(at, 3) })
        .collect()
}

impl Way {
    fn name(self) -> String {
        let word =
            |yes: bool, one: &'static str, other: &'static str| if yes { one } else { other };
        format!(
            "{}-{}-{}-{}",
            word(self.from, "in", "out"),
            word(self.to, "in", "out"),
            word(self.near, "near", "far"),
            word(self.waypoint, "waypoint", "direct"),
        )
    }

    fn node(self) -> u8 {
        if self.near { 1 } else { 2 }
    }

    /// Bytes of a client outside the mesh pass no waypoint, so a guarded pod refuses them.
    fn is_refused(self) -> bool {
        self.waypoint && self.to && !self.from
    }
}

/// Asks by the address of the service where a waypoint is on the way, else by the pod's.
async fn one_way(world: &mut World, way: Way, number: u8) {
    let name = way.name();
    let mut pair = Pair::new(world, &name, (way.from, way.to), (1, way.node())).await;
    let (mut service, addresses) = service_for_all(&name, number);
    let server = world.workload(&format!("server-{name}"), &pair.server, way.to).unwrap();
    let mut server = behind(server, &service);
    if way.waypoint {
        service.waypoint = Some(world.gateways[0].address());
        server.authorization_policies = vec![PolicyName::new("shop", "guard")];
    }
    world.tell(Kind::Address, &[Resource::Service(Arc::new(service))], &[]).unwrap();
    put(world, [server]);
    let word: Vec<u8> = (0..WORD).map(|at| at.to_le_bytes()[at % 3]).collect();
    for v6 in [false, true] {
        for talk in Talk::ALL {
            let cell = format!("{name} v6={v6} {talk:?}");
            let by_pod = SocketAddr::new(pair.server.ip(v6), talk.port());
            let by_service =
                SocketAddr::new(addresses[usize::from(v6)], talk.service_port().service_port);
            let target = if way.from && way.waypoint { by_service } else { by_pod };
            let stream = soon(&cell, pair.client.netns.connect(target)).await.expect(&cell);
            let outcome = soon(&cell, talk.exchange(stream, &word)).await;
            if way.is_refused() {
                outcome.expect_err(&cell);
                continue;
            }
            outcome.context(cell.clone()).unwrap();
            let who = if way.from && way.waypoint { &world.gateways[0].pod } else { &pair.client };
            let own = [who.ip(false), who.ip(true)];
            // A waypoint may use a connection again, and choose the family.
            let mut called = way.waypoint;
            while let Ok(caller) = pair.callers.try_recv() {
                assert!(own.contains(&caller.ip()), "{cell}: {caller} is none of {own:?}");
                assert!(way.waypoint || caller.is_ipv6() == v6, "{cell}: {caller}");
                called = true;
            }
            assert!(called, "{cell}: the application was called");
        }
    }
    if way.waypoint && way.to && way.from {
        let mut around = pair.connect(super::talk::ECHO, false).await.unwrap();
        soon(&name, ping(&mut around)).await.expect_err("a guarded pod is not reached directly");
    }
    check_security(world, way).await;
}

/// What the tunnel of the server's node has counted for it.
async fn check_security(world: &World, way: Way) {
    let name = way.name();
    let server = format!("destination_workload=\"server-{name}\"");
    let client = match way.waypoint {
        true => "source_workload=\"waypoint\"".to_owned(),
        false => format!("source_workload=\"client-{name}\""),
    };
    let tunnel = world.tunnel(way.node()).unwrap();
    let opened = async |labels: &[&str]| {
        tunnel.count("istio_tcp_connections_opened_total", labels).await.unwrap()
    };
    let at_destination = ["reporter=\"destination\"", &*server];
    let mutual = opened(&[&at_destination[..], &[&*client, "mutual_tls"]].concat()).await;
    let all = opened(&at_destination).await;
    let talks = 2.0 * 5.0;
    match (way.from, way.to) {
        (true, true) if way.waypoint => {
            assert!(mutual >= 1.0 && mutual == all, "{name}: {mutual} of {all} by the waypoint");
        }
        (true, true) => assert_eq!((mutual, all), (talks, talks), "{name}: by mutual TLS"),
        (false, true) if way.is_refused() => assert_eq!(all, 0.0, "{name}: none"),
        (false, true) => assert_eq!((mutual, all), (0.0, talks), "{name}: plain"),
        (_, false) => assert_eq!(all, 0.0, "{name}: the server is outside"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_between_two_pods_carries_every_kind_of_traffic() {
    let mut world = World::new(2, Limits::default()).unwrap();
    world.gateway("waypoint", 1, true).await.unwrap();
    world.tell(Kind::Authorization, &[deny_all_but("guard", "waypoint")], &[]).unwrap();
    let ways = all_ways();
    assert_eq!(ways.iter().collect::<BTreeSet<_>>().len(), 16, "each once");
    for (number, way) in (1..).zip(ways) {
        one_way(&mut world, way, number).await;
    }
}
