// SPDX-License-Identifier: Apache-2.0

//! Which objects of a cluster belong to an installation, and with which values it was made.
//!
//! Owns: the marks that `waymark install` and `upgrade` put on every object but namespaces and
//! definitions, which outlive an installation. What bears the mark and is no longer in the
//! manifest goes with an upgrade; what Helm installs bears Helm's marks instead.

use kube::api::{DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::cluster::{ClusterError, Target, text};

/// Label: the namespace of the installation that the object belongs to.
pub const INSTALLATION: &str = "waymark.dev/installation";
/// Label: the version that wrote the object.
pub const VERSION: &str = "app.kubernetes.io/version";
/// Annotation of the controller's Deployment: the values that were set, as a JSON list.
pub const VALUES: &str = "waymark.dev/values";
/// Annotation of objects that Helm made: the release.
pub const HELM: &str = "meta.helm.sh/release-name";
/// The controller's Deployment.
pub const CONTROLLER: &str = "waymark-controller";

/// Every kind that an installation of any version has objects of.
const KINDS: [(&str, &str); 14] = [
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"),
    ("gateway.networking.k8s.io/v1", "GatewayClass"),
];

/// Whether an object outlives the installation that made it.
pub fn outlives(object: &Value) -> bool {
    matches!(text(object, "/kind"), "Namespace" | "CustomResourceDefinition")
}

/// Marks an object as part of the installation in `namespace`, made by `version` with `sets`.
pub fn mark(object: &mut Value, namespace: &str, version: &str, sets: &[String]) {
    if outlives(object) {
        return;
    }
    let is_controller = text(object, "/kind") == "Deployment";
    let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let mut put = |field: &str, key: &str, value: &str| {
        let fields = metadata.entry(field).or_insert_with(|| json!({}));
        if let Some(fields) = fields.as_object_mut() {
            fields.insert(key.to_owned(), value.into());
        }
    };
    put("labels", INSTALLATION, namespace);
    put("labels", VERSION, version);
    if is_controller {
        put("annotations", VALUES, &json!(sets).to_string());
    }
}

/// What makes an object this one: version and kind, namespace and name.
pub fn identity(object: &Value) -> Value {
    let metadata = match text(object, "/metadata/namespace") {
        "" => json!({"name": text(object, "/metadata/name")}),
        namespace => json!({"name": text(object, "/metadata/name"), "namespace": namespace}),
    };
    json!({
        "apiVersion": text(object, "/apiVersion"),
        "kind": text(object, "/kind"),
        "metadata": metadata,
    })
}

/// Those of `owned` that are not among `wanted`.
pub fn surplus(owned: Vec<Value>, wanted: &[Value]) -> Vec<Value> {
    let wanted: Vec<Value> = wanted.iter().map(identity).collect();
    owned.into_iter().filter(|object| !wanted.contains(object)).collect()
}

impl Target {
    /// The identity of every object that bears the mark of the installation in `namespace`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Refused`].
    pub async fn owned(&self, namespace: &str) -> Result<Vec<Value>, ClusterError> {
        let params = ListParams::default().labels(&format!("{INSTALLATION}={namespace}"));
        let mut all = Vec::new();
        for (api_version, kind) in KINDS {
            let failed = |error| ClusterError::Refused(format!("list of {kind}"), Box::new(error));
            let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
            let wanted = GroupVersionKind::gvk(group, version, kind);
            let resource = match kube::discovery::pinned_kind(&self.client, &wanted).await {
                Ok((resource, _)) => resource,
                // A kind that this cluster does not serve has no objects.
                Err(kube::Error::Discovery(_)) => continue,
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(failed(error)),
            };
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
            for found in api.list(&params).await.map_err(failed)?.items {
                let metadata = json!({"name": found.name_any(), "namespace": found.namespace()});
                let whole = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
                all.push(identity(&whole));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_but_those_that_outlive_an_installation_is_marked() {
        let sets = ["pilot.replicaCount=2".to_owned()];
        let mut objects = super::super::objects("mesh", &sets).unwrap();
        objects.iter_mut().for_each(|object| mark(object, "mesh", "1.2.3", &sets));
        for object in &objects {
            let labels = &object["metadata"]["labels"];
            let marked = labels[INSTALLATION] == "mesh" && labels[VERSION] == "1.2.3";
            assert_eq!(marked, !outlives(object), "{}", object["metadata"]["name"]);
            let kind = (text(object, "/apiVersion"), text(object, "/kind"));
            assert!(outlives(object) || KINDS.contains(&kind), "{kind:?} would never be found");
        }
        let controller = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        assert_eq!(controller["metadata"]["annotations"][VALUES], r#"["pilot.replicaCount=2"]"#);
        assert_eq!(controller["metadata"]["labels"]["app"], "istiod", "others stay");
    }

    #[test]
    fn what_is_not_in_the_manifest_any_more_is_surplus() {
        let object = |kind: &str, namespace: Option<&str>, name: &str| {
            identity(&json!({"apiVersion": "v1", "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "labels": {"a": "b"}}}))
        };
        let wanted = [object("Service", Some("n"), "a"), object("ClusterRole", None, "r")];
        let owned = vec![
            object("Service", Some("n"), "a"),
            object("Service", Some("m"), "a"),
            object("ConfigMap", Some("n"), "a"),
            object("ClusterRole", None, "r"),
        ];
        let surplus = surplus(owned, &wanted);
        let kinds: Vec<_> = surplus
            .iter()
            .map(|one| (text(one, "/kind"), text(one, "/metadata/namespace")))
            .collect();
        assert_eq!(kinds, [("Service", "m"), ("ConfigMap", "n")]);
    }
}
