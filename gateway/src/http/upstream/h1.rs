// SPDX-License-Identifier: Apache-2.0

//! One HTTP/1 request to a backend: Pingora's session for its heads, our framing for its bodies.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Version};
use pingora_core::protocols::http::v1::client::{HttpSession, http_req_header_to_wire};
use pingora_http::RequestHeader;
use tokio::time::Instant;

use super::{Event, response_body};
use crate::http::conn::Conn;
use crate::http::framing::{BadBody, Decoder, Encoder};
use crate::http::head::has_token;
use crate::http::pipe::Pipe;
use crate::http::pool::Home;
use crate::http::{Body, ByteStream, Error, Limits, RequestHead, ResponseHead};

/// An HTTP/1 connection to a backend and the request on it; one value for all its requests.
pub(in crate::http) struct Http1 {
    pub(super) body: Body,
    conn: Conn,
    pipe: Pipe,
    session: HttpSession,
    limits: Arc<Limits>,
    home: Home,
    method: Method,
    upgrade: Option<HeaderValue>,
    encoder: Encoder,
    decoder: Decoder,
    answered: bool,
    keep: bool,
}

impl Http1 {
    pub(in crate::http) fn new(io: Box<dyn ByteStream>, limits: Arc<Limits>, home: Home) -> Self {
        let pipe = Pipe::default();
        let mut session = HttpSession::new(pipe.stream());
        // Told once of a request whose response has no body, the session takes no buffer of
        // 64 KiB for a body that is never read through it, and one session parses the heads of
        // all responses.
        let mut told = RequestHeader::from(http::Request::new(()).into_parts().0);
        told.set_method(Method::HEAD);
        let _told = session.write_request_header(Box::new(told)).now_or_never();
        drop(pipe.take());
        Self {
            body: Body::None,
            conn: Conn::new(io),
            pipe,
            session,
            limits,
            home,
            method: Method::GET,
            upgrade: None,
            encoder: Encoder::Done,
            decoder: Decoder::Done,
            answered: false,
            keep: false,
        }
    }

    /// Tells whether an unused connection is still sound.
    pub(in crate::http) fn is_quiet(&mut self) -> bool {
        self.conn.is_quiet()
    }

    /// When the connection was made.
    pub(in crate::http) fn made(&self) -> Instant {
        self.home.made
    }

