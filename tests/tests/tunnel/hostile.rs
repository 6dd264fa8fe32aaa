// SPDX-License-Identifier: Apache-2.0

//! Peers that break TLS or HTTP/2: each is refused in time, counted by its cause, and told
//! of once; nothing of them is kept.

use std::sync::Arc;
use std::time::Duration;

use time::Duration as Offset;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tunnel::hbone;
use tunnel::metrics::Cause;
use tunnel::settings::Limits;
use waymark_tests::certs::{self, Issuer};
use waymark_tests::node::SOON;

use crate::{Target, is_closed};

/// Bounds that are met soon.
fn impatient() -> Limits {
    let millis = Duration::from_millis;
    let hbone = hbone::Limits {
        handshake: millis(700),
        ping_interval: millis(200),
        ping_timeout: millis(300),
        ..hbone::Limits::default()
    };
    Limits { hbone, ..Limits::default() }
}

/// Access lines are written as the level of the log says; by default there is no log.
fn log_as_shipped() {
    // Another test of this process may have done it.
    drop(tracing_subscriber::registry().with(LevelFilter::INFO).try_init());
}

const OWN: &str = "spiffe://cluster.local/ns/shop/sa/peer";

/// Opens TLS to the pod, believing whoever answers, with what `own` holds.
async fn tls(
    target: &Target,
    own: &routing::backend::Secret,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = certs::trusting(&[b"h2"], Some(own)).unwrap();
    let name = "anybody".try_into().unwrap();
    TlsConnector::from(config).connect(name, target.tcp(hbone::PORT).await).await
}

/// A proven peer inside TLS.
async fn proven(target: &Target) -> TlsStream<TcpStream> {
    let (from, to) = (Offset::minutes(-1), Offset::hours(1));
    let own = target.world.issuer.leaf(Some(OWN), from, to).unwrap();
    tls(target, &own).await.unwrap()
}

/// Waits until `cause` was counted `count` times, no more.
async fn counted(target: &Target, cause: Cause, count: u64, what: &str) {
    let counted = async {
        while target.refused(cause) < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, counted).await.unwrap_or_else(|_| panic!("{what} is counted as {cause:?}"));
    assert_eq!(target.refused(cause), count, "{what} is counted once");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_prove_nothing_open_nothing() {
    log_as_shipped();
    let target = Target::new(Limits::default()).await;
    let (own, stranger) = (&target.world.issuer, &Issuer::new().unwrap());
    let (past, soon, hour) = (Offset::minutes(-1), Offset::minutes(10), Offset::hours(1));
    type Row<'a> = (&'a str, &'a Arc<Issuer>, Option<&'a str>, [Offset; 2]);
    let rows: [Row<'_>; 7] = [
        // name, issuer, URI name, life from now
        ("another root", stranger, Some(OWN), [past, hour]),
        ("expired", own, Some(OWN), [-hour, past]),
        ("not valid yet", own, Some(OWN), [soon, hour]),
        ("no name", own, None, [past, hour]),
        ("a name that is none", own, Some("spiffe://cluster.local/shop/peer"), [past, hour]),
        ("another scheme", own, Some("https://cluster.local/ns/shop/sa/peer"), [past, hour]),
        ("another trust domain", own, Some("spiffe://elsewhere/ns/shop/sa/peer"), [past, hour]),
    ];
    let mut count = 0;
    for (name, issuer, uri, [from, to]) in rows {
        let shown = issuer.leaf(uri, from, to).unwrap();
        // In TLS 1.3 the client may be done before the server refuses it.
        if let Ok(mut stream) = tls(&target, &shown).await {
            let mut rest = Vec::new();
            let read = timeout(SOON, stream.read_to_end(&mut rest)).await;
            assert!(read.is_ok() && rest.is_empty(), "{name}: {read:?} {rest:?}");
        }
        count += 1;
        counted(&target, Cause::Tls, count, name).await;
    }
    let nothing = TlsConnector::from(certs::trusting(&[b"h2"], None).unwrap());
    let name = "anybody".try_into().unwrap();
    if let Ok(mut stream) = nothing.connect(name, target.tcp(hbone::PORT).await).await {
        stream.read_u8().await.expect_err("no certificate");
    }
    counted(&target, Cause::Tls, count + 1, "no certificate").await;

    // One of the same kind that is good, so that it is not the test that is refused.
    let mut good = proven(&target).await;
    good.write_all(HELLO).await.unwrap();
    assert_ne!(timeout(SOON, good.read_u8()).await.unwrap().ok(), None, "settings of the server");
    assert_eq!(target.refused(Cause::Tls), count + 1);

    // The first is told of; eight of one cause are a scan.
    Deed::Garbage.run(&mut proven(&target).await).await;
    let lines = told(&target, "HTTP/2 handshake failed").await;
    assert_eq!(lines.matches("TLS handshake failed").count(), 1, "{lines}");
}

