// SPDX-License-Identifier: Apache-2.0

//! What is refused, and that what is right is not.

use std::path::Path;

use crate::source::document;

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: app}
spec:
  parentRefs: [{name: gw, sectionName: http}]
  hostnames: ['*.example.com']
  rules:
  - name: one
    matches:
    - path: {type: PathPrefix, value: /a}
      headers: [{name: x-a, value: b}]
      method: GET
    filters:
    - type: URLRewrite
      urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: m, port: 80}, percent: 10}
    timeouts: {request: 10s, backendRequest: 5s}
    retry: {codes: [503], attempts: 2, backoff: 100ms}
    backendRefs: [{name: web, port: 80, weight: 1}]
";

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: app}
spec:
  gatewayClassName: waymark
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: a.example.com}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}
";

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80}, {name: admin, port: 81}]
";

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: app}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: i, ports: [{containerPort: 80}]}]}
";

/// Fields and messages of all that is wrong with `text`.
fn wrong(text: &str) -> Vec<String> {
    let parsed = document::parse(Path::new("f"), text);
    assert_eq!(parsed.objects.is_empty(), !parsed.problems.is_empty(), "refused whole or taken");
    parsed
        .problems
        .iter()
        .map(|p| format!("{}: {}", p.field.as_deref().unwrap_or_default(), p.message))
        .collect()
}

#[test]
fn what_is_right_is_taken() {
    for text in [ROUTE, GATEWAY, SERVICE, DEPLOYMENT] {
        assert_eq!(wrong(text), Vec::<String>::new());
    }
}

#[test]
fn each_limit_refuses_and_names_its_field() {
    let cases: &[(&str, &str, &str, &str)] = &[
        (ROUTE, "weight: 1", "weight: -1", "spec.rules[0].backendRefs[0].weight"),
        (ROUTE, "{name: web, port: 80", "{name: web", "spec.rules[0].backendRefs[0].port"),
        (
            ROUTE,
            "{name: web, port: 80",
            "{name: web, port: 70000",
            "spec.rules[0].backendRefs[0].port",
        ),
        (ROUTE, "value: /a", "value: a", "spec.rules[0].matches[0].path.value"),
        (ROUTE, "value: /a", "value: /a//b", "spec.rules[0].matches[0].path.value"),
        (ROUTE, "type: PathPrefix", "type: Prefix", "spec.rules[0].matches[0].path.type"),
        (ROUTE, "type: PathPrefix", "type: Exact", "spec.rules[0].filters[0].urlRewrite.path.type"),
        (ROUTE, "name: x-a", "name: 'x a'", "spec.rules[0].matches[0].headers[0].name"),
        (ROUTE, "method: GET", "method: get", "spec.rules[0].matches[0].method"),
        (ROUTE, "request: 10s", "request: 10", "spec.rules[0].timeouts.request"),
        (ROUTE, "request: 10s", "request: 1s", "spec.rules[0].timeouts.backendRequest"),
        (ROUTE, "codes: [503]", "codes: [200]", "spec.rules[0].retry.codes[0]"),
        (ROUTE, "percent: 10", "percent: 101", "spec.rules[0].filters[1].requestMirror.percent"),
        (ROUTE, "'*.example.com'", "'a.*.com'", "spec.hostnames[0]"),
        (ROUTE, "'*.example.com'", "'a.com:80'", "spec.hostnames[0]"),
        (ROUTE, "type: URLRewrite", "type: Rewrite", "spec.rules[0].filters[0].type"),
        (ROUTE, "type: RequestMirror", "type: CORS", "spec.rules[0].filters[1].requestMirror"),
        (ROUTE, "sectionName: http", "port: 0", "spec.parentRefs[0].port"),
        (ROUTE, "name: r,", "name: R,", "metadata.name"),
        (GATEWAY, "port: 80", "port: 0", "spec.listeners[0].port"),
        (GATEWAY, "name: https", "name: http", "spec.listeners[1].name"),
        (GATEWAY, "protocol: HTTP,", "protocol: UDP,", "spec.listeners[0].hostname"),
        (GATEWAY, "protocol: HTTPS", "protocol: TCP", "spec.listeners[1].tls"),
        (SERVICE, "port: 81", "port: 80", "spec.ports[1].port"),
        (SERVICE, "name: admin, ", "", "spec.ports[1].name"),
        (SERVICE, "port: 81", "port: 81, protocol: HTTP", "spec.ports[1].protocol"),
        (DEPLOYMENT, "labels: {app: web}", "labels: {app: other}", "spec.selector.matchLabels.app"),
        (DEPLOYMENT, "replicas: 1", "replicas: -1", "spec.replicas"),
        (DEPLOYMENT, "image: i, ", "", "spec.template.spec.containers[0].image"),
    ];
    for (text, from, to, field) in cases {
        assert!(text.contains(from), "{from}");
        let found = wrong(&text.replacen(from, to, 1));
        assert!(
            found.iter().any(|said| said.starts_with(&format!("{field}: "))),
            "{to}: {found:?}"
        );
    }
}