    pub(super) fn put_head(&mut self, head: RequestHead, body: Body) -> Result<(), Error> {
        self.method = head.method.clone();
        self.upgrade = head.upgrade.clone();
        self.answered = false;
        self.keep = false;
        self.encoder = match body {
            Body::None => Encoder::Empty,
            Body::Length(length) => Encoder::Length(length),
            Body::Unknown => Encoder::Chunked,
        };
        let head = head.into_h1(body)?;
        let wire = http_req_header_to_wire(&head).ok_or(Error::Head("request"))?;
        self.conn.put_head(wire);
        Ok(())
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.conn.poll_room(cx, self.limits.output).map_err(Error::UpstreamIo)
    }

    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.conn.poll_push(cx).map_err(Error::UpstreamIo)
    }

    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.conn.poll_close(cx).map_err(Error::UpstreamIo)
    }

    pub(super) fn put_data(&mut self, piece: Bytes) -> Result<(), Error> {
        match self.encoder.data(&mut self.conn, piece) {
            true => Ok(()),
            false => Err(Error::DownstreamBody(BadBody::Short)),
        }
    }

    pub(super) fn put_end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Error> {
        match self.encoder.end(&mut self.conn, trailers) {
            true => Ok(()),
            false => Err(Error::DownstreamBody(BadBody::Short)),
        }
    }

    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        reused: bool,
    ) -> Poll<Result<ResponseHead, Error>> {
        let mut seen = 0;
        let raw = loop {
            if let Some(end) = head_end(&self.conn.input, seen) {
                if end > self.limits.head_bytes {
                    return Poll::Ready(Err(Error::UpstreamHeadTooLarge));
                }
                break self.conn.input.split_to(end);
            }
            seen = self.conn.input.len();
            if seen > self.limits.head_bytes {
                return Poll::Ready(Err(Error::UpstreamHeadTooLarge));
            }
            match self.conn.poll_fill(cx) {
                Poll::Pending => {
                    self.conn.settle();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) if seen == 0 && !self.answered => {
                    return Poll::Ready(Err(Error::UpstreamClosed { reused }));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Error::UpstreamHead("cut off"))),
                Poll::Ready(Ok(_)) => {}
                // A reset in place of a FIN says the same of a connection that was idle.
                Poll::Ready(Err(_)) if seen == 0 && !self.answered && reused => {
                    return Poll::Ready(Err(Error::UpstreamClosed { reused }));
                }
                Poll::Ready(Err(cause)) => return Poll::Ready(Err(Error::UpstreamIo(cause))),
            }
        };
        self.answered = true;
        Poll::Ready(self.parse(raw))
    }

    /// Has the session parse one head, and takes from it what frames the body.
    fn parse(&mut self, raw: BytesMut) -> Result<ResponseHead, Error> {
        self.pipe.give(raw);
        let Some(Ok(_)) = self.session.read_response().now_or_never() else {
            return Err(Error::UpstreamHead("not HTTP"));
        };
        let head = self.session.resp_header().ok_or(Error::UpstreamHead("none"))?;
        if head.headers.len() > self.limits.headers {
            return Err(Error::UpstreamHeadTooLarge);
        }
        // Without the spelling of names: a second map to copy and keep, for no meaning.
        let head = ResponseHead { head: Box::new(head.as_owned_parts().into()) };
        if head.status.is_informational() {
            return Ok(head);
        }
        let chunked = is_chunked(&head)?;
        self.body = response_body(&self.method, &head, chunked)?;
        self.decoder = match self.body {
            Body::None => Decoder::Done,
            Body::Length(length) => Decoder::Length(length),
            Body::Unknown if chunked => Decoder::CHUNKED,
            Body::Unknown => Decoder::Close,
        };
        self.keep = keeps_alive(&head) && self.decoder != Decoder::Close;
        Ok(head)
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        loop {
            let bound = self.limits.trailer_bytes;
            let event = Event::of_h1(&mut self.decoder, &mut self.conn.input, bound);
            if let Some(event) = event.map_err(Error::UpstreamBody)? {
                return Poll::Ready(Ok(event));
            }
            match ready!(self.conn.poll_fill(cx)) {
                Ok(0) => {
                    self.decoder.end().map_err(Error::UpstreamBody)?;
                    return Poll::Ready(Ok(Event::End));
                }
                Ok(_) => {}
                Err(cause) => return Poll::Ready(Err(Error::UpstreamIo(cause))),
            }
        }
    }

    /// True if the backend switched to what was asked for.
    pub(super) fn upgrade_now(&mut self) -> bool {
        let Some(head) = self.session.resp_header() else { return false };
        let same = |asked: &HeaderValue| {
            head.headers
                .get(UPGRADE)
                .is_some_and(|given| given.as_bytes().eq_ignore_ascii_case(asked.as_bytes()))
        };
        if !self.upgrade.as_ref().is_some_and(same) {
            return false;
        }
        self.keep = false;
        self.decoder = Decoder::Close;
        self.encoder = Encoder::Close;
        true
    }

    /// Gives the connection back if both messages went over it whole, and nothing else did.
    pub(super) fn finish(self: Box<Self>) {
        let sent = self.encoder == Encoder::Done && self.conn.pending() == 0;
        let read = self.decoder.is_done() && self.conn.input.is_empty() && !self.conn.eof;
        if self.keep && sent && read {
            Home::put_back(self);
        }
    }

    /// Where it goes back to.
    pub(in crate::http) fn home(&self) -> &Home {
        &self.home
    }
}

impl std::fmt::Debug for Http1 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Http1")
            .field("body", &self.body)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

/// Where the first head of `input` ends, if all of it is there; `seen` bytes were looked at.
///
/// The same rule as the parser of the session: a line ends in LF, with or without CR, a head
/// in an empty line, and empty lines before it are skipped.
pub(in crate::http) fn head_end(input: &[u8], seen: usize) -> Option<usize> {
    let start = input.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    // An end that began in the bytes seen before lies at most three bytes back.
    let from = start.max(seen.saturating_sub(3));
    let mut at = from;
    loop {
        let rest = input.get(at..)?;
        at += rest.iter().position(|byte| *byte == b'\n')? + 1;
        match input.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
}

/// True for exactly one `chunked`; any other coding cannot be passed on.
fn is_chunked(head: &ResponseHead) -> Result<bool, Error> {
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(only), None) if only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            Ok(true)
        }
        (Some(_), _) => Err(Error::UpstreamHead("transfer coding")),
    }
}

fn keeps_alive(head: &ResponseHead) -> bool {
    let says = |word| head.headers.get_all(CONNECTION).iter().any(|value| has_token(value, word));
    match head.version {
        Version::HTTP_11 => !says("close"),
        _ => says("keep-alive") && !says("close"),
    }
}
