// SPDX-License-Identifier: Apache-2.0

//! What a step of a rotation waits for, by the answers of all controllers at `/ca`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::ca::authority::Authority;
use crate::cli::format::{flag, items, number, text, texts};

/// Why a controller does not take the newest texts, if one does not.
pub(super) fn refused(answers: &[Value]) -> Option<String> {
    answers.iter().map(|answer| text(answer, "/refused")).find(|why| !why.is_empty())
}

/// The controllers that have something else in force than `wanted`, or have not told it yet.
pub(super) fn not_in_force(answers: &[Value], wanted: &Authority) -> Vec<String> {
    let stands = |answer: &&Value| {
        let roots: Vec<String> =
            items(answer, "/roots").map(|root| text(root, "/fingerprint")).collect();
        let all = roots.len() == wanted.roots.len()
            && wanted.roots.iter().all(|root| roots.contains(&root.fingerprint));
        let first = roots.first().map(String::as_str);
        all && first == Some(wanted.signs()) && flag(answer, "/published")
    };
    let late = answers.iter().filter(|answer| !stands(answer)).count();
    if late == 0 {
        return Vec::new();
    }
    vec![format!("{late} of {} controllers have not taken the change yet", answers.len())]
}

/// Who is not known about: proxies, agents and controllers that no controller hears.
pub(super) fn unheard(answers: &[Value]) -> Vec<String> {
    let Some(leader) = answers.iter().find(|answer| flag(answer, "/leads")) else {
        return vec!["no controller leads, which alone knows of all proxies".to_owned()];
    };
    texts(leader, "/unheard").iter().map(|pod| format!("{pod} is not connected")).collect()
}

/// The proxies and agents that do not trust all roots in force yet.
///
/// The controller that leads names those of the others, too; and one that changed over to
/// another is still named by the one it left, as silent. Where it is heard, counts.
pub(super) fn distrusting(answers: &[Value]) -> Vec<String> {
    let who = |client: &Value| (text(client, "/role"), text(client, "/pod"));
    let clients = || answers.iter().flat_map(|answer| items(answer, "/clients"));
    let heard: BTreeSet<_> = clients().filter(|client| !flag(client, "/silent")).map(who).collect();
    let counts = |client: &&Value| !flag(client, "/silent") || !heard.contains(&who(client));
    let slow = clients().filter(counts).filter(|client| !flag(client, "/trusts"));
    let slow = slow.map(|client| {
        let why = if !flag(client, "/followsRoots") {
            "learns of roots with its next certificate"
        } else if flag(client, "/silent") {
            "does not answer"
        } else {
            "has not acknowledged the roots"
        };
        format!("{} {} {why}", text(client, "/role"), text(client, "/pod"))
    });
    slow.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The holders of leaves of another root than the one that signs.
pub(super) fn of_old_root(answers: &[Value]) -> Vec<String> {
    let signs = answers.first().map(|answer| text(answer, "/roots/0/fingerprint"));
    let signs = signs.unwrap_or_default();
    // What was given last counts, whoever gave it.
    let mut newest: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    for holder in answers.iter().flat_map(|answer| items(answer, "/holders")) {
        newest.entry(key(holder)).or_default();
    }
    for leaf in answers.iter().flat_map(|answer| items(answer, "/leaves")) {
        let found = newest.entry(key(leaf)).or_default();
        let this = (number(leaf, "/givenAtMillis"), text(leaf, "/root"));
        if this > *found {
            *found = this;
        }
    }
    let old = newest.into_iter().filter(|(_, (_, root))| *root != signs);
    old.map(|((pod, identity), (at, _))| {
        if at == 0 {
            format!("{pod}: it is not known which certificate it has for {identity}")
        } else {
            format!("{pod} has one of the old root for {identity}")
        }
    })
    .collect()
}

fn key(value: &Value) -> (String, String) {
    (text(value, "/pod"), text(value, "/identity"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_client_must_trust_whatever_controller_it_is_connected_to() {
        let client = |pod: &str, follows: bool, trusts: bool| json!({"role": "tunnel", "pod": pod, "followsRoots": follows, "trusts": trusts});
        let answers = [
            json!({"clients": [client("s/a", true, true), client("s/b", true, false)]}),
            json!({"clients": [client("s/c", false, false), client("s/d", false, true)]}),
        ];
        assert_eq!(
            distrusting(&answers),
            [
                "tunnel s/b has not acknowledged the roots",
                "tunnel s/c learns of roots with its next certificate",
            ]
        );
        assert!(distrusting(&answers[..0]).is_empty());
    }

    #[test]
    fn nothing_is_taken_for_known_before_a_controller_leads_that_hears_everybody() {
        let follows = json!({"leads": false, "unheard": []});
        let leads = |unheard: &[&str]| json!({"leads": true, "unheard": unheard});
        assert_eq!(unheard(std::slice::from_ref(&follows)).len(), 1);
        assert_eq!(unheard(&[follows.clone(), leads(&["s/a"])]), ["s/a is not connected"]);
        assert!(unheard(&[follows, leads(&[])]).is_empty());
    }

    #[test]
    fn a_client_counts_where_it_is_heard_and_for_all_who_hear_it() {
        let client = |trusts: bool, silent: bool| json!({"clients": [{"role": "tunnel", "pod": "s/a", "followsRoots": true, "trusts": trusts, "silent": silent}]});
        // It left the first controller for the second.
        assert!(distrusting(&[client(false, true), client(true, false)]).is_empty());
        let lacks = ["tunnel s/a has not acknowledged the roots"];
        assert_eq!(distrusting(&[client(true, true), client(false, false)]), lacks);
        // The one that leads has not heard yet what its follower has.
        assert_eq!(distrusting(&[client(false, false), client(true, false)]), lacks);
        let answers = [client(false, true), client(false, true)];
        assert_eq!(distrusting(&answers), ["tunnel s/a does not answer"]);
    }

    #[test]
    fn the_newest_leaf_of_each_holder_counts_whoever_gave_it() {
        let holder = |pod: &str| json!({"pod": pod, "identity": "x"});
        let leaf = |pod: &str, root: &str, at: u64| json!({"pod": pod, "identity": "x", "root": root, "givenAtMillis": at});
        let roots = json!([{"fingerprint": "new"}, {"fingerprint": "old"}]);
        let answers = [
            json!({"roots": roots, "holders": [holder("a"), holder("b")], "leaves": [
                leaf("a", "old", 2), leaf("c", "old", 2),
            ]}),
            json!({"roots": roots, "leaves": [leaf("a", "new", 3)]}),
        ];
        assert_eq!(
            of_old_root(&answers),
            [
                "b: it is not known which certificate it has for x",
                "c has one of the old root for x",
            ]
        );
    }
}