/// The access log up to the line that holds `last`.
async fn told(target: &Target, last: &str) -> String {
    let lines = &target.world.tunnel(1).unwrap().lines;
    let told = async {
        while !lines.text().contains(last) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, told).await.unwrap_or_else(|_| panic!("{last} is not told: {}", lines.text()));
    lines.text()
}

/// The preface of a client and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// The head of a frame of stream 1.
fn frame(kind: u8, flags: u8, length: usize) -> [u8; 9] {
    let [_, a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
    [a, b, c, kind, flags, 0, 0, 0, 1]
}

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// What a proven peer does after TLS.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Nothing at all.
    Silence,
    /// What is no HTTP/2.
    Garbage,
    /// HTTP/1.
    Http1,
    /// Settings, then frames of a kind that may not come here.
    WrongFrame,
    /// Headers that never end, in many small frames.
    EndlessHeaders,
    /// One head of which a byte comes now and then.
    Drip,
}

impl Deed {
    /// What it begins with, and what comes again and again then.
    fn without_end(self) -> Option<(Vec<u8>, Vec<u8>)> {
        match self {
            Self::Silence | Self::Garbage | Self::Http1 | Self::WrongFrame => None,
            Self::EndlessHeaders => {
                let more = [&frame(CONTINUATION, 0, 2)[..], b"\x40\x01"].concat();
                Some((frame(HEADERS, 0, 0).to_vec(), more))
            }
            Self::Drip => Some((frame(HEADERS, 4, 16_000).to_vec(), vec![0x40])),
        }
    }

    /// Does it until the other side has closed.
    async fn run(self, stream: &mut TlsStream<TcpStream>) {
        let opening: &[&[u8]] = match self {
            Self::Silence => &[],
            Self::Garbage => &[&[0xff; 4096]],
            Self::Http1 => &[b"CONNECT 10.0.0.1:80 HTTP/1.1\r\nhost: a\r\n\r\n"],
            Self::WrongFrame => &[HELLO, &frame(CONTINUATION, 0, 1), b"x"],
            Self::EndlessHeaders | Self::Drip => &[HELLO],
        };
        for part in opening {
            stream.write_all(part).await.unwrap();
        }
        stream.flush().await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let talk = async {
            let Some((first, more)) = self.without_end() else {
                return std::future::pending().await;
            };
            let mut next = first;
            while write.write_all(&next).await.is_ok() && write.flush().await.is_ok() {
                next.clone_from(&more);
                if matches!(self, Self::Drip) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let mut rest = Vec::new();
        let closed = async {
            // However it ends: by an end, an alert or a reset.
            drop(read.read_to_end(&mut rest).await);
        };
        tokio::select! {
            () = closed => {}
            () = talk => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proven_peers_that_break_http2_are_cut_in_time() {
    log_as_shipped();
    let target = Target::new(impatient()).await;
    let rows = [
        (Deed::Silence, Cause::TimedOut, 1),
        (Deed::Garbage, Cause::Http2, 1),
        (Deed::Http1, Cause::Http2, 2),
        (Deed::WrongFrame, Cause::Http2, 3),
        (Deed::EndlessHeaders, Cause::Http2, 4),
        (Deed::Drip, Cause::Silent, 1),
    ];
    for (deed, cause, count) in rows {
        let mut stream = proven(&target).await;
        let begun = Instant::now();
        timeout(SOON, deed.run(&mut stream)).await.unwrap_or_else(|_| panic!("{deed:?} is cut"));
        assert!(begun.elapsed() < Duration::from_secs(10), "{deed:?}: {:?}", begun.elapsed());
        counted(&target, cause, count, &format!("{deed:?}")).await;
    }
    let tunnel = target.world.tunnel(1).unwrap();
    let quiet = async {
        while !tunnel.sessions.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, quiet).await.expect("nothing of them is kept");
    target.still_serves("peers that break HTTP/2").await;
    let lines = told(&target, "connection is dead").await;
    for word in ["handshake took too long", "connection is dead", "HTTP/2 handshake failed"] {
        assert_eq!(lines.matches(word).count(), 1, "{word}: {lines}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_drips_is_cut_with_the_handshake() {
    let target = Target::new(impatient()).await;
    let mut stream = target.tcp(hbone::PORT).await;
    stream.set_nodelay(true).unwrap();
    let hello = [&[0x16, 0x03, 0x01, 0x02, 0x00][..], &[0x01; 512]].concat();
    let (mut read, mut write) = stream.split();
    let drip = async {
        for byte in hello.chunks(1) {
            if write.write_all(byte).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut rest = Vec::new();
    let begun = Instant::now();
    tokio::select! {
        read = read.read_to_end(&mut rest) => drop(read),
        () = drip => {}
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(is_closed(&mut stream).await);
    counted(&target, Cause::TimedOut, 1, "a hello that drips").await;
}
