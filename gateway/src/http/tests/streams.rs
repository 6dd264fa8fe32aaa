// SPDX-License-Identifier: Apache-2.0

//! HTTP/2 on either side or both: trailers, resets, GOAWAY, flow control, limits, drain.

use std::future::poll_fn;
use std::time::Duration;

use ::h2::client::SendRequest;
use ::h2::server::SendResponse;
use ::h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::time::{Instant, sleep};

use super::*;

mod interim;

/// An HTTP/2 backend that calls `answer` for each stream.
fn h2_backend<F>(
    answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + 'static,
) -> impl Fn(DuplexStream)
where
    F: Future<Output = ()> + 'static,
{
    move |io| {
        let answer = answer.clone();
        tokio::task::spawn_local(async move {
            let Ok(mut connection) = ::h2::server::handshake(io).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(answer(request, respond));
            }
        });
    }
}

/// Reads a body to its end: bytes and trailers.
async fn read_all(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), ::h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok((all, body.trailers().await?))
}

/// Sends the body and trailers back.
async fn h2_echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let path = request.uri().to_string();
    let te = request.headers().get("te").cloned();
    let mut body = request.into_body();
    let mut response = Response::new(());
    response.headers_mut().insert("x-uri", path.parse().expect("legal"));
    if let Some(te) = te {
        response.headers_mut().insert("x-te", te);
    }
    let Ok(mut send) = respond.send_response(response, false) else { return };
    while let Some(Ok(piece)) = body.data().await {
        body.flow_control().release_capacity(piece.len()).expect("held");
        send.reserve_capacity(piece.len());
        let mut piece = piece;
        while !piece.is_empty() {
            let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
            let part = piece.split_to(room.min(piece.len()));
            if send.send_data(part, false).is_err() {
                return;
            }
        }
    }
    let _gone = match body.trailers().await {
        Ok(Some(trailers)) => send.send_trailers(trailers),
        _ => send.send_data(Bytes::new(), true),
    };
}

/// A client's HTTP/2 connection to the gateway.
async fn h2_client(rig: &Rig, protocol: Protocol) -> (SendRequest<Bytes>, JoinHandle<Ended>) {
    let (io, ended) = rig.connect(protocol);
    let (client, connection) = ::h2::client::handshake(io).await.expect("a connection");
    tokio::task::spawn_local(async move {
        let _ended = connection.await;
    });
    (client, ended)
}

fn post(path: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://a{path}"))
        .header("te", "trailers")
        .body(())
        .expect("legal")
}

/// One request with a body; status, body and trailers of its response.
async fn exchange(
    client: &SendRequest<Bytes>,
    path: &str,
    body: &[u8],
) -> Result<(Response<()>, Vec<u8>, Option<HeaderMap>), ::h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, mut send) = client.send_request(post(path), body.is_empty())?;
    if !body.is_empty() {
        send.send_data(Bytes::copy_from_slice(body), true)?;
    }
    let (head, mut body) = response.await?.into_parts();
    let (all, trailers) = read_all(&mut body).await?;
    Ok((Response::from_parts(head, ()), all, trailers))
}

