// SPDX-License-Identifier: Apache-2.0

use super::*;

const PACE: Pace = Pace { proof: Duration::from_secs(1), drain: Duration::from_secs(60) };

/// A course and a clock that moves on at each wait.
struct Drive {
    course: Course,
    now: Instant,
}

impl Drive {
    fn new(course: Course) -> Self {
        Self { course, now: Instant::now() }
    }

    /// Takes steps with these outcomes; waits in between are passed over.
    fn take(&mut self, outcomes: &[Outcome]) -> Vec<Step> {
        let mut steps = Vec::new();
        for outcome in outcomes {
            let step = self.next();
            self.course.finished(step, outcome.clone(), self.now, PACE);
            steps.push(step);
        }
        steps
    }

    fn next(&mut self) -> Step {
        loop {
            let step = self.course.next(self.now);
            let Step::Wait(Some(moment)) = step else { return step };
            self.now = moment;
        }
    }
}

fn failed() -> Outcome {
    Outcome::Failed("no".to_owned())
}

fn inside() -> Course {
    let mut course = Course::default();
    course.present(true);
    course.want(Want::Inside);
    course
}

fn enrolled() -> Drive {
    let mut drive = Drive::new(inside());
    drive.take(&[Outcome::Done, Outcome::Done, Outcome::Done]);
    assert_eq!(drive.course.standing().0, Standing::Enrolled);
    drive
}

#[test]
fn a_pod_is_enrolled_only_once_its_capture_was_proven() {
    let mut drive = Drive::new(inside());
    for want in [Step::HandOver, Step::Capture, Step::Prove] {
        assert_eq!(drive.course.standing().0, Standing::Pending);
        assert_eq!(drive.take(&[Outcome::Done]), [want]);
    }
    assert_eq!(drive.course.standing(), (Standing::Enrolled, String::new()));
}

#[test]
fn a_pod_is_released_in_the_reverse_order_and_last_its_rules() {
    let mut drive = enrolled();
    drive.course.want(Want::Outside);
    assert_eq!(drive.take(&[Outcome::Done]), [Step::Release]);
    let idle = drive.now;
    let steps = drive.take(&[Outcome::Open, Outcome::Open, Outcome::Done]);
    assert_eq!(steps, [Step::LookAtDrain; 3], "the tunnel is not told while it carries");
    assert!(drive.now >= idle + SETTLE, "late first packets find the tunnel");
    assert_eq!(drive.course.standing().0, Standing::Pending);
    let steps = drive.take(&[Outcome::Done, Outcome::Open, Outcome::Done, Outcome::Done]);
    assert_eq!(steps, [Step::Withdraw, Step::LookAtDrain, Step::LookAtDrain, Step::Remove]);
    assert_eq!(drive.course.standing(), (Standing::Released, String::new()));
    assert_eq!(drive.next(), Step::Wait(None));
}

#[test]
fn a_drain_ends_in_time_with_connections_open() {
    let mut drive = enrolled();
    drive.course.want(Want::Outside);
    drive.take(&[Outcome::Done]);
    for (limit, follows) in [(PACE.drain + SETTLE, Step::Withdraw), (FAREWELL, Step::Remove)] {
        let begun = drive.now;
        while drive.next() == Step::LookAtDrain {
            drive.take(&[Outcome::Open]);
        }
        let lasted = drive.now - begun;
        assert!(lasted >= limit && lasted < limit + DRAIN_LOOK * 2, "{follows:?}: {lasted:?}");
        assert_eq!(drive.take(&[Outcome::Done]), [follows]);
    }
}

#[test]
fn a_pod_wanted_again_comes_back_from_every_phase() {
    let cases = [
        // phase it had reached on its way out, first step back
        (Phase::Enrolled, Step::Prove),
        (Phase::Idle, Step::Capture),
        (Phase::Withdrawn, Step::HandOver),
        (Phase::Outside, Step::HandOver),
    ];
    for (phase, want) in cases {
        let mut drive = enrolled();
        drive.course.want(Want::Outside);
        while drive.course.phase() != phase {
            drive.take(&[Outcome::Done]);
        }
        drive.course.want(Want::Inside);
        assert_eq!(drive.next(), want, "from {phase:?}");
        while drive.course.standing().0 != Standing::Enrolled {
            drive.take(&[Outcome::Done]);
        }
    }
}

