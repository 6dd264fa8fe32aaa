// SPDX-License-Identifier: Apache-2.0

//! One question per way that a connection or request can end.

use policy::authz::{
    Action, Authorization, Clause, Field, Match, PathMatch as PathPattern, PolicyName,
    Rule as PolicyRule, Scope, StringMatch, Target,
};

use super::*;
use crate::filter::{Filter, Redirect, Scheme};
use crate::gateway::{Gateway, GatewayKind};
use crate::l4::tests::{World, ip, pod, world};
use crate::listener::{Listener, Protocol};
use crate::matching::{HostPattern, PathMatch, RequestMatch};
use crate::route::{
    BackendRef, BackendTarget, Parent, ParentRef, Retry, RouteKind, Rule, RuleName, Timeouts,
};

/// The world of the decision table, with a gateway object for its waypoint and an ingress.
fn snapshot(world: &World) -> Snapshot {
    let mut snapshot = Snapshot { discovery: world.discovery.clone(), ..Snapshot::default() };
    let gateways = [("waypoint", GatewayKind::Waypoint), ("ingress", GatewayKind::Ingress)];
    for (name, kind) in gateways {
        snapshot.serving.put_gateway(Arc::new(Gateway {
            name: format!("default/{name}").parse().unwrap(),
            kind,
            class: "waymark".into(),
            trusted_hops: 0,
            tracing: None,
            access_log: None,
            client_certificate: None,
        }));
    }
    snapshot.serving.put_listener(Arc::new(Listener {
        name: "default/ingress/http".parse().unwrap(),
        port: 80,
        target_port: 8080,
        protocol: Protocol::Http,
        hostname: "a.example".parse::<HostPattern>().unwrap(),
        tls: None,
        proxy_protocol: false,
    }));
    snapshot
}

fn rule(name: &str, parent: Parent, path: &str, backends: &[(&str, u32)]) -> Rule {
    let backend = |(service, weight): &(&str, u32)| BackendRef {
        target: BackendTarget::Service { key: service.parse().unwrap(), port: 80 },
        weight: *weight,
        filters: Vec::new(),
    };
    let matches = RequestMatch { path: PathMatch::Prefix(path.into()), ..RequestMatch::any() };
    Rule {
        name: RuleName {
            kind: RouteKind::Http,
            namespace: "default".into(),
            name: name.into(),
            index: 0,
        },
        rule_name: None,
        created: 0,
        parents: vec![ParentRef { parent, hostnames: Vec::new() }],
        matches: vec![matches],
        filters: Vec::new(),
        backends: backends.iter().map(backend).collect(),
        timeouts: Timeouts::default(),
        retry: Retry::default(),
    }
}

fn at_guarded(world: &World) -> Parent {
    Parent::Service { key: world.guarded.clone(), port: None, consumer: None }
}

fn at_ingress() -> Parent {
    Parent::Listener("default/ingress/http".parse().unwrap())
}

fn policy(name: &str, scope: Scope, action: Action, one: Match) -> Arc<Authorization> {
    Arc::new(Authorization {
        name: PolicyName::new("default", name),
        scope,
        action,
        dry_run: false,
        unsupported: None,
        rules: vec![PolicyRule { clauses: vec![Clause { matches: vec![one] }] }],
    })
}

fn get(path: &str) -> http::request::Parts {
    let uri = format!("http://a.example{path}");
    http::Request::get(uri).body(()).unwrap().into_parts().0
}

fn from_client(world: &World, snapshot: &Snapshot, to: &str, path: Option<&str>) -> Explanation {
    let source = Arc::new(world.client.clone());
    let from = From::Workload { source: &source, to: to.parse().unwrap() };
    let http = path.map(get);
    ask(&Question { from, http: http.as_ref(), claims: None, now: 0, roll: 1 }, snapshot)
}

fn from_outside(snapshot: &Snapshot, port: u16, http: &http::request::Parts) -> Explanation {
    let at = Arc::new(pod("default", "ingress", "10.0.0.7"));
    let gateway = "default/ingress".parse().unwrap();
    let client = ip("192.0.2.1");
    let from = From::Outside { client, gateway: &gateway, at: &at, port, sni: None };
    ask(&Question { from, http: Some(http), claims: None, now: 0, roll: 1 }, snapshot)
}

fn arrives(name: &str, port: u16) -> Verdict {
    Verdict::Arrives { workload: format!("Kubernetes//Pod/default/{name}").into(), port }
}

fn topics(explanation: &Explanation) -> Vec<Topic> {
    explanation.steps.iter().map(|step| step.topic).collect()
}

/// What the last step says that an object decided.
fn decider(explanation: &Explanation) -> Option<&str> {
    explanation.steps.iter().rev().find_map(|step| step.decided_by.as_deref())
}

