// SPDX-License-Identifier: Apache-2.0

//! Sessions of captured pods: out, in by HBONE, in as plain bytes.
//!
//! Owns what one worker has at hand for them ([`Core`]) and the steps they
//! share: knowing the local workload, asking the policy. Leaves the way to
//! `routing::l4` and the bytes to [`carry`].
//!
//! Keeps: no byte passes before the policy allows it; a withdrawn permit ends
//! the session at once.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use policy::authz::{self, Denied, Permit, Recorded};
use policy::peer::Peer;
use policy::request::Request;
use rand::Rng as _;
use routing::balance::outlier::{self, Outliers};
use routing::discovery::Workload;
use routing::snapshot::Snapshot;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::access_log::LogWriter;
use crate::hbone::pool::Pool;
use crate::inpod::pods::Pod;
use crate::inpod::proof::Prover;
use crate::metrics::WorkerMetrics;
use crate::settings::Settings;
use crate::state::Shared;
use crate::sys::{self, SocketSettings};
use crate::trace::Tracer;
use crate::worker::Workers;

mod application;
pub mod carry;
mod headers;
pub mod inbound;
pub mod listen;
pub mod outbound;
pub mod passthrough;
mod session;
mod span;

/// What one worker has at hand for its sessions.
#[derive(Debug)]
pub struct Core {
    /// Values of the process.
    pub settings: Arc<Settings>,
    /// Snapshot and its changes.
    pub shared: Arc<Shared>,
    /// HBONE connections of this worker.
    pub pool: Pool,
    /// Counters of this worker.
    pub metrics: WorkerMetrics,
    /// Access log.
    pub log: LogWriter,
    /// Where spans go, if anywhere.
    pub traces: Option<Arc<Tracer>>,
    /// Answers the agent's probes.
    pub prover: Prover,
    /// Endpoints that failed lately, as this worker saw it.
    pub outliers: RefCell<Outliers<Arc<str>>>,
    /// Sessions of all workers, to wait for at the end.
    pub sessions: TaskTracker,
}

/// What all workers are made from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Values of the process.
    pub settings: Arc<Settings>,
    /// Snapshot and its changes.
    pub shared: Arc<Shared>,
    /// Counters of the process.
    pub metrics: Arc<crate::metrics::Metrics>,
    /// Access log.
    pub log: LogWriter,
    /// Where spans go, if anywhere.
    pub traces: Option<Arc<Tracer>>,
    /// Sessions of all workers.
    pub sessions: TaskTracker,
}

/// All workers of the tunnel.
pub type TunnelWorkers = Workers<Core>;

impl Core {
    /// Makes a worker's state on its thread, and starts its chores.
    #[must_use]
    pub fn new(parts: &Parts) -> Self {
        let pool = Pool::new(parts.settings.limits.hbone);
        Self {
            settings: Arc::clone(&parts.settings),
            shared: Arc::clone(&parts.shared),
            pool,
            metrics: WorkerMetrics::new(Arc::clone(&parts.metrics)),
            log: parts.log.clone(),
            traces: parts.traces.clone(),
            prover: Prover::beside(&parts.settings.agent),
            outliers: RefCell::new(Outliers::new(outlier::Limits::default())),
            sessions: parts.sessions.clone(),
        }
    }

