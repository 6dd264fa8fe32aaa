// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.Authorization`: policies over requests, for gateways.
//!
//! Owns the conversion of our own message both ways, all match fields included.

use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;
use policy::authz::{
    AccountMatch, Action, Authorization, ClaimField, Clause, Field, HeaderField, Match, PathMatch,
    PathTemplate, Rule, Scope, StringMatch, Target,
};

use super::{NotExpressible, field, read_name};
use crate::wire::error::{WireError, each, port};
use crate::wire::messages::waymark::v1 as wire;

/// Reads a policy.
///
/// # Errors
///
/// See [`WireError`].
pub fn read(message: &wire::Authorization) -> Result<Authorization, WireError> {
    use wire::authorization::Action as Wire;
    let action = match Wire::try_from(message.action) {
        Ok(Wire::Allow) => Action::Allow,
        Ok(Wire::Deny) => Action::Deny,
        Ok(Wire::Audit) => Action::Audit,
        Ok(Wire::Custom) => Action::Custom,
        Ok(Wire::Unspecified) | Err(_) => return Err(WireError::Unknown("action", message.action)),
    };
    let unsupported = message.unsupported.as_str();
    Ok(Authorization {
        name: read_name(&message.namespace, &message.name)?,
        scope: Scope::Targets(read_targets(message)?),
        action,
        dry_run: message.dry_run,
        unsupported: (!unsupported.is_empty()).then(|| unsupported.into()),
        rules: each(&message.rules, read_rule)?,
    })
}

/// Reads only what the policy governs: enough to refuse there if the rest cannot be read.
///
/// # Errors
///
/// [`WireError::Missing`] without a target, or with an empty one.
pub fn read_targets(message: &wire::Authorization) -> Result<Vec<Target>, WireError> {
    let targets: Vec<Target> = each(&message.targets, read_target)?;
    if targets.is_empty() { Err(WireError::Missing("targets")) } else { Ok(targets) }
}

/// Reads what a policy points at.
///
/// # Errors
///
/// [`WireError::Missing`] if that is empty.
pub(crate) fn read_target(target: &wire::AuthorizationTarget) -> Result<Target, WireError> {
    use wire::authorization_target::Kind;
    match &target.kind {
        Some(Kind::Service(key)) => Ok(Target::Service(key.as_str().into())),
        Some(Kind::Gateway(name)) => Ok(Target::Gateway(name.as_str().into())),
        Some(Kind::GatewayClass(name)) => Ok(Target::Class(name.as_str().into())),
        None => Err(WireError::Missing("targets.kind")),
    }
}

/// Writes what a policy points at.
pub(crate) fn write_target(target: &Target) -> wire::AuthorizationTarget {
    use wire::authorization_target::Kind;
    let kind = match target {
        Target::Service(key) => Kind::Service(key.to_string()),
        Target::Gateway(name) => Kind::Gateway(name.to_string()),
        Target::Class(name) => Kind::GatewayClass(name.to_string()),
    };
    wire::AuthorizationTarget { kind: Some(kind) }
}

/// Writes a policy.
///
/// # Errors
///
/// [`NotExpressible`] for a scope that is not a list of targets.
pub fn write(policy: &Authorization) -> Result<wire::Authorization, NotExpressible> {
    use wire::authorization::Action as Wire;
    let targets = match &policy.scope {
        Scope::Targets(targets) => targets,
        Scope::Global | Scope::Namespace | Scope::Selector => {
            return Err(NotExpressible("a scope other than targets"));
        }
    };
    let action = match policy.action {
        Action::Allow => Wire::Allow,
        Action::Deny => Wire::Deny,
        Action::Audit => Wire::Audit,
        Action::Custom => Wire::Custom,
    };
    Ok(wire::Authorization {
        namespace: policy.name.namespace().to_owned(),
        name: policy.name.name().to_owned(),
        targets: targets.iter().map(write_target).collect(),
        action: action.into(),
        dry_run: policy.dry_run,
        unsupported: policy.unsupported.as_deref().unwrap_or_default().to_owned(),
        rules: policy.rules.iter().map(write_rule).collect(),
    })
}

