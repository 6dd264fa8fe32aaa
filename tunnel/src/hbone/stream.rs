// SPDX-License-Identifier: Apache-2.0

//! The byte stream inside one CONNECT.
//!
//! Owns flow control: what was read is given back to the peer's window once
//! the reader comes for more, and bytes are sent only when the peer has room.
//! Leaves what the bytes mean to its users.
//!
//! Keeps: shutting down ends our direction only; dropping a stream that did
//! not end resets it, so the peer never takes a cut stream for a whole one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes offered to HTTP/2 at once by [`AsyncWrite`].
const WRITE_SIZE: usize = 64 << 10;

/// Something that lives as long as the stream, such as a place in a pool.
type Guard = Arc<dyn Send + Sync>;

/// One tunnelled stream; `Send`, `Sync` and `Unpin`.
pub struct Stream {
    receive: Receive,
    transmit: Transmit,
}

/// Our reading half.
pub struct Receive {
    inner: RecvStream,
    /// Bytes handed to [`AsyncRead`]'s buffer piece by piece.
    rest: Bytes,
    unreleased: usize,
    ended: bool,
    _guard: Option<Guard>,
}

/// Our writing half.
pub struct Transmit {
    inner: SendStream<Bytes>,
    ended: bool,
    _guard: Option<Guard>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.receive.inner.stream_id()).finish()
    }
}

impl std::fmt::Debug for Receive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receive").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Transmit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transmit").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, guard: Option<Guard>) -> Self {
        let receive = Receive {
            inner: receive,
            rest: Bytes::new(),
            unreleased: 0,
            ended: false,
            _guard: guard.clone(),
        };
        Self { receive, transmit: Transmit { inner: send, ended: false, _guard: guard } }
    }

    /// The two halves, to be used at the same time.
    #[must_use]
    pub fn split(self) -> (Receive, Transmit) {
        (self.receive, self.transmit)
    }
}

impl Receive {
    /// The next bytes; `None` once the peer has ended its direction.
    ///
    /// # Errors
    ///
    /// When the stream was reset or the connection is gone.
    pub fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if self.unreleased > 0 {
                let size = std::mem::take(&mut self.unreleased);
                // A stream that is closed has no window to give back to.
                drop(self.inner.flow_control().release_capacity(size));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.inner.poll_data(context)) {
                // Nothing to carry, and not the end.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.unreleased = bytes.len();
                    return Poll::Ready(Ok(Some(bytes)));
                }
                // A peer that has seen all it wanted resets with NO_ERROR.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => self.ended = true,
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => self.ended = true,
            }
        }
    }

    fn poll_read_into(
        &mut self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.poll_bytes(context))? {
                Some(bytes) => self.rest = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(into.remaining());
        into.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        if self.unreleased > 0 {
            drop(self.inner.flow_control().release_capacity(self.unreleased));
        }
    }
}

impl Transmit {
    /// Gives all of `bytes` to HTTP/2, as the peer's window allows; when it is
    /// ready none are left.
    ///
    /// # Errors
    ///
    /// When the stream was reset or the connection is gone.
    pub fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        while !bytes.is_empty() {
            let room = ready!(self.poll_room(context, bytes.len()))?;
            let piece = bytes.split_to(room.min(bytes.len()));
            self.inner.send_data(piece, false).map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction.
    ///
    /// # Errors
    ///
    /// When the stream was reset or the connection is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.ended {
            self.ended = true;
            self.inner.send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Ok(())
    }

    /// Resets the stream: the peer sees an error, not an end.
    pub fn reset(&mut self) {
        self.ended = true;
        self.inner.send_reset(Reason::CANCEL);
    }

    /// Completes once the peer no longer wants our bytes.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_reset(context).map(|_| ())
    }

    fn poll_room(&mut self, context: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        self.inner.reserve_capacity(want);
        loop {
            let room = self.inner.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.inner.poll_capacity(context)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => return Poll::Ready(Ok(room)),
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }
}

impl Drop for Transmit {
    fn drop(&mut self) {
        if !self.ended {
            self.inner.send_reset(Reason::CANCEL);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.receive.poll_read_into(context, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.transmit.poll_room(context, bytes.len().min(WRITE_SIZE)))?;
        let piece = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
        let count = piece.len();
        self.transmit.inner.send_data(Bytes::copy_from_slice(piece), false).map_err(to_io)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver of the connection writes what it was given on its own.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.transmit.finish())
    }
}

/// The error as byte streams know it.
fn to_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    let kind = match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) => {
            io::ErrorKind::ConnectionReset
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
