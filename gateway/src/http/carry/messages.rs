// SPDX-License-Identifier: Apache-2.0

//! Counts the messages of a gRPC call while its body goes by.
//!
//! Rule: "gRPC over HTTP2", Length-Prefixed-Message: a flag, four bytes of length, the message.

/// Bytes of a message's prefix.
const PREFIX: u8 = 5;

/// How far one direction of a call is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Messages {
    /// Messages that have begun.
    begun: u64,
    /// Bytes of the next prefix that were seen.
    prefix: u8,
    /// The length, as far as it was seen.
    length: u32,
    /// Bytes of the message that are to come.
    left: u32,
}

impl Messages {
    /// Messages that have begun.
    pub(super) fn begun(self) -> u64 {
        self.begun
    }

    /// Looks at the next piece of the body.
    pub(super) fn see(&mut self, mut piece: &[u8]) {
        while let [byte, rest @ ..] = piece {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
                // As much as is left at most, so it fits.
                self.left -= u32::try_from(skipped).unwrap_or(self.left);
                piece = piece.get(skipped..).unwrap_or_default();
                continue;
            }
            piece = rest;
            if self.prefix > 0 {
                self.length = (self.length << 8) | u32::from(*byte);
            }
            self.prefix += 1;
            if self.prefix == PREFIX {
                self.begun += 1;
                (self.left, self.length, self.prefix) = (self.length, 0, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(lengths: &[u32]) -> Vec<u8> {
        let message = |length: &u32| {
            let mut message = vec![1];
            message.extend_from_slice(&length.to_be_bytes());
            message.extend(std::iter::repeat_n(7, usize::try_from(*length).unwrap()));
            message
        };
        lengths.iter().flat_map(message).collect()
    }

    #[test]
    fn a_message_counts_once_its_prefix_is_whole() {
        let mut seen = Messages::default();
        for (piece, want) in
            [(&[0_u8, 0, 0][..], 0), (&[0, 2], 1), (&[9], 1), (&[9, 0, 0, 0, 0, 0], 2)]
        {
            seen.see(piece);
            assert_eq!(seen.begun(), want, "{piece:?}");
        }
    }

    #[test]
    fn however_a_body_is_cut_its_messages_are_as_many() {
        for lengths in [&[][..], &[0], &[0, 0], &[1, 0, 300], &[70_000, 5, 0, 256]] {
            let body = body(lengths);
            for cut in 1..=body.len().clamp(1, 300) {
                let mut seen = Messages::default();
                body.chunks(cut).for_each(|piece| seen.see(piece));
                let want = u64::try_from(lengths.len()).unwrap();
                assert_eq!(seen.begun(), want, "{lengths:?} in pieces of {cut}");
            }
        }
    }
}
