// SPDX-License-Identifier: Apache-2.0

//! A gateway at the edge: listeners, routes, filters.

use std::sync::Arc;

use http_body_util::Full;
use routing::delta::{Kind, Resource};
use routing::discovery::AppProtocol;
use routing::filter::{
    Cors, Filter, Fraction, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite, Scheme,
};
use routing::listener::Protocol;
use routing::matching::{HeaderMatch, PathMatch, RequestMatch, TextMatch};
use routing::route::Rule;
use tokio::net::TcpStream;
use waymark_tests::backend::Backend;
use waymark_tests::collector::Collector;
use waymark_tests::mesh::{Mesh, local, rule, to};

use super::{all_to_web, ask, backend, get, http1, http2};

/// A gateway with an HTTP listener on 8080 and a service per backend of these names.
async fn edge(names: &[&str]) -> anyhow::Result<(Mesh, Vec<Backend>)> {
    let mut mesh = Mesh::start(false).await?;
    mesh.listener("http", (8080, Protocol::Http), "", None)?;
    let mut backends = Vec::new();
    for name in names {
        let one = backend(name).await?;
        mesh.service(name, AppProtocol::Unknown, &[(name, one.address)], &[])?;
        backends.push(one);
    }
    mesh.gateway.ready().await;
    Ok((mesh, backends))
}

/// A rule for paths under `prefix`, to the service `backend`.
fn under(prefix: &str, name: &str, backend: &str) -> anyhow::Result<Rule> {
    let mut rule = rule(&format!("HTTPRoute/shop/{name}"), &["http"], vec![to(backend, 1)?])?;
    let path = PathMatch::Prefix(prefix.into());
    rule.matches = vec![RequestMatch { path, ..RequestMatch::any() }];
    Ok(rule)
}

fn put(mesh: &mut Mesh, rule: Rule) {
    mesh.put([Resource::Rule(Arc::new(rule))]);
}

#[test]
fn a_request_reaches_a_plain_backend_and_says_where_it_came_from() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let pod = backend("pod").await?;
        mesh.service("web", AppProtocol::Unknown, &[("pod", pod.address)], &[])?;
        mesh.listener("http", (8080, Protocol::Http), "", None)?;
        all_to_web(&mut mesh, "http")?;
        mesh.gateway.ready().await;
        let got = ask(mesh.ip, 8080, "shop.example", "/a?b=c").await?;
        assert_eq!(got.head.headers["server"], "backend", "a backend's server header is kept");
        let seen = got.seen()?;
        assert_eq!((&*seen.target, &*seen.host), ("/a?b=c", "shop.example"));
        assert_eq!(seen.headers["x-forwarded-proto"], "http");
        assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
        assert!(seen.headers["x-forwarded-for"].starts_with("127."), "{seen:?}");

        mesh.remove(Kind::Route, "HTTPRoute/shop/web/0");
        assert_eq!(ask(mesh.ip, 8080, "shop.example", "/").await?.status, 404);
        Ok(())
    })
}

#[test]
fn rules_are_chosen_by_path_header_and_weight_as_they_are_now() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, backends) = edge(&["v1", "v2", "v3"]).await?;
        put(&mut mesh, under("/", "all", "v1")?);
        let mut jason = under("/", "jason", "v3")?;
        jason.matches[0].headers = vec![HeaderMatch {
            name: "end-user".parse()?,
            value: TextMatch::Exact("jason".into()),
        }];
        put(&mut mesh, jason);
        put(&mut mesh, under("/two", "two", "v2")?);
        let call = async |path: &str, user: &str| {
            let request = get("shop.example", path).header("end-user", user);
            let stream = TcpStream::connect((mesh.ip, 8080)).await?;
            let seen = http1(stream, request.body(Full::default())?).await?.seen()?;
            anyhow::Ok(seen.backend)
        };
        assert_eq!(call("/one", "mary").await?, "v1");
        assert_eq!(call("/one", "jason").await?, "v3");
        assert_eq!(call("/two/x", "mary").await?, "v2");
        assert_eq!(call("/twofold", "mary").await?, "v1", "prefixes are whole segments");

        let mut split = under("/two", "two", "v2")?;
        split.backends = vec![to("v1", 0)?, to("v2", 1)?, to("v3", 3)?];
        put(&mut mesh, split);
        let before = [0, 1, 2].map(|n| backends[n].requests());
        for _ in 0..200 {
            assert_eq!(ask(mesh.ip, 8080, "shop.example", "/two").await?.status, 200);
        }
        let share = [0, 1, 2].map(|n| backends[n].requests() - before[n]);
        assert_eq!(share[0], 0, "weight zero");
        assert!((25..=75).contains(&share[1]), "a quarter of 200 requests: {share:?}");
        Ok(())
    })
}

