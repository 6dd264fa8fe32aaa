// SPDX-License-Identifier: Apache-2.0

//! What an installation consists of: the chart below `deploy`, filled in.
//!
//! Owns: the templates' few words (`{{ .Values.path }}`, `{{ toJson .Values.path }}`,
//! `{{ .Release.Namespace }}`, and `{{- if .Values.path }}` to `{{- end }}` on lines of their
//! own), so that Helm and `waymark install` make the same objects of
//! the same files; and the definitions of Istio's kinds ([`crds`]). Pure. [`cluster`] applies,
//! [`owned`] knows what was applied before, [`version`] which version may follow which.
//!
//! Start at [`objects`].

pub mod cluster;
pub mod crds;
pub mod owned;
pub mod version;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Where images are found unless told otherwise.
pub const HUB: &str = "docker.io/waymark";
/// Their tag.
pub const TAG: &str = env!("CARGO_PKG_VERSION");
/// Namespace of an installation unless told otherwise.
pub const NAMESPACE: &str = "istio-system";

const VALUES: &str = include_str!("../deploy/waymark/values.yaml");
const TEMPLATES: [(&str, &str); 5] = [
    ("accounts.yaml", include_str!("../deploy/waymark/templates/accounts.yaml")),
    ("admission.yaml", include_str!("../deploy/waymark/templates/admission.yaml")),
    ("classes.yaml", include_str!("../deploy/waymark/templates/classes.yaml")),
    ("controller.yaml", include_str!("../deploy/waymark/templates/controller.yaml")),
    ("node.yaml", include_str!("../deploy/waymark/templates/node.yaml")),
];

/// Why there are no objects.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum InstallError {
    /// A `--set` without `=`.
    #[error("{0:?} is not PATH=VALUE")]
    Set(String),
    /// A path that the chart's values do not have.
    #[error("there is no value {0:?}")]
    NoValue(String),
    /// A template asks for something unknown.
    #[error("{file}: {word:?} is not understood")]
    Word {
        /// The template.
        file: &'static str,
        /// What stands between the braces.
        word: String,
    },
    /// A file of the chart is no YAML.
    #[error("{file}: {message}")]
    Yaml {
        /// The file.
        file: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// All objects of an installation in `namespace`, in the order in which they are applied.
///
/// `sets` are values as `path=value`, over those of the chart.
///
/// # Errors
///
/// See [`InstallError`].
pub fn objects(namespace: &str, sets: &[String]) -> Result<Vec<Value>, InstallError> {
    let mut values: Value = parse("values.yaml", VALUES)?;
    for set in sets {
        let (path, value) = set.split_once('=').ok_or_else(|| InstallError::Set(set.clone()))?;
        let pointer = format!("/{}", path.replace('.', "/"));
        let known = values.pointer_mut(&pointer);
        // Text that is no YAML is text.
        *known.ok_or_else(|| InstallError::NoValue(path.to_owned()))? =
            serde_saphyr::from_str(value).unwrap_or_else(|_| value.into());
    }
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
    })];
    all.extend(crds::all());
    for (file, template) in TEMPLATES {
        let text = fill(file, &chosen(file, template, &values)?, namespace, &values)?;
        for document in text.split("\n---\n") {
            // One whose condition does not hold is empty.
            all.extend(parse::<Option<Value>>(file, document)?);
        }
    }
    Ok(all)
}

fn parse<T: DeserializeOwned>(file: &'static str, text: &str) -> Result<T, InstallError> {
    serde_saphyr::from_str(text)
        .map_err(|error| InstallError::Yaml { file, message: error.without_snippet().to_string() })
}

/// The template without the lines whose condition does not hold.
fn chosen(file: &'static str, template: &str, values: &Value) -> Result<String, InstallError> {
    let mut text = String::with_capacity(template.len());
    let mut holds = None;
    for line in template.lines() {
        let unknown = || InstallError::Word { file, word: line.trim().to_owned() };
        if let Some(condition) = line.trim().strip_prefix("{{- if ") {
            let path = condition.strip_prefix(".Values.").and_then(|rest| rest.strip_suffix(" }}"));
            let path = path.filter(|_| holds.is_none()).ok_or_else(unknown)?;
            let value = values.pointer(&format!("/{}", path.replace('.', "/")));
            let value = value.ok_or_else(|| InstallError::NoValue(path.to_owned()))?;
            holds = Some(is_true(value));
        } else if line.trim() == "{{- end }}" {
            holds.take().ok_or_else(unknown)?;
        } else if holds != Some(false) {
            text.push_str(line);
            text.push('\n');
        }
    }
    match holds {
        None => Ok(text),
        Some(_) => Err(InstallError::Word { file, word: "{{- if }} without its end".to_owned() }),
    }
}

/// What a condition takes for true.
///
/// Rule: truth of Go's `text/template`.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// The template with its words replaced.
fn fill(
    file: &'static str,
    template: &str,
    namespace: &str,
    values: &Value,
) -> Result<String, InstallError> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{ ") {
        text.push_str(before);
        let unknown = |word: &str| InstallError::Word { file, word: word.to_owned() };
        let (word, after) = after.split_once(" }}").ok_or_else(|| unknown(after))?;
        rest = after;
        let (path, as_json) = match word.strip_prefix("toJson ") {
            Some(path) => (path, true),
            None => (word, false),
        };
        if path == ".Release.Namespace" {
            text.push_str(namespace);
            continue;
        }
        let path = path.strip_prefix(".Values.").ok_or_else(|| unknown(word))?;
        let value = values.pointer(&format!("/{}", path.replace('.', "/")));
        let value = value.ok_or_else(|| InstallError::NoValue(path.to_owned()))?;
        match (value, as_json) {
            (Value::String(value), false) => text.push_str(value),
            (Value::Object(_) | Value::Array(_), false) => return Err(unknown(word)),
            (value, _) => text.push_str(&value.to_string()),
        }
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests;