#[tokio::test]
async fn trailers_go_both_ways() {
    on_core(async {
        let rig = Rig::new(Protocol::Http2, h2_backend(h2_echo));
        let (client, _) = h2_client(&rig, Protocol::Sniff).await;
        for _ in 0..3 {
            let mut client = client.clone().ready().await.expect("ready");
            let (response, mut send) = client.send_request(post("/a/../b?c"), false).expect("sent");
            send.send_data(Bytes::from_static(b"abc"), false).expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            trailers.insert("host", HeaderValue::from_static("evil"));
            send.send_trailers(trailers).expect("sent");
            let (head, mut body) = response.await.expect("a response").into_parts();
            assert_eq!(head.headers["x-uri"], "http://a/b?c");
            assert_eq!(head.headers["x-te"], "trailers");
            let (all, trailers) = read_all(&mut body).await.expect("whole");
            let trailers = trailers.expect("trailers");
            assert_eq!(all, b"abc");
            assert_eq!(
                (trailers.len(), &trailers["grpc-status"]),
                (1, &HeaderValue::from_static("0"))
            );
        }
        assert_eq!(rig.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn concurrent_requests_share_one_connection() {
    on_core(async {
        let rig = Rig::new(Protocol::Http2, h2_backend(h2_echo));
        let (client, _) = h2_client(&rig, Protocol::Http2).await;
        let running: Vec<_> = (0..90)
            .map(|number: usize| {
                let client = client.clone();
                tokio::task::spawn_local(async move {
                    let body = vec![u8::try_from(number).expect("small"); number * 3000];
                    let (head, all, _) = exchange(&client, "/", &body).await.expect("a response");
                    assert_eq!((head.status(), all == body), (StatusCode::OK, true), "{number}");
                })
            })
            .collect();
        for one in running {
            one.await.expect("answered");
        }
        assert_eq!(rig.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn http2_and_http1_join_in_both_orders() {
    on_core(async {
        // HTTP/2 client, HTTP/1 backend: lengths and chunks.
        let rig = Rig::new(Protocol::Http1, echo);
        let (client, _) = h2_client(&rig, Protocol::Http2).await;
        for body in [&b""[..], b"abc"] {
            let (head, all, _) = exchange(&client, "/x?y", body).await.expect("a response");
            let seen = String::from_utf8(all).expect("text").to_ascii_lowercase();
            assert_eq!(head.status(), 200);
            assert!(seen.starts_with("post /x?y http/1.1\r\n") && seen.contains("host: a\r\n"), "{seen}");
            assert!(!seen.contains("te:") && !seen.contains("connection"), "{seen}");
            assert_eq!(seen.contains("content-length: 0\r\n"), body.is_empty(), "{seen}");
            assert_eq!(seen.contains("transfer-encoding: chunked\r\n"), !body.is_empty(), "{seen}");
        }
        // HTTP/1 client, HTTP/2 backend.
        let rig = Rig::new(Protocol::Http2, h2_backend(h2_echo));
        let (mut io, _) = rig.connect(Protocol::Sniff);
        io.write_all(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n").await.expect("written");
        let head = read_head(&mut io).await.expect("a head").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200") && head.contains("x-uri: http://a/x") && head.contains("chunked"), "{head}");
        let mut rest = vec![0; b"3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n".len()];
        io.read_exact(&mut rest).await.expect("the body");
        assert_eq!(String::from_utf8_lossy(&rest), "3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn refused_streams_and_goaway_fail_no_request() {
    on_core(async {
        // Refuses every second stream; goes away after each fifth request it has answered.
        let count = Rc::new(Cell::new(0));
        let rig = Rig::new(Protocol::Http2, move |io| {
            let count = Rc::clone(&count);
            tokio::task::spawn_local(async move {
                let mut connection = ::h2::server::handshake(io).await.expect("a connection");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    count.set(count.get() + 1);
                    if count.get() % 2 == 0 {
                        respond.send_reset(Reason::REFUSED_STREAM);
                    } else {
                        tokio::task::spawn_local(h2_echo(request, respond));
                    }
                    if count.get() % 5 == 0 {
                        connection.graceful_shutdown();
                    }
                }
            });
        });
        let (client, _) = h2_client(&rig, Protocol::Http2).await;
        for round in 0..40 {
            let (head, all, _) = exchange(&client, "/", b"abc").await.expect("a response");
            assert_eq!(
                (head.status(), all.as_slice()),
                (StatusCode::OK, &b"abc"[..]),
                "{round}: {:?}",
                rig.errors
            );
        }
        assert!(rig.dials.get() > 5, "{}", rig.dials.get());
    })
    .await;
}

#[tokio::test]
async fn a_stream_reset_by_the_backend_is_502_or_a_reset() {
    on_core(async {
        let rig = Rig::new(
            Protocol::Http2,
            h2_backend(|request, mut respond| async move {
                match request.uri().path() {
                    "/before" => respond.send_reset(Reason::INTERNAL_ERROR),
                    _ => {
                        let mut send =
                            respond.send_response(Response::new(()), false).expect("sent");
                        send.send_data(Bytes::from_static(b"abc"), false).expect("sent");
                        sleep(Duration::from_millis(1)).await;
                        send.send_reset(Reason::INTERNAL_ERROR);
                    }
                }
            }),
        );
        let (client, _) = h2_client(&rig, Protocol::Http2).await;
        let (head, ..) = exchange(&client, "/before", b"").await.expect("a response");
        assert_eq!(head.status(), 502);
        let cut = exchange(&client, "/within", b"").await.expect_err("no proper end");
        assert_eq!(cut.reason(), Some(Reason::INTERNAL_ERROR));
        // The connection is as good as before.
        let response = talk(&rig, b"GET /within HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(!response.contains("0\r\n\r\n"), "{response}");
        assert_eq!(rig.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_early_response_over_http2_ends_the_upload() {
    on_core(async {
        for speaks in [Protocol::Http1, Protocol::Http2] {
            let rig = match speaks {
                Protocol::Http2 => Rig::new(
                    speaks,
                    h2_backend(|_request, mut respond| async move {
                        let mut response = Response::new(());
                        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                        let mut send = respond.send_response(response, false).expect("sent");
                        send.send_data(Bytes::from_static(b"big"), true).expect("sent");
                        // Dropping the request's body resets the stream with NO_ERROR.
                    }),
                ),
                Protocol::Http1 | Protocol::Sniff => Rig::new(speaks, |mut io: DuplexStream| {
                    tokio::task::spawn_local(async move {
                        read_head(&mut io).await.expect("a head");
                        io.write_all(
                            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig",
                        )
                        .await
                        .expect("written");
                        std::future::pending::<()>().await;
                    });
                }),
            };
            let (client, _) = h2_client(&rig, Protocol::Http2).await;
            let mut client = client.ready().await.expect("ready");
            let (response, mut send) = client.send_request(post("/"), false).expect("sent");
            // More than any window: only an answer can end this.
            send.send_data(Bytes::from(vec![b'x'; 4 << 20]), false).expect("sent");
            let (head, mut body) = response.await.expect("an early response").into_parts();
            assert_eq!(head.status, 413);
            let mut all = Vec::new();
            while let Some(Ok(piece)) = body.data().await {
                all.extend_from_slice(&piece);
            }
            assert_eq!(all, b"big", "{speaks:?}");
            let reason = poll_fn(|cx| send.poll_reset(cx)).await.expect("a reset");
            assert_eq!(reason, Reason::NO_ERROR, "{speaks:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_early_response_from_http2_ends_an_http1_upload() {
    on_core(async {
        let rig = Rig::new(
            Protocol::Http2,
            h2_backend(|_request, mut respond| async move {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                let mut send = respond.send_response(response, false).expect("sent");
                send.send_data(Bytes::from_static(b"big"), true).expect("sent");
            }),
        );
        let (io, _) = rig.connect(Protocol::Http1);
        let (mut read, mut write) = tokio::io::split(io);
        let upload = tokio::task::spawn_local(async move {
            let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n";
            let _gone = write.write_all(head).await;
            let _gone = write.write_all(&vec![b'x'; 9_000_000]).await;
        });
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.expect("closed");
        let all = String::from_utf8(all).expect("text");
        assert!(
            all.starts_with("HTTP/1.1 413 ") && all.ends_with("\r\n3\r\nbig\r\n0\r\n\r\n"),
            "{all}"
        );
        upload.abort();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_http2_backend_is_found_out_by_ping() {
    on_core(async {
        let rig = Rig::new(Protocol::Http2, |io: DuplexStream| {
            tokio::task::spawn_local(async move {
                let connection: ::h2::server::Connection<DuplexStream, Bytes> =
                    ::h2::server::handshake(io).await.expect("a connection");
                // Open, and polled by nobody any more.
                std::future::pending::<()>().await;
                drop(connection);
            });
        });
        let (mut io, _) = rig.connect(Protocol::Http1);
        let began = Instant::now();
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        assert_eq!(status(&read_response(&mut io).await), 502);
        assert!((30..45).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let (mut io, _) = rig.connect(Protocol::Http1);
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        sleep(Duration::from_millis(1)).await;
        assert_eq!(rig.dials.get(), 2, "the dead connection is not used again");
    })
    .await;
}

#[tokio::test]
async fn an_expectation_before_an_http2_backend_is_met_by_us() {
    on_core(async {
        let rig = Rig::new(Protocol::Http2, h2_backend(h2_echo));
        let (mut io, _) = rig.connect(Protocol::Http1);
        io.write_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .await
        .expect("written");
        assert!(read_head(&mut io).await.expect("interim").starts_with("HTTP/1.1 100 "));
        io.write_all(b"abc").await.expect("written");
        let head = read_head(&mut io).await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_download_stops_its_source() {
    on_core(async {
        let sent = Rc::new(Cell::new(0));
        let count = Rc::clone(&sent);
        let rig = Rig::new(
            Protocol::Http2,
            h2_backend(move |_request, mut respond| {
                let count = Rc::clone(&count);
                async move {
                    let mut send = respond.send_response(Response::new(()), false).expect("sent");
                    loop {
                        send.reserve_capacity(16 << 10);
                        let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else {
                            return;
                        };
                        if send.send_data(Bytes::from(vec![0; room]), false).is_err() {
                            return;
                        }
                        count.set(count.get() + room);
                    }
                }
            }),
        );
        let (mut client, _) = h2_client(&rig, Protocol::Http2).await;
        let (response, _) = client.send_request(post("/"), true).expect("sent");
        let body = response.await.expect("a response").into_body();
        sleep(Duration::from_secs(5)).await;
        // The client's window, ours towards the backend, and a piece or two between.
        assert!(
            sent.get() < (64 << 10) + (256 << 10) + (128 << 10),
            "{} bytes were taken",
            sent.get()
        );
        drop(body);
    })
    .await;
}

#[tokio::test]
async fn a_client_reset_cancels_the_backend_stream() {
    on_core(async {
        let (seen, mut reset) = tokio::sync::mpsc::unbounded_channel();
        let rig = Rig::new(
            Protocol::Http2,
            h2_backend(move |_request, mut respond| {
                let seen = seen.clone();
                async move {
                    let reason = poll_fn(|cx| respond.poll_reset(cx)).await.expect("a reset");
                    seen.send(reason).expect("heard");
                }
            }),
        );
        let (mut client, _) = h2_client(&rig, Protocol::Http2).await;
        let (response, mut send) = client.send_request(post("/"), true).expect("sent");
        sleep(Duration::from_millis(5)).await;
        send.send_reset(Reason::CANCEL);
        drop(response);
        assert_eq!(reset.recv().await, Some(Reason::CANCEL));
        assert_eq!(rig.errors.borrow().as_slice(), ["DownstreamGone"]);
    })
    .await;
}

#[tokio::test]
async fn malformed_http2_requests_are_refused_and_counted() {
    let cases: [(&str, Option<u16>, Request<()>); 5] = [
        (
            "other host",
            Some(400),
            Request::builder().uri("http://a/").header("host", "b").body(()).expect("legal"),
        ),
        ("user", Some(400), Request::builder().uri("http://u@a/").body(()).expect("legal")),
        (
            "CONNECT",
            Some(405),
            Request::builder().method("CONNECT").uri("a:80").body(()).expect("legal"),
        ),
        (
            "two lengths",
            None,
            Request::builder()
                .method("POST")
                .uri("http://a/")
                .header("content-length", "1")
                .header("content-length", "2")
                .body(())
                .expect("legal"),
        ),
        ("too many fields", Some(431), {
            let mut request = Request::builder().uri("http://a/").body(()).expect("legal");
            (0..101).for_each(|_| {
                request.headers_mut().append("x", HeaderValue::from_static("y"));
            });
            request
        }),
    ];
    on_core(async {
        let rig = Rig::new(Protocol::Http2, h2_backend(h2_echo));
        let (client, _) = h2_client(&rig, Protocol::Http2).await;
        for (name, want, request) in cases {
            let ended = request.method() != Method::POST;
            let mut client = client.clone().ready().await.expect("ready");
            let (response, _send) = client.send_request(request, ended).expect("sent");
            let got = response.await.ok().map(|response| response.status().as_u16());
            assert_eq!(got, want, "{name}");
        }
        assert_eq!(rig.dials.get(), 0, "none reached a backend");
        // 32 of them end the connection.
        let (client, ended) = h2_client(&rig, Protocol::Http2).await;
        for _ in 0..40 {
            let Ok(mut client) = client.clone().ready().await else { break };
            let bad =
                Request::builder().uri("http://a/").header("host", "b").body(()).expect("legal");
            let Ok((response, _)) = client.send_request(bad, true) else { break };
            if response.await.is_err() {
                break;
            }
        }
        assert_eq!(ended.await.expect("ended"), Ended::Bad);
    })
    .await;
}

#[tokio::test]
async fn a_head_over_64_kib_is_refused_on_either_side() {
    on_core(async {
        let rig = Rig::new(
            Protocol::Http2,
            h2_backend(|request, mut respond| async move {
                let mut response = Response::new(());
                if request.uri().path() == "/long" {
                    for _ in 0..12 {
                        response.headers_mut().append(
                            "x",
                            HeaderValue::from_str(&"x".repeat(10_000)).expect("legal"),
                        );
                    }
                }
                let _gone = respond.send_response(response, true);
            }),
        );
        let (client, _) = h2_client(&rig, Protocol::Http2).await;
        let (head, ..) = exchange(&client, "/long", b"").await.expect("a response");
        assert_eq!(head.status(), 502);
        let mut long = post("/");
        for _ in 0..7 {
            long.headers_mut()
                .append("x", HeaderValue::from_str(&"x".repeat(10_000)).expect("legal"));
        }
        let got = client
            .clone()
            .ready()
            .await
            .expect("ready")
            .send_request(long, true)
            .expect("sent")
            .0
            .await;
        assert!(got.is_err() || got.is_ok_and(|response| response.status() == 431));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_and_drain_end_http2_connections() {
    on_core(async {
        let rig = Rig::new(
            Protocol::Http2,
            h2_backend(|request, respond| async move {
                sleep(Duration::from_secs(5)).await;
                h2_echo(request, respond).await;
            }),
        );
        let (client, ended) = h2_client(&rig, Protocol::Http2).await;
        exchange(&client, "/", b"").await.expect("a response");
        let began = Instant::now();
        assert_eq!(ended.await.expect("ended"), Ended::Idle);
        assert_eq!(began.elapsed().as_secs(), 60);

        let (client, ended) = h2_client(&rig, Protocol::Http2).await;
        let drain = rig.drain.clone();
        tokio::task::spawn_local(async move {
            sleep(Duration::from_secs(1)).await;
            drain.cancel();
        });
        let (head, all, _) =
            exchange(&client, "/", b"abc").await.expect("a running request is answered");
        assert_eq!((head.status(), all.as_slice()), (StatusCode::OK, &b"abc"[..]));
        assert_eq!(ended.await.expect("ended"), Ended::Us);
    })
    .await;
}
