// SPDX-License-Identifier: Apache-2.0

//! A stream of which the first bytes were already read, as if they were not.
//!
//! Whoever looks at a stream to find out what is spoken on it, or whom it is for, hands it on
//! like this.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives `first`, then what `io` gives; writes go straight to `io`.
#[derive(Debug)]
pub(crate) struct Rewound<S, B> {
    first: B,
    io: S,
}

impl<S, B> Rewound<S, B> {
    pub(crate) fn new(first: B, io: S) -> Self {
        Self { first, io }
    }
}

impl<S: AsyncRead + Unpin, B: Buf + Default + Unpin> AsyncRead for Rewound<S, B> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.has_remaining() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let first = self.first.chunk();
        let count = first.len().min(buf.remaining());
        buf.put_slice(first.get(..count).unwrap_or_default());
        self.first.advance(count);
        if !self.first.has_remaining() {
            // An empty buffer still holds its memory.
            self.first = B::default();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, B: Unpin> AsyncWrite for Rewound<S, B> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn first_bytes_come_first_however_small_the_reads() {
        let mut stream = Rewound::new(Bytes::from_static(b"abc"), &b"def"[..]);
        let mut got = [0; 2];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ab");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"cdef");
    }
}
