// SPDX-License-Identifier: Apache-2.0

//! Clients that keep their endpoint.

use std::collections::BTreeSet;
use std::sync::Arc;

use http_body_util::Full;
use routing::delta::Resource;
use routing::discovery::AppProtocol;
use routing::listener::Protocol;
use tokio::net::TcpStream;
use waymark_tests::mesh::{Mesh, local, rule, to};

use super::{backend, get, http1};

#[test]
fn a_client_keeps_its_endpoint_if_the_service_says_so() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        mesh.listener("http", (8080, Protocol::Http), "", None)?;
        let names = ["a", "b", "c", "d"];
        let mut pods = Vec::new();
        for name in names {
            pods.push(backend(name).await?);
        }
        let places: Vec<_> = names.into_iter().zip(pods.iter().map(|pod| pod.address)).collect();
        mesh.service("web", AppProtocol::Unknown, &places, &[])?;
        let rule = rule("HTTPRoute/shop/r", &["http"], vec![to("web", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.settings(|settings| settings.trusted_hops = 1)?;
        mesh.gateway.ready().await;
        let ip = mesh.ip;
        let call = async |client: &str| {
            let request = get("shop.example", "/").header("x-forwarded-for", client);
            let stream = TcpStream::connect((ip, 8080)).await?;
            anyhow::Ok(http1(stream, request.body(Full::default())?).await?.seen()?.backend)
        };
        let mut met = BTreeSet::new();
        while met.len() < names.len() {
            met.insert(call("192.0.2.1").await?);
        }
        mesh.keep_clients("web")?;
        let mut met = BTreeSet::new();
        for client in 1..30 {
            let client = format!("192.0.2.{client}");
            let first = call(&client).await?;
            for _ in 0..5 {
                assert_eq!(call(&client).await?, first, "{client}");
            }
            met.insert(first);
        }
        assert_eq!(met.len(), names.len(), "clients share the endpoints");
        Ok(())
    })
}