#[test]
fn a_connection_inside_the_mesh_is_followed_to_its_end() {
    let world = world();
    let snapshot = snapshot(&world);
    let explanation = from_client(&world, &snapshot, "10.96.0.1:80", None);
    assert_eq!(explanation.verdict, arrives("server", 8080));
    let want = [Topic::Enrolment, Topic::Destination, Topic::Way, Topic::SessionPolicy];
    assert_eq!(topics(&explanation), want);
    let outside = from_client(&world, &snapshot, "1.1.1.1:443", None);
    assert_eq!(outside.verdict, Verdict::Leaves("1.1.1.1:443".parse().unwrap()));
}

#[test]
fn the_policy_that_refuses_a_session_is_named_with_its_rule() {
    let world = world();
    let mut snapshot = snapshot(&world);
    let principal = "cluster.local/ns/default/sa/client".into();
    let one = Match {
        principals: Field { any: vec![StringMatch::Exact(principal)], not: Vec::new() },
        ..Match::default()
    };
    snapshot.authorizations.put(policy("deny-client", Scope::Namespace, Action::Deny, one));
    let explanation = from_client(&world, &snapshot, "10.96.0.1:80", None);
    assert_eq!(explanation.verdict, Verdict::Refused(None));
    assert_eq!(decider(&explanation), Some("policy default/deny-client rule 0"));
}

#[test]
fn a_waypoint_that_is_missing_refuses_and_is_named() {
    let mut world = world();
    world.discovery.apply([crate::discovery::Change::ServiceGone(world.waypoint.clone())]);
    let explanation = from_client(&world, &snapshot(&world), "10.96.0.2:80", Some("/"));
    assert_eq!(explanation.verdict, Verdict::Refused(None));
    let last = explanation.steps.last().unwrap();
    assert_eq!(last.topic, Topic::Way);
    assert!(last.text.contains("waypoint default/waypoint.default.svc.cluster.local is unknown"));
}

#[test]
fn a_request_is_followed_through_its_waypoint() {
    let world = world();
    let mut snapshot = snapshot(&world);
    let straight = from_client(&world, &snapshot, "10.96.0.2:80", Some("/"));
    assert_eq!(straight.verdict, arrives("behind", 8080), "{straight:#?}");

    let plain = world.plain.to_string();
    let moved = rule("moved", at_guarded(&world), "/moved", &[(&plain, 1)]);
    snapshot.serving.put_rule(Arc::new(moved));
    let explanation = from_client(&world, &snapshot, "10.96.0.2:80", Some("/moved/on"));
    assert_eq!(explanation.verdict, arrives("server", 8080), "{explanation:#?}");
    let want = [
        Topic::Enrolment,
        Topic::Destination,
        Topic::Way,
        Topic::Route,
        Topic::RequestPolicy,
        Topic::Backend,
        Topic::Way,
        Topic::SessionPolicy,
    ];
    assert_eq!(topics(&explanation), want);
    let judged = explanation.steps.iter().find(|step| step.topic == Topic::RequestPolicy);
    assert_eq!(
        judged.map(|step| &*step.text),
        Some("no policy at the waypoint default/waypoint is against it")
    );
    let none = from_client(&world, &snapshot, "10.96.0.2:80", Some("/other"));
    assert_eq!(none.verdict, Verdict::Refused(Some(404)));
}

#[test]
fn the_policy_that_refuses_a_request_is_named_with_its_rule() {
    let world = world();
    let targets = [
        ("service", Target::Service(world.guarded.to_string().into())),
        ("gateway", Target::Gateway("default/waypoint".into())),
        ("class", Target::Class("waymark".into())),
    ];
    for (name, target) in targets {
        let mut snapshot = snapshot(&world);
        let text = PathPattern::Text(StringMatch::Prefix("/admin".into()));
        let one = Match { paths: Field { any: vec![text], not: Vec::new() }, ..Match::default() };
        let scope = Scope::Targets(vec![target]);
        snapshot.serving.put_policy(policy("no-admin", scope, Action::Deny, one));
        let open = from_client(&world, &snapshot, "10.96.0.2:80", Some("/"));
        assert_eq!(open.verdict, arrives("behind", 8080), "{name}");
        for path in ["/admin", "/x/../admin", "/%61dmin"] {
            let closed = from_client(&world, &snapshot, "10.96.0.2:80", Some(path));
            assert_eq!(closed.verdict, Verdict::Refused(Some(403)), "{name} {path}");
            assert_eq!(decider(&closed), Some("policy default/no-admin rule 0"));
        }
    }
}

#[test]
fn a_source_outside_the_mesh_goes_plain_and_meets_the_policies_all_the_same() {
    let mut world = world();
    world.client.tunnel = TunnelProtocol::None;
    let mut snapshot = snapshot(&world);
    let open = from_client(&world, &snapshot, "10.96.0.2:80", None);
    assert_eq!(open.verdict, arrives("behind", 8080), "nothing is against it yet");
    let no_one = Match {
        principals: Field { any: Vec::new(), not: vec![StringMatch::Presence] },
        ..Match::default()
    };
    snapshot.authorizations.put(policy("strict", Scope::Namespace, Action::Deny, no_one));
    let closed = from_client(&world, &snapshot, "10.96.0.2:80", None);
    assert_eq!(closed.verdict, Verdict::Refused(None));
    assert_eq!(decider(&closed), Some("policy default/strict rule 0"));
}

