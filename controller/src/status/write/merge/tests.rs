// SPDX-License-Identifier: Apache-2.0

//! Patches by what is wanted and what stands.

use serde_json::json;

use super::*;

const OUR: &str = "waymark.dev/gateway-controller";

fn condition(kind: &str, status: &str, reason: &str, time: &str) -> Value {
    json!({ "type": kind, "status": status, "reason": reason, "message": "",
        "lastTransitionTime": time, "observedGeneration": 1 })
}

fn standing(status: Value) -> Standing {
    Standing { version: Some("7".into()), status }
}

fn entry(controller: &str, gateway: &str, condition: Value) -> Value {
    json!({ "parentRef": {"name": gateway}, "controllerName": controller, "conditions": [condition] })
}

#[test]
fn a_condition_keeps_its_time_and_what_stands_is_not_written() {
    let wanted = json!({ "conditions": [condition("Accepted", "True", "Accepted", "t2")] });
    let before =
        standing(json!({ "conditions": [condition("Accepted", "True", "Accepted", "t1")] }));
    assert_eq!(patch(Kind::Gateway, Some(wanted.clone()), &before), None);

    let before = standing(json!({ "conditions": [condition("Accepted", "False", "No", "t1")] }));
    let want = json!({ "status": wanted });
    assert_eq!(patch(Kind::Gateway, Some(wanted.clone()), &before), Some(want));

    // The conditions that a definition fills in at creation are replaced.
    let defaults = json!({ "conditions": [condition("Accepted", "Unknown", "Pending", "t0"),
        condition("Programmed", "Unknown", "Pending", "t0")] });
    let patched = patch(Kind::Gateway, Some(wanted.clone()), &standing(defaults)).unwrap();
    assert_eq!(patched["status"], wanted);
}

#[test]
fn what_was_true_before_a_start_stays_so_while_nothing_is_known() {
    let wanted = json!({ "listeners": [{"name": "a", "attachedRoutes": 1,
        "conditions": [condition("Programmed", "Unknown", "Pending", "t2")]}] });
    let stood = json!({ "listeners": [{"name": "a", "attachedRoutes": 0,
        "conditions": [condition("Programmed", "True", "Programmed", "t1")]}] });
    let patched = patch(Kind::Gateway, Some(wanted), &standing(stood)).unwrap();
    let listener = &patched["status"]["listeners"][0];
    assert_eq!(listener["attachedRoutes"], 1);
    assert_eq!(listener["conditions"][0], condition("Programmed", "True", "Programmed", "t1"));
}

#[test]
fn entries_of_others_stay_and_ours_go_with_their_reason() {
    let foreign = entry(
        "other.example/controller",
        "theirs",
        condition("Accepted", "True", "Accepted", "t0"),
    );
    let ours = |time| entry(OUR, "gw", condition("Accepted", "True", "Accepted", time));
    let wanted = json!({ "parents": [ours("t2")] });
    let patched =
        patch(Kind::HttpRoute, Some(wanted.clone()), &standing(json!({ "parents": [foreign] })));
    let want = json!({ "metadata": {"resourceVersion": "7"}, "status": {"parents": [foreign, ours("t2")]} });
    assert_eq!(patched, Some(want));

    let both = standing(json!({ "parents": [foreign, ours("t1")] }));
    assert_eq!(patch(Kind::HttpRoute, Some(wanted), &both), None, "it stands");
    let want = json!({ "metadata": {"resourceVersion": "7"}, "status": {"parents": [foreign]} });
    assert_eq!(patch(Kind::HttpRoute, None, &both), Some(want), "it is no longer ours");
    assert_eq!(patch(Kind::HttpRoute, None, &standing(json!({ "parents": [foreign] }))), None);
    assert_eq!(patch(Kind::HttpRoute, None, &standing(Value::Null)), None);
}

#[test]
fn conditions_of_others_on_a_service_stay() {
    let foreign = condition("example.com/Ready", "True", "Ready", "t0");
    let bound =
        |status: &str| condition("istio.io/WaypointBound", status, "WaypointAccepted", "t1");
    let wanted = json!({ "conditions": [bound("True")] });
    let before = standing(json!({ "conditions": [foreign], "loadBalancer": {} }));
    let patched = patch(Kind::Service, Some(wanted), &before).unwrap();
    assert_eq!(patched["status"], json!({ "conditions": [foreign, bound("True")] }));
    assert_eq!(patched["metadata"]["resourceVersion"], "7");

    let both = standing(json!({ "conditions": [foreign, bound("True")] }));
    let patched = patch(Kind::Service, None, &both).unwrap();
    assert_eq!(patched["status"], json!({ "conditions": [foreign] }));
    assert_eq!(patch(Kind::Service, None, &standing(json!({ "loadBalancer": {} }))), None);
    assert_eq!(patch(Kind::Gateway, None, &both), None, "a Gateway's go with it");
}

#[test]
fn conditions_of_an_entry_go_with_their_reason_and_those_of_others_stay() {
    let healthy = condition("Healthy", "True", "Healthy", "t0");
    let told = |kind: &str| condition(kind, "True", "Accepted", "t1");
    let before =
        standing(json!({ "conditions": [healthy, told("Accepted"), told("PartiallyInvalid")] }));
    let wanted = json!({ "conditions": [told("Accepted")] });
    let patched = patch(Kind::WorkloadEntry, Some(wanted), &before).unwrap();
    assert_eq!(patched["status"], json!({ "conditions": [healthy, told("Accepted")] }));
    let patched = patch(Kind::ServiceEntry, None, &before).unwrap();
    assert_eq!(patched["status"], json!({ "conditions": [healthy] }));
    // Of a Service only that of its waypoint is ours.
    assert_eq!(patch(Kind::Service, None, &before), None);
}
