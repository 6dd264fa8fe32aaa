// SPDX-License-Identifier: Apache-2.0

//! What a tunnel refuses: peers that break TLS, HTTP/2 or the rules of HBONE,
//! and pods that take more than their share. In network namespaces, needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderValue, Method, Request, Response, Version};
use routing::delta::{Kind, Resource};
use routing::l4::Expected;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tunnel::credentials::Credential;
use tunnel::hbone::{self, client};
use tunnel::metrics::Cause;
use tunnel::settings::Limits;
use waymark_tests::certs::Issuer;
use waymark_tests::netns::Pod;
use waymark_tests::node::{SOON, World};

#[path = "tunnel/hostile.rs"]
mod hostile;

const APPLICATION: u16 = 8080;

/// One captured pod with an application, and a peer outside.
struct Target {
    world: World,
    pod: Pod,
    peer: Pod,
}

impl Target {
    async fn new(limits: Limits) -> Self {
        let mut world = World::new(1, limits).unwrap();
        let (pod, peer) = (world.topology.pod(1).unwrap(), world.topology.pod(1).unwrap());
        let workload = world.workload("server", &pod, true).unwrap();
        world.tell(Kind::Address, &[Resource::Workload(Arc::new(workload))], &[]).unwrap();
        world.enrol("server", &pod).await.unwrap();
        let listener = pod.netns.listen(SocketAddr::new(pod.ip(false), APPLICATION)).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        Self { world, pod, peer }
    }

    async fn tcp(&self, port: u16) -> TcpStream {
        let target = SocketAddr::new(self.pod.ip(false), port);
        timeout(SOON, self.peer.netns.connect(target)).await.unwrap().unwrap()
    }

    async fn identity(&self, issuer: &Arc<Issuer>) -> Arc<Credential> {
        let identity = "spiffe://cluster.local/ns/shop/sa/peer".parse().unwrap();
        issuer.credential(&identity).await.unwrap()
    }

    /// An HBONE connection by an identity of `issuer`.
    async fn hbone(
        &self,
        issuer: &Arc<Issuer>,
    ) -> Result<SendRequest<Bytes>, client::ConnectError> {
        let expected = Expected {
            identity: "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap(),
            alternatives: Arc::default(),
        };
        let credential = self.identity(issuer).await;
        let stream = self.tcp(hbone::PORT).await;
        let limits = hbone::Limits::default();
        let connecting = Box::pin(client::connect(stream, &credential, &expected, &limits));
        let (send, drive) = connecting.await?;
        tokio::spawn(drive);
        Ok(send)
    }

    /// Connections and CONNECT requests that were refused for `cause`.
    fn refused(&self, cause: Cause) -> u64 {
        self.world.tunnel(1).unwrap().metrics.refused.of(cause)
    }

    async fn still_serves(&self, what: &str) {
        let mut send = self.hbone(&self.world.issuer).await.expect(what);
        let authority = format!("{}:{APPLICATION}", self.pod.v4);
        let response = ask(&mut send, connect(&authority)).await.expect(what);
        assert_eq!(response.status(), 200, "after {what}");
    }
}

fn connect(authority: &str) -> Request<()> {
    let request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2);
    request.uri(authority).body(()).unwrap()
}

async fn ask(
    send: &mut SendRequest<Bytes>,
    request: Request<()>,
) -> Result<Response<h2::RecvStream>, h2::Error> {
    let mut ready = send.clone().ready().await?;
    let (response, _transmit) = ready.send_request(request, false)?;
    let response: ResponseFuture = response;
    timeout(SOON, response).await.expect("an answer")
}

