// SPDX-License-Identifier: Apache-2.0

//! What an object asks for that Istio knows and the mesh does not serve.
//!
//! Owns the rule that nothing is overlooked in silence: every label and annotation of Istio's is
//! served, or told on its object with what happens instead ([`table`]); so is a waypoint that a
//! pod or namespace names and that serves it not. What has a condition of its own is not
//! told twice. On Kubernetes [`crate::provision::events`] writes it, `waymark status` lists it.
//!
//! Left alone is what users did not write: objects that were made for a Gateway, and pods that
//! the sidecar injector of another mesh labelled. Start at [`run`].

mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::table::{Place, ROWS, Row};
use super::shape;
use super::waypoint::{self, State, label};
use crate::api;
use crate::api::istio::{AuthorizationPolicy, ServiceEntry, WorkloadEntry};
use crate::output::Output;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name, Stored};

/// The longest value that is repeated, in bytes; a label's is never longer.
const LONGEST: usize = 63;

/// What of one object is not served.
#[derive(Clone, Debug, PartialEq)]
pub struct NotServed {
    /// The object.
    pub key: Key,
    /// Its UID: another object of that name is told anew.
    pub uid: Option<Arc<str>>,
    /// One sentence for each thing: which it is, and what happens instead.
    pub notes: Vec<String>,
}

/// What the object `name` is told; none if everything that it asks for is served.
pub fn run(kind: Kind, name: &Name, look: &mut Lookup<'_>) -> Option<Output> {
    let notes = match kind {
        Kind::Namespace => namespace(get::<Namespace>(name, look)?, look),
        Kind::Pod => pod(get::<Pod>(name, look)?, look),
        Kind::Service => service(get::<Service>(name, look)?, look),
        Kind::ServiceEntry => service_entry(get::<ServiceEntry>(name, look)?, look),
        Kind::WorkloadEntry => workload_entry(get::<WorkloadEntry>(name, look)?, look),
        Kind::Gateway => gateway(get::<Gateway>(name, look)?, look),
        Kind::GatewayClass => class(get::<GatewayClass>(name, look)?, look),
        Kind::AuthorizationPolicy => {
            of(kind, &get::<AuthorizationPolicy>(name, look)?.metadata, look)
        }
        Kind::Node
        | Kind::ServiceAccount
        | Kind::Secret
        | Kind::ConfigMap
        | Kind::Deployment
        | Kind::HorizontalPodAutoscaler
        | Kind::PodDisruptionBudget
        | Kind::EndpointSlice
        | Kind::ListenerSet
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::UdpRoute
        | Kind::ReferenceGrant
        | Kind::BackendTlsPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication => return None,
    };
    if notes.is_empty() {
        return None;
    }
    let key = Key { kind, name: name.clone() };
    let uid = look.uid(&key);
    Some(Output::NotServed(Arc::new(NotServed { key, uid, notes })))
}

fn get<'a, K: Stored>(name: &Name, look: &mut Lookup<'a>) -> Option<&'a Arc<K>> {
    look.get::<K>(&name.namespace, &name.name)
}

fn namespace(object: &Namespace, look: &mut Lookup<'_>) -> Vec<String> {
    let meta = &object.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    if !look.mesh().discovery.take(name, meta.labels.as_ref()) {
        return Vec::new();
    }
    // What it says holds for its objects, and a Gateway without a namespace is one of its own.
    let inside = ObjectMeta { namespace: meta.name.clone(), ..meta.clone() };
    let refused = "traffic of the namespace's Services and pods that it is for is refused";
    let named = waypoint::named(&inside, look);
    let bound = named.and_then(|(gateway, state, _)| match state {
        State::Absent => Some(unbound(&gateway, "is not there", refused)),
        State::Denied => Some(unbound(&gateway, "does not admit the namespace", refused)),
        State::Ready | State::NotReady | State::WrongTraffic => None,
    });
    [of(Kind::Namespace, meta, look), Vec::from_iter(bound)].concat()
}

fn pod(object: &Pod, look: &mut Lookup<'_>) -> Vec<String> {
    let meta = &object.metadata;
    let injected = label(meta.annotations.as_ref(), api::SIDECAR_STATUS).is_some();
    if injected || waypoint::is_gateways_own(meta) {
        return Vec::new();
    }
    [of(Kind::Pod, meta, look), Vec::from_iter(bound(meta, look))].concat()
}

