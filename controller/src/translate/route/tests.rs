// SPDX-License-Identifier: Apache-2.0

//! Routes by the cases of the Gateway API suite.

use routing::filter::Filter;
use routing::matching::{PathMatch, RequestMatch};
use routing::route::{BackendTarget, Parent};

use super::super::Translator;
use super::super::testing::{Edited, Made, run, stores};
use crate::output::{Family, Scope};
use crate::store::Name;

const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: infra}
---
apiVersion: v1
kind: Namespace
metadata: {name: web, labels: {tier: web}}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: infra}
spec: {clusterIP: 10.96.0.1, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: backend, namespace: web}
spec: {clusterIP: 10.96.0.2, ports: [{port: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: same, namespace: infra}
spec:
  gatewayClassName: waymark
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: many, namespace: infra}
spec:
  gatewayClassName: waymark
  listeners:
  - {name: specific, port: 80, protocol: HTTP, hostname: very.specific.com}
  - {name: wild, port: 80, protocol: HTTP, hostname: '*.wildcard.io'}
  - {name: alt, port: 8080, protocol: HTTP, hostname: very.specific.com}
  - name: web
    port: 8090
    protocol: HTTP
    allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {tier: web}}}}
  - {name: tcp, port: 9000, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: foreign, namespace: infra}
spec:
  gatewayClassName: somebody-elses
  listeners: [{name: http, port: 80, protocol: HTTP}]
";

fn http(namespace: &str, spec: &str) -> Made {
    http_with(namespace, spec, &[])
}

fn http_with(namespace: &str, spec: &str, more: &[&str]) -> Made {
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: r, namespace: {namespace}, generation: 4}}\nspec:\n{spec}"
    );
    let texts: Vec<&str> = [BASE, &route].into_iter().chain(more.iter().copied()).collect();
    run(&stores(&texts), Translator::HttpRoute, &format!("{namespace}/r"))
}

fn to_v1(parent: &str) -> String {
    format!("  parentRefs: [{parent}]\n  rules: [{{backendRefs: [{{name: v1, port: 8080}}]}}]\n")
}

#[test]
fn http_route_simple_same_namespace() {
    let made = http("infra", &to_v1("{name: same}"));
    let told = &made.parents()[0];
    assert_eq!(told["Accepted"], (true, "Accepted"));
    assert_eq!(told["ResolvedRefs"], (true, "ResolvedRefs"));
    assert_eq!(made.attached(), ["infra/same/http"]);
    assert_eq!(made.status().generation, Some(4));

    let rules = made.rules();
    let (rule, scope) = &rules[0];
    assert_eq!(rules.len(), 1);
    assert_eq!(rule.name.to_string(), "HTTPRoute/infra/r/0");
    assert_eq!(rule.matches, [RequestMatch::any()]);
    assert_eq!(rule.parents[0].parent, Parent::Listener("infra/same/http".parse().unwrap()));
    let key = "infra/v1.infra.svc.cluster.local".parse().unwrap();
    assert_eq!(rule.backends[0].target, BackendTarget::Service { key, port: 8080 });
    assert_eq!(rule.backends[0].weight, 1);
    let only = [Name::new("infra", "same")].into_iter().collect();
    assert_eq!(**scope, Scope::Gateways(only));
}

#[test]
fn each_parent_names_the_step_that_left_no_listener() {
    let cases = [
        // namespace, parent, hostnames, reason
        ("infra", "{name: same, sectionName: nope}", "[]", Some("NoMatchingParent")),
        ("infra", "{name: many, port: 81}", "[]", Some("NoMatchingParent")),
        ("infra", "{name: many, sectionName: alt, port: 80}", "[]", Some("NoMatchingParent")),
        ("web", "{name: same, namespace: infra}", "[]", Some("NotAllowedByListeners")),
        ("infra", "{name: many, sectionName: tcp}", "[]", Some("NotAllowedByListeners")),
        ("infra", "{name: many, sectionName: wild}", "[a.org]", Some("NoMatchingListenerHostname")),
        (
            "infra",
            "{name: many, sectionName: wild}",
            "[wildcard.io]",
            Some("NoMatchingListenerHostname"),
        ),
        ("web", "{name: many, namespace: infra}", "[]", None),
        ("infra", "{name: many, port: 8080}", "[very.specific.com]", None),
    ];
    for (namespace, parent, hostnames, want) in cases {
        let spec = format!("  hostnames: {hostnames}\n  parentRefs: [{parent}]\n");
        let made = http(namespace, &spec);
        let accepted = made.parents()[0]["Accepted"];
        let expected = want.map_or((true, "Accepted"), |reason| (false, reason));
        assert_eq!(accepted, expected, "{parent} {hostnames}");
        assert_eq!(made.attached().is_empty(), want.is_some(), "{parent} {hostnames}");
    }
}

