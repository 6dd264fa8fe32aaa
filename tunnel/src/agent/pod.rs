// SPDX-License-Identifier: Apache-2.0

//! One pod's task: does what its [`Course`] asks for, one step at a time.
//!
//! Owns: the namespace of the pod while the agent knows it, and the steps. The
//! order is the course's; who the pods are is [`super::node`]'s.
//!
//! Keeps: two steps of one pod never overlap; what it publishes is true after
//! each step.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, info, warn};

use super::capture;
use super::discover::holds_any;
use super::enrol::{Course, Outcome, Pace, Phase, Standing, Step, Want};
use super::host::HostProbes;
use super::metrics::AgentMetrics;
use super::notice::RuleWatch;
use super::older::{self, Connection, Sockets};
use super::probe::{Prober, Subject};
use super::spec::PodSpec;
use super::text;
use super::zds::{ServedPod, Zds};
use crate::sys::NetworkNamespace;

/// Rules are looked at one pod after the other: when a busy node proves late there are as many as
/// pods, and those that start must not wait behind them.
static INSPECTIONS: Semaphore = Semaphore::const_new(1);

/// What all pods of a node share.
#[derive(Debug)]
pub struct Tools {
    /// Hands pods to the tunnel.
    pub zds: Zds,
    /// Asks for proofs.
    pub prober: Prober,
    /// The node's own exemption of the kubelet.
    pub host: Arc<HostProbes>,
    /// Times that bound each pod's course.
    pub pace: watch::Receiver<Pace>,
    /// Counters.
    pub metrics: AgentMetrics,
    /// Counts changes of any pod's status: there is something to report.
    pub changed: watch::Sender<u64>,
}

/// What a pod's task is told.
#[derive(Debug)]
pub enum Event {
    /// The controller wants this; the number counts what the task was told.
    Want(Want, Option<PodSpec>, u64),
    /// Its namespace is known: where it came from, and its addresses there.
    Namespace(Box<Place>, u64),
    /// Its namespace is gone; the pod may get another one.
    Vacated(u64),
    /// A tunnel has connected.
    Tunnel,
    /// The pod is gone; the task ends.
    Gone,
}

/// Where a pod lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// File that names the namespace, if a plug-in told of it.
    pub path: Option<PathBuf>,
    /// The namespace.
    pub namespace: Arc<NetworkNamespace>,
    /// Addresses that the plug-in told of.
    pub addresses: Vec<IpAddr>,
}

/// What is published of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// What is wanted.
    pub want: Want,
    /// Number of the last event that was taken in.
    pub heard: u64,
    /// How far it has come.
    pub phase: Phase,
    /// What others are told.
    pub standing: Standing,
    /// Why, if there is something to say.
    pub reason: String,
    /// Connections older than enrolment that are still open.
    pub older: BTreeSet<Connection>,
    /// Times that lost rules were put back.
    pub repairs: u32,
    /// Plain connections to the pod are not captured.
    pub plain_inbound: bool,
    /// Generation of the description whose rules are in force; 0 before any were.
    pub observed: u64,
}

impl Status {
    /// Status of a pod of which an earlier agent left `remains`.
    #[must_use]
    pub fn new(remains: &Remains) -> Self {
        let course = Course::resumed(remains.phase, remains.repairs);
        let rules = InForce { inbound: true, generation: remains.observed };
        Self::of(&course, 0, rules, &remains.older)
    }

    fn of(course: &Course, heard: u64, rules: InForce, older: &BTreeSet<Connection>) -> Self {
        let (standing, reason) = course.standing();
        Self {
            want: course.wanted(),
            heard,
            phase: course.phase(),
            standing,
            reason,
            older: older.clone(),
            repairs: course.repairs(),
            plain_inbound: !(rules.inbound
                && matches!(course.phase(), Phase::Captured | Phase::Enrolled)),
            observed: rules.generation,
        }
    }
}

/// What an earlier agent has left of a pod.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Remains {
    /// How far it had come.
    pub phase: Phase,
    /// Older connections at that time.
    pub older: BTreeSet<Connection>,
    /// Repairs so far.
    pub repairs: u32,
    /// Generation of the description whose rules were in force.
    #[serde(default)]
    pub observed: u64,
}

/// What is known of the rules that were set last.
#[derive(Clone, Copy, Debug)]
struct InForce {
    /// They capture plain inbound connections.
    inbound: bool,
    /// Generation of the description that they follow.
    generation: u64,
}

/// The task's own state.
struct Pod {
    uid: Arc<str>,
    tools: Arc<Tools>,
    course: Course,
    heard: u64,
    spec: Option<PodSpec>,
    place: Option<Place>,
    watch: Option<RuleWatch>,
    /// What was in force right after the rules were set.
    in_force: Option<Value>,
    rules: InForce,
    older: BTreeSet<Connection>,
}

