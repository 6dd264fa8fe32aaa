// SPDX-License-Identifier: Apache-2.0

//! Rules read back as written, and messages that are wrong in part are refused whole.

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::filter::{
    AllowList, Cors, Filter, Fraction, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite,
    Scheme,
};
use crate::matching::{
    GrpcMatch, HeaderMatch, HostPattern, PathMatch, Pattern, QueryMatch, TextMatch,
};
use crate::route::RouteKind;

fn label() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,6}"
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        "[a-zA-Z0-9.]{1,6}".prop_map(|text| TextMatch::Exact(text.into())),
        "[a-z]\\.[*+]".prop_map(|text| TextMatch::Regex(Pattern::new(&text).unwrap())),
    ]
}

fn path() -> impl Strategy<Value = Arc<str>> {
    "(/[a-z{}%]{0,4}){1,3}".prop_map(Arc::from)
}

fn request_match() -> impl Strategy<Value = RequestMatch> {
    let path = prop_oneof![
        path().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Prefix),
        Just(PathMatch::Regex(Pattern::new("/v[0-9]+/.*").unwrap())),
        (proptest::option::of(text_match()), proptest::option::of(text_match()))
            .prop_map(|(service, method)| PathMatch::Grpc(GrpcMatch { service, method })),
    ];
    let method = proptest::option::of(prop_oneof![Just(Method::GET), Just(Method::PATCH)]);
    let headers = proptest::collection::vec((label(), text_match()), 0..3);
    let query = proptest::collection::vec((label(), text_match()), 0..3);
    (path, method, headers, query).prop_map(|(path, method, headers, query)| RequestMatch {
        path,
        method,
        headers: (headers.into_iter())
            .map(|(name, value)| HeaderMatch { name: name.parse().unwrap(), value })
            .collect(),
        query: (query.into_iter())
            .map(|(name, value)| QueryMatch { name: name.into(), value })
            .collect(),
    })
}

fn target() -> impl Strategy<Value = BackendTarget> {
    prop_oneof![
        (label(), 1..=u16::MAX).prop_map(|(name, port)| BackendTarget::Service {
            key: format!("ns/{name}.ns.svc").parse().unwrap(),
            port,
        }),
        label().prop_map(|reason| BackendTarget::Invalid { reason: reason.into() }),
    ]
}

fn modifier() -> impl Strategy<Value = HeaderModifier> {
    let pair = || {
        (label(), "[ -~]{0,8}").prop_map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::try_from(value).unwrap())
        })
    };
    let pairs = || proptest::collection::vec(pair(), 0..3);
    let remove = proptest::collection::vec(label().prop_map(|n| n.parse().unwrap()), 0..2);
    (pairs(), pairs(), remove).prop_map(|(set, add, remove)| HeaderModifier { set, add, remove })
}

fn path_modifier() -> impl Strategy<Value = Option<PathModifier>> {
    proptest::option::of(prop_oneof![
        path_text().prop_map(PathModifier::Full),
        path_text().prop_map(PathModifier::Prefix),
        Just(PathModifier::Prefix("".into())),
    ])
}

fn path_text() -> impl Strategy<Value = Arc<str>> {
    "(/[a-z]{0,4}){1,3}".prop_map(Arc::from)
}

fn host() -> impl Strategy<Value = Option<Arc<str>>> {
    proptest::option::of(label().prop_map(|name| format!("{name}.example.com").into()))
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let scheme = proptest::option::of(prop_oneof![Just(Scheme::Http), Just(Scheme::Https)]);
    let port = proptest::option::of(1..=u16::MAX);
    let status = prop_oneof![Just(StatusCode::FOUND), Just(StatusCode::PERMANENT_REDIRECT)];
    (scheme, host(), path_modifier(), port, status).prop_map(
        |(scheme, host, path, port, status)| Redirect { scheme, host, path, port, status },
    )
}

fn list() -> impl Strategy<Value = AllowList> {
    let names = proptest::collection::vec(label().prop_map(Arc::from), 0..3);
    prop_oneof![Just(AllowList::Any), names.prop_map(AllowList::Only)]
}

