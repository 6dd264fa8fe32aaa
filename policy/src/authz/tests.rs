// SPDX-License-Identifier: Apache-2.0

//! Tables for the shape of policies and the order of decision; properties for
//! what may never widen a permit.

use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::*;
use crate::peer::Peer;
use crate::request::Http;

fn text(pattern: &str) -> StringMatch {
    StringMatch::parse(pattern).unwrap()
}

fn any<T>(values: impl IntoIterator<Item = T>) -> Field<T> {
    Field { any: values.into_iter().collect(), not: Vec::new() }
}

fn not<T>(values: impl IntoIterator<Item = T>) -> Field<T> {
    Field { any: Vec::new(), not: values.into_iter().collect() }
}

fn clause(matches: impl IntoIterator<Item = Match>) -> Clause {
    Clause { matches: matches.into_iter().collect() }
}

fn rule(clauses: impl IntoIterator<Item = Clause>) -> Rule {
    Rule { clauses: clauses.into_iter().collect() }
}

fn one(field: Match) -> Rule {
    rule([clause([field])])
}

fn principal(pattern: &str) -> Match {
    Match { principals: any([text(pattern)]), ..Match::default() }
}

fn method(name: &str) -> Match {
    Match { methods: any([text(name)]), ..Match::default() }
}

fn path(pattern: &str) -> Match {
    Match { paths: any([PathMatch::parse(pattern).unwrap()]), ..Match::default() }
}

fn policy(name: &str, action: Action, rules: impl IntoIterator<Item = Rule>) -> Authorization {
    Authorization {
        name: PolicyName::new("ns", name),
        scope: Scope::Selector,
        action,
        dry_run: false,
        unsupported: None,
        rules: rules.into_iter().collect(),
    }
}

fn client() -> Peer {
    let id = "spiffe://cluster.local/ns/web/sa/client".parse().unwrap();
    Peer::proven(id, "10.1.2.3:4000".parse().unwrap())
}

fn session(peer: &Peer) -> Request<'_> {
    Request::session(peer, "10.9.9.9:8080".parse().unwrap())
}

fn get<'a>(peer: &'a Peer, path: &'a str, headers: &'a HeaderMap) -> Request<'a> {
    let http = Http { method: &Method::GET, path, host: "shop.example:80", headers, claims: None };
    Request { http: Some(http), sni: Some("shop.example"), ..session(peer) }
}

#[test]
fn shapes_mean_what_the_wire_form_says() {
    let peer = client();
    let empty = Match::default();
    let cases = [
        ("no rules", vec![], false),
        ("rule without clauses", vec![rule([])], true),
        ("clause without matches", vec![rule([clause([])])], false),
        ("match without fields", vec![one(empty.clone())], false),
        ("empty match beside a good one", vec![rule([clause([empty, principal("*")])])], true),
        ("second rule", vec![one(principal("other/*")), one(principal("*"))], true),
        ("all clauses", vec![rule([clause([principal("*")]), clause([principal("x")])])], false),
        ("any match", vec![rule([clause([principal("x"), principal("*")])])], true),
    ];
    for (name, rules, matches) in cases {
        let deny = policy("p", Action::Deny, rules.clone());
        assert_eq!(evaluate([&deny], &session(&peer)).is_err(), matches, "DENY, {name}");
        let allow = policy("p", Action::Allow, rules);
        assert_eq!(evaluate([&allow], &session(&peer)).is_ok(), matches, "ALLOW, {name}");
    }
}

#[test]
fn session_fields_match_the_proven_peer() {
    let account = |text| Match {
        service_accounts: any([AccountMatch::parse(text, "web").unwrap()]),
        ..Match::default()
    };
    let nets = |text: &str| any([text.parse().unwrap()]);
    let cases = [
        // name, match, by the proven client, by the same address in plaintext
        ("principal", principal("cluster.local/ns/web/sa/client"), true, false),
        ("other principal", principal("cluster.local/ns/web/sa/other"), false, false),
        ("principal prefix", principal("cluster.local/ns/web/*"), true, false),
        ("principal suffix", principal("*/sa/client"), true, false),
        ("any principal", principal("*"), true, false),
        ("no principal", Match { principals: not([text("*")]), ..Match::default() }, false, true),
        ("namespace", Match { namespaces: any([text("web")]), ..Match::default() }, true, false),
        (
            "not namespace",
            Match { namespaces: not([text("web")]), ..Match::default() },
            false,
            true,
        ),
        ("account", account("client"), true, false),
        ("account of another namespace", account("other/client"), false, false),
        ("source", Match { source_ips: nets("10.1.0.0/16"), ..Match::default() }, true, true),
        (
            "other source",
            Match { source_ips: nets("10.2.0.0/16"), ..Match::default() },
            false,
            false,
        ),
        ("host bits", Match { source_ips: nets("10.1.9.9/16"), ..Match::default() }, true, true),
        (
            "destination",
            Match { destination_ips: nets("10.9.9.9/32"), ..Match::default() },
            true,
            true,
        ),
        ("port", Match { destination_ports: any([8080]), ..Match::default() }, true, true),
        ("not port", Match { destination_ports: not([8080]), ..Match::default() }, false, false),
    ];
    let peer = client();
    let plain = Peer::plain(peer.address);
    for (name, field, proven, unproven) in cases {
        let allow = policy("p", Action::Allow, [one(field)]);
        assert_eq!(evaluate([&allow], &session(&peer)).is_ok(), proven, "{name}, proven");
        assert_eq!(evaluate([&allow], &session(&plain)).is_ok(), unproven, "{name}, plain");
    }
}

