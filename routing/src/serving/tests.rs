// SPDX-License-Identifier: Apache-2.0

//! Rules come, move and go; routes of consumers; policies by target.

use http::{HeaderMap, Method};

use super::*;
use crate::matching::{PathMatch, RequestMatch};
use crate::route::{ParentRef, Retry, RouteKind, Timeouts};

fn service() -> ServiceKey {
    "default/a.example".parse().unwrap()
}

fn parent(port: Option<u16>, consumer: Option<&str>) -> Parent {
    Parent::Service { key: service(), port, consumer: consumer.map(Arc::from) }
}

fn rule(name: &str, path: &str, parents: Vec<Parent>) -> Arc<Rule> {
    let parents = parents.into_iter().map(|parent| ParentRef { parent, hostnames: Vec::new() });
    let matches = RequestMatch { path: PathMatch::Prefix(path.into()), ..RequestMatch::any() };
    Arc::new(Rule {
        name: RuleName {
            kind: RouteKind::Http,
            namespace: "default".into(),
            name: name.into(),
            index: 0,
        },
        rule_name: None,
        created: 0,
        parents: parents.collect(),
        matches: vec![matches],
        filters: Vec::new(),
        backends: Vec::new(),
        timeouts: Timeouts::default(),
        retry: Retry::default(),
    })
}

fn ask(serving: &Serving, port: u16, namespace: Option<&str>, path: &str) -> Option<String> {
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, host: "a.example", path, query: "", headers: &headers };
    let rules = serving.service_rules(&service(), port, namespace);
    rules.find(&head).map(|found| found.rule.name.name.to_string())
}

#[test]
fn rules_for_a_port_and_for_all_ports_compete() {
    let mut serving = Serving::default();
    serving.put_rule(rule("all", "/", vec![parent(None, None)]));
    serving.put_rule(rule("long", "/a/b", vec![parent(None, None)]));
    serving.put_rule(rule("port", "/a", vec![parent(Some(80), None)]));
    let cases = [
        (80, "/", "all"),
        (80, "/a", "port"),
        (80, "/a/b", "long"),
        (81, "/a", "all"),
        (81, "/a/b", "long"),
    ];
    for (port, path, want) in cases {
        assert_eq!(ask(&serving, port, None, path).as_deref(), Some(want), "{port} {path}");
    }
}

#[test]
fn rules_of_a_consumer_take_the_place_of_the_owners_for_its_namespace_alone() {
    let mut serving = Serving::default();
    serving.put_rule(rule("owner", "/", vec![parent(None, None)]));
    serving.put_rule(rule("consumer", "/only", vec![parent(None, Some("client"))]));
    assert_eq!(ask(&serving, 80, Some("client"), "/only").as_deref(), Some("consumer"));
    assert_eq!(ask(&serving, 80, Some("client"), "/"), None);
    assert_eq!(ask(&serving, 80, Some("other"), "/only").as_deref(), Some("owner"));
    assert_eq!(ask(&serving, 80, None, "/only").as_deref(), Some("owner"));
}

#[test]
fn a_rule_that_moves_or_goes_leaves_nothing_behind() {
    let mut serving = Serving::default();
    serving.put_rule(rule("r", "/", vec![parent(Some(80), None)]));
    let before = serving.clone();
    serving.put_rule(rule("r", "/", vec![parent(Some(81), None)]));
    assert_eq!(ask(&serving, 80, None, "/"), None);
    assert!(ask(&serving, 81, None, "/").is_some());
    assert!(ask(&before, 80, None, "/").is_some(), "the older copy is as it was");
    assert!(serving.table(&parent(Some(80), None)).is_none(), "an empty table is dropped");
    serving.remove_rule(&rule("r", "/", Vec::new()).name);
    assert!(serving.service_rules(&service(), 81, None).is_empty());
    assert_eq!(serving.rule_count(), 0);
}

fn policy(name: &str, targets: Vec<Target>) -> Arc<Authorization> {
    Arc::new(Authorization {
        name: PolicyName::new("default", name),
        scope: Scope::Targets(targets),
        action: Action::Allow,
        dry_run: false,
        unsupported: None,
        rules: Vec::new(),
    })
}

#[test]
fn policies_are_found_by_target() {
    let (gateway, class) = (Target::Gateway("default/gw".into()), Target::Class("waymark".into()));
    let mut serving = Serving::default();
    serving.put_policy(policy("b", vec![gateway.clone(), class.clone()]));
    serving.put_policy(policy("a", vec![gateway.clone()]));
    let names = |serving: &Serving, target: &Target| -> Vec<String> {
        serving.policies(target).map(|policy| policy.name.name().to_owned()).collect()
    };
    assert_eq!(names(&serving, &gateway), ["a", "b"]);
    assert_eq!(names(&serving, &class), ["b"]);
    serving.put_policy(policy("b", vec![class.clone()]));
    assert_eq!(names(&serving, &gateway), ["a"]);
    serving.remove_policy(&PolicyName::new("default", "b"));
    assert!(names(&serving, &class).is_empty());
}