fn cors() -> impl Strategy<Value = Cors> {
    let origins = prop_oneof![
        Just(vec!["*"]),
        Just(vec!["https://*.bar.com", "http://a.com:8080"]),
        Just(vec![])
    ];
    let age = proptest::option::of(1..10_000_u32);
    (origins, any::<bool>(), list(), list(), list(), age).prop_map(
        |(origins, allow_credentials, allow_methods, allow_headers, expose_headers, max_age)| {
            Cors {
                allow_origins: origins.into_iter().map(|o| o.parse().unwrap()).collect(),
                allow_credentials,
                allow_methods,
                allow_headers,
                expose_headers,
                max_age,
            }
        },
    )
}

fn filter() -> impl Strategy<Value = Filter> {
    let share = (0..=100_u32, 100..=1000_u32)
        .prop_map(|(numerator, denominator)| Fraction { numerator, denominator });
    prop_oneof![
        modifier().prop_map(Filter::RequestHeaders),
        modifier().prop_map(Filter::ResponseHeaders),
        redirect().prop_map(Filter::Redirect),
        (host(), path_modifier()).prop_map(|(host, path)| Filter::Rewrite(Rewrite { host, path })),
        (target(), share).prop_map(|(backend, share)| Filter::Mirror(Mirror { backend, share })),
        cors().prop_map(Filter::Cors),
        label().prop_map(|reason| Filter::Invalid { reason: reason.into() }),
    ]
}

fn backend() -> impl Strategy<Value = BackendRef> {
    let filters = proptest::collection::vec(filter(), 0..2);
    (target(), 0..=1_000_000_u32, filters).prop_map(|(target, weight, filters)| BackendRef {
        target,
        weight,
        filters,
    })
}

fn parent() -> impl Strategy<Value = ParentRef> {
    let port = proptest::option::of(1..=u16::MAX);
    let consumer = proptest::option::of(label().prop_map(Arc::from));
    let service = (label(), port, consumer).prop_map(|(name, port, consumer)| Parent::Service {
        key: format!("ns/{name}.ns.svc").parse().unwrap(),
        port,
        consumer,
    });
    let listener = label().prop_map(|s| Parent::Listener(format!("ns/gw/{s}").parse().unwrap()));
    let pattern = prop_oneof![
        Just(HostPattern::Any),
        label().prop_map(|name| format!("*.{name}.com").parse().unwrap()),
        label().prop_map(|name| format!("{name}.com").parse().unwrap()),
    ];
    (prop_oneof![service, listener], proptest::collection::vec(pattern, 0..3))
        .prop_map(|(parent, hostnames)| ParentRef { parent, hostnames })
}

fn retry() -> impl Strategy<Value = Retry> {
    let codes = proptest::collection::vec(400..=599_u16, 0..3);
    (0..9_u32, codes, 0..1000_u64, any::<bool>()).prop_map(|(attempts, codes, backoff, asked)| {
        Retry { attempts, codes, backoff: Duration::from_millis(backoff), asked }
    })
}

fn l7_rule() -> impl Strategy<Value = Rule> {
    let kind = prop_oneof![Just(RouteKind::Http), Just(RouteKind::Grpc)];
    let name = (kind, label(), label(), any::<u32>()).prop_map(|(kind, namespace, name, index)| {
        RuleName { kind, namespace: namespace.into(), name: name.into(), index }
    });
    let limit = || proptest::option::of((1..u64::from(u32::MAX)).prop_map(Duration::from_millis));
    let head = (name, proptest::option::of(label()), any::<u64>());
    let lists = (
        proptest::collection::vec(parent(), 0..3),
        proptest::collection::vec(request_match(), 1..4),
        proptest::collection::vec(filter(), 0..4),
        proptest::collection::vec(backend(), 0..4),
    );
    (head, lists, limit(), limit(), retry()).prop_map(
        |((name, rule_name, created), lists, request, backend_request, retry)| {
            let (parents, matches, filters, backends) = lists;
            let rule_name = rule_name.map(Arc::from);
            let timeouts = Timeouts { request, backend_request };
            Rule { name, rule_name, created, parents, matches, filters, backends, timeouts, retry }
        },
    )
}

