// SPDX-License-Identifier: Apache-2.0

//! The user's door: connections to `localhost` go to the first ingress Gateway.
//!
//! Owns: accepting on the listeners that were opened outside, and carrying bytes both ways.
//! Each side may finish sending before the other. While there is no Gateway to go to, an
//! HTTP client is told so.
//!
//! Start at [`serve`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;

/// How long a connection to the Gateway may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a refused client may take to say what it wanted.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);

/// Accepts on `listener` until dropped; `target` is where to, when there is somewhere.
pub async fn serve(listener: TcpListener, target: watch::Receiver<Option<SocketAddr>>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let to = *target.borrow();
        tokio::spawn(async move {
            match to {
                Some(to) => carry(client, to).await,
                None => {
                    refuse(
                        client,
                        "No ingress Gateway has an address yet. See: waymark get gateways",
                    )
                    .await
                }
            }
            drop(slot);
        });
    }
}

async fn carry(mut client: TcpStream, to: SocketAddr) {
    match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(to)).await {
        Ok(Ok(mut gateway)) => {
            // Small writes are the gateway's business, not ours to hold back.
            drop(client.set_nodelay(true).and(gateway.set_nodelay(true)));
            // How it ends is seen by both sides themselves.
            drop(copy_bidirectional(&mut client, &mut gateway).await);
        }
        Ok(Err(_)) | Err(_) => {
            refuse(client, "The ingress Gateway has no ready pod yet. See: waymark get pods").await;
        }
    }
}

/// Tells an HTTP client why there is no answer; reads its request first, lest a reset eats the words.
async fn refuse(mut client: TcpStream, why: &str) {
    let refused = async {
        let mut sink = [0; 1024];
        let _request = client.read(&mut sink).await?;
        let body = format!("{why}\n");
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 1\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        client.write_all((head + &body).as_bytes()).await?;
        client.shutdown().await
    };
    // A client that left has no use for the reason.
    drop(tokio::time::timeout(REFUSAL_LIMIT, refused).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn door(target: Option<SocketAddr>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_keep, target) = watch::channel(target);
        tokio::spawn(serve(listener, target));
        TcpStream::connect(address).await.unwrap()
    }

    #[tokio::test]
    async fn each_side_may_finish_before_the_other() {
        let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = door(Some(gateway.local_addr().unwrap())).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();

        let (mut inside, _) = gateway.accept().await.unwrap();
        let mut asked = String::new();
        inside.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question", "the end of the question arrived");
        inside.write_all(b"answer").await.unwrap();
        drop(inside);

        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert_eq!(answered, "answer");
    }

    #[tokio::test]
    async fn without_a_gateway_the_client_is_told() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for (target, want) in [(None, "No ingress Gateway"), (Some(closed), "no ready pod")] {
            let mut client = door(target).await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answered = String::new();
            client.read_to_string(&mut answered).await.unwrap();
            assert!(answered.starts_with("HTTP/1.1 503 ") && answered.contains(want), "{answered}");
        }
    }
}
