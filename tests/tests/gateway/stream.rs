// SPDX-License-Identifier: Apache-2.0

//! Bytes that are not requests: upgrades, TCP, UDP, the PROXY protocol.

use std::sync::Arc;

use policy::authz::{Action, Authorization, PolicyName, Rule as PolicyRule, Scope, Target};
use routing::delta::Resource;
use routing::discovery::AppProtocol;
use routing::listener::{Listener, Protocol};
use routing::matching::HostPattern;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use waymark_tests::mesh::{Mesh, address, local, rule, to, vip};

use super::{all_to_web, backend, get, http1};

/// A policy that refuses everything.
fn refuse_all() -> Authorization {
    Authorization {
        name: PolicyName::new("shop", "nothing"),
        scope: Scope::Global,
        action: Action::Deny,
        dry_run: false,
        unsupported: None,
        rules: vec![PolicyRule::default()],
    }
}

/// A TCP server that greets, then echoes.
async fn greeter() -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind((address(), 0)).await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"hello\n").await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(at)
}

async fn read(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    count: usize,
) -> anyhow::Result<String> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await?;
    Ok(String::from_utf8(bytes)?)
}

#[test]
fn a_websocket_works_until_policy_withdraws_it() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let web = backend("web").await?;
        mesh.listener("http", (8080, Protocol::Http), "", None)?;
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        all_to_web(&mut mesh, "http")?;
        mesh.gateway.ready().await;
        let mut stream = TcpStream::connect((mesh.ip, 8080)).await?;
        let head =
            "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(b"glued").await?;
        let mut got = Vec::new();
        while !got.windows(4).any(|part| part == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut got).await?, 0);
        }
        assert!(got.starts_with(b"HTTP/1.1 101"), "{:?}", String::from_utf8_lossy(&got));
        let end = got.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
        let rest = got.split_off(end);
        let more = read(&mut stream, 5 - rest.len()).await?;
        assert_eq!([rest, more.into_bytes()].concat(), b"glued");
        stream.write_all(b"again").await?;
        assert_eq!(read(&mut stream, 5).await?, "again");
        mesh.policy(refuse_all(), Target::Gateway("shop/gw".into()));
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "the permit is withdrawn");
        Ok(())
    })
}

#[test]
fn a_tcp_route_carries_bytes_both_ways_and_half_closed() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        mesh.listener("tcp", (9000, Protocol::Tcp), "", None)?;
        mesh.service("echo", AppProtocol::Tcp, &[("echo", greeter().await?)], &[])?;
        let rule = rule("TCPRoute/shop/r", &["tcp"], vec![to("echo", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.gateway.ready().await;
        let mut stream = TcpStream::connect((mesh.ip, 9000)).await?;
        assert_eq!(read(&mut stream, 6).await?, "hello\n", "the server speaks first");
        let sent = vec![b'x'; 1 << 20];
        let (mut from, mut to) = stream.split();
        let write = async {
            to.write_all(&sent).await?;
            to.shutdown().await
        };
        let mut got = Vec::new();
        let (written, read_all) = tokio::join!(write, from.read_to_end(&mut got));
        written?;
        assert_eq!((read_all?, got == sent), (1 << 20, true));

        let mut open = TcpStream::connect((mesh.ip, 9000)).await?;
        read(&mut open, 6).await?;
        mesh.policy(refuse_all(), Target::Gateway("shop/gw".into()));
        assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0, "the permit is withdrawn");
        let text = mesh.gateway.scrape();
        assert!(text.contains("istio_tcp_connections_opened_total{"), "connections are counted");
        Ok(())
    })
}

#[test]
fn a_waypoint_carries_protocols_in_which_the_server_speaks_first() -> anyhow::Result<()> {
    local(async {
        for protocol in [AppProtocol::Tcp, AppProtocol::Unknown] {
            let mut mesh = Mesh::start(true).await?;
            mesh.service("echo", protocol, &[("echo", greeter().await?)], &[])?;
            mesh.bind_waypoint("echo")?;
            mesh.gateway.ready().await;
            let client = mesh.client("client").await?;
            let authority = format!("{}:80", vip("echo"));
            let mut stream = client.open(&authority, http::HeaderMap::new()).await?;
            assert_eq!(read(&mut stream, 6).await?, "hello\n", "{protocol:?}");
            stream.write_all(b"abc").await?;
            assert_eq!(read(&mut stream, 3).await?, "abc", "{protocol:?}");
        }
        Ok(())
    })
}

#[test]
fn a_udp_route_answers_each_client() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let server = UdpSocket::bind((address(), 0)).await?;
        let at = server.local_addr()?;
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = server.recv_from(&mut buffer).await {
                buffer[..length].make_ascii_uppercase();
                drop(server.send_to(&buffer[..length], from).await);
            }
        });
        mesh.listener("udp", (5300, Protocol::Udp), "", None)?;
        mesh.service("names", AppProtocol::Unknown, &[("names", at)], &[])?;
        let rule = rule("UDPRoute/shop/r", &["udp"], vec![to("names", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        mesh.gateway.ready().await;
        let clients =
            [UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?];
        for round in 0..3 {
            for (n, client) in clients.iter().enumerate() {
                let text = format!("client {n} round {round}");
                client.send_to(text.as_bytes(), (mesh.ip, 5300)).await?;
                let mut buffer = [0; 64];
                let (length, from) = client.recv_from(&mut buffer).await?;
                assert_eq!(buffer[..length], *text.to_uppercase().as_bytes());
                assert_eq!(from.ip(), mesh.ip);
            }
        }
        Ok(())
    })
}

#[test]
fn the_proxy_protocol_names_the_client_and_is_demanded() -> anyhow::Result<()> {
    local(async {
        let mut mesh = Mesh::start(false).await?;
        let web = backend("web").await?;
        let listener = Listener {
            name: "shop/gw/http".parse()?,
            port: 8080,
            target_port: 8080,
            protocol: Protocol::Http,
            hostname: HostPattern::Any,
            tls: None,
            proxy_protocol: true,
        };
        mesh.put([Resource::Listener(Arc::new(listener))]);
        mesh.service("web", AppProtocol::Unknown, &[("web", web.address)], &[])?;
        all_to_web(&mut mesh, "http")?;
        mesh.gateway.ready().await;
        let mut stream = TcpStream::connect((mesh.ip, 8080)).await?;
        stream.write_all(b"PROXY TCP4 203.0.113.7 203.0.113.8 1234 80\r\n").await?;
        let got = http1(stream, get("a", "/").body(http_body_util::Full::default())?).await?;
        assert_eq!(got.seen()?.headers["x-forwarded-for"], "203.0.113.7");
        let mut stream = TcpStream::connect((mesh.ip, 8080)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        assert_eq!(stream.read(&mut [0; 64]).await.unwrap_or(0), 0, "closed without an answer");
        assert_eq!(web.requests(), 1);
        Ok(())
    })
}
