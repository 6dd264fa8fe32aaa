// SPDX-License-Identifier: Apache-2.0

//! One HTTP/1 request: Pingora's session for its heads, our framing for its bodies.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use pingora_core::protocols::http::v1::server::HttpSession;
use pingora_http::RequestHeader;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Event, Facts};
use crate::http::conn::Conn;
use crate::http::framing::{Decoder, Encoder};
use crate::http::head::check;
use crate::http::pipe::Pipe;
use crate::http::{BadRequest, Body, Error, Limits, ResponseHead};

/// What the requests of one connection share.
#[derive(Debug)]
pub(in crate::http) struct Shared {
    pub(in crate::http) limits: Arc<Limits>,
    pub(in crate::http) drain: CancellationToken,
    pub(in crate::http) pipe: Pipe,
    /// By when the client must send, or take, something; the connection loop watches these.
    pub(in crate::http) read_by: Cell<Option<Instant>>,
    pub(in crate::http) write_by: Cell<Option<Instant>>,
}

/// An HTTP/1 connection and the request on it; one value serves all requests in turn.
pub(in crate::http) struct Http1 {
    pub(in crate::http) conn: Conn,
    pub(in crate::http) facts: Facts,
    /// The connection may serve another request after this one.
    pub(in crate::http) keep: bool,
    shared: Rc<Shared>,
    session: HttpSession,
    decoder: Decoder,
    encoder: Encoder,
}

impl Http1 {
    pub(in crate::http) fn new(conn: Conn, shared: Rc<Shared>) -> Self {
        Self {
            conn,
            facts: Facts::default(),
            keep: false,
            session: session(&shared),
            shared,
            decoder: Decoder::Done,
            encoder: Encoder::Empty,
        }
    }

    /// Begins the next request: has the session parse its head, then checks what it lets pass.
    pub(in crate::http) fn begin(&mut self, raw: &[u8], keep: bool) -> Result<(), BadRequest> {
        // A copy of its own size: the session keeps it as long as the request runs.
        self.session.set_pipelined_prefix(BytesMut::from(raw));
        // Outside of the task's budget, or it might not be ready although all of it is there.
        let read = tokio::task::unconstrained(self.session.read_request()).now_or_never();
        let Some(Ok(Some(_))) = read else { return Err(BadRequest::Malformed("not HTTP")) };
        let headers = self.shared.limits.headers;
        self.facts = check::http1(self.session.req_header_mut(), raw, headers)?;
        self.decoder = match self.facts.body {
            _ if self.facts.chunked => Decoder::CHUNKED,
            Body::Length(length) => Decoder::Length(length),
            Body::None | Body::Unknown => Decoder::Done,
        };
        self.encoder = Encoder::Empty;
        self.keep = keep && self.session.will_keepalive();
        Ok(())
    }

    /// Lets go of the memory of the last request, when none follows soon.
    pub(in crate::http) fn rest(&mut self) {
        self.session = session(&self.shared);
        self.facts = Facts::default();
    }

    pub(super) fn header(&self) -> &RequestHeader {
        self.session.req_header()
    }

