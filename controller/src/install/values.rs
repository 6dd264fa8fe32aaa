// SPDX-License-Identifier: Apache-2.0

//! Values of the chart, and those that are set over them. Pure.
//!
//! Owns: what a path names, and what a value may be, both by the schema that Helm judges them
//! by, too. Rule: JSON Schema draft 7, those of its words that the chart's schema is made of.
//!
//! Start at [`with`].

use serde_json::{Map, Value};

use super::{InstallError, VALUES, parse};
use crate::source::document;

const SCHEMA: &str = include_str!("../../deploy/waymark/values.schema.json");

/// The chart's values with `sets`, each `path=value`, over them.
///
/// A dot in a name is written `\.`; `null` takes a value away, as for Helm.
///
/// # Errors
///
/// [`InstallError::Set`], [`InstallError::NoValue`] and [`InstallError::Value`].
pub(super) fn with(sets: &[String]) -> Result<Value, InstallError> {
    let whole: Value = parse("values.schema.json", SCHEMA)?;
    let schema = Schema { whole: &whole, at: &whole };
    let mut values: Value = parse("values.yaml", VALUES)?;
    for set in sets {
        let (path, text) = set.split_once('=').ok_or_else(|| InstallError::Set(set.clone()))?;
        put(&mut values, schema, path, text)
            .ok_or_else(|| InstallError::NoValue(path.to_owned()))?;
    }
    schema.check(&values, "")?;
    Ok(values)
}

/// The values of a file, YAML as Helm takes it, each as `path=value`.
///
/// Members of a mapping go over those of the chart one by one, and a list over the whole list.
///
/// # Errors
///
/// [`InstallError::File`]; and those of [`with`], so that what is wrong is told of this file.
pub(super) fn of_file(text: &str) -> Result<Vec<String>, InstallError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        InstallError::File(format!("line {line}: {}", document::message(&error)))
    })?;
    let mut sets = Vec::new();
    if let Some(members) = value.as_object() {
        list(members, "", &mut sets);
    } else if !value.is_null() {
        return Err(InstallError::File(format!("wanted a mapping of values, not {value}")));
    }
    with(&sets)?;
    Ok(sets)
}

fn list(members: &Map<String, Value>, path: &str, sets: &mut Vec<String>) {
    for (name, value) in members {
        let path = format!("{path}{}", name.replace('.', "\\."));
        match value.as_object() {
            Some(members) => list(members, &format!("{path}."), sets),
            // JSON is YAML, and says what is text.
            None => sets.push(format!("{path}={value}")),
        }
    }
}

/// Puts a value into its place; none if there is no such place.
fn put(values: &mut Value, schema: Schema<'_>, path: &str, text: &str) -> Option<()> {
    let (mut schema, mut at) = (schema, values);
    let names = names(path);
    let (last, parents) = names.split_last()?;
    for name in parents {
        schema = schema.member(name)?;
        at = at.as_object_mut()?.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
    }
    schema = schema.member(last)?;
    let members = at.as_object_mut()?;
    let value = schema.read(text);
    if value.is_null() {
        members.remove(last);
    } else {
        members.insert(last.clone(), value);
    }
    Some(())
}

/// The names of a path: those between dots that no `\` stands before.
fn names(path: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut goes_on = false;
    for part in path.split('.') {
        let (part, escaped) = match part.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (part, false),
        };
        match names.last_mut().filter(|_| goes_on) {
            Some(name) => {
                name.push('.');
                name.push_str(part);
            }
            None => names.push(part.to_owned()),
        }
        goes_on = escaped;
    }
    names
}

/// A place in the schema.
#[derive(Clone, Copy)]
struct Schema<'a> {
    whole: &'a Value,
    at: &'a Value,
}

impl<'a> Schema<'a> {
    /// The schema of a member; none if there may not be one.
    fn member(self, name: &str) -> Option<Self> {
        let here = self.resolved();
        if !here.takes("object") {
            return None;
        }
        let named = here.at.get("properties").and_then(|all| all.get(name));
        match named.or_else(|| here.at.get("additionalProperties")) {
            Some(Value::Bool(false)) => None,
            Some(at) => Some(Self { at, ..self }),
            None => Some(Self { at: &Value::Bool(true), ..self }),
        }
    }

    /// What stands for it.
    fn resolved(self) -> Self {
        let pointer = self.at.get("$ref").and_then(Value::as_str);
        let at = pointer.and_then(|pointer| self.whole.pointer(pointer.trim_start_matches('#')));
        at.map_or(self, |at| Self { at, ..self }.resolved())
    }