#[test]
fn parents_of_others_get_no_entry() {
    let both = to_v1("{name: foreign}, {name: gone}, {name: same}");
    assert_eq!(http("infra", &both).parents().len(), 1);
    assert!(http("infra", &to_v1("{name: foreign}")).0.is_empty());
}

#[test]
fn a_route_serves_the_hosts_that_it_shares_with_a_listener() {
    let spec = to_v1("{name: many}")
        + "  hostnames: [very.specific.com, foo.wildcard.io, '*.deep.wildcard.io', other.org]\n";
    let made = http("infra", &spec);
    let (rule, _) = &made.rules()[0];
    let hosts = |section: &str| -> Vec<String> {
        let name = Parent::Listener(format!("infra/many/{section}").parse().unwrap());
        let parent = rule.parents.iter().find(|parent| parent.parent == name).unwrap();
        parent.hostnames.iter().map(ToString::to_string).collect()
    };
    assert_eq!(hosts("specific"), ["very.specific.com"]);
    assert_eq!(hosts("wild"), ["foo.wildcard.io", "*.deep.wildcard.io"]);
    assert_eq!(hosts("alt"), ["very.specific.com"]);
    assert_eq!(made.attached(), ["infra/many/alt", "infra/many/specific", "infra/many/wild"]);
}

#[test]
fn references_that_do_not_resolve_say_why_and_keep_their_share() {
    let grant = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: web}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: FROM}]
  to: [{group: '', kind: Service, name: NAME}]
";
    let granted = grant.replace("FROM", "infra").replace("NAME", "backend");
    let wrong_from = grant.replace("FROM", "web").replace("NAME", "backend");
    let wrong_name = grant.replace("FROM", "infra").replace("NAME", "other");
    let across = "{name: backend, namespace: web, port: 8080}";
    let cases: [(&str, &[&str], Option<&str>); 8] = [
        ("{name: nope, port: 8080}", &[], Some("BackendNotFound")),
        ("{name: v1, port: 8081}", &[], Some("BackendNotFound")),
        ("{name: v1, kind: Nope, port: 8080}", &[], Some("InvalidKind")),
        ("{name: v1, group: a.b, port: 8080}", &[], Some("InvalidKind")),
        (across, &[], Some("RefNotPermitted")),
        (across, &[&wrong_from], Some("RefNotPermitted")),
        (across, &[&wrong_name], Some("RefNotPermitted")),
        (across, &[&granted], None),
    ];
    for (reference, more, want) in cases {
        let spec = format!(
            "  parentRefs: [{{name: same}}]\n  rules: [{{backendRefs: [{reference}, {{name: v1, port: 8080}}]}}]\n"
        );
        let made = http_with("infra", &spec, more);
        let told = &made.parents()[0];
        let expected = want.map_or((true, "ResolvedRefs"), |reason| (false, reason));
        assert_eq!(told["ResolvedRefs"], expected, "{reference}");
        assert_eq!(told["Accepted"], (true, "Accepted"), "{reference}");
        let (rule, _) = &made.rules()[0];
        let invalid = matches!(rule.backends[0].target, BackendTarget::Invalid { .. });
        assert_eq!(invalid, want.is_some(), "{reference}");
        assert!(matches!(rule.backends[1].target, BackendTarget::Service { .. }));
    }
}

#[test]
fn a_rule_that_cannot_be_read_is_dropped_and_reported() {
    let bad = "{matches: [{path: {type: RegularExpression, value: '('}}]}";
    let good = "{backendRefs: [{name: v1, port: 8080}]}";
    let made =
        http("infra", &format!("  parentRefs: [{{name: same}}]\n  rules: [{bad}, {good}]\n"));
    let told = &made.parents()[0];
    assert_eq!(told["Accepted"], (true, "Accepted"));
    assert_eq!(told["PartiallyInvalid"], (true, "UnsupportedValue"));
    assert_eq!(made.rules()[0].0.name.index, 1, "rules keep their places");

    let made = http("infra", &format!("  parentRefs: [{{name: same}}]\n  rules: [{bad}]\n"));
    assert_eq!(made.parents()[0]["Accepted"], (false, "UnsupportedValue"));
    assert!(made.rules().is_empty());
    assert!(made.attached().is_empty());
}

