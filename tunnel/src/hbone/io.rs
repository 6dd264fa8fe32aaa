// SPDX-License-Identifier: Apache-2.0

//! Large reads below TLS.
//!
//! rustls asks for 4 KiB at a time; this reads what the socket has, up to
//! 64 KiB, and hands it out in pieces. The buffer is held only while it holds
//! bytes: an idle connection has none, and workers reuse theirs.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read.
const SIZE: usize = 64 << 10;

/// Buffers that one worker keeps for the next reads.
const KEPT: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A stream that is read in large pieces.
#[derive(Debug)]
pub(super) struct LargeReads<S> {
    inner: S,
    held: Option<Held>,
}

/// A buffer with unread bytes in `start..end`.
#[derive(Debug)]
struct Held {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S> LargeReads<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, held: None }
    }
}

impl Held {
    fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let buffer = spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        Self { buffer, start: 0, end: 0 }
    }

    fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(self.buffer);
            }
        });
    }

    /// Moves bytes to `into`; true once none are left.
    fn drain(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let unread = self.buffer.get(self.start..self.end).unwrap_or_default();
        let count = unread.len().min(into.remaining());
        into.put_slice(unread.get(..count).unwrap_or_default());
        self.start += count;
        self.start >= self.end
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LargeReads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.held.is_none() {
            if into.remaining() >= SIZE {
                return Pin::new(&mut this.inner).poll_read(context, into);
            }
            let mut fresh = Held::take();
            let mut read = ReadBuf::new(&mut fresh.buffer);
            let result = Pin::new(&mut this.inner).poll_read(context, &mut read);
            fresh.end = read.filled().len();
            match result {
                Poll::Ready(Ok(())) => this.held = Some(fresh),
                Poll::Ready(Err(_)) | Poll::Pending => {
                    fresh.give_back();
                    return result;
                }
            }
        }
        if this.held.as_mut().is_some_and(|held| held.drain(into))
            && let Some(empty) = this.held.take()
        {
            empty.give_back();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LargeReads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_whole_and_an_idle_stream_holds_no_buffer() {
        let (mut far, near) = tokio::io::duplex(256 << 10);
        let mut near = LargeReads::new(near);
        let sent: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[1]).collect();
        far.write_all(&sent).await.unwrap();
        let mut got = vec![0; sent.len()];
        for piece in got.chunks_mut(4096) {
            near.read_exact(piece).await.unwrap();
        }
        assert_eq!(got, sent);
        assert!(near.held.is_none(), "all bytes were handed out");
        let read = tokio::time::timeout(std::time::Duration::ZERO, near.read_u8()).await;
        assert!(read.is_err() && near.held.is_none(), "waiting holds no buffer");
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
