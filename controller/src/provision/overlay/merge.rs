// SPDX-License-Identifier: Apache-2.0

//! Lays one value over another, as Kubernetes merges. Pure.
//!
//! Maps merge by member, lists of named things by name; other lists are put in place. `null`
//! takes a member away, `$patch: delete` a member or an element, `$patch: replace` what lies
//! below.
//!
//! Rule: strategic merge patch; lists of named things are those with a `patchMergeKey` in
//! Kubernetes `api/{core,apps}/v1/types.go`.

use serde_json::{Map, Value};

use super::Fault;

/// Lists of named things, by their member, and by what their elements are told apart.
const NAMED: [(&str, &[&str]); 12] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("secrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    // Of a container, then of a Service.
    ("ports", &["containerPort", "protocol"]),
    ("ports", &["port", "protocol"]),
];
/// The member that says how what it stands in merges.
const DIRECTIVE: &str = "$patch";

/// Lays `layer`, the ConfigMap's value under `key`, over `base`.
///
/// # Errors
///
/// [`Fault::Shape`] and [`Fault::Directive`].
pub(super) fn merge(base: &mut Value, layer: &Value, key: &'static str) -> Result<(), Fault> {
    lay(base, layer, &mut Path { key, members: Vec::new() })
}

/// Where a merge is.
struct Path {
    key: &'static str,
    members: Vec<String>,
}

impl Path {
    fn field(&self) -> String {
        self.members.join(".")
    }

    fn shape(&self) -> Fault {
        Fault::Shape { key: self.key, field: self.field() }
    }

    fn directive(&self, name: &str) -> Fault {
        let members = self.members.iter().map(String::as_str);
        let field = members.chain([name]).collect::<Vec<_>>().join(".");
        Fault::Directive { key: self.key, field }
    }
}

fn lay(base: &mut Value, layer: &Value, at: &mut Path) -> Result<(), Fault> {
    match (&mut *base, layer) {
        (Value::Object(base), Value::Object(layer)) => members(base, layer, at),
        (Value::Array(base), Value::Array(layer)) => list(base, layer, at),
        (Value::Null, Value::Object(_) | Value::Array(_)) => {
            *base = fresh(layer, at)?;
            Ok(())
        }
        (Value::Object(_) | Value::Array(_), _) | (_, Value::Object(_) | Value::Array(_)) => {
            Err(at.shape())
        }
        _ => {
            *base = layer.clone();
            Ok(())
        }
    }
}

/// A layer under which nothing lies: what it takes away is not there.
fn fresh(layer: &Value, at: &mut Path) -> Result<Value, Fault> {
    let mut made = match layer {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            return Ok(layer.clone());
        }
    };
    lay(&mut made, layer, at)?;
    Ok(made)
}

fn members(
    base: &mut Map<String, Value>,
    layer: &Map<String, Value>,
    at: &mut Path,
) -> Result<(), Fault> {
    match layer.get(DIRECTIVE).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => base.clear(),
        Some(_) => return Err(at.directive(DIRECTIVE)),
    }
    for (name, value) in layer.iter().filter(|(name, _)| *name != DIRECTIVE) {
        if name.starts_with('$') {
            return Err(at.directive(name));
        }
        if value.is_null() || is_deleted(value) {
            base.remove(name);
            continue;
        }
        at.members.push(name.clone());
        lay(base.entry(name.clone()).or_insert(Value::Null), value, at)?;
        at.members.pop();
    }
    Ok(())
}

fn is_deleted(value: &Value) -> bool {
    value.get(DIRECTIVE).is_some_and(|directive| directive == "delete")
}

/// Lists of named things merge by name; others are put in place.
fn list(base: &mut Vec<Value>, layer: &[Value], at: &mut Path) -> Result<(), Fault> {
    let is_replace = |element: &&Value| {
        let members = element.as_object();
        members
            .is_some_and(|all| all.len() == 1 && element.get(DIRECTIVE) == Some(&"replace".into()))
    };
    let elements: Vec<&Value> = layer.iter().filter(|element| !is_replace(element)).collect();
    let Some(keys) = keys(base, &elements, at) else {
        base.clear();
        for element in elements {
            if is_deleted(element) {
                return Err(at.directive(DIRECTIVE));
            }
            base.push(fresh(element, at)?);
        }
        return Ok(());
    };
    if elements.len() < layer.len() {
        base.clear();
    }
    for element in elements {
        // A member that is not written is whatever the other says.
        let same = |other: &Value| {
            keys.iter().all(|key| match (other.get(key), element.get(key)) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            })
        };
        if is_deleted(element) {
            base.retain(|other| !same(other));
        } else if let Some(below) = base.iter_mut().find(|other| same(other)) {
            lay(below, element, at)?;
        } else {
            base.push(fresh(element, at)?);
        }
    }
    Ok(())
}

/// What the elements of the list are told apart by, if they are named things.
fn keys(base: &[Value], elements: &[&Value], at: &Path) -> Option<&'static [&'static str]> {
    let member = at.members.last()?;
    let all_have = |keys: &&[&str]| {
        let all = base.iter().chain(elements.iter().copied());
        keys.first().is_some_and(|first| all.into_iter().all(|one| one.get(first).is_some()))
    };
    let lists = NAMED.iter().filter(|(name, _)| name == member).map(|(_, keys)| *keys);
    lists.into_iter().find(all_have)
}
