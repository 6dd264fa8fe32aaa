// SPDX-License-Identifier: Apache-2.0

//! What an apiserver would refuse of an object that can be read: the limits of Kubernetes
//! and of Gateway API's definitions.
//!
//! Owns: the walk through an object and the checks that all kinds share. On a cluster the
//! apiserver does this; a folder has none, and an object that no cluster would take must not
//! be in force here. Rule: the OpenAPI and CEL limits of Gateway API v1.6, standard and
//! experimental channel ([`gateway_api`]); Kubernetes' validation ([`core`]).
//!
//! Start at [`faults`].

use std::collections::BTreeSet;

use serde_json::Value;

use crate::store::{Key, Kind, Object};

mod core;
mod gateway_api;

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    /// Path of the field, as `spec.rules[0].name`.
    pub(super) field: String,
    /// What is wrong and what was expected.
    pub(super) message: String,
}

/// Everything that an apiserver would refuse of `object`; empty if it would take it.
pub(super) fn faults(key: &Key, object: &Object) -> Vec<Fault> {
    let mut faults = Faults::default();
    faults.name(key);
    let Ok(value) = object.to_json() else { return faults.found };
    let root = At { value: &value, path: String::new() };
    core::labels(&root.get("metadata"), &mut faults);
    let spec = root.get("spec");
    match key.kind {
        Kind::HttpRoute => gateway_api::http_route(&spec, &mut faults),
        Kind::GrpcRoute => gateway_api::grpc_route(&spec, &mut faults),
        Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            gateway_api::l4_route(&spec, key.kind, &mut faults);
        }
        Kind::Gateway => gateway_api::gateway(&spec, &mut faults),
        Kind::Service => core::service(&spec, &mut faults),
        Kind::Deployment => core::deployment(&spec, &mut faults),
        // Those of Gateways too: what comes of parameters without a cluster is said, not hidden.
        Kind::HorizontalPodAutoscaler | Kind::PodDisruptionBudget => faults.found.push(Fault {
            field: "kind".to_owned(),
            message: format!("{} is for clusters; it has no effect here", key.kind.as_str()),
        }),
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::ServiceAccount
        | Kind::Secret
        | Kind::ConfigMap
        | Kind::EndpointSlice
        | Kind::GatewayClass
        | Kind::ListenerSet
        | Kind::ReferenceGrant
        | Kind::BackendTlsPolicy
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::ServiceEntry
        | Kind::WorkloadEntry => {}
    }
    faults.found
}

/// A place inside an object; of an absent field the value is null.
#[derive(Clone, Debug)]
struct At<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> At<'a> {
    /// The field `name` below.
    fn get(&self, name: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        let value = self.value.get(name).unwrap_or(&Value::Null);
        At { value, path: format!("{}{dot}{name}", self.path) }
    }

    /// The items, if it is a list.
    fn items(&self) -> Vec<Self> {
        let items = self.value.as_array().into_iter().flatten().enumerate();
        items.map(|(index, value)| At { value, path: format!("{}[{index}]", self.path) }).collect()
    }

    /// Every place that `path` names: `rules[].name`.
    fn all(&self, path: &str) -> Vec<Self> {
        let mut places = vec![self.clone()];
        for part in path.split('.') {
            let (name, listed) = match part.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (part, false),
            };
            places = places
                .into_iter()
                .map(|at| at.get(name))
                .flat_map(|at| if listed { at.items() } else { vec![at] })
                .collect();
        }
        places
    }

    fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    fn text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    fn len(&self) -> usize {
        self.value.as_array().map_or(0, Vec::len)
    }
}

/// What must hold of a value that is there.
#[derive(Clone, Copy, Debug)]
enum Check {
    /// A number from the first to the second.
    Range(i64, i64),
    /// At least this many items, and at most that many.
    Items(usize, usize),
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// One of these numbers.
    Number(&'static [i64]),
    /// A DNS label: Kubernetes' names of namespaces.
    Label,
    /// A DNS subdomain: Kubernetes' names of most objects.
    Subdomain,
    /// A host name, which may begin with `*.`.
    Host,
    /// A token of RFC 9110: names of headers and query parameters.
    Token,
    /// A printable value of a header.
    HeaderValue,
    /// At most this many bytes.
    Longest(usize),
    /// A duration of GEP-2257.
    Duration,
    /// It must be there.
    Needed,
}

const PORT: Check = Check::Range(1, 65_535);

/// Faults found so far.
#[derive(Debug, Default)]
struct Faults {
    found: Vec<Fault>,
}

impl Faults {
    fn add(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.found.push(Fault { field: at.path.clone(), message: message.into() });
    }

