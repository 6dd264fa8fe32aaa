// SPDX-License-Identifier: Apache-2.0

//! Interim responses (1xx) of HTTP/2 backends on their way to the client.

use super::*;

/// Two interim responses, then the final one.
async fn hinting(_request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    for link in ["</a>", "</b>"] {
        let mut hints = Response::new(());
        *hints.status_mut() = StatusCode::EARLY_HINTS;
        hints.headers_mut().insert("link", HeaderValue::from_static(link));
        respond.send_informational(hints).expect("sent");
    }
    // The client sees them before there is an answer.
    sleep(Duration::from_secs(1)).await;
    let mut send = respond.send_response(Response::new(()), false).expect("sent");
    send.send_data(Bytes::from_static(b"answer"), true).expect("sent");
}

#[tokio::test(start_paused = true)]
async fn interim_responses_of_http2_go_on_in_their_order() {
    on_core(async {
        let rig = Rig::new(Protocol::Http2, h2_backend(hinting));
        let begun = Instant::now();
        let (mut io, _ended) = rig.connect(Protocol::Http1);
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        for link in ["link: </a>", "link: </b>"] {
            let hints = read_head(&mut io).await.expect("hints");
            assert!(hints.starts_with("HTTP/1.1 103 "), "{hints}");
            assert!(hints.to_ascii_lowercase().contains(link), "{hints}");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "before the answer");
        let answer = read_head(&mut io).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

        let (client, _ended) = h2_client(&rig, Protocol::Sniff).await;
        let mut client = client.ready().await.expect("ready");
        let (mut response, _send) = client.send_request(post("/"), true).expect("sent");
        for link in ["</a>", "</b>"] {
            let hints = poll_fn(|cx| response.poll_informational(cx)).await;
            let hints = hints.expect("hints").expect("hints");
            assert_eq!(hints.status(), StatusCode::EARLY_HINTS);
            assert_eq!(hints.headers()["link"], link);
        }
        let (head, mut body) = response.await.expect("an answer").into_parts();
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(read_all(&mut body).await.expect("whole").0, b"answer");
        assert_eq!(rig.dials.get(), 1, "the connection serves on");
    })
    .await;
}

/// Interim responses without end.
async fn endless(_request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    loop {
        let mut hints = Response::new(());
        *hints.status_mut() = StatusCode::EARLY_HINTS;
        if respond.send_informational(hints).is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn interim_responses_of_http2_without_end_are_502() {
    on_core(async {
        let rig = Rig::new(Protocol::Http2, h2_backend(endless));
        let response = talk(&rig, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(response.matches("HTTP/1.1 103 ").count(), 16);
        assert!(response.contains("HTTP/1.1 502 "), "{response}");
    })
    .await;
}
