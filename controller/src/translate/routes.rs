// SPDX-License-Identifier: Apache-2.0

//! What all kinds of routes share.

use std::collections::BTreeSet;

use gateway_api::experimental::gateways::Gateway;

use super::{shape, waypoint};
use crate::api::gateway::{GrpcRoute, HttpRoute, ParentRef};
use crate::store::index::Index;
use crate::store::lookup::Lookup;

/// Principals of the gateways at the edge that have a route to a Service.
pub fn gateways_to(namespace: &str, service: &str, look: &mut Lookup<'_>) -> BTreeSet<String> {
    let value = crate::store::index::object("Service", namespace, service);
    let mut parents: BTreeSet<(String, String)> = BTreeSet::new();
    let mut note = |refs: &[ParentRef], own: Option<&str>| {
        for parent in refs {
            if parent.kind.as_deref().unwrap_or("Gateway") == "Gateway" {
                let namespace = parent.namespace.as_deref().or(own).unwrap_or_default();
                parents.insert((namespace.to_owned(), parent.name.clone()));
            }
        }
    };
    for route in look.list::<HttpRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    for route in look.list::<GrpcRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    let mut principals = BTreeSet::new();
    for (namespace, name) in parents {
        let Some(gateway) = look.get::<Gateway>(&namespace, &name) else { continue };
        let account = shape::of(gateway, look).account;
        principals.insert(waypoint::principal(&namespace, &account, look));
    }
    principals
}
