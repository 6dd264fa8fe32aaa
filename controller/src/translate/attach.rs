// SPDX-License-Identifier: Apache-2.0

//! Which parents a route is attached to, and what it is told about each.
//!
//! Owns the walk from a parent reference to listeners: by section and port, by allowed kinds
//! and namespaces, by hostname; the first step that leaves none names the reason. A parent that
//! is not ours gets no entry: its own controller speaks for it.
//!
//! Rule: `ParentReference` and `RouteConditionReason` in Gateway API `apis/v1/shared_types.go`;
//! Services as parents: GEP-1294, GEP-1324; a ServiceEntry is one as with Istio's waypoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use gateway_api::experimental::gateways::{Gateway, GatewayListeners};
use gateway_api::listenersets::ListenerSet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use routing::discovery::ServiceKey;
use routing::matching::HostPattern;
use routing::route::{Parent, ParentRef, RouteKind};

use super::backend::Problem;
use super::listener::{self, Owner, Refusal, condition};
use super::{allowed, listener_set, shape, waypoint};
use crate::api;
use crate::api::gateway as written;
use crate::api::istio::ServiceEntry;
use crate::output::Listened;
use crate::status::packed::Packed;
use crate::status::{Body, Condition, ParentStatus, Status};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// A route as far as attachment is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// Its kind.
    pub kind: RouteKind,
    /// Its metadata.
    pub meta: &'a ObjectMeta,
    /// Its parent references.
    pub parents: &'a [written::ParentRef],
    /// Its hostnames; none is any.
    pub hostnames: &'a [String],
}

/// Where a route is attached.
#[derive(Clone, Debug, Default)]
pub struct Attached {
    /// Parents as the data plane knows them.
    pub parents: Vec<ParentRef>,
    /// Gateways that serve those parents.
    pub gateways: BTreeSet<Name>,
    /// Listeners that count the route.
    pub listeners: BTreeSet<Listened>,
    /// Per parent of ours: the reference, whose it is, and why it does not take the route.
    told: Vec<(Packed, &'static str, Option<Refusal>)>,
}

impl Route<'_> {
    fn namespace(&self) -> &str {
        self.meta.namespace.as_deref().unwrap_or_default()
    }

    /// Kind in the stores.
    fn store_kind(&self) -> Kind {
        match self.kind {
            RouteKind::Http => Kind::HttpRoute,
            RouteKind::Grpc => Kind::GrpcRoute,
            RouteKind::Tls => Kind::TlsRoute,
            RouteKind::Tcp => Kind::TcpRoute,
            RouteKind::Udp => Kind::UdpRoute,
        }
    }

    /// Its key.
    pub fn key(&self) -> Key {
        let name = self.meta.name.as_deref().unwrap_or_default();
        Key { kind: self.store_kind(), name: Name::new(self.namespace(), name) }
    }

    /// Nanoseconds since 1970 when it was made; zero if nobody knows.
    pub fn created(&self) -> u64 {
        let time = self.meta.creation_timestamp.as_ref();
        time.and_then(|time| u64::try_from(time.0.as_nanosecond()).ok()).unwrap_or(0)
    }
}

/// Attaches a route to its parents.
pub fn attach(route: Route<'_>, look: &mut Lookup<'_>) -> Attached {
    let mut attached = Attached::default();
    for reference in route.parents {
        let group = reference.group.as_deref().unwrap_or(api::GATEWAY_GROUP);
        let told = match (group, reference.kind.as_deref().unwrap_or("Gateway")) {
            (api::GATEWAY_GROUP, "Gateway" | "ListenerSet") => {
                to_listeners(route, reference, look, &mut attached)
            }
            ("", "Service") | (api::NETWORKING_GROUP, "ServiceEntry") => {
                Some(to_service(route, reference, look, &mut attached))
            }
            _ => None,
        };
        if let Some((controller, refused)) = told {
            let reference = serde_json::to_value(reference).unwrap_or_default();
            let reference = Packed::from(&reference);
            attached.told.push((reference, controller, refused));
        }
    }
    attached
}

