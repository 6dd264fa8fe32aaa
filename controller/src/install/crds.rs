// SPDX-License-Identifier: Apache-2.0

//! Definitions of Istio's kinds that we serve, made of our own types. Pure.
//!
//! The file of the chart is checked in (`waymark manifest --crds` prints it); a test makes it
//! anew and compares.

use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::api::istio::{
    AuthorizationPolicy, PeerAuthentication, RequestAuthentication, ServiceEntry, WorkloadEntry,
};

/// Older versions that users' manifests name, by group; their form is the same.
const OLDER: [(&str, &[&str]); 2] =
    [("security.istio.io", &["v1beta1"]), ("networking.istio.io", &["v1beta1", "v1alpha3"])];

/// Every definition.
pub fn all() -> Vec<Value> {
    let definitions = [
        serde_json::to_value(AuthorizationPolicy::crd()),
        serde_json::to_value(PeerAuthentication::crd()),
        serde_json::to_value(RequestAuthentication::crd()),
        serde_json::to_value(ServiceEntry::crd()),
        serde_json::to_value(WorkloadEntry::crd()),
    ];
    definitions.into_iter().flatten().map(finish).collect()
}

/// What the types cannot say: fields that are kept as written, older versions, columns.
fn finish(mut definition: Value) -> Value {
    let group = definition.pointer("/spec/group").and_then(Value::as_str).unwrap_or_default();
    let older = OLDER.iter().find(|(name, _)| *name == group).map(|(_, older)| *older);
    let kind = definition.pointer("/spec/names/kind").and_then(Value::as_str).unwrap_or_default();
    let columns = columns(kind);
    if let Some(versions) = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions.iter_mut() {
            open(version);
            if let Some(fields) = version.as_object_mut() {
                fields.insert("additionalPrinterColumns".to_owned(), columns.clone());
            }
        }
        if let Some(newest) = versions.first().cloned() {
            for name in older.into_iter().flatten() {
                let mut copy = newest.clone();
                if let Some(fields) = copy.as_object_mut() {
                    fields.insert("name".to_owned(), (*name).into());
                    fields.insert("storage".to_owned(), false.into());
                }
                versions.push(copy);
            }
        }
    }
    definition
}

/// Fields whose content we do not know beforehand.
fn open(version: &mut Value) {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
        close_nothing(schema);
        if let Some(properties) = schema.pointer_mut("/properties").and_then(Value::as_object_mut) {
            properties.insert("status".to_owned(), any.clone());
        }
        let spec = schema.pointer_mut("/properties/spec/properties").and_then(Value::as_object_mut);
        if let Some(properties) = spec.filter(|properties| properties.contains_key("action")) {
            properties.insert("provider".to_owned(), any);
        }
    }
}

/// Drops `additionalProperties: false`, which a definition may not say.
fn close_nothing(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
                fields.remove("additionalProperties");
            }
            fields.values_mut().for_each(close_nothing);
        }
        Value::Array(all) => all.iter_mut().for_each(close_nothing),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What `kubectl get` shows.
fn columns(kind: &str) -> Value {
    let column =
        |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let own = match kind {
        "AuthorizationPolicy" => vec![column("Action", "string", ".spec.action")],
        "PeerAuthentication" => vec![column("Mode", "string", ".spec.mtls.mode")],
        "RequestAuthentication" => vec![column("Issuers", "string", ".spec.jwtRules[*].issuer")],
        "ServiceEntry" => vec![
            column("Hosts", "string", ".spec.hosts"),
            column("Location", "string", ".spec.location"),
            column("Resolution", "string", ".spec.resolution"),
        ],
        "WorkloadEntry" => vec![column("Address", "string", ".spec.address")],
        _ => Vec::new(),
    };
    let accepted = ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]
        .contains(&kind)
        .then(|| {
            column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status")
        });
    let age = column("Age", "date", ".metadata.creationTimestamp");
    own.into_iter().chain(accepted).chain([age]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the chart has it.
    const FILE: &str = include_str!("../../deploy/waymark/crds/istio.yaml");

    #[test]
    fn the_charts_definitions_are_those_of_the_types() {
        let file: Vec<Value> = FILE
            .split("\n---\n")
            .map(|document| serde_saphyr::from_str(document).unwrap())
            .collect();
        assert_eq!(file, all(), "print it anew with `waymark manifest --crds`");
    }

    #[test]
    fn a_definition_serves_older_versions_and_keeps_statuses_as_written() {
        for definition in all() {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            let stored: Vec<_> = versions.iter().filter(|v| v["storage"] == true).collect();
            assert_eq!(stored.len(), 1);
            assert!(versions.len() > 1);
            for version in versions {
                let schema = &version["schema"]["openAPIV3Schema"];
                let status = &schema["properties"]["status"];
                assert_eq!(status["x-kubernetes-preserve-unknown-fields"], true);
                assert!(!schema.to_string().contains(r#""additionalProperties":false"#));
            }
        }
    }
}
