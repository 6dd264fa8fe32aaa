// SPDX-License-Identifier: Apache-2.0

//! Certificates are replaced under live traffic, and nobody notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use routing::delta::{Kind, Resource};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tunnel::settings::Limits;
use waymark_tests::certs::Life;
use waymark_tests::netns::Netns;
use waymark_tests::node::World;

use super::talk::Talk;
use crate::{Pair, behind, ping, put, service_for_all, soon};

/// Signed with most of its life behind it: due for renewal after one second, and good for
/// eleven, so that a busy machine misses no deadline.
const SHORT: Life = Life { past: Duration::from_secs(9), left: Duration::from_secs(11) };

/// Renewals of each certificate that are waited for; the first one has expired by then.
const RENEWALS: usize = 12;

/// One connection that stays open and is used all the time.
async fn keep(mut stream: TcpStream, name: String, ended: watch::Receiver<bool>) -> usize {
    let mut count = 0;
    while !*ended.borrow() {
        soon(&name, ping(&mut stream)).await.unwrap_or_else(|e| panic!("{name} was cut: {e}"));
        count += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    count
}

/// A new connection for every exchange.
async fn renew(
    client: Netns,
    target: SocketAddr,
    talk: Talk,
    ended: watch::Receiver<bool>,
) -> usize {
    let name = format!("{target} {talk:?}");
    let mut count = 0;
    while !*ended.borrow() {
        let stream = soon(&name, client.connect(target)).await.expect(&name);
        let exchange = soon(&name, talk.exchange(stream, b"word")).await;
        exchange.unwrap_or_else(|error| panic!("{name}, after {count}: {error:#}"));
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotate_under_traffic_without_a_cut_or_failed_connection() {
    let mut world = World::new(2, Limits::default()).unwrap();
    world.issuer.set_life(SHORT);
    world.gateway("waypoint", 1, true).await.unwrap();
    let pair = Pair::new(&mut world, "rotate", (true, true), (1, 2)).await;
    let (mut service, addresses) = service_for_all("rotate", 1);
    service.waypoint = Some(world.gateways[0].address());
    let server = behind(world.workload("server-rotate", &pair.server, true).unwrap(), &service);
    world.tell(Kind::Address, &[Resource::Service(Arc::new(service))], &[]).unwrap();
    put(&mut world, [server]);

    let (end, ended) = watch::channel(false);
    let mut tasks = Vec::new();
    let by_pod = |talk: Talk| SocketAddr::new(pair.server.ip(true), talk.port());
    let by_service = |talk: Talk| SocketAddr::new(addresses[0], talk.service_port().service_port);
    for target in [by_pod(Talk::Raw), by_service(Talk::Raw)] {
        let stream = pair.client.netns.connect(target).await.unwrap();
        let name = format!("the open connection to {target}");
        tasks.push(tokio::spawn(keep(stream, name, ended.clone())));
    }
    for talk in [Talk::Raw, Talk::Http2] {
        for target in [by_pod(talk), by_service(talk)] {
            let client = pair.client.netns.clone();
            tasks.push(tokio::spawn(renew(client, target, talk, ended.clone())));
        }
    }
    let names = ["client-rotate", "server-rotate", "waypoint"];
    let before = names.map(|name| world.issuer.signed(name));
    let rotated = async {
        while names.iter().zip(before).any(|(name, old)| world.issuer.signed(name) < old + RENEWALS)
            && !tasks.iter().any(tokio::task::JoinHandle::is_finished)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), rotated).await.expect("renewals");
    end.send(true).unwrap();
    for task in tasks {
        assert!(task.await.expect("no connection was cut or has failed") > 20);
    }
}
