// SPDX-License-Identifier: Apache-2.0

//! The rules of an AuthorizationPolicy, read whole or refused whole.
//!
//! `from`, `to` and each `when` become one clause. A field that is not served, or that a
//! session cannot answer in a policy for sessions, refuses the policy with the field's path.

use http::HeaderName;
use ipnet::IpNet;
use policy::authz::{
    AccountMatch, ClaimField, Clause, Field, HeaderField, InvalidPattern, Match, PathMatch, Rule,
    StringMatch,
};

use crate::api::istio::{AuthorizationPolicy, Operation, Source, When};
use crate::settings::Mesh;

/// Why a policy cannot be served as written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refused {
    /// Reason of the condition.
    pub(super) reason: &'static str,
    /// Message of the condition.
    pub(super) message: String,
}

impl Refused {
    fn unsupported(field: &str, why: &str) -> Self {
        let message = format!("{field} {why}: traffic that the policy selects is refused");
        Self { reason: "UnsupportedValue", message }
    }

    fn invalid(field: &str, why: &str) -> Self {
        Self { reason: "Invalid", message: format!("{field}: {why}") }
    }
}

type Read<T> = Result<T, Refused>;

/// Reads all rules; `session` tells that a tunnel enforces them, below HTTP.
pub(super) fn read(object: &AuthorizationPolicy, session: bool, mesh: &Mesh) -> Read<Vec<Rule>> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let reader = Reader { namespace, session, mesh };
    let mut rules = Vec::new();
    for (index, rule) in object.spec.rules.iter().enumerate() {
        let mut clauses = Vec::new();
        let at = |part: &str| format!("spec.rules[{index}].{part}");
        if !rule.from.is_empty() {
            let matches: Read<_> = (0..)
                .zip(&rule.from)
                .map(|(i, from)| reader.source(&at(&format!("from[{i}].source")), &from.source))
                .collect();
            clauses.push(Clause { matches: matches? });
        }
        if !rule.to.is_empty() {
            let matches: Read<_> = (0..)
                .zip(&rule.to)
                .map(|(i, to)| reader.operation(&at(&format!("to[{i}].operation")), &to.operation))
                .collect();
            clauses.push(Clause { matches: matches? });
        }
        for (i, when) in rule.when.iter().enumerate() {
            clauses.push(Clause { matches: vec![reader.when(&at(&format!("when[{i}]")), when)?] });
        }
        rules.push(Rule { clauses });
    }
    Ok(rules)
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    namespace: &'a str,
    session: bool,
    mesh: &'a Mesh,
}

