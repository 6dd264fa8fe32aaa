// SPDX-License-Identifier: Apache-2.0

//! What users lay over the objects that run a Gateway. Pure.
//!
//! Owns: the ConfigMap's keys, and what a layer may not touch: what an object is called, whose
//! it is, and what it is found and known by. How layers merge is [`merge`]'s; that the outcome
//! is an object of its kind, with no member that Kubernetes does not know, is [`form`]'s.
//!
//! Rule: `parametersRef` of Istio's automated deployment.
//!
//! Start at [`Overlay::read`] and [`Overlay::lay`].

pub(crate) mod form;
mod merge;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::manifest::PROXY;
use crate::api;
use crate::store::{Kind, Name};

/// Keys of the ConfigMap, and the kind of object that each is laid over.
pub const KEYS: [(&str, Kind); 5] = [
    ("deployment", Kind::Deployment),
    ("service", Kind::Service),
    ("serviceAccount", Kind::ServiceAccount),
    ("horizontalPodAutoscaler", Kind::HorizontalPodAutoscaler),
    ("podDisruptionBudget", Kind::PodDisruptionBudget),
];
/// Members that stay as they are, and what sets them instead.
const FIXED: [(&str, &str); 5] = [
    ("/spec/selector", ""),
    ("/spec/scaleTargetRef", ""),
    // Policies select proxies by these, before there is any.
    ("/spec/template/metadata/labels", "; set spec.infrastructure.labels of the Gateway"),
    // The identity of the proxies.
    ("/spec/template/spec/serviceAccountName", ACCOUNT),
    ("/spec/template/spec/serviceAccount", ACCOUNT),
];
const ACCOUNT: &str = "; set the annotation gateway.istio.io/service-account of the Gateway";

/// Layers of one ConfigMap, by the kind that they lie over.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlay {
    map: Name,
    layers: BTreeMap<Kind, Value>,
}

/// A ConfigMap whose layers are refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("ConfigMap {map} is refused")]
pub struct InvalidOverlay {
    /// The ConfigMap.
    pub map: Name,
    /// Why.
    #[source]
    pub fault: Fault,
}

/// Why layers are refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The ConfigMap has a key that means nothing.
    #[error(
        "key {0:?} is not known; wanted deployment, service, serviceAccount, horizontalPodAutoscaler or podDisruptionBudget"
    )]
    Key(String),
    /// A value is no YAML.
    #[error("{key}: no YAML: {message}")]
    Yaml {
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A value is no object.
    #[error("{0}: wanted the members of an object")]
    Form(String),
    /// A member may not be changed.
    #[error("{key}: {field} may not be changed{instead}")]
    Fixed {
        /// The key.
        key: &'static str,
        /// The member.
        field: String,
        /// What to do, if there is a way.
        instead: &'static str,
    },
    /// A member has another form than what it lies over.
    #[error("{key}: {field} has another form than the member that it lies over")]
    Shape {
        /// The key.
        key: &'static str,
        /// The member.
        field: String,
    },
    /// A directive is not understood.
    #[error("{key}: {field}: this directive is not understood; wanted $patch: replace or delete")]
    Directive {
        /// The key.
        key: &'static str,
        /// The member.
        field: String,
    },
    /// Kubernetes knows no such member.
    #[error("{key}: {field}: there is no such field")]
    Unknown {
        /// The key.
        key: &'static str,
        /// The member.
        field: String,
    },
    /// A member's value is not of its type.
    #[error("{key}: {field}: {message}")]
    Value {
        /// The key.
        key: &'static str,
        /// The member.
        field: String,
        /// What is wrong.
        message: String,
    },
}

impl Overlay {
    /// Reads the layers of a ConfigMap.
    ///
    /// # Errors
    ///
    /// When it has a key that means nothing, or a value that is no YAML or no object.
    pub fn read(map: &ConfigMap) -> Result<Self, InvalidOverlay> {
        let meta = &map.metadata;
        let name = Name::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        match layers(map) {
            Ok(layers) => Ok(Self { map: name, layers }),
            Err(fault) => Err(InvalidOverlay { map: name, fault }),
        }
    }

