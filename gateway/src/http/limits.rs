// SPDX-License-Identifier: Apache-2.0

//! Every bound of the HTTP engine, by name.

use std::time::Duration;

/// Bounds of connections and messages; [`Limits::default`] holds the values in the docs.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one head, request line included: 64 KiB. Beyond it: 431.
    pub head_bytes: usize,
    /// Header lines of one head: 100. Beyond it: 431.
    pub headers: usize,
    /// From the first byte of a head to its last, and for an HTTP/2 handshake: 10 s. Then 408.
    pub head_time: Duration,
    /// A client connection without a request is closed after this: 60 s. Sane: 60 s to 1 h.
    pub idle: Duration,
    /// A request body of HTTP/1 of which nothing comes, and a response that the client does not
    /// take, end the connection after this: 60 s.
    pub stall: Duration,
    /// Requests on one client connection before it is closed gracefully: 100,000.
    pub requests: u32,
    /// Running requests on one HTTP/2 client connection: 100.
    pub streams: u32,
    /// Malformed requests on one HTTP/2 connection before it is closed: 32.
    pub bad_requests: u32,
    /// After the signal to drain, running requests and upgraded connections get this long: 45 s.
    pub drain: Duration,
    /// After the signal to drain, a connection of HTTP/1 without a request is kept for so long: 2 s.
    /// A request may be under way, and the answer to it tells the client to connect anew. Below
    /// `drain`.
    pub quiet: Duration,
    /// After an answer to a request that was not read to its end, the rest is discarded for so
    /// long before the connection is closed: 1 s.
    pub linger: Duration,
    /// ... and at most so many bytes: 256 KiB.
    pub linger_bytes: usize,
    /// Bytes of a request body kept for a retry: 64 KiB. With more there is no retry.
    pub replay: usize,
    /// Bytes waiting for a slow reader of HTTP/1 before no more are taken from the other side:
    /// 64 KiB, and one piece (64 KiB) above it.
    pub output: usize,
    /// Early bytes of a next HTTP/1 request held while one is served: 64 KiB.
    pub early: usize,
    /// Bytes of a trailer section: 16 KiB.
    pub trailer_bytes: usize,
    /// Window of one HTTP/2 stream: 256 KiB.
    pub stream_window: u32,
    /// Window of one HTTP/2 connection: 2 MiB, never that of a stream.
    pub connection_window: u32,
    /// Unsent bytes that one HTTP/2 stream may hold: 128 KiB.
    pub stream_buffer: usize,
    /// Streams at once on one upstream HTTP/2 connection, below what the peer allows: 100.
    pub upstream_streams: usize,
    /// Idle upstream HTTP/1 connections kept for one key: 64.
    pub pooled: usize,
    /// An unused upstream connection is closed after this: 55 s, below the 60 s of most servers.
    pub pooled_idle: Duration,
    /// An upstream connection gets no new request after this: 1 h.
    pub pooled_age: Duration,
    /// Between pings on an upstream HTTP/2 connection: 30 s; unanswered for 5 s it is closed.
    pub ping: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 << 10,
            headers: 100,
            head_time: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            requests: 100_000,
            streams: 100,
            bad_requests: 32,
            drain: Duration::from_secs(45),
            quiet: Duration::from_secs(2),
            linger: Duration::from_secs(1),
            linger_bytes: 256 << 10,
            replay: 64 << 10,
            output: 64 << 10,
            early: 64 << 10,
            trailer_bytes: 16 << 10,
            stream_window: 256 << 10,
            connection_window: 2 << 20,
            stream_buffer: 128 << 10,
            upstream_streams: 100,
            pooled: 64,
            pooled_idle: Duration::from_secs(55),
            pooled_age: Duration::from_secs(3600),
            ping: Duration::from_secs(30),
        }
    }
}
