// SPDX-License-Identifier: Apache-2.0

//! In which order a pod comes into the mesh and leaves it. Pure.
//!
//! Owns: what is to be done next for one pod, from what is wanted, how far it
//! has come and what failed. Leaves doing it to [`super::pod`].
//!
//! Keeps: the tunnel listens before the first packet is captured, and goes on
//! carrying after the last one was; a pod counts as enrolled only after its
//! capture was proven; the tunnel is told to leave, and the rules go, only when
//! no captured connection is left, or the drain has lasted its time.
//!
//! Start at [`Course::next`].

use std::time::{Duration, Instant};

/// Shortest and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Failures in a row after which a pod is reported as failed.
const FAILED_AFTER: u32 = 5;

/// How often a drain is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(200);

/// Longest time in which a captured connection may still turn up after the rules are idle:
/// its first packet was lost and is sent again, to the tunnel, after 1 s and after 3 s.
const SETTLE: Duration = Duration::from_secs(4);

/// Longest wait for the tunnel's own connections to end once it was told to leave.
const FAREWELL: Duration = Duration::from_secs(15);

/// What the controller wants of a pod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Want {
    /// Not said yet, as after a start of the agent: whatever is, stays.
    #[default]
    Unknown,
    /// In the mesh.
    Inside,
    /// Out of it.
    Outside,
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub enum Phase {
    /// Nothing of ours is there.
    #[default]
    Outside,
    /// The tunnel listens in it.
    Handed,
    /// Rules are in force, and not proven.
    Captured,
    /// Capture was proven.
    Enrolled,
    /// Rules capture nothing new; the tunnel carries what it has taken.
    Idle,
    /// The tunnel was told to leave.
    Withdrawn,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Give the namespace to the tunnel; done when it listens.
    HandOver,
    /// Put the rules in force.
    Capture,
    /// Send probes through the rules.
    Prove,
    /// Compare the rules with what was set, and set them again if they differ.
    Inspect,
    /// Replace the rules by those that capture nothing new.
    Release,
    /// Tell the tunnel to leave.
    Withdraw,
    /// See whether captured connections are left.
    LookAtDrain,
    /// Take the rules away.
    Remove,
    /// Nothing before this moment, or before something changes.
    Wait(Option<Instant>),
}

/// What came of a step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Done.
    Done,
    /// [`Step::Inspect`] found rules missing or changed and set them again.
    Repaired,
    /// [`Step::LookAtDrain`] found open connections.
    Open,
    /// It failed for this reason.
    Failed(String),
}

/// What others are told of a pod.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Standing {
    /// On its way in, or its namespace is not known.
    Pending,
    /// In the mesh.
    Enrolled,
    /// Could not be enrolled; tried again.
    Failed,
    /// Out of the mesh.
    Released,
}

/// Every standing with its name in metrics.
pub const STANDINGS: [(Standing, &str); 4] = [
    (Standing::Pending, "pending"),
    (Standing::Enrolled, "enrolled"),
    (Standing::Failed, "failed"),
    (Standing::Released, "released"),
];

/// Times that bound the course.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two proofs of an enrolled pod.
    pub proof: Duration,
    /// Longest drain.
    pub drain: Duration,
}

/// How long open connections are still waited for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Drain {
    /// The wait begins with the first look.
    #[default]
    Begins,
    /// Until this moment.
    Until(Instant),
    /// No more.
    Over,
}

/// The way of one pod.
#[derive(Clone, Debug, Default)]
pub struct Course {
    want: Want,
    phase: Phase,
    /// The namespace is known.
    present: bool,
    /// The wanted rules are not those in force.
    outdated: bool,
    /// Something may have changed the rules.
    disturbed: bool,
    proof_due: Option<Instant>,
    not_before: Option<Instant>,
    drain: Drain,
    failures: u32,
    repairs: u32,
    reason: String,
}

impl Course {
    /// A pod that an earlier agent left in `phase`.
    ///
    /// Its rules are set anew, which no open connection notices, and proven again; that
    /// it was enrolled stays true meanwhile.
    #[must_use]
    pub fn resumed(phase: Phase, repairs: u32) -> Self {
        let outdated = matches!(phase, Phase::Captured | Phase::Enrolled);
        // How long that drain has lasted is not known, so it begins again.
        let phase = if phase == Phase::Withdrawn { Phase::Idle } else { phase };
        Self { phase, outdated, repairs, ..Self::default() }
    }

    /// The controller has said what it wants.
    pub fn want(&mut self, want: Want) {
        if self.want != want {
            self.want = want;
            self.try_now();
        }
    }

    /// The wanted rules differ from those that were set.
    pub fn outdate(&mut self) {
        self.outdated = true;
        self.try_now();
    }

    /// The namespace has become known, or is gone with all that was in it.
    pub fn present(&mut self, present: bool) {
        self.present = present;
        self.try_now();
    }

    /// The namespace is gone with all that was in it, and another one may come.
    pub fn vacate(&mut self) {
        *self = Self { present: false, repairs: self.repairs, ..Self::gone(self) };
    }

    /// The rules may have changed.
    pub fn disturb(&mut self) {
        self.disturbed = true;
    }

    /// A tunnel has connected: what it does is to be proven again.
    pub fn prove_now(&mut self) {
        self.proof_due = None;
        self.try_now();
    }

    fn try_now(&mut self) {
        self.not_before = None;
    }

    /// How far the pod has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What is wanted.
    #[must_use]
    pub fn wanted(&self) -> Want {
        self.want
    }

    /// Times that lost or changed rules were put back.
    #[must_use]
    pub fn repairs(&self) -> u32 {
        self.repairs
    }

