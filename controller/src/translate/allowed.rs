// SPDX-License-Identifier: Apache-2.0

//! Which namespaces and kinds a listener takes routes from.
//!
//! Rule: `AllowedRoutes` in Gateway API `apis/v1/gateway_types.go`.

use gateway_api::experimental::gateways::{
    Gateway, GatewayAllowedListenersNamespacesFrom as SetsFrom, GatewayListeners,
    GatewayListenersAllowedRoutesNamespacesFrom as From,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;

use crate::discovery::selects;
use crate::store::lookup::Lookup;

/// Tells whether `listener` of a Gateway in `own` takes objects of `namespace`.
pub fn namespace(
    listener: &GatewayListeners,
    own: &str,
    namespace: &str,
    look: &mut Lookup<'_>,
) -> bool {
    let namespaces = listener.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref());
    let from = namespaces.and_then(|namespaces| namespaces.from.as_ref());
    match from {
        None | Some(From::Same) => own == namespace,
        Some(From::All) => true,
        Some(From::Selector) => {
            let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
            selector.is_some_and(|selector| selected(selector, namespace, look))
        }
    }
}

/// Tells whether `gateway` takes ListenerSets of `namespace`: none unless it says so.
///
/// Rule: `AllowedListeners` in Gateway API `apis/v1/gateway_types.go`.
pub fn listener_set(gateway: &Gateway, namespace: &str, look: &mut Lookup<'_>) -> bool {
    let allowed = gateway.spec.allowed_listeners.as_ref();
    let Some(namespaces) = allowed.and_then(|allowed| allowed.namespaces.as_ref()) else {
        return false;
    };
    match namespaces.from {
        None | Some(SetsFrom::None) => false,
        Some(SetsFrom::Same) => gateway.metadata.namespace.as_deref() == Some(namespace),
        Some(SetsFrom::All) => true,
        Some(SetsFrom::Selector) => {
            let selector = namespaces.selector.as_ref();
            selector.is_some_and(|selector| selected(selector, namespace, look))
        }
    }
}

/// Tells whether a selector selects a namespace by its labels.
fn selected<T: Serialize>(selector: &T, namespace: &str, look: &mut Lookup<'_>) -> bool {
    // The same selector under several names in the crate.
    let json = serde_json::to_value(selector).unwrap_or_default();
    let Ok(selector) = serde_json::from_value::<LabelSelector>(json) else { return false };
    let labels = look
        .get::<Namespace>("", namespace)
        .map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
    // Every namespace of a cluster carries its name as a label, written or not.
    let mut labels = labels.unwrap_or_default();
    labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| namespace.to_owned());
    selects(&selector, &labels)
}
