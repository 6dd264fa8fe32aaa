// SPDX-License-Identifier: Apache-2.0

//! Bytes both ways, until both directions have ended: the hot loop.
//!
//! Owns buffers: none is held while a direction waits; reads begin with 1 KiB,
//! grow to 16 KiB and 256 KiB with what has passed, and shrink again once the
//! direction was idle. Bytes from HBONE are never copied.
//!
//! Keeps: the end of one direction is passed on and the other goes on; an
//! error ends both; what a direction has read it writes before it reads on.
//!
//! Start at [`both`].

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncWrite as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio_util::io::poll_read_buf;

use crate::hbone::stream::{Receive, Stream, Transmit};
use crate::metrics::SessionCounters;

/// Pieces that one batch holds at most; as many go into one vectored write.
const BATCH: usize = 16;

/// Bytes of one batch from which on no more is added.
const BATCH_BYTES: usize = 256 << 10;

/// Bytes read by how much has passed without a pause.
const CLASSES: [(u64, usize); 3] = [(0, 1 << 10), (128 << 10, 16 << 10), (10 << 20, 256 << 10)];

/// Reads after which a direction that had to wait begins with small buffers again.
const QUIET_READS: u32 = 32;

/// Pieces on their way.
type Batch = VecDeque<Bytes>;

/// One side of a session.
#[derive(Debug)]
pub enum Side {
    /// A plain connection.
    Tcp(TcpStream),
    /// A stream inside HBONE.
    Hbone(Stream),
}

enum Source<'a> {
    Tcp { half: ReadHalf<'a>, buffer: BytesMut, size: SizeClass },
    Hbone(Receive),
}

enum Sink<'a> {
    Tcp(WriteHalf<'a>),
    Hbone(Transmit),
}

/// How much to read at once.
#[derive(Debug, Default)]
struct SizeClass {
    passed: u64,
    small_reads: u32,
}

impl SizeClass {
    fn bytes(&self) -> usize {
        let class = CLASSES.iter().rev().find(|(from, _)| self.passed >= *from);
        class.map_or(1 << 10, |(_, size)| *size)
    }

    fn read(&mut self, count: usize) {
        let full = count >= self.bytes();
        self.passed = self.passed.saturating_add(count as u64);
        self.small_reads = if full { 0 } else { self.small_reads.saturating_add(1) };
        // A stream of small messages needs no large buffers, however long it lasts.
        if self.small_reads >= QUIET_READS {
            (self.passed, self.small_reads) = (0, 0);
        }
    }
}

/// Carries bytes between `client` and `server` until both directions have
/// ended, counting them as they pass.
///
/// Dropping the future before that cuts both sides with a reset.
///
/// # Errors
///
/// The first error of any direction, except that of a peer which resets its
/// connection once the other direction has ended.
pub async fn both(client: Side, server: Side, counters: &SessionCounters) -> io::Result<()> {
    let (mut client_kept, mut server_kept) = (Kept::default(), Kept::default());
    let (from_client, to_client) = halves(client, &mut client_kept.stream);
    let (from_server, to_server) = halves(server, &mut server_kept.stream);
    let one_ended = Cell::new(false);
    let up = pump(from_client, to_server, &one_ended, |bytes| counters.received(bytes));
    let down = pump(from_server, to_client, &one_ended, |bytes| counters.sent(bytes));
    tokio::try_join!(up, down)?;
    (client_kept.ended, server_kept.ended) = (true, true);
    Ok(())
}

/// Writes `first` to a connection before anything else.
///
/// # Errors
///
/// Those of the connection.
pub async fn write_first(stream: &mut TcpStream, first: &[u8]) -> io::Result<()> {
    tokio::io::AsyncWriteExt::write_all(stream, first).await
}

/// A connection that is reset when dropped, unless both directions have ended:
/// the peer must not take a cut stream for a whole one.
#[derive(Default)]
struct Kept {
    stream: Option<TcpStream>,
    ended: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.ended) {
            // Without this the connection is closed all the same.
            drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)));
        }
    }
}

fn halves(side: Side, kept: &mut Option<TcpStream>) -> (Source<'_>, Sink<'_>) {
    match side {
        Side::Tcp(stream) => {
            let (half, write) = kept.insert(stream).split();
            let (buffer, size) = (BytesMut::new(), SizeClass::default());
            (Source::Tcp { half, buffer, size }, Sink::Tcp(write))
        }
        Side::Hbone(stream) => {
            let (receive, transmit) = stream.split();
            (Source::Hbone(receive), Sink::Hbone(transmit))
        }
    }
}

