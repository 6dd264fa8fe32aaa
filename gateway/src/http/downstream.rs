// SPDX-License-Identifier: Apache-2.0

//! One request from a client, over HTTP/1 or HTTP/2 alike.
//!
//! [`Downstream`] shows the checked head, gives the body in pieces and takes the response.
//! Reading and writing are polled, and what is put never waits: `carry` asks for room first.
//! The connection around it (idle time, next request, drain) is `serve`.

pub(super) mod h1;
pub(super) mod h2;

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora_http::RequestHeader;

use super::framing::{BadBody, Decoder, Step};
use super::head::check::Facts;
use super::{Body, Error, RequestHead, ResponseHead, head};

/// The next thing of a message.
#[derive(Debug)]
pub(super) enum Event {
    /// A piece of the body; nothing follows the last one, trailers neither.
    Data { piece: Bytes, last: bool },
    /// The end of the body, with trailers.
    Trailers(HeaderMap),
    /// The end of the body.
    End,
}

impl Event {
    /// What `decoder` makes of `input`; none if more bytes are wanted.
    pub(super) fn of_h1(
        decoder: &mut Decoder,
        input: &mut BytesMut,
        trailer_bytes: usize,
    ) -> Result<Option<Self>, BadBody> {
        Ok(Some(match decoder.step(input, trailer_bytes)? {
            Step::Data(piece) => {
                let last = *decoder == Decoder::Length(0);
                if last {
                    *decoder = Decoder::Done;
                }
                Self::Data { piece, last }
            }
            Step::Trailers(trailers) => Self::Trailers(trailers),
            Step::End => Self::End,
            Step::More => return Ok(None),
        }))
    }
}

/// One request of a client, until its response is complete.
#[derive(Debug)]
pub struct Downstream {
    kind: Kind,
    secure: bool,
    /// The body was read to its end.
    body_read: bool,
    /// An interim 100 went out.
    continued: bool,
    stage: Stage,
    /// Fields that were set here: a client cannot have them end at this hop.
    told: Vec<HeaderName>,
}

#[derive(Debug)]
enum Kind {
    Http1(Box<h1::Http1>),
    Http2(Box<h2::Http2>),
}

/// How far the response is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Stage {
    Waiting,
    Head,
    Ended,
}

impl Downstream {
    pub(super) fn http1(request: Box<h1::Http1>, secure: bool) -> Self {
        Self::new(Kind::Http1(request), secure)
    }

    pub(super) fn http2(request: h2::Http2, secure: bool) -> Self {
        Self::new(Kind::Http2(Box::new(request)), secure)
    }

    fn new(kind: Kind, secure: bool) -> Self {
        let body_read = match &kind {
            Kind::Http1(request) => request.facts.body == Body::None,
            Kind::Http2(request) => request.facts.body == Body::None,
        };
        let stage = Stage::Waiting;
        Self { kind, secure, body_read, continued: false, stage, told: Vec::new() }
    }

    /// The checked head: target in origin form without dot segments, exactly one `Host` (from
    /// `:authority` in HTTP/2); fields of this hop are still there.
    #[must_use]
    pub fn head(&self) -> &http::request::Parts {
        self.header()
    }

    /// Removes all fields of that name from the head; `Host` stays.
    pub fn remove_header(&mut self, name: &HeaderName) {
        if name != HOST {
            self.header_mut().remove_header(name);
        }
    }

    /// Sets a field of the head for the backend, replacing all of its name.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when there are too many fields.
    pub fn insert_header(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
        self.told.push(name.clone());
        let set = self.header_mut().insert_header(name, value);
        set.map_err(|_| Error::Head("too many fields"))
    }

