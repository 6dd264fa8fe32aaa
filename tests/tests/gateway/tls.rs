// SPDX-License-Identifier: Apache-2.0

//! TLS that ends here, that passes through, and that begins here.

#![expect(clippy::large_futures, reason = "TLS sessions are large, and a test has few")]

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use routing::backend::{BackendTls, Roots, Secret};
use routing::delta::Resource;
use routing::discovery::AppProtocol;
use routing::listener::{ClientValidation, ClientValidationMode, ListenerTls, Protocol, TlsMode};
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use waymark_tests::backend::Backend;
use waymark_tests::certs::Issuer;
use waymark_tests::mesh::{Mesh, address, key, local, rule, to};

use super::{all_to_web, ask, backend, get, http1, http2};

fn terminate(secrets: &[&Secret], validation: Option<ClientValidation>) -> Option<ListenerTls> {
    let secrets = secrets.iter().map(|secret| secret.name.clone()).collect();
    Some(ListenerTls { mode: TlsMode::Terminate, secrets, client_validation: validation })
}

async fn connect(
    mesh: &Mesh,
    config: &Arc<rustls::ClientConfig>,
    name: &str,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((mesh.ip, 8443)).await?;
    let name = ServerName::try_from(name.to_owned())?;
    Ok(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
}

#[test]
fn listeners_are_chosen_by_name_and_misdirected_requests_are_told() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let ca = Issuer::new()?;
        let one = ca.secret("shop/one", &["one.example"])?;
        let wild = ca.secret("shop/wild", &["*.wild.example"])?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        mesh.listener("one", (8443, Protocol::Https), "one.example", terminate(&[&one], None))?;
        mesh.listener(
            "wild",
            (8443, Protocol::Https),
            "*.wild.example",
            terminate(&[&wild], None),
        )?;
        mesh.put([one, wild].map(|secret| Resource::Secret(Arc::new(secret))));
        let rule = rule("HTTPRoute/shop/r", &["one", "wild"], vec![to("web", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.gateway.ready().await;
        let http1_only = ca.client(&[b"http/1.1"], None)?;
        let any = ca.client(&[b"h2", b"http/1.1"], None)?;
        let cases = [
            // server name, host, status
            ("one.example", "one.example", 200),
            ("a.wild.example", "a.wild.example", 200),
            ("a.wild.example", "b.wild.example", 200),
            ("one.example", "a.wild.example", 421),
            ("a.wild.example", "one.example", 421),
            ("one.example", "unknown.example", 421),
        ];
        for (name, host, status) in cases {
            let stream = connect(&mesh, &http1_only, name).await?;
            let got = http1(stream, get(host, "/").body(Full::default())?).await?;
            assert_eq!(got.status, status, "{name} {host}");
            let mut send = http2(connect(&mesh, &any, name).await?).await?;
            let request = http::Request::get(format!("https://{host}/")).body(Full::default())?;
            let got = super::got(send.send_request(request).await?).await?;
            assert_eq!(got.status, status, "{name} {host} over HTTP/2");
            if status == 200 {
                assert_eq!(got.seen()?.headers["x-forwarded-proto"], "https");
            }
        }
        // A name that nobody serves: closed before a byte of TLS is written.
        let mut stream = TcpStream::connect((mesh.ip, 8443)).await?;
        let name = ServerName::try_from("nobody.example")?;
        let refused = TlsConnector::from(http1_only).connect(name, &mut stream).await;
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
        Ok(())
    })
}

#[test]
fn a_new_certificate_is_shown_at_once_and_open_connections_go_on() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let (old_ca, new_ca) = (Issuer::new()?, Issuer::new()?);
        let old = old_ca.secret("shop/cert", &["a.example"])?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        mesh.listener("tls", (8443, Protocol::Https), "", terminate(&[&old], None))?;
        mesh.put([Resource::Secret(Arc::new(old))]);
        all_to_web(&mut mesh, "tls")?;
        mesh.gateway.ready().await;
        let (trusts_old, trusts_new) =
            (old_ca.client(&[b"h2"], None)?, new_ca.client(&[b"h2"], None)?);
        let mut open = http2(connect(&mesh, &trusts_old, "a.example").await?).await?;
        assert!(connect(&mesh, &trusts_new, "a.example").await.is_err());
        let new = new_ca.secret("shop/cert", &["a.example"])?;
        mesh.put([Resource::Secret(Arc::new(new))]);
        assert!(connect(&mesh, &trusts_new, "a.example").await.is_ok());
        assert!(connect(&mesh, &trusts_old, "a.example").await.is_err());
        let request = http::Request::get("https://a.example/").body(Full::default())?;
        assert_eq!(open.send_request(request).await?.status(), 200);
        Ok(())
    })
}

