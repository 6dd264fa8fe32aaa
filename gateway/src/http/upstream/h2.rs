// SPDX-License-Identifier: Apache-2.0

//! One HTTP/2 request to a backend: a stream of Pingora's session.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::h2::{Reason, SendStream};
use bytes::Bytes;
use http::{HeaderMap, Method};
use pingora_core::protocols::http::v2::client::Http2Session;

use super::{Event, response_body};
use crate::http::downstream::h2::poll_capacity;
use crate::http::framing::BadBody;
use crate::http::{Body, Error, Limits, RequestHead, ResponseHead};

/// One request on an HTTP/2 connection to a backend.
pub(in crate::http) struct Http2 {
    pub(super) body: Body,
    session: Box<Http2Session>,
    limits: Arc<Limits>,
    send: Option<SendStream<Bytes>>,
    method: Method,
    data_done: bool,
    read: u64,
}

impl Http2 {
    pub(in crate::http) fn new(session: Http2Session, limits: Arc<Limits>) -> Self {
        Self {
            body: Body::None,
            session: Box::new(session),
            limits,
            send: None,
            method: Method::GET,
            data_done: false,
            read: 0,
        }
    }

    pub(super) fn put_head(&mut self, head: RequestHead, body: Body) -> Result<(), Error> {
        self.method = head.method.clone();
        let end = body == Body::None;
        let head = head.into_h2(body)?;
        // The connection may have begun to close since it was chosen.
        self.session.write_request_header(head, end).map_err(|_| Error::UpstreamRefused)?;
        self.send = self.session.take_request_body_writer().filter(|_| !end);
        Ok(())
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.send {
            Some(send) => poll_capacity(send, cx).map_err(|cause| match cause {
                Some(cause) => reset(cause),
                None => Error::UpstreamReset("stream is closed".into()),
            }),
            None => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn put_data(&mut self, piece: Bytes, last: bool) -> Result<(), Error> {
        let Some(send) = &mut self.send else { return Ok(()) };
        let sent = send.send_data(piece, last).map_err(reset);
        if last {
            self.send = None;
        }
        sent
    }

    pub(super) fn put_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        let Some(mut send) = self.send.take() else { return Ok(()) };
        let sent = match trailers {
            Some(trailers) => send.send_trailers(trailers),
            None => send.send_data(Bytes::new(), true),
        };
        sent.map_err(reset)
    }

    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        ready!(self.session.poll_read_response_header(cx)).map_err(reset)?;
        let head = self.session.response_header().ok_or(Error::UpstreamHead("none"))?;
        if head.headers.len() > self.limits.headers {
            return Poll::Ready(Err(Error::UpstreamHeadTooLarge));
        }
        let head = ResponseHead { head: Box::new(head.clone()) };
        self.body = response_body(&self.method, &head, false)?;
        if self.body == Body::Unknown {
            // The end of the stream and its failure look alike until asked.
            let ended = self.session.check_response_end_or_error();
            if ended.map_err(|_| Error::UpstreamBody(BadBody::Stream))? {
                self.body = Body::None;
            }
        }
        Poll::Ready(Ok(head))
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        while !self.data_done {
            match ready!(self.session.poll_read_response_body(cx)) {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    self.read += piece.len() as u64;
                    return Poll::Ready(Ok(Event::Data { piece, last: false }));
                }
                Some(Err(_)) => return Poll::Ready(Err(Error::UpstreamBody(BadBody::Stream))),
                None => self.data_done = true,
            }
        }
        // Each poll makes the future anew: its state is in the stream.
        let trailers = ready!(pin!(self.session.read_trailers()).poll(cx));
        let trailers = trailers.map_err(|_| Error::UpstreamBody(BadBody::Stream))?;
        if matches!(self.body, Body::Length(length) if length != self.read) {
            return Poll::Ready(Err(Error::UpstreamBody(BadBody::Short)));
        }
        Poll::Ready(Ok(trailers.map_or(Event::End, Event::Trailers)))
    }
}

impl std::fmt::Debug for Http2 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Http2").field("body", &self.body).finish_non_exhaustive()
    }
}

/// What a failed stream says about the request on it.
///
/// Rule: RFC 9113 §6.8, §8.7: above the last id of a GOAWAY, and refused, nothing was processed.
fn reset(cause: ::h2::Error) -> Error {
    let unprocessed = cause.is_remote()
        && (cause.reason() == Some(Reason::REFUSED_STREAM)
            || (cause.is_go_away() && cause.reason() == Some(Reason::NO_ERROR)));
    if unprocessed {
        return Error::UpstreamRefused;
    }
    if cause.is_io() {
        return match cause.into_io() {
            Some(cause) => Error::UpstreamIo(cause),
            None => Error::UpstreamClosed { reused: false },
        };
    }
    Error::UpstreamReset(cause.into())
}
