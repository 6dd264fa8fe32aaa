// SPDX-License-Identifier: Apache-2.0

//! Captured pods in real network namespaces: rules by the agent, sessions by
//! the tunnels, every topology from a table. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use policy::authz::{
    Action, Authorization, Clause, Field, Match, PolicyName, Rule, Scope, StringMatch,
};
use routing::delta::{Kind, Resource};
use routing::discovery::{AppProtocol, Port, Service, ServiceKey, VirtualAddress, Workload};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tunnel::settings::Limits;
use waymark_tests::netns::{Netns, Pod};
use waymark_tests::node::{SOON, Tunnel, World};

mod netns {
    mod bulk;
    mod chain;
    mod matrix;
    mod rotation;
    mod secrecy;
    mod spans;
    pub(crate) mod talk;
}

use netns::talk::{ECHO, Talk, applications};

/// One message there and back.
async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut got = [0; 4];
    stream.read_exact(&mut got).await?;
    assert_eq!(&got, b"ping");
    Ok(())
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Two pods that are known to all tunnels, and applications in the second.
struct Pair {
    client: Pod,
    server: Pod,
    callers: mpsc::UnboundedReceiver<SocketAddr>,
}

impl Pair {
    async fn new(world: &mut World, name: &str, captured: (bool, bool), nodes: (u8, u8)) -> Self {
        let client = world.topology.pod(nodes.0).unwrap();
        let server = world.topology.pod(nodes.1).unwrap();
        let names = [format!("client-{name}"), format!("server-{name}")];
        let workloads = [
            world.workload(&names[0], &client, captured.0).unwrap(),
            world.workload(&names[1], &server, captured.1).unwrap(),
        ];
        put(world, workloads);
        let callers = applications(&server);
        if captured.0 {
            world.enrol(&names[0], &client).await.unwrap();
        }
        if captured.1 {
            world.enrol(&names[1], &server).await.unwrap();
        }
        Self { client, server, callers }
    }

    async fn connect(&self, port: u16, v6: bool) -> std::io::Result<TcpStream> {
        self.client.netns.connect(SocketAddr::new(self.server.ip(v6), port)).await
    }
}

fn put(world: &mut World, workloads: impl IntoIterator<Item = Workload>) {
    let resources: Vec<_> =
        workloads.into_iter().map(|one| Resource::Workload(Arc::new(one))).collect();
    world.tell(Kind::Address, &resources, &[]).unwrap();
}

fn service(name: &str, vip: &str, port: u16, target: u16) -> Service {
    let key: ServiceKey = format!("shop/{name}.shop.svc.cluster.local").parse().unwrap();
    let mut service = Service::new(key);
    service.addresses = vec![VirtualAddress::single("".into(), vip.parse().unwrap())];
    let port = Port { service_port: port, target_port: target, app_protocol: AppProtocol::Tcp };
    service.ports = vec![port];
    service
}

/// A service with a port for each kind of traffic, and an address of each family.
fn service_for_all(name: &str, number: u8) -> (Service, [IpAddr; 2]) {
    let addresses = [format!("10.96.1.{number}"), format!("fd00:10:96::1:{number}")];
    let addresses = addresses.map(|ip| ip.parse().unwrap());
    let mut service = service(name, "10.96.1.1", 80, ECHO);
    service.addresses = addresses.map(|ip| VirtualAddress::single("".into(), ip)).into();
    service.ports = Talk::ALL.map(Talk::service_port).into();
    (service, addresses)
}

fn behind(mut workload: Workload, service: &Service) -> Workload {
    workload.services.insert(service.key.clone(), service.ports.as_slice().into());
    workload
}

