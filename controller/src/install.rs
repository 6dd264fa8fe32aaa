// SPDX-License-Identifier: Apache-2.0

//! What an installation consists of: the chart below `deploy`, filled in.
//!
//! Owns: the list of the chart's files, of which Helm and `waymark install` make the same objects
//! ([`values`] knows which values there are, [`template`] the templates' few words); and the
//! definitions of Istio's kinds ([`crds`]). Pure. [`cluster`] applies, [`owned`] knows what was
//! applied before, [`version`] which version may follow which.
//!
//! Start at [`objects`].

pub mod cluster;
pub mod crds;
pub mod owned;
mod template;
mod values;
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
    /// A file of values is no YAML, or no mapping.
    #[error("{0}")]
    File(String),
    /// A path that the chart's values do not have.
    #[error("there is no value {0:?}")]
    NoValue(String),
    /// A value that is not of its type, or out of its bounds.
    #[error("{path}: {message}")]
    Value {
        /// Its path.
        path: String,
        /// What is wrong.
        message: String,
    },
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

/// The values of a file, YAML as Helm takes it, each as `path=value`.
///
/// # Errors
///
/// [`InstallError::File`], and those of values that the chart does not take.
pub fn sets_of_file(text: &str) -> Result<Vec<String>, InstallError> {
    values::of_file(text)
}

/// All objects of an installation in `namespace`, in the order in which they are applied.
///
/// `sets` are values as `path=value`, over those of the chart.
///
/// # Errors
///
/// See [`InstallError`].
pub fn objects(namespace: &str, sets: &[String]) -> Result<Vec<Value>, InstallError> {
    let values = values::with(sets)?;
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
    })];
    all.extend(crds::all());
    for (file, text) in TEMPLATES {
        let text = template::render(file, text, namespace, &values)?;
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

#[cfg(test)]
mod tests;
