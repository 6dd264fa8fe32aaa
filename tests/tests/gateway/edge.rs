// SPDX-License-Identifier: Apache-2.0

//! A gateway at the edge: listeners, routes, filters.

use std::sync::Arc;

use routing::delta::{Kind, Resource};
use routing::discovery::AppProtocol;
use routing::listener::Protocol;
use waymark_tests::mesh::{Mesh, local, rule, to};

use super::{ask, backend};

#[test]
fn a_request_reaches_a_plain_backend_and_says_where_it_came_from() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let pod = backend("pod").await?;
        mesh.service("web", AppProtocol::Unknown, &[("pod", pod.address)], &[])?;
        mesh.listener("http", 8080, Protocol::Http, "", None)?;
        mesh.put([Resource::Rule(Arc::new(rule(
            "HTTPRoute/shop/web",
            &["http"],
            vec![to("web", 1)?],
        )?))]);
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
