// SPDX-License-Identifier: Apache-2.0

//! The life of one container: start, probes, restart with back-off, end.
//!
//! Owns: the state of one container and its reports; everything is told to the pod's task
//! by a watch channel. Leaves single processes to [`super::process`].
//!
//! Keeps: a container is ready only while its process runs and its readiness probe, if it
//! has one, has succeeded in this run.
//!
//! Start at [`Unit::run`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::probe::{Plan, Prober};
use super::process::{Dress, Process, run_inside};
use crate::local::plan::image::Launch;

/// Until the first success probes follow each other this fast; a page shall be up in seconds.
const EAGER: Duration = Duration::from_millis(100);

/// A run of this long makes the next restart the first again.
const SETTLED: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Restart {
    /// Whenever it ended, waiting longer each time.
    Always,
    /// Whenever it ended, within a second.
    AtOnce,
    /// If it failed.
    OnFailure,
    /// Not at all.
    Never,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct State {
    /// Whether it takes traffic.
    pub(super) ready: bool,
    /// Process id while it runs.
    pub(super) pid: Option<i32>,
    /// When it was last started.
    pub(super) started: Option<time::OffsetDateTime>,
    /// How it last ended.
    pub(super) exit_code: Option<i32>,
    /// Why it does not run: a reason as Kubernetes words it.
    pub(super) waiting: Option<&'static str>,
    /// The reason at length.
    pub(super) message: Option<String>,
    /// How often it was started again.
    pub(super) restarts: u32,
    /// Ended for good.
    pub(super) done: bool,
}

/// One container, ready to run.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// Where and in what.
    pub(super) dress: Dress,
    /// What.
    pub(super) launch: Launch,
    /// With which variables.
    pub(super) env: BTreeMap<String, String>,
    /// Where its output goes.
    pub(super) log: PathBuf,
    /// When again.
    pub(super) restart: Restart,
    /// Holds the others back until it succeeded once.
    pub(super) startup: Option<Plan>,
    /// Restarts the container when it fails.
    pub(super) liveness: Option<Plan>,
    /// Decides over traffic.
    pub(super) readiness: Option<Plan>,
    /// Command to run inside before the end is asked for.
    pub(super) pre_stop: Option<Vec<String>>,
    /// Wait before the end is asked for.
    pub(super) pre_stop_sleep: Duration,
    /// Longest wait for the end.
    pub(super) grace: Duration,
    /// Who sends the probes; none for processes of the world itself.
    pub(super) prober: Option<Prober>,
}

/// How one run ended.
enum End {
    /// By itself.
    Exit(i32),
    /// We were asked to stop.
    Stopped,
    /// The liveness or startup probe failed too often.
    Unhealthy,
}

impl Unit {
    /// Runs the container until `stop` holds a grace period, reporting to `state`.
    pub(super) async fn run(
        &self,
        state: &watch::Sender<State>,
        mut stop: watch::Receiver<Option<Duration>>,
    ) {
        let mut backoff = Duration::ZERO;
        loop {
            let begun = Instant::now();
            let end = self.run_once(state, &mut stop).await;
            let failed = match end {
                Ok(End::Stopped) => {
                    state.send_modify(|state| {
                        state.done = true;
                        state.ready = false;
                        state.pid = None;
                    });
                    return;
                }
                Ok(End::Exit(code)) => {
                    state.send_modify(|state| {
                        state.exit_code = Some(code);
                    });
                    code != 0
                }
                Ok(End::Unhealthy) => true,
                Err(cause) => {
                    state.send_modify(|state| state.message = Some(cause.to_string()));
                    true
                }
            };
            let again = match self.restart {
                Restart::Always | Restart::AtOnce => true,
                Restart::OnFailure => failed,
                Restart::Never => false,
            };
            backoff = self.next_backoff(backoff, begun.elapsed());
            state.send_modify(|state| {
                state.ready = false;
                state.pid = None;
                state.done = !again;
                state.waiting = (again && !backoff.is_zero()).then_some("CrashLoopBackOff");
            });
            if !again {
                return;
            }
            tokio::select! {
                () = sleep(backoff) => {}
                _ = stop.wait_for(Option::is_some) => {
                    state.send_modify(|state| state.done = true);
                    return;
                }
            }
            state.send_modify(|state| {
                state.restarts += 1;
                state.message = None;
            });
        }
    }

    fn next_backoff(&self, last: Duration, ran: Duration) -> Duration {
        if ran >= SETTLED {
            return Duration::ZERO;
        }
        let (first, most) = match self.restart {
            Restart::AtOnce => (Duration::from_millis(100), Duration::from_millis(800)),
            Restart::Always | Restart::OnFailure | Restart::Never => {
                (Duration::from_millis(500), Duration::from_secs(30))
            }
        };
        if last.is_zero() { first } else { (last * 2).min(most) }
    }