type Told = (&'static str, Option<Refusal>);

/// The Gateway behind a parent reference, the object that holds its listeners, and the key of
/// that object; none if it is not there or another kind.
pub fn gateway_of<'a>(
    reference: &written::ParentRef,
    own: &str,
    look: &mut Lookup<'a>,
) -> Option<(&'a Arc<Gateway>, Owner, Key)> {
    if reference.group.as_deref().unwrap_or(api::GATEWAY_GROUP) != api::GATEWAY_GROUP {
        return None;
    }
    let name = Name::new(reference.namespace.as_deref().unwrap_or(own), &reference.name);
    match reference.kind.as_deref().unwrap_or("Gateway") {
        "Gateway" => {
            let gateway = look.get::<Gateway>(&name.namespace, &name.name)?;
            Some((gateway, Owner::Gateway, Key { kind: Kind::Gateway, name }))
        }
        "ListenerSet" => {
            let set = look.get::<ListenerSet>(&name.namespace, &name.name)?;
            let gateway = listener_set::gateway_of(set, look)?;
            Some((gateway, Owner::Set(name.clone()), Key { kind: Kind::ListenerSet, name }))
        }
        _ => None,
    }
}

fn to_listeners(
    route: Route<'_>,
    reference: &written::ParentRef,
    look: &mut Lookup<'_>,
    attached: &mut Attached,
) -> Option<Told> {
    let (gateway, owner, key) = gateway_of(reference, route.namespace(), look)?;
    let class = shape::class(&gateway.spec.gateway_class_name, look)?;
    // A reference to a Gateway means its own listeners, one to a set means those of the set.
    let mut entries = listener::entries_of(gateway, &owner, look);
    entries.retain(|entry| {
        reference.section_name.as_ref().is_none_or(|name| *name == entry.written.name)
            && reference.port.is_none_or(|port| port == entry.written.port)
    });
    if entries.is_empty() {
        let message = "the parent has no such listener".to_owned();
        return Some((class.controller, Some(("NoMatchingParent", message))));
    }
    let mut willing = Vec::new();
    for entry in entries {
        let takes = listener::kinds(&entry.written, class.role).0.contains(&route.kind);
        let own = entry.namespace(gateway);
        if takes && allowed::namespace(&entry.written, own, route.namespace(), look) {
            willing.push(entry);
        }
    }
    if willing.is_empty() {
        let message = "no listener takes routes of this kind from this namespace".to_owned();
        return Some((class.controller, Some(("NotAllowedByListeners", message))));
    }
    let mut found = false;
    for entry in &willing {
        let Some(hostnames) = common_hosts(route, &entry.written) else { continue };
        let Some(listener) = listener::name(gateway, entry) else { continue };
        found = true;
        attached.listeners.insert((key.clone(), entry.written.name.as_str().into()));
        attached.parents.push(ParentRef { parent: Parent::Listener(listener), hostnames });
    }
    if !found {
        let message = "no listener is for any of the hostnames".to_owned();
        return Some((class.controller, Some(("NoMatchingListenerHostname", message))));
    }
    let meta = &gateway.metadata;
    if let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) {
        attached.gateways.insert(Name::new(namespace, name));
    }
    Some((class.controller, None))
}

/// The hosts of a route as far as a listener is for them; none if there are none. An empty list
/// is any host.
fn common_hosts(route: Route<'_>, entry: &GatewayListeners) -> Option<Vec<HostPattern>> {
    if matches!(route.kind, RouteKind::Tcp | RouteKind::Udp) {
        return Some(Vec::new());
    }
    let own = listener::host(entry)?;
    if route.hostnames.is_empty() {
        return Some(if own == HostPattern::Any { Vec::new() } else { vec![own] });
    }
    let patterns = route.hostnames.iter().filter_map(|text| text.parse::<HostPattern>().ok());
    let common: Vec<_> = patterns.filter_map(|pattern| pattern.intersect(&own)).collect();
    (!common.is_empty()).then_some(common)
}

/// What a route that names a Service or ServiceEntry is for.
struct Called<'a> {
    meta: &'a ObjectMeta,
    ports: Vec<u16>,
    /// Names that it is called by: one of a Service, each host of a ServiceEntry.
    hosts: Vec<String>,
}

impl<'a> Called<'a> {
    fn find(kind: &str, namespace: &str, name: &str, look: &mut Lookup<'a>) -> Option<Self> {
        if kind == "ServiceEntry" {
            let entry = look.get::<ServiceEntry>(namespace, name)?;
            let ports = entry.spec.ports.iter().map(|port| port.number).collect();
            return Some(Self { meta: &entry.metadata, ports, hosts: entry.spec.hosts.clone() });
        }
        let service = look.get::<Service>(namespace, name)?;
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let ports = ports.filter_map(|port| u16::try_from(port.port).ok()).collect();
        let hosts = vec![api::service_host(namespace, name)];
        Some(Self { meta: &service.metadata, ports, hosts })
    }
}

