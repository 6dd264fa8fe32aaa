// SPDX-License-Identifier: Apache-2.0

//! One exchange between a client and a backend: bodies both ways at once, over all tries.
//!
//! A [`Carry`] moves pieces only when the other side has room, so a slow reader slows its
//! writer and nobody holds more than a bounded buffer; both directions make progress in the
//! same poll, so neither can block the other. It keeps the first bytes of the request body for
//! a further try, copies pieces to mirrors that keep up, and passes interim responses on.
//!
//! ```text
//! head = carry.respond(down, up, request)   request out, body as it comes, until a final head
//!        (another try: respond() again with another upstream; the body so far is sent again)
//! carry.deliver(down, up, head)             edited head out, the rest of both bodies, trailers
//! ```
//!
//! Cancel safety: a dropped call leaves client and backend in the middle of a message; drop
//! the upstream with it, and the connection loop closes or resets the client's side.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::sync::mpsc;

use super::downstream::{Downstream, Event};
use super::{Body, Error, Limits, Protocol, RequestHead, ResponseHead, Upstream};

mod messages;
mod mirror;
mod raw;
mod replay;

use messages::Messages;
pub use mirror::{Piece, mirror};
use replay::Replay;

/// Interim responses of one try; more are a fault, or an attack on our memory.
const INTERIM: u8 = 16;

/// Bytes of bodies that went through.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Moved {
    /// From the client.
    pub request: u64,
    /// To the client.
    pub response: u64,
    /// Messages of a gRPC call from the client, and to it, if they are counted.
    pub messages: Option<(u64, u64)>,
}

/// The bodies of one exchange.
#[derive(Debug)]
pub struct Carry {
    replay: Replay,
    mirrors: Vec<mpsc::Sender<Piece>>,
    /// The request body as the client sent it is at its end.
    source: Source,
    /// The current try: how far its request is.
    sink: Sink,
    moved: Moved,
    /// Messages from the client, and to it, of a gRPC call.
    messages: Option<(Messages, Messages)>,
    grpc_status: Option<u16>,
    /// Interim responses of the current try.
    interim: u8,
}

#[derive(Debug)]
enum Source {
    Open,
    Ended(Option<HeaderMap>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sink {
    /// Takes pieces.
    Open,
    /// Has the end.
    Ended,
    /// Does not take more; its response may still come.
    Broken,
}

impl Carry {
    /// For one exchange.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            replay: Replay::new(limits.replay),
            mirrors: Vec::new(),
            source: Source::Open,
            sink: Sink::Open,
            moved: Moved::default(),
            messages: None,
            grpc_status: None,
            interim: 0,
        }
    }

    /// Copies the request body to `queue` too; a queue that is full is dropped, never waited for.
    pub fn mirror(&mut self, queue: mpsc::Sender<Piece>) {
        self.mirrors.push(queue);
    }

    /// Counts the messages of a gRPC call too.
    pub fn count_messages(&mut self) {
        self.messages = Some(Default::default());
    }

    /// What was moved so far.
    #[must_use]
    pub fn moved(&self) -> Moved {
        let messages = self.messages.map(|(request, response)| (request.begun(), response.begun()));
        Moved { messages, ..self.moved }
    }

    /// The `grpc-status` in the trailers of the response, once it was delivered.
    #[must_use]
    pub fn grpc_status(&self) -> Option<u16> {
        self.grpc_status
    }

    /// Whether the request can be sent once more: all of its body so far is kept, and the
    /// client has no response head yet.
    #[must_use]
    pub fn can_retry(&self, down: &Downstream) -> bool {
        self.replay.whole && !down.started()
    }

    /// Nothing of the request body was taken from the client yet, or there is none.
    #[must_use]
    pub fn unread(&self) -> bool {
        self.moved.request == 0
    }