    async fn run_once(
        &self,
        state: &watch::Sender<State>,
        stop: &mut watch::Receiver<Option<Duration>>,
    ) -> std::io::Result<End> {
        let mut process = Process::start(&self.dress, &self.launch, &self.env, &self.log)?;
        let pid = process.id();
        let now = time::OffsetDateTime::now_utc();
        state.send_modify(|state| {
            state.pid = Some(pid);
            state.started = Some(now);
            state.waiting = None;
            state.ready = self.readiness.is_none() && self.startup.is_none();
        });
        tokio::select! {
            ended = process.ended() => {
                let status = ended?;
                use std::os::unix::process::ExitStatusExt as _;
                let killed = status.signal().map(|signal| 128 + signal);
                Ok(End::Exit(status.code().or(killed).unwrap_or(1)))
            }
            () = self.watch_health(state, pid) => {
                process.stop(self.grace).await;
                Ok(End::Unhealthy)
            }
            grace = wanted(stop) => {
                state.send_modify(|state| state.ready = false);
                self.before_stop(pid, grace).await;
                process.stop(grace).await;
                Ok(End::Stopped)
            }
        }
    }

    async fn before_stop(&self, pid: i32, grace: Duration) {
        sleep(self.pre_stop_sleep.min(grace)).await;
        if let Some(command) = &self.pre_stop {
            // As in Kubernetes its failure changes nothing.
            run_inside(pid, command, grace).await;
        }
    }

    /// Runs the probes; resolves when the container has to be restarted.
    async fn watch_health(&self, state: &watch::Sender<State>, pid: i32) {
        let Some(prober) = &self.prober else { return std::future::pending().await };
        if let Some(plan) = &self.startup {
            if !started(prober, plan, pid).await {
                return;
            }
            state.send_modify(|state| state.ready = self.readiness.is_none());
        }
        let readiness = async {
            match &self.readiness {
                Some(plan) => {
                    let tell = |ready| {
                        state.send_if_modified(|state| {
                            std::mem::replace(&mut state.ready, ready) != ready
                        });
                        true
                    };
                    follow(prober, plan, pid, tell).await;
                }
                None => std::future::pending().await,
            }
        };
        let liveness = async {
            match &self.liveness {
                Some(plan) => follow(prober, plan, pid, |alive| alive).await,
                None => std::future::pending().await,
            }
        };
        // Readiness never ends by itself: what ends is a container that is not alive.
        tokio::select! {
            () = readiness => {}
            () = liveness => {}
        }
    }
}

/// Waits until a stop is wanted; gives its grace period.
async fn wanted(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match stop.wait_for(Option::is_some).await {
        Ok(grace) => grace.unwrap_or_default(),
        // The supervisor itself is going.
        Err(_) => Duration::ZERO,
    }
}

/// True once the startup probe succeeded; false when it failed for as long as it may.
async fn started(prober: &Prober, plan: &Plan, pid: i32) -> bool {
    sleep(plan.delay).await;
    let limit = Instant::now() + plan.period * plan.failures;
    loop {
        if prober.probe(plan, pid).await {
            return true;
        }
        if Instant::now() >= limit {
            return false;
        }
        sleep(EAGER.min(plan.period)).await;
    }
}

/// Probes on and on and tells each change; ends when `tell` answers false.
async fn follow(prober: &Prober, plan: &Plan, pid: i32, mut tell: impl FnMut(bool) -> bool) {
    sleep(plan.delay).await;
    let mut ever = false;
    let (mut good, mut bad) = (0, 0);
    loop {
        let begun = Instant::now();
        if prober.probe(plan, pid).await {
            good += 1;
            bad = 0;
            ever = true;
        } else {
            bad += 1;
            good = 0;
        }
        // Before the first success, failures of a liveness probe count by time alone.
        let fast_failures = if ever { 1 } else { pace(plan) };
        if good == plan.successes && !tell(true) {
            return;
        }
        if bad >= plan.failures.saturating_mul(fast_failures) {
            bad = 0;
            if !tell(false) {
                return;
            }
        }
        let pause = if ever { plan.period } else { EAGER.min(plan.period) };
        sleep_until(begun + pause).await;
    }
}

/// How many eager probes fit into one period.
fn pace(plan: &Plan) -> u32 {
    u32::try_from(plan.period.as_millis() / EAGER.as_millis()).unwrap_or(u32::MAX).max(1)
}
