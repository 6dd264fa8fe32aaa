// SPDX-License-Identifier: Apache-2.0

//! The capture rules in a real kernel: what they redirect, what they leave
//! alone, and that open connections live through every change.
//!
//! A small stand-in for the tunnel listens in the pod, takes what is
//! redirected and carries it on with the tunnel's marks, so these tests say
//! something about the rules alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::zombie_processes,
    clippy::print_stdout,
    reason = "a test fails by panicking, and talks to the one that started it"
)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tunnel::agent::capture::{self, Capture, rules};
use tunnel::agent::host::HostProbes;
use tunnel::sys::{self, SocketSettings};
use waymark_tests::netns::{Pod, Topology};

/// How long something that must happen may take.
const SOON: Duration = Duration::from_secs(5);
/// How long a stalled connection is watched.
const STALLED: Duration = Duration::from_millis(500);

/// Takes what the rules redirect in one pod, and remembers where it was going.
struct Taker {
    taken: Arc<Mutex<Vec<(u16, SocketAddr, SocketAddr)>>>,
}

impl Taker {
    fn start(pod: &Pod) -> Self {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let settings =
            SocketSettings { mark: rules::TUNNEL_MARK, transparent: true, reuse_port: false };
        for port in [15001, 15006] {
            let listener = pod
                .netns
                .enter(|| sys::listen_tcp(sys::any_address(port), settings))
                .unwrap()
                .unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            let taken = Arc::clone(&taken);
            let pod = pod.clone();
            tokio::spawn(async move {
                while let Ok((stream, peer)) = listener.accept().await {
                    let target = sys::original_destination(&stream, peer).unwrap();
                    let peer = sys::canonical(peer);
                    taken.lock().unwrap().push((port, peer, target));
                    tokio::spawn(carry(stream, pod.clone(), port, peer, target));
                }
            });
        }
        Self { taken }
    }

    fn taken(&self) -> Vec<(u16, SocketAddr, SocketAddr)> {
        self.taken.lock().unwrap().clone()
    }
}

/// Carries a taken connection on, towards the application with the caller's address.
async fn carry(mut stream: TcpStream, pod: Pod, port: u16, peer: SocketAddr, target: SocketAddr) {
    let settings =
        SocketSettings { mark: rules::TUNNEL_MARK, transparent: port == 15006, reuse_port: false };
    // With the port of the caller too it would be the very connection that was taken.
    let source = (port == 15006).then(|| SocketAddr::new(peer.ip(), 0));
    let socket = pod.netns.enter(|| sys::client_tcp(target, source, settings)).unwrap().unwrap();
    if let Ok(mut onward) = socket.connect(target).await {
        let _ended = copy_bidirectional(&mut stream, &mut onward).await;
    }
}

/// Answers every byte with itself; says where callers come from.
fn echo(listener: TcpListener) -> Arc<Mutex<Vec<SocketAddr>>> {
    let callers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&callers);
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            seen.lock().unwrap().push(peer);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    callers
}

async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

async fn works(stream: &mut TcpStream, what: &str) {
    timeout(SOON, ping(stream)).await.unwrap_or_else(|_| panic!("{what}: stalled")).unwrap();
}

fn everything() -> Capture {
    Capture { probes: BTreeSet::new(), dns: true, inbound: true }
}

