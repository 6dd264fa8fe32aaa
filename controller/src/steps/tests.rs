// SPDX-License-Identifier: Apache-2.0

//! Each ordered change, step by step.

use std::path::Path;

use super::*;
use crate::source::document;
use crate::store::Key;
use crate::store::facts::{PodFact, PodState, Telling};

struct Course {
    stores: Stores,
    steps: Steps,
    mesh: Mesh,
    revision: u64,
    began: Instant,
    drain: Duration,
}

const SERVICE: &str = "app/web.app.svc.cluster.local";

impl Course {
    fn new(text: &str) -> Self {
        let mut course = Self {
            stores: Stores::default(),
            steps: Steps::default(),
            mesh: Mesh::default(),
            revision: 10,
            began: Instant::now(),
            drain: Duration::ZERO,
        };
        course.put(text, 10);
        course
    }

    fn settle(&mut self, touched: &[ReadKey], acked: u64, after: Duration) -> Step {
        let (revision, now) = (self.revision, self.began + after);
        let moment = Moment { acked, revision, now, drain: self.drain };
        let moved = self.steps.settle(&mut self.stores, &self.mesh, touched, moment);
        if !moved.is_empty() {
            self.revision += 1;
        }
        self.stores.facts.step(SERVICE)
    }

    /// An agent reports what it was told last; nothing more is acknowledged.
    fn fact(&mut self, uid: &str, fact: PodFact) {
        let observed_generation = self.stores.facts.told(uid).generation;
        self.late_fact(uid, PodFact { observed_generation, ..fact });
    }

    /// An agent reports; nothing more is acknowledged.
    fn late_fact(&mut self, uid: &str, fact: PodFact) {
        let touched: Vec<ReadKey> =
            self.stores.facts.set_pod(uid, Some(fact)).into_iter().collect();
        self.settle(&touched, 0, Duration::ZERO);
    }

    fn put(&mut self, text: &str, acked: u64) -> Step {
        let mut touched = Vec::new();
        for placed in document::parse(Path::new("f"), text).objects {
            touched.extend(self.stores.put(placed.object));
        }
        self.settle(&touched, acked, Duration::ZERO)
    }
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app}\n---\n";
const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: app}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\n";

fn service(waypoint: bool) -> String {
    let labels = if waypoint { ", labels: {istio.io/use-waypoint: wp}" } else { "" };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: app{labels}}}\nspec: {{clusterIP: 10.96.0.1, selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn waypoint_pod(ready: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: wp-1, namespace: app, labels: {{gateway.networking.k8s.io/gateway-name: wp}}}}\nspec: {{containers: []}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}\n---\n"
    )
}

#[test]
fn a_waypoint_is_added_when_ready_and_guards_when_acknowledged() {
    let mut course = Course::new(&(NAMESPACE.to_owned() + &service(false)));
    assert_eq!(course.put(&(GATEWAY.to_owned() + &service(true)), 10), Step::Waiting);
    assert_eq!(course.put(&waypoint_pod("False"), 11), Step::Waiting);
    assert_eq!(course.put(&waypoint_pod("True"), 11), Step::Published);
    let published = course.revision;
    assert_eq!(course.settle(&[], published - 1, Duration::ZERO), Step::Published);
    assert_eq!(course.settle(&[], published, Duration::ZERO), Step::Settled);
    // It stays so when the waypoint loses its pods: traffic is refused, not let past.
    assert_eq!(course.put(&waypoint_pod("False"), published), Step::Settled);
}

#[test]
fn sessions_past_a_new_waypoint_have_time_to_end() {
    let mut course =
        Course::new(&(NAMESPACE.to_owned() + GATEWAY + &waypoint_pod("True") + &service(false)));
    course.drain = Duration::from_secs(5);
    assert_eq!(course.put(&service(true), 10), Step::Published);
    let published = course.revision;
    assert_eq!(course.settle(&[], published, Duration::from_secs(1)), Step::Published);
    assert_eq!(course.settle(&[], published, Duration::from_secs(5)), Step::Published);
    assert_eq!(course.settle(&[], published, Duration::from_secs(6)), Step::Settled);
}

