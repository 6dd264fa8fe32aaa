// SPDX-License-Identifier: Apache-2.0

//! Backends that fail, and clients that do not behave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use policy::retry::Retry;
use policy::timeout::Timeouts;
use routing::delta::{Kind, Resource};
use routing::discovery::AppProtocol;
use routing::listener::Protocol;
use routing::route::{BackendTarget, Rule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use waymark_tests::mesh::{Mesh, address, local, rule, to};

use super::{ask, backend, get, http1};

async fn edge(rule: Rule) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::start(false).await?;
    mesh.listener("http", (8080, Protocol::Http), "", None)?;
    mesh.put([Resource::Rule(Arc::new(rule))]);
    mesh.gateway.ready().await;
    Ok(mesh)
}

fn all_to(service: &str) -> anyhow::Result<Rule> {
    rule("HTTPRoute/shop/all", &["http"], vec![to(service, 1)?])
}

/// An address at which nobody listens.
async fn nobody() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((address(), 0)).await?.local_addr()?)
}

#[test]
fn a_dead_endpoint_costs_no_request() -> anyhow::Result<()> {
    local(async {
        let mut mesh = edge(all_to("web")?).await?;
        let (alive, dead) = (backend("alive").await?, nobody().await?);
        mesh.service(
            "web",
            AppProtocol::Unknown,
            &[("alive", alive.address), ("dead", dead)],
            &[],
        )?;
        for _ in 0..50 {
            let request = http::Request::post("/").header("host", "a").body(Full::from("body"))?;
            let stream = TcpStream::connect((mesh.ip, 8080)).await?;
            assert_eq!(http1(stream, request).await?.seen()?.body, 4);
        }
        mesh.remove(Kind::Address, "Kubernetes//Pod/shop/alive");
        let refused = ask(mesh.ip, 8080, "a", "/").await?;
        assert_eq!(refused.status, 503, "all that is left is dead");
        mesh.remove(Kind::Address, "Kubernetes//Pod/shop/dead");
        assert_eq!(ask(mesh.ip, 8080, "a", "/").await?.status, 503, "no endpoint");
        Ok(())
    })
}

#[test]
fn retries_follow_the_rule_and_count_exactly() -> anyhow::Result<()> {
    local(async {
        let mut rule = all_to("web")?;
        rule.retry = Retry { attempts: 2, codes: vec![503], backoff: Duration::ZERO, asked: true };
        let mut mesh = edge(rule.clone()).await?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        let cases = [
            // path, status, requests at the backend
            ("/flaky/2/a", 200, 3),
            ("/flaky/3/b", 503, 3),
            ("/status/500", 500, 1),
            ("/drop", 503, 3),
        ];
        for (path, status, requests) in cases {
            let before = web.requests();
            assert_eq!(ask(mesh.ip, 8080, "a", path).await?.status, status, "{path}");
            assert_eq!(web.requests() - before, requests, "{path}");
        }
        // A backend without open connections: on a reused one that closes unanswered the
        // request counts as unseen, and goes once more.
        rule.retry = Retry::default();
        rule.backends = vec![to("other", 1)?];
        let other = backend("other").await?;
        mesh.service("other", AppProtocol::Unknown, &[("other", other.address)], &[])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        let request = http::Request::post("/drop").header("host", "a").body(Full::from("x"))?;
        let stream = TcpStream::connect((mesh.ip, 8080)).await?;
        assert_eq!(http1(stream, request).await?.status, 503);
        assert_eq!(other.requests(), 1, "POST may not be sent twice unasked");
        Ok(())
    })
}

