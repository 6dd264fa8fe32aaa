// SPDX-License-Identifier: Apache-2.0

//! Policies as ztunnel's `config_dump` prints them: rules, clauses, matches.

use policy::authz::{AccountMatch, Action, Authorization, Field, Match, Scope, StringMatch};
use serde_json::{Map, Value, json};

pub(super) fn authorization(one: &Authorization) -> Value {
    let scope = match one.scope {
        Scope::Global => "Global",
        Scope::Namespace => "Namespace",
        Scope::Selector | Scope::Targets(_) => "WorkloadSelector",
    };
    let action = match one.action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Audit => "Audit",
        Action::Custom => "Custom",
    };
    let clauses = |rule: &policy::authz::Rule| {
        let each = rule.clauses.iter();
        each.map(|clause| clause.matches.iter().map(matching).collect()).collect()
    };
    let rules: Vec<Vec<Vec<Value>>> = one.rules.iter().map(clauses).collect();
    json!({
        "name": one.name.name(),
        "namespace": one.name.namespace(),
        "scope": scope,
        "action": action,
        "dryRun": one.dry_run,
        "rules": rules,
        "unsupported": one.unsupported.as_deref(),
    })
}

fn matching(one: &Match) -> Value {
    let mut map = Map::new();
    put(&mut map, ("namespaces", "notNamespaces"), &one.namespaces, text);
    put(&mut map, ("serviceAccounts", "notServiceAccounts"), &one.service_accounts, account);
    put(&mut map, ("principals", "notPrincipals"), &one.principals, text);
    put(&mut map, ("sourceIps", "notSourceIps"), &one.source_ips, |ip| json!(ip.to_string()));
    let (key, ips) = (("destinationIps", "notDestinationIps"), &one.destination_ips);
    put(&mut map, key, ips, |ip| json!(ip.to_string()));
    let (key, ports) = (("destinationPorts", "notDestinationPorts"), &one.destination_ports);
    put(&mut map, key, ports, |port| json!(port));
    Value::Object(map)
}

/// Adds both lists of a field, where they hold something.
fn put<T>(
    map: &mut Map<String, Value>,
    (any, not): (&str, &str),
    field: &Field<T>,
    print: impl Fn(&T) -> Value,
) {
    for (key, values) in [(any, &field.any), (not, &field.not)] {
        if !values.is_empty() {
            map.insert(key.to_owned(), values.iter().map(&print).collect());
        }
    }
}

fn text(one: &StringMatch) -> Value {
    match one {
        StringMatch::Exact(text) => json!({ "Exact": **text }),
        StringMatch::Prefix(text) => json!({ "Prefix": **text }),
        StringMatch::Suffix(text) => json!({ "Suffix": **text }),
        StringMatch::Presence => json!("Presence"),
    }
}

fn account(one: &AccountMatch) -> Value {
    json!({ "namespace": *one.namespace, "serviceAccount": *one.service_account })
}

#[cfg(test)]
mod tests {
    use policy::authz::{Clause, PolicyName, Rule};

    use super::*;

    #[test]
    fn rules_are_three_lists_deep_as_istioctl_reads_them() {
        let mut matching = Match::default();
        matching.principals.any = vec![StringMatch::Exact("td/ns/a/sa/b".into())];
        matching.destination_ports.not = vec![80];
        let policy = Authorization {
            name: PolicyName::new("shop", "one"),
            scope: Scope::Selector,
            action: Action::Deny,
            dry_run: false,
            unsupported: None,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![matching] }] }],
        };
        let dump = authorization(&policy);
        let inner =
            json!({ "principals": [{ "Exact": "td/ns/a/sa/b" }], "notDestinationPorts": [80] });
        assert_eq!(dump["rules"], json!([[[inner]]]));
        assert_eq!((&dump["scope"], &dump["action"]), (&json!("WorkloadSelector"), &json!("Deny")));
    }
}
