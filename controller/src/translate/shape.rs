// SPDX-License-Identifier: Apache-2.0

//! Whose a Gateway is, what it is for, and what its objects are called.

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;

use super::waypoint::label;
use crate::api::{self, BuiltinClass, Role};
use crate::store::lookup::Lookup;

/// Names of the objects that run a Gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Name of Deployment and Service.
    pub name: String,
    /// Name of the ServiceAccount: the identity of the proxies.
    pub account: String,
}

/// The class of ours that serves `name`; none if the class is another controller's or unknown.
///
/// A built-in class needs no GatewayClass object; one that exists decides.
pub fn class(name: &str, look: &mut Lookup<'_>) -> Option<&'static BuiltinClass> {
    match look.get::<GatewayClass>("", name) {
        Some(class) => api::class_of_controller(&class.spec.controller_name),
        None => api::CLASSES.iter().find(|class| class.name == name),
    }
}

/// What the objects of `gateway` are called, whether or not we make them.
///
/// Rule: Istio's names: a waypoint's are the Gateway's own, others end with the class.
pub fn of(gateway: &Gateway, look: &mut Lookup<'_>) -> Shape {
    let own = gateway.metadata.name.as_deref().unwrap_or_default();
    let annotations = gateway.metadata.annotations.as_ref();
    let class_name = &gateway.spec.gateway_class_name;
    let role = class(class_name, look).map(|class| class.role);
    let name = match (label(annotations, api::NAME_OVERRIDE), role) {
        (Some(name), _) => name.to_owned(),
        (None, Some(Role::Ingress)) => format!("{own}-{class_name}"),
        (None, Some(Role::Waypoint) | None) => own.to_owned(),
    };
    let account = label(annotations, api::SERVICE_ACCOUNT).unwrap_or(&name).to_owned();
    Shape { name, account }
}
