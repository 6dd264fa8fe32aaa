// SPDX-License-Identifier: Apache-2.0

//! Objects in, an answer out: the example's own YAML through translators, wire and snapshot to
//! the decision of live traffic. No sockets, no clock.
//!
//! What a cluster would add (pods with addresses, Service addresses, the objects of Gateways)
//! is added here as plainly as it can be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use controller::graph::Graph;
use controller::output::{Output, Resource};
use controller::settings::Mesh;
use controller::source::{document, folder};
use controller::store::facts::{PodFact, PodState};
use controller::store::{Key, Kind, Name, Object, Stores};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use routing::delta::{self, Change};
use routing::discovery::Workload;
use routing::explain::{self, Explanation, From, Question, Verdict};
use routing::snapshot::Snapshot;
use routing::wire::Names;
use routing::wire::discovery::{read_resource, write_resource};

struct Bookinfo {
    stores: Stores,
    mesh: Mesh,
}

impl Bookinfo {
    fn new() -> Self {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bookinfo");
        let (objects, problems) = folder::read(&[example]).unwrap();
        assert_eq!(problems, [], "the example is read whole");
        let mut world = Self { stores: Stores::default(), mesh: Mesh::default() };
        for object in objects {
            world.stores.put(object);
        }
        world.run_gateways();
        world.give_addresses();
        world.run_pods();
        world
    }

    /// What the provisioner writes, and the apiserver then holds.
    fn run_gateways(&mut self) {
        let graph = Graph::full(&self.stores, &self.mesh);
        let made = graph.table.all().filter_map(|(_, output)| match output {
            Output::Object(manifest) => Some(Arc::clone(manifest)),
            Output::Config(_) | Output::Status(_) | Output::Attached(..) | Output::NotServed(_) => {
                None
            }
        });
        for manifest in made.collect::<Vec<_>>() {
            self.stores.put(manifest.key.kind.read(manifest.value.clone()).unwrap());
        }
    }

    fn give_addresses(&mut self) {
        let services: Vec<Service> =
            self.stores.all::<Service>().map(|s| s.as_ref().clone()).collect();
        for (number, mut service) in (10_u8..).zip(services) {
            let address = format!("10.96.0.{number}");
            let spec = service.spec.as_mut().unwrap();
            spec.cluster_ip = Some(address.clone());
            spec.cluster_ips = Some(vec![address]);
            self.stores.put(Object::Service(service.into()));
        }
    }

    fn run_pods(&mut self) {
        let deployments: Vec<_> = self.stores.all::<Deployment>().cloned().collect();
        for (number, deployment) in (10_u8..).zip(deployments) {
            let template = deployment.spec.as_ref().unwrap().template.clone();
            let name = deployment.metadata.name.clone().unwrap();
            let mut pod =
                Pod { metadata: template.metadata.unwrap(), spec: template.spec, status: None };
            pod.metadata.namespace = deployment.metadata.namespace.clone();
            pod.metadata.uid = Some(format!("{name}-uid"));
            pod.metadata.name = Some(format!("{name}-1"));
            pod.spec.as_mut().unwrap().node_name = Some(format!("node-{}", number % 2 + 1));
            let ip = format!("10.244.1.{number}");
            let status = serde_json::json!({
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            });
            pod.status = Some(serde_json::from_value(status).unwrap());
            self.stores.put(Object::Pod(pod.into()));
            self.prove(&name);
        }
    }

    /// The agent has proven the pod's capture; gateways are not captured.
    fn prove(&mut self, deployment: &str) {
        let fact = PodFact {
            node: String::new(),
            state: PodState::Enrolled,
            reason: String::new(),
            older_connections: 0,
            repairs: 0,
            plain_inbound: false,
            observed_generation: 0,
        };
        self.stores.facts.set_pod(&format!("{deployment}-uid"), Some(fact));
    }

