// SPDX-License-Identifier: Apache-2.0

//! What can go wrong with one exchange: whose fault, and whether another try may help.

use http::StatusCode;

use super::framing::BadBody;

/// Whose side an exchange failed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The client, or the way to it.
    Downstream,
    /// The backend, or the way to it.
    Upstream,
    /// This gateway.
    Us,
}

/// Whether another try may be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// No: the client is gone, or the failure would repeat.
    Never,
    /// Only if nothing was sent yet or the request is idempotent: it may have been processed.
    IfUnsent,
    /// Yes: the backend has provably not processed the request.
    Always,
}

/// Why a request head is refused; the connection is closed after the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadRequest {
    /// Not HTTP, or a rule of RFC 9112 or RFC 9113 is broken.
    #[error("malformed request head: {0}")]
    Malformed(&'static str),
    /// More bytes or more header lines than the limits allow.
    #[error("request head over its limit")]
    TooLarge,
    /// The head did not come to an end in time.
    #[error("request head not complete in time")]
    TooSlow,
    /// A transfer coding other than `chunked`.
    #[error("transfer coding not known")]
    Coding,
    /// CONNECT to a gateway.
    #[error("CONNECT is not served")]
    Connect,
}

impl BadRequest {
    /// The status of the answer.
    ///
    /// Rule: RFC 9110 §15.5, RFC 6585 §5, RFC 9112 §6.1.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// Why an exchange, or one try of it, ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client closed its connection or reset its stream.
    #[error("client is gone")]
    DownstreamGone,
    /// The client's connection failed.
    #[error("client connection failed")]
    DownstreamIo(#[source] std::io::Error),
    /// The request body breaks its framing.
    #[error("request body is malformed")]
    DownstreamBody(#[source] BadBody),
    /// The request body is longer than the caller's bound.
    #[error("request body over its bound")]
    BodyTooLarge,
    /// A second final response head, or a body after its end: a fault of the calling code.
    #[error("response already {0}")]
    Order(&'static str),
    /// A head cannot be expressed in the protocol it is for.
    #[error("head cannot be sent: {0}")]
    Head(&'static str),
    /// The HTTP/2 handshake with the backend failed.
    #[error("no HTTP/2 connection")]
    UpstreamHandshake(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The backend closed the connection before the first byte of a response.
    #[error("backend closed the connection unanswered")]
    UpstreamClosed {
        /// The connection had served a request before, so the backend may just have let it go.
        reused: bool,
    },
    /// The backend refused the stream or is going away, before it processed the request.
    #[error("backend refused the stream")]
    UpstreamRefused,
    /// The backend reset the stream.
    #[error("backend reset the stream")]
    UpstreamReset(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection to the backend failed.
    #[error("backend connection failed")]
    UpstreamIo(#[source] std::io::Error),
    /// The response head breaks the rules.
    #[error("response head is malformed: {0}")]
    UpstreamHead(&'static str),
    /// The response head is over the limits.
    #[error("response head over its limit")]
    UpstreamHeadTooLarge,
    /// The response body breaks its framing, or ended early.
    #[error("response body is malformed")]
    UpstreamBody(#[source] BadBody),
}

impl Error {
    /// Whose side failed.
    #[must_use]
    pub fn side(&self) -> Side {
        match self {
            Self::DownstreamGone
            | Self::DownstreamIo(_)
            | Self::DownstreamBody(_)
            | Self::BodyTooLarge => Side::Downstream,
            Self::Order(_) | Self::Head(_) => Side::Us,
            Self::UpstreamHandshake(_)
            | Self::UpstreamClosed { .. }
            | Self::UpstreamRefused
            | Self::UpstreamReset(_)
            | Self::UpstreamIo(_)
            | Self::UpstreamHead(_)
            | Self::UpstreamHeadTooLarge
            | Self::UpstreamBody(_) => Side::Upstream,
        }
    }

    /// Whether another try may be made, as far as this failure goes.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::DownstreamGone
            | Self::DownstreamIo(_)
            | Self::DownstreamBody(_)
            | Self::BodyTooLarge
            | Self::Order(_)
            | Self::Head(_)
            | Self::UpstreamHeadTooLarge
            | Self::UpstreamHead(_) => Retry::Never,
            Self::UpstreamHandshake(_)
            | Self::UpstreamClosed { reused: true }
            | Self::UpstreamRefused => Retry::Always,
            Self::UpstreamClosed { reused: false }
            | Self::UpstreamReset(_)
            | Self::UpstreamIo(_)
            | Self::UpstreamBody(_) => Retry::IfUnsent,
        }
    }
}
