// SPDX-License-Identifier: Apache-2.0

//! HBONE: TCP streams as HTTP/2 CONNECT inside mutual TLS.
//!
//! Owns the words of the protocol, both its sides, the connections of one
//! worker by destination, and the byte stream that comes out. Leaves who may
//! connect to the proxies and to the gateway.
//!
//! Keeps: a connection, its TLS, its driver and all its streams live on one
//! worker; nothing is sent to a peer that did not prove whom we expect.
//!
//! Start at [`server::accept`] and [`pool::Pool::open`].
//!
//! Rule: HBONE of Istio's ztunnel, `src/proxy`.

use std::time::Duration;

use http::HeaderName;

pub mod client;
mod io;
mod keepalive;
pub mod pool;
pub mod server;
pub mod stream;

pub use routing::discovery::HBONE_PORT as PORT;

/// Who the source is, for telemetry.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Address of the source, and the service it asked for (RFC 7239).
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// Kubernetes UID of the pod that the stream is meant for; another pod refuses.
pub const POD_UID: HeaderName = HeaderName::from_static("x-waymark-pod-uid");

/// Why a Waymark tunnel refused, where the status alone does not say it.
pub const REFUSED: HeaderName = HeaderName::from_static("x-waymark-refused");

/// Value of [`REFUSED`]: the pod has another UID; try elsewhere.
pub const REFUSED_UID: &str = "uid";

/// Bounds of HBONE connections. Sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unread bytes of one stream.
    pub stream_window: u32,
    /// Unread bytes of all streams of a connection; more than one stream's, or
    /// a slow stream would stop the others.
    pub connection_window: u32,
    /// Longest frame taken.
    pub frame: u32,
    /// Header fields taken from clients.
    pub server_headers: u32,
    /// Header fields taken from servers.
    pub client_headers: u32,
    /// Streams that a client may have open on one connection.
    pub server_streams: u32,
    /// Streams that we open on one connection, unless the server allows fewer.
    pub client_streams: usize,
    /// Unsent bytes of a server's connection.
    pub server_send_buffer: usize,
    /// Unsent bytes of a client's connection.
    pub client_send_buffer: usize,
    /// Time for TCP, TLS and HTTP/2 set-up, each side.
    pub handshake: Duration,
    /// Time for the answer to a CONNECT; the other side dials its application meanwhile.
    pub answer: Duration,
    /// Silence after which a PING is sent.
    pub ping_interval: Duration,
    /// Time for its answer; then the connection is dead.
    pub ping_timeout: Duration,
    /// Connections of one worker to one destination, while all are busy.
    pub connections: usize,
    /// Streams on a connection from which on another one is opened beside it.
    pub busy_streams: usize,
    /// How long a connection without streams is kept.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            frame: 1 << 20,
            server_headers: 64 << 10,
            client_headers: 16 << 10,
            server_streams: 200,
            client_streams: 100,
            server_send_buffer: 400 << 10,
            client_send_buffer: 4 << 20,
            handshake: Duration::from_secs(10),
            answer: Duration::from_secs(15),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            connections: 2,
            busy_streams: 4,
            idle: Duration::from_secs(300),
        }
    }
}
