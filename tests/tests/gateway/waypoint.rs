// SPDX-License-Identifier: Apache-2.0

//! A waypoint: HBONE in, HBONE or plain out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderMap;
use http_body_util::Full;
use policy::authz::{Action, Match, PathMatch, StringMatch, Target};
use routing::delta::Resource;
use routing::discovery::AppProtocol;
use tunnel::hbone::pool::OpenError;
use waymark_tests::mesh::{Mesh, PodTunnel, key, local, on_service, rule, to, vip};

use super::{any, backend, get, http1, http2, policy};

#[test]
fn proven_callers_reach_an_enrolled_pod_over_one_stream() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(true).await?;
        let pod = backend("pod").await?;
        let tunnel = PodTunnel::start(&mesh.issuer, "pod", pod.address.ip()).await?;
        mesh.service("web", AppProtocol::Http11, &[("pod", pod.address)], &["pod"])?;
        mesh.bind_waypoint("web")?;
        mesh.gateway.ready().await;
        let client = mesh.client("client").await?;
        let authority = format!("{}:80", vip("web"));
        for n in 0..20 {
            let stream = client.open(&authority, HeaderMap::new()).await?;
            let forged = "URI=spiffe://cluster.local/ns/shop/sa/admin";
            let request = get("web", &format!("/{n}")).header("x-forwarded-client-cert", forged);
            let seen = http1(stream, request.body(Full::default())?).await?.seen()?;
            assert_eq!((&*seen.backend, &*seen.target), ("pod", &*format!("/{n}")));
            assert_eq!(
                seen.headers["x-forwarded-client-cert"],
                "By=spiffe://cluster.local/ns/shop/sa/gw;\
                 URI=spiffe://cluster.local/ns/shop/sa/client"
            );
            assert_eq!(seen.headers["x-request-id"].len(), 36);
        }
        // Two workers, each with its own pool.
        let streams = tunnel.streams.load(Ordering::SeqCst);
        assert!((1..=2).contains(&streams), "{streams} CONNECT streams for 20 requests");
        let own = "spiffe://cluster.local/ns/shop/sa/gw";
        assert!(tunnel.peers.borrow().iter().all(|peer| peer.as_str() == own));
        Ok(())
    })
}

#[test]
fn policies_decide_on_the_proven_caller_and_act_at_once() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(true).await?;
        let pod = backend("pod").await?;
        mesh.service("web", AppProtocol::Http11, &[("pod", pod.address)], &[])?;
        mesh.bind_waypoint("web")?;
        mesh.gateway.ready().await;
        let (good, bad) = (mesh.client("good").await?, mesh.client("bad").await?);
        let authority = format!("{}:80", vip("web"));
        let call = async |client: &waymark_tests::mesh::MeshClient, path: &str| {
            let stream = client.open(&authority, HeaderMap::new()).await?;
            http1(stream, get("web", path).body(Full::default())?).await
        };
        assert_eq!(call(&bad, "/").await?.status, 200, "no policy yet");

        let principal = StringMatch::parse("cluster.local/ns/shop/sa/good")?;
        let only_good = Match { principals: any(principal), ..Match::default() };
        let target = Target::Service(key("web").into());
        mesh.policy(policy("only-good", Action::Allow, only_good), target.clone());
        assert_eq!(call(&good, "/").await?.status, 200);
        let refused = call(&bad, "/").await?;
        assert_eq!(
            (refused.status.as_u16(), &refused.body[..]),
            (403, &b"RBAC: access denied"[..])
        );

        let admin = Match { paths: any(PathMatch::parse("/admin*")?), ..Match::default() };
        mesh.policy(policy("no-admin", Action::Deny, admin), target);
        assert_eq!(call(&good, "/").await?.status, 200);
        for path in ["/admin", "/admin/x", "/x/../admin", "/%61dmin", "//admin"] {
            assert_eq!(call(&good, path).await?.status, 403, "{path}");
        }

        let stream = good.open(&authority, HeaderMap::new()).await?;
        let mut h2 = http2(stream).await?;
        let request = http::Request::post("http://web/admin.Service/Method")
            .header("content-type", "application/grpc")
            .body(Full::default())?;
        let answer = h2.send_request(request).await?;
        assert_eq!(answer.status(), 200, "gRPC tells its status in a header");
        assert_eq!(answer.headers()["grpc-status"], "7");
        Ok(())
    })
}