    /// Reads the whole request body before any try, at most `bound` bytes, and returns it; the
    /// tries send it from memory. A client that waits for a 100 gets it.
    ///
    /// # Errors
    ///
    /// [`Error::BodyTooLarge`] beyond `bound`; else the client failed.
    pub async fn read_whole(
        &mut self,
        down: &mut Downstream,
        bound: usize,
    ) -> Result<Bytes, Error> {
        if matches!(down.body(), Body::Length(length) if length > bound as u64) {
            return Err(Error::BodyTooLarge);
        }
        self.replay.limit = self.replay.limit.max(bound);
        down.send_continue().await?;
        while matches!(self.source, Source::Open) {
            let event = poll_fn(|cx| down.poll_event(cx)).await?;
            let (piece, end) = split(event);
            if let Some(piece) = piece {
                self.note(&piece);
                if self.replay.size + piece.len() > bound {
                    return Err(Error::BodyTooLarge);
                }
                self.replay.keep(&piece);
            }
            self.source_ended(end);
        }
        let mut all = BytesMut::with_capacity(self.replay.size);
        self.replay.pieces.iter().for_each(|piece| all.extend_from_slice(piece));
        Ok(all.freeze())
    }

    /// Sends `request` and its body on `up` until a final response head is there.
    ///
    /// Interim responses are passed on meanwhile. A 101 counts as final. Call it again with
    /// another upstream for another try, if [`Carry::can_retry`].
    ///
    /// # Errors
    ///
    /// See [`Error`]; ask it for side and retry. After an error `up` is of no use.
    pub async fn respond(
        &mut self,
        down: &mut Downstream,
        up: &mut Upstream,
        mut request: RequestHead,
    ) -> Result<ResponseHead, Error> {
        let body = self.body(down);
        if up.protocol() == Protocol::Http2 && down.expects_continue() {
            // Many servers of HTTP/2 never let it go on: they read what comes.
            request.remove(&http::header::EXPECT);
            down.put_interim(ResponseHead::new(StatusCode::CONTINUE))?;
        }
        self.replay.sent = 0;
        self.interim = 0;
        self.sink = if body == Body::None { Sink::Ended } else { Sink::Open };
        up.put_head(request, body)?;
        if body == Body::None {
            self.source_ended(Some(None));
            up.put_end(None)?;
        }
        poll_fn(|cx| self.poll_respond(cx, down, up)).await
    }

