// SPDX-License-Identifier: Apache-2.0

//! One session from its permit to its line in the access log.
//!
//! Owns: carrying under a permit that may be withdrawn, the end at the pod's
//! or the process's end, counters and the log line.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use policy::authz::Denied;
use policy::peer::Peer;
use routing::discovery::Workload;
use routing::wire::chain;

use super::Core;
use super::carry::{self, Side};
use super::span::SessionSpan;
use crate::access_log::{Fields, Level};
use crate::inpod::pods::Pod;
use crate::inpod::sessions::OpenSession;
use crate::metrics::{Cause, Flag, Reporter, Traffic};

/// Why a session ended other than by its ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The permit was withdrawn.
    #[error("connection closed due to policy change")]
    Revoked(#[source] Denied),
    /// The pod or the process has ended.
    #[error("connection closed due to connection drain")]
    Drained,
    /// Bytes could not be carried.
    #[error("io error")]
    Carry(#[source] io::Error),
}

/// What is known of a session for telemetry.
pub(super) struct Record {
    pub(super) start: Instant,
    pub(super) traffic: Traffic,
    /// Address of the client.
    pub(super) source: SocketAddr,
    /// What the client asked for.
    pub(super) asked: SocketAddr,
    /// What was dialled.
    pub(super) destination: Option<SocketAddr>,
    /// Authority of the CONNECT.
    pub(super) authority: Option<String>,
    /// Ended once, with the session.
    pub(super) span: Cell<Option<SessionSpan>>,
}

/// A permit that is asked for again at every change of policy.
pub(super) struct Watched<'a> {
    pub(super) local: &'a Arc<Workload>,
    pub(super) peer: &'a Peer,
    pub(super) target: SocketAddr,
}

impl Record {
    /// A session from `source` that asked for `asked`, which is dialled unless
    /// [`Self::destination`] says otherwise later.
    pub(super) fn new(traffic: Traffic, source: SocketAddr, asked: SocketAddr) -> Self {
        let (start, destination) = (Instant::now(), Some(asked));
        let span = Cell::default();
        Self { start, traffic, source, asked, destination, authority: None, span }
    }

    /// The same, with its span.
    pub(super) fn traced(self, span: Option<SessionSpan>) -> Self {
        Self { span: Cell::new(span), ..self }
    }

    fn fields(&self) -> Fields {
        let mut fields = Fields::default();
        let Traffic { source, destination, source_identity, destination_identity, .. } =
            &self.traffic;
        let name = |workload: &Arc<Workload>| match workload.name.is_empty() {
            true => workload.canonical_name.to_string(),
            false => workload.name.to_string(),
        };
        fields.bare("src.addr", self.source);
        if let Some(source) = source {
            fields.text("src.workload", &name(source));
            fields.text("src.namespace", source.namespace.as_str());
        }
        if let Some(identity) = source_identity {
            fields.text("src.identity", identity.as_str());
        }
        if let Some(source) = source {
            fields.text("src.cluster", &source.cluster);
        }
        if let Some(address) = self.destination {
            fields.bare("dst.addr", address);
        }
        if let Some(authority) = &self.authority {
            fields.bare("dst.hbone_addr", authority);
        }
        if let Some(service) = &self.traffic.service {
            fields.text("dst.service", &service.key.hostname);
        }
        if let Some(destination) = destination {
            fields.text("dst.workload", &name(destination));
            fields.text("dst.namespace", destination.namespace.as_str());
        }
        if let Some(identity) = destination_identity {
            fields.text("dst.identity", identity.as_str());
        }
        if let Some(destination) = destination {
            fields.text("dst.cluster", &destination.cluster);
        }
        let direction = match self.traffic.reporter {
            Reporter::Source => "outbound",
            Reporter::Destination => "inbound",
        };
        fields.text("direction", direction);
        fields
    }
}

impl Core {
    /// Counts and notes a session that never began.
    pub(super) fn failed(&self, record: &Record, flag: Flag, why: &dyn std::error::Error) {
        self.metrics.failed(&record.traffic, flag);
        self.over(record, (0, 0), Some(why), true);
    }

    /// Counts a CONNECT that was refused. What policy or the application refused is always
    /// noted; of other causes the first one is, the rest only when debugging.
    pub(super) fn refused_connect(
        &self,
        record: &Record,
        (cause, flag): (Cause, Flag),
        why: &dyn std::error::Error,
    ) {
        self.metrics.failed(&record.traffic, flag);
        let first = self.metrics.process().refused.count(cause);
        let always = matches!(cause, Cause::Denied | Cause::Unreachable);
        let told = always || first || tracing::enabled!(target: "access", tracing::Level::DEBUG);
        self.over(record, (0, 0), Some(why), told);
    }

