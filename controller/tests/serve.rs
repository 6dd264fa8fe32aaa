// SPDX-License-Identifier: Apache-2.0

//! A folder with objects, served over real TLS and gRPC to clients that speak as proxies do.

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

use controller::ca::token::Bound;
use controller::serve::certificates::CREATE_CERTIFICATE;
use controller::serve::server::REPORT;
use prost::Message as _;
use routing::stream::DeltaDiscoveryResponse;
use routing::wire::messages::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use routing::wire::messages::istio::workload::{Address, TunnelProtocol, Workload, address::Type};
use routing::wire::messages::waymark::v1::{
    NodePod, NodeReport, NodeReportAck, PodState, pod_state::State,
};
use support::{World, admin, eventually, holds, names, pod, pod_yaml, uid};

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
const NODE_POD: &str = "type.googleapis.com/waymark.v1.NodePod";
const GATEWAY: &str = "type.googleapis.com/waymark.v1.Gateway";

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

fn system_pods() -> String {
    pod_yaml(&pod("istio-system", "ztunnel-1", "ztunnel", "n1"), "10.0.0.1", &[])
        + &pod_yaml(&pod("istio-system", "agent-1", "waymark-agent", "n1"), "10.0.0.2", &[])
        + &pod_yaml(&pod("app", "web-1", "web", "n1"), "10.244.1.2", &[("app", "web")])
        + &pod_yaml(&pod("app", "far-1", "far", "n2"), "10.244.2.2", &[("app", "far")])
}

fn workload(response: &DeltaDiscoveryResponse, name: &str) -> Option<Workload> {
    let uid = format!("Kubernetes//Pod/{name}");
    let found = response.resources.iter().find(|resource| resource.name == uid)?;
    let address = Address::decode(found.resource.as_ref()?.value.as_slice()).unwrap();
    match address.r#type? {
        Type::Workload(workload) => Some(workload),
        Type::Service(_) => None,
    }
}

async fn world() -> World {
    let system = system_pods();
    World::start(&[("folder/base.yaml", BASE), ("objects/pods.yaml", &system)]).await
}

#[tokio::test]
async fn a_tunnel_gets_everything_then_only_what_changes_policies_first() {
    let world = world().await;
    let mut tunnel =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    tunnel.subscribe(AUTHORIZATION).await;
    assert_eq!(tunnel.take().await.type_url, AUTHORIZATION, "an empty answer is an answer");
    tunnel.subscribe(ADDRESS).await;
    let first = tunnel.take().await;
    assert!(names(&first).contains(&"app/web.app.svc.cluster.local"), "{:?}", names(&first));
    let web = workload(&first, "app/web-1").unwrap();
    assert_eq!(web.tunnel_protocol(), TunnelProtocol::None, "nothing is proven yet");
    let ports = &web.services["app/web.app.svc.cluster.local"].ports;
    assert_eq!((ports[0].service_port, ports[0].target_port), (80, 9080));

    world.put("folder/policy.yaml", POLICY);
    let policy = tunnel.take().await;
    assert_eq!((policy.type_url.as_str(), names(&policy)), (AUTHORIZATION, vec!["app/only-front"]));
    let changed = tunnel.take().await;
    assert_eq!(names(&changed), ["Kubernetes//Pod/app/web-1"], "nothing else changed");
    assert_eq!(workload(&changed, "app/web-1").unwrap().authorization_policies, ["app/only-front"]);

    std::fs::remove_file(world.path("folder/policy.yaml")).unwrap();
    let changed = tunnel.take().await;
    assert_eq!(changed.type_url, ADDRESS, "the workload lets go before the policy goes");
    let policy = tunnel.take().await;
    assert_eq!(policy.removed_resources, ["app/only-front"]);
    world.end().await;
}

#[tokio::test]
async fn a_pod_takes_hbone_once_its_agent_has_proven_it_and_still_after_a_restart() {
    let world = world().await;
    let agent_pod = pod("istio-system", "agent-1", "waymark-agent", "n1");
    let mut agent = world.stream(&agent_pod).await.unwrap();
    agent.subscribe(NODE_POD).await;
    let told = agent.take().await;
    assert_eq!(names(&told), [uid("app", "web-1")], "the pods of its own node that belong in");
    let body = &told.resources[0].resource.as_ref().unwrap().value;
    let node_pod = NodePod::decode(body.as_slice()).unwrap();
    assert_eq!(node_pod.probes.iter().map(|probe| probe.port).collect::<Vec<_>>(), [9080]);

    let tunnel_pod = pod("istio-system", "ztunnel-1", "ztunnel", "n1");
    let mut tunnel = world.stream(&tunnel_pod).await.unwrap();
    tunnel.subscribe(ADDRESS).await;
    tunnel.take().await;
    let state = |name: &str| PodState {
        uid: uid("app", name),
        state: State::Enrolled.into(),
        observed_generation: node_pod.generation,
        ..Default::default()
    };
    let pods = vec![state("web-1"), state("far-1")];
    let report = NodeReport { node: "n1".into(), pods, serving: true, ..Default::default() };
    let ack: NodeReportAck = world.call(REPORT, report.clone(), &agent_pod).await.unwrap();
    assert!(ack.inside.contains(&uid("app", "web-1")), "{ack:?}");
    assert_eq!(ack.leave, None, "the mesh stays");
    let changed = tunnel.take().await;
    assert_eq!(
        names(&changed),
        ["Kubernetes//Pod/app/web-1"],
        "a node speaks for its own pods only"
    );
    assert_eq!(workload(&changed, "app/web-1").unwrap().tunnel_protocol(), TunnelProtocol::Hbone);

    let refused = world.call::<_, NodeReportAck>(REPORT, report, &tunnel_pod).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);

    let world = World::resume(world.end().await).await;
    let mut tunnel = world.stream(&tunnel_pod).await.unwrap();
    tunnel.subscribe(ADDRESS).await;
    let first = tunnel.take().await;
    assert_eq!(workload(&first, "app/web-1").unwrap().tunnel_protocol(), TunnelProtocol::Hbone);
    world.end().await;
}