/// One direction.
async fn pump(
    mut source: Source<'_>,
    mut sink: Sink<'_>,
    one_ended: &Cell<bool>,
    count: impl Fn(usize),
) -> io::Result<()> {
    let passed = async {
        let mut batch = Batch::new();
        loop {
            let bytes = {
                let mut refused = pin!(sink.refused());
                let fill = poll_fn(|context| {
                    // Until then the other direction would tell.
                    if one_ended.get() && refused.as_mut().poll(context).is_ready() {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                    source.poll_fill(context, &mut batch)
                });
                fill.await?
            };
            if bytes == 0 {
                return poll_fn(|context| sink.poll_finish(context)).await;
            }
            count(bytes);
            poll_fn(|context| sink.poll_drain(context, &mut batch)).await?;
        }
    };
    match passed.await {
        Err(error) if one_ended.get() && is_late_reset(&error) => Ok(()),
        result => {
            one_ended.set(true);
            // The other direction looks at its peer from now on.
            poll_fn(|context| {
                context.waker().wake_by_ref();
                Poll::Ready(())
            })
            .await;
            result
        }
    }
}

fn is_late_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    )
}

impl Source<'_> {
    /// Fills an empty batch; gives its bytes, or zero at the end.
    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp { half, buffer, size } => {
                let read = poll_read(half, buffer, size.bytes(), context);
                if read.is_pending() {
                    *buffer = BytesMut::new();
                }
                let count = ready!(read)?;
                if count > 0 {
                    size.read(count);
                    batch.push_back(buffer.split().freeze());
                }
                Poll::Ready(Ok(count))
            }
            Self::Hbone(receive) => {
                let mut bytes = 0;
                while batch.len() < BATCH && bytes < BATCH_BYTES {
                    match receive.poll_bytes(context) {
                        Poll::Ready(Ok(Some(piece))) => {
                            bytes += piece.len();
                            batch.push_back(piece);
                        }
                        // What is here goes out first; the end or error comes again.
                        Poll::Ready(_) | Poll::Pending if bytes > 0 => break,
                        Poll::Ready(Ok(None)) => break,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(Ok(bytes))
            }
        }
    }
}

/// Reads once there is something to read; only then takes a buffer.
fn poll_read(
    half: &mut ReadHalf<'_>,
    buffer: &mut BytesMut,
    size: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    ready!(half.as_ref().poll_read_ready(context))?;
    if buffer.capacity() < size / 2 {
        buffer.reserve(size);
    }
    poll_read_buf(Pin::new(half), context, buffer)
}

impl Sink<'_> {
    /// Writes the whole batch.
    fn poll_drain(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<()>> {
        while let Some(piece) = batch.front_mut() {
            match self {
                Self::Hbone(transmit) => {
                    ready!(transmit.poll_send(context, piece))?;
                    batch.pop_front();
                }
                Self::Tcp(half) => {
                    let mut slices = [IoSlice::new(&[]); BATCH];
                    for (slice, piece) in slices.iter_mut().zip(batch.iter()) {
                        *slice = IoSlice::new(piece);
                    }
                    let used = slices.get(..batch.len().min(BATCH)).unwrap_or(&[]);
                    let count = ready!(Pin::new(&mut *half).poll_write_vectored(context, used))?;
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    advance(batch, count);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Completes once the peer takes no more bytes.
    async fn refused(&mut self) {
        match self {
            // An error of readiness itself tells the same.
            Self::Tcp(half) => drop(half.ready(Interest::ERROR).await),
            Self::Hbone(transmit) => poll_fn(|context| transmit.poll_reset(context)).await,
        }
    }

    /// Passes the end of the direction on.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => Pin::new(half).poll_shutdown(context),
            Self::Hbone(transmit) => Poll::Ready(transmit.finish()),
        }
    }
}

/// Takes `count` written bytes off the front of a batch.
fn advance(batch: &mut Batch, mut count: usize) {
    while let Some(piece) = batch.front_mut() {
        if count < piece.len() {
            piece.advance(count);
            return;
        }
        count -= piece.len();
        batch.pop_front();
    }
}

#[cfg(test)]
mod tests;
