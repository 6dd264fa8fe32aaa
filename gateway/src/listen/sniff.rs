// SPDX-License-Identifier: Apache-2.0

//! Whether a connection speaks HTTP, where nobody has said so.
//!
//! Used for ports of services without a protocol, and only where neither
//! routes nor policies look at HTTP: there both answers are safe.
//!
//! Rule: Istio's protocol detection (Istio's `listener_waypoint.go`), with a limit
//! so that protocols in which the server speaks first do not stall.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A client that has said nothing for so long waits for the server.
const SILENCE: Duration = Duration::from_millis(100);
/// Longest method that is looked for.
const LONGEST_METHOD: usize = 16;

/// Tells whether the client speaks HTTP; also gives what it said.
pub(super) async fn is_http<S>(stream: &mut S) -> io::Result<(bool, Bytes)>
where
    S: AsyncRead + Unpin,
{
    let mut said = BytesMut::new();
    loop {
        match looks_like_http(&said) {
            Some(answer) => return Ok((answer, said.freeze())),
            None => match tokio::time::timeout(SILENCE, stream.read_buf(&mut said)).await {
                Ok(Ok(0)) | Err(_) => return Ok((false, said.freeze())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            },
        }
    }
}

/// Whether the first bytes are a method and a space; none if more must come.
///
/// The preface of HTTP/2 begins with a method too.
fn looks_like_http(said: &[u8]) -> Option<bool> {
    match said.iter().position(|byte| !byte.is_ascii_uppercase()) {
        Some(end) => Some(end > 0 && said.get(end) == Some(&b' ')),
        None if said.len() > LONGEST_METHOD => Some(false),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[test]
    fn a_method_and_a_space_is_http() {
        let cases: [(&[u8], Option<bool>); 9] = [
            (b"", None),
            (b"GE", None),
            (b"GET ", Some(true)),
            (b"PRI * HTTP/2.0\r\n", Some(true)),
            (b"PROPFIND /", Some(true)),
            (b"\x16\x03\x01", Some(false)),
            (b"EHLO\r\n", Some(false)),
            (b" GET", Some(false)),
            (b"AVERYLONGWORDWITHOUTEND", Some(false)),
        ];
        for (said, want) in cases {
            assert_eq!(looks_like_http(said), want, "{:?}", said.escape_ascii().to_string());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_waits_for_the_server() {
        let (mut client, mut stream) = tokio::io::duplex(64);
        assert_eq!(is_http(&mut stream).await.unwrap(), (false, Bytes::new()));
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let (http, said) = is_http(&mut stream).await.unwrap();
        assert!(http);
        assert_eq!(said, "GET / HTTP/1.1\r\n", "nothing is lost");
    }
}