#[tokio::test]
async fn certificates_go_to_the_node_that_runs_the_pod_only() {
    let world = world().await;
    let tunnel = pod("istio-system", "ztunnel-1", "ztunnel", "n1");
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let ask = |account: &str| {
        let identity = format!("spiffe://cluster.local/ns/app/sa/{account}").parse().unwrap();
        routing::wire::ca::CertificateRequest {
            csr: csr.clone(),
            life: std::time::Duration::from_secs(3600),
            impersonated: Some(identity),
        }
        .write()
    };
    let call = |request: IstioCertificateRequest, who: Bound| {
        let world = &world;
        async move { world.call::<_, IstioCertificateResponse>(CREATE_CERTIFICATE, request, &who).await }
    };
    let granted = call(ask("web"), tunnel.clone()).await.unwrap();
    assert_eq!(granted.cert_chain.len(), 2);
    let far = call(ask("far"), tunnel).await.unwrap_err();
    assert_eq!(far.code(), tonic::Code::Unauthenticated, "the pod runs elsewhere");
    let other = call(ask("far"), pod("app", "web-1", "web", "n1")).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::Unauthenticated, "no pod asks for another");
    let dead = call(ask("web"), pod("istio-system", "ztunnel-9", "ztunnel", "n1")).await;
    assert_eq!(dead.unwrap_err().code(), tonic::Code::Unauthenticated, "the caller is not there");
    world.end().await;
}

#[tokio::test]
async fn callers_without_a_role_or_a_token_get_nothing() {
    let world = world().await;
    let Err(status) = world.stream_with("nonsense").await else { panic!("let in") };
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let Err(status) = world.stream(&pod("app", "web-1", "web", "n1")).await else {
        panic!("let in")
    };
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    let mut tunnel =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    tunnel.subscribe(GATEWAY).await;
    assert_eq!(tunnel.end().await.code(), tonic::Code::PermissionDenied);
    world.end().await;
}

#[tokio::test]
async fn a_condition_is_true_only_after_the_acknowledgement() {
    let world = world().await;
    let mut tunnel =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    for kind in [AUTHORIZATION, ADDRESS] {
        tunnel.subscribe(kind).await;
        tunnel.take().await;
    }
    world.put("folder/policy.yaml", POLICY);
    let policy = tunnel.next().await;
    let path = "/objects?kind=authorizationpolicy&ns=app&name=only-front";
    let status = |list: serde_json::Value| {
        let conditions = list["items"][0]["status"]["conditions"].clone();
        (conditions[0]["status"].as_str().unwrap_or("none").to_owned(), conditions)
    };
    let (before, conditions) = status(admin(&world, path).await);
    assert_eq!(before, "Unknown", "{conditions}");
    tunnel.ack(&policy).await;
    let workloads = tunnel.next().await;
    tunnel.ack(&workloads).await;
    let is_true = async {
        while status(admin(&world, path).await).0 != "True" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, is_true).await.unwrap();

    let bad = POLICY.replace("principals: [cluster", "principals: [clu*ster");
    world.put("folder/policy.yaml", &bad);
    eventually(&world.hub, "the refusal is told", || {
        let refused = world.hub.read().board.refused();
        refused.into_iter().find(|(key, ..)| key.to_string().ends_with("app/only-front"))
    })
    .await;
    let status = admin(&world, "/status").await;
    assert_eq!(status["refused"][0]["reason"], "Invalid", "{status}");
    world.end().await;
}

#[tokio::test]
async fn objects_of_a_gateway_are_written_and_removed_with_it() {
    let world = world().await;
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: app}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
";
    world.put("folder/gateway.yaml", gateway);
    let provisioned = world.path("provisioned");
    let written = || holds(&provisioned, &["Deployment", "edge-istio"]).then_some(());
    eventually(&world.hub, "the objects are written", written).await;
    std::fs::remove_file(world.path("folder/gateway.yaml")).unwrap();
    let gone = || (!holds(&provisioned, &["edge-istio"])).then_some(());
    eventually(&world.hub, "the objects are removed", gone).await;
    world.end().await;
}

