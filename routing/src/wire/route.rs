// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.Route`: one rule of a route, both ways.
//!
//! Matches and filters have a file each below. A rule that names no match is read as one that
//! matches everything, and written with that match spelled out.

mod filters;
mod matches;

use std::sync::Arc;
use std::time::Duration;

use self::filters::{read_filters, write_filter};
use self::matches::{read_match, write_match};
use super::error::{WireError, each, port, port_or_zero};
use super::gateway::{optional, value};
use super::listener::{read_host, write_host};
use super::messages::waymark::v1 as wire;
use crate::matching::RequestMatch;
use crate::route::{BackendRef, BackendTarget, Parent, ParentRef, Retry, Rule, RuleName, Timeouts};

/// Reads a message.
///
/// # Errors
///
/// See [`WireError`]; nothing is taken from a message that is wrong in part.
pub fn read(message: &wire::Route) -> Result<Rule, WireError> {
    let name: RuleName = value("name", &message.name)?;
    let l7 = name.kind.is_l7();
    if !(l7 || message.matches.is_empty() && message.filters.is_empty()) {
        let text = format!("no matches or filters for {}", name.kind.as_str());
        return Err(WireError::Value("name", text));
    }
    let mut matches = each(&message.matches, read_match)?;
    if l7 && matches.is_empty() {
        matches = vec![RequestMatch::any()];
    }
    Ok(Rule {
        name,
        rule_name: optional(&message.rule_name, |text| Ok(text.into()))?,
        created: message.created,
        parents: each(&message.parents, read_parent)?,
        matches,
        filters: read_filters(&message.filters)?,
        backends: each(&message.backends, read_backend)?,
        timeouts: Timeouts {
            request: limit(message.request_timeout_ms),
            backend_request: limit(message.backend_request_timeout_ms),
        },
        retry: message.retry.as_ref().map_or_else(|| Ok(Retry::default()), read_retry)?,
    })
}

/// Writes a message.
#[must_use]
pub fn write(rule: &Rule) -> wire::Route {
    wire::Route {
        name: rule.name.to_string(),
        rule_name: rule.rule_name.as_ref().map_or_else(String::new, ToString::to_string),
        created: rule.created,
        parents: rule.parents.iter().map(write_parent).collect(),
        matches: rule.matches.iter().map(write_match).collect(),
        filters: rule.filters.iter().map(write_filter).collect(),
        backends: rule.backends.iter().map(write_backend).collect(),
        request_timeout_ms: rule.timeouts.request.map_or(0, milliseconds),
        backend_request_timeout_ms: rule.timeouts.backend_request.map_or(0, milliseconds),
        retry: (rule.retry != Retry::default()).then(|| write_retry(&rule.retry)),
    }
}

fn limit(milliseconds: u64) -> Option<Duration> {
    (milliseconds != 0).then(|| Duration::from_millis(milliseconds))
}

/// Durations of the API have no smaller unit.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn read_parent(message: &wire::RouteParent) -> Result<ParentRef, WireError> {
    let parent = match message.parent.as_ref().ok_or(WireError::Missing("parents.parent"))? {
        wire::route_parent::Parent::Listener(name) => {
            Parent::Listener(value("parents.listener", name)?)
        }
        wire::route_parent::Parent::Service(service) => Parent::Service {
            key: value("parents.service.key", &service.key)?,
            port: match port_or_zero("parents.service.port", service.port)? {
                0 => None,
                port => Some(port),
            },
            consumer: optional(&service.consumer, |text| Ok(text.into()))?,
        },
    };
    let hostnames = each(&message.hostnames, |text| read_host("parents.hostnames", text))?;
    Ok(ParentRef { parent, hostnames })
}

fn write_parent(parent: &ParentRef) -> wire::RouteParent {
    let kind = match &parent.parent {
        Parent::Listener(name) => wire::route_parent::Parent::Listener(name.to_string()),
        Parent::Service { key, port, consumer } => {
            wire::route_parent::Parent::Service(wire::ServiceParent {
                key: key.to_string(),
                port: port.unwrap_or(0).into(),
                consumer: consumer.as_ref().map_or_else(String::new, ToString::to_string),
            })
        }
    };
    let hostnames = parent.hostnames.iter().map(write_host).collect();
    wire::RouteParent { parent: Some(kind), hostnames }
}

fn read_backend(message: &wire::RouteBackend) -> Result<BackendRef, WireError> {
    Ok(BackendRef {
        target: read_target(message.target.as_ref())?,
        weight: message.weight,
        filters: read_filters(&message.filters)?,
    })
}

fn write_backend(backend: &BackendRef) -> wire::RouteBackend {
    wire::RouteBackend {
        target: Some(write_target(&backend.target)),
        weight: backend.weight,
        filters: backend.filters.iter().map(write_filter).collect(),
    }
}

fn read_target(message: Option<&wire::Target>) -> Result<BackendTarget, WireError> {
    let kind = message.and_then(|target| target.kind.as_ref());
    Ok(match kind.ok_or(WireError::Missing("target"))? {
        wire::target::Kind::Service(service) => BackendTarget::Service {
            key: value("target.service.key", &service.key)?,
            port: port("target.service.port", service.port)?,
        },
        wire::target::Kind::Invalid(reason) => {
            BackendTarget::Invalid { reason: Arc::from(reason.as_str()) }
        }
    })
}

fn write_target(target: &BackendTarget) -> wire::Target {
    let kind = match target {
        BackendTarget::Service { key, port } => wire::target::Kind::Service(wire::ServicePort {
            key: key.to_string(),
            port: (*port).into(),
        }),
        BackendTarget::Invalid { reason } => wire::target::Kind::Invalid(reason.to_string()),
    };
    wire::Target { kind: Some(kind) }
}

fn read_retry(message: &wire::RouteRetry) -> Result<Retry, WireError> {
    let codes = each(&message.codes, |code| match u16::try_from(*code) {
        Ok(code) if (400..=599).contains(&code) => Ok(code),
        _ => Err(WireError::Value("retry.codes", code.to_string())),
    })?;
    Ok(Retry {
        attempts: message.attempts,
        codes,
        backoff: Duration::from_millis(message.backoff_ms),
        asked: message.asked,
    })
}

fn write_retry(retry: &Retry) -> wire::RouteRetry {
    wire::RouteRetry {
        attempts: retry.attempts,
        codes: retry.codes.iter().map(|&code| code.into()).collect(),
        backoff_ms: milliseconds(retry.backoff),
        asked: retry.asked,
    }
}

#[cfg(test)]
mod tests;
