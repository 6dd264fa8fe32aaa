// SPDX-License-Identifier: Apache-2.0

//! Tokens of end users at the edge and at a waypoint: who gets in, and what backends see.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use http_body_util::Full;
use policy::authz::{Action, ClaimField, Match, StringMatch, Target};
use policy::jwt::{ClaimHeader, JwtRule, Place};
use routing::delta::{Kind, Resource};
use routing::discovery::AppProtocol;
use routing::listener::Protocol;
use serde_json::json;
use tokio::net::TcpStream;
use waymark_tests::backend::Backend;
use waymark_tests::mesh::{Mesh, key, local, vip};
use waymark_tests::tokens::{TokenIssuer, authentication, now};

use super::{Got, all_to_web, any, backend, get, http1, policy};

fn gateway() -> Target {
    Target::Gateway("shop/gw".into())
}

fn tokens(target: Target, rule: JwtRule) -> Resource {
    Resource::RequestAuthentication(Arc::new(authentication("tokens", target, vec![rule])))
}

fn principal(pattern: &str) -> anyhow::Result<Match> {
    Ok(Match { request_principals: any(StringMatch::parse(pattern)?), ..Match::default() })
}

fn claim(path: &[&str], value: &str) -> anyhow::Result<Match> {
    let path = path.iter().map(|name| (*name).into()).collect();
    let values = any(StringMatch::parse(value)?);
    Ok(Match { claims: vec![ClaimField { path, values }], ..Match::default() })
}

/// An ingress gateway with the backend `web`, which runs until it is dropped, behind its port 8080.
async fn edge() -> anyhow::Result<(Mesh, Backend)> {
    let mut mesh = Mesh::start(false).await?;
    let web = backend("web").await?;
    mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
    mesh.listener("http", (8080, Protocol::Http), "", None)?;
    all_to_web(&mut mesh, "http")?;
    mesh.gateway.ready().await;
    Ok((mesh, web))
}

async fn call(mesh: &Mesh, request: http::request::Builder) -> anyhow::Result<Got> {
    http1(TcpStream::connect((mesh.ip, 8080)).await?, request.body(Full::default())?).await
}

fn bearer(token: &str) -> http::request::Builder {
    get("shop.example", "/x").header(AUTHORIZATION, format!("Bearer {token}"))
}

#[test]
fn a_good_token_passes_a_bad_one_gets_401_and_none_is_nobody() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _web) = edge().await?;
        let issuer = TokenIssuer::new("https://issuer.example")?;
        let other = TokenIssuer::new("https://issuer.example")?;
        let unknown = TokenIssuer::new("https://unknown.example")?;
        mesh.put([tokens(gateway(), issuer.rule()?)]);
        let good = issuer.sign(&json!({"sub": "joe"}))?;
        let passes = call(&mesh, bearer(&good)).await?.seen()?;
        assert!(!passes.headers.contains_key("authorization"), "the token ends here");
        assert_eq!(call(&mesh, get("shop.example", "/x")).await?.status, 200, "nobody passes");
        let within_leeway = issuer.sign(&json!({"exp": now() - 30}))?;
        assert_eq!(call(&mesh, bearer(&within_leeway)).await?.status, 200);

        let bad = [
            ("not a token", "abc".to_owned(), "Jwt is not in the form"),
            ("expired", issuer.sign(&json!({"exp": now() - 100}))?, "Jwt is expired"),
            ("to come", issuer.sign(&json!({"nbf": now() + 100}))?, "Jwt not yet valid"),
            ("another key", other.sign(&json!({}))?, "Jwt verification fails"),
            ("another issuer", unknown.sign(&json!({}))?, "Jwt issuer is not configured"),
        ];
        for (what, token, body) in bad {
            let got = call(&mesh, bearer(&token)).await?;
            assert_eq!(got.status, 401, "{what}");
            let text = String::from_utf8_lossy(&got.body).into_owned();
            assert!(text.starts_with(body), "{what}: {text}");
            let told = &got.head.headers["www-authenticate"];
            let want = r#"Bearer realm="http://shop.example/x", error="invalid_token""#;
            assert_eq!(told, want, "{what}");
        }
        // Without a key nobody can prove anything, and nothing passes for a request without token.
        let keyless = JwtRule { keys: Vec::new(), ..issuer.rule()? };
        mesh.put([tokens(gateway(), keyless)]);
        assert_eq!(call(&mesh, bearer(&good)).await?.status, 401);
        assert_eq!(call(&mesh, get("shop.example", "/x")).await?.status, 200);
        Ok(())
    })
}