    fn put(&mut self, text: &str) {
        let parsed = document::parse(Path::new("edit.yaml"), text);
        assert_eq!(parsed.problems, []);
        for placed in parsed.objects {
            self.stores.put(placed.object);
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        let touched = self.stores.remove(&Key { kind, name: Name::new("bookinfo", name) });
        assert!(!touched.is_empty(), "{name} was there");
    }

    /// Over the wire into a snapshot, as every proxy holds it.
    fn snapshot(&self) -> Snapshot {
        let graph = Graph::full(&self.stores, &self.mesh);
        let mut names = Names::default();
        let mut changes = Vec::new();
        for (_, output) in graph.table.all() {
            let Output::Config(config) = output else { continue };
            let Resource::Plane(plane) = &config.resource else { continue };
            let (kind, name, bytes) = write_resource(plane).unwrap();
            let (read_name, read) = read_resource(kind, &bytes, &mut names).unwrap();
            assert_eq!(read_name, name);
            assert_eq!(&read, plane, "the wire keeps everything");
            changes.push(Change::Put(read));
        }
        let (snapshot, rejected) = delta::apply(&Snapshot::default(), changes);
        assert_eq!(rejected, []);
        snapshot
    }

    fn service(&self, name: &str) -> SocketAddr {
        let service = self.stores.get::<Service>("bookinfo", name).unwrap();
        let ip: IpAddr =
            service.spec.as_ref().unwrap().cluster_ip.as_ref().unwrap().parse().unwrap();
        SocketAddr::new(ip, 9080)
    }

    fn pod(&self, deployment: &str) -> SocketAddr {
        let pod = self.stores.get::<Pod>("bookinfo", &format!("{deployment}-1")).unwrap();
        let ip = pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap().parse().unwrap();
        SocketAddr::new(ip, 9080)
    }
}

fn workload(snapshot: &Snapshot, deployment: &str) -> Arc<Workload> {
    let uid = format!("Kubernetes//Pod/bookinfo/{deployment}-1");
    let mut all = snapshot.discovery.workloads();
    Arc::clone(all.find(|workload| *workload.uid == *uid).unwrap())
}

fn request(method: &str, path: &str) -> http::request::Parts {
    http::Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0
}

fn call(
    snapshot: &Snapshot,
    from: &str,
    to: SocketAddr,
    request: &http::request::Parts,
    roll: u64,
) -> Explanation {
    let source = workload(snapshot, from);
    let question = Question {
        from: From::Workload { source: &source, to },
        http: Some(request),
        claims: None,
        now: 0,
        roll,
    };
    explain::ask(&question, snapshot)
}

fn arrives(explanation: &Explanation) -> Option<&str> {
    match &explanation.verdict {
        Verdict::Arrives { workload, .. } => workload.rsplit('/').next(),
        Verdict::Leaves(_) | Verdict::Answered(_) | Verdict::Refused(_) => None,
    }
}

#[test]
fn the_edge_serves_the_routes_and_nothing_else() {
    let world = Bookinfo::new();
    let snapshot = world.snapshot();
    let at = workload(&snapshot, "bookinfo-gateway-istio");
    let gateway = "bookinfo/bookinfo-gateway".parse().unwrap();
    let cases = [
        // path, pod, answer
        ("/productpage", Some("productpage-v1-1"), None),
        ("/static/style.css", Some("productpage-v1-1"), None),
        ("/api/v1/products/0", Some("productpage-v1-1"), None),
        ("/productpage/more", None, Some(404)),
        ("/", None, Some(404)),
    ];
    for (path, pod, answer) in cases {
        let mut parts = request("GET", path);
        parts.headers.insert("host", "localhost:8080".parse().unwrap());
        let from = From::Outside {
            client: "10.254.0.1".parse().unwrap(),
            gateway: &gateway,
            at: &at,
            port: 80,
            sni: None,
        };
        let answered = explain::ask(
            &Question { from, http: Some(&parts), claims: None, now: 0, roll: 7 },
            &snapshot,
        );
        assert_eq!(arrives(&answered), pod, "{path}: {answered:#?}");
        let status = match &answered.verdict {
            Verdict::Answered(status) => Some(*status),
            Verdict::Refused(status) => *status,
            Verdict::Arrives { .. } | Verdict::Leaves(_) => None,
        };
        assert_eq!(status, answer, "{path}: {answered:#?}");
    }
}

#[test]
fn a_policy_that_selects_the_edge_decides_there_and_says_so() {
    let mut world = Bookinfo::new();
    world.put(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edge, namespace: bookinfo}\nspec: {selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: bookinfo-gateway}}, action: DENY, rules: [{from: [{source: {ipBlocks: [10.254.0.1]}}]}]}\n",
    );
    let snapshot = world.snapshot();
    let at = workload(&snapshot, "bookinfo-gateway-istio");
    let gateway = "bookinfo/bookinfo-gateway".parse().unwrap();
    let parts = request("GET", "/productpage");
    for (client, refused) in [("10.254.0.1", true), ("10.254.0.2", false)] {
        let client: IpAddr = client.parse().unwrap();
        let from = From::Outside { client, gateway: &gateway, at: &at, port: 80, sni: None };
        let answered = explain::ask(
            &Question { from, http: Some(&parts), claims: None, now: 0, roll: 7 },
            &snapshot,
        );
        assert_eq!(arrives(&answered).is_none(), refused, "{client}: {answered:#?}");
        if refused {
            assert_eq!(answered.verdict, Verdict::Refused(Some(403)));
            let last = answered.steps.last().unwrap();
            assert!(last.text.contains("the gateway bookinfo/bookinfo-gateway"), "{last:?}");
            assert_eq!(last.decided_by.as_deref(), Some("policy bookinfo/edge rule 0"));
        }
    }
    let inside = call(
        &snapshot,
        "productpage-v1",
        world.service("details"),
        &request("GET", "/productpage"),
        3,
    );
    assert_eq!(arrives(&inside), Some("details-v1-1"), "the waypoint is not selected");
}