#[test]
fn the_last_good_version_of_a_rule_stays_until_a_new_one_can_be_read() {
    let route = |path: &str, parent: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: infra}}\n\
             spec:\n  parentRefs: [{{name: {parent}}}]\n  rules: [{{matches: [{{path: {{type: RegularExpression, value: '{path}'}}}}]}}]\n"
        )
    };
    let mut edited = Edited::default();
    edited.put(BASE);
    let name = "HTTPRoute/infra/r/0";
    assert_eq!(edited.put(&route("/a.*", "same")), [name]);
    assert!(
        edited.put(&route("(", "same")).is_empty(),
        "an edit that cannot be read sends nothing"
    );
    assert!(edited.holds(Family::Route, name), "and takes nothing away");
    assert_eq!(edited.put(&route("/b.*", "same")), [name]);
    assert_eq!(edited.put(&route("(", "gone")), [name], "a route without parents serves nobody");
    assert!(!edited.holds(Family::Route, name));
}

#[test]
fn filters_matches_and_limits_arrive() {
    let made = http(
        "infra",
        "  parentRefs: [{name: same}]
  rules:
  - name: all
    matches:
    - path: {type: PathPrefix, value: /a}
      method: POST
      headers: [{name: X-A, value: '1'}, {name: x-a, value: '2'}]
      queryParams: [{name: q, type: RegularExpression, value: 'b+'}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}
    - {type: URLRewrite, urlRewrite: {hostname: x.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 8080}, percent: 20}}
    - {type: CORS, cors: {allowOrigins: ['https://*.bar.com'], maxAge: 60}}
    - {type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}
    backendRefs:
    - {name: v1, port: 8080, weight: 7, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [b]}}]}
    timeouts: {request: 2s, backendRequest: 0s}
    retry: {attempts: 3, codes: [500], backoff: 100ms}
",
    );
    assert_eq!(made.parents()[0]["Accepted"], (true, "Accepted"));
    let (rule, _) = &made.rules()[0];
    assert_eq!(rule.rule_name.as_deref(), Some("all"));
    assert_eq!(rule.matches[0].path, PathMatch::Prefix("/a".into()));
    assert_eq!(rule.matches[0].headers.len(), 1, "the first of equal names counts");
    assert_eq!(rule.matches[0].query.len(), 1);
    let kinds: Vec<_> = rule.filters.iter().map(std::mem::discriminant).collect();
    assert_eq!(kinds.len(), 5);
    assert!(matches!(rule.filters[4], Filter::Invalid { .. }), "an unknown filter refuses");
    assert_eq!(rule.backends[0].weight, 7);
    assert!(matches!(rule.backends[0].filters[0], Filter::ResponseHeaders(_)));
    assert_eq!(rule.timeouts.request, Some(std::time::Duration::from_secs(2)));
    assert_eq!(rule.timeouts.backend_request, None, "zero is no limit");
    assert_eq!((rule.retry.attempts, &*rule.retry.codes), (3, &[500][..]));
    assert!(rule.retry.asked);
}

#[test]
fn what_would_mislead_a_proxy_is_refused() {
    let rules = [
        "{matches: [{path: {value: a}}]}",
        "{matches: [{method: 'G T'}]}",
        "{matches: [{headers: [{name: 'a b', value: c}]}]}",
        "{filters: [{type: Unheard}]}",
        "{filters: [{type: RequestRedirect}]}",
        "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}",
        "{filters: [{type: RequestRedirect, requestRedirect: {hostname: 'a.com:80'}}]}",
        "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}",
        "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 8080}, percent: 101}}]}",
        "{filters: [{type: CORS, cors: {allowOrigins: [nothing]}}]}",
        "{timeouts: {request: 1h2}}",
        "{timeouts: {request: 1s, backendRequest: 2s}}",
        "{retry: {codes: [200]}}",
    ];
    for rule in rules {
        let made = http("infra", &format!("  parentRefs: [{{name: same}}]\n  rules: [{rule}]\n"));
        assert_eq!(made.parents()[0]["Accepted"], (false, "UnsupportedValue"), "{rule}");
    }
}

const WAYPOINT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: infra}
spec:
  gatewayClassName: waymark-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: infra, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}, {port: 81}]}
";