#[test]
fn what_is_not_its_own_is_refused() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(true).await?;
        let pod = backend("pod").await?;
        mesh.service("web", AppProtocol::Http11, &[("pod", pod.address)], &[])?;
        mesh.service("other", AppProtocol::Http11, &[("pod", pod.address)], &[])?;
        mesh.bind_waypoint("web")?;
        mesh.gateway.ready().await;
        let client = mesh.client("client").await?;
        let uid =
            |uid: &str| HeaderMap::from_iter([(tunnel::hbone::POD_UID, uid.parse().unwrap())]);
        let cases = [
            // authority, headers, status, another pod
            (format!("{}:80", vip("other")), HeaderMap::new(), 400, false),
            (format!("{}:81", vip("web")), HeaderMap::new(), 503, false),
            ("192.0.2.1:80".to_owned(), HeaderMap::new(), 400, false),
            (pod.address.to_string(), HeaderMap::new(), 400, false),
            ("example.com:80".to_owned(), HeaderMap::new(), 400, false),
            (format!("{}:80", vip("web")), uid("someone-else"), 503, true),
        ];
        for (authority, headers, want, want_other) in cases {
            match client.open(&authority, headers).await {
                Err(OpenError::Refused { status, other_pod }) => {
                    assert_eq!((status.as_u16(), other_pod), (want, want_other), "{authority}");
                }
                other => panic!("{authority}: {other:?}"),
            }
        }
        let again =
            HeaderMap::from_iter([("x-waymark-visited".parse()?, "shop/a,shop/gw".parse()?)]);
        match client.open(&format!("{}:80", vip("web")), again).await {
            Err(OpenError::Refused { status, .. }) => assert_eq!(status, 508, "a loop"),
            other => panic!("a loop: {other:?}"),
        }
        assert_eq!(pod.connections(), 0);
        let ours = client.open(&format!("{}:80", vip("web")), uid("uid-of-gw-1")).await;
        assert!(ours.is_ok(), "{ours:?}");
        let counted = "waymark_connections_refused_total{cause=\"connect\"} 7";
        assert!(mesh.gateway.scrape().contains(counted));
        Ok(())
    })
}

#[test]
fn rules_of_a_service_answer_and_calls_by_address_have_its_policies_only() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(true).await?;
        let (one, two) = (backend("one").await?, backend("two").await?);
        mesh.service("web", AppProtocol::Http11, &[("one", one.address)], &[])?;
        mesh.service("other", AppProtocol::Http11, &[("two", two.address)], &[])?;
        mesh.bind_waypoint("web")?;
        mesh.bind_pod("one")?;
        let elsewhere = rule("HTTPRoute/shop/r", &[], vec![to("other", 1)?])?;
        let mut elsewhere = on_service(elsewhere, "web")?;
        let path = routing::matching::PathMatch::Prefix("/moved".into());
        elsewhere.matches[0].path = path;
        mesh.put([Resource::Rule(Arc::new(elsewhere))]);
        mesh.gateway.ready().await;
        let client = mesh.client("client").await?;
        let call = async |authority: &str, path: &str| {
            let stream = client.open(authority, HeaderMap::new()).await?;
            http1(stream, get("web", path).body(Full::default())?).await
        };
        let (vip, pod) = (format!("{}:80", vip("web")), one.address.to_string());
        assert_eq!(call(&vip, "/moved").await?.seen()?.backend, "two");
        assert_eq!(call(&vip, "/stayed").await?.status, 404, "a service with rules has no others");
        assert_eq!(call(&pod, "/moved").await?.seen()?.backend, "one", "no rules of the service");
        let get_only = Match { methods: any(StringMatch::parse("GET")?), ..Match::default() };
        mesh.policy(policy("no-get", Action::Deny, get_only), Target::Service(key("web").into()));
        for authority in [&vip, &pod] {
            assert_eq!(call(authority, "/moved").await?.status, 403, "{authority}");
        }
        mesh.remove(routing::delta::Kind::GatewayAuthorization, "shop/no-get");
        mesh.remove(routing::delta::Kind::Route, "HTTPRoute/shop/r/0");
        assert_eq!(call(&vip, "/stayed").await?.seen()?.backend, "one");
        Ok(())
    })
}
