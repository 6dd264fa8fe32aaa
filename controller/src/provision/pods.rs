// SPDX-License-Identifier: Apache-2.0

//! What the pods of all Gateways are made with, below the parameters of classes and Gateways. Pure.
//!
//! Rule: `global.{imagePullPolicy,imagePullSecrets,proxy,waypoint}` of Istio's charts; every
//! other layer goes over it.
//!
//! Start at [`Pods`].

use std::collections::BTreeMap;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{
    Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::overlay::form::{self, Misfit};
use crate::api::Role;

/// What pods of Gateways are made with; by default nothing but what they need.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Pods {
    image_pull_policy: PullPolicy,
    /// Names of Secrets in the namespace of each Gateway.
    image_pull_secrets: Option<Vec<String>>,
    log_as_json: bool,
    ingress: Layer,
    waypoint: Layer,
}

/// What holds for Gateways of one role.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
struct Layer {
    /// Of the container of the proxy.
    resources: Option<ResourceRequirements>,
    affinity: Option<Affinity>,
    topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    node_selector: Option<BTreeMap<String, String>>,
    tolerations: Option<Vec<Toleration>>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
enum PullPolicy {
    /// Kubernetes decides by the tag.
    #[default]
    #[serde(rename = "")]
    ByTag,
    Always,
    IfNotPresent,
    Never,
}

/// A text that does not say what pods are made with.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPods {
    /// It is no JSON.
    #[error("no JSON: {0}")]
    Json(serde_json::Error),
    /// A member is unknown, or its value not of its type.
    #[error("{0}")]
    Member(String),
}

impl FromStr for Pods {
    type Err = InvalidPods;

    fn from_str(text: &str) -> Result<Self, InvalidPods> {
        let mut value: Value = serde_json::from_str(text).map_err(InvalidPods::Json)?;
        form::write_quantities(&mut value);
        form::strictly(&value).map_err(|misfit: Misfit| InvalidPods::Member(misfit.to_string()))
    }
}

impl Pods {
    /// Members of the pod of a Gateway of that role.
    pub fn of_pod(&self, role: Role) -> impl Iterator<Item = (String, Value)> {
        let layer = self.layer(role);
        let secrets = self
            .image_pull_secrets
            .as_ref()
            .map(|names| names.iter().map(|name| json!({"name": name})).collect::<Vec<Value>>());
        let members = [
            member("imagePullSecrets", secrets.as_ref()),
            member("affinity", layer.affinity.as_ref()),
            member("topologySpreadConstraints", layer.topology_spread_constraints.as_ref()),
            member("nodeSelector", layer.node_selector.as_ref()),
            member("tolerations", layer.tolerations.as_ref()),
        ];
        members.into_iter().flatten()
    }

    /// Members of its proxy's container.
    pub fn of_container(&self, role: Role) -> impl Iterator<Item = (String, Value)> {
        let members = [
            member("imagePullPolicy", Some(&self.image_pull_policy)),
            member("resources", self.layer(role).resources.as_ref()),
        ];
        members.into_iter().flatten()
    }

    /// Tells whether their proxies write JSON, of requests too unless a Gateway says otherwise.
    pub fn log_as_json(&self) -> bool {
        self.log_as_json
    }

    fn layer(&self, role: Role) -> &Layer {
        match role {
            Role::Ingress => &self.ingress,
            Role::Waypoint => &self.waypoint,
        }
    }
}

/// A member, unless nothing is said of it.
fn member<T>(name: &str, value: Option<&T>) -> Option<(String, Value)>
where
    T: Default + PartialEq + Serialize,
{
    let value = value.filter(|value| **value != T::default())?;
    Some((name.to_owned(), serde_json::to_value(value).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_field_of_pods_is_refused_by_its_name() {
        let refused = |text: &str| text.parse::<Pods>().unwrap_err().to_string();
        for (text, want) in [
            (r#"{"edge": {}}"#, "edge: there is no such field"),
            (r#"{"waypoint": {"afinity": {}}}"#, "waypoint.afinity: there is no such field"),
            (
                r#"{"ingress": {"affinity": {"nodeAffinty": {}}}}"#,
                "ingress.affinity.nodeAffinty: there is no such field",
            ),
            (
                r#"{"ingress": {"tolerations": [{"key": "a", "operater": "Exists"}]}}"#,
                "ingress.tolerations.0.operater: there is no such field",
            ),
        ] {
            assert_eq!(refused(text), want, "{text}");
        }
        let policy = refused(r#"{"imagePullPolicy": "Sometimes"}"#);
        assert!(policy.starts_with("imagePullPolicy: ") && policy.contains("Never"), "{policy}");
        let tolerations = refused(r#"{"waypoint": {"tolerations": {}}}"#);
        assert!(tolerations.starts_with("waypoint.tolerations: "), "{tolerations}");
        assert!(refused("waypoint").starts_with("no JSON: "));
    }

    #[test]
    fn what_is_empty_or_null_says_nothing() {
        let empty = r#"{"imagePullPolicy": "", "imagePullSecrets": [], "waypoint":
            {"resources": {}, "affinity": {}, "topologySpreadConstraints": [], "nodeSelector": null}}"#;
        for text in ["{}", empty] {
            let pods: Pods = text.parse().unwrap();
            assert_eq!(pods.of_pod(Role::Waypoint).count(), 0, "{text}");
            assert_eq!(pods.of_container(Role::Waypoint).count(), 0, "{text}");
        }
    }
}