    /// What a worker does beside its sessions, for ever.
    pub async fn chores(self: Rc<Self>) {
        let idle = self.pool.clone().close_idle();
        let flush = async {
            let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                tick.tick().await;
                self.metrics.flush();
            }
        };
        tokio::join!(idle, flush);
    }

    /// Starts a session's task on this worker.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let token = self.sessions.token();
        tokio::task::spawn_local(async move {
            task.await;
            drop(token);
        });
    }

    /// The workload that `pod` is, if the controller has told.
    pub(crate) fn known(&self, pod: &Pod) -> Option<Arc<Workload>> {
        pod.workload(&self.shared.snapshot())
    }

    /// The workload that `pod` is, waiting a little for the controller to tell.
    pub(crate) async fn local(&self, pod: &Pod) -> Option<Arc<Workload>> {
        if let Some(found) = pod.workload(&self.shared.snapshot()) {
            return Some(found);
        }
        let mut revisions = self.shared.revisions();
        let known = async {
            loop {
                if let Some(found) = pod.workload(&self.shared.snapshot()) {
                    return Some(found);
                }
                revisions.changed().await.ok()?;
            }
        };
        tokio::time::timeout(self.settings.limits.patience, known).await.ok()?
    }

    /// Asks the policy whether `peer` may open a session to `target` at `local`,
    /// waiting a little for a policy that has not arrived.
    async fn permit(
        &self,
        local: &Arc<Workload>,
        peer: &Peer,
        target: SocketAddr,
    ) -> Result<Permit, Denied> {
        let first = self.judge(local, peer, target);
        let Err(Denied::Missing(_)) = first else { return first };
        let mut revisions = self.shared.revisions();
        let arrived = async {
            loop {
                match self.judge(local, peer, target) {
                    Err(Denied::Missing(_)) if revisions.changed().await.is_ok() => {}
                    decided => return decided,
                }
            }
        };
        tokio::time::timeout(self.settings.limits.patience, arrived).await.unwrap_or(first)
    }

    /// Asks the policy of now. A workload that changed meanwhile is looked up anew.
    fn judge(&self, local: &Arc<Workload>, peer: &Peer, at: SocketAddr) -> Result<Permit, Denied> {
        let snapshot = self.shared.snapshot();
        let newest = snapshot.discovery.workload(&local.uid).unwrap_or(local);
        judge(&snapshot, newest, peer, at)
    }

    /// A connection to `target` inside the pod; the address of `source` is kept as its own.
    ///
    /// The port is ours to choose, and must not be one that the caller has: the caller's own
    /// connection to `target` may be in this namespace too, and the two would be one to the
    /// kernel. So it is taken below the range from which systems choose.
    async fn dial(
        &self,
        pod: &Pod,
        target: SocketAddr,
        source: Option<SocketAddr>,
    ) -> io::Result<TcpStream> {
        let dial = async {
            for _ in 0..KEPT_TRIES {
                let port = rand::rng().random_range(KEPT_PORTS);
                let source = source.map(|source| SocketAddr::new(source.ip(), port));
                match self.dial_from(pod, target, source).await {
                    Err(error) if source.is_some() && is_taken(&error) => {}
                    outcome => return outcome,
                }
            }
            Err(io::ErrorKind::AddrInUse.into())
        };
        let stream = tokio::time::timeout(self.settings.limits.connect, dial).await;
        let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        sys::tune_tcp(&stream, Some(self.settings.limits.keepalive))?;
        Ok(stream)
    }

    async fn dial_from(
        &self,
        pod: &Pod,
        target: SocketAddr,
        source: Option<SocketAddr>,
    ) -> io::Result<TcpStream> {
        let mark = self.settings.mark;
        let transparent = source.is_some();
        let settings = SocketSettings { mark, transparent, ..SocketSettings::default() };
        pod.netns.enter(|| sys::client_tcp(target, source, settings))??.connect(target).await
    }

    /// Endpoints that failed lately come last.
    fn is_out(&self, uid: &Arc<str>) -> bool {
        self.outliers.borrow().is_out(uid, Instant::now())
    }
}

/// Ports of connections that keep their caller's address.
const KEPT_PORTS: std::ops::RangeInclusive<u16> = 1024..=32767;

/// How many of them are tried: enough while most of those towards one application are taken.
const KEPT_TRIES: usize = 32;

/// Tells whether a port was taken for these two ends.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Asks the policies of `snapshot` about a session.
fn judge(
    snapshot: &Snapshot,
    local: &Workload,
    peer: &Peer,
    target: SocketAddr,
) -> Result<Permit, Denied> {
    let in_force = snapshot.authorizations.in_force(local);
    let record = |only: Recorded<'_>| {
        tracing::info!(
            policy = %only.policy,
            action = ?only.action,
            rule = only.rule,
            peer = %peer.address,
            "policy that is only recorded"
        );
    };
    authz::evaluate_and_record(in_force, &Request::session(peer, target), record)
}