#[test]
fn policies_decide_on_what_a_token_proves() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _web) = edge().await?;
        let issuer = TokenIssuer::new("https://issuer.example")?;
        mesh.put([tokens(gateway(), issuer.rule()?)]);
        let joe = principal("https://issuer.example/joe")?;
        mesh.policy(policy("joe", Action::Allow, joe), gateway());
        for (subject, want) in [("joe", 200), ("ann", 403)] {
            let token = issuer.sign(&json!({"sub": subject}))?;
            assert_eq!(call(&mesh, bearer(&token)).await?.status, want, "{subject}");
        }
        let nobody = call(&mesh, get("shop.example", "/x")).await?;
        assert_eq!((nobody.status.as_u16(), &*nobody.body), (403, &b"RBAC: access denied"[..]));
        assert_eq!(call(&mesh, bearer("abc")).await?.status, 401, "before any policy");

        mesh.remove(Kind::GatewayAuthorization, "shop/joe");
        mesh.policy(policy("groups", Action::Allow, claim(&["groups"], "admin")?), gateway());
        mesh.policy(policy("deep", Action::Allow, claim(&["a", "b"], "c")?), gateway());
        mesh.policy(policy("never", Action::Deny, claim(&["scope"], "evil")?), gateway());
        let cases = [
            (json!({"sub": "s", "groups": ["user", "admin"]}), 200),
            (json!({"sub": "s", "groups": "admin"}), 200),
            (json!({"sub": "s", "groups": ["user"]}), 403),
            (json!({"sub": "s", "a": {"b": "c"}}), 200),
            (json!({"sub": "s", "a": {"b": "c"}, "scope": "good evil"}), 403),
            (json!({"sub": "s"}), 403),
        ];
        for (claims, want) in cases {
            let token = issuer.sign(&claims)?;
            assert_eq!(call(&mesh, bearer(&token)).await?.status, want, "{claims}");
        }
        Ok(())
    })
}

#[test]
fn backends_are_told_what_rules_say_and_clients_cannot_tell_it() -> anyhow::Result<()> {
    local(async {
        let (mut mesh, _web) = edge().await?;
        let issuer = TokenIssuer::new("https://issuer.example")?;
        let header = HeaderName::from_static;
        let mut rule = issuer.rule()?;
        rule.places.push(Place::Cookie("session".into()));
        rule.payload_header = Some(header("x-payload"));
        rule.claim_headers = [("x-user", "sub"), ("x-level", "a.level"), ("x-none", "none")]
            .map(|(name, claim)| ClaimHeader { header: header(name), claim: claim.into() })
            .to_vec();
        mesh.put([tokens(gateway(), rule.clone())]);
        let token = issuer.sign(&json!({"sub": "joe", "a": {"level": 3}}))?;
        let forged = |request: http::request::Builder| {
            let request = request.header("x-user", "root").header("x-none", "root");
            request.header("x-payload", "root").header("connection", "x-user")
        };
        let seen = call(&mesh, forged(bearer(&token))).await?.seen()?;
        assert_eq!((&*seen.headers["x-user"], &*seen.headers["x-level"]), ("joe", "3"));
        assert_eq!(Some(&*seen.headers["x-payload"]), token.split('.').nth(1));
        let gone = ["x-none", "authorization"];
        assert!(gone.iter().all(|name| !seen.headers.contains_key(*name)), "{seen:?}");

        let seen = call(&mesh, forged(get("shop.example", "/x"))).await?.seen()?;
        for name in ["x-user", "x-none", "x-payload"] {
            assert!(!seen.headers.contains_key(name), "{name} is only for rules to set");
        }

        let target = format!("/x?a=%20b&access_token={token}&c");
        let seen = call(&mesh, get("shop.example", &target)).await?.seen()?;
        assert_eq!((&*seen.target, &*seen.headers["x-user"]), ("/x?a=%20b&c", "joe"));
        let cookies = format!("a=b; session={token}; c=d");
        let seen =
            call(&mesh, get("shop.example", "/x").header("cookie", cookies)).await?.seen()?;
        assert_eq!((&*seen.headers["cookie"], &*seen.headers["x-user"]), ("a=b; c=d", "joe"));

        rule.forward = true;
        mesh.put([tokens(gateway(), rule.clone())]);
        let seen = call(&mesh, bearer(&token)).await?.seen()?;
        assert_eq!(seen.headers["authorization"], format!("Bearer {token}"));

        rule.audiences = vec!["shop".into()];
        mesh.put([tokens(gateway(), rule)]);
        let got = call(&mesh, bearer(&token)).await?;
        let body = &b"Audiences in Jwt are not allowed"[..];
        assert_eq!((got.status.as_u16(), &*got.body), (403, body));
        let preflight = get("shop.example", "/x").method("OPTIONS").header("origin", "http://a");
        let preflight = preflight
            .header("access-control-request-method", "GET")
            .header(AUTHORIZATION, "Bearer abc");
        assert_eq!(call(&mesh, preflight).await?.status, 200, "a browser's question has no token");
        Ok(())
    })
}

#[test]
fn a_waypoint_asks_the_tokens_of_the_service_that_is_called() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(true).await?;
        let pods = [("web", backend("web").await?), ("open", backend("open").await?)];
        for (name, pod) in &pods {
            mesh.service(name, AppProtocol::Http11, &[(name, pod.address)], &[])?;
            mesh.bind_waypoint(name)?;
        }
        let issuer = TokenIssuer::new("https://issuer.example")?;
        let web = Target::Service(key("web").into());
        mesh.put([tokens(web.clone(), issuer.rule()?)]);
        mesh.policy(policy("anyone", Action::Allow, principal("*")?), web);
        mesh.gateway.ready().await;
        let client = mesh.client("client").await?;
        let good = issuer.sign(&json!({"sub": "joe"}))?;
        let cases = [
            ("web", Some(&*good), 200),
            ("web", None, 403),
            ("web", Some("abc"), 401),
            ("open", None, 200),
            ("open", Some("abc"), 200),
        ];
        for (service, token, want) in cases {
            let stream = client.open(&format!("{}:80", vip(service)), HeaderMap::new()).await?;
            let mut request = get(service, "/");
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let got = http1(stream, request.body(Full::default())?).await?;
            assert_eq!(got.status, want, "{service} {token:?}");
        }
        Ok(())
    })
}
