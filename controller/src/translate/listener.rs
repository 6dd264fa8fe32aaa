// SPDX-License-Identifier: Apache-2.0

//! Entries of Gateways and ListenerSets: what each may serve, and what it is told.
//!
//! Owns: which kinds of routes an entry takes ([`kinds`], all that routes ask), whether it is
//! accepted, whether its references resolve, and the resource that a proxy gets. An entry that
//! cannot be served gets no resource; its conditions say why.
//!
//! Rule: `Listener` in Gateway API `apis/v1/gateway_types.go`.

use gateway_api::experimental::gateways::{Gateway, GatewayListeners, GatewayListenersTlsMode};
use gateway_api::listenersets::ListenerSet;
use routing::listener::{Listener, ListenerName, ListenerTls, Protocol, TlsMode};
use routing::matching::HostPattern;
use routing::route::RouteKind;

use super::frontend::{self, Frontend};
use super::reference_grant::From;
use super::waypoint::label;
use super::{allowed, certificate, listener_set};
use crate::api::{self, Role};
use crate::status::{Condition, ListenerStatus};
use crate::store::Name;
use crate::store::lookup::Lookup;

/// Whose an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Owner {
    /// The Gateway's own.
    Gateway,
    /// Of this ListenerSet.
    Set(Name),
}

/// An entry and whose it is.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Whose it is.
    pub owner: Owner,
    /// As written.
    pub written: GatewayListeners,
}

impl Entry {
    /// Namespace that `Same` means, and that references start from.
    pub fn namespace<'a>(&'a self, gateway: &'a Gateway) -> &'a str {
        match &self.owner {
            Owner::Gateway => gateway.metadata.namespace.as_deref().unwrap_or_default(),
            Owner::Set(name) => &name.namespace,
        }
    }

    /// Kind of the object that holds it.
    fn kind(&self) -> &'static str {
        match &self.owner {
            Owner::Gateway => "Gateway",
            Owner::Set(_) => "ListenerSet",
        }
    }
}

/// All entries of a Gateway: its own, then those of the sets that it takes.
pub fn entries(gateway: &Gateway, look: &mut Lookup<'_>) -> Vec<Entry> {
    let mut entries = own_entries(gateway);
    for set in listener_set::of_gateway(gateway, look) {
        entries.extend(set_entries(set));
    }
    entries
}

/// The entries of one owner; of a set that the Gateway does not take there are none.
pub fn entries_of(gateway: &Gateway, owner: &Owner, look: &mut Lookup<'_>) -> Vec<Entry> {
    match owner {
        Owner::Gateway => own_entries(gateway),
        Owner::Set(name) => match look.get::<ListenerSet>(&name.namespace, &name.name) {
            Some(set) if allowed::listener_set(gateway, &name.namespace, look) => set_entries(set),
            Some(_) | None => Vec::new(),
        },
    }
}

fn own_entries(gateway: &Gateway) -> Vec<Entry> {
    let own = gateway.spec.listeners.iter().cloned();
    own.map(|written| Entry { owner: Owner::Gateway, written }).collect()
}

fn set_entries(set: &ListenerSet) -> Vec<Entry> {
    let meta = &set.metadata;
    let name = Name::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    );
    let listeners = set.spec.listeners.iter().filter_map(|listener| {
        // The same members under another name in the crate.
        let json = serde_json::to_value(listener).ok()?;
        let written = serde_json::from_value(json).ok()?;
        Some(Entry { owner: Owner::Set(name.clone()), written })
    });
    listeners.collect()
}

/// Reason and message.
pub type Refusal = (&'static str, String);

/// An entry, judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Whose it is.
    pub owner: Owner,
    /// Name within its owner.
    pub section: String,
    /// Kinds of routes that it takes.
    pub kinds: Vec<RouteKind>,
    /// Why it is not accepted.
    pub refused: Option<Refusal>,
    /// An earlier entry that it cannot stand beside.
    pub conflict: Option<Refusal>,
    /// Why its references do not resolve.
    pub unresolved: Option<Refusal>,
    /// What a proxy gets; none if it cannot be served.
    pub resource: Option<Listener>,
    /// What a proxy may go on with if it has it: the port, without the certificates that it is
    /// served with no more.
    pub kept: Option<Listener>,
}