    /// What others are told, and why.
    #[must_use]
    pub fn standing(&self) -> (Standing, String) {
        let standing = match (self.phase, self.want) {
            (Phase::Enrolled, Want::Inside | Want::Unknown) => Standing::Enrolled,
            (_, Want::Inside) if self.failures >= FAILED_AFTER => Standing::Failed,
            (_, Want::Inside) => Standing::Pending,
            (Phase::Outside, Want::Outside) => Standing::Released,
            (_, Want::Unknown | Want::Outside) => Standing::Pending,
        };
        let reason = match (standing, self.want, self.present) {
            _ if !self.reason.is_empty() => self.reason.clone(),
            (Standing::Pending, Want::Inside, false) => "network namespace is not known".to_owned(),
            (Standing::Pending, Want::Unknown, _) => "not known to the controller".to_owned(),
            (Standing::Pending, Want::Outside, _) => "captured connections drain".to_owned(),
            _ => String::new(),
        };
        (standing, reason)
    }

    /// What to do at `now`.
    #[must_use]
    pub fn next(&self, now: Instant) -> Step {
        if !self.present {
            return Step::Wait(None);
        }
        if let Some(moment) = self.not_before.filter(|moment| *moment > now) {
            return Step::Wait(Some(moment));
        }
        match self.want {
            Want::Inside => self.next_inside(now),
            Want::Outside => self.next_outside(),
            Want::Unknown => match self.phase {
                Phase::Captured | Phase::Enrolled => self.next_inside(now),
                Phase::Idle | Phase::Withdrawn => self.next_outside(),
                Phase::Outside | Phase::Handed => Step::Wait(None),
            },
        }
    }

    fn next_inside(&self, now: Instant) -> Step {
        match self.phase {
            Phase::Outside | Phase::Withdrawn => Step::HandOver,
            Phase::Handed | Phase::Idle => Step::Capture,
            Phase::Captured | Phase::Enrolled if self.outdated => Step::Capture,
            Phase::Captured | Phase::Enrolled if self.disturbed => Step::Inspect,
            Phase::Captured => Step::Prove,
            Phase::Enrolled => match self.proof_due {
                Some(due) if due > now => Step::Wait(Some(due)),
                Some(_) | None => Step::Prove,
            },
        }
    }

    fn next_outside(&self) -> Step {
        match self.phase {
            Phase::Outside => Step::Wait(None),
            Phase::Handed => Step::Withdraw,
            Phase::Captured | Phase::Enrolled => Step::Release,
            Phase::Idle | Phase::Withdrawn if self.drain != Drain::Over => Step::LookAtDrain,
            Phase::Idle => Step::Withdraw,
            Phase::Withdrawn => Step::Remove,
        }
    }

    /// Takes in what came of `step`.
    pub fn finished(&mut self, step: Step, outcome: Outcome, now: Instant, pace: Pace) {
        if let Outcome::Failed(reason) = outcome {
            self.failed(step, reason, now, pace);
            return;
        }
        self.not_before = None;
        // Rules that look right are no proof: only one that succeeds ends a failure.
        if !matches!(step, Step::Inspect | Step::Capture) {
            self.failures = 0;
            self.reason.clear();
        }
        match step {
            Step::HandOver => self.phase = Phase::Handed,
            Step::Capture => {
                self.outdated = false;
                self.disturbed = false;
                self.proof_due = None;
                if self.phase != Phase::Enrolled {
                    self.phase = Phase::Captured;
                }
            }
            Step::Prove => {
                self.phase = Phase::Enrolled;
                self.proof_due = Some(now + pace.proof);
            }
            Step::Inspect => {
                self.disturbed = false;
                if outcome == Outcome::Repaired {
                    self.repairs += 1;
                    self.proof_due = None;
                }
            }
            Step::Release => {
                self.phase = Phase::Idle;
                self.drain = Drain::Begins;
                self.not_before = Some(now + SETTLE);
            }
            Step::Withdraw => {
                self.phase = Phase::Withdrawn;
                self.drain = Drain::Begins;
            }
            Step::LookAtDrain => {
                let open = outcome == Outcome::Open;
                self.looked(open, now, pace);
                self.not_before = (self.drain != Drain::Over).then(|| now + DRAIN_LOOK);
            }
            Step::Remove => *self = Self { repairs: self.repairs, ..Self::gone(self) },
            Step::Wait(_) => {}
        }
    }

    fn failed(&mut self, step: Step, reason: String, now: Instant, pace: Pace) {
        self.failures = self.failures.saturating_add(1);
        self.reason = reason;
        let wait = RETRY.0.saturating_mul(1 << self.failures.min(8).saturating_sub(1));
        self.not_before = Some(now + wait.min(RETRY.1));
        match step {
            // A proof fails for lost rules or a lost tunnel; the rules can be looked at.
            Step::Prove => {
                self.disturbed = true;
                self.not_before = Some(now + wait.min(pace.proof));
            }
            // What cannot be looked at counts as open, but not for ever.
            Step::LookAtDrain => self.looked(true, now, pace),
            Step::HandOver
            | Step::Capture
            | Step::Inspect
            | Step::Release
            | Step::Withdraw
            | Step::Remove
            | Step::Wait(_) => {}
        }
    }

    fn looked(&mut self, open: bool, now: Instant, pace: Pace) {
        let whole = if self.phase == Phase::Idle { pace.drain } else { FAREWELL };
        let end = match self.drain {
            Drain::Begins => now + whole,
            Drain::Until(end) => end,
            Drain::Over => now,
        };
        self.drain = if open && now < end { Drain::Until(end) } else { Drain::Over };
    }

    fn gone(before: &Self) -> Self {
        Self { want: before.want, present: before.present, ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