#[test]
fn mapped_addresses_are_the_addresses_they_map() {
    let peer = Peer::plain("[::ffff:10.1.2.3]:1".parse().unwrap());
    let field = Match { source_ips: any(["10.1.0.0/16".parse().unwrap()]), ..Match::default() };
    let deny = policy("p", Action::Deny, [one(field)]);
    assert!(evaluate([&deny], &session(&peer)).is_err());
}

#[test]
fn request_fields_match_the_request() {
    let header = |name: &'static str, values| Match {
        headers: vec![HeaderField { name: http::HeaderName::from_static(name), values }],
        ..Match::default()
    };
    let cases = [
        ("method", method("GET"), true),
        ("other method", method("POST"), false),
        ("method has case", method("get"), false),
        ("path", path("/shop/*"), true),
        ("other path", path("/admin*"), false),
        ("template", path("/shop/{*}"), true),
        ("host", Match { hosts: any([text("Shop.example")]), ..Match::default() }, true),
        ("not host", Match { hosts: not([text("shop.example")]), ..Match::default() }, false),
        ("sni", Match { sni: any([text("shop.example")]), ..Match::default() }, true),
        ("header", header("end-user", any([text("jason")])), true),
        ("header value", header("end-user", any([text("mary")])), false),
        ("header there", header("end-user", any([text("*")])), true),
        ("no header", header("x-none", any([text("*")])), false),
        ("header not", header("end-user", not([text("jason")])), false),
        ("absent header not", header("x-none", not([text("jason")])), true),
        (
            "remote",
            Match { remote_ips: any(["10.1.2.3/32".parse().unwrap()]), ..Match::default() },
            true,
        ),
    ];
    let (peer, mut headers) = (client(), HeaderMap::new());
    headers.insert("end-user", "jason".parse().unwrap());
    for (name, field, want) in cases {
        for action in [Action::Allow, Action::Deny] {
            let policy = policy("p", action, [one(field.clone())]);
            let got = evaluate([&policy], &get(&peer, "/shop/1", &headers));
            assert_eq!(
                got.is_ok(),
                want == (action == Action::Allow),
                "{name} {action:?}: {got:?}"
            );
        }
    }
}

#[test]
fn token_fields_match_what_the_token_proves() {
    let principal = |field| Match { request_principals: field, ..Match::default() };
    let claim = |path: &[&str], values| Match {
        claims: vec![ClaimField { path: path.iter().map(|name| (*name).into()).collect(), values }],
        ..Match::default()
    };
    let cases = [
        // name, match, with the token, without any
        ("principal", principal(any([text("https://i/joe")])), true, false),
        ("other principal", principal(any([text("https://i/ann")])), false, false),
        ("any principal", principal(any([text("*")])), true, false),
        ("no principal", principal(not([text("*")])), false, true),
        ("claim", claim(&["groups"], any([text("admin")])), true, false),
        ("other claim", claim(&["groups"], any([text("root")])), false, false),
        ("nested claim", claim(&["a", "b"], any([text("c*")])), true, false),
        ("claim not", claim(&["groups"], not([text("admin")])), false, true),
        ("absent claim not", claim(&["none"], not([text("x")])), true, true),
        ("audience", claim(&["aud"], any([text("shop")])), true, false),
    ];
    let all = serde_json::json!({
        "iss": "https://i", "sub": "joe", "groups": ["user", "admin"], "a": {"b": "cd"}, "aud": "shop",
    });
    let serde_json::Value::Object(all) = all else { panic!("an object") };
    let claims = crate::jwt::Claims::new(all, &[] as &[&str]);
    let (peer, headers) = (client(), HeaderMap::new());
    let plain = get(&peer, "/", &headers);
    let mut proven = plain;
    proven.http.as_mut().unwrap().claims = Some(&claims);
    for (name, field, with, without) in cases {
        for (request, want) in [(&proven, with), (&plain, without)] {
            let allow = policy("p", Action::Allow, [one(field.clone())]);
            assert_eq!(evaluate([&allow], request).is_ok(), want, "ALLOW, {name}");
            let deny = policy("p", Action::Deny, [one(field.clone())]);
            assert_eq!(evaluate([&deny], request).is_err(), want, "DENY, {name}");
        }
        // A session below HTTP has no answer, so it passes neither.
        let allow = policy("p", Action::Allow, [one(field.clone())]);
        assert!(evaluate([&allow], &session(&peer)).is_err(), "ALLOW of a session, {name}");
        let deny = policy("p", Action::Deny, [one(field)]);
        assert!(evaluate([&deny], &session(&peer)).is_err(), "DENY of a session, {name}");
    }
}