#[test]
fn lost_rules_are_put_back_counted_and_proven() {
    let mut drive = enrolled();
    drive.course.disturb();
    let steps = drive.take(&[Outcome::Repaired, Outcome::Done]);
    assert_eq!(steps, [Step::Inspect, Step::Prove]);
    assert_eq!(drive.course.repairs(), 1);
    let waits = drive.course.next(drive.now);
    assert_eq!(waits, Step::Wait(Some(drive.now + PACE.proof)), "at peace again");
}

#[test]
fn an_enrolled_pod_whose_proof_fails_says_so_and_stays() {
    let mut drive = enrolled();
    for _ in 0..20 {
        let steps = drive.take(&[failed(), Outcome::Done]);
        assert_eq!(steps, [Step::Prove, Step::Inspect], "rules are looked at each time");
        assert_eq!(drive.course.standing(), (Standing::Enrolled, "no".to_owned()));
    }
    drive.take(&[Outcome::Done]);
    assert_eq!(drive.course.standing(), (Standing::Enrolled, String::new()));
    assert_eq!(drive.course.repairs(), 0, "nothing was wrong with the rules");
}

#[test]
fn a_pod_that_cannot_be_proven_fails_and_is_tried_on() {
    let mut drive = Drive::new(inside());
    drive.take(&[Outcome::Done, Outcome::Done]);
    for _ in 0..FAILED_AFTER {
        assert_eq!(drive.course.standing().0, Standing::Pending);
        drive.take(&[failed(), Outcome::Done]);
    }
    assert_eq!(drive.course.standing(), (Standing::Failed, "no".to_owned()));
    assert_eq!(drive.take(&[Outcome::Done]), [Step::Prove]);
    assert_eq!(drive.course.standing().0, Standing::Enrolled);
}

#[test]
fn retries_slow_down_to_a_bound() {
    let mut drive = Drive::new(inside());
    let mut last = Duration::ZERO;
    for _ in 0..40 {
        drive.take(&[failed()]);
        let Step::Wait(Some(moment)) = drive.course.next(drive.now) else { panic!("no wait") };
        let wait = moment - drive.now;
        assert!(wait >= last && wait <= RETRY.1, "{wait:?} after {last:?}");
        last = wait;
    }
    assert_eq!(last, RETRY.1);
}

#[test]
fn a_new_agent_keeps_pods_before_the_controller_has_spoken() {
    let mut course = Course::resumed(Phase::Enrolled, 3);
    course.present(true);
    assert_eq!(course.standing().0, Standing::Enrolled);
    let mut drive = Drive::new(course);
    assert_eq!(drive.take(&[Outcome::Done, Outcome::Done]), [Step::Capture, Step::Prove]);
    assert_eq!(drive.course.standing().0, Standing::Enrolled);
    assert_eq!(drive.course.repairs(), 3);
    drive.course.want(Want::Outside);
    assert_eq!(drive.next(), Step::Release);
}

#[test]
fn a_drain_goes_on_after_a_restart_of_the_agent() {
    for phase in [Phase::Idle, Phase::Withdrawn] {
        let mut course = Course::resumed(phase, 0);
        course.present(true);
        let mut drive = Drive::new(course);
        let steps = drive.take(&[Outcome::Open, Outcome::Done, Outcome::Done]);
        assert_eq!(steps, [Step::LookAtDrain, Step::LookAtDrain, Step::Withdraw], "{phase:?}");
    }
}

#[test]
fn nothing_is_done_without_a_namespace_or_a_wish() {
    let mut absent = Course::default();
    absent.want(Want::Inside);
    let mut unknown = Course::default();
    unknown.present(true);
    for course in [absent, unknown] {
        assert_eq!(course.next(Instant::now()), Step::Wait(None), "{course:?}");
        assert_eq!(course.standing().0, Standing::Pending);
    }
}

#[test]
fn new_rules_are_set_without_leaving_the_mesh() {
    let mut drive = enrolled();
    drive.course.outdate();
    assert_eq!(drive.take(&[Outcome::Done]), [Step::Capture]);
    assert_eq!(drive.course.standing().0, Standing::Enrolled);
    assert_eq!(drive.next(), Step::Prove);
}