#[test]
fn a_request_from_outside_is_followed_through_the_ingress() {
    let mut world = world();
    let (plain, guarded) = (world.plain.to_string(), world.guarded.to_string());
    let rules = |snapshot: &mut Snapshot| {
        let to = |name, path, service: &str| rule(name, at_ingress(), path, &[(service, 1)]);
        snapshot.serving.put_rule(Arc::new(to("plain", "/plain", &plain)));
        snapshot.serving.put_rule(Arc::new(to("guarded", "/guarded", &guarded)));
        let mut away = to("away", "/away", &plain);
        let (scheme, host, path, port) = (Some(Scheme::Https), None, None, None);
        let status = http::StatusCode::FOUND;
        away.filters = vec![Filter::Redirect(Redirect { scheme, host, path, port, status })];
        snapshot.serving.put_rule(Arc::new(away));
        snapshot.serving.put_rule(Arc::new(rule("none", at_ingress(), "/none", &[])));
    };
    let mut first = snapshot(&world);
    rules(&mut first);
    let verdict = |snapshot: &Snapshot, path: &str| from_outside(snapshot, 80, &get(path)).verdict;
    assert_eq!(verdict(&first, "/plain"), arrives("server", 8080));
    let gateway = Scope::Targets(vec![Target::Gateway("default/ingress".into())]);
    let mut closed = first.clone();
    closed.serving.put_policy(policy("closed", gateway, Action::Allow, Match::default()));
    let refused = from_outside(&closed, 80, &get("/plain"));
    assert_eq!(refused.verdict, Verdict::Refused(Some(403)));
    let last = refused.steps.last().unwrap();
    assert!(last.text.starts_with("refused at the gateway default/ingress: "), "{last:?}");
    assert_eq!(verdict(&closed, "/other"), Verdict::Refused(Some(404)), "as the gateway answers");
    assert_eq!(verdict(&first, "/away"), Verdict::Answered(302));
    assert_eq!(verdict(&first, "/none"), Verdict::Refused(Some(500)));
    assert_eq!(verdict(&first, "/other"), Verdict::Refused(Some(404)));
    assert_eq!(from_outside(&first, 81, &get("/plain")).verdict, Verdict::Refused(Some(404)));
    let mut other = get("/plain");
    other.uri = "http://b.example/plain".parse().unwrap();
    assert_eq!(from_outside(&first, 80, &other).verdict, Verdict::Refused(Some(404)));

    let waypoints = |explanation: &Explanation| {
        explanation.steps.iter().filter(|step| step.text.contains("to waypoint")).count()
    };
    let direct = from_outside(&first, 80, &get("/guarded"));
    assert_eq!((&direct.verdict, waypoints(&direct)), (&arrives("behind", 8080), 0));
    world.service(&world.guarded.clone(), |service| service.ingress_use_waypoint = true);
    let mut second = snapshot(&world);
    rules(&mut second);
    let through = from_outside(&second, 80, &get("/guarded"));
    assert_eq!((&through.verdict, waypoints(&through)), (&arrives("behind", 8080), 1));
}

#[test]
fn a_path_has_the_form_that_gateways_give_it() {
    let world = world();
    let mut snapshot = snapshot(&world);
    let behind = world.plain.to_string();
    snapshot.serving.put_rule(Arc::new(rule("x", at_guarded(&world), "/x", &[(&behind, 1)])));
    let ask = |path| from_client(&world, &snapshot, "10.96.0.2:80", Some(path)).verdict;
    let same = ask("/x");
    for path in ["/../x", "/%78", "/a/%2e./x"] {
        assert_eq!(ask(path), same, "{path}");
    }
    assert_ne!(ask("/y"), same);
    assert_eq!(ask("/x%00"), Verdict::Refused(Some(400)), "no gateway takes it");
}

#[test]
fn the_same_roll_gives_the_same_answer() {
    let world = world();
    let mut snapshot = snapshot(&world);
    let (plain, guarded) = (world.plain.to_string(), world.guarded.to_string());
    let split = rule("split", at_ingress(), "/", &[(&plain, 1), (&guarded, 1)]);
    snapshot.serving.put_rule(Arc::new(split));
    let at = Arc::new(pod("default", "ingress", "10.0.0.7"));
    let gateway = "default/ingress".parse().unwrap();
    let http = get("/");
    let follow = ask;
    let ask = |roll| {
        let client = ip("192.0.2.1");
        let from = From::Outside { client, gateway: &gateway, at: &at, port: 80, sni: None };
        follow(&Question { from, http: Some(&http), claims: None, now: 0, roll }, &snapshot)
    };
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for roll in 0..100 {
        assert_eq!(ask(roll), ask(roll));
        *ends.entry(format!("{:?}", ask(roll).verdict)).or_default() += 1;
    }
    assert_eq!(ends.len(), 2, "both backends are met: {ends:?}");
}
