// SPDX-License-Identifier: Apache-2.0

//! HTTP through a whole gateway, byte by byte where libraries would not send such bytes:
//! what is refused at the door, and what streams, trailers and closing backends do.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use routing::delta::Resource;
use routing::discovery::AppProtocol;
use routing::listener::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use waymark_tests::backend::Backend;
use waymark_tests::mesh::{Mesh, address, local, rule, to};

/// A gateway at the edge whose every request goes to `backend`.
async fn edge(protocol: AppProtocol, backend: SocketAddr) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::start(false).await?;
    mesh.service("web", protocol, &[("pod", backend)], &[])?;
    mesh.listener("http", (8080, Protocol::Http), "", None)?;
    let all = rule("HTTPRoute/shop/all", &["http"], vec![to("web", 1)?])?;
    mesh.put([Resource::Rule(Arc::new(all))]);
    mesh.gateway.ready().await;
    Ok(mesh)
}

/// Sends bytes and reads all that comes until the gateway closes.
async fn talk(ip: IpAddr, bytes: &str) -> anyhow::Result<String> {
    let mut io = TcpStream::connect((ip, 8080)).await?;
    io.write_all(bytes.as_bytes()).await?;
    let mut all = Vec::new();
    io.read_to_end(&mut all).await?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

#[test]
fn ambiguous_requests_stop_at_the_gateway() -> anyhow::Result<()> {
    let hidden = "GET /hidden HTTP/1.1|Host: a||";
    let refused = [
        format!(
            "POST / HTTP/1.1|Host: a|Content-Length: 6|Transfer-Encoding: chunked||0||{hidden}"
        ),
        format!(
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 6||0||{hidden}"
        ),
        format!("POST / HTTP/1.1|Host: a|Content-Length: 0|Content-Length: 30||{hidden}"),
        format!("POST / HTTP/1.1|Host: a|Content-Length: 0, 30||{hidden}"),
        format!("POST / HTTP/1.1|Host: a|Transfer-Encoding: xchunked||{hidden}"),
        format!("POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, identity||{hidden}"),
        format!("POST / HTTP/1.1|Host: a|Transfer-Encoding : chunked||0||{hidden}"),
        format!("POST / HTTP/1.1|Host: a|Transfer-Encoding:|\tchunked||0||{hidden}"),
        format!("POST / HTTP/1.0|Host: a|Transfer-Encoding: chunked||0||{hidden}"),
        format!("GET / HTTP/1.1|Host: a|Host: b||{hidden}"),
        format!("GET http://b/ HTTP/1.1|Host: a||{hidden}"),
        format!("GET / HTTP/1.1||{hidden}"),
        format!("GET / HTTP/1.1|Host: a|X: y\rContent-Length: 30||{hidden}"),
        format!("CONNECT a:80 HTTP/1.1|Host: a:80||{hidden}"),
    ];
    // Chunks that a laxer reader would take for more, or less, than they are.
    let broken = [
        "4\nabcd|0||",
        "4|abcde|0||",
        "0x4|abcd|0||",
        "4 4|abcd|0||",
        "-4|abcd|0||",
        "4;a\nb|abcd|0||",
    ];
    local(async {
        let backend = Backend::start("web", SocketAddr::new(address(), 0), None).await?;
        let mesh = edge(AppProtocol::Http11, backend.address).await?;
        for request in refused {
            let answer = talk(mesh.ip, &request.replace('|', "\r\n")).await?;
            assert!(
                answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 501"),
                "{request}: {answer}"
            );
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request}: {answer}");
        }
        assert_eq!(backend.requests(), 0, "not one of them went on");
        for chunks in broken {
            let head = "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked||";
            let request = format!("{head}{chunks}{hidden}").replace('|', "\r\n");
            let answer = talk(mesh.ip, &request).await?;
            assert!(answer.starts_with("HTTP/1.1 400"), "{chunks:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{chunks:?}: {answer}");
        }
        let sound = format!("POST / HTTP/1.1|Host: a|Content-Length: 4||abcd{hidden}{hidden}");
        let last = "GET / HTTP/1.1|Host: a|Connection: close||";
        let before = backend.requests();
        let answer = talk(mesh.ip, &format!("{sound}{last}").replace('|', "\r\n")).await?;
        assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 4, "{answer}");
        assert_eq!(backend.requests() - before, 4);
        Ok(())
    })
}

/// A backend of HTTP/2 that sends bodies and trailers back, and says farewell after every
/// `patience` requests of a connection.
async fn grpc_backend(patience: usize) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((address(), 0)).await?;
    let at = listener.local_addr()?;
    tokio::task::spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let Ok(mut connection) = h2::server::handshake(io).await else { return };
                let mut count = 0;
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::task::spawn_local(send_back(request, respond));
                    count += 1;
                    if count == patience {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    Ok(at)
}

