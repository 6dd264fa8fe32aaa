// SPDX-License-Identifier: Apache-2.0

//! What plaintext a workload takes: Istio's PeerAuthentication.
//!
//! Owns which policy holds for a workload and port, and the DENY policies that
//! say the same in the words every HBONE tunnel understands. Selecting
//! workloads by label is the controller's.
//!
//! Start at [`effective`].

use std::collections::BTreeMap;

use crate::authz::{
    Action, Authorization, Clause, Field, Match, PolicyName, Rule, Scope, StringMatch,
};

/// Name of the policy that refuses all plaintext, in the root namespace.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
/// What the name of a policy that was made of a PeerAuthentication begins with; that one's follows.
pub const CONVERTED: &str = "converted_peer_authentication_";

/// What a policy says about plaintext.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Mode {
    /// Whatever the wider scope says.
    #[default]
    Unset,
    /// Mutual TLS is not asked for; taken as permissive, as ambient does.
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl Mode {
    fn or(self, wider: Self) -> Self {
        if self == Self::Unset { wider } else { self }
    }
}

/// One PeerAuthentication.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAuthentication {
    /// Its name.
    pub name: PolicyName,
    /// When it was made, in seconds since 1970; the oldest of a scope wins.
    pub created: i64,
    /// `mtls.mode`.
    pub mode: Mode,
    /// `portLevelMtls`, by the workload's own port; counts only with a selector.
    pub ports: BTreeMap<u16, Mode>,
}

/// The policy that holds among several of one scope: the oldest, then the first by name.
pub fn oldest<'a>(
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
) -> Option<&'a PeerAuthentication> {
    policies.into_iter().min_by_key(|policy| (policy.created, &policy.name))
}

/// What holds for one workload.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Effective {
    /// True if plaintext is refused on ports not in [`Self::ports`].
    pub strict: bool,
    /// Ports for which a selector policy says otherwise; true refuses.
    pub ports: BTreeMap<u16, bool>,
}

impl Effective {
    /// Tells whether plaintext to `port` is refused.
    pub fn refuses_plaintext(&self, port: u16) -> bool {
        self.ports.get(&port).copied().unwrap_or(self.strict)
    }
}

/// What holds for a workload, from the policy of each scope that holds.
///
/// Workload goes before namespace, namespace before mesh; without any word it
/// is permissive.
///
/// # Rule
///
/// Istio `architecture/ambient/peer-authentication.md`.
pub fn effective(
    mesh: Option<&PeerAuthentication>,
    namespace: Option<&PeerAuthentication>,
    workload: Option<&PeerAuthentication>,
) -> Effective {
    let mode = |policy: Option<&PeerAuthentication>| policy.map_or(Mode::Unset, |p| p.mode);
    let whole = mode(workload).or(mode(namespace)).or(mode(mesh));
    let strict = whole == Mode::Strict;
    let ports = workload.map_or_else(BTreeMap::new, |policy| {
        let own = policy.ports.iter();
        own.map(|(port, mode)| (*port, mode.or(whole) == Mode::Strict))
            .filter(|(_, port_strict)| *port_strict != strict)
            .collect()
    });
    Effective { strict, ports }
}

/// The policy that refuses all plaintext; workloads that are strict list it.
pub fn static_strict(root_namespace: &str) -> Authorization {
    let clauses = vec![clause(no_identity())];
    deny(PolicyName::new(root_namespace, STATIC_STRICT), vec![Rule { clauses }])
}

/// The policy for what the ports of `source` make different; none if nothing is.
///
/// A workload that lists it does not list [`static_strict`] as well: where the
/// rest is strict, this policy says that too.
pub fn converted(source: &PolicyName, holds: &Effective) -> Option<Authorization> {
    if holds.ports.is_empty() {
        return None;
    }
    let listed: Vec<u16> = holds.ports.keys().copied().collect();
    let ports = if holds.strict {
        Field { any: Vec::new(), not: listed }
    } else {
        Field { any: listed, not: Vec::new() }
    };
    let ports = Match { destination_ports: ports, ..Match::default() };
    let name = format!("{CONVERTED}{}", source.name());
    let clauses = vec![clause(no_identity()), clause(ports)];
    Some(deny(PolicyName::new(source.namespace(), &name), vec![Rule { clauses }]))
}