/// Kinds of routes that an entry takes, and whether all it names are kinds that it can take.
///
/// Rule: `AllowedRoutes.kinds`: none named means all that fit the protocol.
pub fn kinds(entry: &GatewayListeners, role: Role) -> (Vec<RouteKind>, bool) {
    let fitting: &[RouteKind] = match (role, entry.protocol.as_str()) {
        (Role::Ingress, "HTTP" | "HTTPS") => &[RouteKind::Http, RouteKind::Grpc],
        (Role::Ingress, "TLS") => &[RouteKind::Tls],
        (Role::Ingress, "TCP") => &[RouteKind::Tcp],
        (Role::Ingress, "UDP") => &[RouteKind::Udp],
        _ => &[],
    };
    let named = entry.allowed_routes.as_ref().and_then(|allowed| allowed.kinds.as_ref());
    let Some(named) = named.filter(|named| !named.is_empty()) else {
        return (fitting.to_vec(), true);
    };
    let known = |kind: &RouteKind| {
        named.iter().any(|one| {
            one.group.as_deref().unwrap_or(api::GATEWAY_GROUP) == api::GATEWAY_GROUP
                && one.kind == kind.as_str()
        })
    };
    let taken: Vec<RouteKind> = fitting.iter().copied().filter(known).collect();
    let all = named.iter().all(|one| {
        one.group.as_deref().unwrap_or(api::GATEWAY_GROUP) == api::GATEWAY_GROUP
            && taken.iter().any(|kind| kind.as_str() == one.kind)
    });
    (taken, all)
}

/// Hosts that an entry is for; none if its hostname is out of grammar.
pub fn host(entry: &GatewayListeners) -> Option<HostPattern> {
    match entry.hostname.as_deref() {
        None | Some("") => Some(HostPattern::Any),
        Some(text) => text.parse().ok(),
    }
}

/// Judges all entries of a Gateway and its sets, in order: of two that conflict the first stands.
pub fn judge(gateway: &Gateway, role: Role, look: &mut Lookup<'_>) -> Vec<Judged> {
    let frontend = frontend::read(gateway, look);
    let entries = entries(gateway, look);
    let mut judged: Vec<(Judged, &GatewayListeners)> = Vec::new();
    for entry in &entries {
        let mut one = judge_one(gateway, entry, role, &frontend, look);
        let rivals = judged.iter().filter(|(other, _)| other.conflict.is_none());
        let entry = &entry.written;
        one.conflict = rivals.map(|(_, other)| conflict(other, entry)).find_map(|found| found);
        if one.conflict.is_some() {
            (one.resource, one.kept) = (None, None);
        }
        judged.push((one, entry));
    }
    judged.into_iter().map(|(one, _)| one).collect()
}

fn judge_one(
    gateway: &Gateway,
    holder: &Entry,
    role: Role,
    frontend: &Frontend,
    look: &mut Lookup<'_>,
) -> Judged {
    let entry = &holder.written;
    let (kinds, all_known) = kinds(entry, role);
    let mut judged = Judged {
        owner: holder.owner.clone(),
        section: entry.name.clone(),
        kinds,
        refused: None,
        conflict: None,
        unresolved: None,
        resource: None,
        kept: None,
    };
    let protocol = match protocol(entry, role) {
        Ok(protocol) => protocol,
        Err(refusal) => {
            judged.refused = Some(refusal);
            return judged;
        }
    };
    if !all_known {
        let message = "kinds that the protocol does not take".to_owned();
        judged.unresolved = Some(("InvalidRouteKinds", message));
    }
    let tls = match protocol {
        Protocol::Https | Protocol::Tls => {
            let from = From { kind: holder.kind(), namespace: holder.namespace(gateway) };
            tls(entry, from, frontend, look, &mut judged)
        }
        Protocol::Http | Protocol::Tcp | Protocol::Udp | Protocol::Hbone => None,
    };
    let wants_tls = matches!(protocol, Protocol::Https | Protocol::Tls);
    let serves = !judged.kinds.is_empty() || protocol == Protocol::Hbone;
    if judged.refused.is_none() && serves && (tls.is_some() || !wants_tls) {
        judged.resource = resource(gateway, holder, protocol, tls);
    } else if serves && may_stay(&judged) {
        judged.kept = resource(gateway, holder, protocol, None);
    }
    judged
}

