// SPDX-License-Identifier: Apache-2.0

//! Two controllers over the same objects: one leads, the other serves and follows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking; not every test needs all of the support"
)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use controller::ca::root;
use controller::lead::Leader;
use controller::output::Family;
use controller::serve::followers::RELAY;
use controller::serve::server::REPORT;
use controller::store::facts::{FetchedKeys, KeySource, Step};
use controller::store::{Key, Kind, Name};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use routing::wire::messages::istio::workload::{Address, TunnelProtocol, address::Type};
use routing::wire::messages::waymark::v1::{
    NodePod, NodeReport, NodeReportAck, PodState, pod_state::State,
};
use routing::wire::roots::ROOTS_URL;
use support::{Client, World, admin, certificate, eventually, names, pod, pod_yaml, uid};
use tokio::net::TcpListener;
use tokio::sync::watch;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
const NODE_POD: &str = "type.googleapis.com/waymark.v1.NodePod";
const WEB: &str = "app/web.app.svc.cluster.local";

const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {clusterIP: 10.96.0.20, selector: {app: web}, ports: [{name: http, port: 80, targetPort: web}]}
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-front, namespace: app}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/front]}}]}]
";

const WAYPOINT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app}
spec: {gatewayClassName: waymark-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
";

/// The first leads, the second follows.
struct Pair {
    first: World,
    second: World,
    /// What the second knows of leadership.
    leader: watch::Sender<Leader>,
}

impl Pair {
    async fn start() -> Self {
        let controller = |name: &str, ip: &str| {
            pod_yaml(&pod("istio-system", name, "waymark-controller", "n1"), ip, &[])
        };
        let pods = controller("c-1", "10.0.0.8")
            + &controller("c-2", "10.0.0.9")
            + &pod_yaml(&pod("istio-system", "ztunnel-1", "ztunnel", "n1"), "10.0.0.1", &[])
            + &pod_yaml(&pod("istio-system", "agent-1", "waymark-agent", "n1"), "10.0.0.2", &[])
            + &pod_yaml(&pod("app", "web-1", "web", "n1"), "10.244.1.2", &[("app", "web")]);
        let directory = tempfile::tempdir().unwrap();
        for name in ["folder", "objects", "provisioned", "ca"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        std::fs::write(directory.path().join("folder/base.yaml"), BASE).unwrap();
        std::fs::write(directory.path().join("objects/pods.yaml"), pods).unwrap();
        let directory = Arc::new(directory);
        let first =
            Box::pin(World::beside(Arc::clone(&directory), "c-1", &watch::Sender::new(Leader::Me)))
                .await;
        let leads = Leader::Other { name: "c-1".into(), address: Some(first.address) };
        let leader = watch::Sender::new(leads);
        let second = Box::pin(World::beside(directory, "c-2", &leader)).await;
        Self { first, second, leader }
    }

    /// A tunnel that has everything, at the second.
    async fn tunnel(&self) -> Client {
        let who = pod("istio-system", "ztunnel-1", "ztunnel", "n1");
        let mut tunnel = self.second.stream(&who).await.unwrap();
        for kind in [AUTHORIZATION, ADDRESS] {
            tunnel.subscribe(kind).await;
            tunnel.take().await;
        }
        tunnel
    }

    /// The first ends, and the second leads.
    async fn take_over(self) -> World {
        self.first.end().await;
        self.leader.send_replace(Leader::Me);
        eventually(&self.second.hub, "the second leads", || {
            self.second.hub.read().part.leads().then_some(())
        })
        .await;
        self.second
    }
}

/// Status and message of the policy's first condition, as `world` tells it.
fn told(world: &World) -> Option<(String, String)> {
    let key = Key { kind: Kind::AuthorizationPolicy, name: Name::new("app", "only-front") };
    let state = world.hub.read();
    let value = state.board.get(&key)?;
    let condition = &value["conditions"][0];
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("message")))
}

async fn until_told(world: &World, status: &str) -> String {
    eventually(&world.hub, status, || {
        told(world).filter(|(now, _)| now == status).map(|(_, message)| message)
    })
    .await
}

