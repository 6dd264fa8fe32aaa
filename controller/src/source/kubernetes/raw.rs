// SPDX-License-Identifier: Apache-2.0

//! An object as an apiserver sends it, of any kind.
//!
//! Owns: that who wrote which field (`managedFields`, often the largest part of an object) is
//! skipped and never kept. Nothing reads it, and every change of every object comes through here.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DynamicResourceScope;
use kube::core::discovery::ApiResource;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// Who wrote which field.
const MANAGED_FIELDS: &str = "managedFields";
const METADATA: &str = "metadata";

/// An object of any kind.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Name, namespace and version alone.
    meta: ObjectMeta,
    /// All of it but `managedFields`.
    pub fields: Map<String, Value>,
}

impl Raw {
    fn new(fields: Map<String, Value>) -> Self {
        let meta = fields.get(METADATA);
        let text = |name: &str| meta?.get(name)?.as_str().map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Self { meta, fields }
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl<'de> serde::Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Part::Object.deserialize(from).map(Self::new)
    }
}

/// A part that is read field by field.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object => "an object",
            Self::Metadata => "the metadata of an object",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            let value = match (self, name.as_str()) {
                (Self::Object, METADATA) => Value::Object(from.next_value_seed(Self::Metadata)?),
                (Self::Metadata, MANAGED_FIELDS) => {
                    from.next_value::<IgnoredAny>()?;
                    continue;
                }
                (Self::Object | Self::Metadata, _) => from.next_value()?,
            };
            fields.insert(name, value);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::WatchEvent;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_read_whole_but_for_who_wrote_it() {
        let text = r#"{"type": "MODIFIED", "object": {"kind": "HTTPRoute", "apiVersion": "g/v1",
            "metadata": {"name": "r", "namespace": "n", "resourceVersion": "7", "labels": {"a": "b"},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"managedFields": 1}}}"#;
        let WatchEvent::Modified(raw) = serde_json::from_str::<WatchEvent<Raw>>(text).unwrap()
        else {
            panic!("a change")
        };
        let meta = raw.meta();
        let read = (
            meta.name.as_deref(),
            meta.namespace.as_deref(),
            &*meta.resource_version.clone().unwrap(),
        );
        assert_eq!(read, (Some("r"), Some("n"), "7"));
        assert_eq!(
            Value::Object(raw.fields),
            json!({
                "kind": "HTTPRoute", "apiVersion": "g/v1",
                "metadata": {"name": "r", "namespace": "n", "resourceVersion": "7", "labels": {"a": "b"}},
                "spec": {"managedFields": 1},
            })
        );
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for wrong in [json!([]), json!({"metadata": "r"})] {
            assert!(serde_json::from_value::<Raw>(wrong).is_err());
        }
    }
}
