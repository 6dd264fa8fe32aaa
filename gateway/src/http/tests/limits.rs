// SPDX-License-Identifier: Apache-2.0

//! Bounds of a client's HTTP/1 connection, and its graceful end.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::*;

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn heads_over_their_limits_are_431() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(70 << 10));
        assert_eq!(status(&talk(&rig, long.as_bytes()).await), 431);
        let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(70 << 10));
        assert_eq!(status(&talk(&rig, endless.as_bytes()).await), 431);
        for (lines, want) in [(98, 200), (100, 431), (250, 431), (300, 400)] {
            let many = format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n",
                "X: y\r\n".repeat(lines)
            );
            assert_eq!(status(&talk(&rig, many.as_bytes()).await), want, "{lines} lines");
        }
        let large = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: {}\r\n\r\n",
            "x".repeat(60 << 10)
        );
        assert_eq!(status(&talk(&rig, large.as_bytes()).await), 200);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dripping_head_meets_an_absolute_deadline() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        for protocol in [Protocol::Http1, Protocol::Sniff] {
            let (io, ended) = rig.connect(protocol);
            let (mut read, mut write) = tokio::io::split(io);
            let began = Instant::now();
            tokio::task::spawn_local(async move {
                let _gone = write.write_all(b"GET / HTTP/1.1\r\n").await;
                while write.write_all(b"X: y\r\n").await.is_ok() {
                    sleep(Duration::from_millis(700)).await;
                }
            });
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.expect("closed");
            assert_eq!(status(&String::from_utf8(all).expect("text")), 408);
            assert_eq!(ended.await.expect("ended"), Ended::Slow);
            let took = began.elapsed();
            assert!((10..13).contains(&took.as_secs()), "{took:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_before_and_after_requests() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        for requests in 0..3 {
            let (mut io, ended) = rig.connect(Protocol::Sniff);
            for _ in 0..requests {
                io.write_all(GET).await.expect("written");
                read_response(&mut io).await;
                sleep(Duration::from_secs(50)).await;
            }
            let began = Instant::now();
            assert_eq!(io.read(&mut [0; 1]).await.expect("closed"), 0, "no word is said");
            assert_eq!(ended.await.expect("ended"), Ended::Idle);
            let want = if requests == 0 { 60 } else { 10 };
            assert_eq!(began.elapsed().as_secs(), want, "{requests} requests");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_stops_is_408() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let (mut io, ended) = rig.connect(Protocol::Http1);
        io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            .await
            .expect("written");
        sleep(Duration::from_secs(50)).await;
        io.write_all(b"def").await.expect("written");
        let began = Instant::now();
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.expect("closed");
        assert_eq!(status(&String::from_utf8(all).expect("text")), 408);
        assert_eq!(ended.await.expect("ended"), Ended::Slow);
        assert!((60..62).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert_eq!(rig.pool.held(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_dropped_and_holds_little() {
    on_core(async {
        let sent = Rc::new(Cell::new(0));
        let count = Rc::clone(&sent);
        let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
            let count = Rc::clone(&count);
            tokio::task::spawn_local(async move {
                read_request(&mut io).await.expect("a request");
                io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
                    .await
                    .expect("written");
                while io.write_all(&[b'x'; 4096]).await.is_ok() {
                    count.set(count.get() + 4096);
                }
            });
        });
        let (mut io, ended) = rig.connect(Protocol::Http1);
        io.write_all(GET).await.expect("written");
        let began = Instant::now();
        assert_eq!(ended.await.expect("ended"), Ended::Slow);
        assert!((60..62).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        // Two streams of 64 KiB, the output buffer, one piece.
        assert!(sent.get() < 5 * (64 << 10), "{} bytes were taken", sent.get());
    })
    .await;
}

#[tokio::test]
async fn the_last_request_of_a_connection_says_so() {
    on_core(async {
        let rig = Rig::with(Limits { requests: 3, ..Limits::default() }, Protocol::Http1, echo);
        let (mut io, ended) = rig.connect(Protocol::Http1);
        for round in 1..=3 {
            io.write_all(GET).await.expect("written");
            let response = read_response(&mut io).await.to_ascii_lowercase();
            assert_eq!(response.contains("connection: close"), round == 3, "{round}: {response}");
        }
        assert_eq!(io.read(&mut [0; 1]).await.expect("closed"), 0);
        drop(io);
        assert_eq!(ended.await.expect("ended"), Ended::Us);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn drain_ends_idle_connections_after_a_moment_and_running_ones_after_their_answer() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
            tokio::task::spawn_local(async move {
                while read_request(&mut io).await.is_some() {
                    sleep(Duration::from_secs(5)).await;
                    io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                        .await
                        .expect("written");
                }
            });
        });
        let (mut fresh, fresh_ended) = rig.connect(Protocol::Sniff);
        let (mut idle, idle_ended) = rig.connect(Protocol::Http1);
        idle.write_all(GET).await.expect("written");
        read_response(&mut idle).await;
        // Their requests are under way while the signal is given.
        let (mut late, late_ended) = rig.connect(Protocol::Http1);
        late.write_all(GET).await.expect("written");
        read_response(&mut late).await;
        let (mut first, first_ended) = rig.connect(Protocol::Sniff);
        let (mut busy, busy_ended) = rig.connect(Protocol::Http1);
        busy.write_all(GET).await.expect("written");
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        rig.drain.cancel();
        sleep(Duration::from_millis(100)).await;
        for io in [&mut late, &mut first] {
            io.write_all(GET).await.expect("written");
        }
        assert_eq!(idle.read(&mut [0; 1]).await.expect("closed"), 0);
        assert_eq!(fresh.read(&mut [0; 1]).await.expect("closed"), 0);
        assert_eq!(
            (idle_ended.await.expect("ended"), fresh_ended.await.expect("ended")),
            (Ended::Us, Ended::Us)
        );
        assert_eq!(began.elapsed().as_secs(), 2);
        for (mut io, ended) in [(busy, busy_ended), (late, late_ended), (first, first_ended)] {
            let response = read_response(&mut io).await.to_ascii_lowercase();
            assert!(
                response.starts_with("http/1.1 200") && response.contains("connection: close"),
                "{response}"
            );
            drop(io);
            assert_eq!(ended.await.expect("ended"), Ended::Us);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn drain_has_a_last_moment() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, |mut io: DuplexStream| {
            tokio::task::spawn_local(async move {
                read_head(&mut io).await.expect("a head");
                io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await.expect("written");
                assert_eq!(io.read(&mut [0; 1]).await.expect("closed"), 0);
            });
        });
        let (mut io, _) = rig.connect(Protocol::Http1);
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await.expect("written");
        assert!(read_head(&mut io).await.expect("a head").starts_with("HTTP/1.1 101"));
        rig.drain.cancel();
        let began = Instant::now();
        assert_eq!(io.read(&mut [0; 1]).await.expect("closed"), 0);
        assert_eq!(began.elapsed().as_secs(), 45);
    })
    .await;
}

#[tokio::test]
async fn an_unread_body_is_discarded_so_that_the_answer_arrives() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let answer = async |down: &mut Downstream| {
            let mut head = ResponseHead::new(StatusCode::FORBIDDEN);
            head.insert(http::header::SERVER, http::HeaderValue::from_static("w")).expect("room");
            down.reply(head, Bytes::from_static(b"no")).await.expect("sent");
        };
        for (length, keeps) in [(50_000, true), (10_000_000, false)] {
            let (ours, theirs) = duplex(4096);
            let terms = rig.terms(Protocol::Http1);
            tokio::task::spawn_local(async move { serve(theirs, terms, answer).await });
            let (mut read, mut write) = tokio::io::split(ours);
            tokio::task::spawn_local(async move {
                let head =
                    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
                let _gone = write.write_all(head.as_bytes()).await;
                let _gone = write.write_all(&vec![b'x'; length]).await;
                let _gone = write.write_all(GET).await;
                std::future::pending::<()>().await;
            });
            let first = read_head(&mut read).await.expect("an answer");
            assert!(
                first.starts_with("HTTP/1.1 403 ")
                    && first.to_ascii_lowercase().contains("server: w"),
                "{first}"
            );
            read.read_exact(&mut [0; 2]).await.expect("its body");
            assert_eq!(read_head(&mut read).await.is_some(), keeps, "{length}");
        }
    })
    .await;
}
