// SPDX-License-Identifier: Apache-2.0

//! One request to a backend, over HTTP/1 or HTTP/2 alike.
//!
//! [`Upstream`] is a free place on a pooled connection: head, body and trailers go in, the
//! response comes out, and once it was read to its end the place goes back to the pool by
//! itself. Dropped before that, an HTTP/1 connection is closed and an HTTP/2 stream is reset.

pub(super) mod h1;
pub(super) mod h2;

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::downstream::Event;
use super::{Body, Error, Protocol, RequestHead, ResponseHead, head};

/// One request to a backend, until its response is complete.
#[derive(Debug)]
pub struct Upstream {
    kind: Kind,
    reused: bool,
}

#[derive(Debug)]
enum Kind {
    Http1(Box<h1::Http1>),
    Http2(Box<h2::Http2>),
}

impl Upstream {
    pub(super) fn http1(request: Box<h1::Http1>, reused: bool) -> Self {
        Self { kind: Kind::Http1(request), reused }
    }

    pub(super) fn http2(request: h2::Http2, reused: bool) -> Self {
        Self { kind: Kind::Http2(Box::new(request)), reused }
    }

    /// The connection had served requests before this one.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// What is spoken on the connection.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.kind {
            Kind::Http1(_) => Protocol::Http1,
            Kind::Http2(_) => Protocol::Http2,
        }
    }

    /// Sends the head; `body` is what will follow.
    pub(super) fn put_head(&mut self, head: RequestHead, body: Body) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Http1(request) => request.put_head(head, body),
            Kind::Http2(request) => request.put_head(head, body),
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

    pub(super) fn put_data(&mut self, piece: Bytes, last: bool) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Http1(request) => request.put_data(piece),
            Kind::Http2(request) => request.put_data(piece, last),
        }
    }

    pub(super) fn put_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        let trailers = trailers.map(head::clean_trailers).filter(|trailers| !trailers.is_empty());
        match &mut self.kind {
            Kind::Http1(request) => request.put_end(trailers.as_ref()),
            Kind::Http2(request) => request.put_end(trailers),
        }
    }

    /// The next head: any number of interim ones, then the final one.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        match &mut self.kind {
            Kind::Http1(request) => request.poll_head(cx, self.reused),
            Kind::Http2(request) => request.poll_head(cx),
        }
    }

    /// What the framing of the response says about its body; after the final head.
    pub(super) fn body(&self) -> Body {
        match &self.kind {
            Kind::Http1(request) => request.body,
            Kind::Http2(request) => request.body,
        }
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        match &mut self.kind {
            Kind::Http1(request) => request.poll_event(cx),
            Kind::Http2(request) => request.poll_event(cx),
        }
    }

    /// The response was read to its end: back to the pool, if the connection is still sound.
    pub(super) fn finish(self) {
        if let Kind::Http1(request) = self.kind {
            request.finish();
        }
    }

    /// Switches both directions to raw bytes after a 101; false if that cannot be.
    pub(super) fn upgrade_now(&mut self) -> bool {
        match &mut self.kind {
            Kind::Http1(request) => request.upgrade_now(),
            Kind::Http2(_) => false,
        }
    }

    /// Closes our direction of an upgraded connection.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.kind {
            Kind::Http1(request) => request.poll_close(cx),
            Kind::Http2(_) => Poll::Ready(Ok(())),
        }
    }
}

/// What a response to `method` says about its body.
pub(super) fn response_body(
    method: &Method,
    head: &http::response::Parts,
    chunked: bool,
) -> Result<Body, Error> {
    const BAD: Error = Error::UpstreamHead("Content-Length");
    if super::downstream::has_no_body(method, head.status) {
        return Ok(Body::None);
    }
    if chunked {
        return Ok(Body::Unknown);
    }
    let mut agreed = None;
    for value in head.headers.get_all(http::header::CONTENT_LENGTH) {
        for part in value.to_str().map_err(|_| BAD)?.split(',') {
            let digits = part.trim_matches([' ', '\t']);
            let digital = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let length: u64 = digits.parse().ok().filter(|_| digital).ok_or(BAD)?;
            if agreed.is_some_and(|other| other != length) {
                return Err(BAD);
            }
            agreed = Some(length);
        }
    }
    Ok(match agreed {
        Some(0) => Body::None,
        Some(length) => Body::Length(length),
        None => Body::Unknown,
    })
}
