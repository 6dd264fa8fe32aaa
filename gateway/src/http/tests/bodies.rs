// SPDX-License-Identifier: Apache-2.0

//! HTTP/1 on both sides: framing, interim and early responses, upgrades, retries.

use std::time::Duration;

use super::*;

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn requests_share_one_connection_each_side() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let (mut io, _) = rig.connect(Protocol::Sniff);
        for round in 0..100 {
            let body = "b".repeat(round * 700);
            let head = format!(
                "POST /{round} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            io.write_all(head.as_bytes()).await.expect("written");
            let response = read_response(&mut io).await;
            assert_eq!(status(&response), 200);
            assert!(
                response.contains(&format!("POST /{round} HTTP/1.1")) && response.ends_with(&body)
            );
        }
        assert_eq!(rig.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_order() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let (mut io, _) = rig.connect(Protocol::Http1);
        let two = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
        io.write_all(two.as_bytes()).await.expect("written");
        for path in ["POST /1 ", "GET /2 ", "GET /3 "] {
            assert!(read_response(&mut io).await.contains(path));
        }
        assert_eq!(rig.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn responses_are_framed_for_the_client_that_reads_them() {
    let cases = [
        // name, backend's answer, request, want head piece, want end
        (
            "length",
            "HTTP/1.1 200 OK|Content-Length: 3||abc",
            "GET / HTTP/1.1",
            "content-length: 3|",
            "||abc",
        ),
        (
            "chunked",
            "HTTP/1.1 200 OK|Transfer-Encoding: chunked||3|abc|0||",
            "GET / HTTP/1.1",
            "transfer-encoding: chunked|",
            "||3|abc|0||",
        ),
        (
            "chunked to HTTP/1.0",
            "HTTP/1.1 200 OK|Transfer-Encoding: chunked||3|abc|0||",
            "GET / HTTP/1.0",
            "connection: close|",
            "||abc",
        ),
        (
            "until close",
            "HTTP/1.0 200 OK||abc",
            "GET / HTTP/1.1",
            "transfer-encoding: chunked|",
            "||3|abc|0||",
        ),
        (
            "none",
            "HTTP/1.1 200 OK|Content-Length: 0||",
            "GET / HTTP/1.1",
            "content-length: 0|",
            "||",
        ),
        (
            "HEAD keeps the length",
            "HTTP/1.1 200 OK|Content-Length: 3||",
            "HEAD / HTTP/1.1",
            "content-length: 3|",
            "||",
        ),
        (
            "HEAD of chunks",
            "HTTP/1.1 200 OK|Transfer-Encoding: chunked||",
            "HEAD / HTTP/1.1",
            "200",
            "||",
        ),
        (
            "204",
            "HTTP/1.1 204 No Content|Content-Length: 0||",
            "GET / HTTP/1.1",
            "204 no content|",
            "||",
        ),
        (
            "304 keeps the length",
            "HTTP/1.1 304 Not Modified|Content-Length: 3||",
            "GET / HTTP/1.1",
            "content-length: 3|",
            "||",
        ),
        (
            "trailers",
            "HTTP/1.1 200 OK|Transfer-Encoding: chunked||3|abc|0|X-T: 1|Content-Length: 9||",
            "GET / HTTP/1.1",
            "transfer-encoding: chunked|",
            "||3|abc|0|x-t: 1||",
        ),
        (
            "length and coding",
            "HTTP/1.1 200 OK|Content-Length: 9|Transfer-Encoding: chunked||3|abc|0||",
            "GET / HTTP/1.1",
            "transfer-encoding: chunked|",
            "||3|abc|0||",
        ),
    ];
    on_core(async {
        for (name, answer, line, piece, end) in cases {
            let answer: &'static str = answer.replace('|', "\r\n").leak();
            let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
                tokio::task::spawn_local(async move {
                    read_request(&mut io).await.expect("a request");
                    io.write_all(answer.as_bytes()).await.expect("written");
                });
            });
            let request = format!("{line}\r\nHost: a\r\nConnection: close\r\n\r\n");
            let response = talk(&rig, request.as_bytes()).await.to_ascii_lowercase();
            assert!(response.contains(&piece.replace('|', "\r\n")), "{name}: {response}");
            assert!(response.ends_with(&end.replace('|', "\r\n")), "{name}: {response}");
            let framed = response.matches("content-length").count()
                + response.matches("transfer-encoding").count();
            assert!(framed <= 1, "{name}: {response}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_response_cut_off_has_no_proper_end() {
    let cases = [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ];
    on_core(async {
        for answer in cases {
            let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
                tokio::task::spawn_local(async move {
                    read_request(&mut io).await.expect("a request");
                    io.write_all(answer.as_bytes()).await.expect("written");
                });
            });
            let response = talk(&rig, GET).await;
            assert!(
                !response.ends_with("0\r\n\r\n")
                    && response.ends_with("abc") | response.ends_with("abc\r\n"),
                "{response}"
            );
            assert_eq!(rig.pool.held(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn request_trailers_reach_an_http1_backend() {
    on_core(async {
        let (seen, mut got) = tokio::sync::mpsc::unbounded_channel();
        let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
            let seen = seen.clone();
            tokio::task::spawn_local(async move {
                let mut all = Vec::new();
                while !all.ends_with(b"\r\nx-t: 1\r\n\r\n") {
                    all.push(io.read_u8().await.expect("more"));
                }
                seen.send(String::from_utf8(all).expect("text")).expect("heard");
                io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("written");
            });
        });
        let (mut io, _) = rig.connect(Protocol::Http1);
        io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\nHost: evil\r\n\r\n").await.expect("written");
        assert_eq!(status(&read_response(&mut io).await), 200);
        let seen = got.recv().await.expect("a request");
        assert!(seen.contains("3\r\nabc\r\n0\r\n") && !seen.contains("evil"), "{seen}");
        assert_eq!(rig.pool.held(), 1, "a body with trailers leaves the connection usable");
    })
    .await;
}

#[tokio::test]
async fn interim_responses_go_on_and_keep_alive_survives() {
    on_core(async {
        let rig = Rig::new(
            Protocol::Http1,
            |mut io: DuplexStream| {
                tokio::task::spawn_local(async move {
                    for _ in 0..2 {
                        let head = read_head(&mut io).await.expect("a head");
                        assert!(head.to_ascii_lowercase().contains("expect: 100-continue"), "{head}");
                        io.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await.expect("written");
                        let mut body = [0; 3];
                        io.read_exact(&mut body).await.expect("a body");
                        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n").await.expect("written");
                        io.write_all(&body).await.expect("written");
                    }
                });
            },
        );
        let (mut io, _) = rig.connect(Protocol::Http1);
        for _ in 0..2 {
            io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await.expect("written");
            let hints = read_head(&mut io).await.expect("hints");
            assert!(hints.starts_with("HTTP/1.1 103 ") && hints.to_ascii_lowercase().contains("link: </x>"), "{hints}");
            assert!(read_head(&mut io).await.expect("continue").starts_with("HTTP/1.1 100 "));
            io.write_all(b"abc").await.expect("written");
            let response = read_response(&mut io).await;
            assert!(response.ends_with("\r\n\r\nabc") && response.to_ascii_lowercase().contains("connection: keep-alive"), "{response}");
        }
        assert_eq!(rig.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn interim_responses_without_end_are_502() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
            tokio::task::spawn_local(async move {
                read_request(&mut io).await.expect("a request");
                while io.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
            });
        });
        let response = talk(&rig, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(response.matches("HTTP/1.1 103 ").count(), 16);
        assert!(response.contains("HTTP/1.1 502 "), "{response}");
    })
    .await;
}

#[tokio::test]
async fn a_refused_expectation_closes_without_the_body() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
            tokio::task::spawn_local(async move {
                read_head(&mut io).await.expect("a head");
                io.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
                    .await
                    .expect("written");
                assert_eq!(
                    io.read(&mut [0; 8]).await.unwrap_or(0),
                    0,
                    "no byte of the body may come"
                );
            });
        });
        let response = talk(
            &rig,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
        assert_eq!(status(&response), 417);
        assert!(response.to_ascii_lowercase().contains("connection: close"), "{response}");
        assert_eq!(rig.pool.held(), 0, "half a request is on that connection");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_passes_an_upload_that_nobody_reads() {
    on_core(async {
        for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
            let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
                tokio::task::spawn_local(async move {
                    read_head(&mut io).await.expect("a head");
                    io.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
                        .await
                        .expect("written");
                    // Neither reads nor closes.
                    std::future::pending::<()>().await;
                });
            });
            let (io, _) = rig.connect(Protocol::Http1);
            let (mut read, mut write) = tokio::io::split(io);
            let upload = tokio::task::spawn_local(async move {
                let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
                let _gone = write.write_all(head.as_bytes()).await;
                let chunk = format!("2710\r\n{}\r\n", "x".repeat(10_000));
                for _ in 0..100 {
                    let chunk =
                        if framing.starts_with('C') { &chunk[6..chunk.len() - 2] } else { &chunk };
                    if write.write_all(chunk.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.expect("closed");
            let all = String::from_utf8(all).expect("text");
            assert!(all.starts_with("HTTP/1.1 413 ") && all.ends_with("big"), "{framing}: {all}");
            assert_eq!(rig.pool.held(), 0);
            upload.abort();
        }
    })
    .await;
}

#[tokio::test]
async fn both_sides_blocked_on_full_buffers_still_progress() {
    const SIZE: usize = 4 << 20;
    on_core(async {
        // The backend sends back each piece before it reads the next, and the client reads
        // nothing before it has sent all: only bytes in between can make progress.
        let mut rig = Rig::new(Protocol::Http1, |io: DuplexStream| {
            tokio::task::spawn_local(async move {
                let (mut read, mut write) = tokio::io::split(io);
                read_head(&mut read).await.expect("a head");
                write
                    .write_all(
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes(),
                    )
                    .await
                    .expect("written");
                let mut piece = vec![0; 3000];
                let mut left = SIZE;
                while left > 0 {
                    let count = read.read(&mut piece).await.expect("read");
                    write.write_all(&piece[..count]).await.expect("written");
                    left -= count;
                }
            });
        });
        rig.depth = 512;
        let (io, _) = rig.connect(Protocol::Http1);
        let (mut read, mut write) = tokio::io::split(io);
        let upload = tokio::task::spawn_local(async move {
            write
                .write_all(
                    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")
                        .as_bytes(),
                )
                .await
                .expect("written");
            let piece: Vec<u8> = (0..=255).cycle().take(SIZE).collect();
            write.write_all(&piece).await.expect("written");
            write
        });
        read_head(&mut read).await.expect("a head");
        let mut got = vec![0; SIZE];
        read.read_exact(&mut got).await.expect("all of it");
        assert!(got.iter().zip((0..=255).cycle()).all(|(got, want): (&u8, u8)| *got == want));
        upload.await.expect("sent");
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_carries_bytes_glued_to_either_head() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
            tokio::task::spawn_local(async move {
                let head = read_head(&mut io).await.expect("a head").to_ascii_lowercase();
                assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
                io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: k\r\n\r\nhello").await.expect("written");
                let mut all = vec![0; 9];
                io.read_exact(&mut all).await.expect("frames");
                assert_eq!(all, b"gluedmore");
                io.write_all(b"bye").await.expect("written");
                assert_eq!(io.read(&mut all).await.expect("closed"), 0, "the client's close goes through");
            });
        });
        let (mut io, ended) = rig.connect(Protocol::Http1);
        io.write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nglued").await.expect("written");
        let head = read_head(&mut io).await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 101 ") && head.to_ascii_lowercase().contains("sec-websocket-accept: k"), "{head}");
        let mut bytes = [0; 5];
        io.read_exact(&mut bytes).await.expect("glued to the 101");
        assert_eq!(&bytes, b"hello");
        io.write_all(b"more").await.expect("written");
        io.read_exact(&mut bytes[..3]).await.expect("frames");
        assert_eq!(&bytes[..3], b"bye");
        io.shutdown().await.expect("closed");
        assert_eq!(io.read(&mut bytes).await.expect("closed"), 0);
        ended.await.expect("ended");
        assert_eq!((rig.pool.held(), rig.errors.borrow().len()), (0, 0), "{:?}", rig.errors);
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_that_the_backend_declines_is_a_plain_response() {
    on_core(async {
        let rig = Rig::new(
            Protocol::Http1,
            scripted(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"]),
        );
        let (mut io, _) = rig.connect(Protocol::Http1);
        io.write_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await
        .expect("written");
        let response = read_response(&mut io).await;
        assert!(
            response.ends_with("\r\n\r\nno")
                && response.to_ascii_lowercase().contains("keep-alive"),
            "{response}"
        );
        assert_eq!(rig.pool.held(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_let_go_by_the_backend_is_replaced_unseen() {
    on_core(async {
        // Answers one request per connection, then closes without having said so.
        let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
            tokio::task::spawn_local(async move {
                let request = read_request(&mut io).await.expect("a request");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{request}",
                    request.len()
                );
                io.write_all(answer.as_bytes()).await.expect("written");
                // Waits for the next request, to close under it.
                let _read = io.read(&mut [0; 1]).await;
            });
        });
        let (mut io, _) = rig.connect(Protocol::Http1);
        for body in ["one", "two", "three"] {
            io.write_all(
                format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            )
            .await
            .expect("written");
            let response = read_response(&mut io).await;
            assert!(status(&response) == 200 && response.ends_with(body), "{response}");
        }
        assert_eq!(rig.dials.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn no_retry_beyond_the_replay_buffer() {
    on_core(async {
        for (size, want, dials) in [(60_000, 200, 2), (70_000, 502, 1)] {
            let first = Rc::new(Cell::new(true));
            let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
                let fails = first.replace(false);
                tokio::task::spawn_local(async move {
                    for round in 0.. {
                        let Some(request) = read_request(&mut io).await else { return };
                        if fails && round == 1 {
                            return;
                        }
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Seen: {}\r\n\r\n",
                            request.len()
                        );
                        io.write_all(answer.as_bytes()).await.expect("written");
                    }
                });
            });
            let (mut io, _) = rig.connect(Protocol::Http1);
            io.write_all(GET).await.expect("written");
            read_response(&mut io).await;
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
            io.write_all(head.as_bytes()).await.expect("written");
            for piece in "x".repeat(size).as_bytes().chunks(7000) {
                io.write_all(piece).await.expect("written");
                tokio::task::yield_now().await;
            }
            let response = read_response(&mut io).await;
            assert_eq!((status(&response), rig.dials.get()), (want, dials), "{size}: {response}");
            if want == 200 {
                assert!(
                    response
                        .to_ascii_lowercase()
                        .contains(&format!("x-seen: {}", head.len() + size)),
                    "{response}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_backend() {
    on_core(async {
        let (seen, mut closed) = tokio::sync::mpsc::unbounded_channel();
        let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
            let seen = seen.clone();
            tokio::task::spawn_local(async move {
                read_request(&mut io).await.expect("a request");
                assert_eq!(io.read(&mut [0; 1]).await.expect("closed"), 0);
                seen.send(()).expect("heard");
            });
        });
        let (mut io, ended) = rig.connect(Protocol::Http1);
        io.write_all(GET).await.expect("written");
        tokio::task::yield_now().await;
        drop(io);
        closed.recv().await.expect("the backend sees it");
        ended.await.expect("ended");
        assert_eq!(rig.errors.borrow().as_slice(), ["DownstreamGone"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_exchange_closes_both_sides() {
    on_core(async {
        let (seen, mut closed) = tokio::sync::mpsc::unbounded_channel();
        let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
            let seen = seen.clone();
            tokio::task::spawn_local(async move {
                read_request(&mut io).await.expect("a request");
                // One byte a second, for ever.
                io.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await
                    .expect("written");
                while io.write_all(b"1\r\nx\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                seen.send(()).expect("heard");
            });
        });
        let (ours, theirs) = duplex(1 << 16);
        let inner = rig.clone();
        let served = tokio::task::spawn_local(async move {
            let handler = async |down: &mut Downstream| {
                let by = tokio::time::Instant::now() + Duration::from_millis(4500);
                assert!(
                    tokio::time::timeout_at(by, inner.exchange(down)).await.is_err(),
                    "the deadline is absolute"
                );
            };
            serve(theirs, inner.terms(Protocol::Http1), handler).await
        });
        let (mut read, mut write) = tokio::io::split(ours);
        write.write_all(GET).await.expect("written");
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.expect("closed");
        let all = String::from_utf8(all).expect("text");
        assert!(all.ends_with("1\r\nx\r\n") && all.matches("1\r\nx\r\n").count() == 5, "{all}");
        closed.recv().await.expect("the backend sees it");
        assert_eq!(served.await.expect("ended"), Ended::Broken);
    })
    .await;
}