const WAYPOINT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app}
spec: {gatewayClassName: waymark-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
";

/// The response that gives the Service its waypoint, not acknowledged; those before it are.
async fn until_waypoint(tunnel: &mut support::Client) -> DeltaDiscoveryResponse {
    loop {
        let response = tunnel.next().await;
        let guards = names(&response).into_iter().any(|name| name.contains("waymark-guard"));
        assert!(!guards, "no guard before the waypoint is acknowledged");
        let web = response.resources.iter().find(|r| r.name == "app/web.app.svc.cluster.local");
        let bound = web.is_some_and(|web| {
            let address = Address::decode(web.resource.as_ref().unwrap().value.as_slice()).unwrap();
            matches!(address.r#type, Some(Type::Service(service)) if service.waypoint.is_some())
        });
        if bound {
            return response;
        }
        tunnel.ack(&response).await;
    }
}

#[tokio::test]
async fn a_new_waypoint_guards_only_after_every_client_followed() {
    let world = world().await;
    let mut tunnel =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    for kind in [AUTHORIZATION, ADDRESS] {
        tunnel.subscribe(kind).await;
        tunnel.take().await;
    }
    world.put("folder/waypoint.yaml", WAYPOINT);
    let labelled = BASE.replace(
        "name: web, namespace: app}",
        "name: web, namespace: app, labels: {istio.io/use-waypoint: wp}}",
    );
    world.put("folder/base.yaml", &labelled);
    let step = |world: &World| world.hub.read().stores.facts.step("app/web.app.svc.cluster.local");
    eventually(&world.hub, "it waits for the waypoint to be ready", || {
        (step(&world) == controller::store::facts::Step::Waiting).then_some(())
    })
    .await;
    let labels = [
        ("gateway.networking.k8s.io/gateway-name", "wp"),
        ("gateway.istio.io/managed", "waymark.dev-mesh-controller"),
    ];
    let proxy = pod_yaml(&pod("app", "wp-1", "wp", "n2"), "10.244.2.9", &labels);
    world.put("objects/wp.yaml", &proxy);
    let bound = until_waypoint(&mut tunnel).await;
    let policies = admin(&world, "/policies").await.to_string();
    assert!(!policies.contains("waymark-guard"), "{policies}");
    tunnel.ack(&bound).await;
    let guard = loop {
        let response = tunnel.take().await;
        if response.type_url == AUTHORIZATION {
            break response;
        }
    };
    assert!(names(&guard)[0].starts_with("app/waymark-guard-"), "{:?}", names(&guard));
    let guarded = tunnel.take().await;
    let web = workload(&guarded, "app/web-1").unwrap();
    assert_eq!(web.authorization_policies, [names(&guard)[0]]);
    world.end().await;
}

#[tokio::test]
async fn what_a_proxy_refuses_is_told_on_the_object_and_taken_back() {
    let world = world().await;
    let mut tunnel =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    tunnel.subscribe(AUTHORIZATION).await;
    tunnel.take().await;
    world.put("folder/policy.yaml", POLICY);
    let sent = tunnel.next().await;
    tunnel.nack(&sent, "app/only-front", "too new for me").await;
    let key = controller::store::Key {
        kind: controller::store::Kind::AuthorizationPolicy,
        name: controller::store::Name::new("app", "only-front"),
    };
    let told = |part: &'static str| {
        let (hub, key) = (&world.hub, &key);
        move || hub.read().board.get(key).filter(|value| value.to_string().contains(part))
    };
    let value = eventually(&world.hub, "the refusal is told", told("too new for me")).await;
    assert_eq!(value["conditions"][0]["status"], "False", "{value}");
    assert_eq!(
        admin(&world, "/status").await["clients"][0]["refused"][0]["name"],
        "app/only-front"
    );
    world.put("folder/policy.yaml", &POLICY.replace("sa/front", "sa/other"));
    let sent = tunnel.next().await;
    tunnel.ack(&sent).await;
    eventually(&world.hub, "it is taken back", told("\"True\"")).await;
    world.end().await;
}

#[tokio::test]
async fn a_broken_file_is_told_and_changes_nothing() {
    let world = world().await;
    let mut tunnel =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    tunnel.subscribe(ADDRESS).await;
    let before = tunnel.take().await;
    world.put("folder/base.yaml", &BASE.replace("port: 80", "port: eighty"));
    eventually(&world.hub, "the problem is told", || {
        (!world.hub.read().problems.is_empty()).then_some(())
    })
    .await;
    let problem = admin(&world, "/status").await["problems"][0].clone();
    assert_eq!(problem["object"], "Service app/web", "{problem}");
    assert_eq!(problem["field"], "spec.ports[0].port", "{problem}");
    assert!(problem["file"].as_str().unwrap().ends_with("base.yaml"), "{problem}");
    let mut second =
        world.stream(&pod("istio-system", "ztunnel-1", "ztunnel", "n1")).await.unwrap();
    second.subscribe(ADDRESS).await;
    assert_eq!(names(&second.take().await), names(&before), "the last good state is served");
    world.end().await;
}