/// Reads until the other side closes.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_hbone_is_closed_and_counted() {
    let handshake = Duration::from_millis(500);
    let hbone = hbone::Limits { handshake, ..hbone::Limits::default() };
    let target = Target::new(Limits { hbone, ..Limits::default() }).await;
    let openings: [(&str, &[u8], Cause, u64); 4] = [
        ("silence", b"", Cause::TimedOut, 1),
        ("garbage", &[0xff; 4096], Cause::Tls, 1),
        ("plain HTTP", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", Cause::Tls, 2),
        ("half a TLS hello", &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00], Cause::TimedOut, 2),
    ];
    for (name, opening, cause, count) in openings {
        let mut stream = target.tcp(hbone::PORT).await;
        stream.write_all(opening).await.unwrap();
        let begun = Instant::now();
        assert!(is_closed(&mut stream).await, "{name}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
        // The peer may see the close before it is counted.
        let counted = async {
            while target.refused(cause) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, counted).await.unwrap_or_else(|_| panic!("{name} is counted"));
        assert_eq!(target.refused(cause), count, "{name} is counted once");
        target.still_serves(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connect_that_breaks_a_rule_is_answered_by_its_status() {
    let target = Target::new(Limits::default()).await;
    let mut send = target.hbone(&target.world.issuer).await.unwrap();
    let own = target.pod.v4;
    let get = Request::builder().uri("https://10.0.0.1/").body(()).unwrap();
    let mut other_pod = connect(&format!("{own}:{APPLICATION}"));
    other_pod.headers_mut().insert(hbone::POD_UID, HeaderValue::from_static("another"));
    let cases = [
        ("not a CONNECT", get, 400),
        ("no port", connect("example"), 400),
        ("an address elsewhere", connect("10.244.9.9:8080"), 400),
        ("a loopback address", connect("127.0.0.1:8080"), 400),
        ("an unknown name", connect("web.shop.svc.cluster.local:80"), 503),
        ("the tunnel's outbound port", connect(&format!("{own}:15001")), 503),
        ("the tunnel's HBONE port", connect(&format!("{own}:15008")), 503),
        ("a port nobody listens on", connect(&format!("{own}:9")), 503),
        ("another pod", other_pod, 503),
        ("the application", connect(&format!("{own}:{APPLICATION}")), 200),
    ];
    for (name, request, want) in cases {
        let response = ask(&mut send, request).await.expect(name);
        assert_eq!(response.status(), want, "{name}");
        let word = response.headers().get(hbone::REFUSED);
        assert_eq!(word.is_some(), name == "another pod", "{name}: {word:?}");
    }
    let causes = [
        (Cause::Malformed, 1),
        (Cause::Foreign, 5),
        (Cause::Unreachable, 1),
        (Cause::OtherPod, 1),
        (Cause::Denied, 0),
    ];
    for (cause, count) in causes {
        assert_eq!(target.refused(cause), count, "{cause:?}");
    }

    let mut large = connect(&format!("{own}:{APPLICATION}"));
    let value = HeaderValue::from_bytes(&vec![b'a'; 40 << 10]).unwrap();
    large.headers_mut().insert("x-one", value.clone());
    large.headers_mut().insert("x-two", value);
    let answered = ask(&mut send, large).await;
    assert!(answered.map_or(true, |one| one.status() != 200), "headers beyond the bound");
    target.still_serves("headers beyond the bound").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_at_once_do_not_wear_the_tunnel_out() {
    let target = Target::new(Limits::default()).await;
    let mut send = target.hbone(&target.world.issuer).await.unwrap();
    let authority = format!("{}:{APPLICATION}", target.pod.v4);
    let mut reset = 0;
    for _ in 0..20_000 {
        let Ok(mut ready) = send.clone().ready().await else { break };
        let Ok((_, mut transmit)) = ready.send_request(connect(&authority), false) else { break };
        transmit.send_reset(h2::Reason::CANCEL);
        reset += 1;
        if reset % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    target.still_serves("a rapid reset").await;
    drop(send.clone().ready().await);
    let sessions = &target.world.tunnel(1).unwrap().sessions;
    let quiet = async {
        // The connection of the check itself, and the one that resets.
        while sessions.len() > 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, quiet).await.expect("reset streams leave nothing behind");
    send = target.hbone(&target.world.issuer).await.unwrap();
    assert_eq!(ask(&mut send, connect(&authority)).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noisy_pod_does_not_starve_its_neighbour() {
    let limits = Limits { pod_sessions: 8, ..Limits::default() };
    let mut target = Target::new(limits).await;
    let neighbour = target.world.topology.pod(1).unwrap();
    let workload = target.world.workload("neighbour", &neighbour, true).unwrap();
    let resource = Resource::Workload(Arc::new(workload));
    target.world.tell(Kind::Address, &[resource], &[]).unwrap();
    target.world.enrol("neighbour", &neighbour).await.unwrap();

    let mut noise = Vec::new();
    for _ in 0..8 {
        noise.push(target.tcp(APPLICATION).await);
    }
    for stream in &mut noise {
        stream.write_all(b"x").await.unwrap();
        timeout(SOON, stream.read_u8()).await.unwrap().expect("within the share");
    }
    let mut beyond = target.tcp(APPLICATION).await;
    assert!(is_closed(&mut beyond).await, "beyond the share");
    assert_eq!(target.refused(Cause::Overload), 1);

    let address = SocketAddr::new(neighbour.ip(false), APPLICATION);
    let listener = neighbour.netns.listen(address).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"y").await.unwrap();
    });
    let mut quiet = target.peer.netns.connect(address).await.unwrap();
    let byte = timeout(SOON, quiet.read_u8()).await.unwrap().expect("the neighbour's share");
    assert_eq!(byte, b'y');
    drop(noise.pop());
    let again = async {
        loop {
            let mut stream = target.tcp(APPLICATION).await;
            let _cut = stream.write_all(b"z").await;
            if stream.read_u8().await.is_ok() {
                return;
            }
        }
    };
    timeout(SOON, again).await.expect("room again once a session has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tunnels_own_ports_are_no_way_in() {
    let target = Target::new(Limits::default()).await;
    for port in [15001, 15006, 15053] {
        let address = SocketAddr::new(target.pod.ip(false), port);
        let mut stream = match target.peer.netns.connect(address).await {
            Ok(stream) => stream,
            Err(_) => continue,
        };
        let _cut = stream.write_all(b"x").await;
        assert!(is_closed(&mut stream).await, "port {port}");
    }
    target.still_serves("a visit of its own ports").await;
}