    /// Sends `head` to the client and carries the rest of both messages, until the response is
    /// complete and on its way; then `up` goes back to the pool.
    ///
    /// A 101 joins the two connections until both sides have closed.
    ///
    /// # Errors
    ///
    /// See [`Error`]. The response may be cut off: the client then sees no proper end.
    pub async fn deliver(
        &mut self,
        down: &mut Downstream,
        mut up: Upstream,
        head: ResponseHead,
    ) -> Result<(), Error> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.join(down, up, head).await;
        }
        down.put_head(head, up.body())?;
        poll_fn(|cx| self.poll_deliver(cx, down, &mut up)).await?;
        if self.sink == Sink::Ended {
            up.finish();
        } else {
            // Half a request is on that connection: it must not be used again.
            drop(up);
        }
        poll_fn(|cx| down.poll_push(cx)).await
    }

    fn body(&self, down: &Downstream) -> Body {
        match (&self.source, self.replay.whole) {
            // Read to its end before this try: the length is known.
            (Source::Ended(None), true) => match self.replay.size as u64 {
                0 => Body::None,
                length => Body::Length(length),
            },
            _ => down.body(),
        }
    }

    fn poll_respond(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        up: &mut Upstream,
    ) -> Poll<Result<ResponseHead, Error>> {
        loop {
            let moved = self.poll_request(cx, down, up)?;
            if let Poll::Ready(head) = up.poll_head(cx) {
                let head = head?;
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    return Poll::Ready(Ok(head));
                }
                self.interim += 1;
                if self.interim > INTERIM {
                    return Poll::Ready(Err(Error::UpstreamHead("no end of interim ones")));
                }
                down.put_interim(head)?;
                continue;
            }
            if !moved {
                break;
            }
        }
        self.poll_idle(cx, down, up)
    }

    fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        up: &mut Upstream,
    ) -> Poll<Result<(), Error>> {
        loop {
            let mut moved = self.poll_request(cx, down, up)?;
            while let Poll::Ready(room) = down.poll_room(cx) {
                room?;
                let Poll::Ready(event) = up.poll_event(cx) else { break };
                moved = true;
                if self.put_response(down, event?)? {
                    self.push(cx, up);
                    return Poll::Ready(Ok(()));
                }
            }
            if !moved {
                break;
            }
        }
        self.poll_idle(cx, down, up)
    }

    /// Everything that can be said was queued; now it leaves in as few writes as possible.
    fn poll_idle<T>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        up: &mut Upstream,
    ) -> Poll<Result<T, Error>> {
        self.push(cx, up);
        let _later = down.poll_push(cx)?;
        if matches!(self.source, Source::Ended(_)) && down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Error::DownstreamGone));
        }
        Poll::Pending
    }

    /// Passes one thing of the response on; true at its end.
    fn put_response(&mut self, down: &mut Downstream, event: Event) -> Result<bool, Error> {
        match event {
            Event::Data { piece, last } => {
                self.moved.response += piece.len() as u64;
                if let Some((_, response)) = &mut self.messages {
                    response.see(&piece);
                }
                down.put_data(piece, last)?;
                if last {
                    down.put_end(None)?;
                }
                Ok(last)
            }
            Event::Trailers(trailers) => {
                let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok());
                self.grpc_status = status.and_then(|status| status.parse().ok());
                down.put_end(Some(trailers)).map(|()| true)
            }
            Event::End => down.put_end(None).map(|()| true),
        }
    }

    /// Moves request pieces while the backend has room and the client has sent; true if any.
    ///
    /// A backend that takes no more does not fail the exchange: it may have answered already.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        up: &mut Upstream,
    ) -> Result<bool, Error> {
        let mut moved = false;
        while self.sink == Sink::Open {
            match up.poll_room(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.sink = Sink::Broken;
                    break;
                }
            }
            let (piece, end) = match self.replay.next() {
                Some(piece) => (Some(piece), None),
                None => match &mut self.source {
                    Source::Ended(trailers) => (None, Some(trailers.clone())),
                    Source::Open => {
                        let Poll::Ready(event) = down.poll_event(cx) else { break };
                        let (piece, end) = split(event?);
                        self.take_in(piece.as_ref());
                        self.source_ended(end.clone());
                        (piece, end)
                    }
                },
            };
            moved = true;
            self.put_request(up, piece, end);
        }
        Ok(moved)
    }

    fn put_request(
        &mut self,
        up: &mut Upstream,
        piece: Option<Bytes>,
        end: Option<Option<HeaderMap>>,
    ) {
        let last = end == Some(None);
        let sent = match piece {
            Some(piece) => up.put_data(piece, last),
            None => Ok(()),
        };
        let sent = sent.and_then(|()| match end {
            Some(trailers) => {
                self.sink = Sink::Ended;
                up.put_end(trailers)
            }
            None => Ok(()),
        });
        if sent.is_err() {
            self.sink = Sink::Broken;
        }
    }

    fn push(&mut self, cx: &mut Context<'_>, up: &mut Upstream) {
        if self.sink != Sink::Broken && matches!(up.poll_push(cx), Poll::Ready(Err(_))) {
            self.sink = Sink::Broken;
        }
    }

    fn take_in(&mut self, piece: Option<&Bytes>) {
        if let Some(piece) = piece {
            self.note(piece);
            self.replay.keep(piece);
            self.replay.sent = self.replay.pieces.len();
        }
    }

    fn note(&mut self, piece: &Bytes) {
        self.moved.request += piece.len() as u64;
        if let Some((request, _)) = &mut self.messages {
            request.see(piece);
        }
        self.mirrors.retain(|queue| queue.try_send(Piece::Data(piece.clone())).is_ok());
    }

    fn source_ended(&mut self, end: Option<Option<HeaderMap>>) {
        if let (Source::Open, Some(trailers)) = (&self.source, end) {
            self.source = Source::Ended(trailers);
            for queue in self.mirrors.drain(..) {
                // A mirror that is full here stays without its end, so it is not whole.
                let _full = queue.try_send(Piece::End);
            }
        }
    }
}

/// The piece, and the end with its trailers, of an event.
fn split(event: Event) -> (Option<Bytes>, Option<Option<HeaderMap>>) {
    match event {
        Event::Data { piece, last } => (Some(piece), last.then_some(None)),
        Event::Trailers(trailers) => (None, Some(Some(trailers))),
        Event::End => (None, Some(None)),
    }
}
