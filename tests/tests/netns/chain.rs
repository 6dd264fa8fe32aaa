// SPDX-License-Identifier: Apache-2.0

//! Waypoints one after the other: each service's own is passed, and none twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use routing::delta::{Change, Kind, Resource};
use routing::discovery::{AppProtocol, Port, Service};
use routing::matching::{HeaderMatch, RequestMatch, TextMatch};
use routing::route::Rule;
use tokio::net::TcpStream;
use tunnel::settings::Limits;
use waymark_tests::load::serve;
use waymark_tests::mesh::{on_service, rule, to};
use waymark_tests::netns::{Netns, Pod};
use waymark_tests::node::{SOON, World};

use crate::{behind, put, service, soon};

const PORT: u16 = 8082;

/// One request with these headers: its status, and the name of who answered.
async fn ask(from: &Netns, to: SocketAddr, headers: &[&str]) -> (StatusCode, String) {
    let row = format!("{to} {headers:?}");
    let exchange = async {
        let stream: TcpStream = from.connect(to).await?;
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::get("/").header("host", "shop");
        for name in headers {
            request = request.header(*name, "yes");
        }
        let response = send.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let served = response.headers().get("x-served-by").cloned();
        let status = response.status();
        response.into_body().collect().await?;
        anyhow::Ok((status, served.map(|by| by.to_str().unwrap().to_owned()).unwrap_or_default()))
    };
    soon(&row, exchange).await.expect(&row)
}

/// A rule of `service` for requests with `header`, to `backend`.
fn with_header(service: &str, header: &str, backend: &str) -> Rule {
    let name = format!("HTTPRoute/shop/{service}-{header}");
    let mut rule = on_service(rule(&name, &[], vec![to(backend, 1).unwrap()]).unwrap(), service);
    let rule = rule.as_mut().unwrap();
    let value = TextMatch::Exact("yes".into());
    let headers = vec![HeaderMatch { name: header.parse().unwrap(), value }];
    rule.matches = vec![RequestMatch { headers, ..RequestMatch::any() }];
    rule.clone()
}

/// Everything of `service`, to itself.
fn rest(service: &str) -> Rule {
    let name = format!("HTTPRoute/shop/{service}-rest");
    on_service(rule(&name, &[], vec![to(service, 1).unwrap()]).unwrap(), service).unwrap()
}

/// Requests that each gateway has counted.
struct Counted([f64; 3]);

