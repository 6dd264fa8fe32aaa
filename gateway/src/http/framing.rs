// SPDX-License-Identifier: Apache-2.0

//! Framing of HTTP/1 bodies: where a body ends, on the way in and on the way out.
//!
//! Reading takes pieces off the front of a buffer without a copy. Chunks are read strictly:
//! CRLF only, hexadecimal digits only, extensions ignored but bounded; what a laxer peer would
//! read otherwise is an error, never a guess. Trailers are kept.
//!
//! Rule: RFC 9112 §6 and §7.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::conn::Conn;

/// Size and extensions of one chunk head.
const CHUNK_HEAD: usize = 8 << 10;
/// Lines of one trailer section.
const TRAILERS: usize = 64;

/// Why a body cannot be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadBody {
    /// The connection ended before the body did.
    #[error("body ended early")]
    Short,
    /// The size line of a chunk is not hexadecimal, or too long.
    #[error("chunk size is malformed")]
    ChunkSize,
    /// A chunk is not followed by CRLF.
    #[error("chunk has no end")]
    ChunkEnd,
    /// The trailer section is malformed or over its limit.
    #[error("trailers are malformed")]
    Trailers,
    /// The HTTP/2 stream failed within the body.
    #[error("stream failed")]
    Stream,
}

/// What one step of reading gave.
#[derive(Debug)]
pub(super) enum Step {
    /// A piece of the body, not empty.
    Data(Bytes),
    /// The body is complete; these came after it.
    Trailers(HeaderMap),
    /// The body is complete.
    End,
    /// More bytes are wanted.
    More,
}

/// Where the reading of one body stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Decoder {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunked; the inner state.
    Chunked(Chunk),
    /// All until the connection ends.
    Close,
    /// Complete.
    Done,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

impl Decoder {
    pub(super) const CHUNKED: Self = Self::Chunked(Chunk::Size);

    pub(super) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Takes the next step off the front of `input`.
    pub(super) fn step(
        &mut self,
        input: &mut BytesMut,
        trailer_bytes: usize,
    ) -> Result<Step, BadBody> {
        loop {
            match self {
                Self::Done | Self::Length(0) => {
                    *self = Self::Done;
                    return Ok(Step::End);
                }
                Self::Length(left) | Self::Chunked(Chunk::Data(left)) if *left > 0 => {
                    return Ok(take(input, left));
                }
                Self::Close => {
                    let mut all = u64::MAX;
                    return Ok(take(input, &mut all));
                }
                Self::Length(_) => return Ok(Step::End),
                Self::Chunked(chunk) => match chunk {
                    Chunk::Size => match chunk_size(input)? {
                        None => return Ok(Step::More),
                        Some(0) => *chunk = Chunk::Trailers,
                        Some(size) => *chunk = Chunk::Data(size),
                    },
                    Chunk::Data(_) => *chunk = Chunk::DataEnd,
                    Chunk::DataEnd => match input.get(..2) {
                        None if input.first().is_some_and(|byte| *byte != b'\r') => {
                            return Err(BadBody::ChunkEnd);
                        }
                        None => return Ok(Step::More),
                        Some(b"\r\n") => {
                            input.advance(2);
                            *chunk = Chunk::Size;
                        }
                        Some(_) => return Err(BadBody::ChunkEnd),
                    },
                    Chunk::Trailers => {
                        let Some(trailers) = trailers(input, trailer_bytes)? else {
                            return Ok(Step::More);
                        };
                        *self = Self::Done;
                        return Ok(if trailers.is_empty() {
                            Step::End
                        } else {
                            Step::Trailers(trailers)
                        });
                    }
                },
            }
        }
    }

    /// The connection ended: is the body whole?
    pub(super) fn end(&mut self) -> Result<Step, BadBody> {
        match self {
            Self::Done | Self::Close | Self::Length(0) => {
                *self = Self::Done;
                Ok(Step::End)
            }
            Self::Length(_) | Self::Chunked(_) => Err(BadBody::Short),
        }
    }
}

fn take(input: &mut BytesMut, left: &mut u64) -> Step {
    if input.is_empty() {
        return Step::More;
    }
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= count as u64;
    Step::Data(input.split_to(count).freeze())
}

