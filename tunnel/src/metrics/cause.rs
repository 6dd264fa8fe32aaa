// SPDX-License-Identifier: Apache-2.0

//! Why a connection or a CONNECT was refused before it was a session.

use crate::refused;

/// Why one was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Its pod has its share already.
    Overload,
    /// The controller has not told who the pod is.
    UnknownPod,
    /// There is no certificate to answer with.
    Certificate,
    /// TLS failed, or the peer proved nothing.
    Tls,
    /// The peer's certificate was withdrawn.
    Revoked,
    /// The peer broke HTTP/2.
    Http2,
    /// The handshake took too long.
    TimedOut,
    /// The peer answers no more.
    Silent,
    /// Its authority cannot be read.
    Malformed,
    /// It is meant for another pod.
    OtherPod,
    /// It is for what this pod is not.
    Foreign,
    /// Policy refused it.
    Denied,
    /// The application cannot be reached.
    Unreachable,
}

impl refused::Cause for Cause {
    const ALL: &'static [Self] = &[
        Self::Overload,
        Self::UnknownPod,
        Self::Certificate,
        Self::Tls,
        Self::Revoked,
        Self::Http2,
        Self::TimedOut,
        Self::Silent,
        Self::Malformed,
        Self::OtherPod,
        Self::Foreign,
        Self::Denied,
        Self::Unreachable,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::UnknownPod => "unknown_pod",
            Self::Certificate => "certificate",
            Self::Tls => "tls",
            Self::Revoked => "revoked",
            Self::Http2 => "http2",
            Self::TimedOut => "timed_out",
            Self::Silent => "silent",
            Self::Malformed => "malformed",
            Self::OtherPod => "other_pod",
            Self::Foreign => "foreign",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
        }
    }
}