/// Tells whether the last good version stays: certificates went bad, and no permission was lost.
fn may_stay(judged: &Judged) -> bool {
    let reason = |refusal: &Option<Refusal>| refusal.as_ref().map(|(reason, _)| *reason);
    matches!(reason(&judged.refused), None | Some("NoValidCACertificate"))
        && reason(&judged.unresolved).is_some_and(|reason| reason != "RefNotPermitted")
}

fn protocol(entry: &GatewayListeners, role: Role) -> Result<Protocol, Refusal> {
    let text = entry.protocol.as_str();
    let protocol = match (role, text) {
        (Role::Ingress, "HTTP") => Protocol::Http,
        (Role::Ingress, "HTTPS") => Protocol::Https,
        (Role::Ingress, "TLS") => Protocol::Tls,
        (Role::Ingress, "TCP") => Protocol::Tcp,
        (Role::Ingress, "UDP") => Protocol::Udp,
        (Role::Waypoint, "HBONE") if entry.port == i32::from(api::HBONE_PORT) => Protocol::Hbone,
        (Role::Waypoint, _) => {
            let message = "a waypoint has one listener, port 15008 with protocol HBONE".to_owned();
            return Err(("UnsupportedProtocol", message));
        }
        (Role::Ingress, _) => {
            return Err(("UnsupportedProtocol", format!("protocol {text} is not served")));
        }
    };
    match (u16::try_from(entry.port), host(entry)) {
        (Ok(1..), Some(_)) => Ok(protocol),
        (_, None) => Err(("UnsupportedValue", "the hostname is out of grammar".to_owned())),
        _ => Err(("PortUnavailable", format!("{} is no port", entry.port))),
    }
}

/// The TLS of an entry, none if it cannot be made; what is wrong goes into `judged`.
fn tls(
    entry: &GatewayListeners,
    from: From<'_>,
    frontend: &Frontend,
    look: &mut Lookup<'_>,
    judged: &mut Judged,
) -> Option<ListenerTls> {
    let settings = entry.tls.as_ref();
    let mode = match settings.and_then(|tls| tls.mode.as_ref()) {
        Some(GatewayListenersTlsMode::Passthrough) => TlsMode::Passthrough,
        Some(GatewayListenersTlsMode::Terminate) | None => TlsMode::Terminate,
    };
    if mode == TlsMode::Passthrough {
        if entry.protocol == "HTTPS" {
            let message = "HTTPS cannot be passed through".to_owned();
            judged.refused = Some(("UnsupportedValue", message));
            return None;
        }
        return Some(ListenerTls { mode, secrets: Vec::new(), client_validation: None });
    }
    let mut secrets = Vec::new();
    let references = settings.and_then(|tls| tls.certificate_refs.as_deref()).unwrap_or_default();
    if references.is_empty() {
        let message = "no certificate is named".to_owned();
        judged.unresolved.get_or_insert(("InvalidCertificateRef", message));
    }
    for reference in references {
        let reference = certificate::Reference {
            group: reference.group.as_deref().unwrap_or(""),
            kind: reference.kind.as_deref().unwrap_or("Secret"),
            namespace: reference.namespace.as_deref().unwrap_or(from.namespace),
            name: &reference.name,
        };
        match certificate::resolve(reference, from, "InvalidCertificateRef", look) {
            Ok(name) => secrets.push(name),
            Err(refusal) => {
                judged.unresolved.get_or_insert(refusal);
            }
        }
    }
    let client_validation = match frontend.of_port(entry.port) {
        None => None,
        Some(validation) => {
            if let Some(refusal) = &validation.unresolved {
                judged.unresolved.get_or_insert_with(|| refusal.clone());
            }
            match &validation.value {
                Some(value) => Some(value.clone()),
                None => {
                    let message = "no CA certificate for clients resolves".to_owned();
                    judged.refused = Some(("NoValidCACertificate", message));
                    return None;
                }
            }
        }
    };
    (!secrets.is_empty()).then_some(ListenerTls { mode, secrets, client_validation })
}

fn resource(
    gateway: &Gateway,
    holder: &Entry,
    protocol: Protocol,
    tls: Option<ListenerTls>,
) -> Option<Listener> {
    let entry = &holder.written;
    let port = u16::try_from(entry.port).ok()?;
    Some(Listener {
        name: name(gateway, holder)?,
        port,
        target_port: port,
        protocol,
        hostname: match protocol {
            // Nothing names a host there.
            Protocol::Tcp | Protocol::Udp | Protocol::Hbone => HostPattern::Any,
            Protocol::Http | Protocol::Https | Protocol::Tls => host(entry)?,
        },
        tls,
        proxy_protocol: holder.owner == Owner::Gateway && proxy_protocol(gateway, &entry.name),
    })
}

