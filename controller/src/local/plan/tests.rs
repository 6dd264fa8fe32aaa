// SPDX-License-Identifier: Apache-2.0

//! Tables of rollouts and placement.

use super::*;

fn owner(kind: OwnerKind, replicas: usize) -> Owner {
    let key = ObjectKey { kind: String::new(), namespace: "n".into(), name: "web".into() };
    Owner { key, kind, replicas, template: PodTemplateSpec::default(), hash: "new".into() }
}

/// `name:hash:state@node`, state one of `r` ready, `u` unready, `t` terminating.
fn pod(text: &str) -> PodView {
    let (text, node) = text.split_once('@').unwrap_or((text, "0"));
    let parts: Vec<&str> = text.split(':').collect();
    PodView {
        name: parts[0].into(),
        hash: parts[1].into(),
        ready: parts[2] == "r",
        terminating: parts[2] == "t",
        node: node.parse().unwrap(),
    }
}

/// `+` for each new pod (with its name unless random), `-name` for each that goes.
fn told(owner: &Owner, have: &[&str]) -> String {
    let have: Vec<PodView> = have.iter().map(|text| pod(text)).collect();
    let steps = steps(owner, &have, 2, &mut || 7);
    let text = |step: &Step| match step {
        Step::Create { name, node: None } => format!("+{}", name.replace("web-new-kkkkk", "")),
        Step::Create { name, node: Some(node) } => {
            format!("+{}@{node}", name.replace("web-kkkkk", ""))
        }
        Step::Delete { name } => format!("-{name}"),
    };
    steps.iter().map(text).collect::<Vec<_>>().join(" ")
}

const ROLLING: OwnerKind = OwnerKind::Deployment { surge: 1, unavailable: 0, recreate: false };
const RECREATE: OwnerKind = OwnerKind::Deployment { surge: 1, unavailable: 0, recreate: true };

#[test]
fn a_deployment_rolls_without_going_below_its_replicas() {
    let cases: [(OwnerKind, usize, &[&str], &str); 14] = [
        (ROLLING, 2, &[], "+ +"),
        (ROLLING, 2, &["a:new:r", "b:new:u"], ""),
        (ROLLING, 1, &["a:new:r", "b:new:r"], "-b"),
        (ROLLING, 1, &["a:new:u", "b:new:r"], "-a"),
        (ROLLING, 0, &["a:new:r"], "-a"),
        // A pod that goes is replaced at once.
        (ROLLING, 1, &["a:new:t"], "+"),
        // A rollout: one more, then one less, step by step.
        (ROLLING, 2, &["a:old:r", "b:old:r"], "+"),
        (ROLLING, 2, &["a:old:r", "b:old:r", "c:new:u"], ""),
        (ROLLING, 2, &["a:old:r", "b:old:r", "c:new:r"], "-a"),
        (ROLLING, 2, &["a:old:t", "b:old:r", "c:new:r"], "+"),
        // Those that never became ready are in nobody's way.
        (ROLLING, 1, &["a:old:u"], "-a +"),
        (RECREATE, 1, &["a:old:r"], "-a"),
        (RECREATE, 1, &["a:old:t"], ""),
        (RECREATE, 1, &[], "+"),
    ];
    for (kind, replicas, have, want) in cases {
        assert_eq!(told(&owner(kind, replicas), have), want, "{kind:?} {replicas} {have:?}");
    }
}

#[test]
fn a_stateful_set_goes_up_by_ordinal_and_updates_from_the_top() {
    let ordered = OwnerKind::StatefulSet { parallel: false };
    let parallel = OwnerKind::StatefulSet { parallel: true };
    let cases: [(OwnerKind, usize, &[&str], &str); 8] = [
        (ordered, 2, &[], "+web-0"),
        (ordered, 2, &["web-0:new:u"], ""),
        (ordered, 2, &["web-0:new:r"], "+web-1"),
        (parallel, 2, &[], "+web-0 +web-1"),
        (ordered, 1, &["web-0:new:r", "web-1:new:r"], "-web-1"),
        (ordered, 2, &["web-0:old:r", "web-1:old:r"], "-web-1"),
        (ordered, 2, &["web-0:old:r", "web-1:new:r"], "-web-0"),
        (ordered, 2, &["web-0:old:u", "web-1:old:r"], "-web-0"),
    ];
    for (kind, replicas, have, want) in cases {
        assert_eq!(told(&owner(kind, replicas), have), want, "{kind:?} {replicas} {have:?}");
    }
}

#[test]
fn a_daemon_set_has_one_pod_per_node_and_a_lone_pod_is_itself() {
    let cases: [(OwnerKind, &[&str], &str); 7] = [
        (OwnerKind::DaemonSet, &[], "+@0 +@1"),
        (OwnerKind::DaemonSet, &["a:new:r@0"], "+@1"),
        (OwnerKind::DaemonSet, &["a:old:r@0", "b:old:r@1"], "-a"),
        (OwnerKind::DaemonSet, &["a:old:t@0", "b:old:r@1"], ""),
        (OwnerKind::Pod, &[], "+web"),
        (OwnerKind::Pod, &["web:new:r"], ""),
        (OwnerKind::Pod, &["web:old:r"], "-web"),
    ];
    for (kind, have, want) in cases {
        assert_eq!(told(&owner(kind, 1), have), want, "{kind:?} {have:?}");
    }
}

#[test]
fn pods_spread_over_nodes() {
    let load = |same_owner, all| Load { same_owner, all };
    let cases: [(&[Load], Option<usize>); 4] = [
        (&[load(0, 0), load(0, 0)], Some(0)),
        (&[load(0, 1), load(0, 0)], Some(1)),
        (&[load(0, 9), load(1, 1)], Some(0)),
        (&[], None),
    ];
    for (loads, want) in cases {
        assert_eq!(place(loads), want, "{loads:?}");
    }
}

#[test]
fn shares_of_a_rollout_follow_kubernetes() {
    let text = |text: &str| Some(IntOrString::String(text.into()));
    let cases = [
        (None, 1, true, 1),
        (None, 1, false, 0),
        (None, 5, true, 2),
        (text("50%"), 3, false, 1),
        (Some(IntOrString::Int(3)), 1, true, 3),
    ];
    for (value, replicas, up, want) in cases {
        assert_eq!(share(value.as_ref(), replicas, up), want, "{value:?} of {replicas}");
    }
}