    /// Adds a field to the head.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when there are too many fields.
    pub fn append_header(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
        match self.header_mut().append_header(name, value) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Head("too many fields")),
        }
    }

    /// Changes path and query of the head.
    pub fn set_target(&mut self, target: PathAndQuery) {
        self.header_mut().set_uri(target.into());
    }

    /// What the framing says about the body.
    #[must_use]
    pub fn body(&self) -> Body {
        self.facts().body
    }

    /// The protocol that an HTTP/1.1 client asks to upgrade to, as it wrote it.
    #[must_use]
    pub fn upgrade(&self) -> Option<&str> {
        self.facts().upgrade.as_ref().and_then(|token| token.to_str().ok())
    }

    /// The client waits for 100 before it sends the body.
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.facts().expects_continue && !self.continued && !self.body_read
    }

    /// The final response head went out, so nobody else can answer any more.
    #[must_use]
    pub fn started(&self) -> bool {
        self.stage != Stage::Waiting
    }

    /// The response went out to its end.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// A copy of the head for a backend: without the fields of this hop, to be edited.
    #[must_use]
    pub fn request_head(&self) -> RequestHead {
        let upgrade = self.facts().upgrade.clone();
        head::for_backend(self.header(), upgrade, self.secure, &self.told)
    }

    /// Answers with `body` and ends the response.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] when a response was begun before; else the client is gone.
    pub async fn reply(&mut self, head: ResponseHead, body: Bytes) -> Result<(), Error> {
        let framing = match body.len() {
            0 => Body::None,
            length => Body::Length(length as u64),
        };
        self.put_head(head, framing)?;
        if self.stage == Stage::Head {
            if !body.is_empty() {
                self.put_data(body, true)?;
            }
            self.put_end(None)?;
        }
        poll_fn(|cx| self.poll_push(cx)).await
    }

    /// Lets the client send its body, once, if it waits for that.
    ///
    /// # Errors
    ///
    /// See [`Error`]; the client is gone.
    pub async fn send_continue(&mut self) -> Result<(), Error> {
        if self.expects_continue() {
            self.put_interim(ResponseHead::new(StatusCode::CONTINUE))?;
        }
        poll_fn(|cx| self.poll_push(cx)).await
    }

    /// Resolves when the client has left; for `select!` beside work on its behalf.
    ///
    /// Meaningful once the body is read or while it is not wanted; takes no byte of it.
    pub async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        if self.body_read {
            return Poll::Ready(Ok(Event::End));
        }
        let event = match &mut self.kind {
            Kind::Http1(request) => request.poll_event(cx, self.stage == Stage::Waiting),
            Kind::Http2(request) => request.poll_event(cx),
        };
        self.body_read = matches!(
            event,
            Poll::Ready(Ok(Event::End | Event::Trailers(_) | Event::Data { last: true, .. }))
        );
        event
    }

    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            Kind::Http1(request) => request.poll_gone(cx),
            Kind::Http2(request) => request.poll_gone(cx),
        }
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.kind {
            Kind::Http1(request) => request.poll_room(cx),
            Kind::Http2(request) => request.poll_room(cx),
        }
    }

    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.kind {
            Kind::Http1(request) => request.poll_push(cx),
            Kind::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Sends a 1xx other than 101; dropped for HTTP/1.0 clients, and after the final head.
    pub(super) fn put_interim(&mut self, mut head: ResponseHead) -> Result<(), Error> {
        if self.started() {
            return Ok(());
        }
        head.strip_hop();
        self.continued |= head.status == StatusCode::CONTINUE;
        match &mut self.kind {
            Kind::Http1(request) => request.put_interim(head),
            Kind::Http2(request) => request.put_interim(head),
        }
    }

    /// Sends the final head; `body` is what will follow, and is ignored where nothing may.
    pub(super) fn put_head(&mut self, mut head: ResponseHead, body: Body) -> Result<(), Error> {
        if self.started() {
            return Err(Error::Order("begun"));
        }
        let none = has_no_body(&self.head().method, head.status);
        let body = if none { Body::None } else { body };
        head.strip_hop();
        frame(&mut head, body, none)?;
        self.stage = Stage::Head;
        // A client that waits for a 100 it never got may or may not send its body.
        let unsure = self.expects_continue();
        let ended = match &mut self.kind {
            Kind::Http1(request) => request.put_head(head, body, none, unsure)?,
            Kind::Http2(request) => request.put_head(head, body)?,
        };
        if ended {
            self.stage = Stage::Ended;
        }
        Ok(())
    }

    pub(super) fn put_data(&mut self, piece: Bytes, last: bool) -> Result<(), Error> {
        match (self.stage, &mut self.kind) {
            (Stage::Ended, _) => Ok(()),
            (Stage::Waiting, _) => Err(Error::Order("not begun")),
            (Stage::Head, Kind::Http1(request)) => request.put_data(piece),
            (Stage::Head, Kind::Http2(request)) => {
                request.put_data(piece, last)?;
                if last {
                    self.stage = Stage::Ended;
                }
                Ok(())
            }
        }
    }

    pub(super) fn put_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        if self.stage == Stage::Ended {
            return Ok(());
        }
        let trailers = trailers.map(head::clean_trailers).filter(|trailers| !trailers.is_empty());
        self.stage = Stage::Ended;
        match &mut self.kind {
            Kind::Http1(request) => request.put_end(trailers.as_ref()),
            Kind::Http2(request) => request.put_end(trailers),
        }
    }

    /// Switches both directions to raw bytes after a 101; false if that cannot be.
    pub(super) fn upgrade_now(&mut self, head: ResponseHead) -> Result<bool, Error> {
        let Kind::Http1(request) = &mut self.kind else { return Ok(false) };
        if request.facts.upgrade.is_none() || self.stage != Stage::Waiting {
            return Ok(false);
        }
        request.put_upgrade(head)?;
        self.stage = Stage::Head;
        self.body_read = false;
        Ok(true)
    }

    /// Closes our direction of an upgraded connection.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.stage = Stage::Ended;
        match &mut self.kind {
            Kind::Http1(request) => request.poll_close(cx),
            Kind::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// The HTTP/1 connection, for its loop.
    pub(super) fn into_http1(self) -> Option<Box<h1::Http1>> {
        match self.kind {
            Kind::Http1(request) => Some(request),
            Kind::Http2(_) => None,
        }
    }

    /// Ends what the handler left open: HTTP/2 streams are reset, HTTP/1 is up to its loop.
    pub(super) fn abandon(&mut self) {
        if let (Kind::Http2(request), true) = (&mut self.kind, self.stage != Stage::Ended) {
            request.reset();
        }
    }

    fn header(&self) -> &RequestHeader {
        match &self.kind {
            Kind::Http1(request) => request.header(),
            Kind::Http2(request) => &request.head,
        }
    }

    fn header_mut(&mut self) -> &mut RequestHeader {
        match &mut self.kind {
            Kind::Http1(request) => request.header_mut(),
            Kind::Http2(request) => &mut request.head,
        }
    }

    fn facts(&self) -> &Facts {
        match &self.kind {
            Kind::Http1(request) => &request.facts,
            Kind::Http2(request) => &request.facts,
        }
    }
}

/// Responses that never have a body.
///
/// Rule: RFC 9110 §6.4.1.
pub(super) fn has_no_body(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational()
}

/// Makes `Content-Length` say what follows; a length without a body stays for HEAD and 304.
fn frame(head: &mut ResponseHead, body: Body, none: bool) -> Result<(), Error> {
    head.remove(&TRANSFER_ENCODING);
    match body {
        Body::Length(length) => head.insert(CONTENT_LENGTH, length.into())?,
        Body::Unknown => head.remove(&CONTENT_LENGTH),
        Body::None if head.status == StatusCode::NO_CONTENT => head.remove(&CONTENT_LENGTH),
        Body::None if none => {}
        Body::None => head.insert(CONTENT_LENGTH, 0_u64.into())?,
    }
    Ok(())
}