#[test]
fn a_waypoint_that_does_not_come_up_refuses_after_its_grace() {
    let mut course = Course::new(&(NAMESPACE.to_owned() + &service(false)));
    assert_eq!(course.put(&(GATEWAY.to_owned() + &service(true)), 10), Step::Waiting);
    assert_eq!(course.settle(&[], 10, START), Step::Waiting);
    assert_eq!(course.settle(&[], 10, START + Duration::from_secs(1)), Step::Settled);
}

#[test]
fn a_waypoint_that_is_absent_or_was_always_there_is_in_force_at_once() {
    let mut absent = Course::new(&(NAMESPACE.to_owned() + &service(false)));
    assert_eq!(absent.put(&service(true), 10), Step::Settled);
    let mut course = Course::new(&(NAMESPACE.to_owned() + GATEWAY + &service(true)));
    assert_eq!(course.settle(&[], 0, Duration::ZERO), Step::Settled);
}

#[test]
fn a_waypoint_is_left_only_after_the_guard_is_off_everywhere() {
    let all = NAMESPACE.to_owned() + GATEWAY + &waypoint_pod("True") + &service(true);
    let mut course = Course::new(&all);
    let left = course.put(&service(false), 10);
    assert!(matches!(left, Step::Leaving(_)), "{left:?}");
    let told = course.revision;
    assert!(matches!(course.settle(&[], told - 1, Duration::ZERO), Step::Leaving(_)));
    let left = course.settle(&[], told, Duration::ZERO);
    assert!(
        matches!(left, Step::Left(_)),
        "clients go direct, the waypoint still serves: {left:?}"
    );
    let told = course.revision;
    assert!(matches!(course.settle(&[], told - 1, Duration::ZERO), Step::Left(_)));
    assert_eq!(course.settle(&[], told, Duration::ZERO), Step::Settled);

    let mut again = Course::new(&all);
    assert!(matches!(again.put(&service(false), 10), Step::Leaving(_)));
    assert_eq!(again.put(&service(true), 10), Step::Published, "changed its mind");
}

#[test]
fn an_agent_is_told_to_let_a_pod_go_after_the_clients() {
    let namespace = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: app, labels: {{istio.io/dataplane-mode: {mode}}}}}\n---\n"
        )
    };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: app, uid: u1}\nspec: {nodeName: n, containers: []}\n---\n";
    let mut course = Course::new(&(namespace("ambient") + pod));
    let fact = PodFact {
        node: "n".into(),
        state: PodState::Enrolled,
        reason: String::new(),
        older_connections: 0,
        repairs: 0,
        plain_inbound: false,
        observed_generation: 0,
    };
    course.fact("u1", fact.clone());
    course.put(&namespace("none"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Opening, "clients still send HBONE");
    course.fact("u1", PodFact { plain_inbound: true, ..fact });
    assert_eq!(course.stores.facts.step("u1"), Step::Releasing);
    let told = course.revision;
    course.settle(&[], told - 1, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Releasing);
    course.settle(&[], told, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
}

fn report(state: PodState, plain_inbound: bool) -> PodFact {
    PodFact {
        node: "n".into(),
        state,
        reason: String::new(),
        older_connections: 0,
        repairs: 0,
        plain_inbound,
        observed_generation: 0,
    }
}

fn labelled(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: app, labels: {{istio.io/dataplane-mode: {mode}}}}}\n---\n"
    )
}

fn pod_of_mesh(ready: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: app, uid: u1}}\nspec: {{nodeName: n, containers: []}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}\n---\n"
    )
}