impl Reader<'_> {
    fn source(self, at: &str, source: &Source) -> Read<Match> {
        let jwt = [&source.request_principals, &source.not_request_principals];
        if jwt.iter().any(|list| !list.is_empty()) {
            self.needs_requests(&format!("{at}.requestPrincipals"))?;
        }
        let remote = [&source.remote_ip_blocks, &source.not_remote_ip_blocks];
        if remote.iter().any(|list| !list.is_empty()) {
            self.needs_requests(&format!("{at}.remoteIpBlocks"))?;
        }
        let one = Match {
            principals: self.principals(at, &source.principals, &source.not_principals)?,
            namespaces: strings(at, &source.namespaces, &source.not_namespaces)?,
            service_accounts: self.accounts(
                at,
                &source.service_accounts,
                &source.not_service_accounts,
            )?,
            source_ips: networks(at, &source.ip_blocks, &source.not_ip_blocks)?,
            remote_ips: networks(at, &source.remote_ip_blocks, &source.not_remote_ip_blocks)?,
            request_principals: strings(
                at,
                &source.request_principals,
                &source.not_request_principals,
            )?,
            ..Match::default()
        };
        filled(at, one)
    }

    fn operation(self, at: &str, operation: &Operation) -> Read<Match> {
        let http = [
            ("hosts", &operation.hosts, &operation.not_hosts),
            ("methods", &operation.methods, &operation.not_methods),
            ("paths", &operation.paths, &operation.not_paths),
        ];
        for (field, any, not) in http {
            if !any.is_empty() || !not.is_empty() {
                self.needs_requests(&format!("{at}.{field}"))?;
            }
        }
        let path = |text: &String| PathMatch::parse(text);
        let one = Match {
            destination_ports: ports(at, &operation.ports, &operation.not_ports)?,
            hosts: strings(at, &operation.hosts, &operation.not_hosts)?,
            methods: strings(at, &operation.methods, &operation.not_methods)?,
            paths: field(at, &operation.paths, &operation.not_paths, path)?,
            ..Match::default()
        };
        filled(at, one)
    }

    fn when(self, at: &str, when: &When) -> Read<Match> {
        let (any, not) = (&when.values, &when.not_values);
        let key = format!("{at} ({})", when.key);
        let mut one = Match::default();
        match when.key.as_str() {
            "source.ip" => one.source_ips = networks(&key, any, not)?,
            "source.namespace" => one.namespaces = strings(&key, any, not)?,
            "source.principal" => one.principals = self.principals(&key, any, not)?,
            "source.serviceAccount" => one.service_accounts = self.accounts(&key, any, not)?,
            "destination.ip" => one.destination_ips = networks(&key, any, not)?,
            "destination.port" => one.destination_ports = ports(&key, any, not)?,
            "remote.ip" => {
                self.needs_requests(&key)?;
                one.remote_ips = networks(&key, any, not)?;
            }
            "request.auth.principal" => {
                self.needs_requests(&key)?;
                one.request_principals = strings(&key, any, not)?;
            }
            "request.auth.audiences" => one.claims.push(self.claim(&key, &["aud"], when)?),
            "request.auth.presenter" => one.claims.push(self.claim(&key, &["azp"], when)?),
            "connection.sni" => {
                self.needs_requests(&key)?;
                one.sni = strings(&key, any, not)?;
            }
            other if other.starts_with("request.auth.claims") => {
                let path = claim_path(other).ok_or_else(|| {
                    Refused::invalid(&key, "wanted request.auth.claims[NAME], or [NAME][NAME]")
                })?;
                one.claims.push(self.claim(&key, &path, when)?);
            }
            other => match header_name(other) {
                Some(Ok(name)) => {
                    self.needs_requests(&key)?;
                    let values = strings(&key, any, not)?;
                    one.headers.push(HeaderField { name, values });
                }
                Some(Err(why)) => return Err(Refused::invalid(&key, why)),
                None => return Err(Refused::unsupported(&key, "is not served")),
            },
        }
        filled(&key, one)
    }

    /// Values of the claim at `path` of the request's token.
    fn claim(self, key: &str, path: &[&str], when: &When) -> Read<ClaimField> {
        self.needs_requests(key)?;
        let path = path.iter().map(|name| (*name).into()).collect();
        Ok(ClaimField { path, values: strings(key, &when.values, &when.not_values)? })
    }

    fn accounts(self, at: &str, any: &[String], not: &[String]) -> Read<Field<AccountMatch>> {
        field(at, any, not, |text| AccountMatch::parse(text, self.namespace))
    }

    /// Principals, in every trust domain that they are meant in.
    fn principals(self, at: &str, any: &[String], not: &[String]) -> Read<Field<StringMatch>> {
        let written =
            field(at, any, not, |text| StringMatch::parse(text).map(StringMatch::without_scheme))?;
        let domains = self.mesh.trust_domains();
        let all = |list: Vec<StringMatch>| {
            list.into_iter().flat_map(|pattern| pattern.across(&domains)).collect()
        };
        Ok(Field { any: all(written.any), not: all(written.not) })
    }

    fn needs_requests(self, at: &str) -> Read<()> {
        if self.session {
            let why = "needs a waypoint (targetRefs); a selector policy acts on connections";
            return Err(Refused::unsupported(at, why));
        }
        Ok(())
    }
}

/// The header that `request.headers[name]` names.
fn header_name(key: &str) -> Option<Result<HeaderName, &'static str>> {
    let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
    Some(name.to_ascii_lowercase().parse().map_err(|_| "this is no name of a header"))
}

/// The names that `request.auth.claims[name][name]…` leads by.
fn claim_path(key: &str) -> Option<Vec<&str>> {
    let inner = key.strip_prefix("request.auth.claims[")?.strip_suffix(']')?;
    let path: Vec<&str> = inner.split("][").collect();
    let legal = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    path.iter().all(legal).then_some(path)
}