#[test]
fn what_cannot_be_answered_refuses_both_ways() {
    let (peer, mut headers) = (client(), HeaderMap::new());
    headers.append("role", "user".parse().unwrap());
    headers.append("role", "admin".parse().unwrap());
    let role = |values| Match {
        headers: vec![HeaderField { name: http::HeaderName::from_static("role"), values }],
        ..Match::default()
    };
    let not_get = Match { methods: not([text("GET")]), ..Match::default() };
    let cases = [
        ("method of a session", session(&peer), method("GET")),
        ("not-method of a session", session(&peer), not_get),
        ("path of a session", session(&peer), path("/x")),
        ("header values that differ", get(&peer, "/", &headers), role(any([text("admin")]))),
        ("not, of values that differ", get(&peer, "/", &headers), role(not([text("admin")]))),
        ("path with two readings", get(&peer, "//admin", &headers), path("/admin")),
    ];
    for (name, request, field) in cases {
        let deny = policy("p", Action::Deny, [one(field.clone())]);
        assert!(evaluate([&deny], &request).is_err(), "DENY of {name}");
        let allow = policy("p", Action::Allow, [one(field)]);
        assert!(evaluate([&allow], &request).is_err(), "ALLOW of {name}");
    }
    // What can be answered decides first.
    let other = Match { destination_ports: any([1]), ..method("GET") };
    assert!(evaluate([&policy("p", Action::Deny, [one(other)])], &session(&peer)).is_ok());
}

