// SPDX-License-Identifier: Apache-2.0

//! The loop of an HTTP/1 connection.
//!
//! Between requests there is no session and no buffer, only the connection. A head is collected
//! whole, under its deadline and byte budget, before anything parses it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Drained, Ended, Terms, Timer};
use crate::http::conn::Conn;
use crate::http::downstream::h1::{Http1, Shared, after};
use crate::http::pipe::Pipe;
use crate::http::upstream::h1::head_end;
use crate::http::{BadRequest, Downstream};

/// A connection that has no request for so long gives back the memory of the last one.
const REST: Duration = Duration::from_secs(1);

/// Serves requests one after the other.
pub(super) async fn serve<H>(conn: Conn, terms: &Terms, handler: &H) -> Ended
where
    H: AsyncFn(&mut Downstream),
{
    let shared = Rc::new(Shared {
        limits: Arc::clone(&terms.limits),
        drain: terms.drain.clone(),
        pipe: Pipe::default(),
        read_by: Cell::new(None),
        write_by: Cell::new(None),
    });
    let mut request = Box::new(Http1::new(conn, Rc::clone(&shared)));
    let mut timer = Timer::new();
    let mut drained = Drained::new(&terms.drain);
    let mut left = terms.limits.requests;
    loop {
        let raw = match next_head(&mut request, terms, &mut timer, &mut drained).await {
            Ok(raw) => raw,
            Err(Stop::Quiet(ended)) => {
                let _closed = poll_fn(|cx| request.conn.poll_close(cx)).now_or_never();
                return ended;
            }
            Err(Stop::Bad(bad)) => return refuse(request, bad, &shared, &mut timer).await,
        };
        left = left.saturating_sub(1);
        let begun = request.begin(&raw, left > 0);
        drop(raw);
        if let Err(bad) = begun {
            return refuse(request, bad, &shared, &mut timer).await;
        }
        let mut downstream = Downstream::http1(request, terms.secure);
        let stalled = run(&mut downstream, &shared, &mut timer, &mut drained, handler).await;
        request = match conclude(downstream, stalled, &shared, &mut timer).await {
            Ok(reused) => reused,
            Err(ended) => return ended,
        };
    }
}

/// Why there is no next request.
enum Stop {
    Quiet(Ended),
    Bad(BadRequest),
}

/// Waits for the next head and takes it off the connection, byte for byte.
async fn next_head(
    request: &mut Http1,
    terms: &Terms,
    timer: &mut Timer,
    drained: &mut Drained,
) -> Result<BytesMut, Stop> {
    let limits = &terms.limits;
    let mut idle_by = None;
    let mut head_by: Option<Instant> = None;
    let mut rest_by = None;
    let mut quiet_by = None;
    let mut seen = 0;
    poll_fn(|cx| {
        loop {
            let conn = &mut request.conn;
            if let Some(end) = head_end(&conn.input, seen) {
                return Poll::Ready(if end > limits.head_bytes {
                    Err(Stop::Bad(BadRequest::TooLarge))
                } else {
                    Ok(conn.input.split_to(end))
                });
            }
            seen = conn.input.len();
            if seen > limits.head_bytes {
                return Poll::Ready(Err(Stop::Bad(BadRequest::TooLarge)));
            }
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(0)) if seen == 0 => {
                    return Poll::Ready(Err(Stop::Quiet(Ended::Client)));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Stop::Quiet(Ended::Broken))),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Stop::Quiet(Ended::Broken))),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending if seen == 0 => {
                    if idle_by.is_none() {
                        (idle_by, rest_by) = (after(limits.idle), after(REST));
                    }
                    if quiet_by.is_none() && drained.poll(cx) {
                        quiet_by = Some(Instant::now() + limits.quiet);
                    }
                    ready!(
                        timer.poll(cx, [idle_by, rest_by, quiet_by].into_iter().flatten().min())
                    );
                    let is_over = |by: Option<Instant>| by.is_some_and(|by| Instant::now() >= by);
                    if is_over(quiet_by) {
                        return Poll::Ready(Err(Stop::Quiet(Ended::Us)));
                    }
                    if is_over(idle_by) {
                        return Poll::Ready(Err(Stop::Quiet(Ended::Idle)));
                    }
                    rest_by = None;
                    request.rest();
                }
                Poll::Pending => {
                    conn.settle();
                    head_by = head_by.or_else(|| after(limits.head_time));
                    ready!(timer.poll(cx, head_by));
                    return Poll::Ready(Err(Stop::Bad(BadRequest::TooSlow)));
                }
            }
        }
    })
    .await
}