/// Name of an entry on the wire.
pub fn name(gateway: &Gateway, entry: &Entry) -> Option<ListenerName> {
    let namespace = gateway.metadata.namespace.as_deref()?;
    let gateway = gateway.metadata.name.as_deref()?;
    let section = &entry.written.name;
    let text = match &entry.owner {
        Owner::Gateway => format!("{namespace}/{gateway}/{section}"),
        Owner::Set(set) => format!("{namespace}/{gateway}/{set}/{section}"),
    };
    text.parse().ok()
}

fn proxy_protocol(gateway: &Gateway, section: &str) -> bool {
    let listed = label(gateway.metadata.annotations.as_ref(), api::PROXY_PROTOCOL);
    listed.unwrap_or_default().split(',').any(
        |one| matches!(one.trim().split_once('='), Some((name, "v1" | "v2")) if name == section),
    )
}

/// Why `later` cannot stand beside `earlier`.
///
/// Rule: `GatewaySpec.listeners`, "distinct": on one port HTTP stands with HTTP, HTTPS and TLS
/// with each other, TCP and UDP alone; and hostnames differ. UDP shares numbers with the rest.
fn conflict(earlier: &GatewayListeners, later: &GatewayListeners) -> Option<Refusal> {
    let class = |entry: &GatewayListeners| match entry.protocol.as_str() {
        "HTTPS" | "TLS" => "TLS",
        "HTTP" => "HTTP",
        "UDP" => "UDP",
        _ => "TCP",
    };
    if earlier.port != later.port || (class(earlier) == "UDP") != (class(later) == "UDP") {
        return None;
    }
    if class(earlier) != class(later) {
        let message = format!("port {} speaks {}", earlier.port, earlier.protocol);
        return Some(("ProtocolConflict", message));
    }
    let same = host(earlier) == host(later) || matches!(class(earlier), "TCP" | "UDP");
    let message = || format!("listener {} is for that host already", earlier.name);
    same.then(|| ("HostnameConflict", message()))
}

impl Judged {
    /// Tells whether the entry stands as far as the Gateway is concerned.
    pub fn stands(&self) -> bool {
        self.refused.is_none() && self.conflict.is_none()
    }

    /// What the entry is told; `serving` says whether proxies serve the Gateway.
    pub fn status(&self, serving: bool) -> ListenerStatus {
        let refused = self.conflict.as_ref().or(self.refused.as_ref());
        let accepted = condition("Accepted", "Accepted", refused);
        let resolved = condition("ResolvedRefs", "ResolvedRefs", self.unresolved.as_ref());
        let conflicted = match &self.conflict {
            Some((reason, message)) => Condition::new("Conflicted", true, reason, message.clone()),
            None => Condition::new("Conflicted", false, "NoConflicts", String::new()),
        };
        let programmed = match (&self.resource, refused, serving) {
            (Some(_), _, true) => {
                Condition::new("Programmed", true, "Programmed", String::new()).after_ack()
            }
            (Some(_), _, false) => {
                let message = "no proxy serves the Gateway yet".to_owned();
                Condition::new("Programmed", false, "Pending", message)
            }
            (None, Some((reason, message)), _) if self.conflict.is_some() => {
                Condition::new("Programmed", false, reason, message.clone())
            }
            (None, _, _) => {
                let message = match &self.kept {
                    None => "the listener cannot be served".to_owned(),
                    Some(_) => "what was served before stays, if there was any".to_owned(),
                };
                Condition::new("Programmed", false, "Invalid", message)
            }
        };
        ListenerStatus {
            name: self.section.clone(),
            kinds: self.kinds.iter().map(|kind| kind.as_str()).collect(),
            conditions: vec![accepted, programmed, resolved, conflicted],
        }
    }
}

/// A condition that is true unless something is refused.
pub fn condition(kind: &'static str, good: &'static str, bad: Option<&Refusal>) -> Condition {
    match bad {
        Some((reason, message)) => Condition::new(kind, false, reason, message.clone()),
        None => Condition::new(kind, true, good, String::new()),
    }
}