#[test]
fn filters_change_requests_and_responses() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _backends) = edge(&["web"]).await?;
        let header = |name: &str, value: &str| anyhow::Ok((name.parse()?, value.parse()?));
        let mut changed = under("/old", "changed", "web")?;
        changed.filters = vec![
            Filter::RequestHeaders(HeaderModifier {
                set: vec![header("x-set", "rule")?],
                add: vec![header("x-add", "rule")?],
                remove: vec!["x-gone".parse()?],
            }),
            Filter::Rewrite(Rewrite {
                host: Some("inner.example".into()),
                path: Some(PathModifier::Prefix("/new".into())),
            }),
            Filter::ResponseHeaders(HeaderModifier {
                set: vec![header("server", "hidden")?],
                ..HeaderModifier::default()
            }),
        ];
        changed.backends[0].filters = vec![Filter::RequestHeaders(HeaderModifier {
            add: vec![header("x-add", "backend")?],
            ..HeaderModifier::default()
        })];
        put(&mut mesh, changed);
        let request = get("shop.example", "/old/x?q=1").header("x-gone", "1").header("x-set", "0");
        let stream = TcpStream::connect((mesh.ip, 8080)).await?;
        let got = http1(stream, request.body(Full::default())?).await?;
        assert_eq!(got.head.headers["server"], "hidden");
        let seen = got.seen()?;
        assert_eq!((&*seen.target, &*seen.host), ("/new/x?q=1", "inner.example"));
        assert_eq!(seen.headers["x-set"], "rule");
        assert_eq!(seen.headers["x-add"], "rule, backend");
        assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
        assert!(!seen.headers.contains_key("x-gone"));
        Ok(())
    })
}

#[test]
fn redirects_and_preflights_are_answered_without_a_backend() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, backends) = edge(&["web"]).await?;
        let mut moved = under("/moved", "moved", "web")?;
        moved.backends.clear();
        moved.filters = vec![Filter::Redirect(Redirect {
            scheme: Some(Scheme::Https),
            host: Some("new.example".into()),
            path: Some(PathModifier::Full("/there".into())),
            port: None,
            status: http::StatusCode::MOVED_PERMANENTLY,
        })];
        put(&mut mesh, moved);
        let got = ask(mesh.ip, 8080, "shop.example", "/moved?x=1").await?;
        assert_eq!(got.status, 301);
        assert_eq!(got.head.headers["location"], "https://new.example/there?x=1");

        let mut shared = under("/shared", "shared", "web")?;
        shared.filters = vec![Filter::Cors(Cors {
            allow_origins: vec!["https://a.example".parse()?],
            allow_methods: routing::filter::AllowList::Only(vec!["PUT".into()]),
            ..Cors::default()
        })];
        put(&mut mesh, shared);
        let preflight = http::Request::options("/shared")
            .header("host", "shop.example")
            .header("origin", "https://a.example")
            .header("access-control-request-method", "PUT");
        let stream = TcpStream::connect((mesh.ip, 8080)).await?;
        let got = http1(stream, preflight.body(Full::default())?).await?;
        assert!(got.status.is_success() && got.body.is_empty(), "{got:?}");
        assert_eq!(got.head.headers["access-control-allow-origin"], "https://a.example");
        assert_eq!(backends[0].requests(), 0);

        let simple = get("shop.example", "/shared").header("origin", "https://a.example");
        let stream = TcpStream::connect((mesh.ip, 8080)).await?;
        let got = http1(stream, simple.body(Full::default())?).await?;
        assert_eq!(got.head.headers["access-control-allow-origin"], "https://a.example");
        assert_eq!(got.seen()?.backend, "web");
        Ok(())
    })
}

#[test]
fn a_mirror_gets_a_copy_and_never_slows_the_request() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, backends) = edge(&["web", "shadow", "stuck"]).await?;
        let mut copied = under("/", "copied", "web")?;
        for name in ["shadow", "stuck", "nobody"] {
            let backend = to(name, 1)?.target;
            copied.filters.push(Filter::Mirror(Mirror { backend, share: Fraction::ALL }));
        }
        put(&mut mesh, copied);
        let body = vec![b'x'; 300_000];
        for path in ["/hang", "/a"] {
            let request = http::Request::post(path).header("host", "shop.example");
            let request = request.body(Full::from(body.clone()))?;
            let stream = TcpStream::connect((mesh.ip, 8080)).await?;
            if path == "/a" {
                assert_eq!(http1(stream, request).await?.seen()?.body, body.len());
            } else {
                // The backend never answers; its copies must not hold up the next request.
                let waiting = http1(stream, request);
                let limit = std::time::Duration::from_millis(100);
                assert!(tokio::time::timeout(limit, waiting).await.is_err());
            }
        }
        while backends[1].requests() < 2 {
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        Ok(())
    })
}