/// Runs the task of the pod `uid` until it is gone.
///
/// `spec` and `remains` are what an earlier agent knew.
pub async fn run(
    uid: Arc<str>,
    tools: Arc<Tools>,
    left: (Option<PodSpec>, Remains),
    mut events: mpsc::UnboundedReceiver<Event>,
    status: watch::Sender<Status>,
) {
    let (spec, remains) = left;
    let mut pod = Pod {
        uid,
        tools,
        course: Course::resumed(remains.phase, remains.repairs),
        heard: 0,
        spec,
        place: None,
        watch: None,
        in_force: None,
        // What an earlier agent set is set anew at once; until then the word is not taken back.
        rules: InForce { inbound: remains.phase != Phase::Outside, generation: remains.observed },
        older: remains.older,
    };
    loop {
        pod.publish(&status);
        let step = pod.course.next(Instant::now());
        let Step::Wait(until) = step else {
            let outcome = pod.perform(step).await;
            if let Outcome::Failed(reason) = &outcome {
                debug!(uid = &*pod.uid, ?step, reason, "step failed");
            }
            let pace = *pod.tools.pace.borrow();
            pod.course.finished(step, outcome, Instant::now(), pace);
            while let Ok(event) = events.try_recv() {
                if pod.take(event).await.is_break() {
                    return;
                }
            }
            continue;
        };
        tokio::select! {
            event = events.recv() => {
                // Without senders the agent is ending, and its pods stay as they are.
                let Some(event) = event else { return };
                if pod.take(event).await.is_break() {
                    return;
                }
            }
            () = sleep_until(until) => {}
            () = changed(pod.watch.as_ref()) => pod.course.disturb(),
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn changed(watch: Option<&RuleWatch>) {
    let followed = match watch {
        Some(watch) => watch.changed().await.is_ok(),
        None => false,
    };
    if !followed {
        std::future::pending().await
    }
}

impl Pod {
    async fn take(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Want(want, spec, number) => {
                self.heard = number;
                if spec.is_some() && spec != self.spec {
                    self.spec = spec;
                    self.course.outdate();
                }
                self.course.want(want);
            }
            Event::Namespace(place, number) => {
                let lives = self.place.as_ref().map(|place| place.namespace.id());
                if lives.is_some_and(|id| id != place.namespace.id()) {
                    self.vacate().await;
                }
                self.heard = number;
                self.place = Some(*place);
                self.course.present(true);
            }
            Event::Vacated(number) => {
                self.heard = number;
                self.vacate().await;
            }
            Event::Tunnel => self.course.prove_now(),
            Event::Gone => {
                self.bury().await;
                return std::ops::ControlFlow::Break(());
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn publish(&self, status: &watch::Sender<Status>) {
        let now = Status::of(&self.course, self.heard, self.rules, &self.older);
        let changed = status.send_if_modified(|last| {
            if *last == now {
                return false;
            }
            if last.standing != now.standing {
                info!(uid = &*self.uid, standing = ?now.standing, reason = now.reason, "pod");
            }
            *last = now;
            true
        });
        if changed {
            self.tools.changed.send_modify(|count| *count += 1);
        }
    }

    /// Begins anew, as a pod that has no namespace yet.
    async fn vacate(&mut self) {
        self.bury().await;
        self.course.vacate();
        self.place = None;
        self.watch = None;
        self.in_force = None;
        self.rules = InForce { inbound: false, generation: 0 };
        self.older.clear();
    }

    /// Everything that outlives the namespace is taken back.
    async fn bury(&self) {
        if let Err(error) = self.tools.zds.delete(&self.uid).await {
            warn!(uid = &*self.uid, %error, "tunnel keeps a pod that is gone");
        }
        if let Err(error) = self.tools.host.forget(&self.uid).await {
            warn!(uid = &*self.uid, %error, "cannot take back the kubelet's exemption");
        }
    }

    async fn perform(&mut self, step: Step) -> Outcome {
        let result = match step {
            Step::HandOver => self.hand_over().await,
            Step::Capture => self.capture().await,
            Step::Prove => self.prove().await,
            Step::Inspect => self.inspect().await,
            Step::Release => self.release().await,
            Step::Withdraw => self.withdraw().await,
            Step::LookAtDrain => self.look_at_drain(),
            Step::Remove => self.remove().await,
            Step::Wait(_) => Ok(Outcome::Done),
        };
        result.unwrap_or_else(Outcome::Failed)
    }

    fn namespace(&self) -> Result<Arc<NetworkNamespace>, String> {
        let place = self.place.as_ref().ok_or("network namespace is not known")?;
        Ok(Arc::clone(&place.namespace))
    }

    fn spec(&self) -> Result<&PodSpec, String> {
        self.spec.as_ref().ok_or_else(|| "the controller has not described the pod".to_owned())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let told = self.spec.iter().flat_map(|spec| &spec.addresses);
        let seen = self.place.iter().flat_map(|place| &place.addresses);
        let all: BTreeSet<IpAddr> = told.chain(seen).copied().collect();
        all.into_iter().collect()
    }

    async fn hand_over(&mut self) -> Result<Outcome, String> {
        let namespace = self.namespace()?;
        let spec = self.spec()?;
        let addresses = self.addresses();
        if !addresses.is_empty() && !holds_any(&namespace, &addresses).map_err(text)? {
            return Err("the namespace holds none of the pod's addresses".to_owned());
        }
        let pod = ServedPod { uid: Arc::clone(&self.uid), who: spec.who(), netns: Some(namespace) };
        self.tools.zds.add(pod).await.map_err(text)?;
        Ok(Outcome::Done)
    }

    async fn capture(&mut self) -> Result<Outcome, String> {
        let namespace = self.namespace()?;
        let spec = self.spec()?;
        let capture = spec.capture(&self.addresses());
        let rules = InForce { inbound: capture.inbound, generation: spec.generation };
        let first = self.course.phase() == Phase::Handed;
        if first || capture.inbound && !self.rules.inbound {
            self.older.extend(Sockets::of(&namespace).map_err(text)?.of_application());
        }
        self.watch = None;
        self.tools.host.set(&self.uid, capture.probes.clone()).await.map_err(text)?;
        capture::apply(&namespace, &capture).await.map_err(text)?;
        self.rules = rules;
        // Followed before it is read, so that no change falls in between.
        self.watch = Some(RuleWatch::open(&namespace).map_err(text)?);
        self.in_force = Some(capture::in_force(&namespace).await.map_err(text)?);
        Ok(Outcome::Done)
    }

    async fn prove(&mut self) -> Result<Outcome, String> {
        let namespace = self.namespace()?;
        let addresses = self.addresses();
        let spec = self.spec()?;
        let inbound = if spec.bypass_inbound { &[][..] } else { &addresses };
        let subject = Subject { uid: &self.uid, namespace: &namespace, inbound, names: spec.dns };
        let proof = self.tools.prober.prove(&subject).await;
        self.tools.metrics.proof(proof.is_ok());
        proof.map_err(|unproven| {
            let all: Vec<String> = unproven.iter().map(ToString::to_string).collect();
            format!("capture is not proven: {}", all.join("; "))
        })?;
        self.look_at_older().await?;
        Ok(Outcome::Done)
    }

    /// Older connections go on, but not those into a STRICT pod.
    async fn look_at_older(&mut self) -> Result<(), String> {
        if self.older.is_empty() {
            return Ok(());
        }
        let namespace = self.namespace()?;
        let sockets = Sockets::of(&namespace).map_err(text)?;
        self.older = sockets.still_open(&self.older);
        if self.spec()?.strict {
            let inbound = sockets.inbound(&self.older);
            if !inbound.is_empty() {
                older::close(&namespace, &inbound).await;
                let sockets = Sockets::of(&namespace).map_err(text)?;
                self.older = sockets.still_open(&self.older);
            }
        }
        Ok(())
    }

    async fn inspect(&mut self) -> Result<Outcome, String> {
        let namespace = self.namespace()?;
        // Nobody closes it: it is always there to be taken.
        let turn = INSPECTIONS.acquire().await;
        let found = capture::in_force(&namespace).await.map_err(text)?;
        drop(turn);
        if self.in_force.as_ref() == Some(&found) {
            return Ok(Outcome::Done);
        }
        if !capture::loopback_is_up(&namespace).await.map_err(text)? {
            return Err("the loopback of the pod is down, as when it is taken down".to_owned());
        }
        let before = self.in_force.take().unwrap_or_default();
        let changed = capture::difference(&before, &found);
        self.capture().await?;
        self.tools.metrics.repaired();
        warn!(uid = &*self.uid, changed, "capture rules were lost or changed, and are set again");
        Ok(Outcome::Repaired)
    }

    async fn release(&mut self) -> Result<Outcome, String> {
        self.watch = None;
        capture::release(&*self.namespace()?).await.map_err(text)?;
        Ok(Outcome::Done)
    }

    async fn withdraw(&mut self) -> Result<Outcome, String> {
        if let Err(error) = self.tools.zds.delete(&self.uid).await {
            // It was told; whether it knew the pod changes nothing here.
            warn!(uid = &*self.uid, %error, "tunnel refused to let go of a pod");
        }
        Ok(Outcome::Done)
    }

    fn look_at_drain(&self) -> Result<Outcome, String> {
        let sockets = Sockets::of(&*self.namespace()?).map_err(text)?;
        let withdrawn = matches!(self.course.phase(), Phase::Withdrawn);
        let open = if withdrawn { sockets.connected() } else { sockets.carries(&self.addresses()) };
        Ok(if open { Outcome::Open } else { Outcome::Done })
    }

    async fn remove(&mut self) -> Result<Outcome, String> {
        capture::remove(&*self.namespace()?).await.map_err(text)?;
        self.tools.host.forget(&self.uid).await.map_err(text)?;
        self.in_force = None;
        self.rules = InForce { inbound: false, generation: 0 };
        self.older.clear();
        Ok(Outcome::Done)
    }
}
