// SPDX-License-Identifier: Apache-2.0

//! Pods come into the mesh and leave it under load: no request is lost.
//!
//! Agent and tunnel are those that ship; the test plays the controller and
//! keeps its order: a pod is published as HBONE after its proof, and taken back
//! before it is released. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use routing::delta::{Kind, Resource};
use tunnel::agent::enrol::Standing;
use tunnel::settings::Limits;
use waymark_tests::load::http::{self, Load};
use waymark_tests::load::{Report, Until, serve};
use waymark_tests::netns::Pod;
use waymark_tests::node::{SOON, World, uid_of};

const PORT: u16 = 8080;

/// Requests of one client pod: both families, fresh connections and kept ones.
struct Clients {
    until: Until,
    threads: Vec<(String, std::thread::JoinHandle<Report>)>,
}

impl Clients {
    fn start(client: &Pod, server: &Pod) -> Self {
        let until = Until::after(Duration::from_secs(120));
        let mut threads = Vec::new();
        for v6 in [false, true] {
            for fresh in [false, true] {
                let address = SocketAddr::new(server.ip(v6), PORT);
                let load =
                    Load { clients: 4, fresh, rate: Some(50), ..Load::get(address, "server", "/") };
                let (netns, until) = (client.netns.clone(), until.clone());
                let name = format!("v6 {v6}, fresh {fresh}");
                let run = move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    netns.enter(|| runtime.block_on(http::run(&load, &until))).unwrap()
                };
                threads.push((name, std::thread::spawn(run)));
            }
        }
        Self { until, threads }
    }

    fn finish(self) -> Vec<(String, Report)> {
        self.until.stop();
        self.threads.into_iter().map(|(name, thread)| (name, thread.join().unwrap())).collect()
    }
}

fn publish(world: &mut World, name: &str, pod: &Pod, captured: bool) {
    let workload = world.workload(name, pod, captured).unwrap();
    world.tell(Kind::Address, &[Resource::Workload(Arc::new(workload))], &[]).unwrap();
}

/// Lets time pass in which the load meets the state just reached.
async fn dwell() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}

async fn released(world: &World, pod: &Pod) {
    let agent = &world.nodes[usize::from(pod.node) - 1].agent;
    let uid = uid_of(pod);
    agent.let_go(&uid);
    let begun = Instant::now();
    loop {
        let report = agent.report().into_iter().find(|one| *one.uid == *uid).unwrap();
        // Rules capture nothing any more; kept connections drain on.
        if report.standing == Standing::Released || report.reason.contains("drain") {
            return;
        }
        assert!(begun.elapsed() < SOON, "{report:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn come_and_go(nodes: (u8, u8)) {
    let mut world = World::new(2, Limits::default()).unwrap();
    let client = world.topology.pod(nodes.0).unwrap();
    let server = world.topology.pod(nodes.1).unwrap();
    for v6 in [false, true] {
        let listener = server.netns.listen(SocketAddr::new(server.ip(v6), PORT)).unwrap();
        tokio::spawn(serve::http(listener, "server".to_owned(), 100));
    }
    publish(&mut world, "client", &client, false);
    publish(&mut world, "server", &server, false);
    // The first ones keep connections from before, the others from within the mesh.
    let mut all_clients = vec![("early", Clients::start(&client, &server))];
    dwell().await;
    for round in 0..2 {
        for (name, pod) in [("client", &client), ("server", &server)] {
            world.enrol(name, pod).await.unwrap();
            dwell().await;
            publish(&mut world, name, pod, true);
            dwell().await;
        }
        let mutual = ["connection_security_policy=\"mutual_tls\""];
        let opened = "istio_tcp_connections_opened_total";
        let tunnels = world.tunnel(nodes.1).unwrap();
        assert!(tunnels.count(opened, &mutual).await.unwrap() > 0.0, "round {round}: no HBONE");
        if round == 0 {
            all_clients.push(("late", Clients::start(&client, &server)));
            dwell().await;
        }
        for (name, pod) in [("server", &server), ("client", &client)] {
            publish(&mut world, name, pod, false);
            dwell().await;
            released(&world, pod).await;
            dwell().await;
        }
    }
    // Longer than tunnels drain when they are told to leave: kept connections are not cut.
    tokio::time::sleep(Limits::default().drain + Duration::from_secs(1)).await;
    for (when, clients) in all_clients {
        for (name, report) in clients.finish() {
            assert!(report.good > 200, "{nodes:?}, {when}, {name}: {report:?}");
            assert_eq!(report.failures(), 0, "{nodes:?}, {when}, {name}: {report:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_between_pods_of_one_node() {
    come_and_go((1, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_between_nodes() {
    come_and_go((1, 2)).await;
}
