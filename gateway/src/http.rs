// SPDX-License-Identifier: Apache-2.0

//! All that this crate sees of HTTP connections: one request at a time, on either side.
//!
//! [`serve()`] runs a client's connection, HTTP/1.1 or HTTP/2, and hands each request out as a
//! [`Downstream`]. [`Pool`] gives an [`Upstream`], a free place on a connection to a backend.
//! [`Carry`] joins the two: it moves both bodies at once, trailers, interim responses and
//! upgrades, and keeps what a retry needs. Which backend, which edits, which deadline: `exchange`.
//!
//! The engine is Pingora: heads of HTTP/1 are read and written by its sessions (`pipe`), HTTP/2
//! towards backends is its session too. Bodies of HTTP/1 go by our own framing (`framing`) over
//! our own buffers (`conn`): without a copy, with trailers, and safe to stop at any point.
//! HTTP/2 from clients is `h2::server`. No type of Pingora or h2 leaves this module.
//!
//! A connection, and all that hangs on it, lives on one core: run everything here on a
//! current-thread runtime. Nothing here makes a socket or a TLS session.

mod carry;
mod conn;
mod downstream;
mod error;
mod framing;
mod head;
mod limits;
mod pipe;
mod pool;
mod serve;
#[cfg(test)]
#[expect(
    clippy::too_many_lines,
    clippy::large_futures,
    clippy::string_slice,
    reason = "tests are tables and conversations"
)]
mod tests;
mod upstream;

pub use carry::{Carry, Moved, Piece, mirror};
pub use conn::ByteStream;
pub use downstream::Downstream;
pub use error::{BadRequest, Error, Retry, Side};
pub use framing::BadBody;
pub use head::{RequestHead, ResponseHead};
pub use limits::Limits;
pub use pool::{Dialed, GetError, Pool, PoolKey};
pub use serve::{Ended, Terms, serve};
pub use upstream::Upstream;

/// How a connection speaks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// Not known yet: the first bytes tell HTTP/1 from HTTP/2 (prior knowledge).
    Sniff,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 from the first byte on.
    Http2,
}

/// What the framing of a message says about its body.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Body {
    /// There is none.
    #[default]
    None,
    /// This many bytes, never zero.
    Length(u64),
    /// It ends when the framing says so; trailers may follow.
    Unknown,
}
