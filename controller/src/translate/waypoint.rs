// SPDX-License-Identifier: Apache-2.0

//! Which waypoint a Service, ServiceEntry or workload is bound to.
//!
//! Owns the rules of `istio.io/use-waypoint`: own label before the namespace's, `none` opts
//! out, other namespaces need the listener's consent, the kind of traffic must fit. A binding
//! that was declared and cannot be served is still a binding: the address that is published
//! then leads nowhere, so traffic is refused instead of walking around the policy.
//!
//! Rule: Istio ambient, "Configure waypoint proxies"; start at [`of_service`], [`of_workload`].

use std::collections::BTreeMap;

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use routing::discovery::{GatewayAddress, GatewayDestination, ServiceKey};

use super::{allowed, pod, shape};
use crate::api;
use crate::store::Name;
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;

/// A declared waypoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// The Gateway that was named.
    pub gateway: Name,
    /// Whether it serves.
    pub state: State,
    /// Where traffic is sent.
    pub host: String,
    /// Principal of the waypoint, the one that guarded ports admit.
    pub principal: String,
    /// What the waypoint is for.
    pub serves: Serves,
}

/// Whether a declared waypoint serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// It has a ready pod.
    Ready,
    /// The Gateway is there and no pod of it is ready.
    NotReady,
    /// There is no such Gateway.
    Absent,
    /// The Gateway's listener does not admit the namespace.
    Denied,
    /// The waypoint is not for this kind of traffic.
    WrongTraffic,
}

/// What a waypoint is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Serves {
    /// Traffic to services.
    Service,
    /// Traffic to addresses of workloads.
    Workload,
    /// Both.
    All,
    /// Nothing.
    None,
}

impl Binding {
    /// The address to publish.
    pub fn address(&self) -> Option<GatewayAddress> {
        let namespace = self.gateway.namespace.parse().ok()?;
        let key = ServiceKey::new(namespace, self.host.as_str());
        Some(GatewayAddress {
            destination: GatewayDestination::Hostname(key),
            hbone_port: api::HBONE_PORT,
        })
    }
}

/// Which side of a waypoint is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Traffic {
    Service,
    Workload,
}

impl Serves {
    /// Tells whether traffic to addresses of workloads is among it.
    pub fn is_for_workloads(self) -> bool {
        self.covers(Traffic::Workload)
    }

    fn covers(self, traffic: Traffic) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Service => traffic == Traffic::Service,
            Self::Workload => traffic == Traffic::Workload,
        }
    }
}

/// The waypoint of a Service or ServiceEntry.
pub fn of_service(meta: &ObjectMeta, look: &mut Lookup<'_>) -> Option<Binding> {
    find(meta, Traffic::Service, look)
}

/// The waypoint of a pod or WorkloadEntry.
pub fn of_workload(meta: &ObjectMeta, look: &mut Lookup<'_>) -> Option<Binding> {
    find(meta, Traffic::Workload, look)
}

/// The waypoint that a workload or namespace itself names, how it stands and what it is for;
/// none if it names none.
pub fn named(meta: &ObjectMeta, look: &mut Lookup<'_>) -> Option<(Name, State, Serves)> {
    let own = label(meta.labels.as_ref(), api::USE_WAYPOINT).is_some();
    if !own || is_gateways_own(meta) {
        return None;
    }
    let (gateway, _) = declared(meta, look)?;
    let Some(object) = look.get::<Gateway>(&gateway.namespace, &gateway.name) else {
        return Some((gateway, State::Absent, Serves::All));
    };
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let (serves, state) = judge(object, &gateway, (namespace, Traffic::Workload), look);
    Some((gateway, state, serves))
}

/// Tells whether the object was made for a waypoint, which never gets one itself.
pub fn is_waypoints_own(meta: &ObjectMeta) -> bool {
    let managed = label(meta.labels.as_ref(), api::MANAGED);
    managed.is_some_and(|managed| {
        let waypoint = |class: &api::BuiltinClass| class.role == api::Role::Waypoint;
        api::CLASSES
            .iter()
            .any(|class| waypoint(class) && class.controller.replace('/', "-") == managed)
    })
}

/// Tells whether the object was made for any Gateway of ours.
pub fn is_gateways_own(meta: &ObjectMeta) -> bool {
    let managed = label(meta.labels.as_ref(), api::MANAGED);
    managed.is_some_and(|managed| {
        api::CLASSES.iter().any(|class| class.controller.replace('/', "-") == managed)
    })
}

/// The value of a label.
pub fn label<'a>(labels: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    labels.and_then(|labels| labels.get(key)).map(String::as_str)
}

