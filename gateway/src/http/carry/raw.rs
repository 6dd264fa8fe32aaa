// SPDX-License-Identifier: Apache-2.0

//! An upgraded connection: bytes both ways until both sides have closed.
//!
//! Bytes that came glued to either head are still in the connections' buffers and go first.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::{Carry, Downstream, Error, Event, ResponseHead, Upstream};

/// How far one direction of an upgraded connection is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Open,
    /// The source has closed; what is queued goes out, then our direction is closed.
    Closing,
    Closed,
}

impl Carry {
    /// Answers 101 and joins the two connections.
    pub(super) async fn join(
        &mut self,
        down: &mut Downstream,
        mut up: Upstream,
        head: ResponseHead,
    ) -> Result<(), Error> {
        if !up.upgrade_now() || !down.upgrade_now(head)? {
            return Err(Error::UpstreamHead("101 unasked"));
        }
        let (mut there, mut back) = (Way::Open, Way::Open);
        poll_fn(|cx| {
            loop {
                let moved = self.poll_there(cx, down, &mut up, &mut there)?
                    | self.poll_back(cx, down, &mut up, &mut back)?;
                if !moved {
                    break;
                }
            }
            if there == Way::Closing && up.poll_close(cx)?.is_ready() {
                there = Way::Closed;
            }
            if back == Way::Closing && down.poll_close(cx)?.is_ready() {
                back = Way::Closed;
            }
            if there == Way::Open {
                let _later = up.poll_push(cx)?;
            }
            if back == Way::Open {
                let _later = down.poll_push(cx)?;
            }
            match (there, back) {
                (Way::Closed, Way::Closed) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        })
        .await
    }

    fn poll_there(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        up: &mut Upstream,
        way: &mut Way,
    ) -> Result<bool, Error> {
        let mut moved = false;
        while *way == Way::Open && up.poll_room(cx)?.is_ready() {
            let Poll::Ready(event) = down.poll_event(cx)? else { break };
            moved = true;
            match event {
                Event::Data { piece, .. } => {
                    self.moved.request += piece.len() as u64;
                    up.put_data(piece, false)?;
                }
                Event::Trailers(_) | Event::End => *way = Way::Closing,
            }
        }
        Ok(moved)
    }

    fn poll_back(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        up: &mut Upstream,
        way: &mut Way,
    ) -> Result<bool, Error> {
        let mut moved = false;
        while *way == Way::Open && down.poll_room(cx)?.is_ready() {
            let Poll::Ready(event) = up.poll_event(cx)? else { break };
            moved = true;
            match event {
                Event::Data { piece, .. } => {
                    self.moved.response += piece.len() as u64;
                    down.put_data(piece, false)?;
                }
                Event::Trailers(_) | Event::End => *way = Way::Closing,
            }
        }
        Ok(moved)
    }
}
