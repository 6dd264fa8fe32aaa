// SPDX-License-Identifier: Apache-2.0

//! Backend references of routes: where they lead, or why nowhere.
//!
//! A reference that does not resolve stays in the rule: its share of requests fails, and the
//! other shares go on.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use routing::route::BackendTarget;

use super::reference_grant::{self, From, To};
use crate::api;
use crate::api::gateway::BackendRef;
use crate::store::lookup::Lookup;

/// Why references of a route do not resolve: the first that was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Problem(pub Option<(&'static str, String)>);

impl Problem {
    fn note(&mut self, reason: &'static str, message: String) -> BackendTarget {
        let target = BackendTarget::Invalid { reason: Arc::from(message.as_str()) };
        if self.0.is_none() {
            self.0 = Some((reason, message));
        }
        target
    }
}

/// Where `reference` of a route leads; what is wrong with it is noted in `problem`.
///
/// Rule: `BackendRef` in Gateway API `apis/v1/shared_types.go`. A reference that is not
/// permitted says so whether or not its object exists.
pub fn resolve(
    reference: &BackendRef,
    from: From<'_>,
    look: &mut Lookup<'_>,
    problem: &mut Problem,
) -> BackendTarget {
    let group = reference.group.as_deref().unwrap_or("");
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let name = reference.name.as_str();
    if !(group.is_empty() && kind == "Service") {
        return problem.note("InvalidKind", format!("backends of kind {kind} are not served"));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(from.namespace);
    if !reference_grant::permits(from, To { group, kind, namespace, name }, look) {
        let message = format!("no ReferenceGrant in {namespace} permits Service {name}");
        return problem.note("RefNotPermitted", message);
    }
    let found = look.get::<Service>(namespace, name).and_then(|object| object.spec.as_ref());
    let Some(spec) = found else {
        let message = format!("Service {namespace}/{name} does not exist");
        return problem.note("BackendNotFound", message);
    };
    let port = reference.port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
    let Some(port) = port else {
        return problem.note("BackendNotFound", format!("Service {name} needs a port"));
    };
    let ports: Vec<_> = spec.ports.iter().flatten().collect();
    if !ports.is_empty() && ports.iter().all(|one| one.port != i32::from(port)) {
        let message = format!("Service {namespace}/{name} has no port {port}");
        return problem.note("BackendNotFound", message);
    }
    match api::service_key(namespace, name).parse() {
        Ok(key) => BackendTarget::Service { key, port },
        Err(_) => problem.note("BackendNotFound", format!("{namespace}/{name} is no name")),
    }
}

/// The share of a backend; one that is not given is 1, a negative one none.
pub fn weight(reference: &BackendRef) -> u32 {
    reference.weight.map_or(1, |weight| u32::try_from(weight).unwrap_or(0))
}