/// A match that asks nothing would match nothing: surely not what was meant.
fn filled(at: &str, one: Match) -> Read<Match> {
    if one.is_empty() {
        return Err(Refused::invalid(at, "nothing is asked here; wanted at least one value"));
    }
    Ok(one)
}

fn field<T>(
    at: &str,
    any: &[String],
    not: &[String],
    parse: impl Fn(&String) -> Result<T, InvalidPattern>,
) -> Read<Field<T>> {
    let parse_all = |list: &[String]| -> Read<Vec<T>> {
        list.iter()
            .map(|text| parse(text).map_err(|error| Refused::invalid(at, &error.to_string())))
            .collect()
    };
    Ok(Field { any: parse_all(any)?, not: parse_all(not)? })
}

fn strings(at: &str, any: &[String], not: &[String]) -> Read<Field<StringMatch>> {
    field(at, any, not, |text| StringMatch::parse(text))
}

fn networks(at: &str, any: &[String], not: &[String]) -> Read<Field<IpNet>> {
    let parse = |text: &String| -> Read<IpNet> {
        let single = || text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip));
        text.parse().or_else(|_| single()).map_err(|_| {
            Refused::invalid(at, &format!("{text:?} is no IP address and no CIDR block"))
        })
    };
    let all = |list: &[String]| list.iter().map(parse).collect::<Read<Vec<_>>>();
    Ok(Field { any: all(any)?, not: all(not)? })
}