#[test]
fn order_is_custom_deny_missing_allow() {
    let peer = client();
    let everything = || [rule([])];
    let allow = policy("allow", Action::Allow, everything());
    let allow_none = policy("allow-none", Action::Allow, []);
    let deny = policy("deny", Action::Deny, [one(principal("x")), rule([])]);
    let custom = policy("custom", Action::Custom, []);
    let late = PolicyName::new("ns", "late");
    let missing = InForce::Missing(&late);
    let name = |policy: &Authorization| policy.name.clone();
    let by_deny = || Denied::Rule(Decision { policy: name(&deny), rule: 1 });
    let cases: [(&[InForce<'_>], _); 7] = [
        (&[], Ok(None)),
        (&[(&allow_none).into(), (&allow).into()], Ok(Some(name(&allow)))),
        (&[(&allow_none).into()], Err(Denied::NotAllowed(name(&allow_none)))),
        (&[(&allow).into(), (&deny).into()], Err(by_deny())),
        (&[missing, (&allow).into(), (&deny).into()], Err(by_deny())),
        (&[(&allow).into(), missing], Err(Denied::Missing(late.clone()))),
        (&[(&allow_none).into(), missing], Err(Denied::Missing(late.clone()))),
    ];
    for (policies, want) in cases {
        let got = evaluate(policies.iter().copied(), &session(&peer));
        assert_eq!(got.map(|p| p.by().map(|by| by.policy.clone())), want, "{policies:?}");
    }
    let got = evaluate([&deny, &custom], &session(&peer));
    assert_eq!(got.unwrap_err().policy(), &custom.name, "CUSTOM goes first");
}

#[test]
fn an_unsupported_policy_refuses_all_it_selects_unless_it_is_only_recorded() {
    let peer = client();
    for (action, dry_run, refuses) in [
        (Action::Allow, false, true),
        (Action::Deny, false, true),
        (Action::Custom, false, true),
        (Action::Audit, false, false),
        (Action::Allow, true, false),
        (Action::Deny, true, false),
        (Action::Custom, true, false),
    ] {
        let unsupported = Some("it reads tokens".into());
        let policy = Authorization { dry_run, unsupported, ..policy("p", action, []) };
        let got = evaluate([&policy], &session(&peer));
        assert_eq!(got.is_err(), refuses, "{action:?} dry run {dry_run}");
        if let Err(denied) = got {
            assert!(denied.to_string().contains("it reads tokens"), "{denied}");
        }
    }
}

#[test]
fn dry_runs_and_audits_are_told_and_decide_nothing() {
    let peer = client();
    let dry = |name, action, rules: Vec<Rule>| Authorization {
        dry_run: true,
        ..policy(name, action, rules)
    };
    let policies = [
        dry("deny", Action::Deny, vec![rule([])]),
        dry("deny-none", Action::Deny, vec![]),
        dry("allow-none", Action::Allow, vec![]),
        policy("audit", Action::Audit, [one(principal("*"))]),
        policy("audit-none", Action::Audit, [one(principal("x"))]),
    ];
    let mut told = Vec::new();
    let got = evaluate_and_record(&policies, &session(&peer), |only| {
        told.push((only.policy.name(), only.rule));
    });
    assert!(got.is_ok(), "{got:?}");
    let want = [("deny", Some(0)), ("deny-none", None), ("allow-none", None), ("audit", Some(0))];
    assert_eq!(told, want);
}

fn arb_field() -> impl Strategy<Value = Match> {
    prop_oneof![
        Just(Match::default()),
        Just(principal("*")),
        Just(principal("cluster.local/ns/web/*")),
        Just(principal("other/*")),
        Just(Match { principals: not([text("*")]), ..Match::default() }),
        Just(Match { destination_ports: any([8080]), ..Match::default() }),
        Just(Match { destination_ports: not([8080, 1]), ..Match::default() }),
        Just(method("GET")),
        Just(path("/admin*")),
        Just(Match { methods: not([text("GET")]), ..Match::default() }),
    ]
}

fn arb_policy() -> impl Strategy<Value = Authorization> {
    let clauses = prop::collection::vec(prop::collection::vec(arb_field(), 0..3), 0..3);
    let rules = prop::collection::vec(clauses, 0..3);
    let actions = prop_oneof![
        4 => Just(Action::Allow), 4 => Just(Action::Deny), 1 => Just(Action::Audit)
    ];
    (rules, actions, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(rules, action, dry_run, broken)| {
            let rules = rules.into_iter().map(|clauses| rule(clauses.into_iter().map(clause)));
            let unsupported = broken.then(|| "broken".into());
            Authorization { dry_run, unsupported, ..policy("p", action, rules) }
        },
    )
}

fn arb_request(pick: u8) -> (Peer, &'static str, bool) {
    let peer = if pick & 1 == 0 { client() } else { Peer::plain("10.1.2.3:1".parse().unwrap()) };
    let path = ["/admin", "/", "//admin", "/x"][usize::from(pick >> 1 & 3)];
    (peer, path, pick & 8 == 0)
}

/// An independent reading of the same rules: every unknown is tried both ways.
fn judge(policies: &[Authorization], request: &Request<'_>) -> bool {
    let enforced = || policies.iter().filter(|p| !p.dry_run && p.action != Action::Audit);
    let matched = |p: &Authorization, unknown: Answer| {
        p.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.iter().any(|one| {
                    let alone = tests::one(one.clone());
                    match alone.answer(request) {
                        Answer::Unknown => unknown == Answer::Yes,
                        Answer::Yes => true,
                        Answer::No => false,
                    }
                })
            })
        })
    };
    if enforced().any(|p| p.unsupported.is_some()) {
        return false;
    }
    if enforced().any(|p| p.action == Action::Deny && matched(p, Answer::Yes)) {
        return false;
    }
    let mut allows = enforced().filter(|p| p.action == Action::Allow).peekable();
    allows.peek().is_none() || allows.any(|p| matched(p, Answer::No))
}

proptest! {
    #[test]
    fn decisions_agree_with_a_plain_reading(
        policies in prop::collection::vec(arb_policy(), 0..4), pick in 0_u8..16,
    ) {
        let (peer, path, http) = arb_request(pick);
        let headers = HeaderMap::new();
        let request = if http { get(&peer, path, &headers) } else { session(&peer) };
        prop_assert_eq!(evaluate(&policies, &request).is_ok(), judge(&policies, &request));
    }

    #[test]
    fn a_refusal_added_or_an_allowance_taken_never_widens(
        policies in prop::collection::vec(arb_policy(), 1..4), extra in arb_policy(), pick in 0_u8..16,
    ) {
        let (peer, path, _) = arb_request(pick);
        let headers = HeaderMap::new();
        let request = get(&peer, path, &headers);
        prop_assume!(evaluate(&policies, &request).is_err());
        let mut more = policies.clone();
        more.push(Authorization { action: Action::Deny, ..extra });
        prop_assert!(evaluate(&more, &request).is_err(), "one more DENY");
        let mut fewer = policies.clone();
        for policy in fewer.iter_mut().filter(|p| p.action == Action::Allow) {
            policy.rules.pop();
        }
        prop_assert!(evaluate(&fewer, &request).is_err(), "one ALLOW rule less");
        let name = PolicyName::new("ns", "late");
        let late = policies.iter().map(InForce::from).chain([InForce::Missing(&name)]);
        prop_assert!(evaluate(late, &request).is_err(), "one policy not here yet");
    }
}
