// SPDX-License-Identifier: Apache-2.0

//! From a Service back to the gateways at the edge that send to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use gateway_api::experimental::gateways::Gateway;

use super::{attach, shape, waypoint};
use crate::api::gateway::{GrpcRoute, HttpRoute, ParentRef, TcpRoute, TlsRoute, UdpRoute};
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;

/// The Gateways that are parents of a route to a Service, each once.
pub fn gateways_to<'a>(
    namespace: &str,
    service: &str,
    look: &mut Lookup<'a>,
) -> Vec<&'a Arc<Gateway>> {
    let value = index::object("Service", namespace, service);
    let mut parents: Vec<(&'a ParentRef, &'a str)> = Vec::new();
    let mut note = |references: &'a [ParentRef], own: Option<&'a str>| {
        parents.extend(references.iter().map(|one| (one, own.unwrap_or_default())));
    };
    for route in look.list::<HttpRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    for route in look.list::<GrpcRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    for route in look.list::<TlsRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    for route in look.list::<TcpRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    for route in look.list::<UdpRoute>(Index::Backend, &value) {
        note(&route.spec.parent_refs, route.metadata.namespace.as_deref());
    }
    let mut gateways: Vec<&'a Arc<Gateway>> = Vec::new();
    for (reference, own) in parents {
        let found = attach::gateway_of(reference, own, look);
        if let Some((gateway, ..)) = found
            && gateways.iter().all(|known| !Arc::ptr_eq(known, gateway))
        {
            gateways.push(gateway);
        }
    }
    gateways
}

/// Principals of the gateways at the edge that have a route to a Service.
pub fn principals_to(namespace: &str, service: &str, look: &mut Lookup<'_>) -> BTreeSet<String> {
    let gateways = gateways_to(namespace, service, look);
    let principals = gateways.into_iter().map(|gateway| {
        let account = shape::of(gateway, look).account;
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
        waypoint::principal(namespace, &account, look)
    });
    principals.collect()
}