async fn send_back(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let mut send = respond.send_response(Response::new(()), false)?;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        send.send_data(piece, false)?;
    }
    let mut trailers = body.trailers().await?.unwrap_or_default();
    trailers.insert("grpc-status", HeaderValue::from_static("7"));
    send.send_trailers(trailers)
}

async fn client(ip: IpAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let (send, connection) = h2::client::handshake(TcpStream::connect((ip, 8080)).await?).await?;
    tokio::task::spawn_local(async move {
        let _ended = connection.await;
    });
    Ok(send)
}

fn call() -> http::Result<Request<()>> {
    let call = Request::post("http://a/pkg.Service/Method").header("te", "trailers");
    call.header("content-type", "application/grpc").body(())
}

#[test]
fn a_grpc_call_talks_both_ways_and_its_trailers_are_counted() -> anyhow::Result<()> {
    local(async {
        let mesh = edge(AppProtocol::Grpc, grpc_backend(0).await?).await?;
        let mut client = client(mesh.ip).await?;
        let (response, mut send) = client.send_request(call()?, false)?;
        // One word there, one word back, again and again, on one stream.
        send.send_data(Bytes::from_static(b"0"), false)?;
        let mut body = response.await?.into_body();
        for word in 1..50 {
            let heard = body.data().await.ok_or_else(|| anyhow::anyhow!("ended at {word}"))??;
            body.flow_control().release_capacity(heard.len())?;
            assert_eq!(heard, (word - 1).to_string());
            send.send_data(word.to_string().into(), false)?;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-mine", HeaderValue::from_static("1"));
        send.send_trailers(trailers)?;
        assert_eq!(body.data().await.transpose()?.as_deref(), Some(&b"49"[..]));
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await?.unwrap_or_default();
        assert_eq!((&trailers["x-mine"], &trailers["grpc-status"]), (&"1".parse()?, &"7".parse()?));
        let counted = async {
            while !mesh.gateway.scrape().contains("grpc_response_status=\"7\"") {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), counted).await?;
        Ok(())
    })
}

#[test]
fn backends_that_say_farewell_fail_no_call() -> anyhow::Result<()> {
    local(async {
        let mesh = edge(AppProtocol::Grpc, grpc_backend(7).await?).await?;
        let client = client(mesh.ip).await?;
        let calls = (0..300_u32).map(|number| {
            let client = client.clone();
            tokio::task::spawn_local(async move {
                let (response, mut send) = client.ready().await?.send_request(call()?, false)?;
                send.send_data(number.to_string().into(), true)?;
                let response = response.await?;
                anyhow::ensure!(response.status() == 200, "{}", response.status());
                let mut body = response.into_body();
                let heard = body.data().await.transpose()?.unwrap_or_default();
                anyhow::ensure!(heard == number.to_string(), "{heard:?}");
                while body.data().await.transpose()?.is_some() {}
                let trailers = body.trailers().await?.unwrap_or_default();
                anyhow::ensure!(trailers.contains_key("grpc-status"), "{trailers:?}");
                Ok(())
            })
        });
        for one in calls.collect::<Vec<_>>() {
            one.await??;
        }
        Ok(())
    })
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() -> anyhow::Result<()> {
    local(async {
        let listener = TcpListener::bind((address(), 0)).await?;
        let mesh = edge(AppProtocol::Http11, listener.local_addr()?).await?;
        tokio::task::spawn_local(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                // Answers after the first bytes, and reads no more.
                let _read = io.read(&mut [0; 1024]).await;
                let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig";
                let _sent = io.write_all(answer.as_bytes()).await;
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    drop(io);
                });
            }
        });
        let (mut read, mut write) = TcpStream::connect((mesh.ip, 8080)).await?.into_split();
        let sending = tokio::task::spawn_local(async move {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n";
            write.write_all(head.as_bytes()).await?;
            for _ in 0..50_000 {
                write.write_all(&[b'x'; 1000]).await?;
            }
            std::io::Result::Ok(())
        });
        let mut answer = vec![0; "HTTP/1.1 413".len()];
        read.read_exact(&mut answer).await?;
        assert_eq!(answer, b"HTTP/1.1 413");
        let mut rest = Vec::new();
        // What is sent after the gateway has closed may reset the connection, after the answer.
        let _closed = read.read_to_end(&mut rest).await;
        assert!(rest.ends_with(b"big"), "{:?}", String::from_utf8_lossy(&rest));
        sending.abort();
        Ok(())
    })
}
