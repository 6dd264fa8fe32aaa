// SPDX-License-Identifier: Apache-2.0

//! Policies over all that passes a gateway at the edge, and who its clients are to them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use policy::authz::{Action, Authorization, Match, PathMatch, StringMatch, Target};
use routing::backend::Secret;
use routing::delta::{Kind, Resource};
use routing::discovery::AppProtocol;
use routing::listener::{ClientValidation, ClientValidationMode, ListenerTls, Protocol, TlsMode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use waymark_tests::certs::Issuer;
use waymark_tests::mesh::{Mesh, address, local, rule, to};

use super::{Got, any, ask, backend, get, http1, policy};

fn gateway() -> Target {
    Target::Gateway("shop/gw".into())
}

fn paths(path: &str) -> anyhow::Result<Match> {
    Ok(Match { paths: any(PathMatch::parse(path)?), ..Match::default() })
}

/// An HTTPS listener on `port` that checks clients by `ca`.
fn checked(
    mesh: &mut Mesh,
    (section, port): (&str, u16),
    secret: &Secret,
    ca: &Issuer,
    mode: ClientValidationMode,
) -> anyhow::Result<()> {
    let validation = ClientValidation { ca_pem: ca.pem().into(), mode };
    let tls = ListenerTls {
        mode: TlsMode::Terminate,
        secrets: vec![secret.name.clone()],
        client_validation: Some(validation),
    };
    mesh.listener(section, (port, Protocol::Https), "", Some(tls))
}

#[test]
fn requests_at_the_edge_pass_its_policies_or_nothing() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        mesh.listener("http", (8080, Protocol::Http), "", None)?;
        let rule = rule("HTTPRoute/shop/r", &["http"], vec![to("web", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.gateway.ready().await;
        let call = async |mesh: &Mesh, path: &str| {
            anyhow::Ok(ask(mesh.ip, 8080, "a", path).await?.status.as_u16())
        };
        assert_eq!(call(&mesh, "/admin").await?, 200);
        mesh.policy(policy("no-admin", Action::Deny, paths("/admin*")?), gateway());
        for (path, want) in [("/admin", 403), ("/x/../admin", 403), ("/", 200)] {
            assert_eq!(call(&mesh, path).await?, want, "{path}");
        }
        let unread = Authorization {
            unsupported: Some("it asks an external service".into()),
            rules: Vec::new(),
            ..policy("half-read", Action::Allow, Match::default())
        };
        mesh.policy(unread, gateway());
        assert_eq!(call(&mesh, "/").await?, 403, "what is not understood refuses");
        Ok(())
    })
}

#[test]
fn a_client_is_whom_a_checked_certificate_names() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let partners = Issuer::new()?;
        let server = partners.secret("shop/server", &["edge.example"])?;
        let roots = Arc::clone(&mesh.issuer);
        let strict = ClientValidationMode::AllowValidOnly;
        checked(&mut mesh, ("partners", 8443), &server, &partners, strict)?;
        let lax = ClientValidationMode::AllowInsecureFallback;
        checked(&mut mesh, ("lax", 8444), &server, &partners, lax)?;
        checked(&mut mesh, ("mesh", 8445), &server, &roots, strict)?;
        mesh.put([Resource::Secret(Arc::new(server))]);
        let web = backend("web").await?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        let sections = ["partners", "lax", "mesh"];
        let rule = rule("HTTPRoute/shop/r", &sections, vec![to("web", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        let named = |name: &str| -> anyhow::Result<Match> {
            Ok(Match { principals: any(StringMatch::parse(name)?), ..Match::default() })
        };
        let partner = "partner.example/ns/a/sa/b";
        let own = "cluster.local/ns/shop/sa/admin";
        mesh.policy(policy("partner", Action::Allow, named(partner)?), gateway());
        mesh.policy(policy("own", Action::Allow, named(own)?), gateway());
        mesh.gateway.ready().await;

        let uri = |name: &str| format!("spiffe://{name}");
        let good = partners.secret_of("shop/good", &uri(partner))?;
        let other = partners.secret_of("shop/other", &uri("partner.example/ns/a/sa/c"))?;
        let nameless = partners.secret("shop/nameless", &["b.example"])?;
        let forged = partners.secret_of("shop/forged", &uri(own))?;
        let real = roots.secret_of("shop/real", &uri(own))?;
        let cases = [
            // what, port, certificate, status
            ("a name that is allowed", 8443, Some(&good), 200),
            ("another name", 8443, Some(&other), 403),
            ("no workload's name", 8443, Some(&nameless), 403),
            ("a name of ours by others' authority", 8443, Some(&forged), 403),
            ("not checked", 8444, Some(&good), 403),
            ("nothing shown", 8444, None, 403),
            ("a name of ours by our authority", 8445, Some(&real), 200),
        ];
        for (what, port, certificate, want) in cases {
            let config = partners.client(&[b"http/1.1"], certificate)?;
            let stream = TcpStream::connect((mesh.ip, port)).await?;
            let name = ServerName::try_from("edge.example")?;
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            let got: Got = http1(stream, get("edge.example", "/").body(Full::default())?).await?;
            assert_eq!(got.status, want, "{what}");
            if want == 200 {
                let told = got.seen()?.headers["x-forwarded-client-cert"].clone();
                assert!(told.starts_with("Hash="), "the client's certificate is told: {told}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_connection_that_is_no_request_cannot_answer_for_one() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let greeter = TcpListener::bind((address(), 0)).await?;
        let at = greeter.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = greeter.accept().await {
                drop(stream.write_all(b"hello").await);
            }
        });
        mesh.listener("tcp", (9000, Protocol::Tcp), "", None)?;
        mesh.service("greeter", AppProtocol::Tcp, &[("greeter", at)], &[])?;
        let rule = rule("TCPRoute/shop/r", &["tcp"], vec![to("greeter", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.gateway.ready().await;
        let ip: IpAddr = mesh.ip;
        let ports = |port: u16| Match { destination_ports: any(port), ..Match::default() };
        let from = |net: &str| -> anyhow::Result<Match> {
            Ok(Match { source_ips: any(net.parse()?), ..Match::default() })
        };
        let cases = [
            ("deny of another port", Action::Deny, ports(9001), true),
            ("deny of the port", Action::Deny, ports(9000), false),
            ("deny of a path", Action::Deny, paths("/x")?, false),
            ("allow of the network", Action::Allow, from("127.0.0.0/8")?, true),
            ("allow of another network", Action::Allow, from("10.0.0.0/8")?, false),
            ("allow of a path", Action::Allow, paths("/*")?, false),
        ];
        for (what, action, one, passes) in cases {
            mesh.policy(policy("p", action, one), gateway());
            let mut stream = TcpStream::connect((ip, 9000)).await?;
            let mut got = Vec::new();
            drop(stream.read_to_end(&mut got).await);
            assert_eq!(got == b"hello", passes, "{what}");
            mesh.remove(Kind::GatewayAuthorization, "shop/p");
        }
        Ok(())
    })
}

#[test]
fn datagrams_pass_the_policies_of_the_gateway_as_they_are_now() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let echo = UdpSocket::bind((address(), 0)).await?;
        let at: SocketAddr = echo.local_addr()?;
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut buffer).await {
                drop(echo.send_to(&buffer[..length], from).await);
            }
        });
        mesh.listener("udp", (5300, Protocol::Udp), "", None)?;
        mesh.service("echo", AppProtocol::Unknown, &[("echo", at)], &[])?;
        let rule = rule("UDPRoute/shop/r", &["udp"], vec![to("echo", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.gateway.ready().await;
        let client = UdpSocket::bind("127.0.0.1:0").await?;
        client.connect((mesh.ip, 5300)).await?;
        let mut buffer = [0; 64];
        client.send(b"one").await?;
        assert_eq!(client.recv(&mut buffer).await?, 3);
        let ports = Match { destination_ports: any(5300), ..Match::default() };
        mesh.policy(policy("p", Action::Deny, ports), gateway());
        // The session that was let in before, and a new one.
        let other = UdpSocket::bind("127.0.0.1:0").await?;
        other.connect((mesh.ip, 5300)).await?;
        for socket in [&client, &other] {
            let answer = async {
                loop {
                    socket.send(b"two").await?;
                    let limit = Duration::from_millis(50);
                    if let Ok(answer) = tokio::time::timeout(limit, socket.recv(&mut buffer)).await
                    {
                        return answer;
                    }
                }
            };
            let silence = tokio::time::timeout(Duration::from_millis(300), answer).await;
            assert!(silence.is_err(), "{silence:?}");
        }
        mesh.remove(Kind::GatewayAuthorization, "shop/p");
        loop {
            client.send(b"three").await?;
            let limit = Duration::from_millis(50);
            if let Ok(answer) = tokio::time::timeout(limit, client.recv(&mut buffer)).await {
                assert_eq!(answer?, 5);
                return Ok(());
            }
        }
    })
}
