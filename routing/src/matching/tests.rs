// SPDX-License-Identifier: Apache-2.0

//! Order of matches, one table per rule of the specification.

use super::*;

fn text(value: &str) -> TextMatch {
    TextMatch::Exact(value.into())
}

fn of(path: PathMatch) -> RequestMatch {
    RequestMatch { path, ..RequestMatch::any() }
}

fn grpc(service: Option<&str>, method: Option<&str>) -> RequestMatch {
    of(PathMatch::Grpc(GrpcMatch { service: service.map(text), method: method.map(text) }))
}

fn header(name: &'static str) -> HeaderMatch {
    HeaderMatch { name: http::HeaderName::from_static(name), value: text("x") }
}

#[test]
fn path_goes_before_method_before_headers_before_query() {
    let prefix = |p: &str| of(PathMatch::Prefix(p.into()));
    let descending = [
        ("exact", of(PathMatch::Exact("/a".into()))),
        ("expression", of(PathMatch::Regex(Pattern::new("/.*").unwrap()))),
        ("long prefix", prefix("/a/b")),
        ("method", RequestMatch { method: Some(http::Method::GET), ..prefix("/a") }),
        ("two headers", RequestMatch { headers: vec![header("a"), header("b")], ..prefix("/a") }),
        ("one header", RequestMatch { headers: vec![header("a")], ..prefix("/a") }),
        (
            "one query parameter",
            RequestMatch {
                query: vec![QueryMatch { name: "q".into(), value: text("x") }],
                ..prefix("/a")
            },
        ),
        ("short prefix", prefix("/a")),
        ("root", prefix("/")),
    ];
    for pair in descending.windows(2) {
        let [(high, a), (low, b)] = pair else { unreachable!() };
        assert!(a.rank() > b.rank(), "{high} before {low}");
    }
    assert_eq!(prefix("/a/").rank(), prefix("/a").rank(), "a trailing slash is no length");
}

#[test]
fn grpc_service_goes_before_method() {
    let descending = [
        grpc(Some("a.Echo"), Some("Say")),
        grpc(Some("a.Echo"), None),
        grpc(None, Some("LongMethodName")),
        grpc(None, Some("Say")),
        grpc(None, None),
    ];
    for pair in descending.windows(2) {
        assert!(pair[0].rank() > pair[1].rank(), "{:?} before {:?}", pair[0], pair[1]);
    }
}