fn to_service(
    route: Route<'_>,
    reference: &written::ParentRef,
    look: &mut Lookup<'_>,
    attached: &mut Attached,
) -> Told {
    let controller = api::CLASSES[0].controller;
    let kind = reference.kind.as_deref().unwrap_or_default();
    let namespace = reference.namespace.as_deref().unwrap_or(route.namespace());
    let name = reference.name.as_str();
    let refused = |message: String| (controller, Some(("NoMatchingParent", message)));
    let Some(called) = Called::find(kind, namespace, name, look) else {
        return refused(format!("{kind} {namespace}/{name} does not exist"));
    };
    let port = match reference.port {
        None => None,
        Some(number) => match u16::try_from(number) {
            Ok(port) if called.ports.contains(&port) => Some(port),
            _ => return refused(format!("{name} has no port {number}")),
        },
    };
    let keys: Result<Vec<ServiceKey>, _> =
        called.hosts.iter().map(|host| format!("{namespace}/{host}").parse()).collect();
    let Ok(keys) = keys else { return refused(format!("{namespace}/{name} is no name")) };
    let binding = waypoint::of_service(called.meta, look);
    // The owner of a Service speaks for all callers, as does the owner of its waypoint; who
    // else attaches a route to it speaks for callers of the own namespace.
    let waypoints = binding.as_ref().map(|binding| &*binding.gateway.namespace);
    let own = route.namespace();
    let for_all = own == namespace || waypoints == Some(own);
    let consumer: Option<Arc<str>> = (!for_all).then(|| Arc::from(own));
    attached.gateways.extend(binding.map(|binding| binding.gateway));
    // Whom a request is for is known from the connection, so its host says nothing here; but a
    // TLS connection has only its server name to tell one rule from another.
    let hostnames: Vec<_> = match route.kind {
        RouteKind::Tls => route.hostnames.iter().filter_map(|text| text.parse().ok()).collect(),
        RouteKind::Http | RouteKind::Grpc | RouteKind::Tcp | RouteKind::Udp => Vec::new(),
    };
    attached.parents.extend(keys.into_iter().map(|key| ParentRef {
        parent: Parent::Service { key, port, consumer: consumer.clone() },
        hostnames: hostnames.clone(),
    }));
    (controller, None)
}

impl Attached {
    /// What the route is told: by each parent, whether it takes it, and about its references.
    ///
    /// `rules` tells what is wrong with the rules: all of them refuse the route, some are
    /// reported beside it.
    pub fn status(&self, route: Route<'_>, rules: &Rules, problem: &Problem) -> Status {
        let parents = self.told.iter().map(|(reference, controller, refused)| {
            let refused = refused.as_ref().or(match rules {
                Rules::NoneServed(refusal) => Some(refusal),
                Rules::AllServed | Rules::SomeServed(_) => None,
            });
            let accepted = condition("Accepted", "Accepted", refused);
            let accepted = if refused.is_none() { accepted.after_ack() } else { accepted };
            let mut conditions =
                vec![accepted, condition("ResolvedRefs", "ResolvedRefs", problem.0.as_ref())];
            if let Rules::SomeServed((reason, message)) = rules {
                let message =
                    format!("Fall Back: {message}; its last good version stays, if there was one");
                conditions.push(Condition::new("PartiallyInvalid", true, reason, message));
            }
            ParentStatus { reference: reference.clone(), controller, conditions }
        });
        Status {
            key: route.key(),
            generation: route.meta.generation,
            body: Body::Parents { fields: ("parents", "parentRef"), parents: parents.collect() },
        }
    }

    /// Tells whether every parent of ours takes the route: nothing was withdrawn from it.
    pub fn is_whole(&self) -> bool {
        self.told.iter().all(|(.., refused)| refused.is_none())
    }

    /// Tells whether any parent of ours was named.
    pub fn is_ours(&self) -> bool {
        !self.told.is_empty()
    }
}

/// How many rules of a route can be served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rules {
    /// All, or there are none.
    AllServed,
    /// Not all, and why.
    SomeServed(Refusal),
    /// None, and why.
    NoneServed(Refusal),
}

impl Rules {
    /// From the first thing wrong, if any, and whether any rule is served.
    pub fn of(wrong: Option<String>, any_served: bool) -> Self {
        match wrong {
            None => Self::AllServed,
            Some(message) if any_served => Self::SomeServed(("UnsupportedValue", message)),
            Some(message) => Self::NoneServed(("UnsupportedValue", message)),
        }
    }
}