#[test]
fn a_service_as_parent_sends_rules_to_its_waypoint() {
    let parents = "{group: '', kind: Service, name: echo, namespace: infra}";
    let key = || "infra/echo.infra.svc.cluster.local".parse().unwrap();
    let cases = [
        ("infra", parents.to_owned(), None, None),
        ("infra", parents.replace("}", ", port: 80}"), Some(80), None),
        ("web", parents.to_owned(), None, Some("web")),
    ];
    for (namespace, parent, port, consumer) in cases {
        let made = http_with(namespace, &to_v1(&parent), &[WAYPOINT]);
        assert_eq!(made.parents()[0]["Accepted"], (true, "Accepted"), "{namespace} {parent}");
        let rules = made.rules();
        let (rule, scope) = &rules[0];
        let consumer = consumer.map(std::sync::Arc::from);
        let want = Parent::Service { key: key(), port, consumer };
        assert_eq!(rule.parents[0].parent, want, "{namespace} {parent}");
        assert_eq!(**scope, Scope::Gateways([Name::new("infra", "waypoint")].into()));
    }
    let gone = http_with("infra", &to_v1(&parents.replace("}", ", port: 82}")), &[WAYPOINT]);
    assert_eq!(gone.parents()[0]["Accepted"], (false, "NoMatchingParent"));
}

#[test]
fn a_service_entry_as_parent_sends_rules_of_each_host_to_its_waypoint() {
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: infra, labels: {istio.io/use-waypoint: waypoint}}
spec: {hosts: [a.example, b.example], ports: [{number: 80, name: http}], resolution: DNS}
";
    let parent = "{group: networking.istio.io, kind: ServiceEntry, name: out, port: 80}";
    let made = http_with("infra", &to_v1(parent), &[WAYPOINT, entry]);
    assert_eq!(made.parents()[0]["Accepted"], (true, "Accepted"));
    let rules = made.rules();
    let (rule, scope) = &rules[0];
    let named: Vec<_> = rule.parents.iter().map(|one| one.parent.clone()).collect();
    let want = ["infra/a.example", "infra/b.example"].map(|key| Parent::Service {
        key: key.parse().unwrap(),
        port: Some(80),
        consumer: None,
    });
    assert_eq!(named, want);
    assert_eq!(**scope, Scope::Gateways([Name::new("infra", "waypoint")].into()));
    let other_port = parent.replace("80", "81");
    let gone = http_with("infra", &to_v1(&other_port), &[WAYPOINT, entry]);
    assert_eq!(gone.parents()[0]["Accepted"], (false, "NoMatchingParent"));
}

#[test]
fn l4_routes_attach_to_listeners_of_their_kind() {
    let base = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: l4, namespace: infra}
spec:
  gatewayClassName: waymark
  listeners:
  - {name: tcp-a, port: 9310, protocol: TCP}
  - {name: tcp-b, port: 9311, protocol: TCP}
  - {name: udp, port: 9310, protocol: UDP}
  - {name: tls, port: 9443, protocol: TLS, hostname: '*.example.com', tls: {mode: Passthrough}}
";
    let route = |kind: &str, parent: &str, hosts: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: infra}}\n\
             spec:\n  {hosts}\n  parentRefs: [{parent}]\n  rules: [{{backendRefs: [{{name: v1, port: 8080}}]}}]\n"
        )
    };
    let run = |kind: &str, translator, parent: &str, hosts: &str| {
        run(&stores(&[BASE, base, &route(kind, parent, hosts)]), translator, "infra/r")
    };
    let all = run("TCPRoute", Translator::TcpRoute, "{name: l4}", "");
    assert_eq!(all.attached(), ["infra/l4/tcp-a", "infra/l4/tcp-b"]);
    assert!(all.rules()[0].0.matches.is_empty());
    let one = run("TCPRoute", Translator::TcpRoute, "{name: l4, port: 9311}", "");
    assert_eq!(one.attached(), ["infra/l4/tcp-b"]);
    let udp = run("UDPRoute", Translator::UdpRoute, "{name: l4}", "");
    assert_eq!(udp.attached(), ["infra/l4/udp"]);
    let on_http = run("TLSRoute", Translator::TlsRoute, "{name: same}", "");
    assert_eq!(on_http.parents()[0]["Accepted"], (false, "NotAllowedByListeners"));
    let hosts = "hostnames: [abc.example.com, other.org]";
    let tls = run("TLSRoute", Translator::TlsRoute, "{name: l4}", hosts);
    let (rule, _) = &tls.rules()[0];
    assert_eq!(rule.parents[0].hostnames, ["abc.example.com".parse().unwrap()]);
}
