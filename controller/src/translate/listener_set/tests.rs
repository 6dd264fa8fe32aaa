// SPDX-License-Identifier: Apache-2.0

//! ListenerSets by the cases of the Gateway API suite.

use std::collections::BTreeMap;

use super::super::Translator;
use super::super::testing::{Told, certificate, run, secret, stores, told};
use crate::status::Body;

const READY: &str = "
apiVersion: v1
kind: Service
metadata: {name: gw-waymark, namespace: infra}
spec: {type: LoadBalancer, clusterIP: 10.96.0.5, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 10.97.0.1}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: infra, labels: {gateway.networking.k8s.io/gateway-name: gw}}
spec: {containers: []}
status: {phase: Running, podIP: 10.244.1.9, conditions: [{type: Ready, status: 'True'}]}
";

const SETS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: team, labels: {tier: team}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: older, namespace: team, creationTimestamp: '2026-01-01T00:00:01Z'}
spec:
  parentRef: {name: gw, namespace: infra}
  listeners:
  - {name: a, port: 80, protocol: HTTP, hostname: a.com}
  - {name: taken, port: 80, protocol: HTTP, hostname: own.com}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: newer, namespace: infra, creationTimestamp: '2026-01-01T00:00:02Z'}
spec:
  parentRef: {name: gw}
  listeners: [{name: a, port: 80, protocol: HTTP, hostname: a.com}, {name: tcp, port: 80, protocol: TCP}]
";

fn set_gateway(from: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: infra}}\n\
         spec:\n  gatewayClassName: waymark\n  allowedListeners: {{namespaces: {from}}}\n  \
         listeners: [{{name: own, port: 80, protocol: HTTP, hostname: own.com}}]\n"
    )
}

/// What a set says, and each of its listeners.
fn set(stores: &crate::store::Stores, name: &str) -> (Told, BTreeMap<String, Told>) {
    let made = run(stores, Translator::ListenerSet, name);
    let Body::Set { conditions, listeners } = &made.status().body else { panic!() };
    let listeners = listeners.iter().map(|one| (one.name.clone(), told(&one.conditions)));
    (told(conditions), listeners.collect())
}

#[test]
fn listener_sets_are_taken_from_allowed_namespaces_only() {
    let cases = [
        // allowed, team's, own
        ("{}", false, false),
        ("{from: None}", false, false),
        ("{from: Same}", false, true),
        ("{from: All}", true, true),
        ("{from: Selector, selector: {matchLabels: {tier: team}}}", true, false),
    ];
    for (from, team, own) in cases {
        let stores = stores(&[&set_gateway(from), READY, SETS]);
        for (name, want) in [("team/older", team), ("infra/newer", own)] {
            let (told, listeners) = set(&stores, name);
            if want {
                assert_eq!(listeners.len(), 2, "{from} {name}");
            } else {
                assert_eq!(told["Accepted"], (false, "NotAllowed"), "{from} {name}");
                assert_eq!(told["Programmed"], (false, "NotAllowed"), "{from} {name}");
            }
        }
    }
}

#[test]
fn listeners_of_the_gateway_go_before_those_of_sets_and_older_sets_before_newer() {
    let stores = stores(&[&set_gateway("{from: All}"), READY, SETS]);
    let (older, listeners) = set(&stores, "team/older");
    assert!(older["Accepted"].0);
    assert_eq!(listeners["a"]["Accepted"], (true, "Accepted"));
    assert_eq!(listeners["a"]["Programmed"], (true, "Programmed"));
    assert_eq!(listeners["taken"]["Conflicted"], (true, "HostnameConflict"));
    assert!(!listeners["taken"]["Programmed"].0);
    let (newer, listeners) = set(&stores, "infra/newer");
    assert_eq!(newer["Accepted"], (false, "ListenersNotValid"));
    assert_eq!(listeners["a"]["Conflicted"], (true, "HostnameConflict"));
    assert_eq!(listeners["tcp"]["Conflicted"], (true, "ProtocolConflict"));

    let made = run(&stores, Translator::Gateway, "infra/gw");
    let names: Vec<_> = made.listeners().iter().map(|one| one.name.to_string()).collect();
    assert_eq!(names, ["infra/gw/own", "infra/gw/team/older/a"]);
    let (conditions, own) = made.gateway();
    assert_eq!(conditions["Accepted"], (true, "Accepted"), "sets do not touch the Gateway");
    assert_eq!(own.len(), 1, "only its own listeners");
    let Body::Gateway { sets, .. } = &made.status().body else { panic!() };
    assert_eq!(*sets, 1);
}

#[test]
fn a_route_attaches_to_a_gateway_or_to_a_set_and_never_through_the_other() {
    let route = |parent: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: team}}\n\
             spec: {{parentRefs: [{parent}]}}\n"
        );
        let stores = stores(&[&set_gateway("{from: All}"), READY, SETS, &text]);
        let made = run(&stores, Translator::HttpRoute, "team/r");
        (made.attached(), made.parents()[0]["Accepted"])
    };
    let (attached, told) = route("{kind: ListenerSet, name: older}");
    assert_eq!(
        (attached, told),
        (vec!["team/older/a".to_owned(), "team/older/taken".to_owned()], (true, "Accepted"))
    );
    let (attached, told) = route("{name: gw, namespace: infra, sectionName: a}");
    assert_eq!((attached.len(), told), (0, (false, "NoMatchingParent")));
    let (attached, told) = route("{name: gw, namespace: infra}");
    assert_eq!(
        (attached.len(), told),
        (0, (false, "NotAllowedByListeners")),
        "Same is the Gateway's"
    );
    let (_, told) = route("{kind: ListenerSet, name: newer, namespace: infra}");
    assert_eq!(told, (false, "NotAllowedByListeners"), "Same is the set's");
}

#[test]
fn certificates_of_a_set_need_a_grant_for_sets() {
    let (pem, key) = certificate("example.org");
    let far = secret("certs", "far", &pem, &key);
    let written = "
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: tls, namespace: team}
spec:
  parentRef: {name: gw, namespace: infra}
  listeners: [{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: far, namespace: certs}]}}]
";
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: certs}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: team}}]\n  \
             to: [{{group: '', kind: Secret}}]\n"
        )
    };
    for (kind, want) in [("ListenerSet", true), ("Gateway", false)] {
        let gateway = set_gateway("{from: All}");
        let stores = stores(&[&gateway, READY, written, &far, &grant(kind)]);
        let (told, listeners) = set(&stores, "team/tls");
        assert_eq!(told["Accepted"].0, want, "{kind}");
        assert_eq!(listeners["l"]["ResolvedRefs"].0, want, "{kind}");
        let sent = run(&stores, Translator::Secret, "certs/far").0.len();
        assert_eq!(sent, usize::from(want), "{kind}");
    }
}