/// Asks for a name, its parts each after its length; the id is 0x1234.
async fn query(from: &Netns, name: &str, kind: u8) -> UdpSocket {
    let socket = from.udp("0.0.0.0:0".parse::<SocketAddr>().unwrap()).unwrap();
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend_from_slice(name.as_bytes());
    query.extend_from_slice(&[0, kind, 0, 1]);
    socket.send_to(&query, "10.96.0.10:53").await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_query_of_a_pod_that_is_not_yet_known_waits_for_the_controller() {
    let mut world = World::new(1, Limits::default()).unwrap();
    let pod = world.topology.pod(1).unwrap();
    world.enrol("client-early", &pod).await.unwrap();
    let socket = query(&pod.netns, "\x03web\x00", 1).await;
    let mut answer = [0; 512];
    let early = timeout(Duration::from_millis(300), socket.recv_from(&mut answer)).await;
    assert!(early.is_err(), "nothing is known of the pod yet: {answer:?}");
    let client = world.workload("client-early", &pod, true).unwrap();
    let web = service("web", "10.96.0.7", 80, ECHO);
    let resources = [Resource::Service(Arc::new(web)), Resource::Workload(Arc::new(client))];
    world.tell(Kind::Address, &resources, &[]).unwrap();
    let (length, _) = soon("a name", socket.recv_from(&mut answer)).await.unwrap();
    assert_eq!(answer[3] & 0xf, 0, "no error");
    assert_eq!(answer[length - 4..length], [10, 96, 0, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_reached_by_address_and_name_and_dead_endpoints_are_passed_over() {
    let mut world = World::new(2, Limits::default()).unwrap();
    let pair = Pair::new(&mut world, "vip", (true, true), (1, 2)).await;
    let web = service("web", "10.96.0.7", 80, ECHO);
    let alive = behind(world.workload("server-vip", &pair.server, true).unwrap(), &web);
    // Nobody has this address; its connection is refused on the bridge of node 2.
    let mut dead = behind(world.workload("dead", &pair.server, true).unwrap(), &web);
    dead.pod_uid = Some("dead".into());
    dead.addresses = vec!["10.244.2.1".parse().unwrap()];
    let resources = [
        Resource::Service(Arc::new(web)),
        Resource::Workload(Arc::new(alive)),
        Resource::Workload(Arc::new(dead)),
    ];
    world.tell(Kind::Address, &resources, &[]).unwrap();
    for round in 0..20 {
        let target: SocketAddr = "10.96.0.7:80".parse().unwrap();
        let mut stream = pair.client.netns.connect(target).await.unwrap();
        soon("a service", ping(&mut stream)).await.unwrap_or_else(|e| panic!("{round}: {e}"));
    }
    let lookup = [
        // name, type, answer's last four bytes
        ("\x03web\x00", 1_u8, Some([10, 96, 0, 7])),
        ("\x03web\x04shop\x03svc\x07cluster\x05local\x00", 1, Some([10, 96, 0, 7])),
        ("\x03web\x00", 28, None),
    ];
    for (name, kind, want) in lookup {
        let socket = query(&pair.client.netns, name, kind).await;
        let mut answer = [0; 512];
        let (length, _) = soon("a name", socket.recv_from(&mut answer)).await.unwrap();
        assert_eq!(answer[..2], [0x12, 0x34]);
        assert_eq!(answer[3] & 0xf, 0, "{name:?}: no error");
        match want {
            Some(ip) => assert_eq!(answer[length - 4..length], ip, "{name:?}"),
            None => assert_eq!(answer[7], 0, "{name:?} has no such address"),
        }
    }
    let asked = async |kind: &str| {
        let labels = ["source_canonical_service=\"client-vip\"", kind];
        world.tunnel(1).unwrap().count("istio_dns_requests_total", &labels).await.unwrap()
    };
    assert_eq!((asked("\"A\"").await, asked("\"AAAA\"").await), (2.0, 1.0), "counted");
}

fn account(name: &str) -> StringMatch {
    StringMatch::Exact(format!("cluster.local/ns/shop/sa/{name}").into())
}

fn deny(name: &str, who: &str) -> Resource {
    deny_where(PolicyName::new("shop", name), Field { any: vec![account(who)], not: vec![] })
}

/// What the guard of a waypoint looks like to a tunnel.
fn deny_all_but(name: &str, who: &str) -> Resource {
    deny_where(PolicyName::new("shop", name), Field { any: vec![], not: vec![account(who)] })
}

fn deny_where(name: PolicyName, principals: Field<StringMatch>) -> Resource {
    let matching = Match { principals, ..Match::default() };
    Resource::Authorization(Arc::new(Authorization {
        name,
        scope: Scope::Selector,
        action: Action::Deny,
        dry_run: false,
        unsupported: None,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![matching] }] }],
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_refuses_new_sessions_and_ends_open_ones() {
    let mut world = World::new(2, Limits::default()).unwrap();
    let pair = Pair::new(&mut world, "authz", (true, true), (1, 2)).await;
    let mut open = pair.connect(ECHO, false).await.unwrap();
    ping(&mut open).await.unwrap();

    // Listed before it arrives: a new session waits for it, an open one goes on.
    let mut server = world.workload("server-authz", &pair.server, true).unwrap();
    server.authorization_policies = vec![PolicyName::new("shop", "no-client")];
    put(&mut world, [server.clone()]);
    ping(&mut open).await.unwrap();
    let mut waiting = pair.connect(ECHO, false).await.unwrap();
    let early = timeout(Duration::from_millis(300), ping(&mut waiting)).await;
    assert!(early.is_err(), "a policy that has not arrived holds the session");

    world.tell(Kind::Authorization, &[deny("no-client", "client-authz")], &[]).unwrap();
    assert!(soon("revocation", ping_until_cut(&mut open)).await, "the open session is cut");
    soon("refusal", ping(&mut waiting)).await.expect_err("the waiting session is refused");
    let mut refused = pair.connect(ECHO, false).await.unwrap();
    soon("refusal", ping(&mut refused)).await.expect_err("a new session is refused");

    world.tell(Kind::Authorization, &[deny("no-client", "somebody-else")], &[]).unwrap();
    let mut allowed = pair.connect(ECHO, false).await.unwrap();
    soon("permission", ping(&mut allowed)).await.unwrap();
    let denied = world.tunnel(2).unwrap();
    let denied = denied.count("istio_tcp_connections_failed_total", &["DENY"]).await.unwrap();
    assert_eq!(denied, 2.0);
}

async fn ping_until_cut(stream: &mut TcpStream) -> bool {
    loop {
        if ping(stream).await.is_err() {
            return true;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_comes_back_never_meets_the_old_pods_connection() {
    let mut world = World::new(2, Limits::default()).unwrap();
    let Pair { client, server, callers } =
        Pair::new(&mut world, "reuse", (true, true), (1, 2)).await;
    let target = SocketAddr::new(server.ip(false), ECHO);
    let mut first = client.netns.connect(target).await.unwrap();
    ping(&mut first).await.unwrap();
    drop(callers);

    let old_uid = waymark_tests::node::uid_of(&server);
    world.nodes[1].agent.let_go(&old_uid);
    let again = world.topology.replace(server).unwrap();
    // The client's tunnel still believes the old pod is there.
    let mut callers = applications(&again);
    let heir = world.workload("heir", &again, true).unwrap();
    world.nodes[1]
        .tunnel
        .tell(
            Kind::Address,
            &[Resource::Workload(Arc::new(heir.clone()))],
            &["Kubernetes//Pod/shop/server-reuse"],
        )
        .unwrap();
    world.enrol("heir", &again).await.unwrap();
    let mut stale = client.netns.connect(target).await.unwrap();
    soon("a stale destination", ping(&mut stale)).await.expect_err("not for this pod");
    assert!(callers.try_recv().is_err(), "no byte reached the new pod");

    world.nodes[0]
        .tunnel
        .tell(
            Kind::Address,
            &[Resource::Workload(Arc::new(heir))],
            &["Kubernetes//Pod/shop/server-reuse"],
        )
        .unwrap();
    let mut fresh = client.netns.connect(target).await.unwrap();
    soon("the new destination", ping(&mut fresh)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_connections_obey_the_mode_of_the_pod() {
    let mut world = World::new(1, Limits::default()).unwrap();
    let outside = Pair::new(&mut world, "strict", (false, true), (1, 1)).await;
    let mut open = outside.connect(ECHO, true).await.unwrap();
    soon("permissive", ping(&mut open)).await.unwrap();

    let strict = PolicyName::new("istio-system", "istio_converted_static_strict");
    let presence = Field { any: vec![], not: vec![StringMatch::Presence] };
    let policy = deny_where(strict.clone(), presence);
    world.tell(Kind::Authorization, &[policy], &[]).unwrap();
    let mut server = world.workload("server-strict", &outside.server, true).unwrap();
    server.authorization_policies = vec![strict];
    put(&mut world, [server]);
    assert!(soon("strict", ping_until_cut(&mut open)).await, "an open plain session is cut");
    let mut refused = outside.connect(ECHO, false).await.unwrap();
    soon("strict", ping(&mut refused)).await.expect_err("plain bytes into a STRICT pod");

    let inside = world.topology.pod(1).unwrap();
    let client = world.workload("client-inside", &inside, true).unwrap();
    put(&mut world, [client]);
    world.enrol("client-inside", &inside).await.unwrap();
    let target = SocketAddr::new(outside.server.ip(false), ECHO);
    let mut proven = inside.netns.connect(target).await.unwrap();
    soon("mutual TLS", ping(&mut proven)).await.expect("an identity is all that STRICT asks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_replaced_loses_no_connection() {
    let mut world = World::new(1, Limits::default()).unwrap();
    let pair = Pair::new(&mut world, "upgrade", (true, true), (1, 1)).await;
    let mut open = pair.connect(ECHO, false).await.unwrap();
    ping(&mut open).await.unwrap();
    let target = SocketAddr::new(pair.server.ip(false), ECHO);
    let (end, ended) = tokio::sync::watch::channel(false);
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, ended) = (pair.client.netns.clone(), ended.clone());
            tokio::spawn(async move {
                let mut served = 0;
                while !*ended.borrow() {
                    let mut stream = client.connect(target).await.expect("a connection");
                    soon("an exchange", ping(&mut stream)).await.expect("an exchange");
                    served += 1;
                }
                served
            })
        })
        .collect();

    let socket = world.nodes[0].folder().join("ztunnel.sock");
    let mut successor =
        Tunnel::start(&socket, Arc::clone(&world.issuer) as _, Limits::default(), None).unwrap();
    let known = [
        world.workload("client-upgrade", &pair.client, true).unwrap(),
        world.workload("server-upgrade", &pair.server, true).unwrap(),
    ];
    let known = known.map(|one| Resource::Workload(Arc::new(one)));
    successor.tell(Kind::Address, &known, &[]).unwrap();
    let serves = async {
        while successor.pods.uids().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the successor", serves).await;
    world.nodes[0].tunnel.pods.remove_all();
    let opened = async {
        let labels = ["source_workload=\"client-upgrade\""];
        while successor.count("istio_tcp_connections_opened_total", &labels).await.unwrap() < 100.0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the successor's sessions", opened).await;
    ping(&mut open).await.expect("a session of the old tunnel goes on");
    end.send(true).unwrap();
    for task in load {
        assert!(task.await.expect("no connection was lost") > 0);
    }
    drop(open);
    let old = &world.nodes[0].tunnel.sessions;
    old.close();
    soon("the old tunnel's sessions", old.wait()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_after_its_own_end_ends_the_session() {
    let mut world = World::new(2, Limits::default()).unwrap();
    let pair = Pair::new(&mut world, "reset", (true, true), (1, 2)).await;
    let target = SocketAddr::new(pair.server.ip(false), 9000);
    let listener = pair.server.netns.listen(target).unwrap();
    let mut client = pair.client.netns.connect(target).await.unwrap();
    let (mut server, _) = soon("a connection", listener.accept()).await.unwrap();
    server.write_all(b"last words").await.unwrap();
    server.shutdown().await.unwrap();
    let mut heard = String::new();
    soon("the server's end", client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "last words");
    client.write_all(b"still talking").await.unwrap();
    let mut got = [0; 13];
    soon("the other direction", server.read_exact(&mut got)).await.unwrap();

    server.set_zero_linger().unwrap();
    drop(server);
    let sessions = &world.tunnel(1).unwrap().sessions;
    let ended = async {
        while !sessions.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the session's end, though the client says nothing", ended).await;
}
