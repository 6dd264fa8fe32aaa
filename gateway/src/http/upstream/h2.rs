// SPDX-License-Identifier: Apache-2.0

//! One HTTP/2 request to a backend: a place on Pingora's connection, and a stream of h2.
//!
//! Pingora's session counts the streams of the connection and sees to its end. It drops interim
//! responses, so the stream itself is ours: request and response go by h2's own handles.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::h2::client::{ResponseFuture, SendRequest};
use ::h2::{Reason, RecvStream, SendStream};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_http::ResponseHeader;

use super::{Event, response_body};
use crate::http::downstream::h2::poll_capacity;
use crate::http::framing::BadBody;
use crate::http::{Body, Error, Limits, RequestHead, ResponseHead};

/// One request on an HTTP/2 connection to a backend.
pub(in crate::http) struct Http2 {
    pub(super) body: Body,
    /// Holds the place on the connection; given back when dropped.
    _place: Box<Http2Session>,
    requests: SendRequest<Bytes>,
    limits: Arc<Limits>,
    send: Option<SendStream<Bytes>>,
    /// The heads that are to come.
    heads: Option<ResponseFuture>,
    receive: Option<RecvStream>,
    method: Method,
    data_done: bool,
    read: u64,
}

impl Http2 {
    /// On the place that `session` holds, by a handle to the same connection.
    pub(in crate::http) fn new(
        session: Http2Session,
        requests: SendRequest<Bytes>,
        limits: Arc<Limits>,
    ) -> Self {
        Self {
            body: Body::None,
            _place: Box::new(session),
            requests,
            limits,
            send: None,
            heads: None,
            receive: None,
            method: Method::GET,
            data_done: false,
            read: 0,
        }
    }

    pub(super) fn put_head(&mut self, head: RequestHead, body: Body) -> Result<(), Error> {
        self.method = head.method.clone();
        let end = body == Body::None;
        let request = Request::from_parts((*head.into_h2(body)?).into(), ());
        // The connection may have begun to close since it was chosen.
        let sent = self.requests.send_request(request, end).map_err(|_| Error::UpstreamRefused)?;
        let (heads, send) = sent;
        self.heads = Some(heads);
        self.send = (!end).then_some(send);
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
        let heads = self.heads.as_mut().ok_or(Error::Order("no head is to come"))?;
        // Interim ones first: the future of the final one passes over them.
        if let Poll::Ready(Some(interim)) = heads.poll_informational(cx) {
            let (parts, ()) = interim.map_err(reset)?.into_parts();
            return Poll::Ready(self.head(parts));
        }
        let response = ready!(Pin::new(heads).poll(cx)).map_err(reset)?;
        self.heads = None;
        let (parts, mut receive) = response.into_parts();
        let head = self.head(parts)?;
        self.body = response_body(&self.method, &head, false)?;
        if self.body == Body::Unknown && receive.is_end_stream() {
            // The end of the stream and its failure look alike until asked.
            match receive.poll_data(cx) {
                Poll::Ready(None) => self.body = Body::None,
                Poll::Ready(Some(_)) => {
                    return Poll::Ready(Err(Error::UpstreamBody(BadBody::Stream)));
                }
                Poll::Pending => {}
            }
        }
        self.receive = Some(receive);
        Poll::Ready(Ok(head))
    }

    fn head(&self, parts: http::response::Parts) -> Result<ResponseHead, Error> {
        if parts.headers.len() > self.limits.headers {
            return Err(Error::UpstreamHeadTooLarge);
        }
        // Rule: RFC 9113 §8.6.
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::UpstreamHead("101 over HTTP/2"));
        }
        Ok(ResponseHead { head: Box::new(ResponseHeader::from(parts)) })
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        const BAD: Error = Error::UpstreamBody(BadBody::Stream);
        let receive = self.receive.as_mut().ok_or(Error::Order("no head yet"))?;
        while !self.data_done {
            match ready!(receive.poll_data(cx)) {
                Some(Ok(piece)) => {
                    let released = receive.flow_control().release_capacity(piece.len());
                    released.map_err(|_| BAD)?;
                    if !piece.is_empty() {
                        self.read += piece.len() as u64;
                        return Poll::Ready(Ok(Event::Data { piece, last: false }));
                    }
                }
                Some(Err(_)) => return Poll::Ready(Err(BAD)),
                None => self.data_done = true,
            }
        }
        let trailers = match ready!(receive.poll_trailers(cx)) {
            Ok(trailers) => trailers,
            Err(cause) if is_graceful(&cause) => None,
            Err(_) => return Poll::Ready(Err(BAD)),
        };
        if matches!(self.body, Body::Length(length) if length != self.read) {
            return Poll::Ready(Err(Error::UpstreamBody(BadBody::Short)));
        }
        Poll::Ready(Ok(trailers.map_or(Event::End, Event::Trailers)))
    }
}

/// Tells whether a stream ended without trailers and without a fault.
///
/// Rule: RFC 9113 §8.1: after a whole response a server may reset with NO_ERROR, to stop the
/// request's body.
fn is_graceful(cause: &::h2::Error) -> bool {
    (cause.is_go_away() || cause.is_reset())
        && cause.is_remote()
        && cause.reason() == Some(Reason::NO_ERROR)
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
