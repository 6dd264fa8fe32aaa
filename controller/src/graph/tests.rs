// SPDX-License-Identifier: Apache-2.0

//! Running what a change touches gives what running everything would.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::output::Output;
use crate::provision;
use crate::source::document;
use crate::store::facts::{PodFact, PodState, Step};
use crate::store::{Name, Object};

/// Objects that know of each other, each in several forms.
const FORMS: &[&[&str]] = &[
    &[
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp}}",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b, istio.io/ingress-use-waypoint: 'false'}}",
    ],
    &["apiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {team: x}}"],
    &[
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r1}}",
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r2}}",
    ],
    &[
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p1, namespace: a, uid: u1, labels: {app: web, v: '1'}}\nspec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\nstatus: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p1, namespace: a, uid: u1, labels: {app: db}}\nspec: {nodeName: n1, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.1}",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p1, namespace: a, uid: u9, labels: {app: web}, deletionTimestamp: '2026-01-01T00:00:00Z'}\nspec: {nodeName: n2, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.1}",
    ],
    &[
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p2, namespace: a, uid: u2, labels: {app: web, istio.io/use-waypoint: wp}}\nspec: {nodeName: n1, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.2}",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p2, namespace: a, uid: u2, labels: {gateway.networking.k8s.io/gateway-name: wp, gateway.istio.io/managed: istio.io-mesh-controller}}\nspec: {nodeName: n1, serviceAccountName: wp, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.2, conditions: [{type: Ready, status: 'True'}]}",
    ],
    &[
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\nspec: {clusterIP: None, selector: {v: '1'}, ports: [{port: 80}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\nspec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: a}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: a, labels: {istio.io/waypoint-for: all}}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: b}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: b}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: a}\nspec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: a}\nspec: {gatewayClassName: c, listeners: [{name: http, port: 80, protocol: HTTP, hostname: x.example}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: c}\nspec: {controllerName: waymark.dev/gateway-controller}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: c}\nspec: {controllerName: other.example/controller}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{kind: Service, group: '', name: web}], hostnames: [x.example], rules: [{backendRefs: [{name: other, namespace: b, port: 80}]}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}",
    ],
    &[
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: z, namespace: a}\nspec: {selector: {matchLabels: {app: web}}, rules: [{}]}",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: z, namespace: a}\nspec: {targetRefs: [{kind: Service, name: web}], action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: z, namespace: a}\nspec: {}",
    ],
    &[
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: r, namespace: istio-system}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: r, namespace: istio-system}\nspec: {selector: {matchLabels: {app: web}}, action: AUDIT}",
    ],
    &[
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: m, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}",
    ],
    &[
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: a}\nspec: {selector: {matchLabels: {app: web}}, portLevelMtls: {'8080': {mode: PERMISSIVE}}}",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: a}\nspec: {mtls: {mode: PERMISSIVE}}",
    ],
    &[
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: s, namespace: a}\nspec: {hosts: [x.example], ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {app: web}}}",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: s, namespace: a}\nspec: {hosts: [x.example], ports: [{number: 80, name: http}], resolution: DNS}",
    ],
    &[
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: waymark, namespace: istio-system}\ndata: {guard: observe}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: l4, namespace: a}\nspec: {gatewayClassName: waymark, allowedListeners: {namespaces: {from: All}}, infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: params}}, listeners: [{name: tcp, port: 9000, protocol: TCP}, {name: udp, port: 9000, protocol: UDP}, {name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}, {name: https, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: l4, namespace: a}\nspec: {gatewayClassName: c, listeners: [{name: tcp, port: 9000, protocol: TCP}, {name: udp, port: 9000, protocol: UDP}, {name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}, {name: https, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: set, namespace: b}\nspec: {parentRef: {name: l4, namespace: a}, listeners: [{name: http, port: 80, protocol: HTTP}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: set, namespace: b}\nspec: {parentRef: {name: edge, namespace: a}, listeners: [{name: http, port: 81, protocol: HTTP}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: a}\nspec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: a}\nspec: {parentRefs: [{kind: ListenerSet, name: set, namespace: b}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: t, namespace: a}\nspec: {hostnames: [x.example], parentRefs: [{name: l4}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: t, namespace: a}\nspec: {parentRefs: [{name: l4, sectionName: tcp}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: t, namespace: a}\nspec: {parentRefs: [{name: l4}], rules: [{backendRefs: [{name: other, namespace: b, port: 80}]}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: UDPRoute\nmetadata: {name: u, namespace: a}\nspec: {parentRefs: [{name: l4}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ],
    &[
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: x.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: params}]}}",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: x.example, wellKnownCACertificates: System}}",
    ],
    &[
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: params, namespace: a}\ndata: {deployment: 'spec: {replicas: 2}'}",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: params, namespace: a}\ndata: {horizontalPodAutoscaler: 'spec: {maxReplicas: 3}', ca.crt: none}",
    ],
    &[
        "apiVersion: v1\nkind: Secret\nmetadata: {name: cert, namespace: a}\nstringData: {tls.crt: none, tls.key: none}",
    ],
    &[
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: t, namespace: a}\nspec: {targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: i, jwksUri: 'https://i.example/keys'}]}",
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: t, namespace: a}\nspec: {jwtRules: [{issuer: i, jwksUri: 'https://i.example/keys'}]}",
    ],
    &[
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: a}\nspec: {address: 10.0.0.9, labels: {app: web}, ports: {http: 8080}}",
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: a, labels: {istio.io/use-waypoint: wp}}\nspec: {address: vm.example, labels: {app: db}}",
    ],
    &[
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: a, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.7]}]",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: a, labels: {kubernetes.io/service-name: other}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.7], conditions: {ready: false}}]",
    ],
];

