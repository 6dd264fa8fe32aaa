// SPDX-License-Identifier: Apache-2.0

//! Parameters of Gateways and GatewayClasses: which ConfigMaps lie over the objects that run a
//! Gateway.
//!
//! From below: the defaults of its class (a ConfigMap of the root namespace with the label
//! `gateway.istio.io/defaults-for-class`), the `parametersRef` of its GatewayClass, its own.
//!
//! Rule: `parametersRef` in Gateway API `apis/v1/{gatewayclass,gateway}_types.go`: what is not
//! found, not of a served kind or malformed is `Accepted=False` with `InvalidParameters`;
//! defaults of a class as Istio's automated deployment has them.

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use k8s_openapi::api::core::v1::ConfigMap;
use routing::wire::chain;

use super::certificate::Reference;
use super::listener::Refusal;
use super::shape::Shape;
use crate::api::{self, BuiltinClass};
use crate::provision::manifest::{self, Manifest, Wanted};
use crate::provision::overlay::{InvalidOverlay, Overlay};
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;

/// Reason of `Accepted=False` for parameters that cannot be used.
pub const INVALID_PARAMETERS: &str = "InvalidParameters";

/// The objects that run a Gateway, with the parameters of its class and its own laid over them.
///
/// # Errors
///
/// `InvalidParameters`.
pub fn objects(wanted: Wanted<'_>, look: &mut Lookup<'_>) -> Result<Vec<Manifest>, Refusal> {
    let gateway = wanted.gateway;
    let class_name = &gateway.spec.gateway_class_name;
    let mut layers = of_class(class_name, look)
        .map_err(|(reason, message)| (reason, format!("GatewayClass {class_name}: {message}")))?;
    let infrastructure = gateway.spec.infrastructure.as_ref();
    if let Some(reference) = infrastructure.and_then(|i| i.parameters_ref.as_ref()) {
        let reference = Reference {
            group: &reference.group,
            kind: &reference.kind,
            namespace: gateway.metadata.namespace.as_deref().unwrap_or_default(),
            name: &reference.name,
        };
        layers.push(read(reference, look)?);
    }
    manifest::objects(wanted, &layers, look.mesh()).map_err(|error| refused(&error))
}

/// Tells whether the parameters of a class fit the objects of its Gateways.
///
/// # Errors
///
/// `InvalidParameters`.
pub fn check_class(name: &str, class: &BuiltinClass, look: &mut Lookup<'_>) -> Result<(), Refusal> {
    let layers = of_class(name, look)?;
    let shape = Shape { name: name.to_owned(), account: name.to_owned() };
    let any = Gateway::default();
    let wanted = Wanted { gateway: &any, class, shape: &shape, listeners: &[] };
    let made = manifest::objects(wanted, &layers, look.mesh());
    made.map(|_| ()).map_err(|error| refused(&error))
}

/// Layers over the objects of all Gateways of a class.
fn of_class(name: &str, look: &mut Lookup<'_>) -> Result<Vec<Overlay>, Refusal> {
    let root = look.mesh().root_namespace.clone();
    let value = index::label(&root, api::DEFAULTS_FOR_CLASS, name);
    let defaults = look.list::<ConfigMap>(Index::Label, &value);
    if let [_, _, ..] = defaults.as_slice() {
        let names = defaults.iter().filter_map(|map| map.metadata.name.as_deref());
        let names = names.collect::<Vec<_>>().join(", ");
        let message = format!(
            "one ConfigMap may hold defaults of a class ({}), and {names} of namespace {root} do",
            api::DEFAULTS_FOR_CLASS
        );
        return Err(invalid(message));
    }
    let defaults = defaults.into_iter().map(|map| Overlay::read(map));
    let mut layers = defaults.collect::<Result<Vec<_>, _>>().map_err(|error| refused(&error))?;
    let class = look.get::<GatewayClass>("", name);
    if let Some(reference) = class.and_then(|class| class.spec.parameters_ref.as_ref()) {
        let Some(namespace) = reference.namespace.as_deref() else {
            return Err(invalid("spec.parametersRef.namespace is missing".to_owned()));
        };
        let (group, kind) = (reference.group.as_str(), reference.kind.as_str());
        layers.push(read(Reference { group, kind, namespace, name: &reference.name }, look)?);
    }
    Ok(layers)
}

fn read(reference: Reference<'_>, look: &mut Lookup<'_>) -> Result<Overlay, Refusal> {
    let Reference { group, kind, namespace, name } = reference;
    if !(group.is_empty() && kind == "ConfigMap") {
        let slash = if group.is_empty() { "" } else { "/" };
        let message =
            format!("parameters of kind {group}{slash}{kind} are not served; wanted a ConfigMap");
        return Err(invalid(message));
    }
    let Some(map) = look.get::<ConfigMap>(namespace, name) else {
        return Err(invalid(format!(
            "ConfigMap {namespace}/{name} of the parameters does not exist"
        )));
    };
    Overlay::read(map).map_err(|error| refused(&error))
}

fn invalid(message: String) -> Refusal {
    (INVALID_PARAMETERS, message)
}

fn refused(error: &InvalidOverlay) -> Refusal {
    invalid(chain(error))
}

#[cfg(test)]
mod tests;
