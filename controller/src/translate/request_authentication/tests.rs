// SPDX-License-Identifier: Apache-2.0

//! Who gets a RequestAuthentication, and what becomes of rules that cannot be served.

use std::sync::Arc;

use policy::jwt::{Jwks, JwtRule, Place, RequestAuthentication as Domain};

use super::super::Translator;
use super::super::testing::{Made, Told, run, stores, told};
use super::*;
use crate::output::Resource;
use crate::status::Condition;
use crate::store::Stores;

const WORLD: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: istio
  infrastructure: {labels: {istio: ingressgateway}}
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {selector: {app: bare}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: []}
";

const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;

fn world(namespace: &str, spec: &str) -> Stores {
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: r, namespace: {namespace}}}\nspec: {spec}"
    );
    stores(&[WORLD, &policy])
}

fn made(namespace: &str, spec: &str) -> Made {
    run(&world(namespace, spec), Translator::RequestAuthentication, &format!("{namespace}/r"))
}

fn sent(made: &Made) -> Option<(Arc<Domain>, Scope)> {
    made.0.iter().find_map(|output| {
        let Output::Config(config) = output else { return None };
        let Resource::Plane(Plane::RequestAuthentication(sent)) = &config.resource else {
            return None;
        };
        Some((Arc::clone(sent), config.scope.clone()))
    })
}

fn conditions(made: &Made) -> &[Condition] {
    let Body::Conditions(conditions) = &made.status().body else { panic!("no conditions") };
    conditions
}

fn both(status: bool, reason: &'static str) -> Told {
    Told::from([("Accepted", (status, reason)), ("WaypointAccepted", (status, reason))])
}

#[test]
fn it_goes_to_what_it_points_at_and_to_the_ingress_gateways_that_it_selects() {
    let rules = format!("jwtRules: [{{issuer: i, jwks: '{SET}'}}]");
    let service = Target::Service("shop/web.shop.svc.cluster.local".into());
    let edge = Target::Gateway("shop/edge".into());
    let to = |name: &str| Scope::Gateways([Name::new("shop", name)].into());
    let refs = |kind: &str, name: &str| {
        let group = if kind == "Gateway" { "gateway.networking.k8s.io" } else { "''" };
        format!("targetRefs: [{{group: {group}, kind: {kind}, name: {name}}}], ")
    };
    let cases = [
        (
            "shop",
            refs("Service", "web"),
            Some((service, Scope::AllGateways)),
            both(true, "Accepted"),
        ),
        (
            "shop",
            refs("Gateway", "wp"),
            Some((Target::Gateway("shop/wp".into()), Scope::AllGateways)),
            both(true, "Accepted"),
        ),
        (
            "shop",
            "selector: {matchLabels: {istio: ingressgateway}}, ".into(),
            Some((edge.clone(), to("edge"))),
            both(true, "Accepted"),
        ),
        ("istio-system", String::new(), Some((edge, to("edge"))), both(true, "Accepted")),
        // Tunnels read no tokens.
        (
            "shop",
            "selector: {matchLabels: {app: web}}, ".into(),
            None,
            both(false, "AncestorNotBound"),
        ),
    ];
    for (namespace, whom, want, told_want) in cases {
        let made = made(namespace, &format!("{{{whom}{rules}}}"));
        let got = sent(&made).map(|(sent, scope)| (sent.targets.clone(), scope));
        let want = want.map(|(target, scope)| (vec![target], scope));
        assert_eq!(got, want, "{namespace} {whom}");
        assert_eq!(told(conditions(&made)), told_want, "{namespace} {whom}");
    }
    let bare = made("shop", &format!("{{{}{rules}}}", refs("Service", "bare")));
    assert_eq!(told(conditions(&bare)), both(false, "AncestorNotBound"), "no waypoint");
    let all = made("shop", &format!("{{{rules}}}"));
    let message = &conditions(&all)[0].message;
    assert!(
        message.contains("shop/edge") && message.contains("tunnels read no tokens"),
        "{message}"
    );
}

fn at_edge(rule: &str) -> (JwtRule, String, Told) {
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]";
    let made = made("shop", &format!("{{{target}, jwtRules: [{rule}]}}"));
    let (sent, _) = sent(&made).expect("it is sent whatever it says");
    let message = conditions(&made)[0].message.clone();
    (sent.rules[0].clone(), message, told(conditions(&made)))
}

