// SPDX-License-Identifier: Apache-2.0

//! The byte stream that Pingora's HTTP/1 sessions hold: heads in, heads out, nothing else.
//!
//! A session wants to own its stream. It gets one end of a [`Pipe`]; `conn` keeps the socket,
//! collects a whole head, puts exactly that into the pipe and takes what the session writes.
//! So a head is parsed once however slowly it came, a session never waits, never reads past a
//! head, and may be dropped at any time without losing a byte of the connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug, Default)]
struct Heads {
    input: BytesMut,
    output: BytesMut,
}

/// Both directions of heads between a connection and the session on it.
///
/// The lock is never contended: a connection and its session live on one core.
#[derive(Clone, Debug, Default)]
pub(super) struct Pipe(Arc<Mutex<Heads>>);

impl Pipe {
    /// The end for a session.
    pub(super) fn stream(&self) -> Stream {
        Box::new(self.clone())
    }

    /// Gives the session one whole head to read.
    pub(super) fn give(&self, head: BytesMut) {
        self.heads().input = head;
    }

    /// Takes what the session has written.
    pub(super) fn take(&self) -> BytesMut {
        std::mem::take(&mut self.heads().output)
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Pipe {
    /// An empty pipe is at its end: a session that wants more than the head it was given fails.
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut heads = self.heads();
        let count = heads.input.len().min(buf.remaining());
        if let Some(bytes) = heads.input.get(..count) {
            buf.put_slice(bytes);
        }
        heads.input.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.heads().output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl Shutdown for Pipe {
    async fn shutdown(&mut self) {}
}

impl UniqueID for Pipe {
    fn id(&self) -> UniqueIDType {
        0
    }
}

impl Ssl for Pipe {}

#[async_trait]
impl Peek for Pipe {}

impl GetTimingDigest for Pipe {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Pipe {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Pipe {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}
