// SPDX-License-Identifier: Apache-2.0

//! The loop of an HTTP/2 connection: `h2::server`, and the handlers of its streams beside it.
//!
//! Everything of a connection is polled in one task, so what handlers send leaves together.

use std::future::poll_fn;
use std::task::Poll;

use ::h2::server::{Builder, Connection, SendResponse};
use ::h2::{Reason, RecvStream};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pingora_http::RequestHeader;
use tokio::time::Instant;

use super::{Drained, Ended, Terms, Timer};
use crate::http::downstream::h1::after;
use crate::http::downstream::h2::Http2;
use crate::http::head::check;
use crate::http::{BadRequest, ByteStream, Downstream, Limits};
use crate::rewound::Rewound;

/// The connection, with what was read of it already.
type Io = Rewound<Box<dyn ByteStream>, BytesMut>;

/// Serves streams as they come.
pub(super) async fn serve<H>(io: Io, terms: &Terms, handler: &H) -> Ended
where
    H: AsyncFn(&mut Downstream),
{
    let limits = &terms.limits;
    let handshake = builder(limits).handshake(io);
    let mut connection: Connection<Io, Bytes> =
        match tokio::time::timeout(limits.head_time, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(_)) => return Ended::Bad,
            Err(_) => return Ended::Slow,
        };
    let mut running = FuturesUnordered::new();
    let mut drained = Drained::new(&terms.drain);
    let mut state = State { left: limits.requests, bad: 0, closing: None, ended: None };
    let mut timer = Timer::new();
    let mut idle_by = after(limits.idle);
    poll_fn(|cx| {
        loop {
            while let Poll::Ready(next) = connection.poll_accept(cx) {
                let Some(next) = next else {
                    return Poll::Ready(state.ended.unwrap_or(Ended::Client));
                };
                let Ok((request, respond)) = next else {
                    return Poll::Ready(state.ended.unwrap_or(Ended::Broken));
                };
                if let Some(request) = state.admit(request, respond, limits, &mut connection) {
                    let mut downstream = Downstream::http2(request, terms.secure);
                    running.push(async move {
                        handler(&mut downstream).await;
                        downstream.abandon();
                    });
                }
            }
            let mut progress = false;
            while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {
                progress = true;
            }
            // What just ended is sent by the next round.
            if !progress {
                break;
            }
        }
        if state.ended.is_none() && drained.poll(cx) {
            state.close(&mut connection, Ended::Us, limits);
        }
        idle_by = if running.is_empty() { idle_by.or_else(|| after(limits.idle)) } else { None };
        if let Some(ended) = state.ended {
            return timer.poll(cx, state.closing).map(|()| ended);
        }
        if timer.poll(cx, idle_by).is_ready() {
            state.close(&mut connection, Ended::Idle, limits);
            // The farewell is sent by the next poll.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// Where a connection stands.
struct State {
    left: u32,
    bad: u32,
    /// By when it must be closed, once it is closing.
    closing: Option<Instant>,
    ended: Option<Ended>,
}

impl State {
    /// Checks one request; refuses it, or gives it to be handled.
    fn admit(
        &mut self,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        limits: &Limits,
        connection: &mut Connection<Io, Bytes>,
    ) -> Option<Http2> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.close(connection, Ended::Us, limits);
        }
        let (parts, body) = request.into_parts();
        let mut head = Box::new(RequestHeader::from(parts));
        match check::http2(&mut head, body.is_end_stream(), limits.headers) {
            Ok(facts) => return Some(Http2::new(head, facts, body, respond)),
            Err(bad) => refuse(bad, &mut respond),
        }
        self.bad += 1;
        if self.bad >= limits.bad_requests {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.ended = Some(Ended::Bad);
        }
        None
    }

    /// Begins to close gracefully.
    fn close(&mut self, connection: &mut Connection<Io, Bytes>, why: Ended, limits: &Limits) {
        if self.ended.is_none() {
            connection.graceful_shutdown();
            self.ended = Some(why);
            self.closing = after(limits.drain);
        }
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(limits.stream_buffer);
    builder
}

/// Malformed messages are reset, what is merely refused gets its status.
///
/// Rule: RFC 9113 §8.1.1.
fn refuse(bad: BadRequest, respond: &mut SendResponse<Bytes>) {
    let reset = match bad {
        BadRequest::Malformed(what) => {
            matches!(
                what,
                "Transfer-Encoding in HTTP/2" | "Content-Length" | "Content-Length without a body"
            )
        }
        BadRequest::TooLarge | BadRequest::TooSlow | BadRequest::Coding | BadRequest::Connect => {
            false
        }
    };
    let mut response = http::Response::new(());
    *response.status_mut() = bad.status();
    if reset || respond.send_response(response, true).is_err() {
        respond.send_reset(Reason::PROTOCOL_ERROR);
    }
}
