// SPDX-License-Identifier: Apache-2.0

//! From the name of a resource that a proxy refuses to what is told on objects.

use serde_json::Value;

use super::*;
use crate::serve::clients::Refusal;
use crate::status::board::{Board, Moment};
use crate::translate::testing::{Edited, certificate, secret};

#[test]
fn a_resource_leads_back_to_its_object() {
    let listener = |name: &str| Part::Listener(name.to_owned());
    let cases = [
        (Family::Route, "HTTPRoute/ns/r/3", "HTTPRoute ns/r", Part::All),
        (Family::Listener, "ns/gw/http", "Gateway ns/gw", listener("http")),
        (Family::Gateway, "ns/gw", "Gateway ns/gw", Part::All),
        (Family::Listener, "ns/gw/infra/set/http", "ListenerSet infra/set", listener("http")),
        (Family::Authorization, "ns/p", "AuthorizationPolicy ns/p", Part::All),
        (
            Family::Authorization,
            "ns/converted_peer_authentication_p",
            "PeerAuthentication ns/p",
            Part::All,
        ),
        (Family::RequestAuthentication, "ns/p", "RequestAuthentication ns/p", Part::All),
        (Family::Address, "ns/web.ns.svc.cluster.local", "Service ns/web", Part::All),
    ];
    for (family, name, want, part) in cases {
        let (key, found) = object(family, name).unwrap();
        assert_eq!((key.to_string().as_str(), found), (want, part), "{name}");
    }
    assert_eq!(object(Family::Secret, "ns/s"), None);
    for of_nobody in ["ns/web.example.com", "Kubernetes//Pod/ns/web"] {
        assert_eq!(object(Family::Address, of_nobody), None, "{of_nobody}");
    }
    assert_eq!(object(Family::Route, ""), None);
}

/// What the proxy in a pod refuses.
fn refusing(pod: &str, resources: &[(Family, &str)]) -> Seen {
    let refusal = |(family, name): &(Family, &str)| Refusal {
        kind: family.type_url().to_owned(),
        name: (*name).to_owned(),
        reason: "too new for me".to_owned(),
    };
    Seen {
        role: "gateway",
        pod: pod.to_owned(),
        node: "n1".to_owned(),
        address: None,
        acked: 1,
        connected: true,
        silent: false,
        follows_roots: true,
        refused: resources.iter().map(refusal).collect(),
        via: None,
    }
}

/// What objects are told once every client has acknowledged everything but what it refuses.
fn told(world: &Edited, clients: &[Seen]) -> Board {
    let mut board = Board::default();
    let moment = Moment { acked: 1, now: "now" };
    for (key, output) in world.table().all() {
        if let (OutputKey::Status(key), Output::Status(status)) = (key, output) {
            board.update(key, Some((status.clone(), BTreeMap::new())), 1, moment);
        }
    }
    let known = Known { stores: world.stores(), table: world.table(), mesh: &Mesh::default() };
    board.rejected(by_object(clients, known), moment);
    board
}

fn of(board: &Board, kind: Kind, name: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    board.get(&Key { kind, name: Name::new(namespace, name) }).unwrap()
}

/// Status and message of a condition.
fn condition(conditions: &Value, kind: &str) -> (String, String) {
    let all = conditions.as_array().unwrap();
    let one = all.iter().find(|one| one["type"] == kind).unwrap();
    let text = |field: &str| one[field].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

#[test]
fn a_backend_tls_policy_is_told_in_each_of_its_ancestors() {
    let (pem, _) = certificate("ca");
    let mut world = Edited::default();
    world.put(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: infra}}\ndata:\n  ca.crt: |\n    {}\n",
        pem.trim().replace('\n', "\n    ")
    ));
    world.put(
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: infra}
spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: infra}
spec: {gatewayClassName: waymark, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: infra}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 443}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p, namespace: infra}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  validation: {hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}
",
    );
    let accepted = |clients: &[Seen]| {
        let value = of(&told(&world, clients), Kind::BackendTlsPolicy, "infra/p");
        condition(&value["ancestors"][0]["conditions"], "Accepted")
    };
    assert_eq!(accepted(&[]).0, "True");
    let name = "infra/web.infra.svc.cluster.local/*";
    let (status, message) = accepted(&[refusing("infra/gw-1", &[(Family::BackendTls, name)])]);
    assert_eq!(status, "False");
    assert_eq!(message, "gateway infra/gw-1 refused it: too new for me");
    let strange = refusing("infra/gw-1", &[(Family::BackendTls, "infra/gone.example/443")]);
    assert_eq!(accepted(&[strange]).0, "True");
}

/// Two Gateways with a Secret; one shows it to backends, too, and has a set.
const NAMING: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: infra}
spec:
  gatewayClassName: waymark
  allowedListeners: {namespaces: {from: Same}}
  tls: {backend: {clientCertificateRef: {name: client}}}
  listeners:
  - {name: named, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
  - {name: plain, port: 80, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: other, namespace: infra}
spec:
  gatewayClassName: waymark
  listeners: [{name: named, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: set, namespace: infra}
spec:
  parentRef: {name: gw}
  listeners: [{name: more, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}]
";

#[test]
fn a_secret_is_told_on_the_listeners_that_name_it_at_the_gateway_that_refuses_it() {
    let (pem, key) = certificate("example.org");
    let mut world = Edited::default();
    for name in ["web", "client"] {
        world.put(&secret("infra", name, &pem, &key));
    }
    world.put(NAMING);
    for gateway in ["gw", "other"] {
        world.put(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {gateway}-1, namespace: infra, uid: {gateway}, labels: \
             {{gateway.networking.k8s.io/gateway-name: {gateway}}}}}\nspec: {{containers: []}}\n\
             status: {{phase: Running, podIP: 10.0.0.1, conditions: [{{type: Ready, status: 'True'}}]}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: {gateway}-waymark, namespace: infra}}\n\
             spec: {{clusterIP: 10.96.0.5, ports: [{{port: 80}}]}}\n"
        ));
    }
    let programmed = |clients: &[Seen]| {
        let board = told(&world, clients);
        let gateway = of(&board, Kind::Gateway, "infra/gw");
        let set = of(&board, Kind::ListenerSet, "infra/set");
        let other = of(&board, Kind::Gateway, "infra/other");
        [
            &gateway["conditions"],
            &gateway["listeners"][0]["conditions"],
            &gateway["listeners"][1]["conditions"],
            &set["conditions"],
            &set["listeners"][0]["conditions"],
            &other["listeners"][0]["conditions"],
        ]
        .map(|conditions| condition(conditions, "Programmed"))
    };
    let statuses = |told: &[(String, String); 6]| -> [bool; 6] {
        std::array::from_fn(|at| told[at].0 == "True")
    };
    assert_eq!(statuses(&programmed(&[])), [true; 6]);
    let web = programmed(&[refusing("infra/gw-1", &[(Family::Secret, "infra/web")])]);
    assert_eq!(statuses(&web), [false, false, true, false, false, true]);
    assert_eq!(web[1].1, "gateway infra/gw-1 refused Secret infra/web: too new for me");
    let client = programmed(&[refusing("infra/gw-1", &[(Family::Secret, "infra/client")])]);
    assert_eq!(statuses(&client), [false, true, true, true, true, true]);
    let one = programmed(&[refusing("infra/gw-1", &[(Family::Listener, "infra/gw/plain")])]);
    assert_eq!(statuses(&one), [false, true, false, true, true, true]);
}