    /// Holds every `(path, check)` of a table against what is below `at`.
    fn table(&mut self, at: &At<'_>, table: &[(&str, Check)]) {
        for (path, check) in table {
            for place in at.all(path) {
                self.hold(&place, *check);
            }
        }
    }

    fn hold(&mut self, at: &At<'_>, check: Check) {
        if !at.is_set() {
            if matches!(check, Check::Needed) {
                self.add(at, "is missing");
            } else if let Check::Items(least @ 1.., _) = check {
                self.add(at, format!("needs at least {least}"));
            }
            return;
        }
        if let Some(expected) = refused(at, check) {
            let found = at.value.to_string();
            let long = found.chars().count() > 80 || at.value.is_array();
            let found = if long { String::new() } else { format!(", not {found}") };
            self.add(at, format!("must be {expected}{found}"));
        }
    }

    /// Names of one list must differ.
    fn unique<'a>(&mut self, places: impl Iterator<Item = At<'a>>, what: &str) {
        let mut seen = BTreeSet::new();
        for at in places {
            if let Some(text) = at.text().filter(|text| !text.is_empty())
                && !seen.insert(text)
            {
                self.add(&at, format!("another {what} is called \"{text}\""));
            }
        }
    }

    fn name(&mut self, key: &Key) {
        let value = Value::String(key.name.name.to_string());
        let short = matches!(key.kind, Kind::Namespace | Kind::Service);
        let check = if short { Check::Label } else { Check::Subdomain };
        self.hold(&At { value: &value, path: "metadata.name".to_owned() }, check);
        if !key.kind.is_cluster_wide() {
            let value = Value::String(key.name.namespace.to_string());
            let at = At { value: &value, path: "metadata.namespace".to_owned() };
            self.hold(&at, Check::Label);
        }
    }
}

/// What was expected, if `at` does not hold it.
fn refused(at: &At<'_>, check: Check) -> Option<String> {
    let text = at.text().unwrap_or_default();
    let (holds, expected) = match check {
        Check::Range(from, to) => (
            at.number().is_none_or(|number| (from..=to).contains(&number)),
            if to == i64::MAX { format!("{from} or more") } else { format!("{from} to {to}") },
        ),
        Check::Items(from, to) => {
            let (len, from_text) = (at.len(), if from > 0 { "1 to" } else { "at most" });
            ((from..=to).contains(&len), format!("a list of {from_text} {to}, not of {len}"))
        }
        Check::OneOf(all) => (all.contains(&text), format!("one of {}", all.join(", "))),
        Check::Number(all) => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            let holds = at.number().is_some_and(|number| all.contains(&number));
            (holds, format!("one of {}", names.join(", ")))
        }
        Check::Label => (
            text.len() <= 63 && is_label(text),
            "lower-case letters, digits and '-', 63 at most".to_owned(),
        ),
        Check::Subdomain => (
            text.len() <= 253 && text.split('.').all(is_label),
            "lower-case letters, digits, '-' and '.', 253 at most".to_owned(),
        ),
        Check::Host => {
            let host = text.strip_prefix("*.").unwrap_or(text);
            let named = text.len() <= 253 && host.split('.').all(is_label);
            (named, "a host name in lower case, without a port, or one after '*.'".to_owned())
        }
        Check::Token => (
            (1..=256).contains(&text.len()) && text.bytes().all(is_token),
            "a name of letters, digits and !#$%&'*+-.^_`|~".to_owned(),
        ),
        Check::HeaderValue => {
            let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
            let bytes = text.as_bytes();
            let inside = bytes.iter().all(|b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t'));
            let holds = bytes.len() <= 4096 && ends(bytes.first()) && ends(bytes.last()) && inside;
            (holds, "1 to 4096 printable ASCII characters, no space at either end".to_owned())
        }
        Check::Longest(most) => (text.len() <= most, format!("{most} bytes at most")),
        Check::Duration => (
            policy::duration::parse_duration(text).is_ok(),
            "a duration like 10s, 500ms or 1m30s".to_owned(),
        ),
        Check::Needed => (true, String::new()),
    };
    (!holds).then_some(expected)
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<u8>| byte.is_some_and(inner);
    ends(text.bytes().next())
        && ends(text.bytes().next_back())
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