    pub(super) fn header_mut(&mut self) -> &mut RequestHeader {
        self.session.req_header_mut()
    }

    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        timed: bool,
    ) -> Poll<Result<Event, Error>> {
        loop {
            let bound = self.shared.limits.trailer_bytes;
            let event = Event::of_h1(&mut self.decoder, &mut self.conn.input, bound);
            if let Some(event) = event.map_err(Error::DownstreamBody)? {
                return Poll::Ready(Ok(event));
            }
            match self.conn.poll_fill(cx) {
                Poll::Pending => {
                    self.conn.settle();
                    if timed && self.shared.read_by.get().is_none() {
                        self.shared.read_by.set(after(self.shared.limits.stall));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => match self.decoder.end() {
                    Ok(_) => return Poll::Ready(Ok(Event::End)),
                    Err(_) => return Poll::Ready(Err(Error::DownstreamGone)),
                },
                Poll::Ready(Ok(_)) => self.shared.read_by.set(None),
                Poll::Ready(Err(cause)) => return Poll::Ready(Err(Error::DownstreamIo(cause))),
            }
        }
    }

    /// Watches for the end of the connection; early bytes of a next request wait, bounded.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.conn.input.len() < self.shared.limits.early {
            match ready!(self.conn.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => self.conn.settle(),
            }
        }
        Poll::Pending
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let before = self.conn.written;
        let room = self.conn.poll_room(cx, self.shared.limits.output);
        self.watch_write(before, room)
    }

    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let before = self.conn.written;
        let pushed = self.conn.poll_push(cx);
        self.watch_write(before, pushed)
    }

    pub(super) fn put_interim(&mut self, head: ResponseHead) -> Result<(), Error> {
        if self.header().version != Version::HTTP_11 {
            return Ok(());
        }
        self.write_head(head)
    }

    /// Queues the final head; true when nothing follows it.
    pub(super) fn put_head(
        &mut self,
        mut head: ResponseHead,
        body: Body,
        none: bool,
        unsure: bool,
    ) -> Result<bool, Error> {
        self.encoder = match body {
            Body::None => Encoder::Empty,
            Body::Length(length) => Encoder::Length(length),
            Body::Unknown if self.header().version == Version::HTTP_11 => {
                head.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
                Encoder::Chunked
            }
            Body::Unknown => {
                self.keep = false;
                Encoder::Close
            }
        };
        self.keep &= !unsure && !self.shared.drain.is_cancelled();
        if !self.keep {
            self.session.set_server_keepalive(None);
        }
        self.write_head(head)?;
        Ok(none || body == Body::None)
    }

    /// Queues a 101 and lets both directions pass raw.
    pub(super) fn put_upgrade(&mut self, mut head: ResponseHead) -> Result<(), Error> {
        head.strip_hop();
        head.insert(CONNECTION, HeaderValue::from_static("upgrade"))?;
        if let Some(token) = self.facts.upgrade.clone() {
            head.insert(UPGRADE, token)?;
        }
        self.keep = false;
        self.decoder = Decoder::Close;
        self.encoder = Encoder::Close;
        debug_assert_eq!(head.status, StatusCode::SWITCHING_PROTOCOLS);
        self.write_head(head)
    }

    pub(super) fn put_data(&mut self, piece: Bytes) -> Result<(), Error> {
        match self.encoder.data(&mut self.conn, piece) {
            true => Ok(()),
            false => Err(Error::Order("as long as announced")),
        }
    }

    pub(super) fn put_end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Error> {
        match self.encoder.end(&mut self.conn, trailers) {
            true => Ok(()),
            false => {
                self.keep = false;
                Err(Error::Order("shorter than announced"))
            }
        }
    }

    /// Closes our direction of an upgraded connection.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.conn.poll_close(cx).map_err(Error::DownstreamIo)
    }

    fn write_head(&mut self, mut head: ResponseHead) -> Result<(), Error> {
        head.head.set_version(Version::HTTP_11);
        match self.session.write_response_header(head.head).now_or_never() {
            Some(Ok(())) => {
                self.conn.put_head(self.shared.pipe.take());
                Ok(())
            }
            Some(Err(_)) | None => Err(Error::Head("response")),
        }
    }

    fn watch_write(
        &self,
        before: u64,
        result: Poll<std::io::Result<()>>,
    ) -> Poll<Result<(), Error>> {
        let by = &self.shared.write_by;
        if result.is_ready() {
            by.set(None);
        } else if self.conn.written != before || by.get().is_none() {
            by.set(after(self.shared.limits.stall));
        }
        result.map_err(Error::DownstreamIo)
    }
}

impl std::fmt::Debug for Http1 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Http1")
            .field("facts", &self.facts)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

fn session(shared: &Shared) -> HttpSession {
    let mut session = HttpSession::new(shared.pipe.stream());
    session.set_read_timeout(None);
    session.set_close_on_response_before_downstream_finish(false);
    session
}

/// A moment `time` from now; zero is never.
pub(in crate::http) fn after(time: Duration) -> Option<Instant> {
    (!time.is_zero()).then(|| Instant::now() + time)
}