fn ports(at: &str, any: &[String], not: &[String]) -> Read<Field<u16>> {
    let parse = |text: &String| -> Read<u16> {
        let port = text.parse().ok().filter(|port| *port != 0);
        port.ok_or_else(|| Refused::invalid(at, &format!("{text:?} is no port, wanted 1 to 65535")))
    };
    let all = |list: &[String]| list.iter().map(parse).collect::<Read<Vec<_>>>();
    Ok(Field { any: all(any)?, not: all(not)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::istio::AuthorizationPolicySpec;

    fn policy(rules: serde_json::Value) -> AuthorizationPolicy {
        let spec: AuthorizationPolicySpec =
            serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap();
        let mut policy = AuthorizationPolicy::new("p", spec);
        policy.metadata.namespace = Some("ns".into());
        policy
    }

    #[test]
    fn what_is_not_served_refuses_with_its_path() {
        let request =
            |field: &str| serde_json::json!([{ "to": [{ "operation": { field: ["x"] } }] }]);
        let source =
            |field: &str| serde_json::json!([{ "from": [{ "source": { field: ["10.0.0.1"] } }] }]);
        let when = |key: &str| serde_json::json!([{ "when": [{ "key": key, "values": ["x"] }] }]);
        let cases = [
            // rules, sessions refuse, requests refuse
            (request("paths"), true, false),
            (request("methods"), true, false),
            (request("notHosts"), true, false),
            (source("remoteIpBlocks"), true, false),
            (source("requestPrincipals"), true, false),
            (source("notRequestPrincipals"), true, false),
            (source("ipBlocks"), false, false),
            (when("request.headers[x-a]"), true, false),
            (when("connection.sni"), true, false),
            (when("request.auth.principal"), true, false),
            (when("request.auth.audiences"), true, false),
            (when("request.auth.presenter"), true, false),
            (when("request.auth.claims[iss]"), true, false),
            (when("request.auth.claims[a][b]"), true, false),
            (when("request.auth.claims"), true, true),
            (when("request.auth.claims[]"), true, true),
            (when("request.auth.claims[a]b]"), true, true),
            (when("request.auth.other"), true, true),
            (when("source.namespace"), false, false),
            (when("source.ip"), true, true),
            (when("something"), true, true),
            (serde_json::json!([{ "from": [{ "source": {} }] }]), true, true),
            (serde_json::json!([{ "to": [{ "operation": { "ports": ["http"] } }] }]), true, true),
            (serde_json::json!([{}]), false, false),
        ];
        let mesh = Mesh::default();
        for (rules, sessions, requests) in cases {
            let policy = policy(rules);
            assert_eq!(
                read(&policy, true, &mesh).is_err(),
                sessions,
                "session: {:?}",
                policy.spec.rules
            );
            assert_eq!(
                read(&policy, false, &mesh).is_err(),
                requests,
                "request: {:?}",
                policy.spec.rules
            );
        }
        let refused = read(&policy(request("paths")), true, &mesh).unwrap_err();
        assert!(refused.message.starts_with("spec.rules[0].to[0].operation.paths"), "{refused:?}");
    }

    #[test]
    fn from_to_and_each_when_are_one_clause() {
        let rules = serde_json::json!([{
            "from": [
                { "source": { "principals": ["spiffe://td/ns/a/sa/b"], "notIpBlocks": ["10.0.0.0/8"] } },
                { "source": { "serviceAccounts": ["c"] } },
            ],
            "to": [{ "operation": { "ports": ["80", "81"] } }],
            "when": [
                { "key": "source.namespace", "values": ["x-*"] },
                { "key": "destination.port", "notValues": ["99"] },
            ],
        }]);
        let rules = read(&policy(rules), true, &Mesh::default()).unwrap();
        let clauses = &rules[0].clauses;
        assert_eq!(
            clauses.iter().map(|clause| clause.matches.len()).collect::<Vec<_>>(),
            [2, 1, 1, 1]
        );
        let first = &clauses[0].matches[0];
        assert_eq!(first.principals.any, [StringMatch::Exact("td/ns/a/sa/b".into())]);
        assert_eq!(first.source_ips.not, ["10.0.0.0/8".parse().unwrap()]);
        let account = &clauses[0].matches[1].service_accounts.any[0];
        assert_eq!((&*account.namespace, &*account.service_account), ("ns", "c"));
        assert_eq!(clauses[3].matches[0].destination_ports.not, [99]);
    }

    #[test]
    fn fields_of_tokens_are_claims_by_their_path() {
        let rules = serde_json::json!([{
            "from": [{ "source": { "notRequestPrincipals": ["*"] } }],
            "when": [
                { "key": "request.auth.principal", "values": ["https://i/*"] },
                { "key": "request.auth.audiences", "values": ["shop"] },
                { "key": "request.auth.presenter", "notValues": ["app"] },
                { "key": "request.auth.claims[a-b][c.d]", "values": ["*"] },
            ],
        }]);
        let rules = read(&policy(rules), false, &Mesh::default()).unwrap();
        let of = |clause: usize| &rules[0].clauses[clause].matches[0];
        assert_eq!(of(0).request_principals.not, [StringMatch::Presence]);
        assert_eq!(of(1).request_principals.any, [StringMatch::Prefix("https://i/".into())]);
        let paths = [&["aud"][..], &["azp"], &["a-b", "c.d"]];
        for (clause, path) in (2..).zip(paths) {
            let found: Vec<&str> = of(clause).claims[0].path.iter().map(|name| &**name).collect();
            assert_eq!(found, path);
        }
        assert_eq!(of(3).claims[0].values.not, [StringMatch::Exact("app".into())]);
    }

    #[test]
    fn principals_are_meant_in_every_trust_domain_of_the_mesh() {
        let mesh = Mesh {
            trust_domain: "new".into(),
            trust_domain_aliases: ["old".into()].into(),
            ..Mesh::default()
        };
        let rules = serde_json::json!([
            { "from": [{ "source": { "principals": ["spiffe://old/ns/a/sa/b"] } }] },
            { "when": [{ "key": "source.principal", "notValues": ["new/ns/a/*"] }] },
        ]);
        let rules = read(&policy(rules), true, &mesh).unwrap();
        let field = |rule: usize| rules[rule].clauses[0].matches[0].principals.clone();
        let exact = |text: &str| StringMatch::Exact(text.into());
        assert_eq!(field(0).any, [exact("old/ns/a/sa/b"), exact("new/ns/a/sa/b")]);
        let prefix = |text: &str| StringMatch::Prefix(text.into());
        let want = ["new/ns/a/", "old/ns/a/"].map(prefix);
        assert_eq!(field(1).not, want);
    }
}