    /// Tells whether there is a layer for a kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.layers.contains_key(&kind)
    }

    /// Lays the layer of its kind over an object.
    ///
    /// # Errors
    ///
    /// When the layer touches what it may not, or the outcome is no object of its kind.
    pub fn lay(&self, kind: Kind, object: &mut Value) -> Result<(), InvalidOverlay> {
        let Some(layer) = self.layers.get(&kind) else { return Ok(()) };
        let key = KEYS.iter().find(|(_, of)| *of == kind).map_or("", |(key, _)| *key);
        let invalid = |fault| InvalidOverlay { map: self.map.clone(), fault };
        let mut laid = object.clone();
        merge::merge(&mut laid, layer, key).map_err(invalid)?;
        untouched(key, object, &laid).map_err(invalid)?;
        form::check(key, kind, &laid).map_err(invalid)?;
        *object = laid;
        Ok(())
    }
}

fn layers(map: &ConfigMap) -> Result<BTreeMap<Kind, Value>, Fault> {
    let mut layers = BTreeMap::new();
    if let Some(key) = map.binary_data.iter().flat_map(BTreeMap::keys).next() {
        return Err(Fault::Key(key.clone()));
    }
    for (key, text) in map.data.iter().flatten() {
        let kind = KEYS.iter().find(|(name, _)| name == key).map(|(_, kind)| *kind);
        let kind = kind.ok_or_else(|| Fault::Key(key.clone()))?;
        let mut value: Value = serde_saphyr::from_str(text).map_err(|error| Fault::Yaml {
            key: key.clone(),
            message: error.without_snippet().to_string(),
        })?;
        if !value.is_object() {
            return Err(Fault::Form(key.clone()));
        }
        form::write_quantities(&mut value);
        layers.insert(kind, value);
    }
    Ok(layers)
}

/// Refuses what made it another object, or one that nobody finds.
fn untouched(key: &'static str, base: &Value, laid: &Value) -> Result<(), Fault> {
    let fixed = |field: String, instead| Err(Fault::Fixed { key, field, instead });
    let account = ["secrets", "imagePullSecrets", "automountServiceAccountToken"];
    let may = |member: &str| {
        matches!(member, "metadata" | "spec")
            || key == "serviceAccount" && account.contains(&member)
    };
    if let Some(member) = differs(base, laid, may) {
        return fixed(member, "");
    }
    let part = |of: &Value, pointer: &str| of.pointer(pointer).cloned().unwrap_or_default();
    let (base_meta, laid_meta) = (part(base, "/metadata"), part(laid, "/metadata"));
    let may = |member: &str| matches!(member, "labels" | "annotations");
    if let Some(member) = differs(&base_meta, &laid_meta, may) {
        return fixed(format!("metadata.{member}"), "");
    }
    let (base_labels, laid_labels) = (part(&base_meta, "/labels"), part(&laid_meta, "/labels"));
    if let Some(label) = differs(&base_labels, &laid_labels, |label| !is_owned(label)) {
        return fixed(format!("metadata.labels.{label}"), "");
    }
    for (pointer, instead) in FIXED {
        if base.pointer(pointer) != laid.pointer(pointer) {
            return fixed(pointer.trim_start_matches('/').replace('/', "."), instead);
        }
    }
    if has_proxy(base) && !has_proxy(laid) {
        return fixed(format!("container {PROXY}"), "; it may be changed, not taken away");
    }
    Ok(())
}

/// Tells whether the container of the proxy is there.
fn has_proxy(deployment: &Value) -> bool {
    let containers = deployment.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    containers.into_iter().flatten().any(|one| one.get("name").is_some_and(|name| name == PROXY))
}

/// The first member that two objects do not have alike, besides those that may differ.
fn differs(base: &Value, laid: &Value, may: impl Fn(&str) -> bool) -> Option<String> {
    let names = [base, laid].into_iter().filter_map(Value::as_object).flat_map(|all| all.keys());
    let mut names = names.filter(|name| !may(name));
    names.find(|name| base.get(name.as_str()) != laid.get(name.as_str())).cloned()
}

/// Tells whether a label says what an object belongs to.
fn is_owned(label: &str) -> bool {
    label.starts_with("gateway.networking.k8s.io/")
        || label == api::MANAGED
        || label == api::DATAPLANE_MODE
}

#[cfg(test)]
mod tests;