#[test]
fn every_field_of_a_rule_reaches_gateways() {
    let (rule, _, told) = at_edge(&format!(
        "{{issuer: i, jwks: '{SET}', audiences: [a], fromHeaders: [{{name: X-Token, prefix: 'T '}}], \
          fromParams: [p], fromCookies: [c], outputPayloadToHeader: x-payload, \
          outputClaimToHeaders: [{{header: x-sub, claim: sub}}], forwardOriginalToken: true, \
          spaceDelimitedClaims: [roles]}}"
    ));
    assert_eq!(told, both(true, "Accepted"));
    let name = |text: &'static str| http::HeaderName::from_static(text);
    let want = JwtRule {
        issuer: "i".into(),
        audiences: vec!["a".into()],
        keys: Jwks::parse(SET.as_bytes()).unwrap().keys,
        places: vec![
            Place::Header { name: name("x-token"), prefix: "T ".into() },
            Place::Parameter("p".into()),
            Place::Cookie("c".into()),
        ],
        forward: true,
        payload_header: Some(name("x-payload")),
        claim_headers: vec![policy::jwt::ClaimHeader {
            header: name("x-sub"),
            claim: "sub".into(),
        }],
        spaced_claims: vec!["roles".into()],
    };
    assert_eq!(rule, want);
    let (rule, _, _) = at_edge(&format!("{{issuer: i, jwks: '{SET}'}}"));
    assert_eq!(rule.places, Place::defaults());
}

#[test]
fn a_rule_that_cannot_be_served_refuses_the_tokens_of_its_issuer() {
    let with = |more: &str| format!("{{issuer: i, jwks: '{SET}', {more}}}");
    let cases = [
        // rule, reason, field
        (format!("{{issuer: '', jwks: '{SET}'}}"), "Invalid", "jwtRules[0].issuer"),
        ("{issuer: i}".into(), "Invalid", "jwtRules[0].issuer"),
        ("{issuer: i, jwks: 'x'}".into(), "Invalid", "jwtRules[0].jwks"),
        ("{issuer: i, jwks: '{\"keys\": []}'}".into(), "Invalid", "jwtRules[0].jwks"),
        ("{issuer: i, jwksUri: 'ftp://i'}".into(), "Invalid", "jwtRules[0].jwksUri"),
        ("{issuer: i, jwksUri: 'https://i'}".into(), "KeysNotFetched", "https://i"),
        ("{issuer: i, jwks_uri: 'https://i'}".into(), "KeysNotFetched", "https://i"),
        (
            "{issuer: 'https://i/'}".into(),
            "KeysNotFetched",
            "https://i/.well-known/openid-configuration",
        ),
        (with("fromHeaders: [{name: 'a b'}]"), "Invalid", "fromHeaders[0].name"),
        (with("fromParams: ['']"), "Invalid", "fromParams[0]"),
        (with("outputPayloadToHeader: 'a b'"), "Invalid", "outputPayloadToHeader"),
        (
            with("outputClaimToHeaders: [{header: x, claim: ''}]"),
            "Invalid",
            "outputClaimToHeaders[0].claim",
        ),
        (with("timeout: soon"), "Invalid", "timeout"),
    ];
    for (text, reason, field) in cases {
        let (rule, message, told) = at_edge(&text);
        assert_eq!(rule.keys, [], "{text}");
        assert_eq!(told, both(false, reason), "{text}");
        assert!(message.contains(field), "{text}: {message}");
        assert!(!rule.places.is_empty(), "{text}: tokens are looked for");
    }
    let whole = made(
        "shop",
        &format!(
            "{{selector: {{matchLabels: {{a: b}}}}, \
             targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}], \
             jwtRules: [{{issuer: i, jwks: '{SET}'}}]}}"
        ),
    );
    assert_eq!(sent(&whole).unwrap().0.rules[0].keys, []);
    assert_eq!(told(conditions(&whole)), both(false, "Invalid"));
}

#[test]
fn fetched_keys_stay_when_a_later_try_fails() {
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]";
    let rule = "jwtRules: [{issuer: i, jwksUri: 'https://i/keys'}]";
    let mut stores = world("shop", &format!("{{{target}, {rule}}}"));
    let source = KeySource::Uri("https://i/keys".into());
    let good = Jwks::parse(SET.as_bytes()).unwrap().keys;
    let made = |stores: &Stores| run(stores, Translator::RequestAuthentication, "shop/r");
    let keys = |made: &Made| sent(made).unwrap().0.rules[0].keys.clone();

    assert!(stores.facts.set_keys(&source, Err("refused".into())).is_some());
    let first = made(&stores);
    assert_eq!((keys(&first), told(conditions(&first))), (vec![], both(false, "KeysNotFetched")));
    assert!(conditions(&first)[0].message.contains("refused"));

    assert!(stores.facts.set_keys(&source, Ok(good.clone())).is_some());
    assert_eq!(stores.facts.set_keys(&source, Ok(good.clone())), None, "nothing is new");
    let second = made(&stores);
    assert_eq!((keys(&second), told(conditions(&second))), (good.clone(), both(true, "Accepted")));

    assert!(stores.facts.set_keys(&source, Err("timed out".into())).is_some());
    let third = made(&stores);
    assert_eq!((keys(&third), told(conditions(&third))), (good, both(true, "Accepted")));
    assert!(conditions(&third)[0].message.contains("timed out"));
}
