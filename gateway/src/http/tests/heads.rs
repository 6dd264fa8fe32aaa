// SPDX-License-Identifier: Apache-2.0

//! Request and response heads: what two parsers could read in two ways is refused, the rest
//! reaches the backend in one form.

use super::*;

/// One request on a fresh connection that the client wants closed.
async fn one(head: &str) -> String {
    let rig = Rig::new(Protocol::Http1, echo);
    talk(&rig, head.as_bytes()).await
}

#[tokio::test]
async fn ambiguous_heads_are_refused() {
    let cases = [
        // name, status, head (CRLF written as |)
        ("two lengths", 400, "POST / HTTP/1.1|Host: a|Content-Length: 1|Content-Length: 2||x"),
        ("two lengths in a list", 400, "POST / HTTP/1.1|Host: a|Content-Length: 1, 2||x"),
        ("signed length", 400, "POST / HTTP/1.1|Host: a|Content-Length: +5||x"),
        (
            "length and coding",
            400,
            "POST / HTTP/1.1|Host: a|Content-Length: 3|Transfer-Encoding: chunked||0||",
        ),
        (
            "coding and length",
            400,
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|content-LENGTH: 3||0||",
        ),
        ("coding not chunked", 400, "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip||x"),
        ("chunked not last", 400, "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, gzip||x"),
        ("chunked after gzip", 501, "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip, chunked||x"),
        ("chunked twice", 400, "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, chunked||0||"),
        (
            "chunked in two lines",
            400,
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: chunked||0||",
        ),
        ("coding on HTTP/1.0", 400, "POST / HTTP/1.0|Host: a|Transfer-Encoding: chunked||0||"),
        ("two hosts", 400, "GET / HTTP/1.1|Host: a|Host: b||"),
        ("equal hosts", 400, "GET / HTTP/1.1|Host: a|Host: a||"),
        ("user in host", 400, "GET / HTTP/1.1|Host: u@a||"),
        ("absolute form and another host", 400, "GET http://b/ HTTP/1.1|Host: a||"),
        ("user in absolute form", 400, "GET http://u@a/ HTTP/1.1|Host: a||"),
        ("absolute form of another scheme", 400, "GET ftp://a/ HTTP/1.1|Host: a||"),
        ("no host", 400, "GET / HTTP/1.1|X: y||"),
        ("folded line", 400, "GET / HTTP/1.1|Host: a|X: y| z||"),
        ("space before colon", 400, "GET / HTTP/1.1|Host: a|X : y||"),
        ("bare CR", 400, "GET / HTTP/1.1|Host: a|X: y\rz||"),
        ("NUL", 400, "GET / HTTP/1.1|Host: a|X: y\0z||"),
        ("HTTP/1.2", 400, "GET / HTTP/1.2|Host: a||"),
        ("HTTP/0.9", 400, "GET /||"),
        ("asterisk for GET", 400, "GET * HTTP/1.1|Host: a||"),
        ("authority form", 400, "GET a:80 HTTP/1.1|Host: a||"),
        ("CONNECT", 405, "CONNECT a:80 HTTP/1.1|Host: a:80||"),
        ("encoded NUL", 400, "GET /a%00 HTTP/1.1|Host: a||"),
        ("no head at all", 400, "\u{1}\u{2}\u{3}||"),
    ];
    on_core(async {
        for (name, want, head) in cases {
            let response = one(&head.replace('|', "\r\n")).await;
            assert_eq!(status(&response), want, "{name}: {response}");
            assert!(
                response.to_ascii_lowercase().contains("connection: close"),
                "{name}: {response}"
            );
            assert_eq!(
                response.matches("HTTP/1.1 ").count(),
                1,
                "{name} is one answer: {response}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn odd_but_sound_heads_reach_the_backend_in_one_form() {
    let cases = [
        // name, head, what the backend sees of it (first line, then a piece)
        (
            "equal lengths",
            "POST / HTTP/1.1|Host: a|Content-Length: 1|Content-Length: 1|Connection: close||x",
            "POST / HTTP/1.1|",
            "Content-Length: 1|",
        ),
        (
            "equal lengths in a list",
            "POST / HTTP/1.1|Host: a|Content-Length: 1, 1|Connection: close||x",
            "POST / HTTP/1.1|",
            "Content-Length: 1|",
        ),
        (
            "bare LF",
            "GET /x HTTP/1.1\nHost: a\nConnection: close\n\n",
            "GET /x HTTP/1.1|",
            "Host: a|",
        ),
        (
            "empty lines first",
            "||GET /x HTTP/1.1|Host: a|Connection: close||",
            "GET /x HTTP/1.1|",
            "Host: a|",
        ),
        (
            "absolute form",
            "GET http://a/x?y HTTP/1.1|Host: a|Connection: close||",
            "GET /x?y HTTP/1.1|",
            "Host: a|",
        ),
        (
            "absolute form without path",
            "GET http://a HTTP/1.1|Host: a|Connection: close||",
            "GET / HTTP/1.1|",
            "Host: a|",
        ),
        ("HTTP/1.0 absolute form", "GET http://a/x HTTP/1.0||", "GET /x HTTP/1.1|", "Host: a|"),
        (
            "fragment",
            "GET /x#y HTTP/1.1|Host: a|Connection: close||",
            "GET /x HTTP/1.1|",
            "Host: a|",
        ),
        (
            "space in the target",
            "GET /a b HTTP/1.1|Host: a|Connection: close||",
            "GET /a%20b HTTP/1.1|",
            "Host: a|",
        ),
        (
            "dot segments",
            "GET /a/../b/%2e%2e/c?d=../e HTTP/1.1|Host: a|Connection: close||",
            "GET /c?d=../e HTTP/1.1|",
            "Host: a|",
        ),
        (
            "escapes",
            "GET /%61%2Fb%20/100%/..?%61 HTTP/1.1|Host: a|Connection: close||",
            "GET /a%2Fb%20/?%61 HTTP/1.1|",
            "Host: a|",
        ),
        (
            "asterisk",
            "OPTIONS * HTTP/1.1|Host: a|Connection: close||",
            "OPTIONS * HTTP/1.1|",
            "Host: a|",
        ),
        (
            "lower-case method",
            "get / HTTP/1.1|Host: a|Connection: close||",
            "get / HTTP/1.1|",
            "Host: a|",
        ),
    ];
    on_core(async {
        for (name, head, line, piece) in cases {
            let response = one(&head.replace('|', "\r\n")).await;
            let seen = response.split_once("\r\n\r\n").expect("a body").1;
            assert!(seen.starts_with(&line.replace('|', "\r\n")), "{name}: {response}");
            assert!(
                seen.to_ascii_lowercase()
                    .contains(&piece.replace('|', "\r\n").to_ascii_lowercase()),
                "{name}: {response}"
            );
            assert!(
                seen.to_ascii_lowercase().matches("content-length").count() <= 1,
                "{name}: {response}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn fields_of_one_hop_end_here_both_ways() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x-back, close\r\nX-Back: 1\r\nKeep-Alive: timeout=9\r\nX-Stays: 1\r\n\r\n";
    on_core(async {
        let seen = one("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x-mine, host\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: z\r\nProxy-Connection: q\r\nTE: trailers\r\nUpgrade: h2c\r\nX-End: 2\r\n\r\n").await;
        let seen = seen.split_once("\r\n\r\n").expect("a body").1.to_ascii_lowercase();
        for gone in ["x-mine", "keep-alive", "proxy-", "te:", "upgrade", "connection"] {
            assert!(!seen.contains(gone), "{gone} went on: {seen}");
        }
        assert!(seen.contains("x-end: 2") && seen.contains("host: a"), "{seen}");

        let rig = Rig::new(Protocol::Http1, scripted(&[ANSWER]));
        let (mut io, _) = rig.connect(Protocol::Http1);
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        let response = read_response(&mut io).await.to_ascii_lowercase();
        assert!(!response.contains("x-back") && !response.contains("timeout=9"), "{response}");
        assert!(response.contains("x-stays: 1") && response.contains("connection: keep-alive"), "{response}");
        assert_eq!(rig.pool.held(), 0, "the backend wanted its connection closed");
    })
    .await;
}

#[tokio::test]
async fn malformed_responses_are_502() {
    let cases = [
        ("no HTTP", "hello world\r\n\r\n"),
        ("coding not known", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
        (
            "101 unasked",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ),
    ];
    on_core(async {
        for (name, answer) in cases {
            let answers: &'static [&'static str] = vec![answer].leak();
            let rig = Rig::new(Protocol::Http1, scripted(answers));
            let response =
                talk(&rig, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert_eq!(status(&response), 502, "{name}: {response}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_is_read_alike_however_it_comes() {
    let head = "\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz";
    on_core(async {
        for size in 1..head.len() {
            let rig = Rig::new(Protocol::Http1, echo);
            let (mut io, _) = rig.connect(Protocol::Sniff);
            for piece in head.as_bytes().chunks(size) {
                io.write_all(piece).await.expect("written");
                tokio::task::yield_now().await;
            }
            let response = read_response(&mut io).await;
            assert!(response.contains("\r\n\r\nPOST /a?b HTTP/1.1\r\n"), "{size}: {response}");
            assert!(response.ends_with("xyz"), "{size}: {response}");
        }
    })
    .await;
}

/// Heads made of pieces that parsers disagree about, against `httparse` and our own reading of
/// what was forwarded: a head that is taken says the same to both.
#[tokio::test]
async fn random_heads_are_refused_or_forwarded_with_the_same_meaning() {
    const LINES: &[&str] = &[
        "Host: a\r\n",
        "Host: a\r\n",
        "Host: a\r\n",
        "Host : a\r\n",
        "Host: b\n",
        "Content-Length: 3\r\n",
        "Content-Length: 3\r\n",
        "content-length: 4\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length:\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: 3\u{b}\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\tchunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "X: y\r\n",
        " folded\r\n",
        "X: y\rContent-Length: 9\r\n",
        "X\r\n",
        "X: a\r\n\r\n",
        "Connection: content-length\r\n",
        "Connection: transfer-encoding\r\n",
        "\tX: y\r\n",
    ];
    const BODIES: &[&str] =
        &["", "xyz", "3\r\nxyz\r\n0\r\n\r\n", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"];
    let mut random = Random(7);
    let limits = Limits { linger: std::time::Duration::from_millis(1), ..Limits::default() };
    on_core(async {
        for round in 0..3000 {
            let mut bytes = String::from("POST /x HTTP/1.1\r\n");
            for _ in 0..random.below(5) {
                bytes += LINES[random.below(LINES.len())];
            }
            bytes += "Connection: close\r\n\r\n";
            bytes += BODIES[random.below(BODIES.len())];
            let seen = Rc::new(RefCell::new(Vec::new()));
            let log = Rc::clone(&seen);
            let rig = Rig::with(limits.clone(), Protocol::Http1, move |mut io: DuplexStream| {
                let log = Rc::clone(&log);
                tokio::task::spawn_local(async move {
                    while let Some(request) = read_request(&mut io).await {
                        log.borrow_mut().push(request);
                        let _gone =
                            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                });
            });
            let (mut io, _) = rig.connect(Protocol::Http1);
            io.write_all(bytes.as_bytes()).await.expect("written");
            io.shutdown().await.expect("closed");
            let _read = io.read_to_end(&mut Vec::new()).await;
            let seen = seen.borrow();
            assert!(seen.len() <= 1, "round {round}: one request became {seen:?} from {bytes:?}");
            let Some(seen) = seen.first() else { continue };
            // What went on: judged by a parser that is not ours.
            let mut lines = [httparse::EMPTY_HEADER; 32];
            let mut theirs = httparse::Request::new(&mut lines);
            let whole = theirs.parse(bytes.as_bytes()).expect("a forwarded head is well-formed");
            assert!(whole.is_complete(), "round {round}: {bytes:?}");
            let field = |name: &str| {
                theirs
                    .headers
                    .iter()
                    .filter(|line| line.name.eq_ignore_ascii_case(name))
                    .collect::<Vec<_>>()
            };
            let (hosts, lengths, codings) =
                (field("host"), field("content-length"), field("transfer-encoding"));
            assert_eq!(hosts.len(), 1, "round {round}: {bytes:?}");
            assert!(
                lengths.is_empty() || codings.is_empty(),
                "round {round}: {bytes:?} gave {seen:?}"
            );
            assert!(codings.len() <= 1, "round {round}: {bytes:?}");
            let body = seen.split_once("\r\n\r\n").expect("a head").1;
            match (lengths.is_empty(), codings.is_empty()) {
                (true, true) => assert_eq!(body, "", "round {round}: {bytes:?}"),
                (false, _) => {
                    let length = String::from_utf8_lossy(lengths[0].value)
                        .split(',')
                        .next()
                        .map(str::trim)
                        .map(str::parse);
                    assert_eq!(Some(Ok(body.len())), length, "round {round}: {bytes:?}");
                }
                (true, false) => assert_eq!(body, BODIES[2], "round {round}: {bytes:?}"),
            }
        }
    })
    .await;
}

/// Small, seeded, repeatable.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).expect("31 bits") % bound
    }
}