#[test]
fn client_certificates_are_checked_and_told_to_the_backend() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let (ca, twin) = (Issuer::new()?, Issuer::new()?);
        let own = ca.secret("shop/cert", &["a.example"])?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        let validation = ClientValidation {
            ca_pem: ca.pem().into(),
            mode: ClientValidationMode::AllowValidOnly,
        };
        mesh.listener("tls", (8443, Protocol::Https), "", terminate(&[&own], Some(validation)))?;
        mesh.put([Resource::Secret(Arc::new(own))]);
        all_to_web(&mut mesh, "tls")?;
        mesh.gateway.ready().await;
        let call = async |shown: Option<&Secret>| {
            let stream = connect(&mesh, &ca.client(&[b"http/1.1"], shown)?, "a.example").await?;
            http1(stream, get("a.example", "/").body(Full::default())?).await?.seen()
        };
        let good = ca.secret("shop/client", &["client.example"])?;
        let seen = call(Some(&good)).await?;
        let told = &seen.headers["x-forwarded-client-cert"];
        assert!(told.starts_with("Hash=") && told.contains("DNS=client.example"), "{told}");
        assert!(call(None).await.is_err(), "no certificate");
        let foreign = twin.secret("shop/client", &["client.example"])?;
        assert!(call(Some(&foreign)).await.is_err(), "authority of the same name");
        assert_eq!(web.requests(), 1);
        Ok(())
    })
}

#[test]
fn tls_passes_through_to_the_backend_of_its_name() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let ca = Issuer::new()?;
        let secret = ca.secret("shop/cert", &["pass.example"])?;
        let server = Issuer::server(&secret, &[b"http/1.1"])?;
        let at = SocketAddr::new(address(), 0);
        let inner = Backend::start("inner", at, Some(server)).await?;
        mesh.service("inner", AppProtocol::Tls, &[("inner", inner.address)], &[])?;
        let tls = ListenerTls {
            mode: TlsMode::Passthrough,
            secrets: Vec::new(),
            client_validation: None,
        };
        mesh.listener("pass", (8443, Protocol::Tls), "", Some(tls))?;
        let mut route = rule("TLSRoute/shop/r", &["pass"], vec![to("inner", 1)?])?;
        route.parents[0].hostnames = vec!["pass.example".parse()?];
        mesh.put([Resource::Rule(Arc::new(route))]);
        mesh.gateway.ready().await;
        let client = ca.client(&[b"http/1.1"], None)?;
        let stream = connect(&mesh, &client, "pass.example").await?;
        let got = http1(stream, get("pass.example", "/x").body(Full::default())?).await?;
        let seen = got.seen()?;
        assert_eq!((&*seen.backend, &*seen.target), ("inner", "/x"));
        assert!(!seen.headers.contains_key("x-forwarded-for"), "nobody looked inside");
        assert!(connect(&mesh, &client, "other.example").await.is_err());
        assert_eq!(inner.connections(), 1);
        Ok(())
    })
}

#[test]
fn backends_are_reached_by_tls_as_their_policy_asks() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let (ca, twin) = (Issuer::new()?, Issuer::new()?);
        let secret = ca.secret("shop/cert", &["inner.example"])?;
        let server = Issuer::server(&secret, &[b"h2", b"http/1.1"])?;
        let at = SocketAddr::new(address(), 0);
        let inner = Backend::start("inner", at, Some(server)).await?;
        mesh.service("inner", AppProtocol::Unknown, &[("inner", inner.address)], &[])?;
        mesh.listener("http", (8080, Protocol::Http), "", None)?;
        mesh.put([Resource::Rule(Arc::new(rule(
            "HTTPRoute/shop/r",
            &["http"],
            vec![to("inner", 1)?],
        )?))]);
        mesh.gateway.ready().await;
        let policy = |sni: &str, ca: &Issuer| -> anyhow::Result<BackendTls> {
            Ok(BackendTls {
                name: format!("{}/80", key("inner")).parse()?,
                sni: sni.into(),
                roots: Roots::Pem(ca.pem().into()),
                subject_alt_names: Vec::new(),
                invalid: None,
            })
        };
        let good = policy("inner.example", &ca)?;
        let invalid = BackendTls { invalid: Some("no CA".into()), ..good.clone() };
        let cases = [
            ("good", good.clone(), 200),
            ("wrong name", policy("other.example", &ca)?, 503),
            ("authority of the same name", policy("inner.example", &twin)?, 503),
            ("invalid", invalid, 500),
            ("good again", good, 200),
        ];
        for (name, policy, status) in cases {
            mesh.put([Resource::BackendTls(Arc::new(policy))]);
            for _ in 0..3 {
                let got = ask(mesh.ip, 8080, "a", "/").await?;
                assert_eq!(got.status, status, "{name}");
                if status == 200 {
                    assert_eq!(got.seen()?.version, "HTTP/2.0", "as ALPN agreed");
                }
            }
        }
        Ok(())
    })
}
