// SPDX-License-Identifier: Apache-2.0

//! What a user lays over the objects that run a Gateway. Pure.
//!
//! Owns: the ConfigMap's keys, how a layer merges (maps by member, lists of named things by
//! name, other lists whole; `null` takes a member away), and what a layer may not touch: what
//! an object is called, whose it is, and the labels that it is found by.
//!
//! Rule: `parametersRef` of Istio's automated deployment; lists as Kubernetes' strategic merge
//! patch has them (`patchMergeKey` in `api/core/v1/types.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Map, Value};

use crate::store::Kind;

/// Keys of the ConfigMap, and the kind of object that each is laid over.
pub const KEYS: [(&str, Kind); 5] = [
    ("deployment", Kind::Deployment),
    ("service", Kind::Service),
    ("serviceAccount", Kind::ServiceAccount),
    ("horizontalPodAutoscaler", Kind::HorizontalPodAutoscaler),
    ("podDisruptionBudget", Kind::PodDisruptionBudget),
];
/// Lists of named things, by their member, and by what their elements are told apart.
const NAMED: [(&str, &[&str]); 11] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    // Of a container, then of a Service.
    ("ports", &["containerPort", "protocol"]),
    ("ports", &["port", "protocol"]),
];
/// What stands for a list that is not to be merged but put in place.
const DIRECTIVE: &str = "$patch";

/// Layers by the kind that they lie over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    layers: BTreeMap<Kind, Value>,
}

/// Why layers are refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidOverlay {
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
    #[error("{key}: {field} may not be changed")]
    Fixed {
        /// The key.
        key: String,
        /// The member.
        field: String,
    },
    /// A member has another form than what it lies over.
    #[error("{key}: {field} has another form than the member that it lies over")]
    Shape {
        /// The key.
        key: String,
        /// The member.
        field: String,
    },
    /// A directive is not understood.
    #[error("{key}: {field}: directives ($patch and its like) are not understood")]
    Directive {
        /// The key.
        key: String,
        /// The member.
        field: String,
    },
}

impl Overlay {
    /// Reads the layers of a ConfigMap.
    ///
    /// # Errors
    ///
    /// See [`InvalidOverlay`].
    pub fn read(map: &ConfigMap) -> Result<Self, InvalidOverlay> {
        let mut layers = BTreeMap::new();
        if let Some(key) = map.binary_data.iter().flat_map(BTreeMap::keys).next() {
            return Err(InvalidOverlay::Key(key.clone()));
        }
        for (key, text) in map.data.iter().flatten() {
            let kind = KEYS.iter().find(|(name, _)| name == key).map(|(_, kind)| *kind);
            let kind = kind.ok_or_else(|| InvalidOverlay::Key(key.clone()))?;
            let value: Value =
                serde_saphyr::from_str(text).map_err(|error| InvalidOverlay::Yaml {
                    key: key.clone(),
                    message: error.without_snippet().to_string(),
                })?;
            if !value.is_object() {
                return Err(InvalidOverlay::Form(key.clone()));
            }
            may_touch(key, &value)?;
            layers.insert(kind, value);
        }
        Ok(Self { layers })
    }

    /// Tells whether there is a layer for a kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.layers.contains_key(&kind)
    }

    /// Lays the layer of its kind over an object.
    ///
    /// # Errors
    ///
    /// [`InvalidOverlay::Shape`] and [`InvalidOverlay::Directive`].
    pub fn lay(&self, kind: Kind, object: &mut Value) -> Result<(), InvalidOverlay> {
        let Some(layer) = self.layers.get(&kind) else { return Ok(()) };
        let key = KEYS.iter().find(|(_, of)| *of == kind).map_or("", |(key, _)| *key);
        merge(object, layer, &mut Path { key, members: Vec::new() })
    }
}

/// Refuses what would make it another object, or one that nobody finds.
fn may_touch(key: &str, layer: &Value) -> Result<(), InvalidOverlay> {
    let fixed = |field: String| Err(InvalidOverlay::Fixed { key: key.to_owned(), field });
    for (name, value) in layer.as_object().into_iter().flatten() {
        match name.as_str() {
            // What it is may be said again, as the text of a whole object does.
            "apiVersion" | "kind" | "spec" => {}
            "metadata" => {
                for (member, value) in value.as_object().into_iter().flatten() {
                    if !matches!(member.as_str(), "labels" | "annotations") {
                        return fixed(format!("metadata.{member}"));
                    }
                    if let Some(label) = owned(value) {
                        return fixed(format!("metadata.{member}.{label}"));
                    }
                }
            }
            "secrets" | "imagePullSecrets" | "automountServiceAccountToken"
                if key == "serviceAccount" => {}
            _ => return fixed(name.clone()),
        }
    }
    for field in ["/spec/selector", "/spec/scaleTargetRef"] {
        if layer.pointer(field).is_some() {
            return fixed(field.trim_start_matches('/').replace('/', "."));
        }
    }
    // Policies select proxies by these: they are known by `spec.infrastructure.labels` alone.
    match layer.pointer("/spec/template/metadata/labels") {
        Some(_) => fixed("spec.template.metadata.labels".to_owned()),
        None => Ok(()),
    }
}

