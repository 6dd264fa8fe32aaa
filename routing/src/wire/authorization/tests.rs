// SPDX-License-Identifier: Apache-2.0

//! Policies of istiod, single refusals, and round trips of arbitrary policies.

use http::HeaderName;
use policy::authz::{HeaderField, PathMatch, PathTemplate, Target};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::wire::messages::waymark::v1 as own;
use crate::wire::workload::tests::vectors;

#[test]
fn what_istiod_sends_is_read_and_written_again_field_by_field() {
    let vectors = vectors("type.googleapis.com/istio.security.Authorization");
    assert_eq!(vectors.len(), 6);
    for (name, bytes) in vectors {
        let message = wire::Authorization::decode(bytes.as_slice()).unwrap();
        let policy = read(&message).unwrap();
        assert_eq!(policy.name.as_str(), name);
        assert_eq!(write(&policy).unwrap(), message, "{name}");
    }
}

fn refusal(change: impl FnOnce(&mut wire::Match)) -> WireError {
    let mut one = wire::Match::default();
    change(&mut one);
    let group = wire::Group { rules: vec![wire::Rules { matches: vec![one] }] };
    let message = wire::Authorization {
        name: "n".into(),
        namespace: "ns".into(),
        groups: vec![group],
        ..Default::default()
    };
    read(&message).unwrap_err()
}

#[test]
fn a_condition_that_cannot_be_read_refuses_the_policy() {
    let long = wire::Address { address: vec![10, 0, 0, 0], length: 33 };
    let field = "source_ips or destination_ips";
    let cases = [
        (refusal(|m| m.source_ips = vec![long]), WireError::PrefixLength(field, 33)),
        (
            refusal(|m| m.not_destination_ips = vec![wire::Address::default()]),
            WireError::AddressLength(field, 0),
        ),
        (
            refusal(|m| m.destination_ports = vec![65_536]),
            WireError::Port("destination_ports", 65_536),
        ),
        (
            refusal(|m| m.principals = vec![wire::StringMatch::default()]),
            WireError::Missing("match_type"),
        ),
        (
            refusal(|m| m.service_accounts = vec![wire::ServiceAccountMatch::default()]),
            WireError::Missing("service_accounts.namespace or service_account"),
        ),
        (
            refusal(|m| m.extensions = vec![wire::Extension { name: "x".into(), config: None }]),
            WireError::Extension("x".into()),
        ),
    ];
    for (found, want) in cases {
        assert_eq!(found, want);
    }
    let message = |scope, action| wire::Authorization {
        name: "n".into(),
        namespace: "ns".into(),
        scope,
        action,
        ..Default::default()
    };
    assert_eq!(read(&message(3, 0)), Err(WireError::Unknown("scope", 3)));
    assert_eq!(read(&message(0, 2)), Err(WireError::Unknown("action", 2)));
    assert!(matches!(read(&wire::Authorization::default()), Err(WireError::Policy("name", _))));
}

fn policy(action: Action, scope: Scope) -> Authorization {
    Authorization {
        name: PolicyName::new("ns", "n"),
        scope,
        action,
        dry_run: false,
        unsupported: None,
        rules: Vec::new(),
    }
}

#[test]
fn a_policy_that_is_not_served_denies_everything_in_any_tunnel() {
    for action in [Action::Allow, Action::Deny, Action::Custom] {
        let mut policy = policy(action, Scope::Namespace);
        policy.unsupported = Some("it asks for a token".into());
        let message = write(&policy).unwrap();
        assert_eq!(message.action, i32::from(wire::Action::Deny), "{action:?}");
        assert_eq!(message.groups, [wire::Group::default()], "a rule without clauses matches all");
    }
}

#[test]
fn what_has_no_form_for_tunnels_is_refused_and_never_dropped() {
    let refused = |policy: &Authorization| write(policy).unwrap_err().0;
    assert_eq!(refused(&policy(Action::Allow, Scope::Targets(Vec::new()))), "a target");
    assert_eq!(refused(&policy(Action::Audit, Scope::Global)), "AUDIT");
    assert_eq!(refused(&policy(Action::Custom, Scope::Global)), "CUSTOM");
    let with = |one: Match| {
        let mut policy = policy(Action::Deny, Scope::Global);
        policy.rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
        policy
    };
    let text = || Field { any: vec![StringMatch::Presence], not: Vec::new() };
    let header = HeaderField { name: HeaderName::from_static("x"), values: text() };
    let paths = Field { any: Vec::new(), not: vec![PathMatch::Text(StringMatch::Presence)] };
    let ips = Field { any: vec!["10.0.0.0/8".parse().unwrap()], not: Vec::new() };
    let none = Match::default;
    assert_eq!(refused(&with(Match { remote_ips: ips, ..none() })), "remoteIpBlocks");
    assert_eq!(refused(&with(Match { sni: text(), ..none() })), "connection.sni");
    assert_eq!(refused(&with(Match { hosts: text(), ..none() })), "hosts");
    assert_eq!(refused(&with(Match { methods: text(), ..none() })), "methods");
    assert_eq!(refused(&with(Match { paths, ..none() })), "paths");
    assert_eq!(refused(&with(Match { headers: vec![header], ..none() })), "request.headers");
}