fn read_rule(message: &wire::AuthorizationRule) -> Result<Rule, WireError> {
    let clause = |clause: &wire::AuthorizationClause| {
        let matches = each(&clause.matches, read_match)?;
        Ok(Clause { matches })
    };
    Ok(Rule { clauses: each(&message.clauses, clause)? })
}

fn write_rule(rule: &Rule) -> wire::AuthorizationRule {
    let clause = |clause: &Clause| wire::AuthorizationClause {
        matches: clause.matches.iter().map(write_match).collect(),
    };
    wire::AuthorizationRule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn read_match(message: &wire::AuthorizationMatch) -> Result<Match, WireError> {
    let header = |header: &wire::HeaderField| {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let name = name.map_err(|_| WireError::Value("headers.name", header.name.clone()))?;
        Ok(HeaderField { name, values: read_texts(header.values.as_ref())? })
    };
    let claim = |claim: &wire::ClaimField| {
        if claim.path.is_empty() {
            return Err(WireError::Missing("claims.path"));
        }
        let path = claim.path.iter().map(|name| name.as_str().into()).collect();
        Ok(ClaimField { path, values: read_texts(claim.values.as_ref())? })
    };
    let ports = message.destination_ports.as_ref().map_or_else(
        || Ok(Field::default()),
        |ports| field(&ports.any, &ports.not, |number| port("destination_ports", *number)),
    );
    let paths = message
        .paths
        .as_ref()
        .map_or_else(|| Ok(Field::default()), |paths| field(&paths.any, &paths.not, read_path));
    Ok(Match {
        namespaces: read_texts(message.namespaces.as_ref())?,
        service_accounts: read_names(message.service_accounts.as_ref(), read_account)?,
        principals: read_texts(message.principals.as_ref())?,
        source_ips: read_names(message.source_ips.as_ref(), read_range)?,
        remote_ips: read_names(message.remote_ips.as_ref(), read_range)?,
        destination_ips: read_names(message.destination_ips.as_ref(), read_range)?,
        destination_ports: ports?,
        sni: read_texts(message.sni.as_ref())?,
        hosts: read_texts(message.hosts.as_ref())?,
        methods: read_texts(message.methods.as_ref())?,
        paths: paths?,
        headers: each(&message.headers, header)?,
        request_principals: read_texts(message.request_principals.as_ref())?,
        claims: each(&message.claims, claim)?,
    })
}

fn write_match(one: &Match) -> wire::AuthorizationMatch {
    let header = |header: &HeaderField| wire::HeaderField {
        name: header.name.as_str().to_owned(),
        values: write_texts(&header.values),
    };
    let claim = |claim: &ClaimField| wire::ClaimField {
        path: claim.path.iter().map(ToString::to_string).collect(),
        values: write_texts(&claim.values),
    };
    let account =
        |account: &AccountMatch| format!("{}/{}", account.namespace, account.service_account);
    let ports = &one.destination_ports;
    let port_list = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
    let path_list = |paths: &[PathMatch]| paths.iter().map(write_path).collect();
    wire::AuthorizationMatch {
        namespaces: write_texts(&one.namespaces),
        service_accounts: write_names(&one.service_accounts, account),
        principals: write_texts(&one.principals),
        source_ips: write_names(&one.source_ips, IpNet::to_string),
        remote_ips: write_names(&one.remote_ips, IpNet::to_string),
        destination_ips: write_names(&one.destination_ips, IpNet::to_string),
        destination_ports: (!ports.is_empty())
            .then(|| wire::PortField { any: port_list(&ports.any), not: port_list(&ports.not) }),
        sni: write_texts(&one.sni),
        hosts: write_texts(&one.hosts),
        methods: write_texts(&one.methods),
        paths: (!one.paths.is_empty()).then(|| wire::PathField {
            any: path_list(&one.paths.any),
            not: path_list(&one.paths.not),
        }),
        headers: one.headers.iter().map(header).collect(),
        request_principals: write_texts(&one.request_principals),
        claims: one.claims.iter().map(claim).collect(),
    }
}

fn read_texts(message: Option<&wire::TextField>) -> Result<Field<StringMatch>, WireError> {
    message.map_or_else(
        || Ok(Field::default()),
        |message| field(&message.any, &message.not, read_text),
    )
}

fn write_texts(texts: &Field<StringMatch>) -> Option<wire::TextField> {
    let list = |texts: &[StringMatch]| texts.iter().map(write_text).collect();
    (!texts.is_empty()).then(|| wire::TextField { any: list(&texts.any), not: list(&texts.not) })
}

fn read_names<T>(
    message: Option<&wire::NameField>,
    read: impl Fn(&str) -> Result<T, WireError>,
) -> Result<Field<T>, WireError> {
    message.map_or_else(
        || Ok(Field::default()),
        |message| field(&message.any, &message.not, |text: &String| read(text)),
    )
}

fn write_names<T>(names: &Field<T>, write: impl Fn(&T) -> String) -> Option<wire::NameField> {
    (!names.is_empty()).then(|| wire::NameField {
        any: names.any.iter().map(&write).collect(),
        not: names.not.iter().map(&write).collect(),
    })
}

fn read_text(message: &wire::TextPattern) -> Result<StringMatch, WireError> {
    use wire::text_pattern::Kind;
    let text = |text: &String| Arc::from(text.as_str());
    match &message.kind {
        Some(Kind::Exact(exact)) => Ok(StringMatch::Exact(text(exact))),
        Some(Kind::Prefix(prefix)) => Ok(StringMatch::Prefix(text(prefix))),
        Some(Kind::Suffix(suffix)) => Ok(StringMatch::Suffix(text(suffix))),
        Some(Kind::Present(true)) => Ok(StringMatch::Presence),
        Some(Kind::Present(false)) | None => Err(WireError::Missing("kind")),
    }
}

fn write_text(text: &StringMatch) -> wire::TextPattern {
    use wire::text_pattern::Kind;
    let kind = match text {
        StringMatch::Exact(exact) => Kind::Exact(exact.to_string()),
        StringMatch::Prefix(prefix) => Kind::Prefix(prefix.to_string()),
        StringMatch::Suffix(suffix) => Kind::Suffix(suffix.to_string()),
        StringMatch::Presence => Kind::Present(true),
    };
    wire::TextPattern { kind: Some(kind) }
}

fn read_path(message: &wire::PathPattern) -> Result<PathMatch, WireError> {
    use wire::path_pattern::Kind;
    match &message.kind {
        Some(Kind::Text(text)) => Ok(PathMatch::Text(read_text(text)?)),
        Some(Kind::Template(text)) => match PathTemplate::parse(text) {
            Ok(template) => Ok(PathMatch::Template(template)),
            Err(error) => Err(WireError::Value("paths.template", error.to_string())),
        },
        None => Err(WireError::Missing("paths.kind")),
    }
}

fn write_path(path: &PathMatch) -> wire::PathPattern {
    use wire::path_pattern::Kind;
    let kind = match path {
        PathMatch::Text(text) => Kind::Text(write_text(text)),
        PathMatch::Template(template) => Kind::Template(template.as_str().to_owned()),
    };
    wire::PathPattern { kind: Some(kind) }
}

fn read_account(text: &str) -> Result<AccountMatch, WireError> {
    match text.split_once('/') {
        Some((namespace, account)) if !namespace.is_empty() && !account.is_empty() => {
            Ok(AccountMatch { namespace: namespace.into(), service_account: account.into() })
        }
        _ => Err(WireError::Value("service_accounts", text.to_owned())),
    }
}

fn read_range(text: &str) -> Result<IpNet, WireError> {
    let range: IpNet = text.parse().map_err(|_| WireError::Value("ips", text.to_owned()))?;
    Ok(range.trunc())
}
