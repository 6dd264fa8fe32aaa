// SPDX-License-Identifier: Apache-2.0

//! Copies of requests: fed from a bounded queue, their responses dropped.

use std::future::poll_fn;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc;

use crate::http::downstream::Event;
use crate::http::{Body, Error, RequestHead, Upstream};

/// A part of a request body on its way to a mirror.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes of the body.
    Data(Bytes),
    /// The body is complete. A queue that ends without it was dropped: the copy is not whole.
    End,
}

/// Sends a copy of a request and drops what comes back; `pieces` is its body, if it has one.
///
/// # Errors
///
/// See [`Error`]: the mirror failed, or its queue was dropped before the end of the body.
pub async fn mirror(
    mut up: Upstream,
    request: RequestHead,
    body: Body,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<StatusCode, Error> {
    up.put_head(request, body)?;
    if body != Body::None {
        feed(&mut up, &mut pieces).await?;
    }
    up.put_end(None)?;
    poll_fn(|cx| up.poll_push(cx)).await?;
    let status = loop {
        let head = poll_fn(|cx| up.poll_head(cx)).await?;
        if !head.status.is_informational() {
            break head.status;
        }
    };
    while let Event::Data { last: false, .. } = poll_fn(|cx| up.poll_event(cx)).await? {}
    up.finish();
    Ok(status)
}

/// Sends pieces as they come, up to the end of the body.
async fn feed(up: &mut Upstream, pieces: &mut mpsc::Receiver<Piece>) -> Result<(), Error> {
    loop {
        match pieces.recv().await {
            Some(Piece::Data(piece)) => {
                poll_fn(|cx| up.poll_room(cx)).await?;
                up.put_data(piece, false)?;
                poll_fn(|cx| up.poll_push(cx)).await?;
            }
            Some(Piece::End) => return Ok(()),
            None => return Err(Error::DownstreamGone),
        }
    }
}