#[test]
fn requests_end_in_time() -> anyhow::Result<()> {
    local(async {
        let mut rule = all_to("web")?;
        let millis = |n| Some(Duration::from_millis(n));
        rule.timeouts = Timeouts::new(millis(150), None);
        let mut mesh = edge(rule.clone()).await?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        let timed = async |mesh: &Mesh, path: &str| {
            let begun = Instant::now();
            let got = ask(mesh.ip, 8080, "a", path).await?;
            anyhow::Ok((got.status.as_u16(), begun.elapsed()))
        };
        let (status, took) = timed(&mesh, "/hang").await?;
        assert_eq!(status, 504);
        assert!((150..1000).contains(&took.as_millis()), "{took:?}");
        assert_eq!(timed(&mesh, "/slow/10").await?.0, 200);

        // One attempt may take 50 ms, and there are three.
        rule.timeouts = Timeouts::new(millis(5_000), millis(50));
        rule.retry = Retry { attempts: 2, codes: vec![], backoff: Duration::ZERO, asked: true };
        mesh.put([Resource::Rule(Arc::new(rule))]);
        let before = web.requests();
        let (status, took) = timed(&mesh, "/hang").await?;
        assert_eq!(status, 504);
        assert!((150..2000).contains(&took.as_millis()), "{took:?}");
        assert_eq!(web.requests() - before, 3);
        Ok(())
    })
}

#[test]
fn what_cannot_be_routed_has_the_status_that_gateway_api_asks_for() -> anyhow::Result<()> {
    local(async {
        let invalid = BackendTarget::Invalid { reason: "no grant".into() };
        let mut mesh = edge(all_to("web")?).await?;
        let web = backend("web").await?;
        assert_eq!(ask(mesh.ip, 8080, "a", "/").await?.status, 500, "service is not known");
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        assert_eq!(ask(mesh.ip, 8080, "a", "/").await?.status, 200);
        let mut broken = all_to("web")?;
        broken.backends[0].target = invalid;
        let mut none = all_to("web")?;
        none.backends.clear();
        let mut zero = all_to("web")?;
        zero.backends[0].weight = 0;
        let mut filter = all_to("web")?;
        filter.filters = vec![routing::filter::Filter::Invalid { reason: "unknown".into() }];
        for (name, rule) in
            [("invalid", broken), ("none", none), ("weight zero", zero), ("filter", filter)]
        {
            mesh.put([Resource::Rule(Arc::new(rule))]);
            assert_eq!(ask(mesh.ip, 8080, "a", "/").await?.status, 500, "{name}");
        }
        assert_eq!(web.requests(), 1);
        Ok(())
    })
}

#[test]
fn forwarding_headers_of_the_client_are_believed_as_far_as_hops_are_trusted() -> anyhow::Result<()>
{
    local(async {
        let mut mesh = edge(all_to("web")?).await?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        let call = async |mesh: &Mesh| {
            let request = get("a", "/")
                .header("x-forwarded-for", "1.1.1.1, 2.2.2.2")
                .header("x-forwarded-proto", "https")
                .header("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/x/sa/y")
                .header("x-request-id", "mine");
            let stream = TcpStream::connect((mesh.ip, 8080)).await?;
            let seen = http1(stream, request.body(Full::default())?).await?.seen()?;
            anyhow::Ok(seen.headers)
        };
        let seen = call(&mesh).await?;
        assert_eq!(seen["x-forwarded-for"].split(',').count(), 1, "{seen:?}");
        assert_eq!(seen["x-forwarded-proto"], "http");
        assert_ne!(seen["x-request-id"], "mine");
        assert!(!seen.contains_key("x-forwarded-client-cert"));

        mesh.settings(|settings| settings.trusted_hops = 1)?;
        let seen = call(&mesh).await?;
        assert!(seen["x-forwarded-for"].starts_with("2.2.2.2, 127."), "{seen:?}");
        assert_eq!(seen["x-forwarded-proto"], "https");
        assert_eq!(seen["x-request-id"], "mine");
        assert!(!seen.contains_key("x-forwarded-client-cert"));
        Ok(())
    })
}

#[test]
fn running_requests_end_and_new_connections_are_refused_when_it_drains() -> anyhow::Result<()> {
    local(async {
        let mut mesh = edge(all_to("web")?).await?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        let ip = mesh.ip;
        let running =
            tokio::task::spawn_local(async move { ask(ip, 8080, "a", "/slow/300").await });
        let mut idle = TcpStream::connect((ip, 8080)).await?;
        idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        let mut first = [0; 12];
        idle.read_exact(&mut first).await?;
        assert_eq!(&first, b"HTTP/1.1 200");
        while web.requests() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        mesh.gateway.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(running.await??.status, 200);
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await?;
        assert!(TcpStream::connect((ip, 8080)).await.is_err());
        Ok(())
    })
}