/// Runs the handler; true if the client was too slow for it to end.
async fn run<H>(
    downstream: &mut Downstream,
    shared: &Shared,
    timer: &mut Timer,
    drained: &mut Drained,
    handler: &H,
) -> bool
where
    H: AsyncFn(&mut Downstream),
{
    let mut running = pin!(handler(downstream));
    let mut drain_by = None;
    poll_fn(|cx| {
        if running.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        if drain_by.is_none() && drained.poll(cx) {
            drain_by = after(shared.limits.drain);
        }
        let by =
            [shared.read_by.get(), shared.write_by.get(), drain_by].into_iter().flatten().min();
        timer.poll(cx, by).map(|()| true)
    })
    .await
}

/// Ends one request: the connection if another may follow, else how it was closed.
async fn conclude(
    mut downstream: Downstream,
    stalled: bool,
    shared: &Shared,
    timer: &mut Timer,
) -> Result<Box<Http1>, Ended> {
    shared.read_by.set(None);
    shared.write_by.set(None);
    let (started, ended) = (downstream.started(), downstream.ended());
    let by = after(if stalled { shared.limits.linger } else { shared.limits.stall });
    let pushed = within(timer, by, poll_fn(|cx| downstream.poll_push(cx))).await;
    if (started && !ended) || !matches!(pushed, Some(Ok(()))) {
        // A response that is cut off must look so: its end never comes.
        return Err(if stalled || pushed.is_none() { Ended::Slow } else { Ended::Broken });
    }
    let by = after(shared.limits.linger);
    let bound = shared.limits.linger_bytes;
    let read = !stalled && within(timer, by, discard(&mut downstream, bound)).await == Some(true);
    let request = downstream.into_http1().ok_or(Ended::Broken)?;
    if !started {
        let bad = if stalled { BadRequest::TooSlow } else { BadRequest::Malformed("unanswered") };
        return Err(refuse(request, bad, shared, timer).await);
    }
    if request.keep && read {
        return Ok(request);
    }
    linger(request, shared, timer).await;
    Err(if stalled { Ended::Slow } else { Ended::Us })
}

/// Reads the rest of a request body; false if it is too long or broken.
async fn discard(downstream: &mut Downstream, mut bound: usize) -> bool {
    use crate::http::downstream::Event;
    loop {
        match poll_fn(|cx| downstream.poll_event(cx)).await {
            Ok(Event::Data { piece, last }) => match bound.checked_sub(piece.len()) {
                Some(_) if last => return true,
                Some(left) => bound = left,
                None => return false,
            },
            Ok(Event::Trailers(_) | Event::End) => return true,
            Err(_) => return false,
        }
    }
}

/// Answers a head that is no request, then closes.
async fn refuse(
    mut request: Box<Http1>,
    bad: BadRequest,
    shared: &Shared,
    timer: &mut Timer,
) -> Ended {
    let status = bad.status();
    let conn = &mut request.conn;
    conn.put_slice(b"HTTP/1.1 ");
    conn.put_slice(status.as_str().as_bytes());
    conn.put_slice(b" ");
    conn.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    conn.put_slice(b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    linger(request, shared, timer).await;
    if bad == BadRequest::TooSlow { Ended::Slow } else { Ended::Bad }
}

/// Closes our direction and discards what still comes, for a bounded time.
///
/// Closed at once, unread bytes would make the kernel send RST, and the client could lose the
/// answer that was sent before.
async fn linger(mut request: Box<Http1>, shared: &Shared, timer: &mut Timer) {
    let mut left = shared.limits.linger_bytes;
    let by = after(shared.limits.linger);
    let closing = poll_fn(|cx| {
        let conn = &mut request.conn;
        let closed = conn.poll_close(cx).map_err(|_| ());
        if matches!(closed, Poll::Ready(Err(()))) {
            return Poll::Ready(());
        }
        loop {
            conn.input.clear();
            match ready!(conn.poll_fill(cx)) {
                Ok(count) if count > 0 && count <= left => left -= count,
                Ok(_) | Err(_) if closed.is_ready() => return Poll::Ready(()),
                Ok(_) | Err(_) => return Poll::Pending,
            }
        }
    });
    let _given_up = within(timer, by, closing).await;
}

/// The output of `work`, or none when `by` passes first.
async fn within<T>(
    timer: &mut Timer,
    by: Option<Instant>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.poll(cx, by).map(|()| None)
    })
    .await
}