proptest! {
    #[test]
    fn rules_read_back_as_written(rule in l7_rule()) {
        use prost::Message;
        let bytes = write(&rule).encode_to_vec();
        let message = wire::Route::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(read(&message), Ok(rule));
    }

    #[test]
    fn no_message_upsets_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        use prost::Message;
        if let Ok(message) = wire::Route::decode(bytes.as_slice())
            && let Ok(rule) = read(&message)
        {
            prop_assert_eq!(read(&write(&rule)), Ok(rule));
        }
    }
}

fn good() -> wire::Route {
    wire::Route {
        name: "HTTPRoute/ns/r/0".into(),
        matches: vec![wire::RouteMatch::default()],
        ..wire::Route::default()
    }
}

fn filtered(kind: wire::route_filter::Kind) -> wire::Route {
    wire::Route { filters: vec![wire::RouteFilter { kind: Some(kind) }], ..good() }
}

fn matched(entry: wire::RouteMatch) -> wire::Route {
    wire::Route { matches: vec![entry], ..good() }
}

fn at_path(kind: wire::path_match::Kind) -> wire::Route {
    let path = Some(wire::PathMatch { kind: Some(kind) });
    matched(wire::RouteMatch { path, ..wire::RouteMatch::default() })
}

#[test]
fn a_rule_without_matches_takes_every_request() {
    let rule = read(&wire::Route { matches: Vec::new(), ..good() }).unwrap();
    assert_eq!(rule.matches, [RequestMatch::any()]);
    assert_eq!(rule.retry, Retry::default());
    let tcp = wire::Route { name: "TCPRoute/ns/r/0".into(), matches: Vec::new(), ..good() };
    assert_eq!(read(&tcp).unwrap().matches, []);
}

#[test]
fn a_message_that_is_wrong_in_part_is_refused() {
    use wire::path_match::Kind as Path;
    use wire::route_filter::Kind;
    assert!(read(&good()).is_ok());
    let redirect = |change: fn(&mut wire::Redirect)| {
        let mut redirect = wire::Redirect { status: 302, ..wire::Redirect::default() };
        change(&mut redirect);
        filtered(Kind::Redirect(redirect))
    };
    let header = |name: &str, value: &str| {
        let set = vec![wire::Header { name: name.into(), value: value.into() }];
        filtered(Kind::RequestHeaders(wire::HeaderModifier { set, ..Default::default() }))
    };
    let full = |path: &str| wire::Rewrite {
        path: Some(wire::PathModifier { kind: Some(wire::path_modifier::Kind::Full(path.into())) }),
        ..Default::default()
    };
    let bad = [
        ("name", wire::Route { name: "HTTPRoute/ns/r".into(), ..good() }),
        ("matches of TCP", wire::Route { name: "TCPRoute/ns/r/0".into(), ..good() }),
        ("method", matched(wire::RouteMatch { method: "G T".into(), ..Default::default() })),
        ("exact path", at_path(Path::Exact("a".into()))),
        ("prefix", at_path(Path::Prefix(String::new()))),
        ("expression", at_path(Path::Regex("(".into()))),
        ("parent", wire::Route { parents: vec![wire::RouteParent::default()], ..good() }),
        ("target", wire::Route { backends: vec![wire::RouteBackend::default()], ..good() }),
        ("filter", wire::Route { filters: vec![wire::RouteFilter::default()], ..good() }),
        ("status", redirect(|r| r.status = 200)),
        ("scheme", redirect(|r| r.scheme = "ftp".into())),
        ("wildcard host", redirect(|r| r.host = "*.a.com".into())),
        ("host with port", redirect(|r| r.host = "a.com:80".into())),
        ("port", redirect(|r| r.port = 65_536)),
        ("header name", header("a b", "x")),
        ("header value", header("a", "x\r\ny")),
        ("query in a path", filtered(Kind::Rewrite(full("/a?b")))),
        ("no mirror", filtered(Kind::Mirror(wire::Mirror::default()))),
        (
            "retry",
            wire::Route {
                retry: Some(wire::RouteRetry { codes: vec![200], ..Default::default() }),
                ..good()
            },
        ),
        (
            "origin",
            filtered(Kind::Cors(wire::Cors {
                allow_origins: vec!["a.com".into()],
                ..Default::default()
            })),
        ),
    ];
    for (what, message) in bad {
        assert!(read(&message).is_err(), "{what}");
    }
}