    /// The types that it takes; none takes each.
    fn types(self) -> Vec<&'a str> {
        match self.at.get("type") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            other => other.and_then(Value::as_str).into_iter().collect(),
        }
    }

    fn takes(self, kind: &str) -> bool {
        let types = self.types();
        types.is_empty() || types.contains(&kind)
    }

    /// A value from the command line. What is no YAML is text, and so is what looks like something
    /// else where text is wanted: a tag `1.10` is no number. Whole numbers are, as for Helm.
    fn read(self, text: &str) -> Value {
        let types = self.resolved().types();
        let is_text = |value: &Value| match value {
            Value::Number(number) => {
                types.contains(&"string") && !(number.is_i64() && types.contains(&"number"))
            }
            Value::Bool(_) => types.contains(&"string") && !types.contains(&"boolean"),
            Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => false,
        };
        match serde_saphyr::from_str::<Value>(text) {
            Ok(value) if !text.is_empty() && !is_text(&value) => value,
            Ok(_) | Err(_) => text.into(),
        }
    }

    /// Tells whether a value is as the schema says.
    fn check(self, value: &Value, path: &str) -> Result<(), InstallError> {
        let here = self.resolved();
        let refused = |wanted: String| {
            let message = format!("wanted {wanted}, not {value}");
            Err(InstallError::Value { path: path.to_owned(), message })
        };
        let types = here.types();
        if !types.is_empty() && !types.iter().any(|kind| is_of(value, kind)) {
            return refused(types.join(" or "));
        }
        if let Some(all) = here.at.get("enum").and_then(Value::as_array)
            && !all.contains(value)
        {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            return refused(format!("one of {}", all.join(", ")));
        }
        let bound = |name: &str| here.at.get(name).and_then(Value::as_f64);
        if let Some(number) = value.as_f64() {
            if let Some(least) = bound("minimum").filter(|least| number < *least) {
                return refused(format!("{least} or more"));
            }
            if let Some(most) = bound("maximum").filter(|most| number > *most) {
                return refused(format!("{most} or less"));
            }
        }
        if let Some(members) = value.as_object() {
            here.check_members(members, path)?;
        }
        if let (Some(elements), Some(at)) = (value.as_array(), here.at.get("items")) {
            for (index, element) in elements.iter().enumerate() {
                Self { at, ..here }.check(element, &format!("{path}[{index}]"))?;
            }
        }
        Ok(())
    }

    fn check_members(self, members: &Map<String, Value>, path: &str) -> Result<(), InstallError> {
        let below = |name: &str| match path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        for (name, value) in members {
            let path = below(name);
            match self.member(name) {
                Some(member) => member.check(value, &path)?,
                None => return Err(InstallError::NoValue(path)),
            }
        }
        let needed = self.at.get("required").and_then(Value::as_array).into_iter().flatten();
        for name in needed.filter_map(Value::as_str) {
            if !members.contains_key(name) {
                let message = "is needed, and may not be taken away".to_owned();
                return Err(InstallError::Value { path: below(name), message });
            }
        }
        Ok(())
    }
}