#[test]
fn listeners_come_and_go_and_the_most_specific_one_answers() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _backends) = edge(&["web", "wild"]).await?;
        put(&mut mesh, under("/", "all", "web")?);
        mesh.listener("wild", (8080, Protocol::Http), "*.example.com", None)?;
        let wild = rule("HTTPRoute/shop/wild", &["wild"], vec![to("wild", 1)?])?;
        put(&mut mesh, wild);
        let backend = async |port, host: &str| {
            anyhow::Ok(ask(mesh.ip, port, host, "/").await?.seen()?.backend)
        };
        assert_eq!(backend(8080, "other.org").await?, "web");
        assert_eq!(backend(8080, "a.example.com").await?, "wild");
        assert_eq!(backend(8080, "a.b.example.com:8080").await?, "wild");
        assert_eq!(backend(8080, "example.com").await?, "web");

        mesh.listener("late", (8081, Protocol::Http), "", None)?;
        mesh.gateway.ready().await;
        assert_eq!(ask(mesh.ip, 8081, "a", "/").await?.status, 404, "no route of its own");
        mesh.remove(Kind::Route, "HTTPRoute/shop/wild/0");
        assert_eq!(
            ask(mesh.ip, 8080, "a.example.com", "/").await?.status,
            404,
            "a wider listener does not stand in"
        );
        mesh.remove(Kind::Listener, "shop/gw/late");
        while TcpStream::connect((mesh.ip, 8081)).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        Ok(())
    })
}

#[test]
fn grpc_calls_go_by_http2_and_are_refused_in_grpc_words() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _backends) = edge(&["web"]).await?;
        put(&mut mesh, under("/pkg.Service", "grpc", "web")?);
        let call = async |path: &str| {
            let mut send = http2(TcpStream::connect((mesh.ip, 8080)).await?).await?;
            let request = http::Request::post(format!("http://shop.example{path}"))
                .header("content-type", "application/grpc+proto")
                .header("te", "trailers");
            let two_messages = Full::from(&b"\0\0\0\0\x02ab\0\0\0\0\0"[..]);
            super::got(send.send_request(request.body(two_messages)?).await?).await
        };
        let seen = call("/pkg.Service/Method").await?.seen()?;
        assert_eq!(seen.version, "HTTP/2.0");
        assert_eq!(seen.headers["te"], "trailers");
        let refused = call("/other.Service/Method").await?;
        assert_eq!(
            (refused.status.as_u16(), &refused.head.headers["grpc-status"]),
            (200, &"12".parse()?)
        );
        let counted =
            |line: &str| line.starts_with("istio_request_messages_total{") && line.ends_with("} 2");
        while !mesh.gateway.scrape().lines().any(counted) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        Ok(())
    })
}

#[test]
fn requests_are_counted_with_the_names_of_istio() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _backends) = edge(&["web"]).await?;
        put(&mut mesh, under("/", "all", "web")?);
        for path in ["/", "/status/503"] {
            ask(mesh.ip, 8080, "shop.example", path).await?;
        }
        // A request is counted just after its answer has gone out.
        while !mesh.gateway.scrape().contains("response_code=\"503\"") {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let text = mesh.gateway.scrape();
        for part in [
            "istio_requests_total{reporter=\"source\",source_workload=\"gw-1\"",
            "destination_service=\"web.shop.svc.cluster.local\"",
            "destination_workload=\"web\"",
            "response_code=\"200\"",
            "response_code=\"503\"",
        ] {
            assert!(text.contains(part), "{part}");
        }
        Ok(())
    })
}

#[test]
fn sampled_requests_are_told_to_the_collector_and_the_backend() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _backends) = edge(&["web"]).await?;
        put(&mut mesh, under("/", "all", "web")?);
        let mut collector = Collector::start().await?;
        let endpoint = collector.address.to_string();
        mesh.settings(|settings| {
            settings.tracing = Some(routing::gateway::Tracing {
                endpoint: endpoint.as_str().into(),
                sampled_per_million: 0,
            });
        })?;
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let call = async |flags: &str| {
            let parent = format!("00-{trace}-b7ad6b7169203331-{flags}");
            let request = get("shop.example", "/").header("traceparent", &parent);
            let stream = TcpStream::connect((mesh.ip, 8080)).await?;
            let seen = http1(stream, request.body(Full::default())?).await?.seen()?;
            anyhow::Ok((parent, seen.headers["traceparent"].clone()))
        };
        let (sent, seen) = call("00").await?;
        assert_eq!(seen, sent, "not sampled: passed on as it is");
        // The exporter is made beside the data path, a moment after the settings came.
        let (sent, seen) = loop {
            let (sent, seen) = call("01").await?;
            if seen != sent {
                break (sent, seen);
            }
        };
        assert!(seen.starts_with(&format!("00-{trace}-")) && seen != sent, "{seen}");
        let span = collector.next().await?;
        assert_eq!(span.trace, u128::from_str_radix(trace, 16)?.to_be_bytes());
        assert_eq!(span.parent, 0xb7ad_6b71_6920_3331_u64.to_be_bytes(), "the caller's span");
        let own: String = span.id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seen, format!("00-{trace}-{own}-01"), "the backend's belongs to this one");
        Ok(())
    })
}