fn no_identity() -> Match {
    let nobody = Field { any: Vec::new(), not: vec![StringMatch::Presence] };
    Match { principals: nobody, ..Match::default() }
}

fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

fn deny(name: PolicyName, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        scope: Scope::Selector,
        action: Action::Deny,
        dry_run: false,
        unsupported: None,
        rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::evaluate;
    use crate::peer::Peer;
    use crate::request::Request;
    use proptest::prelude::*;

    fn policy(name: &str, created: i64, mode: Mode, ports: &[(u16, Mode)]) -> PeerAuthentication {
        let ports = ports.iter().copied().collect();
        PeerAuthentication { name: PolicyName::new("ns", name), created, mode, ports }
    }

    #[test]
    fn the_narrowest_scope_that_says_something_holds() {
        use Mode::{Disable, Permissive, Strict, Unset};
        let cases = [
            // mesh, namespace, workload, strict
            (Unset, Unset, Unset, false),
            (Strict, Unset, Unset, true),
            (Strict, Permissive, Unset, false),
            (Strict, Permissive, Strict, true),
            (Permissive, Strict, Unset, true),
            (Strict, Strict, Disable, false),
            (Strict, Disable, Unset, false),
        ];
        for (mesh, namespace, workload, want) in cases {
            let all = [mesh, namespace, workload].map(|mode| policy("p", 0, mode, &[]));
            let holds = effective(Some(&all[0]), Some(&all[1]), Some(&all[2]));
            assert_eq!(holds.strict, want, "{mesh:?} {namespace:?} {workload:?}");
        }
        assert_eq!(effective(None, None, None), Effective::default());
    }

    #[test]
    fn ports_count_in_selector_policies_only() {
        let ports = [(81, Mode::Strict), (82, Mode::Unset)];
        let wide = policy("p", 0, Mode::Permissive, &ports);
        assert!(!effective(Some(&wide), Some(&wide), None).refuses_plaintext(81));
        let holds = effective(None, None, Some(&wide));
        assert!(holds.refuses_plaintext(81));
        assert!(!holds.refuses_plaintext(82));
        assert!(!holds.refuses_plaintext(80));
    }

    #[test]
    fn the_oldest_of_a_scope_wins_and_ties_go_by_name() {
        let all = [
            policy("c", 2, Mode::Strict, &[]),
            policy("b", 1, Mode::Strict, &[]),
            policy("a", 1, Mode::Permissive, &[]),
        ];
        assert_eq!(oldest(&all).unwrap().name.name(), "a");
    }

    fn mode() -> impl Strategy<Value = Mode> {
        prop_oneof![
            Just(Mode::Unset),
            Just(Mode::Disable),
            Just(Mode::Permissive),
            Just(Mode::Strict)
        ]
    }

    proptest! {
        #[test]
        fn converted_policies_decide_as_the_modes_do(
            wide in mode(), own in mode(), ports in proptest::collection::btree_map(80_u16..84, mode(), 0..4),
            port in 80_u16..85,
        ) {
            let mesh = policy("mesh", 0, wide, &[]);
            let workload = PeerAuthentication { ports, ..policy("own", 0, own, &[]) };
            let holds = effective(Some(&mesh), None, Some(&workload));
            let own = converted(&workload.name, &holds);
            let listed = own.or_else(|| holds.strict.then(|| static_strict("istio-system")));
            let plain = Peer::plain("10.0.0.1:1".parse().unwrap());
            let proven = Peer::proven("spiffe://td/ns/a/sa/b".parse().unwrap(), plain.address);
            let to = ([10, 0, 0, 2], port).into();
            let refused = |peer| evaluate(&listed, &Request::session(peer, to)).is_err();
            prop_assert_eq!(refused(&plain), holds.refuses_plaintext(port));
            prop_assert!(!refused(&proven));
        }
    }
}