/// A label that says what an object belongs to, if the layer has one.
fn owned(labels: &Value) -> Option<&String> {
    let ours = |label: &&String| {
        label.starts_with("gateway.networking.k8s.io/")
            || label.as_str() == crate::api::MANAGED
            || label.as_str() == crate::api::DATAPLANE_MODE
    };
    labels.as_object()?.keys().find(ours)
}

/// Where a merge is.
struct Path<'a> {
    key: &'a str,
    members: Vec<String>,
}

impl Path<'_> {
    fn shape(&self) -> InvalidOverlay {
        InvalidOverlay::Shape { key: self.key.to_owned(), field: self.members.join(".") }
    }
}

/// Lays `layer` over `base`.
fn merge(base: &mut Value, layer: &Value, at: &mut Path<'_>) -> Result<(), InvalidOverlay> {
    if let (Value::Object(base), Value::Object(layer)) = (&mut *base, layer) {
        return merge_members(base, layer, at);
    }
    if let (Value::Array(base), Value::Array(layer)) = (&mut *base, layer) {
        return merge_list(base, layer, at);
    }
    let same = base.is_object() == layer.is_object() && base.is_array() == layer.is_array();
    if !same && !base.is_null() {
        return Err(at.shape());
    }
    *base = layer.clone();
    Ok(())
}

fn merge_members(
    base: &mut Map<String, Value>,
    layer: &Map<String, Value>,
    at: &mut Path<'_>,
) -> Result<(), InvalidOverlay> {
    for (name, value) in layer {
        at.members.push(name.clone());
        if name.starts_with('$') {
            let field = at.members.join(".");
            return Err(InvalidOverlay::Directive { key: at.key.to_owned(), field });
        }
        if value.is_null() {
            base.remove(name);
        } else {
            // Also where nothing lies below: directives inside are looked for.
            let empty = match value {
                Value::Object(_) => Value::Object(Map::new()),
                Value::Array(_) => Value::Array(Vec::new()),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Value::Null,
            };
            merge(base.entry(name.clone()).or_insert(empty), value, at)?;
        }
        at.members.pop();
    }
    Ok(())
}

