// SPDX-License-Identifier: Apache-2.0

//! The first message of a TLS client, read without answering it.
//!
//! Owns reading up to the whole ClientHello. Which certificate answers, or
//! which backend gets the raw bytes, is decided with what it says; until then
//! not a byte is written, so a refusal is a plain close.

use std::io;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest ClientHello that is taken; real ones are below 4 KiB.
const MAX: usize = 16 << 10;

/// What a ClientHello says, and the bytes it came in.
#[derive(Debug)]
pub(crate) struct Hello {
    /// Server name asked for, in lower case.
    pub(crate) sni: Option<String>,
    /// All bytes read so far; they belong in front of what comes.
    pub(crate) bytes: Bytes,
}

/// Why a connection has no usable ClientHello.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    /// The first bytes are no ClientHello.
    #[error("connection does not begin with a TLS ClientHello")]
    Malformed(#[source] rustls::Error),
    /// It is longer than 16 KiB.
    #[error("TLS ClientHello is too long")]
    TooLong,
    /// The connection ended or failed within it.
    #[error("connection failed within the TLS ClientHello")]
    Io(#[source] io::Error),
}

/// Reads from `stream` until its ClientHello, which may begin with `first`, is whole.
///
/// The caller sets the deadline. Dropping the future loses what was read.
pub(crate) async fn read<S>(stream: &mut S, first: Bytes) -> Result<Hello, HelloError>
where
    S: AsyncRead + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut all = BytesMut::from(first);
    let mut seen = 0;
    loop {
        let mut new = all.get(seen..).unwrap_or_default();
        while !new.is_empty() {
            acceptor.read_tls(&mut new).map_err(HelloError::Io)?;
        }
        seen = all.len();
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let sni = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                return Ok(Hello { sni, bytes: all.freeze() });
            }
            Ok(None) if seen >= MAX => return Err(HelloError::TooLong),
            Ok(None) => {}
            // The alert that comes with the error is dropped: nothing is written here.
            Err((error, _alert)) => return Err(HelloError::Malformed(error)),
        }
        match stream.read_buf(&mut all).await {
            Ok(0) => return Err(HelloError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(HelloError::Io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn the_name_is_read_and_the_bytes_are_kept_in_any_pieces() {
        let bytes = client_hello("Shop.Example");
        for cut in [0, 1, 5, bytes.len() / 2, bytes.len()] {
            let (first, mut rest) = bytes.split_at(cut);
            let hello = read(&mut rest, Bytes::copy_from_slice(first)).await.unwrap();
            assert_eq!(hello.sni.as_deref(), Some("shop.example"), "cut at {cut}");
            assert_eq!(hello.bytes, bytes, "cut at {cut}");
        }
        let hello = read(&mut &client_hello("10.0.0.1")[..], Bytes::new()).await.unwrap();
        assert_eq!(hello.sni, None, "addresses are no server names");
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused() {
        let mut http = &b"GET / HTTP/1.1\r\n\r\n"[..];
        assert!(matches!(read(&mut http, Bytes::new()).await, Err(HelloError::Malformed(_))));
        let bytes = client_hello("shop.example");
        let mut half = &bytes[..bytes.len() / 2];
        assert!(matches!(read(&mut half, Bytes::new()).await, Err(HelloError::Io(_))));
    }
}
