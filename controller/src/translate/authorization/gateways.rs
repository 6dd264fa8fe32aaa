// SPDX-License-Identifier: Apache-2.0

//! The ingress Gateways among what a policy without targetRefs selects.
//!
//! A pod of an ingress Gateway is a workload like any other, and its proxy ends HTTP: so it
//! enforces these policies itself, every field included. Waypoints are left out: what they
//! enforce points at them.
//!
//! Rule: Istio's `AuthorizationPolicy.selector`; for waypoints "Use Layer 7 features".

use std::collections::{BTreeMap, BTreeSet};

use gateway_api::experimental::gateways::Gateway;
use k8s_openapi::api::core::v1::Pod;

use super::admits;
use crate::api::istio::Selector;
use crate::api::{self, Role};
use crate::provision::manifest::{self, Wanted};
use crate::store::Name;
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::translate::shape;
use crate::translate::waypoint::label;

/// What a policy without targetRefs selects, as far as gateways go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(in crate::translate) struct Selected {
    /// The ingress Gateways whose proxies enforce it.
    pub(in crate::translate) gateways: BTreeSet<Name>,
    /// Their pods are all that it selects: no tunnel is concerned.
    pub(in crate::translate) nothing_else: bool,
}

/// Finds them: in the policy's `namespace`, or everywhere for a policy of the root namespace.
pub(in crate::translate) fn selected(
    namespace: &str,
    selector: Option<&Selector>,
    look: &mut Lookup<'_>,
) -> Selected {
    let root = *look.mesh().root_namespace == *namespace;
    let within = if root {
        look.list::<Gateway>(Index::All, "")
    } else {
        look.list::<Gateway>(Index::Namespace, namespace)
    };
    let wanted = selector.map(|selector| &selector.match_labels);
    let wanted = wanted.filter(|labels| !labels.is_empty());
    let mut gateways = BTreeSet::new();
    for gateway in within {
        if wanted.is_none_or(|wanted| selects(wanted, gateway, look)) && is_ingress(gateway, look) {
            let meta = &gateway.metadata;
            gateways.insert(Name::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ));
        }
    }
    let nothing_else = match wanted {
        None => false,
        _ if gateways.is_empty() => false,
        // The label that every pod of a Gateway has, and no other.
        Some(wanted) if wanted.contains_key(api::GATEWAY_NAME) => true,
        Some(_) if root => false,
        Some(_) => admits::selected(selector, namespace, look).iter().all(|pod| {
            let gateway = label(pod.metadata.labels.as_ref(), api::GATEWAY_NAME);
            let same = |own: &Name| {
                *own.namespace == *namespace && gateway == Some(&*shape::bounded(&own.name))
            };
            gateways.iter().any(same)
        }),
    };
    Selected { gateways, nothing_else }
}

fn is_ingress(gateway: &Gateway, look: &mut Lookup<'_>) -> bool {
    let class = shape::class(&gateway.spec.gateway_class_name, look);
    class.is_some_and(|class| class.role == Role::Ingress)
}

/// Tells whether the labels select a pod of `gateway`: one that there is, or one that will be.
fn selects(wanted: &BTreeMap<String, String>, gateway: &Gateway, look: &mut Lookup<'_>) -> bool {
    let has = |labels: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let Some(class) = shape::class(&gateway.spec.gateway_class_name, look) else { return false };
    let shape = shape::of(gateway, look);
    let made = Wanted { gateway, class, shape: &shape, listeners: &[] };
    if has(&manifest::pod_labels(made)) {
        return true;
    }
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let value = index::label(namespace, api::GATEWAY_NAME, &shape::bounded(name));
    let pods = look.list::<Pod>(Index::Label, &value);
    pods.into_iter().any(|pod| pod.metadata.labels.as_ref().is_some_and(has))
}