#[test]
fn a_token_decides_at_the_waypoint_of_the_service_that_is_called() {
    let mut world = Bookinfo::new();
    let target = "targetRefs: [{group: '', kind: Service, name: reviews}]";
    let set = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;
    world.put(&format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: bookinfo}}\nspec: {{{target}, jwtRules: [{{issuer: 'https://i', jwks: '{set}'}}, {{issuer: 'https://keyless', jwksUri: 'https://keyless/keys'}}]}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: joe, namespace: bookinfo}}\nspec: {{{target}, rules: [{{from: [{{source: {{requestPrincipals: ['https://i/joe']}}}}]}}, {{when: [{{key: 'request.auth.claims[groups]', values: [admin]}}]}}]}}\n",
    ));
    let snapshot = world.snapshot();
    let parts = request("GET", "/reviews/0");
    let source = workload(&snapshot, "productpage-v1");
    let cases = [
        // claims, answer, who decided
        (
            Some(serde_json::json!({"iss": "https://i", "sub": "joe"})),
            None,
            "policy bookinfo/joe rule 0",
        ),
        (
            Some(serde_json::json!({"iss": "https://i", "groups": ["admin"]})),
            None,
            "policy bookinfo/joe rule 1",
        ),
        (
            Some(serde_json::json!({"iss": "https://i", "sub": "ann"})),
            Some(403),
            "policy bookinfo/joe",
        ),
        (Some(serde_json::json!({"iss": "https://other"})), Some(401), "policy bookinfo/tokens"),
        (Some(serde_json::json!({"iss": "https://keyless"})), Some(401), "policy bookinfo/tokens"),
        (None, Some(403), "policy bookinfo/joe"),
    ];
    for (claims, answer, by) in cases {
        let read = claims.clone().map(|claims| {
            let serde_json::Value::Object(all) = claims else { panic!("an object") };
            policy::jwt::Claims::new(all, &[] as &[&str])
        });
        let from = From::Workload { source: &source, to: world.service("reviews") };
        let question =
            Question { from, http: Some(&parts), claims: read.as_ref(), now: 0, roll: 7 };
        let answered = explain::ask(&question, &snapshot);
        let status = match &answered.verdict {
            Verdict::Refused(status) => *status,
            Verdict::Answered(_) | Verdict::Arrives { .. } | Verdict::Leaves(_) => None,
        };
        assert_eq!(status, answer, "{claims:?}: {answered:#?}");
        assert_eq!(arrives(&answered).is_some(), answer.is_none(), "{claims:?}: {answered:#?}");
        let decided = answered.steps.iter().any(|step| step.decided_by.as_deref() == Some(by));
        assert!(decided, "{claims:?}, wanted {by}: {answered:#?}");
    }
    // A token in the head is read as at a gateway, but for its signature.
    let expired = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJodHRwczovL2kiLCJzdWIiOiJqb2UiLCJleHAiOjF9.AA";
    let mut parts = request("GET", "/reviews/0");
    parts.headers.insert("authorization", format!("Bearer {expired}").parse().unwrap());
    for (now, answer) in [(60, None), (1000, Some(401))] {
        let from = From::Workload { source: &source, to: world.service("reviews") };
        let question = Question { from, http: Some(&parts), claims: None, now, roll: 7 };
        let answered = explain::ask(&question, &snapshot);
        let refused = Verdict::Refused(answer);
        assert_eq!(answered.verdict == refused, answer.is_some(), "{now}: {answered:#?}");
    }
}

