// SPDX-License-Identifier: Apache-2.0

//! Bytes of one HTTP/1 connection, before framing: what was read, what is to be written.
//!
//! Reading: one chunk of memory per core is lent to whichever connection has bytes; what was
//! read is split off it without a copy, and an idle connection holds none. Writing: small
//! writes are put together, large ones keep their memory, and all leave in one vectored write
//! when the caller pushes. Both sides are bounded by the caller: it asks `poll_room` before
//! it puts, and stops filling when it holds enough.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// A connected byte stream: a socket, a TLS session, a tunnel's stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

/// Size of the chunk that a core reads into.
const CHUNK: usize = 64 << 10;
/// With less room than this the rest of a chunk is not worth a system call.
const CHUNK_MIN: usize = 16 << 10;
/// Up to here a write is copied to the ones before it; above it keeps its own memory.
const COPY: usize = 4 << 10;
/// Pieces of one vectored write.
const SLICES: usize = 16;

thread_local! {
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// One HTTP/1 connection with its buffers.
pub(super) struct Conn {
    io: Box<dyn ByteStream>,
    /// Read and not yet taken.
    pub(super) input: BytesMut,
    /// The other side has closed its direction.
    pub(super) eof: bool,
    /// `input` lies in the chunk of this core.
    lent: bool,
    first: BytesMut,
    rest: VecDeque<Bytes>,
    pending: usize,
    dirty: bool,
    /// Bytes written to the stream, ever: progress for the stall timer.
    pub(super) written: u64,
}

impl Conn {
    pub(super) fn new(io: Box<dyn ByteStream>) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            eof: false,
            lent: false,
            first: BytesMut::new(),
            rest: VecDeque::new(),
            pending: 0,
            dirty: false,
            written: 0,
        }
    }

    /// Reads once and appends to `input`; 0 at the end of the stream, and ever after.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let mut chunk = SPARE.take();
        if chunk.capacity() < CHUNK_MIN {
            chunk.reserve(CHUNK);
        }
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut chunk);
        let got = chunk.split();
        SPARE.set(chunk);
        if read.is_pending() && self.input.is_empty() {
            // Even an empty rest would keep the chunk from being used again.
            self.input = BytesMut::new();
        }
        let count = ready!(read)?;
        self.eof = count == 0;
        if self.input.is_empty() {
            self.input = got;
            self.lent = true;
        } else {
            self.input.extend_from_slice(&got);
        }
        Poll::Ready(Ok(count))
    }

    /// Gives bytes that stay for long memory of their own, so that they hold no chunk.
    pub(super) fn settle(&mut self) {
        if self.lent && !self.input.is_empty() {
            self.lent = false;
            self.input = BytesMut::from(self.input.as_ref());
        }
    }

    /// Tells whether an unused connection is still sound: open, and nothing unasked has come.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.input.is_empty() && self.poll_fill(&mut cx).is_pending()
    }

    /// Bytes that wait to be written.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Ready when less than `limit` bytes wait; else writes, and says when there is room.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<()>> {
        while self.pending >= limit {
            ready!(self.poll_write_some(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Queues a piece; never waits.
    pub(super) fn put(&mut self, piece: Bytes) {
        if piece.len() <= COPY {
            return self.put_slice(&piece);
        }
        self.pending += piece.len();
        self.rest.push_back(piece);
    }

    /// Queues a copy of `bytes`; never waits.
    pub(super) fn put_slice(&mut self, bytes: &[u8]) {
        self.pending += bytes.len();
        if self.rest.is_empty() {
            self.first.extend_from_slice(bytes);
        } else {
            self.rest.push_back(Bytes::copy_from_slice(bytes));
        }
    }

    /// Queues a head that a session wrote.
    pub(super) fn put_head(&mut self, head: BytesMut) {
        if self.pending == 0 {
            self.pending = head.len();
            self.first = head;
        } else {
            self.put_slice(&head);
        }
    }

    /// Writes what waits; ready when all of it is on its way.
    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending > 0 {
            ready!(self.poll_write_some(cx))?;
        }
        if self.dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes our direction, after what waits.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_push(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// The stream itself and what was read from it; for another protocol on it.
    pub(super) fn into_parts(self) -> (Box<dyn ByteStream>, BytesMut) {
        (self.io, self.input)
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = Pin::new(&mut self.io);
        let count = if self.rest.is_empty() {
            ready!(io.poll_write(cx, &self.first))?
        } else if io.is_write_vectored() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let pieces =
                std::iter::once(self.first.as_ref()).chain(self.rest.iter().map(Bytes::as_ref));
            let mut used = 0;
            for (slot, piece) in slices.iter_mut().zip(pieces.filter(|piece| !piece.is_empty())) {
                *slot = IoSlice::new(piece);
                used += 1;
            }
            ready!(io.poll_write_vectored(cx, slices.get(..used).unwrap_or_default()))?
        } else {
            let piece = if self.first.is_empty() { self.rest.front() } else { None };
            ready!(io.poll_write(cx, piece.map_or(self.first.as_ref(), Bytes::as_ref)))?
        };
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.wrote(count);
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, mut count: usize) {
        self.dirty = true;
        self.written += count as u64;
        self.pending = self.pending.saturating_sub(count);
        let from_first = count.min(self.first.len());
        self.first.advance(from_first);
        count -= from_first;
        while let Some(piece) = self.rest.front_mut() {
            let taken = count.min(piece.len());
            piece.advance(taken);
            count -= taken;
            if !piece.is_empty() {
                break;
            }
            self.rest.pop_front();
        }
        if self.pending == 0 {
            self.first = BytesMut::new();
            self.rest = VecDeque::new();
        }
    }
}