fn step(world: &World) -> Step {
    world.hub.read().stores.facts.step(WEB)
}

#[tokio::test]
async fn a_status_of_the_leader_waits_for_a_client_of_the_follower() {
    let pair = Pair::start().await;
    let mut tunnel = pair.tunnel().await;
    eventually(&pair.first.hub, "the leader knows the client", || {
        let seen = pair.first.hub.clients.list(std::time::Instant::now());
        seen.iter().find(|seen| seen.via.is_some() && seen.acked > 0 && !seen.silent).cloned()
    })
    .await;
    pair.first.put("folder/policy.yaml", POLICY);
    let policy = tunnel.next().await;
    assert_eq!(names(&policy), ["app/only-front"], "the follower serves it");
    until_told(&pair.first, "Unknown").await;
    tunnel.ack(&policy).await;
    let workloads = tunnel.next().await;
    assert_eq!(told(&pair.first).unwrap().0, "Unknown", "one of two resources is acknowledged");
    tunnel.ack(&workloads).await;
    until_told(&pair.first, "True").await;
    assert_eq!(told(&pair.second).unwrap().0, "Unknown", "a follower promises nothing");

    pair.first.put("folder/policy.yaml", &POLICY.replace("sa/front", "sa/other"));
    let policy = tunnel.next().await;
    tunnel.nack(&policy, "app/only-front", "too new for me").await;
    let why = until_told(&pair.first, "False").await;
    assert!(why.contains("istio-system/ztunnel-1") && why.contains("too new for me"), "{why}");
}

#[tokio::test]
async fn what_an_agent_reports_to_a_follower_holds_at_both() {
    let pair = Pair::start().await;
    let mut tunnel = pair.tunnel().await;
    let agent_pod = pod("istio-system", "agent-1", "waymark-agent", "n1");
    let mut agent = pair.second.stream(&agent_pod).await.unwrap();
    agent.subscribe(NODE_POD).await;
    let node_pod = agent.take().await;
    let body = &node_pod.resources[0].resource.as_ref().unwrap().value;
    let observed_generation = NodePod::decode(body.as_slice()).unwrap().generation;
    assert!(observed_generation > 0, "the leader's count");
    let state = PodState {
        uid: uid("app", "web-1"),
        state: State::Enrolled.into(),
        observed_generation,
        ..Default::default()
    };
    let left = "order".to_owned();
    let report = NodeReport { node: "n1".into(), pods: vec![state], left, ..Default::default() };
    let ack: NodeReportAck = pair.second.call(REPORT, report.clone(), &agent_pod).await.unwrap();
    assert_eq!(ack.inside, [uid("app", "web-1")]);
    let changed = tunnel.take().await;
    let body = &changed.resources[0].resource.as_ref().unwrap().value;
    let Some(Type::Workload(web)) = Address::decode(body.as_slice()).unwrap().r#type else {
        panic!("{:?}", names(&changed))
    };
    assert_eq!(web.tunnel_protocol(), TunnelProtocol::Hbone);
    for world in [&pair.first, &pair.second] {
        assert!(world.hub.read().stores.facts.pod(&uid("app", "web-1")).is_some());
    }
    let left = |world: &World| {
        let state = world.hub.read();
        state.stores.facts.node("n1").map(|node| node.left.clone())
    };
    assert_eq!(left(&pair.first).as_deref(), Some("order"), "of its node the leader knows");

    // Only controllers pass reports on, and only to the one that leads.
    let forged = pair.first.call::<_, NodeReportAck>(RELAY, report.clone(), &agent_pod).await;
    assert_eq!(forged.unwrap_err().code(), tonic::Code::PermissionDenied);
    let who = pod("istio-system", "c-1", "waymark-controller", "n1");
    let astray = pair.second.call::<_, NodeReportAck>(RELAY, report.clone(), &who).await;
    assert_eq!(astray.unwrap_err().code(), tonic::Code::Unavailable);

    // Without a leader the agent hears so; with the next one what it said before still holds.
    pair.leader.send_replace(Leader::Nobody);
    eventually(&pair.second.hub, "the leader is lost", || {
        (!pair.second.hub.link.is_up()).then_some(())
    })
    .await;
    let lost = pair.second.call::<_, NodeReportAck>(REPORT, report.clone(), &agent_pod).await;
    assert_eq!(lost.unwrap_err().code(), tonic::Code::Unavailable);
    let second = pair.take_over().await;
    assert!(second.hub.read().stores.facts.pod(&uid("app", "web-1")).is_some());
    let _ack: NodeReportAck = second.call(REPORT, report, &agent_pod).await.unwrap();
    assert_eq!(left(&second).as_deref(), Some("order"), "it is said again");
}

