// SPDX-License-Identifier: Apache-2.0

//! CORS by the cases of the Gateway API suite and a few beyond.

use http::HeaderMap;

use super::*;
use crate::edit::apply_headers;

fn list(names: &[&str]) -> AllowList {
    if names == ["*"] {
        AllowList::Any
    } else {
        AllowList::Only(names.iter().map(|&n| n.into()).collect())
    }
}

fn cors(origins: &[&str], methods: &[&str], headers: &[&str], credentials: bool) -> Cors {
    Cors {
        allow_origins: origins.iter().map(|o| o.parse().unwrap()).collect(),
        allow_credentials: credentials,
        allow_methods: list(methods),
        allow_headers: list(headers),
        expose_headers: list(&["x-header-3", "x-header-4"]),
        max_age: Some(3600),
    }
}

fn several() -> Cors {
    let origins = ["https://www.foo.com", "https://*.bar.com"];
    cors(&origins, &["GET", "OPTIONS"], &["x-header-1", "x-header-2"], true)
}

/// Headers of the answer or response and the status of the answer, if there is one.
fn ask(
    cors: &Cors,
    method: Method,
    sent: &[(&'static str, &'static str)],
) -> (Option<u16>, HeaderMap) {
    let mut headers = HeaderMap::new();
    for (name, value) in sent {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    let head = Head { method: &method, host: "h", path: "/", query: "", headers: &headers };
    let mut edits = Vec::new();
    match cors.on_request(&head, &mut edits) {
        Err(reply) => (Some(reply.status.as_u16()), reply.headers.into_iter().collect()),
        Ok(()) => {
            let mut response = HeaderMap::new();
            let lax = HeaderValue::from_static("*");
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, lax);
            apply_headers(&edits, &mut response);
            (None, response)
        }
    }
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|v| v.to_str().unwrap())
}

#[test]
fn preflight_of_an_allowed_origin_says_all() {
    for origin in ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"] {
        let (status, headers) = ask(
            &several(),
            Method::OPTIONS,
            &[
                ("origin", origin),
                ("access-control-request-method", "GET"),
                ("access-control-request-headers", "x-header-1, x-header-2"),
            ],
        );
        assert_eq!(status, Some(200), "{origin}");
        let wanted = [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET, OPTIONS"),
            ("access-control-allow-headers", "x-header-1, x-header-2"),
            ("access-control-expose-headers", "x-header-3, x-header-4"),
            ("access-control-max-age", "3600"),
            ("access-control-allow-credentials", "true"),
            ("vary", "origin"),
        ];
        for (name, want) in wanted {
            assert_eq!(value(&headers, name), Some(want), "{name} for {origin}");
        }
    }
}

#[test]
fn a_foreign_origin_is_told_nothing() {
    for origin in [
        "https://foobar.com",
        "http://www.foo.com",
        "https://www.foo.com:8443",
        "https://bar.com",
        "null",
    ] {
        let sent = [("origin", origin), ("access-control-request-method", "GET")];
        let (status, headers) = ask(&several(), Method::OPTIONS, &sent);
        assert_eq!(status, Some(403), "{origin}");
        assert_eq!(value(&headers, "access-control-allow-origin"), None, "{origin}");

        let (status, headers) = ask(&several(), Method::GET, &sent);
        assert_eq!(status, None, "a plain request of {origin} goes on");
        assert_eq!(value(&headers, "access-control-allow-origin"), None, "{origin}");
    }
}

#[test]
fn plain_requests_of_an_allowed_origin_go_on() {
    let sent = [("origin", "https://www.bar.com"), ("access-control-request-method", "GET")];
    let (status, headers) = ask(&several(), Method::GET, &sent);
    assert_eq!(status, None);
    assert_eq!(value(&headers, "access-control-allow-origin"), Some("https://www.bar.com"));
    assert_eq!(value(&headers, "access-control-allow-methods"), None);
    assert_eq!(ask(&several(), Method::OPTIONS, &[("origin", "https://www.bar.com")]).0, None);
    assert_eq!(ask(&several(), Method::OPTIONS, &[]).0, None);
}

#[test]
fn wildcards_are_said_only_without_credentials() {
    let sent = [
        ("origin", "https://other.foo.com:12345"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-header-1"),
    ];
    let (_, open) = ask(&cors(&["*"], &["*"], &["*"], false), Method::OPTIONS, &sent);
    assert_eq!(value(&open, "access-control-allow-origin"), Some("*"));
    assert_eq!(value(&open, "access-control-allow-credentials"), None);
    assert_eq!(value(&open, "access-control-allow-methods"), Some("PUT"));

    let (_, closed) = ask(&cors(&["*"], &["*"], &["*"], true), Method::OPTIONS, &sent);
    assert_eq!(value(&closed, "access-control-allow-origin"), Some("https://other.foo.com:12345"));
    assert_eq!(value(&closed, "access-control-allow-methods"), Some("PUT"));
    assert_eq!(value(&closed, "access-control-allow-headers"), Some("x-header-1"));

    let (_, no_headers) = ask(&cors(&["*"], &["*"], &["*"], true), Method::OPTIONS, &sent[..2]);
    assert_eq!(value(&no_headers, "access-control-allow-headers"), None);
}

#[test]
fn origins_read_back_as_written() {
    for text in ["*", "https://a.com", "http://*", "https://*.a.com:8443"] {
        assert_eq!(text.parse::<OriginPattern>().unwrap().to_string(), text);
    }
    for bad in [
        "",
        "a.com",
        "ftp://a.com",
        "https://",
        "https://a.com/",
        "https://a.com:x",
        "https://a.*.com",
    ] {
        assert!(bad.parse::<OriginPattern>().is_err(), "{bad:?}");
    }
    let default_port: OriginPattern = "https://a.com:443".parse().unwrap();
    assert!(default_port.matches("https://A.com"));
}