const FAMILIES: [bool; 2] = [false, true];

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_are_taken_both_ways_in_both_families() {
    let mut topology = Topology::new(1).unwrap();
    let (client, server) = (topology.pod(1).unwrap(), topology.pod(1).unwrap());
    for pod in [&client, &server] {
        capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
    }
    let (out, into) = (Taker::start(&client), Taker::start(&server));
    for v6 in FAMILIES {
        let target = SocketAddr::new(server.ip(v6), 8080);
        let callers = echo(server.netns.listen(target).unwrap());
        let mut stream = client.netns.connect(target).await.unwrap();
        works(&mut stream, "captured connection").await;

        let (port, _, seen) = *out.taken().last().unwrap();
        assert_eq!((port, seen), (15001, target), "outbound capture, v6 {v6}");
        let (port, peer, seen) = *into.taken().last().unwrap();
        assert_eq!((port, seen), (15006, target), "inbound capture, v6 {v6}");
        assert_eq!(peer.ip(), client.ip(v6), "caller's address, v6 {v6}");
        let caller = *callers.lock().unwrap().last().unwrap();
        assert_eq!(caller.ip(), client.ip(v6), "application sees its caller, v6 {v6}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_open_at_enrolment_go_on() {
    let mut topology = Topology::new(1).unwrap();
    let (client, server) = (topology.pod(1).unwrap(), topology.pod(1).unwrap());
    let mut open = Vec::new();
    for v6 in FAMILIES {
        let target = SocketAddr::new(server.ip(v6), 8080);
        echo(server.netns.listen(target).unwrap());
        let mut stream = client.netns.connect(target).await.unwrap();
        works(&mut stream, "before").await;
        open.push(stream);
    }
    let takers = [&client, &server].map(Taker::start);
    for pod in [&client, &server] {
        capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
    }
    for stream in &mut open {
        works(stream, "connection older than the rules").await;
    }
    for taker in &takers {
        assert_eq!(taker.taken(), [], "nothing of an old connection is redirected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_connections_live_through_renewal_and_release() {
    let mut topology = Topology::new(1).unwrap();
    let (client, server) = (topology.pod(1).unwrap(), topology.pod(1).unwrap());
    for pod in [&client, &server] {
        capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
    }
    let (out, into) = (Taker::start(&client), Taker::start(&server));
    let mut open = Vec::new();
    for v6 in FAMILIES {
        let target = SocketAddr::new(server.ip(v6), 8080);
        echo(server.netns.listen(target).unwrap());
        let mut stream = client.netns.connect(target).await.unwrap();
        works(&mut stream, "captured").await;
        open.push((target, stream));
    }
    let both = [client.netns.namespace(), server.netns.namespace()];
    for namespace in both {
        let changed = Capture { dns: false, ..everything() };
        capture::apply(namespace, &changed).await.unwrap();
        capture::apply(namespace, &everything()).await.unwrap();
    }
    for (_, stream) in &mut open {
        works(stream, "captured, after the rules were renewed").await;
    }
    for namespace in both {
        capture::release(namespace).await.unwrap();
    }
    let taken = (out.taken().len(), into.taken().len());
    for (target, stream) in &mut open {
        works(stream, "captured, after release").await;
        let mut fresh = client.netns.connect(*target).await.unwrap();
        works(&mut fresh, "new, after release").await;
    }
    assert_eq!((out.taken().len(), into.taken().len()), taken, "released pods capture nothing");
}

/// Why release is in two steps: should the kernel ever stop needing that, this tells.
#[tokio::test(flavor = "multi_thread")]
async fn removing_the_rules_at_once_stalls_captured_connections() {
    let mut topology = Topology::new(1).unwrap();
    let (client, server) = (topology.pod(1).unwrap(), topology.pod(1).unwrap());
    capture::apply(client.netns.namespace(), &everything()).await.unwrap();
    let _taker = Taker::start(&client);
    let target = SocketAddr::new(server.ip(false), 8080);
    echo(server.netns.listen(target).unwrap());
    let mut stream = client.netns.connect(target).await.unwrap();
    works(&mut stream, "captured").await;
    capture::remove(client.netns.namespace()).await.unwrap();
    let outcome = timeout(STALLED, ping(&mut stream)).await;
    assert!(!matches!(outcome, Ok(Ok(()))), "the connection went on: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_leaves_nothing_and_may_be_repeated() {
    let mut topology = Topology::new(1).unwrap();
    let pod = topology.pod(1).unwrap();
    let untouched = capture::in_force(pod.netns.namespace()).await.unwrap();
    capture::remove(pod.netns.namespace()).await.unwrap();
    capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
    let applied = capture::in_force(pod.netns.namespace()).await.unwrap();
    assert_ne!(applied, untouched);
    capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
    assert_eq!(capture::in_force(pod.netns.namespace()).await.unwrap(), applied, "twice is once");
    for _ in 0..2 {
        capture::remove(pod.netns.namespace()).await.unwrap();
        assert_eq!(capture::in_force(pod.netns.namespace()).await.unwrap(), untouched);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_passes_on_named_ports_only() {
    let mut topology = Topology::new(1).unwrap();
    let pod = topology.pod(1).unwrap();
    let taker = Taker::start(&pod);
    let probed = |ip: IpAddr| SocketAddr::new(ip, 8080);
    let capture = Capture { probes: FAMILIES.map(|v6| probed(pod.ip(v6))).into(), ..everything() };
    capture::apply(pod.netns.namespace(), &capture).await.unwrap();
    let node = topology.node(1).netns.clone();
    tunnel::agent::host::apply(node.namespace(), &capture.probes, 0).await.unwrap();
    for v6 in FAMILIES {
        let source: IpAddr = match v6 {
            false => rules::PROBE_SOURCE_V4.into(),
            true => rules::PROBE_SOURCE_V6.into(),
        };
        for (port, exempt) in [(8080, true), (8081, false)] {
            let target = SocketAddr::new(pod.ip(v6), port);
            let callers = echo(pod.netns.listen(target).unwrap());
            let before = taker.taken().len();
            let mut stream = node.connect(target).await.unwrap();
            works(&mut stream, "probe").await;
            let caller = callers.lock().unwrap().last().unwrap().ip();
            assert_eq!(caller == source, exempt, "{target} sees {caller}");
            assert_eq!(taker.taken().len() == before, exempt, "{target} is not captured");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_together_share_the_exemption() {
    let topology = Topology::new(1).unwrap();
    let node = topology.node(1).netns.clone();
    let host = Arc::new(HostProbes::new(node.namespace().try_clone().unwrap(), 0));
    let pods: Vec<(Arc<str>, SocketAddr)> = (1..=20)
        .map(|n: u16| (n.to_string().into(), SocketAddr::from(([10, 9, 8, 7], n))))
        .collect();
    let exempt = || {
        let listed = node.run("nft", &["-j", "list", "table", "inet", "istio-ambient-nat"]);
        let text = listed.unwrap();
        pods.iter()
            .filter(|(_, pod)| text.contains(&format!("\"10.9.8.7\", {}]", pod.port())))
            .count()
    };
    let each = |probes: fn(SocketAddr) -> BTreeSet<SocketAddr>| {
        let set = |(uid, pod): &(Arc<str>, SocketAddr)| {
            let (host, uid, probes) = (Arc::clone(&host), Arc::clone(uid), probes(*pod));
            async move { host.set(&uid, probes).await }
        };
        futures_util::future::join_all(pods.iter().map(set))
    };
    assert!(each(|pod| [pod].into()).await.iter().all(Result::is_ok));
    assert_eq!(exempt(), 20, "each is in force when its call returns");
    assert!(
        each(|pod| if pod.port() > 5 { BTreeSet::new() } else { [pod].into() })
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(exempt(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn ingress_mode_leaves_inbound_alone() {
    let mut topology = Topology::new(1).unwrap();
    let pod = topology.pod(1).unwrap();
    let taker = Taker::start(&pod);
    let capture = Capture { inbound: false, ..everything() };
    capture::apply(pod.netns.namespace(), &capture).await.unwrap();
    for v6 in FAMILIES {
        let target = SocketAddr::new(pod.ip(v6), 8080);
        echo(pod.netns.listen(target).unwrap());
        let mut stream = topology.node(1).netns.connect(target).await.unwrap();
        works(&mut stream, "inbound").await;
    }
    assert_eq!(taker.taken(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_queries_reach_the_tunnel_over_udp_and_tcp() {
    let mut topology = Topology::new(1).unwrap();
    let pod = topology.pod(1).unwrap();
    capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
    let loopbacks: [SocketAddr; 2] =
        ["127.0.0.1:15053".parse().unwrap(), "[::1]:15053".parse().unwrap()];
    for (v6, loopback) in FAMILIES.into_iter().zip(loopbacks) {
        let server = pod.netns.udp(loopback).unwrap();
        tokio::spawn(async move {
            let mut query = [0; 64];
            while let Ok((len, from)) = server.recv_from(&mut query).await {
                server.send_to(&query[..len], from).await.unwrap();
            }
        });
        echo(pod.netns.listen(loopback).unwrap());
        let asked = SocketAddr::new(topology_dns(v6), 53);
        let any: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
        let client = pod.netns.udp(any).unwrap();
        client.connect(asked).await.unwrap();
        client.send(b"who?").await.unwrap();
        let mut answer = [0; 8];
        let len = timeout(SOON, client.recv(&mut answer)).await.expect("UDP answer").unwrap();
        assert_eq!(&answer[..len], b"who?", "v6 {v6}");
        let mut stream = timeout(SOON, pod.netns.connect(asked)).await.unwrap().unwrap();
        works(&mut stream, "TCP query").await;
    }
}

fn topology_dns(v6: bool) -> IpAddr {
    let address = if v6 { "fd00:10:96::a" } else { "10.96.0.10" };
    address.parse().unwrap()
}

/// The test runs itself as the process that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_a_killed_test_go_when_the_next_one_starts() {
    const KILLED: &str = "WAYMARK_TEST_IS_KILLED";
    if std::env::var_os(KILLED).is_some() {
        let mut topology = Topology::new(1).unwrap();
        let pod = topology.pod(1).unwrap();
        capture::apply(pod.netns.namespace(), &everything()).await.unwrap();
        let mut sleeper = std::process::Command::new("sleep");
        sleeper.arg("600").stdout(std::process::Stdio::null());
        let sleeper = pod.netns.enter(|| sleeper.spawn()).unwrap().unwrap();
        println!("\nready {}", sleeper.id());
        std::future::pending::<()>().await;
    }
    let name = "namespaces_of_a_killed_test_go_when_the_next_one_starts";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(KILLED, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let sleeper: u32 = lines
        .find_map(|line| line.unwrap().strip_prefix("ready ").map(|pid| pid.parse().unwrap()))
        .expect("the other process made its namespaces");
    let mine = format!("wmtest-{}.", child.id());
    let left = || {
        let names = std::fs::read_dir("/run/netns").unwrap();
        names
            .filter(|name| name.as_ref().unwrap().file_name().to_str().unwrap().starts_with(&mine))
            .count()
    };
    assert_eq!(left(), 3, "fabric, node and pod");
    child.kill().unwrap();
    child.wait().unwrap();
    let _topology = Topology::new(1).unwrap();
    // Another test may be at it at this moment.
    let begun = std::time::Instant::now();
    while left() != 0 || is_running(sleeper) {
        assert!(begun.elapsed() < SOON, "{} namespaces are left", left());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_running(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}
