// SPDX-License-Identifier: Apache-2.0

//! Life of a client's connection: requests one after the other, or at once, until it ends.
//!
//! [`serve`] finds out what is spoken, then `http1` or `http2` runs the loop: idle time, time
//! and size of heads, number of requests, drain. The handler sees only whole, checked heads.

mod http1;
mod http2;
mod seldom;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::seldom::Seldom;
use super::conn::Conn;
use super::downstream::h1::after;
use super::{ByteStream, Downstream, Limits, Protocol};
use crate::rewound::Rewound;

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The client closed it between requests.
    Client,
    /// Nothing came for the idle time.
    Idle,
    /// We closed it: drain, number of requests, `Connection: close`.
    Us,
    /// A malformed head, or too many of them.
    Bad,
    /// A head, a body or a reader was too slow.
    Slow,
    /// It failed, or a response could not be completed on it.
    Broken,
}

/// How one client connection is served.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What is spoken, by ALPN; [`Protocol::Sniff`] in plain text.
    pub protocol: Protocol,
    /// The client sees `https`.
    pub secure: bool,
    /// Bounds of the connection and its messages.
    pub limits: Arc<Limits>,
    /// Cancelled, it ends the connection gracefully: without a request after [`Limits::quiet`],
    /// HTTP/2 at once; else after the running requests, at the latest after [`Limits::drain`].
    pub drain: CancellationToken,
}

/// Serves the requests of one client connection until it ends.
///
/// `handler` is called once per request, for HTTP/2 several times at once; it should leave the
/// response complete, else the client sees it broken. Dropping the future cuts the connection.
pub async fn serve<H>(io: impl ByteStream, terms: Terms, handler: H) -> Ended
where
    H: AsyncFn(&mut Downstream),
{
    let io: Box<dyn ByteStream> = Box::new(io);
    if terms.protocol == Protocol::Http2 {
        return http2::serve(Rewound::new(BytesMut::new(), io), &terms, &handler).await;
    }
    let mut conn = Conn::new(io);
    let is_http2 = terms.protocol == Protocol::Sniff
        && match sniff(&mut conn, &terms).await {
            Ok(is_http2) => is_http2,
            Err(ended) => return ended,
        };
    if is_http2 {
        let (io, read) = conn.into_parts();
        http2::serve(Rewound::new(read, io), &terms, &handler).await
    } else {
        http1::serve(conn, &terms, &handler).await
    }
}

/// Reads until the bytes differ from the preface of HTTP/2, or are it.
async fn sniff(conn: &mut Conn, terms: &Terms) -> Result<bool, Ended> {
    let mut timer = Timer::new();
    let idle_by = after(terms.limits.idle);
    let mut head_by = None;
    let mut drained = Drained::new(&terms.drain);
    let mut quiet_by = None;
    poll_fn(|cx| {
        loop {
            let seen = conn.input.len().min(PREFACE.len());
            if conn.input.get(..seen) != PREFACE.get(..seen) {
                return Poll::Ready(Ok(false));
            }
            if seen == PREFACE.len() {
                return Poll::Ready(Ok(true));
            }
            if seen > 0 && head_by.is_none() {
                head_by = after(terms.limits.head_time);
            }
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(if seen > 0 { Ok(false) } else { Err(Ended::Client) });
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Ended::Broken)),
                Poll::Pending if seen == 0 => {
                    if quiet_by.is_none() && drained.poll(cx) {
                        quiet_by = Some(Instant::now() + terms.limits.quiet);
                    }
                    ready!(timer.poll(cx, [idle_by, quiet_by].into_iter().flatten().min()));
                    let is_quiet = quiet_by.is_some_and(|by| Instant::now() >= by);
                    return Poll::Ready(Err(if is_quiet { Ended::Us } else { Ended::Idle }));
                }
                Poll::Pending => {
                    ready!(timer.poll(cx, head_by));
                    return Poll::Ready(Err(Ended::Slow));
                }
            }
        }
    })
    .await
}

/// One timer for a connection, wound only when it must go off earlier than it would.
///
/// Deadlines of a connection mostly move away from now; the timer then goes off in vain once,
/// which costs less than to wind it at every request.
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    seldom: Seldom,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: None, seldom: Seldom::new() }
    }

    /// Ready when `by` has passed; never for none.
    fn poll(&mut self, cx: &mut Context<'_>, by: Option<Instant>) -> Poll<()> {
        let Some(by) = by else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(by)));
        if sleep.deadline() > by {
            sleep.as_mut().reset(by);
            self.seldom.changed();
        }
        while self.seldom.poll(cx, sleep.as_mut()).is_ready() {
            if Instant::now() >= by {
                // Ready again when it is asked for the same moment once more.
                return Poll::Ready(());
            }
            sleep.as_mut().reset(by);
        }
        Poll::Pending
    }
}

/// The signal to drain, as one connection waits for it.
struct Drained {
    signal: Pin<Box<WaitForCancellationFutureOwned>>,
    seldom: Seldom,
    given: bool,
}

impl Drained {
    fn new(signal: &CancellationToken) -> Self {
        let signal = Box::pin(signal.clone().cancelled_owned());
        Self { signal, seldom: Seldom::new(), given: false }
    }

    /// True once the signal was given.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.given = self.given || self.seldom.poll(cx, self.signal.as_mut()).is_ready();
        self.given
    }
}