fn service(object: &Service, look: &mut Lookup<'_>) -> Vec<String> {
    if waypoint::is_gateways_own(&object.metadata) {
        return Vec::new();
    }
    of(Kind::Service, &object.metadata, look)
}

fn service_entry(object: &ServiceEntry, look: &mut Lookup<'_>) -> Vec<String> {
    let mut notes = of(Kind::ServiceEntry, &object.metadata, look);
    let export = &object.spec.export_to;
    if export.iter().any(|to| to != "*") {
        let what = with_value("spec.exportTo".to_owned(), &export.join(","));
        notes.push(format!("{what} is not served: {}", table::EVERYWHERE));
    }
    notes
}

fn workload_entry(object: &WorkloadEntry, look: &Lookup<'_>) -> Vec<String> {
    let meta = ObjectMeta { labels: Some(object.all_labels()), ..object.metadata.clone() };
    of(Kind::WorkloadEntry, &meta, look)
}

/// Only Gateways of ours: what others' controllers know we do not judge.
fn gateway(object: &Gateway, look: &mut Lookup<'_>) -> Vec<String> {
    if shape::class(&object.spec.gateway_class_name, look).is_none() {
        return Vec::new();
    }
    let mut notes = of(Kind::Gateway, &object.metadata, look);
    if let Some(own) = &object.spec.infrastructure {
        let meta = ObjectMeta {
            labels: own.labels.clone(),
            annotations: own.annotations.clone(),
            ..ObjectMeta::default()
        };
        let inside = |note: String| format!("spec.infrastructure: {note}");
        notes.extend(of(Kind::Gateway, &meta, look).into_iter().map(inside));
    }
    notes
}

fn class(object: &GatewayClass, look: &Lookup<'_>) -> Vec<String> {
    match api::class_of_controller(&object.spec.controller_name) {
        Some(_) => of(Kind::GatewayClass, &object.metadata, look),
        None => Vec::new(),
    }
}

/// The waypoint that a pod itself names, if it does not serve it.
fn bound(meta: &ObjectMeta, look: &mut Lookup<'_>) -> Option<String> {
    let (gateway, state, serves) = waypoint::named(meta, look)?;
    let refused = "traffic to the pod's own addresses is refused";
    if state != State::Absent && !serves.is_for_workloads() {
        let why = "is not for workloads, as its label istio.io/waypoint-for says";
        return Some(unbound(
            &gateway,
            why,
            "traffic to the pod's own addresses passes no waypoint",
        ));
    }
    match state {
        State::Absent => Some(unbound(&gateway, "is not there", refused)),
        State::Denied => Some(unbound(&gateway, "does not admit the namespace", refused)),
        State::Ready | State::NotReady | State::WrongTraffic => None,
    }
}

fn unbound(gateway: &Name, why: &str, instead: &str) -> String {
    format!("label {} binds to nothing: Gateway {gateway} {why}; {instead}", api::USE_WAYPOINT)
}

/// What the table says of an object's labels and annotations.
fn of(kind: Kind, meta: &ObjectMeta, look: &Lookup<'_>) -> Vec<String> {
    let rows = ROWS.iter().filter(|row| row.kinds.contains(&kind));
    rows.filter_map(|row| said(row, meta, &look.mesh().cluster_id)).collect()
}

fn said(row: &Row, meta: &ObjectMeta, cluster: &str) -> Option<String> {
    let all: Option<&BTreeMap<_, _>> = match row.place {
        Place::Label => meta.labels.as_ref(),
        Place::Annotation => meta.annotations.as_ref(),
    };
    let value = label(all, row.key)?;
    let own = row.key == table::CLUSTER && value == cluster;
    if value.is_empty() || own || row.fine.contains(&value) {
        return None;
    }
    let what = with_value(format!("{} {}", row.place.as_str(), row.key), value);
    Some(format!("{what} is not served: {}", row.instead))
}

/// A field and its value; of a long one, or one of several lines, the field alone.
fn with_value(what: String, value: &str) -> String {
    let short = value.len() <= LONGEST && !value.contains(char::is_control);
    if short { format!("{what}={value}") } else { what }
}

#[cfg(test)]
mod tests;
