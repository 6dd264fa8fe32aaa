// SPDX-License-Identifier: Apache-2.0

//! Bodies in chunks, against two other readers: `httparse` for sizes, Pingora's session whole.

use bytes::BytesMut;
use futures_util::FutureExt;
use pingora_core::protocols::http::v1::server::HttpSession;

use super::heads::Random;
use crate::http::framing::{BadBody, Decoder, Step};
use crate::http::pipe::Pipe;

/// Decodes `wire`, given in pieces of `size` bytes: body, trailer fields, bytes left.
fn decode(wire: &[u8], size: usize) -> Result<Option<(Vec<u8>, usize, usize)>, BadBody> {
    let mut decoder = Decoder::CHUNKED;
    let mut input = BytesMut::new();
    let mut body = Vec::new();
    let mut pieces = wire.chunks(size);
    loop {
        match decoder.step(&mut input, 1 << 14)? {
            Step::Data(piece) => {
                assert!(!piece.is_empty());
                body.extend_from_slice(&piece);
            }
            Step::End => {
                return Ok(Some((body, 0, input.len() + pieces.map(<[u8]>::len).sum::<usize>())));
            }
            Step::Trailers(fields) => {
                return Ok(Some((
                    body,
                    fields.len(),
                    input.len() + pieces.map(<[u8]>::len).sum::<usize>(),
                )));
            }
            Step::More => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return Ok(None),
            },
        }
    }
}

#[test]
fn chunks_are_read_strictly() {
    let cases: [(&str, Result<Option<&str>, BadBody>); 18] = [
        ("0\r\n\r\n", Ok(Some(""))),
        ("3\r\nabc\r\n0\r\n\r\n", Ok(Some("abc"))),
        ("3;x=\"y z\"\r\nabc\r\n00\r\n\r\n", Ok(Some("abc"))),
        ("3 \r\nabc\r\n0\r\n\r\n", Ok(Some("abc"))),
        ("a\r\n0123456789\r\n0\r\nX: y\r\n\r\n", Ok(Some("0123456789"))),
        ("3\r\nab", Ok(None)),
        ("3\nabc\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("3\r\nabc\n0\r\n\r\n", Err(BadBody::ChunkEnd)),
        ("3\r\nabcd\r\n0\r\n\r\n", Err(BadBody::ChunkEnd)),
        ("\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("0x3\r\nabc\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("+3\r\nabc\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("3 3\r\nabc\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("3\rX\nabc\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("3;a\nb\r\nabc\r\n0\r\n\r\n", Err(BadBody::ChunkSize)),
        ("11111111111111111\r\n", Err(BadBody::ChunkSize)),
        ("0\r\nX : y\r\n\r\n", Err(BadBody::Trailers)),
        ("0\r\nX: y\n\nGET / HTTP/1.1\r\n\r\n", Err(BadBody::Trailers)),
    ];
    for (wire, want) in cases {
        for size in 1..=wire.len() {
            let got = decode(wire.as_bytes(), size).map(|whole| whole.map(|(body, ..)| body));
            assert_eq!(
                got,
                want.map(|body| body.map(|text| text.as_bytes().to_vec())),
                "{wire:?} by {size}"
            );
        }
    }
}

#[test]
fn a_chunk_head_and_trailers_are_bounded() {
    let head = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(9 << 10));
    assert_eq!(decode(head.as_bytes(), 512).map(|_| ()), Err(BadBody::ChunkSize));
    let trailers = format!("0\r\nX: {}\r\n\r\n", "x".repeat(17 << 10));
    assert_eq!(decode(trailers.as_bytes(), 512).map(|_| ()), Err(BadBody::Trailers));
}

#[test]
fn random_chunks_mean_the_same_to_every_reader_that_takes_them() {
    const PIECES: &[&str] = &[
        "3\r\nabc\r\n",
        "3\r\nabc\r\n",
        "1\r\nx\r\n",
        "10\r\n0123456789abcdef\r\n",
        "3;e\r\nabc\r\n",
        "3 ;e=\"1\"\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\n\r\n",
        "0\r\nA: b\r\n\r\n",
        "00\r\n\r\n",
        "\r\n",
        "\n",
        "\r",
        "3\nabc\n",
        "g\r\n",
        "-1\r\n",
        "0",
        ";",
        " ",
        "fffffffffffffffff\r\n",
        "ffffffffffffffff\r\n",
        "3\r\nabcd\r\n",
        "X: y\r\n",
        "\0",
    ];
    let mut random = Random(11);
    let mut taken = 0;
    for round in 0..60_000 {
        let mut wire = String::new();
        for _ in 0..=random.below(6) {
            wire += PIECES[random.below(PIECES.len())];
        }
        if random.below(4) == 0 {
            wire += "0\r\n\r\n";
        }
        let ours = decode(wire.as_bytes(), 1 + random.below(7));
        assert_eq!(
            ours,
            decode(wire.as_bytes(), usize::MAX),
            "round {round}: {wire:?} depends on how it comes"
        );
        let Ok(Some((body, _, left))) = ours else { continue };
        taken += 1;
        // The same bytes through Pingora's reader.
        let theirs = session_body(wire.as_bytes());
        assert_eq!(theirs.as_deref(), Some(body.as_slice()), "round {round}: {wire:?}");
        // The sizes by httparse, chunk by chunk.
        let mut rest = wire.as_bytes();
        let mut sizes = 0;
        loop {
            let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(rest)
            else {
                panic!("round {round}: {wire:?}")
            };
            let size = usize::try_from(size).expect("small");
            if size == 0 {
                break;
            }
            sizes += size;
            rest = &rest[at + size + 2..];
        }
        assert_eq!(sizes, body.len(), "round {round}: {wire:?}");
        assert!(left <= wire.len());
    }
    assert!(taken > 3000, "the generator makes enough sound bodies: {taken}");
}

/// What Pingora's own body reader makes of it.
fn session_body(wire: &[u8]) -> Option<Vec<u8>> {
    let pipe = Pipe::default();
    let mut session = HttpSession::new(pipe.stream());
    session.set_read_timeout(None);
    let mut all =
        BytesMut::from(&b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..]);
    all.extend_from_slice(wire);
    pipe.give(all);
    session.read_request().now_or_never()?.ok()??;
    let mut body = Vec::new();
    loop {
        match session.read_body_bytes().now_or_never()? {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Some(body),
            Err(_) => return None,
        }
    }
}