/// Reads `1a;ext\r\n`; none while the line is not whole.
fn chunk_size(input: &mut BytesMut) -> Result<Option<u64>, BadBody> {
    let mut size: u64 = 0;
    let mut digits = 0;
    let mut rest = input.iter().enumerate();
    // Digits first; the first other byte decides how the line goes on.
    let (mut at, mut byte) = loop {
        let Some((at, &byte)) = rest.next() else { return Ok(None) };
        let Some(digit) = char::from(byte).to_digit(16) else { break (at, byte) };
        digits += 1;
        if digits > 16 {
            return Err(BadBody::ChunkSize);
        }
        size = (size << 4) | u64::from(digit);
    };
    if digits == 0 || !matches!(byte, b'\r' | b';' | b' ' | b'\t') {
        return Err(BadBody::ChunkSize);
    }
    // White space is allowed before an extension or the end, nothing else.
    let mut extension = false;
    while byte != b'\r' {
        extension |= byte == b';';
        let fits = if extension {
            byte == b'\t' || (byte >= b' ' && byte != 0x7f)
        } else {
            matches!(byte, b' ' | b'\t')
        };
        if !fits || at > CHUNK_HEAD {
            return Err(BadBody::ChunkSize);
        }
        let Some((next, &after)) = rest.next() else { return Ok(None) };
        (at, byte) = (next, after);
    }
    match rest.next() {
        None => Ok(None),
        Some((_, b'\n')) => {
            input.advance(at + 2);
            Ok(Some(size))
        }
        Some(_) => Err(BadBody::ChunkSize),
    }
}

/// Reads trailer lines up to the blank line; none while they are not whole.
fn trailers(input: &mut BytesMut, limit: usize) -> Result<Option<HeaderMap>, BadBody> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
        return if input.len() > limit { Err(BadBody::Trailers) } else { Ok(None) };
    };
    let lines = input.split_to(end);
    if end > limit {
        return Err(BadBody::Trailers);
    }
    let mut parsed = [httparse::EMPTY_HEADER; TRAILERS];
    let Ok(httparse::Status::Complete((used, parsed))) =
        httparse::parse_headers(&lines, &mut parsed)
    else {
        return Err(BadBody::Trailers);
    };
    if used != end {
        return Err(BadBody::Trailers);
    }
    let mut map = HeaderMap::with_capacity(parsed.len());
    for line in parsed.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BadBody::Trailers)?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| BadBody::Trailers)?;
        map.append(name, value);
    }
    Ok(Some(map))
}

/// How one body is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoder {
    /// The message has no body: pieces are dropped, as for HEAD.
    Empty,
    /// So many bytes are still to be written.
    Length(u64),
    /// In chunks.
    Chunked,
    /// As they are, until the connection ends.
    Close,
    /// The end was written.
    Done,
}

impl Encoder {
    /// Queues a piece; false when the announced length is over, then nothing is queued.
    pub(super) fn data(&mut self, conn: &mut Conn, piece: Bytes) -> bool {
        match self {
            Self::Empty => {}
            Self::Done => return false,
            Self::Length(left) => match left.checked_sub(piece.len() as u64) {
                None => return false,
                Some(rest) => {
                    *left = rest;
                    conn.put(piece);
                }
            },
            Self::Chunked if piece.is_empty() => {}
            Self::Chunked => {
                conn.put_slice(chunk_head(piece.len(), &mut [0; 18]));
                conn.put(piece);
                conn.put_slice(b"\r\n");
            }
            Self::Close => conn.put(piece),
        }
        true
    }

    /// Queues the end; false when the body is shorter than announced.
    pub(super) fn end(&mut self, conn: &mut Conn, trailers: Option<&HeaderMap>) -> bool {
        let whole = !matches!(self, Self::Length(left) if *left > 0);
        if matches!(self, Self::Chunked) {
            match trailers {
                None => conn.put_slice(b"0\r\n\r\n"),
                Some(trailers) => {
                    conn.put_slice(b"0\r\n");
                    for (name, value) in trailers {
                        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                            conn.put_slice(part);
                        }
                    }
                    conn.put_slice(b"\r\n");
                }
            }
        }
        *self = Self::Done;
        whole
    }
}

/// Writes `1a\r\n` to the end of `space`.
fn chunk_head(mut size: usize, space: &mut [u8; 18]) -> &[u8] {
    let mut at = space.len();
    for (slot, byte) in space.iter_mut().rev().zip(*b"\n\r") {
        *slot = byte;
        at -= 1;
    }
    for slot in space.iter_mut().rev().skip(2) {
        let digit = u32::try_from(size & 0xf).unwrap_or_default();
        *slot =
            char::from_digit(digit, 16).map_or(b'0', |digit| u8::try_from(digit).unwrap_or(b'0'));
        at -= 1;
        size >>= 4;
        if size == 0 {
            break;
        }
    }
    space.get(at..).unwrap_or_default()
}