fn read(text: &str) -> Object {
    let mut parsed = document::parse(Path::new("f"), text);
    assert_eq!(parsed.problems, [], "{text}");
    parsed.objects.remove(0).object
}

/// One edit: an object takes a form, or goes; or a fact changes.
#[derive(Clone, Debug)]
enum Edit {
    Object(usize, Option<usize>),
    Pod(bool),
    Step(u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    let object = (0..FORMS.len(), prop::option::weighted(0.8, 0..4_usize))
        .prop_map(|(at, form)| Edit::Object(at, form));
    prop_oneof![8 => object, 1 => any::<bool>().prop_map(Edit::Pod), 1 => (0..4_u8).prop_map(Edit::Step)]
}

fn apply(stores: &mut Stores, edit: &Edit) -> Vec<ReadKey> {
    match edit {
        Edit::Object(at, form) => {
            let forms = FORMS[*at];
            match form {
                Some(form) => stores.put(read(forms[form % forms.len()])),
                None => stores.remove(&read(forms[0]).key()),
            }
        }
        Edit::Pod(enrolled) => {
            let state = if *enrolled { PodState::Enrolled } else { PodState::Failed };
            let fact = PodFact {
                node: "n1".into(),
                state,
                reason: String::new(),
                older_connections: 0,
                repairs: 0,
                plain_inbound: false,
                observed_generation: 0,
            };
            stores.facts.set_pod("u1", Some(fact)).into_iter().collect()
        }
        Edit::Step(step) => {
            let address = routing::discovery::GatewayAddress {
                destination: routing::discovery::GatewayDestination::Hostname(
                    "a/wp".parse().unwrap(),
                ),
                hbone_port: 15008,
            };
            let steps = [Step::Waiting, Step::Published, Step::Settled, Step::Leaving(address)];
            let step = steps[usize::from(*step)].clone();
            let key = crate::api::service_key("a", "web");
            stores.facts.set_step(&key, step).into_iter().collect()
        }
    }
}

/// Every output, printed, in order; but objects of Gateways whose parameters are refused stay as
/// they were, and what was before no single run can know.
fn printed(graph: &Graph) -> Vec<String> {
    let doubtful = provision::doubtful(&graph.table);
    let stays = |output: &Output| match output {
        Output::Object(manifest) => doubtful.contains(&manifest.owner),
        Output::Config(_) | Output::Status(_) | Output::Attached(_) | Output::NotServed(_) => false,
    };
    let known = graph.table.all().filter(|(_, output)| !stays(output));
    let mut all: Vec<_> = known.map(|(key, output)| format!("{key:?} {output:?}")).collect();
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn incremental_is_full_recompute(edits in prop::collection::vec(edit(), 1..60)) {
        let mesh = Mesh::default();
        let (mut stores, mut graph) = (Stores::default(), Graph::default());
        for edit in &edits {
            let before = printed(&graph);
            let touched = apply(&mut stores, edit);
            let changed = graph.run(&stores, &mesh, &touched);
            let after = printed(&graph);
            prop_assert_eq!(&after, &printed(&Graph::full(&stores, &mesh)), "after {:?}", edit);
            if changed.is_empty() {
                prop_assert_eq!(&before, &after, "nothing was said to have changed");
            }
            let gateway = |name| Key { kind: Kind::Gateway, name: Name::new("a", name) };
            let set = Key { kind: Kind::ListenerSet, name: Name::new("b", "set") };
            let listeners = [(gateway("edge"), "http"), (gateway("l4"), "tcp"), (set, "http")];
            for (key, listener) in listeners {
                let listened = (key, listener.into());
                let fresh = Graph::full(&stores, &mesh).table.attached(&listened);
                prop_assert_eq!(graph.table.attached(&listened), fresh);
            }
        }
    }
}

#[test]
fn every_kind_that_translators_start_from_is_edited() {
    let edited: BTreeSet<Kind> = FORMS.iter().map(|forms| read(forms[0]).key().kind).collect();
    for kind in Kind::ALL {
        let starts = tasks_of(&Key { kind: *kind, name: Name::new("a", "x") }).next().is_some();
        assert!(!starts || edited.contains(kind), "{}", kind.as_str());
    }
}

#[test]
fn only_what_read_a_change_runs_again() {
    let mesh = Mesh::default();
    let (mut stores, mut graph) = (Stores::default(), Graph::default());
    for forms in FORMS {
        let touched = stores.put(read(forms[0]));
        graph.run(&stores, &mesh, &touched);
    }
    let touched = stores.put(read(FORMS[2][1]));
    let changed = graph.run(&stores, &mesh, &touched);
    let names: Vec<_> = changed.iter().map(|key| format!("{key:?}")).collect();
    assert!(names.iter().all(|name| name.contains("Pod/a/p")), "a node's region: {names:?}");
    assert_eq!(names.len(), 2);
    let gone = stores.remove(&read(FORMS[5][0]).key());
    let changed = graph.run(&stores, &mesh, &gone);
    let key = crate::api::service_key("a", "web");
    let service = changed.iter().find(|output| format!("{output:?}").contains(&key));
    assert!(service.is_some_and(|key| graph.table.get(key).is_none()), "the service is gone");
    let left = graph.table.all().filter(|(_, output)| matches!(output, Output::Config(_))).count();
    assert!(left > 0, "the others stay");
}
