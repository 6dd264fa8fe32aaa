// SPDX-License-Identifier: Apache-2.0

//! Connections and streams that were refused before they were anybody's.
//!
//! Owns the causes; they are counted and logged as by the tunnel.

/// Why a connection or stream was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cause {
    /// The socket failed.
    Socket,
    /// Too much at once.
    Overload,
    /// Nothing is served on the port, or for the name.
    NoListener,
    /// The PROXY protocol header is missing or broken.
    ProxyProtocol,
    /// TLS failed, or the peer proved nothing.
    Tls,
    /// There is no certificate to answer with.
    Certificate,
    /// It took too long.
    TimedOut,
    /// The connection broke.
    Broken,
    /// A CONNECT for what is not ours.
    Connect,
}

impl tunnel::refused::Cause for Cause {
    const ALL: &'static [Self] = &[
        Self::Socket,
        Self::Overload,
        Self::NoListener,
        Self::ProxyProtocol,
        Self::Tls,
        Self::Certificate,
        Self::TimedOut,
        Self::Broken,
        Self::Connect,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Overload => "overload",
            Self::NoListener => "no_listener",
            Self::ProxyProtocol => "proxy_protocol",
            Self::Tls => "tls",
            Self::Certificate => "certificate",
            Self::TimedOut => "timed_out",
            Self::Broken => "broken",
            Self::Connect => "connect",
        }
    }
}

/// How many were refused, by cause.
pub(crate) type Refused = tunnel::refused::Refused<Cause>;
