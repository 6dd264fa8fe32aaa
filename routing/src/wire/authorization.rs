// SPDX-License-Identifier: Apache-2.0

//! `istio.security.Authorization`: policies over sessions.
//!
//! Owns the conversion of Istio's message both ways; [`gateway`] has that of
//! our own message for gateways. Both give one domain type. Keeps: a value that
//! cannot be read, or cannot be written, refuses the policy; none is left out.
//! Start at [`read`] and [`write()`].

pub mod gateway;

use std::sync::Arc;

use ipnet::IpNet;
use policy::authz::{
    AccountMatch, Action, Authorization, Clause, Field, Match, PolicyName, Rule, Scope, StringMatch,
};

use super::error::{WireError, address_bytes, each, port, range};
use super::messages::istio::security as wire;

/// Why a policy has no form for tunnels.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0} has no form in a policy over sessions")]
pub struct NotExpressible(pub &'static str);

/// Reads a policy.
///
/// # Errors
///
/// See [`WireError`].
pub fn read(message: &wire::Authorization) -> Result<Authorization, WireError> {
    no_extension(&message.extensions)?;
    let action = match wire::Action::try_from(message.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(WireError::Unknown("action", message.action)),
    };
    Ok(Authorization {
        name: read_name(&message.namespace, &message.name)?,
        scope: read_scope(message)?,
        action,
        dry_run: message.dry_run,
        unsupported: None,
        rules: each(&message.groups, read_rule)?,
    })
}

/// Reads only where the policy is in force: enough to refuse there if the rest
/// cannot be read.
///
/// # Errors
///
/// [`WireError::Unknown`] for a scope that is not known.
pub fn read_scope(message: &wire::Authorization) -> Result<Scope, WireError> {
    match wire::Scope::try_from(message.scope) {
        Ok(wire::Scope::Global) => Ok(Scope::Global),
        Ok(wire::Scope::Namespace) => Ok(Scope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(Scope::Selector),
        Err(_) => Err(WireError::Unknown("scope", message.scope)),
    }
}

pub(super) fn read_name(namespace: &str, name: &str) -> Result<PolicyName, WireError> {
    let text = format!("{namespace}/{name}");
    text.parse().map_err(|error| WireError::Policy("name", error))
}

/// Writes a policy.
///
/// A policy that cannot be served as written becomes one that denies all it
/// governs, so that any tunnel refuses.
///
/// # Errors
///
/// [`NotExpressible`] for targets, for actions other than ALLOW and DENY, and
/// for conditions on requests.
pub fn write(policy: &Authorization) -> Result<wire::Authorization, NotExpressible> {
    let scope = match &policy.scope {
        Scope::Global => wire::Scope::Global,
        Scope::Namespace => wire::Scope::Namespace,
        Scope::Selector => wire::Scope::WorkloadSelector,
        Scope::Targets(_) => return Err(NotExpressible("a target")),
    };
    let refuses = policy.unsupported.is_some() && policy.action != Action::Audit;
    let (action, groups) = match policy.action {
        _ if refuses => (wire::Action::Deny, vec![wire::Group::default()]),
        Action::Allow => (wire::Action::Allow, write_rules(&policy.rules)?),
        Action::Deny => (wire::Action::Deny, write_rules(&policy.rules)?),
        Action::Audit => return Err(NotExpressible("AUDIT")),
        Action::Custom => return Err(NotExpressible("CUSTOM")),
    };
    Ok(wire::Authorization {
        name: policy.name.name().to_owned(),
        namespace: policy.name.namespace().to_owned(),
        scope: scope.into(),
        action: action.into(),
        groups,
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    })
}

fn no_extension(extensions: &[wire::Extension]) -> Result<(), WireError> {
    match extensions.first() {
        Some(extension) => Err(WireError::Extension(extension.name.clone())),
        None => Ok(()),
    }
}

fn read_rule(group: &wire::Group) -> Result<Rule, WireError> {
    let clause = |rules: &wire::Rules| {
        let matches = each(&rules.matches, read_match)?;
        Ok(Clause { matches })
    };
    Ok(Rule { clauses: each(&group.rules, clause)? })
}

fn write_rules(rules: &[Rule]) -> Result<Vec<wire::Group>, NotExpressible> {
    let clause = |clause: &Clause| {
        let matches = each(&clause.matches, write_match)?;
        Ok(wire::Rules { matches })
    };
    let rule = |rule: &Rule| {
        let rules = each(&rule.clauses, clause)?;
        Ok(wire::Group { rules })
    };
    rules.iter().map(rule).collect()
}

fn read_match(message: &wire::Match) -> Result<Match, WireError> {
    no_extension(&message.extensions)?;
    let texts = |any: &[wire::StringMatch], not: &[wire::StringMatch]| field(any, not, read_text);
    let ranges = |any: &[wire::Address], not: &[wire::Address]| field(any, not, read_range);
    let ports = |number: &u32| port("destination_ports", *number);
    Ok(Match {
        namespaces: texts(&message.namespaces, &message.not_namespaces)?,
        service_accounts: field(
            &message.service_accounts,
            &message.not_service_accounts,
            read_account,
        )?,
        principals: texts(&message.principals, &message.not_principals)?,
        source_ips: ranges(&message.source_ips, &message.not_source_ips)?,
        destination_ips: ranges(&message.destination_ips, &message.not_destination_ips)?,
        destination_ports: field(
            &message.destination_ports,
            &message.not_destination_ports,
            ports,
        )?,
        ..Match::default()
    })
}

fn write_match(one: &Match) -> Result<wire::Match, NotExpressible> {
    let requests = [
        ("remoteIpBlocks", one.remote_ips.is_empty()),
        ("connection.sni", one.sni.is_empty()),
        ("hosts", one.hosts.is_empty()),
        ("methods", one.methods.is_empty()),
        ("paths", one.paths.is_empty()),
        ("request.headers", one.headers.is_empty()),
        ("requestPrincipals", one.request_principals.is_empty()),
        ("request.auth.claims", one.claims.is_empty()),
    ];
    if let Some((name, _)) = requests.iter().find(|(_, empty)| !empty) {
        return Err(NotExpressible(name));
    }
    let texts = |values: &[StringMatch]| values.iter().map(write_text).collect();
    let ranges = |values: &[IpNet]| values.iter().copied().map(write_range).collect();
    let ports = |values: &[u16]| values.iter().copied().map(u32::from).collect();
    let accounts = |values: &[AccountMatch]| values.iter().map(write_account).collect();
    Ok(wire::Match {
        namespaces: texts(&one.namespaces.any),
        not_namespaces: texts(&one.namespaces.not),
        service_accounts: accounts(&one.service_accounts.any),
        not_service_accounts: accounts(&one.service_accounts.not),
        principals: texts(&one.principals.any),
        not_principals: texts(&one.principals.not),
        source_ips: ranges(&one.source_ips.any),
        not_source_ips: ranges(&one.source_ips.not),
        destination_ips: ranges(&one.destination_ips.any),
        not_destination_ips: ranges(&one.destination_ips.not),
        destination_ports: ports(&one.destination_ports.any),
        not_destination_ports: ports(&one.destination_ports.not),
        extensions: Vec::new(),
    })
}

/// Both lists of a field.
pub(super) fn field<M, T>(
    any: &[M],
    not: &[M],
    read: impl Fn(&M) -> Result<T, WireError>,
) -> Result<Field<T>, WireError> {
    Ok(Field { any: each(any, &read)?, not: each(not, &read)? })
}

fn read_text(message: &wire::StringMatch) -> Result<StringMatch, WireError> {
    use wire::string_match::MatchType;
    let text = |text: &String| Arc::from(text.as_str());
    match &message.match_type {
        Some(MatchType::Exact(exact)) => Ok(StringMatch::Exact(text(exact))),
        Some(MatchType::Prefix(prefix)) => Ok(StringMatch::Prefix(text(prefix))),
        Some(MatchType::Suffix(suffix)) => Ok(StringMatch::Suffix(text(suffix))),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(WireError::Missing("match_type")),
    }
}

fn write_text(text: &StringMatch) -> wire::StringMatch {
    use wire::string_match::MatchType;
    let kind = match text {
        StringMatch::Exact(exact) => MatchType::Exact(exact.to_string()),
        StringMatch::Prefix(prefix) => MatchType::Prefix(prefix.to_string()),
        StringMatch::Suffix(suffix) => MatchType::Suffix(suffix.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    wire::StringMatch { match_type: Some(kind) }
}

fn read_range(message: &wire::Address) -> Result<IpNet, WireError> {
    range("source_ips or destination_ips", &message.address, message.length)
}

fn write_range(range: IpNet) -> wire::Address {
    wire::Address { address: address_bytes(range.addr()), length: u32::from(range.prefix_len()) }
}

fn read_account(message: &wire::ServiceAccountMatch) -> Result<AccountMatch, WireError> {
    if message.namespace.is_empty() || message.service_account.is_empty() {
        return Err(WireError::Missing("service_accounts.namespace or service_account"));
    }
    Ok(AccountMatch {
        namespace: message.namespace.as_str().into(),
        service_account: message.service_account.as_str().into(),
    })
}

fn write_account(account: &AccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    }
}

#[cfg(test)]
mod tests;