impl Counted {
    /// Waits until each has counted `more`: a gateway counts when an exchange is over, which
    /// its client may know first. What comes too late is too much for the next one.
    async fn more(&mut self, world: &World, more: [f64; 3], row: &str) {
        let want = [0, 1, 2].map(|at| self.0[at] + more[at]);
        let count = |at: usize| requests(&world.gateways[at].scrape());
        let begun = Instant::now();
        while [0, 1, 2].map(count) != want {
            let now = [0, 1, 2].map(count);
            assert!(begun.elapsed() < SOON, "{row}: {now:?}, not {want:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.0 = want;
    }
}

fn requests(scrape: &str) -> f64 {
    let lines = scrape.lines().filter(|line| line.starts_with("istio_requests_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// A pod `name` behind `service`, in the mesh; its application tells its name.
async fn pod_behind(world: &mut World, name: &str, node: u8, service: &Service) -> Pod {
    let pod = world.topology.pod(node).unwrap();
    for v6 in [false, true] {
        let listener = pod.netns.listen(SocketAddr::new(pod.ip(v6), PORT)).unwrap();
        tokio::spawn(serve::http(listener, name.to_owned(), 10));
    }
    world.enrol(name, &pod).await.unwrap();
    put(world, [behind(world.workload(name, &pod, true).unwrap(), service)]);
    pod
}

/// An ingress `gw`; services `a` and `b` with waypoints `wa` and `wb`, on a node each; a
/// client in the mesh and one outside.
struct Town {
    world: World,
    a: Service,
    client: Pod,
    outside: Pod,
}

async fn town() -> Town {
    let mut world = World::new(2, Limits::default()).unwrap();
    world.gateway("gw", 1, false).await.unwrap();
    let waypoint_a = world.gateway("wa", 1, true).await.unwrap().address();
    let waypoint_b = world.gateway("wb", 2, true).await.unwrap().address();
    let of = |name: &str, vip: &str, waypoint| {
        let app_protocol = AppProtocol::Http11;
        let ports = vec![Port { service_port: 80, target_port: PORT, app_protocol }];
        let service = service(name, vip, 80, PORT);
        Service { waypoint: Some(waypoint), ports, ingress_use_waypoint: true, ..service }
    };
    let (a, b) = (of("a", "10.96.0.1", waypoint_a), of("b", "10.96.0.2", waypoint_b));
    let services = [&a, &b].map(|one| Resource::Service(Arc::new(one.clone())));
    world.tell(Kind::Address, &services, &[]).unwrap();
    pod_behind(&mut world, "pod-a", 1, &a).await;
    pod_behind(&mut world, "pod-b", 2, &b).await;
    let client = world.topology.pod(2).unwrap();
    let workload = world.workload("client", &client, true).unwrap();
    put(&mut world, [workload]);
    world.enrol("client", &client).await.unwrap();
    let rules = [
        rule("HTTPRoute/shop/edge", &["http"], vec![to("a", 1).unwrap()]).unwrap(),
        with_header("a", "to-b", "b"),
        rest("a"),
        with_header("b", "back-to-a", "a"),
        rest("b"),
    ];
    for gateway in &mut world.gateways {
        let rules = rules.iter().map(|rule| Change::Put(Resource::Rule(Arc::new(rule.clone()))));
        gateway.tell(rules).unwrap();
    }

    let outside = world.topology.pod(1).unwrap();
    Town { world, a, client, outside }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_services_waypoint_is_passed_and_none_twice() {
    let Town { mut world, a, client, outside } = town().await;
    let door = SocketAddr::new(world.gateways[0].pod.ip(true), 8080);
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let mut counted = Counted([0.0; 3]);
    let rows: [(&str, _, _, &[&str], _, [f64; 3]); 4] = [
        // where from, where to, headers, who answers, requests at gw, wa, wb
        ("ingress", &outside, door, &[], "pod-a", [1.0, 1.0, 0.0]),
        ("ingress, two waypoints", &outside, door, &["to-b"], "pod-b", [1.0, 1.0, 1.0]),
        ("client", &client, vip, &[], "pod-a", [0.0, 1.0, 0.0]),
        ("client, two waypoints", &client, vip, &["to-b"], "pod-b", [0.0, 1.0, 1.0]),
    ];
    for (name, from, to, headers, who, passed) in rows {
        assert_eq!(ask(&from.netns, to, headers).await, (StatusCode::OK, who.to_owned()), "{name}");
        counted.more(&world, passed, name).await;
    }

    // Back to where it was: refused at the door of the waypoint, before it is a request there.
    let round = ["to-b", "back-to-a"];
    let (status, _) = ask(&client.netns, vip, &round).await;
    assert!(status.is_server_error(), "a round: {status}");
    counted.more(&world, [0.0, 1.0, 1.0], "a round").await;

    // The waypoints called, each in its own name.
    for (node, pod, last) in [(1, "pod-a", "wa"), (2, "pod-b", "wb")] {
        let tunnel = world.tunnel(node).unwrap();
        let opened = async |more: &str| {
            let labels =
                [&*format!("destination_workload=\"{pod}\""), "reporter=\"destination\"", more];
            tunnel.count("istio_tcp_connections_opened_total", &labels).await.unwrap()
        };
        let principal = format!("source_principal=\"spiffe://cluster.local/ns/shop/sa/{last}\"");
        assert!(opened(&principal).await > 0.0, "{pod} is called by {last}");
        assert_eq!(opened(&principal).await, opened("").await, "{pod} is called by nobody else");
    }

    // A service may keep the edge out of its waypoint.
    let open = Service { ingress_use_waypoint: false, ..a };
    world.tell(Kind::Address, &[Resource::Service(Arc::new(open))], &[]).unwrap();
    let direct = ask(&outside.netns, door, &[]).await;
    assert_eq!(direct, (StatusCode::OK, "pod-a".to_owned()));
    counted.more(&world, [1.0, 0.0, 0.0], "the edge calls the pod itself").await;
}
