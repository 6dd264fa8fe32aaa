// SPDX-License-Identifier: Apache-2.0

//! Which namespaces the mesh looks at. Pure.
//!
//! Objects of other namespaces are left out: nothing is made of them, no proxy hears of them,
//! their pods stay outside. Those of the mesh itself are always looked at: without them no
//! tunnel would get a certificate.
//!
//! Rule: `meshConfig.discoverySelectors` of Istio: label selectors, of which one must select
//! the namespace; none selects all.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Label that every namespace of a cluster carries, written or not.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Why selectors are refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSelectors {
    /// They are no list of label selectors.
    #[error("wanted a JSON list of label selectors (matchLabels, matchExpressions)")]
    Form(#[source] serde_json::Error),
    /// An operator is not known.
    #[error(
        "operator {operator:?} of key {key:?} is not known; wanted In, NotIn, Exists or DoesNotExist"
    )]
    Operator {
        /// The key it is about.
        key: String,
        /// As written.
        operator: String,
    },
    /// Values do not fit the operator.
    #[error("operator {operator:?} of key {key:?} wants {wanted}")]
    Values {
        /// The key it is about.
        key: String,
        /// As written.
        operator: String,
        /// How many it wants.
        wanted: &'static str,
    },
}

/// Selectors of namespaces, from a JSON list as Istio writes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selectors {
    any_of: Arc<[LabelSelector]>,
    always: Arc<BTreeSet<String>>,
}

impl FromStr for Selectors {
    type Err = InvalidSelectors;

    fn from_str(text: &str) -> Result<Self, InvalidSelectors> {
        let all: Vec<serde_json::Value> =
            serde_json::from_str(text).map_err(InvalidSelectors::Form)?;
        let all: Result<Vec<LabelSelector>, InvalidSelectors> = all.into_iter().map(read).collect();
        Ok(Self { any_of: all?.into(), always: Arc::default() })
    }
}

/// One selector; a misspelt member would select everything.
fn read(value: serde_json::Value) -> Result<LabelSelector, InvalidSelectors> {
    let known = ["matchLabels", "matchExpressions"];
    let unknown = value.as_object().into_iter().flat_map(|fields| fields.keys());
    if let Some(unknown) = unknown.into_iter().find(|name| !known.contains(&name.as_str())) {
        let error = serde::de::Error::custom(format!("unknown member {unknown:?}"));
        return Err(InvalidSelectors::Form(error));
    }
    let selector: LabelSelector = serde_json::from_value(value).map_err(InvalidSelectors::Form)?;
    for expression in selector.match_expressions.iter().flatten() {
        let (key, operator) = (expression.key.clone(), expression.operator.clone());
        let some = expression.values.as_ref().is_some_and(|values| !values.is_empty());
        match (operator.as_str(), some) {
            ("In" | "NotIn", true) | ("Exists" | "DoesNotExist", false) => {}
            ("In" | "NotIn", false) => {
                return Err(InvalidSelectors::Values { key, operator, wanted: "values" });
            }
            ("Exists" | "DoesNotExist", true) => {
                return Err(InvalidSelectors::Values { key, operator, wanted: "no values" });
            }
            _ => return Err(InvalidSelectors::Operator { key, operator }),
        }
    }
    Ok(selector)
}

impl Selectors {
    /// The same, and these namespaces always.
    #[must_use]
    pub fn and_always(self, namespaces: impl IntoIterator<Item = String>) -> Self {
        Self { always: Arc::new(namespaces.into_iter().collect()), ..self }
    }

    /// Tells whether every namespace is looked at.
    pub fn is_all(&self) -> bool {
        self.any_of.is_empty()
    }

    /// Tells whether the namespace with these labels is looked at.
    pub fn take(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        if self.is_all() || self.always.contains(namespace) {
            return true;
        }
        let mut labels = labels.cloned().unwrap_or_default();
        labels.entry(NAME_LABEL.to_owned()).or_insert_with(|| namespace.to_owned());
        self.any_of.iter().any(|selector| selects(selector, &labels))
    }
}

/// Tells whether a label selector selects `labels`; an operator that is not known selects nothing.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let wanted = selector.match_labels.iter().flatten();
    let all_labels = wanted.into_iter().all(|(key, value)| labels.get(key) == Some(value));
    let mut expressions = selector.match_expressions.iter().flatten();
    all_labels
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let listed = || {
                let values = expression.values.as_deref().unwrap_or_default();
                value.is_some_and(|value| values.contains(value))
            };
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Labels<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn a_namespace_is_looked_at_if_one_selector_selects_it() {
        let text = r#"[
            {"matchLabels": {"mesh": "yes"}},
            {"matchExpressions": [
                {"key": "team", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"}]},
            {"matchLabels": {"kubernetes.io/metadata.name": "by-name"}}
        ]"#;
        let selectors = text.parse::<Selectors>().unwrap().and_always(["mesh".to_owned()]);
        let cases: [(&str, Labels<'_>, bool); 8] = [
            ("n", &[("mesh", "yes")], true),
            ("n", &[("mesh", "no")], false),
            ("n", &[("team", "b")], true),
            ("n", &[("team", "b"), ("old", "")], false),
            ("n", &[("team", "c")], false),
            ("n", &[], false),
            ("by-name", &[], true),
            ("mesh", &[], true),
        ];
        for (namespace, labels, want) in cases {
            let labels: BTreeMap<String, String> =
                labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            assert_eq!(selectors.take(namespace, Some(&labels)), want, "{namespace} {labels:?}");
        }
        assert!("[]".parse::<Selectors>().unwrap().take("any", None), "none selects all");
        assert!("[{}]".parse::<Selectors>().unwrap().take("any", None), "so does an empty one");
    }

    #[test]
    fn selectors_that_are_not_understood_are_refused() {
        let bad = [
            ("{}", "wanted a JSON list"),
            (r#"[{"matchlabels": {"a": "b"}}]"#, "wanted a JSON list"),
            (r#"[{"matchLabels": {"a": 1}}]"#, "wanted a JSON list"),
            (r#"[{"matchExpressions": [{"key": "a", "operator": "Is"}]}]"#, "\"Is\" of key \"a\""),
            (r#"[{"matchExpressions": [{"key": "a", "operator": "In"}]}]"#, "wants values"),
            (
                r#"[{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}]"#,
                "wants no values",
            ),
        ];
        for (text, why) in bad {
            let error = text.parse::<Selectors>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