/// Tells whether a value is of a type of JSON Schema.
fn is_of(value: &Value, kind: &str) -> bool {
    match value {
        Value::Null => kind == "null",
        Value::Bool(_) => kind == "boolean",
        Value::Number(number) => match kind {
            "integer" => number.is_i64() || number.is_u64(),
            kind => kind == "number",
        },
        Value::String(_) => kind == "string",
        Value::Array(_) => kind == "array",
        Value::Object(_) => kind == "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(sets: &[&str]) -> Result<Value, InstallError> {
        with(&sets.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    /// Every object of the values whose members the schema names, as its path.
    fn closed(values: &Value, schema: Schema<'_>, path: &str, found: &mut Vec<String>) {
        let here = schema.resolved();
        let Some(members) = values.as_object() else { return };
        let known = here.at.get("properties").and_then(Value::as_object);
        let Some(known) = known else { return };
        assert_eq!(here.at.get("additionalProperties"), Some(&json!(false)), "{path}");
        found.push(path.to_owned());
        // Of Kubernetes' own objects the values need not tell every member.
        let own = !["resources", "affinity"].iter().any(|name| path.ends_with(name));
        for name in known.keys().filter(|_| own) {
            assert!(members.contains_key(name), "values.yaml does not tell of {path}.{name}");
        }
        for (name, value) in members {
            closed(value, schema.member(name).unwrap(), &format!("{path}.{name}"), found);
        }
    }

    #[test]
    fn every_value_is_in_the_schema_and_no_other_is_taken() {
        let whole: Value = parse("values.schema.json", SCHEMA).unwrap();
        let schema = Schema { whole: &whole, at: &whole };
        let values = set(&[]).unwrap();
        let mut found = Vec::new();
        closed(&values, schema, "", &mut found);
        assert!(found.len() > 8, "{found:?}");
        for path in found {
            let path = format!("{path}.other").trim_start_matches('.').to_owned();
            let refused = set(&[&format!("{path}=1")]);
            assert_eq!(refused, Err(InstallError::NoValue(path)));
        }
    }

    #[test]
    fn the_schema_has_no_word_that_is_not_understood_here() {
        const WORDS: [&str; 12] = [
            "$ref",
            "$schema",
            "additionalProperties",
            "definitions",
            "enum",
            "items",
            "maximum",
            "minimum",
            "properties",
            "required",
            "title",
            "type",
        ];
        fn walk(schema: &Value) {
            for (word, value) in schema.as_object().into_iter().flatten() {
                assert!(WORDS.contains(&word.as_str()), "{word}");
                match word.as_str() {
                    "properties" | "definitions" => {
                        value.as_object().unwrap().values().for_each(walk);
                    }
                    "items" | "additionalProperties" => walk(value),
                    _ => {}
                }
            }
        }
        walk(&parse("values.schema.json", SCHEMA).unwrap());
    }

    #[test]
    fn values_are_put_where_their_path_leads() {
        let values = set(&[
            r"global.waypoint.nodeSelector.kubernetes\.io/arch=arm64",
            "global.waypoint.resources.limits.memory=1Gi",
            "global.proxy.resources.requests.cpu=2",
            "global.proxy.affinity=null",
            "global.tag=1.10",
            "global.multiCluster.clusterName=",
            "meshConfig.discoverySelectors=[{matchLabels: {mesh: \"on\"}}]",
        ])
        .unwrap();
        for (pointer, want) in [
            ("/global/waypoint/nodeSelector", json!({"kubernetes.io/arch": "arm64"})),
            ("/global/waypoint/resources/limits", json!({"memory": "1Gi"})),
            ("/global/waypoint/resources/requests/cpu", json!("100m")),
            ("/global/proxy/resources/requests/cpu", json!(2)),
            ("/global/tag", json!("1.10")),
            ("/global/multiCluster/clusterName", json!("")),
            ("/meshConfig/discoverySelectors/0/matchLabels/mesh", json!("on")),
        ] {
            assert_eq!(values.pointer(pointer), Some(&want), "{pointer}");
        }
        assert_eq!(values.pointer("/global/proxy/affinity"), None);
    }

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let text = r#"
global:
  tag: "1.10"
  waypoint:
    nodeSelector: {kubernetes.io/arch: arm64}
    resources: {limits: {memory: 1Gi}}
  multiCluster: {clusterName: ""}
  proxy: {}
pilot: {replicaCount: 3, secretNames: [a, b]}
"#;
        let mut sets = of_file(text).unwrap();
        sets.push("pilot.replicaCount=4".to_owned());
        let values = with(&sets).unwrap();
        for (pointer, want) in [
            ("/global/tag", json!("1.10")),
            ("/global/waypoint/nodeSelector", json!({"kubernetes.io/arch": "arm64"})),
            ("/global/waypoint/resources/limits/memory", json!("1Gi")),
            ("/global/waypoint/resources/requests/cpu", json!("100m")),
            ("/global/multiCluster/clusterName", json!("")),
            ("/global/proxy/resources/requests/cpu", json!("100m")),
            ("/pilot/replicaCount", json!(4)),
            ("/pilot/secretNames", json!(["a", "b"])),
        ] {
            assert_eq!(values.pointer(pointer), Some(&want), "{pointer}");
        }
        assert_eq!(of_file("# nothing\n"), Ok(Vec::new()));
        let unknown = InstallError::NoValue("pilot.replicas".to_owned());
        assert_eq!(of_file("pilot: {replicas: 2}"), Err(unknown));
        let list = InstallError::File("wanted a mapping of values, not [1]".to_owned());
        assert_eq!(of_file("[1]"), Err(list));
        let Err(InstallError::File(broken)) = of_file("a: 1\nb: [") else { panic!("no YAML") };
        assert!(broken.starts_with("line "), "{broken}");
    }

    #[test]
    fn values_of_another_type_are_refused_with_what_was_wanted() {
        for (text, path, want) in [
            ("pilot.replicaCount=many", "pilot.replicaCount", "wanted integer, not \"many\""),
            ("pilot.replicaCount=-1", "pilot.replicaCount", "wanted 0 or more, not -1"),
            ("cni.healthPort=70000", "cni.healthPort", "wanted 65535 or less, not 70000"),
            ("pilot.taint=true", "pilot.taint", "wanted object, not true"),
            (
                "global.imagePullPolicy=Sometimes",
                "global.imagePullPolicy",
                r#"wanted one of "", "Always", "IfNotPresent", "Never", not "Sometimes""#,
            ),
            ("pilot.secretNames=[a, 1]", "pilot.secretNames[1]", "wanted string, not 1"),
            ("global.hub=null", "global.hub", "is needed, and may not be taken away"),
        ] {
            let refused = InstallError::Value { path: path.into(), message: want.into() };
            assert_eq!(set(&[text]), Err(refused), "{text}");
        }
    }
}