#[test]
fn a_gateway_policy_without_target_or_action_is_refused() {
    let good = own::Authorization {
        namespace: "ns".into(),
        name: "n".into(),
        targets: vec![own::AuthorizationTarget {
            kind: Some(own::authorization_target::Kind::Gateway("ns/gw".into())),
        }],
        action: own::authorization::Action::Allow.into(),
        ..Default::default()
    };
    assert!(gateway::read(&good).is_ok());
    let bad = own::Authorization { targets: Vec::new(), ..good.clone() };
    assert_eq!(gateway::read(&bad), Err(WireError::Missing("targets")));
    let bad = own::Authorization { targets: vec![Default::default()], ..good.clone() };
    assert_eq!(gateway::read(&bad), Err(WireError::Missing("targets.kind")));
    let bad = own::Authorization { action: 0, ..good };
    assert_eq!(gateway::read(&bad), Err(WireError::Unknown("action", 0)));
    assert!(gateway::write(&policy(Action::Allow, Scope::Global)).is_err());
}

fn texts() -> impl Strategy<Value = Field<StringMatch>> {
    let text = || "[a-z]{1,4}".prop_map(Arc::<str>::from);
    let one = prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ];
    fields(one)
}

fn fields<T: Clone + std::fmt::Debug>(
    one: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Field<T>> {
    (prop::collection::vec(one.clone(), 0..3), prop::collection::vec(one, 0..3))
        .prop_map(|(any, not)| Field { any, not })
}

fn ranges() -> impl Strategy<Value = Field<IpNet>> {
    let range = (any::<std::net::IpAddr>(), 0_u8..=32)
        .prop_map(|(ip, length)| IpNet::new(ip, length).unwrap().trunc());
    fields(range)
}

fn session_matches() -> impl Strategy<Value = Match> {
    let account = ("[a-z]{1,4}", "[a-z]{1,4}").prop_map(|(namespace, account)| AccountMatch {
        namespace: namespace.into(),
        service_account: account.into(),
    });
    (texts(), fields(account), texts(), ranges(), ranges(), fields(1_u16..)).prop_map(|parts| {
        Match {
            namespaces: parts.0,
            service_accounts: parts.1,
            principals: parts.2,
            source_ips: parts.3,
            destination_ips: parts.4,
            destination_ports: parts.5,
            ..Match::default()
        }
    })
}

fn request_matches() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        "[a-z/]{1,4}".prop_map(|text| PathMatch::Text(StringMatch::Exact(text.into()))),
        "/[a-z]{1,4}/\\{\\*\\}/\\{\\*\\*\\}"
            .prop_map(|text| PathMatch::Template(PathTemplate::parse(&text).unwrap())),
    ];
    let header = ("[a-z]{1,4}", texts())
        .prop_map(|(name, values)| HeaderField { name: name.parse().unwrap(), values });
    let headers = prop::collection::vec(header, 0..2);
    (session_matches(), ranges(), texts(), texts(), texts(), fields(path), headers).prop_map(
        |parts| Match {
            remote_ips: parts.1,
            sni: parts.2,
            hosts: parts.3,
            methods: parts.4,
            paths: parts.5,
            headers: parts.6,
            ..parts.0
        },
    )
}

fn rules(one: impl Strategy<Value = Match>) -> impl Strategy<Value = Vec<Rule>> {
    let clause = prop::collection::vec(one, 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    prop::collection::vec(rule, 0..3)
}

proptest! {
    #[test]
    fn any_policy_over_sessions_is_read_as_it_was_written(
        rules in rules(session_matches()),
        scope in prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::Selector]),
        action in prop::sample::select(vec![Action::Allow, Action::Deny]),
        dry_run: bool,
    ) {
        let policy = Authorization { rules, dry_run, ..policy(action, scope) };
        let bytes = write(&policy).unwrap().encode_to_vec();
        let message = wire::Authorization::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(read(&message), Ok(policy));
    }

    #[test]
    fn any_policy_over_requests_is_read_as_it_was_written(
        rules in rules(request_matches()),
        action in prop::sample::select(
            vec![Action::Allow, Action::Deny, Action::Audit, Action::Custom]
        ),
        dry_run: bool,
        unsupported in prop::option::of("[a-z]{1,4}"),
    ) {
        let targets = vec![
            Target::Service("ns/a.example".into()),
            Target::Gateway("ns/gw".into()),
            Target::Class("istio-waypoint".into()),
        ];
        let unsupported = unsupported.map(Arc::from);
        let scope = Scope::Targets(targets);
        let policy = Authorization { rules, dry_run, unsupported, ..policy(action, scope) };
        let bytes = gateway::write(&policy).unwrap().encode_to_vec();
        let message = own::Authorization::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(gateway::read(&message), Ok(policy));
    }
}