    /// Writes the line of a session that is over, if it is to be `told`, and ends its span.
    fn over(
        &self,
        record: &Record,
        (sent, received): (u64, u64),
        error: Option<&dyn std::error::Error>,
        told: bool,
    ) {
        let level = if error.is_none() { Level::Info } else { Level::Error };
        let enabled = match level {
            Level::Info => tracing::enabled!(target: "access", tracing::Level::INFO),
            Level::Debug | Level::Warn | Level::Error => {
                tracing::enabled!(target: "access", tracing::Level::ERROR)
            }
        };
        let (log, span) = (told && enabled, record.span.take());
        if !log && span.is_none() {
            return;
        }
        let mut fields = record.fields();
        fields.bare("bytes_sent", sent);
        fields.bare("bytes_recv", received);
        fields.text("duration", &format!("{}ms", record.start.elapsed().as_millis()));
        let error = error.map(chain);
        if let Some(error) = &error {
            fields.text("error", error);
        }
        if log {
            self.log.access(level, "connection complete", &fields);
        }
        if let Some(span) = span {
            span.end(fields, error);
        }
    }

    /// Counts an HBONE connection that was refused before it was anybody's; the first of
    /// each cause is noted, the rest only when debugging.
    pub(super) fn refused(
        &self,
        cause: Cause,
        (peer, connected): (SocketAddr, SocketAddr),
        why: &dyn std::error::Error,
    ) {
        let first = self.metrics.process().refused.count(cause);
        if first || tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            self.closed_early(Reporter::Destination, peer, connected, why);
        }
    }

    /// Notes a connection that was closed before anything was known of it.
    pub(super) fn closed_early(
        &self,
        reporter: Reporter,
        source: SocketAddr,
        target: SocketAddr,
        why: &dyn std::error::Error,
    ) {
        if !tracing::enabled!(target: "access", tracing::Level::WARN) {
            return;
        }
        let mut fields = Fields::default();
        fields.bare("src.addr", source);
        fields.bare("dst.addr", target);
        let outbound = reporter == Reporter::Source;
        fields.text("direction", if outbound { "outbound" } else { "inbound" });
        fields.text("error", &chain(why));
        self.log.access(Level::Warn, "connection failed", &fields);
    }

    /// Carries a session to its end, and notes it.
    pub(super) async fn carry(
        &self,
        pod: &Pod,
        record: Record,
        (client, server): (Side, Side),
        permit: Option<Watched<'_>>,
    ) {
        let counters = self.metrics.opened(&record.traffic);
        let _listed = pod.sessions.list(OpenSession {
            outbound: record.traffic.reporter == Reporter::Source,
            source: record.source,
            asked: record.authority.clone().unwrap_or_else(|| record.asked.to_string()),
            dialled: record.destination,
            hbone: record.authority.is_some(),
        });
        if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            self.log.access(Level::Debug, "connection opened", &record.fields());
        }
        let result = {
            let bytes = carry::both(client, server, &counters);
            tokio::select! {
                // A revoked session must not lose the race to its last bytes.
                biased;
                error = self.revoked(permit) => Err(error),
                () = pod.cut() => Err(SessionError::Drained),
                result = bytes => result.map_err(SessionError::Carry),
            }
        };
        let (received, sent) = counters.totals();
        drop(counters);
        // The log tells it as the captured pod sees it, unlike the metrics.
        let own = match record.traffic.reporter {
            Reporter::Source => (received, sent),
            Reporter::Destination => (sent, received),
        };
        let error = result.as_ref().err().map(|error| error as &dyn std::error::Error);
        self.over(&record, own, error, true);
    }

    /// Completes once the permit is withdrawn; without a permit to watch, never.
    async fn revoked(&self, permit: Option<Watched<'_>>) -> SessionError {
        let Some(Watched { local, peer, target }) = permit else {
            return std::future::pending().await;
        };
        let mut policies = self.shared.policies();
        // Policies may have changed between the first permit and now.
        policies.mark_changed();
        while policies.changed().await.is_ok() {
            match self.judge(local, peer, target) {
                Ok(_) => {}
                // It was there when the session began; its absence must not cut it.
                Err(Denied::Missing(_)) => {}
                Err(denied) => return SessionError::Revoked(denied),
            }
        }
        std::future::pending().await
    }
}