#[test]
fn a_client_keeps_its_endpoint_where_the_service_says_so() {
    let mut world = Bookinfo::new();
    world.remove(Kind::HttpRoute, "reviews");
    let mut service = world.stores.get::<Service>("bookinfo", "reviews").unwrap().as_ref().clone();
    let reached = |world: &Bookinfo, from: &str| {
        let (snapshot, reviews) = (world.snapshot(), world.service("reviews"));
        let pods: std::collections::BTreeSet<String> = (0..40_u64)
            .filter_map(|n| {
                let roll = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let answer = call(&snapshot, from, reviews, &request("GET", "/reviews/0"), roll);
                arrives(&answer).map(str::to_owned)
            })
            .collect();
        pods.len()
    };
    assert_eq!(reached(&world, "productpage-v1"), 3);
    service.spec.as_mut().unwrap().session_affinity = Some("ClientIP".to_owned());
    world.stores.put(Object::Service(service.into()));
    for from in ["productpage-v1", "ratings-v1"] {
        assert_eq!(reached(&world, from), 1, "{from}");
    }
}

#[test]
fn policies_at_the_waypoint_and_the_guard_hold() {
    let world = Bookinfo::new();
    let snapshot = world.snapshot();
    let (ratings, ratings_pod) = (world.service("ratings"), world.pod("ratings-v1"));
    let get = request("GET", "/ratings/0");
    let post = request("POST", "/ratings/0");
    let allowed = call(&snapshot, "reviews-v2", ratings, &get, 3);
    assert_eq!(arrives(&allowed), Some("ratings-v1-1"), "{allowed:#?}");
    for (from, parts) in [("productpage-v1", &get), ("reviews-v2", &post)] {
        let refused = call(&snapshot, from, ratings, parts, 3);
        assert_eq!(refused.verdict, Verdict::Refused(Some(403)), "{from}: {refused:#?}");
    }
    let around = call(&snapshot, "productpage-v1", ratings_pod, &get, 3);
    assert!(matches!(around.verdict, Verdict::Refused(_)), "around the waypoint: {around:#?}");
    let by: Vec<_> = around.steps.iter().filter_map(|step| step.decided_by.as_deref()).collect();
    assert!(
        by.iter().any(|by| by.contains("waymark-guard-ratings-v1")),
        "the guard is named: {by:?}"
    );
}

#[test]
fn an_observed_guard_lets_past_what_it_would_refuse() {
    let mut world = Bookinfo::new();
    world.put("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: waymark, namespace: istio-system}\ndata: {guard: observe}\n");
    let around =
        call(&world.snapshot(), "productpage-v1", world.pod("details-v1"), &request("GET", "/"), 3);
    assert_eq!(arrives(&around), Some("details-v1-1"), "{around:#?}");
}

#[test]
fn routes_of_a_service_split_its_calls_and_follow_an_edit() {
    let mut world = Bookinfo::new();
    let reviews = world.service("reviews");
    let get = request("GET", "/reviews/0");
    let reached = |world: &Bookinfo| {
        let snapshot = world.snapshot();
        let pods: std::collections::BTreeSet<String> = (0..40_u64)
            .filter_map(|n| {
                let roll = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let answer = call(&snapshot, "productpage-v1", reviews, &get, roll);
                arrives(&answer).map(str::to_owned)
            })
            .collect();
        pods.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(reached(&world), ["reviews-v1-1", "reviews-v2-1", "reviews-v3-1"]);
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: reviews, namespace: bookinfo}\nspec: {parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}], rules: [{backendRefs: [{name: reviews-v3, port: 9080}]}]}\n",
    );
    assert_eq!(reached(&world), ["reviews-v3-1"]);
}

#[test]
fn a_waypoint_that_is_declared_and_absent_refuses() {
    let mut world = Bookinfo::new();
    world.remove(Kind::Gateway, "waypoint");
    world.remove(Kind::Service, "waypoint");
    world.remove(Kind::Deployment, "waypoint");
    world.remove(Kind::Pod, "waypoint-1");
    let snapshot = world.snapshot();
    let answer =
        call(&snapshot, "productpage-v1", world.service("details"), &request("GET", "/"), 3);
    assert!(matches!(answer.verdict, Verdict::Refused(_)), "{answer:#?}");
}