fn find(meta: &ObjectMeta, traffic: Traffic, look: &mut Lookup<'_>) -> Option<Binding> {
    if is_waypoints_own(meta) || (traffic == Traffic::Workload && is_gateways_own(meta)) {
        return None;
    }
    let (gateway, explicit) = declared(meta, look)?;
    let Some(object) = look.get::<Gateway>(&gateway.namespace, &gateway.name) else {
        return Some(absent(gateway, traffic, look));
    };
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let (serves, state) = judge(object, &gateway, (namespace, traffic), look);
    if !serves.covers(traffic) && (!explicit || traffic == Traffic::Workload) {
        return None;
    }
    Some(binding(object, gateway, state, serves, look))
}

/// The Gateway that is named, and whether the object itself names it.
fn declared(meta: &ObjectMeta, look: &mut Lookup<'_>) -> Option<(Name, bool)> {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let own = label(meta.labels.as_ref(), api::USE_WAYPOINT);
    let (name, within) = if let Some(name) = own {
        (name, label(meta.labels.as_ref(), api::USE_WAYPOINT_NAMESPACE))
    } else {
        let labels = look.get::<Namespace>("", namespace)?.metadata.labels.as_ref();
        (label(labels, api::USE_WAYPOINT)?, label(labels, api::USE_WAYPOINT_NAMESPACE))
    };
    if name == "none" || name.is_empty() {
        return None;
    }
    Some((Name::new(within.unwrap_or(namespace), name), own.is_some()))
}

/// What a Gateway is for, and whether it serves this traffic of a namespace.
fn judge(
    object: &Gateway,
    gateway: &Name,
    (namespace, traffic): (&str, Traffic),
    look: &mut Lookup<'_>,
) -> (Serves, State) {
    let serves = serves(object, look);
    let admits = *gateway.namespace == *namespace || admits(object, namespace, look);
    let state = match (admits, serves.covers(traffic)) {
        (false, _) => State::Denied,
        (true, false) => State::WrongTraffic,
        (true, true) if is_ready(gateway, look) => State::Ready,
        (true, true) => State::NotReady,
    };
    (serves, state)
}

fn binding(
    object: &Gateway,
    gateway: Name,
    state: State,
    serves: Serves,
    look: &mut Lookup<'_>,
) -> Binding {
    let shape = shape::of(object, look);
    let host = match state {
        // A name that nothing has: the waypoint is there and must not be entered.
        State::Denied | State::WrongTraffic => format!("{}.denied.invalid", gateway.name),
        State::Ready | State::NotReady | State::Absent => {
            api::service_host(&gateway.namespace, &shape.name)
        }
    };
    let principal = principal(&gateway.namespace, &shape.account, look);
    Binding { gateway, state, host, principal, serves }
}

fn absent(gateway: Name, traffic: Traffic, look: &Lookup<'_>) -> Binding {
    let host = api::service_host(&gateway.namespace, &gateway.name);
    let principal = principal(&gateway.namespace, &gateway.name, look);
    let serves = match traffic {
        Traffic::Service => Serves::Service,
        Traffic::Workload => Serves::Workload,
    };
    Binding { gateway, state: State::Absent, host, principal, serves }
}

/// The principal of a service account, as policies write it.
pub fn principal(namespace: &str, account: &str, look: &Lookup<'_>) -> String {
    format!("{}/ns/{namespace}/sa/{account}", look.mesh().trust_domain)
}

/// What the Gateway says it is for, else its class, else services.
fn serves(gateway: &Gateway, look: &mut Lookup<'_>) -> Serves {
    let own = label(gateway.metadata.labels.as_ref(), api::WAYPOINT_FOR);
    let class = look.get::<GatewayClass>("", &gateway.spec.gateway_class_name);
    let inherited =
        class.and_then(|class| label(class.metadata.labels.as_ref(), api::WAYPOINT_FOR));
    match own.or(inherited) {
        Some("workload") => Serves::Workload,
        Some("all") => Serves::All,
        Some("none") => Serves::None,
        Some(_) | None => Serves::Service,
    }
}

/// Tells whether the HBONE listener admits objects of another namespace.
fn admits(gateway: &Gateway, namespace: &str, look: &mut Lookup<'_>) -> bool {
    let own = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let mut listeners = gateway.spec.listeners.iter();
    let hbone = listeners.find(|listener| {
        listener.protocol == "HBONE" && listener.port == i32::from(api::HBONE_PORT)
    });
    hbone.is_some_and(|listener| allowed::namespace(listener, own, namespace, look))
}

/// Tells whether any pod of the Gateway is ready.
fn is_ready(gateway: &Name, look: &mut Lookup<'_>) -> bool {
    let value = index::label(&gateway.namespace, api::GATEWAY_NAME, &shape::bounded(&gateway.name));
    pod::any_serves(look.list::<Pod>(Index::Label, &value))
}
