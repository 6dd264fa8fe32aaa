// SPDX-License-Identifier: Apache-2.0

//! Connections and streams that were refused before they were anybody's.
//!
//! Counts them by cause; the first of each cause is logged as a warning, the
//! rest only when debugging, so that a scan of the port does not fill the log.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::dial::with_causes;

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

impl Cause {
    const ALL: [Self; 9] = [
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
#[derive(Debug, Default)]
pub(crate) struct Refused([AtomicU64; Cause::ALL.len()]);

impl Refused {
    /// Counts one, and tells of it.
    pub(crate) fn note(&self, cause: Cause, error: &dyn std::error::Error, peer: SocketAddr) {
        let place = Cause::ALL.iter().position(|one| *one == cause);
        let Some(count) = place.and_then(|place| self.0.get(place)) else { return };
        let (cause, error) = (cause.as_str(), with_causes(error));
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(cause, error, %peer, "connection refused; the next ones are counted");
        } else {
            tracing::debug!(cause, error, %peer, "connection refused");
        }
    }
}

impl Collector for Refused {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "waymark_connections_refused",
            "Connections and streams refused before they were routed",
            None,
            MetricType::Counter,
        )?;
        for (cause, count) in Cause::ALL.iter().zip(&self.0) {
            let labels = [("cause", cause.as_str())];
            let count = count.load(Ordering::Relaxed);
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}