/// Lists of named things merge by name; others are put in place.
fn merge_list(
    base: &mut Vec<Value>,
    layer: &[Value],
    at: &mut Path<'_>,
) -> Result<(), InvalidOverlay> {
    let member = at.members.last().cloned().unwrap_or_default();
    let has = |keys: &[&str]| {
        let first = keys.first().copied().unwrap_or_default();
        base.iter().chain(layer).all(|element| element.get(first).is_some())
    };
    let keys = NAMED.iter().filter(|(name, _)| *name == member).map(|(_, keys)| *keys);
    let Some(keys) = keys.into_iter().find(|keys| has(keys)) else {
        *base = layer.to_vec();
        return Ok(());
    };
    for element in layer {
        if element.get(DIRECTIVE).is_some() {
            let field = format!("{}.{DIRECTIVE}", at.members.join("."));
            return Err(InvalidOverlay::Directive { key: at.key.to_owned(), field });
        }
        // A member that is not written is whatever the other says.
        let same = |other: &&mut Value| {
            keys.iter().all(|key| match (other.get(key), element.get(key)) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            })
        };
        match base.iter_mut().find(same) {
            Some(below) => merge(below, element, at)?,
            None => base.push(element.clone()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(data: Value) -> Result<Overlay, InvalidOverlay> {
        let map = json!({"metadata": {"name": "o", "namespace": "n"}, "data": data});
        Overlay::read(&serde_json::from_value(map).unwrap())
    }

    fn laid(layer: &str, mut base: Value) -> Result<Value, InvalidOverlay> {
        let overlay = read(json!({"deployment": layer}))?;
        overlay.lay(Kind::Deployment, &mut base)?;
        Ok(base)
    }

    #[test]
    fn a_layer_merges_as_kubernetes_merges() {
        let base = || {
            json!({
                "metadata": {"name": "g", "labels": {"a": "1"}},
                "spec": {"template": {"spec": {
                    "terminationGracePeriodSeconds": 30,
                    "containers": [{
                        "name": "istio-proxy", "image": "i", "args": ["proxy", "router"],
                        "env": [{"name": "A", "value": "1"}],
                        "ports": [{"containerPort": 15020, "protocol": "TCP", "name": "metrics"}],
                    }],
                }}},
            })
        };
        let pointer = "/spec/template/spec/containers/0";
        let cases = [
            // layer, where, what then is there
            ("spec: {replicas: 3}", "/spec/replicas", json!(3)),
            ("metadata: {labels: {b: '2'}}", "/metadata/labels", json!({"a": "1", "b": "2"})),
            ("metadata: {annotations: {c: d}}", "/metadata/annotations", json!({"c": "d"})),
            (
                "spec: {template: {spec: {nodeSelector: {disk: ssd}}}}",
                "/spec/template/spec/nodeSelector",
                json!({"disk": "ssd"}),
            ),
            (
                "spec: {template: {spec: {terminationGracePeriodSeconds: null}}}",
                "/spec/template/spec/terminationGracePeriodSeconds",
                Value::Null,
            ),
            (
                "spec: {template: {spec: {containers: [{name: istio-proxy, env: [{name: B, value: '2'}]}]}}}",
                &format!("{pointer}/env"),
                json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]),
            ),
            (
                "spec: {template: {spec: {containers: [{name: istio-proxy, env: [{name: A, value: '3'}]}]}}}",
                &format!("{pointer}/env"),
                json!([{"name": "A", "value": "3"}]),
            ),
            (
                "spec: {template: {spec: {containers: [{name: istio-proxy, ports: [{containerPort: 15020, hostPort: 1}]}]}}}",
                &format!("{pointer}/ports"),
                json!([{"containerPort": 15020, "protocol": "TCP", "name": "metrics", "hostPort": 1}]),
            ),
            (
                "spec: {template: {spec: {containers: [{name: istio-proxy, args: [other]}]}}}",
                &format!("{pointer}/args"),
                json!(["other"]),
            ),
            (
                "spec: {template: {spec: {containers: [{name: beside, image: b}]}}}",
                "/spec/template/spec/containers/1",
                json!({"name": "beside", "image": "b"}),
            ),
        ];
        for (layer, at, want) in cases {
            let made = laid(layer, base()).unwrap();
            assert_eq!(made.pointer(at).cloned().unwrap_or_default(), want, "{layer}");
            assert_eq!(made.pointer(&format!("{pointer}/image")), Some(&json!("i")), "{layer}");
        }
    }

    #[test]
    fn what_is_not_understood_or_not_allowed_is_refused() {
        let refused = |layer: &str| {
            let base = json!({"metadata": {"name": "g"}, "spec": {"template": {"spec": {"containers": []}}}});
            laid(layer, base).unwrap_err().to_string()
        };
        let cases = [
            ("metadata: {name: other}", "metadata.name may not"),
            ("metadata: {ownerReferences: []}", "metadata.ownerReferences may not"),
            ("metadata: {labels: {gateway.istio.io/managed: x}}", "managed may not"),
            ("spec: {selector: {matchLabels: {a: b}}}", "spec.selector may not"),
            (
                "spec: {template: {metadata: {labels: {tier: edge}}}}",
                "spec.template.metadata.labels may not",
            ),
            ("status: {replicas: 1}", "status may not"),
            ("spec: {template: [1]}", "spec.template has another form"),
            ("spec: {template: {spec: {$patch: replace}}}", "directives"),
            ("spec: {strategy: {$retainKeys: [type]}}", "directives"),
            ("spec: {template: {spec: {containers: [{name: a, $patch: delete}]}}}", "directives"),
            ("[1]", "members of an object"),
            ("a: b: c", "no YAML"),
        ];
        for (layer, why) in cases {
            let error = refused(layer);
            assert!(error.starts_with("deployment: ") && error.contains(why), "{layer}: {error}");
        }
        let unknown = read(json!({"daemonSet": "{}"})).unwrap_err();
        assert_eq!(unknown, InvalidOverlay::Key("daemonSet".into()));
        assert!(read(json!({})).is_ok_and(|overlay| !overlay.has(Kind::Service)));
        assert!(read(json!({"serviceAccount": "imagePullSecrets: [{name: r}]"})).is_ok());
    }
}