#[tokio::test]
async fn an_ordered_change_goes_on_under_the_next_leader() {
    let pair = Pair::start().await;
    let mut tunnel = pair.tunnel().await;
    let labels = [
        ("gateway.networking.k8s.io/gateway-name", "wp"),
        ("gateway.istio.io/managed", "waymark.dev-mesh-controller"),
    ];
    let proxy = pod_yaml(&pod("app", "wp-1", "wp", "n2"), "10.244.2.9", &labels);
    pair.first.put("folder/waypoint.yaml", WAYPOINT);
    pair.first.put("objects/wp.yaml", &proxy);
    let labelled = BASE.replace(
        "name: web, namespace: app}",
        "name: web, namespace: app, labels: {istio.io/use-waypoint: wp}}",
    );
    pair.first.put("folder/base.yaml", &labelled);
    // The client is sent the waypoint and does not acknowledge it.
    let bound = loop {
        let response = tunnel.next().await;
        let web = response.resources.iter().find(|resource| resource.name == WEB);
        let bound = web.is_some_and(|web| {
            let address = Address::decode(web.resource.as_ref().unwrap().value.as_slice()).unwrap();
            matches!(address.r#type, Some(Type::Service(service)) if service.waypoint.is_some())
        });
        if bound {
            break response;
        }
        tunnel.ack(&response).await;
    };
    for world in [&pair.first, &pair.second] {
        eventually(&world.hub, "both know the step", || {
            (step(world) == Step::Published).then_some(())
        })
        .await;
    }
    let second = pair.take_over().await;
    assert_eq!(step(&second), Step::Published, "the client has not followed yet");
    // It keeps the agent, which is not here, waiting for a while only; then it writes.
    assert!(!*second.hub.writes.borrow());
    eventually(&second.hub, "it writes", || second.hub.writes.borrow().then_some(())).await;
    tunnel.ack(&bound).await;
    let guard = loop {
        let response = tunnel.take().await;
        if response.type_url == AUTHORIZATION {
            break response;
        }
    };
    assert!(names(&guard)[0].starts_with("app/waymark-guard-"), "{:?}", names(&guard));
    assert_eq!(step(&second), Step::Settled);
}

/// Waits until the controller answers so at `/ca`.
async fn until_ca(world: &World, what: &str, test: impl Fn(&serde_json::Value) -> bool) {
    let wait = async {
        while !test(&admin(world, "/ca").await) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_leader_knows_of_a_rotation_what_its_follower_is_told() {
    let pair = Pair::start().await;
    let tunnel_pod = pod("istio-system", "ztunnel-1", "ztunnel", "n1");
    let mut tunnel = pair.second.stream(&tunnel_pod).await.unwrap();
    tunnel.subscribe(ROOTS_URL).await;
    tunnel.take().await;
    let trusts = |ca: &serde_json::Value| ca["clients"][0]["trusts"] == true;
    until_ca(&pair.first, "the leader knows that the client trusts the root", trusts).await;
    let ca = admin(&pair.first, "/ca").await;
    assert_eq!(ca["leads"], true);
    assert_eq!(ca["unheard"], serde_json::json!(["istio-system/agent-1"]), "ready, not here");
    assert_eq!(admin(&pair.second, "/ca").await["leads"], false);

    // The next root is told to all; the client of the follower has not acknowledged it.
    let old = std::fs::read_to_string(pair.first.path("ca/root-cert.pem")).unwrap();
    let (new, _) = root::make("cluster.local").unwrap();
    pair.first.put("ca/root-cert.pem", &format!("{old}{new}"));
    let both = tunnel.next().await;
    let in_force = |ca: &serde_json::Value| {
        ca["roots"].as_array().is_some_and(|roots| roots.len() == 2) && ca["published"] == true
    };
    until_ca(&pair.first, "both roots", in_force).await;
    assert_eq!(admin(&pair.first, "/ca").await["clients"][0]["trusts"], false);
    tunnel.ack(&both).await;
    until_ca(&pair.first, "the leader knows that the client trusts both", trusts).await;

    // What either gives is known to both, and to the next leader.
    let given = |ca: &serde_json::Value| {
        let leaves = ca["leaves"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of_web = leaves.iter().find(|leaf| leaf["identity"] == support::WEB);
        of_web.and_then(|leaf| leaf["givenAtMillis"].as_u64())
    };
    certificate(&pair.second, &tunnel_pod).await;
    let known = |ca: &serde_json::Value| given(ca).is_some();
    until_ca(&pair.first, "the leader knows of the follower's leaf", known).await;
    let before = given(&admin(&pair.second, "/ca").await);
    certificate(&pair.first, &tunnel_pod).await;
    let newer = |ca: &serde_json::Value| given(ca) > before;
    until_ca(&pair.second, "the follower knows of the leader's newer leaf", newer).await;
    let newest = given(&admin(&pair.first, "/ca").await);
    let second = pair.take_over().await;
    let ca = admin(&second, "/ca").await;
    assert_eq!(given(&ca), newest);
    assert_eq!(ca["leads"], true);
    second.end().await;
}

/// Serves key sets over HTTP: how often it was asked, and which of the keys it has now.
#[derive(Clone, Default)]
struct Issuer {
    asked: Arc<AtomicUsize>,
    gone: watch::Sender<bool>,
}

impl Issuer {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let issuer = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let issuer = issuer.clone();
                let service = service_fn(move |_: Request<Incoming>| {
                    issuer.asked.fetch_add(1, Ordering::SeqCst);
                    let mut response = Response::new(Full::new(Bytes::from_static(SET.as_bytes())));
                    if *issuer.gone.borrow() {
                        *response.status_mut() = StatusCode::NOT_FOUND;
                    }
                    async move { Ok::<_, Infallible>(response) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }
}

const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;

#[tokio::test]
async fn the_leader_fetches_keys_and_its_follower_serves_them() {
    let pair = Pair::start().await;
    let issuer = Issuer::default();
    let uri = format!("http://{}/keys", issuer.start().await);
    let tokens = format!(
        "{WAYPOINT}---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: app}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: wp}}]
  jwtRules: [{{issuer: 'https://issuer.example', jwksUri: '{uri}'}}]
"
    );
    pair.first.put("folder/tokens.yaml", &tokens);
    let source = KeySource::Uri(uri.as_str().into());
    let known = |world: &World| world.hub.read().stores.facts.keys(&source).cloned();
    let good = |fetched: &FetchedKeys| fetched.keys.len() == 1 && fetched.trouble.is_none();
    let mark = |world: &World| {
        let state = world.hub.read();
        state.published.mark(&(Family::RequestAuthentication, "app/tokens".into()))
    };
    eventually(&pair.second.hub, "the follower has the keys", || {
        known(&pair.second).filter(|fetched| good(fetched))
    })
    .await;
    eventually(&pair.second.hub, "both serve the same", || {
        (mark(&pair.first) != 0 && mark(&pair.first) == mark(&pair.second)).then_some(())
    })
    .await;
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1, "one of the two asks");

    // The next leader asks itself; without an answer what is known stays in force.
    let before = mark(&pair.second);
    issuer.gone.send_replace(true);
    let second = pair.take_over().await;
    eventually(&second.hub, "it asked", || known(&second).filter(|now| now.trouble.is_some()))
        .await;
    assert_eq!(known(&second).unwrap().keys.len(), 1);
    assert_eq!(mark(&second), before);
    issuer.gone.send_replace(false);
    eventually(&second.hub, "well again", || known(&second).filter(|fetched| good(fetched))).await;
    second.end().await;
}