#[test]
fn plain_connections_to_a_running_pod_are_captured_last() {
    let mut course = Course::new(&(labelled("none") + &pod_of_mesh("True")));
    course.put(&labelled("ambient"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining);
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining, "not proven yet");
    let published = course.revision + 1;
    course.fact("u1", report(PodState::Enrolled, true));
    course.settle(&[], published - 1, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining, "clients do not know yet");
    course.settle(&[], published, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
}

#[test]
fn a_new_pod_is_captured_whole_before_it_starts() {
    let mut course = Course::new(&labelled("ambient"));
    course.put(&pod_of_mesh("False"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
    course.put(&pod_of_mesh("True"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
}

#[test]
fn a_pod_that_comes_back_while_it_leaves_joins_again() {
    let mut course = Course::new(&(labelled("ambient") + &pod_of_mesh("False")));
    course.fact("u1", report(PodState::Enrolled, false));
    course.put(&labelled("none"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Opening);
    course.put(&labelled("ambient"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled, "clients were told nothing");
    course.put(&labelled("none"), 10);
    course.fact("u1", report(PodState::Enrolled, true));
    assert_eq!(course.stores.facts.step("u1"), Step::Releasing);
    course.put(&labelled("ambient"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining, "some may send plain bytes");
}

#[test]
fn every_pod_leaves_in_order_when_the_mesh_leaves_and_comes_back_when_that_is_called_off() {
    let mut course = Course::new(&(labelled("ambient") + &pod_of_mesh("False")));
    course.fact("u1", report(PodState::Enrolled, false));
    course.put(&pod_of_mesh("True"), 10);
    let order = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: waymark-uninstall, namespace: ";
    course.put(&format!("{order}app}}\n"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled, "anybody may write that there");
    course.put(&format!("{order}istio-system}}\n"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Opening);
    course.fact("u1", report(PodState::Enrolled, true));
    assert_eq!(course.stores.facts.step("u1"), Step::Releasing);
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
    assert_eq!(course.stores.facts.told("u1").what, Telling::Nothing, "its agent lets it go");

    let name = Name::new("istio-system", leave::NAME);
    let touched = course.stores.remove(&Key { kind: Kind::ConfigMap, name });
    course.settle(&touched, 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining);
}

#[test]
fn a_silent_agent_is_not_waited_for() {
    let mut course = Course::new(&(labelled("ambient") + &pod_of_mesh("False")));
    course.fact("u1", report(PodState::Enrolled, false));
    course.put(&labelled("none"), 10);
    course.settle(&[], 0, pods::SILENCE);
    assert_eq!(course.stores.facts.step("u1"), Step::Opening);
    course.settle(&[], 0, pods::SILENCE + Duration::from_secs(1));
    assert_eq!(course.stores.facts.step("u1"), Step::Releasing);
}

/// Two running pods, `u1` and `u2`, that call each other.
fn two_pods() -> String {
    let one = pod_of_mesh("True");
    one.clone() + &one.replace("name: p,", "name: q,").replace("u1", "u2")
}

#[test]
fn pods_that_leave_together_all_take_plain_bytes_before_one_sends_them() {
    let mut course = Course::new(&(labelled("ambient") + &two_pods()));
    course.fact("u1", report(PodState::Enrolled, false));
    course.fact("u2", report(PodState::Enrolled, false));
    course.put(&labelled("none"), 10);
    course.fact("u1", report(PodState::Enrolled, true));
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Releasing, "u2 takes no plain bytes yet");
    course.fact("u2", report(PodState::Enrolled, true));
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
    assert_eq!(course.stores.facts.step("u2"), Step::Settled);
}

#[test]
fn pods_that_come_together_are_all_captured_before_one_takes_no_plain_bytes() {
    let mut course = Course::new(&(labelled("none") + &two_pods()));
    course.put(&labelled("ambient"), 10);
    course.fact("u1", report(PodState::Enrolled, true));
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining, "u2 still sends plain bytes");
    course.settle(&[], 1000, pods::SILENCE + Duration::from_secs(1));
    assert_eq!(course.stores.facts.step("u1"), Step::Settled, "u2 is not waited for any longer");
    assert_eq!(course.stores.facts.step("u2"), Step::Joining);
    course.fact("u2", report(PodState::Enrolled, true));
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u2"), Step::Settled);
}

#[test]
fn a_report_from_before_the_agent_was_told_counts_for_nothing() {
    let mut course = Course::new(&(labelled("none") + &pod_of_mesh("True")));
    course.put(&labelled("ambient"), 10);
    course.fact("u1", report(PodState::Enrolled, true));
    let before = course.stores.facts.pod("u1").cloned().unwrap();
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
    // The agent is about to capture it whole, and has not said so yet.
    course.put(&labelled("none"), 10);
    course.late_fact("u1", PodFact { repairs: 1, ..before });
    assert_eq!(course.stores.facts.step("u1"), Step::Opening, "it may take no plain bytes");
    course.fact("u1", report(PodState::Enrolled, true));
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
    // It is about to be let go, and its agent has not said so yet.
    course.put(&labelled("ambient"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining, "it was proven for another stay");
    course.settle(&[], 1000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining);
    course.fact("u1", report(PodState::Enrolled, true));
    course.settle(&[], 2000, Duration::ZERO);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
}

/// Takes objects at a controller that does not decide.
fn follow(course: &mut Course, text: &str) -> Step {
    let mut touched = Vec::new();
    for placed in document::parse(Path::new("f"), text).objects {
        touched.extend(course.stores.put(placed.object));
    }
    let (acked, revision) = (course.revision, course.revision);
    let moment = Moment { acked, revision, now: course.began, drain: Duration::ZERO };
    course.steps.begin(&mut course.stores, &course.mesh, &touched, moment);
    course.stores.facts.step(SERVICE)
}

#[test]
fn another_controller_goes_on_where_the_one_before_ended() {
    let before = NAMESPACE.to_owned() + &service(false);
    let (mut leader, mut other) = (Course::new(&before), Course::new(""));
    follow(&mut other, &before);
    let with = GATEWAY.to_owned() + &service(true) + &waypoint_pod("True");
    assert_eq!(follow(&mut other, &with), Step::Published, "it is not ahead of the leader");
    assert_eq!(leader.put(&with, 10), Step::Published);
    let told = leader.stores.facts.known(SERVICE);
    assert!(other.stores.facts.take(SERVICE, told).is_empty(), "both came to the same");
    assert_eq!(leader.settle(&[], leader.revision, Duration::ZERO), Step::Settled);
    other.stores.facts.take(SERVICE, leader.stores.facts.known(SERVICE));
    assert_eq!(follow(&mut other, &waypoint_pod("True")), Step::Settled);

    // The leader ends; meanwhile the waypoint is taken off.
    let leaving = follow(&mut other, &service(false));
    assert!(matches!(leaving, Step::Leaving(_)), "{leaving:?}");
    other.revision = 30;
    let moment = Moment { acked: 0, revision: 30, now: other.began, drain: Duration::ZERO };
    other.steps.take_over(&other.stores, moment);
    let waits = other.settle(&[], 29, Duration::ZERO);
    assert!(matches!(waits, Step::Leaving(_)), "{waits:?}: what is published here is waited for");
    let left = other.settle(&[], 30, Duration::ZERO);
    assert!(matches!(left, Step::Left(_)), "{left:?}");
}

#[test]
fn what_the_leader_decided_stands_when_its_reason_is_seen_later() {
    let with = NAMESPACE.to_owned() + GATEWAY + &service(true) + &waypoint_pod("True");
    let (mut leader, mut other) = (Course::new(&with), Course::new(""));
    follow(&mut other, &with);
    let leaving = leader.put(&service(false), 0);
    assert!(matches!(leaving, Step::Leaving(_)), "{leaving:?}");
    other.stores.facts.take(SERVICE, leader.stores.facts.known(SERVICE));
    assert_eq!(follow(&mut other, &service(false)), leaving);

    let (mut leader, mut other) =
        (Course::new(&(labelled("none") + &pod_of_mesh("True"))), Course::new(""));
    follow(&mut other, &(labelled("none") + &pod_of_mesh("True")));
    leader.put(&labelled("ambient"), 10);
    let known = leader.stores.facts.known("u1");
    other.stores.facts.take("u1", known.clone());
    follow(&mut other, &labelled("ambient"));
    assert_eq!(other.stores.facts.known("u1"), known, "the count of what the agent is told, too");
}

#[test]
fn a_pod_that_joins_goes_on_joining_under_another_controller() {
    let mut course = Course::new(&(labelled("none") + &pod_of_mesh("True")));
    course.put(&labelled("ambient"), 10);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining);
    course.revision = 40;
    let moment = |acked| Moment { acked, revision: 40, now: course.began, drain: Duration::ZERO };
    let (early, late) = (moment(39), moment(40));
    course.steps.take_over(&course.stores, early);
    course.steps.settle(&mut course.stores, &course.mesh, &[], late);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining, "it is not proven yet");
    course.fact("u1", report(PodState::Enrolled, true));
    course.steps.take_over(&course.stores, early);
    course.steps.settle(&mut course.stores, &course.mesh, &[], early);
    assert_eq!(course.stores.facts.step("u1"), Step::Joining);
    course.steps.settle(&mut course.stores, &course.mesh, &[], late);
    assert_eq!(course.stores.facts.step("u1"), Step::Settled);
}
