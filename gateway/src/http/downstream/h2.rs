// SPDX-License-Identifier: Apache-2.0

//! One HTTP/2 request: a stream of `h2::server`.

use std::task::{Context, Poll, ready};

use ::h2::server::SendResponse;
use ::h2::{Reason, RecvStream, SendStream};
use bytes::Bytes;
use http::HeaderMap;
use pingora_http::RequestHeader;

use super::{Event, Facts};
use crate::http::{Body, Error, ResponseHead};

/// One request on an HTTP/2 connection.
pub(in crate::http) struct Http2 {
    pub(super) head: Box<RequestHeader>,
    pub(super) facts: Facts,
    body: RecvStream,
    data_done: bool,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
}

impl Http2 {
    pub(in crate::http) fn new(
        head: Box<RequestHeader>,
        facts: Facts,
        body: RecvStream,
        respond: SendResponse<Bytes>,
    ) -> Self {
        Self { head, facts, body, data_done: false, respond, send: None }
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        while !self.data_done {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(piece)) => {
                    let released = self.body.flow_control().release_capacity(piece.len());
                    released.map_err(|_| Error::DownstreamGone)?;
                    if !piece.is_empty() {
                        return Poll::Ready(Ok(Event::Data { piece, last: false }));
                    }
                }
                Some(Err(_)) => return Poll::Ready(Err(Error::DownstreamGone)),
                None => self.data_done = true,
            }
        }
        match ready!(self.body.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Ok(Event::Trailers(trailers))),
            Ok(None) => Poll::Ready(Ok(Event::End)),
            Err(_) => Poll::Ready(Err(Error::DownstreamGone)),
        }
    }

    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|_| ())
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.send {
            Some(send) => {
                poll_capacity(send, cx).map(|room| room.map_err(|_| Error::DownstreamGone))
            }
            None => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn put_interim(&mut self, head: ResponseHead) -> Result<(), Error> {
        let response = http::Response::from_parts((*head.head).into(), ());
        self.respond.send_informational(response).map_err(|_| Error::DownstreamGone)
    }

    /// Sends the final head; true when nothing follows it.
    pub(super) fn put_head(&mut self, head: ResponseHead, body: Body) -> Result<bool, Error> {
        let end = body == Body::None;
        let response = http::Response::from_parts((*head.head).into(), ());
        let send =
            self.respond.send_response(response, end).map_err(|cause| match cause.is_reset() {
                true => Error::DownstreamGone,
                false => Error::Head("response"),
            })?;
        self.send = Some(send);
        Ok(end)
    }

    pub(super) fn put_data(&mut self, piece: Bytes, last: bool) -> Result<(), Error> {
        let send = self.send.as_mut().ok_or(Error::Order("not begun"))?;
        send.send_data(piece, last).map_err(|_| Error::DownstreamGone)
    }

    pub(super) fn put_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        let send = self.send.as_mut().ok_or(Error::Order("not begun"))?;
        let sent = match trailers {
            Some(trailers) => send.send_trailers(trailers),
            None => send.send_data(Bytes::new(), true),
        };
        sent.map_err(|_| Error::DownstreamGone)
    }

    /// Ends the stream without a whole response.
    pub(super) fn reset(&mut self) {
        match &mut self.send {
            Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

impl std::fmt::Debug for Http2 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Http2").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// Ready when the stream may take a piece: what was put before is sent, and the window is open.
///
/// Only one byte is reserved: a stream that waits for its own source must not hold the
/// connection's window. The piece is then put whole, so at most one waits in h2.
pub(in crate::http) fn poll_capacity(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Option<::h2::Error>>> {
    send.reserve_capacity(1);
    while send.capacity() == 0 {
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(cause)) => return Poll::Ready(Err(Some(cause))),
            None => return Poll::Ready(Err(None)),
        }
    }
    Poll::Ready(Ok(()))
}
