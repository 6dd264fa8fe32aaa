// SPDX-License-Identifier: Apache-2.0

//! Request bodies that more than one reads: mirrors, and who must see all before it goes on.

use std::time::Duration;

use tokio::sync::mpsc;

use super::*;

/// Serves one connection with `handler`, and sends `bytes` on it.
async fn with(
    rig: &Rig,
    bytes: Vec<u8>,
    handler: impl AsyncFn(&mut Downstream) + 'static,
) -> String {
    let (ours, theirs) = duplex(64 << 10);
    let terms = rig.terms(Protocol::Http1);
    tokio::task::spawn_local(async move { serve(theirs, terms, handler).await });
    let (mut read, mut write) = tokio::io::split(ours);
    let sending = tokio::task::spawn_local(async move {
        let _gone = write.write_all(&bytes).await;
        std::future::pending::<()>().await;
    });
    let mut all = Vec::new();
    read.read_to_end(&mut all).await.expect("closed");
    sending.abort();
    String::from_utf8_lossy(&all).into_owned()
}

fn post(size: usize) -> Vec<u8> {
    let head = format!(
        "POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    );
    [head.into_bytes(), vec![b'x'; size]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_stalled_mirror_is_dropped_and_slows_nothing() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let sent = Rc::new(Cell::new(0));
        let (inner, count) = (rig.clone(), Rc::clone(&sent));
        let stuck: Rig = Rig::new(Protocol::Http1, move |io: DuplexStream| {
            // Reads nothing, for ever.
            tokio::task::spawn_local(async move {
                std::future::pending::<()>().await;
                drop(io);
            });
        });
        let handler = async move |down: &mut Downstream| {
            let (queue, mut pieces) = mpsc::channel(16);
            let (relay, relayed) = mpsc::channel(1);
            let mut up = inner.upstream().await.expect("a backend");
            let copy = stuck.upstream().await.expect("a mirror");
            let head = down.request_head();
            tokio::task::spawn_local(mirror(copy, head.clone(), down.body(), relayed));
            let count = Rc::clone(&count);
            tokio::task::spawn_local(async move {
                while let Some(piece) = pieces.recv().await {
                    if let Piece::Data(bytes) = &piece {
                        count.set(count.get() + bytes.len());
                    }
                    if relay.send(piece).await.is_err() {
                        break;
                    }
                }
            });
            let mut carry = Carry::new(&inner.limits);
            carry.mirror(queue);
            let head = carry.respond(down, &mut up, head).await.expect("an answer");
            carry.deliver(down, up, head).await.expect("delivered");
            assert_eq!(carry.moved().request, 8 << 20);
        };
        let began = tokio::time::Instant::now();
        let response = with(&rig, post(8 << 20), handler).await;
        assert_eq!(status(&response), 200);
        assert_eq!(
            response.len() - response.find("POST /x").expect("the echo"),
            (8 << 20)
                + response[response.find("POST /x").expect("the echo")..]
                    .find("\r\n\r\n")
                    .expect("a head")
                + 4
        );
        assert!(began.elapsed() < Duration::from_secs(1));
        assert!(sent.get() < 3 << 20, "{} bytes went to the mirror", sent.get());
    })
    .await;
}

#[tokio::test]
async fn a_mirror_gets_the_whole_request() {
    on_core(async {
        let rig = Rig::new(Protocol::Http1, echo);
        let (heard, mut copies) = mpsc::unbounded_channel();
        let shadow = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
            let heard = heard.clone();
            tokio::task::spawn_local(async move {
                heard.send(read_request(&mut io).await.expect("a request")).expect("heard");
                io.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad")
                    .await
                    .expect("written");
            });
        });
        let (inner, kept) = (rig.clone(), shadow.clone());
        let handler = async move |down: &mut Downstream| {
            let (queue, pieces) = mpsc::channel(16);
            let mut up = inner.upstream().await.expect("a backend");
            let copy = shadow.upstream().await.expect("a mirror");
            let head = down.request_head();
            let mirrored =
                tokio::task::spawn_local(mirror(copy, head.clone(), down.body(), pieces));
            let mut carry = Carry::new(&inner.limits);
            carry.mirror(queue);
            let head = carry.respond(down, &mut up, head).await.expect("an answer");
            carry.deliver(down, up, head).await.expect("delivered");
            assert_eq!(mirrored.await.expect("ran").expect("mirrored"), 500);
        };
        let response = with(&rig, post(5000), handler).await;
        let copy = copies.recv().await.expect("a copy");
        assert!(response.ends_with(&copy), "{copy}");
        assert_eq!(kept.pool.held(), 1, "the mirror's connection is kept");
    })
    .await;
}

#[tokio::test]
async fn a_body_read_before_goes_on_from_memory_up_to_its_bound() {
    on_core(async {
        for (size, want) in [(0, Some(200)), (10, Some(200)), (60_000, Some(200)), (70_000, None)] {
            let rig = Rig::new(Protocol::Http1, echo);
            let inner = rig.clone();
            let handler = async move |down: &mut Downstream| {
                let mut carry = Carry::new(&inner.limits);
                match carry.read_whole(down, 64 << 10).await {
                    Ok(body) => assert_eq!(body.len(), size),
                    Err(error) => {
                        assert!(matches!(error, Error::BodyTooLarge), "{error:?}");
                        let head = ResponseHead::new(StatusCode::PAYLOAD_TOO_LARGE);
                        return down.reply(head, Bytes::new()).await.expect("sent");
                    }
                }
                for _ in 0..2 {
                    // Two tries, the first thrown away.
                    let mut up = inner.upstream().await.expect("a backend");
                    let head =
                        carry.respond(down, &mut up, down.request_head()).await.expect("an answer");
                    if carry.can_retry(down) && inner.dials.get() < 2 {
                        continue;
                    }
                    return carry.deliver(down, up, head).await.expect("delivered");
                }
            };
            let response = with(&rig, post(size), handler).await;
            assert_eq!(status(&response), want.unwrap_or(413), "{size}");
            if want.is_some() {
                assert_eq!(response.matches("POST /x").count(), 1);
                assert!(response.ends_with(&"x".repeat(size)), "{size}");
            }
        }
    })
    .await;
}
