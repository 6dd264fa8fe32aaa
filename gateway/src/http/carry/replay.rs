// SPDX-License-Identifier: Apache-2.0

//! The beginning of a request body, kept for a further try.

use bytes::Bytes;

/// Below this a kept piece gets memory of its own, so that it does not hold a large buffer.
const SMALL: usize = 8 << 10;

/// What was read of a request body, while it is little enough to be sent again.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) pieces: Vec<Bytes>,
    pub(super) size: usize,
    pub(super) limit: usize,
    /// Pieces that the current try has.
    pub(super) sent: usize,
    pub(super) whole: bool,
}

impl Replay {
    pub(super) fn new(limit: usize) -> Self {
        Self { pieces: Vec::new(), size: 0, limit, sent: 0, whole: true }
    }

    /// Keeps a piece that the current try has got, unless it is too much.
    pub(super) fn keep(&mut self, piece: &Bytes) {
        if !self.whole {
            return;
        }
        self.size += piece.len();
        if self.size > self.limit {
            self.whole = false;
            self.pieces = Vec::new();
        } else if piece.len() < SMALL {
            self.pieces.push(Bytes::copy_from_slice(piece));
        } else {
            self.pieces.push(piece.clone());
        }
    }

    /// The next piece that the current try has not got.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.get(self.sent).cloned()?;
        self.sent += 1;
        Some(piece)
    }
}
