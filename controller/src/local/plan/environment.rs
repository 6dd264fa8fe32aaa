// SPDX-License-Identifier: Apache-2.0

//! The variables of a container, as a kubelet works them out.
//!
//! Owns: literal values with `$(NAME)`, fields of the pod, limits, ConfigMaps and Secrets.
//! Pure: what is looked up is given.
//!
//! Rule: `EnvVar`, `EnvVarSource` and `EnvFromSource` of `core/v1`.
//!
//! Start at [`environment`].

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};

/// What variables may refer to beside the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// By namespace and name.
    pub config_maps: &'a BTreeMap<(String, String), ConfigMap>,
    /// By namespace and name.
    pub secrets: &'a BTreeMap<(String, String), Secret>,
}

/// Why a container's environment cannot be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EnvironmentError {
    /// A field that cannot be given.
    #[error("variable {variable}: field {field:?} is not served")]
    Field {
        /// Name of the variable.
        variable: String,
        /// The path asked for.
        field: String,
    },

    /// A ConfigMap, Secret or key that is not there.
    #[error("variable {variable}: {what} not found")]
    Missing {
        /// Name of the variable, or of the source.
        variable: String,
        /// What was looked for.
        what: String,
    },
}

/// The variables of `container` in `pod`, over those of its image.
///
/// # Errors
///
/// See [`EnvironmentError`]; a reference marked optional is left out instead.
pub fn environment(
    container: &Container,
    pod: &Pod,
    image: &BTreeMap<String, String>,
    values: Values<'_>,
) -> Result<BTreeMap<String, String>, EnvironmentError> {
    let mut known = image.clone();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (found, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(reference), _) => {
                let key = (namespace.clone(), reference.name.clone());
                (
                    values.config_maps.get(&key).map(config_map_texts),
                    &reference.name,
                    reference.optional,
                )
            }
            (None, Some(reference)) => {
                let key = (namespace.clone(), reference.name.clone());
                (values.secrets.get(&key).map(secret_texts), &reference.name, reference.optional)
            }
            (None, None) => continue,
        };
        match found {
            Some(found) => known
                .extend(found.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value))),
            None if optional == Some(true) => {}
            None => {
                return Err(EnvironmentError::Missing {
                    variable: "envFrom".into(),
                    what: name.clone(),
                });
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &known)),
            Some(_) => referred(variable, pod, container, values)?,
        };
        if let Some(value) = value {
            known.insert(variable.name.clone(), value);
        }
    }
    Ok(known)
}

fn config_map_texts(map: &ConfigMap) -> BTreeMap<String, String> {
    map.data.clone().unwrap_or_default()
}

fn secret_texts(secret: &Secret) -> BTreeMap<String, String> {
    let text = |bytes: &ByteString| String::from_utf8_lossy(&bytes.0).into_owned();
    let mut texts: BTreeMap<String, String> =
        secret.data.iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect();
    texts.extend(secret.string_data.clone().unwrap_or_default());
    texts
}

fn referred(
    variable: &EnvVar,
    pod: &Pod,
    container: &Container,
    values: Values<'_>,
) -> Result<Option<String>, EnvironmentError> {
    let Some(from) = &variable.value_from else { return Ok(None) };
    let field = |field: &str| EnvironmentError::Field {
        variable: variable.name.clone(),
        field: field.to_owned(),
    };
    if let Some(reference) = &from.field_ref {
        return pod_field(pod, &reference.field_path)
            .map(Some)
            .ok_or_else(|| field(&reference.field_path));
    }
    if let Some(reference) = &from.resource_field_ref {
        return resource(container, &reference.resource)
            .map(Some)
            .ok_or_else(|| field(&reference.resource));
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let (found, what, optional) = match (&from.config_map_key_ref, &from.secret_key_ref) {
        (Some(reference), _) => {
            let texts =
                values.config_maps.get(&(namespace, reference.name.clone())).map(config_map_texts);
            (
                texts.and_then(|mut texts| texts.remove(&reference.key)),
                format!("key {} of ConfigMap {}", reference.key, reference.name),
                reference.optional,
            )
        }
        (None, Some(reference)) => {
            let texts = values.secrets.get(&(namespace, reference.name.clone())).map(secret_texts);
            (
                texts.and_then(|mut texts| texts.remove(&reference.key)),
                format!("key {} of Secret {}", reference.key, reference.name),
                reference.optional,
            )
        }
        (None, None) => return Ok(None),
    };
    match found {
        Some(text) => Ok(Some(text)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvironmentError::Missing { variable: variable.name.clone(), what }),
    }
}

/// A field of the pod by its path, as the downward API offers.
fn pod_field(pod: &Pod, path: &str) -> Option<String> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let map_entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
    };
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        return match map {
            "metadata.labels" => Some(map_entry(&pod.metadata.labels, key)),
            "metadata.annotations" => Some(map_entry(&pod.metadata.annotations, key)),
            _ => None,
        };
    }
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.nodeName" => spec?.node_name.clone(),
        "spec.serviceAccountName" => spec?.service_account_name.clone(),
        "status.hostIP" => status?.host_ip.clone(),
        "status.podIP" => status?.pod_ip.clone(),
        "status.podIPs" => {
            let ips = status?.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
            Some(ips.collect::<Vec<_>>().join(","))
        }
        _ => None,
    }
}

/// A limit or request; processors rounded up, memory in bytes. Without a limit: the machine's.
fn resource(container: &Container, path: &str) -> Option<String> {
    let (list, name) = path.split_once('.')?;
    let resources = container.resources.clone().unwrap_or_default();
    let quantities = match list {
        "limits" => resources.limits,
        "requests" => resources.requests,
        _ => return None,
    };
    let quantity = quantities.and_then(|mut map| map.remove(name)).map(|quantity| quantity.0);
    match (name, quantity) {
        ("cpu", None) => {
            Some(std::thread::available_parallelism().map_or(1, usize::from).to_string())
        }
        (_, None) => Some("0".to_owned()),
        (_, Some(text)) => whole(&text).map(|value| value.to_string()),
    }
}

/// A quantity as a whole number, rounded up.
fn whole(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    if let Some(milli) = text.strip_suffix('m') {
        return milli.parse::<u64>().ok().map(|milli| milli.div_ceil(1000));
    }
    match UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)))
    {
        Some((number, factor)) => number.parse::<u64>().ok()?.checked_mul(factor),
        None => text.parse().ok(),
    }
}

/// Puts the values of known variables in place of `$(NAME)`; `$$` stands for `$`.
fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            after.strip_prefix('(').and_then(|after| after.split_once(')'))
        {
            match known.get(name) {
                Some(value) => out += value,
                None => out += &format!("$({name})"),
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(container: &str) -> Result<BTreeMap<String, String>, EnvironmentError> {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata": {"name": "web-0", "namespace": "n", "labels": {"app": "web"}},
                "spec": {"nodeName": "node-1", "containers": []}, "status": {"podIP": "10.0.0.1"}}"#,
        )
        .unwrap();
        let map: ConfigMap = serde_json::from_str(r#"{"data": {"K": "v"}}"#).unwrap();
        let secret: Secret = serde_json::from_str(r#"{"stringData": {"P": "w"}}"#).unwrap();
        let config_maps = [(("n".to_owned(), "c".to_owned()), map)].into();
        let secrets = [(("n".to_owned(), "s".to_owned()), secret)].into();
        let container: Container = serde_json::from_str(container).unwrap();
        let image =
            [("A".to_owned(), "image".to_owned()), ("B".to_owned(), "image".to_owned())].into();
        environment(
            &container,
            &pod,
            &image,
            Values { config_maps: &config_maps, secrets: &secrets },
        )
    }

    #[test]
    fn variables_come_from_where_they_say() {
        let cases = [
            (r#"{"name": "A", "value": "own"}"#, Some("own")),
            (r#"{"name": "A", "value": "$(B)-$(NONE)-$$(B)"}"#, Some("image-$(NONE)-$(B)")),
            (
                r#"{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}"#,
                Some("web-0"),
            ),
            (
                r#"{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}"#,
                Some("web"),
            ),
            (
                r#"{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}"#,
                Some("10.0.0.1"),
            ),
            (r#"{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.dreams"}}}"#, None),
            (
                r#"{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "K"}}}"#,
                Some("v"),
            ),
            (
                r#"{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}}"#,
                Some("w"),
            ),
            (r#"{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "Q"}}}"#, None),
            (
                r#"{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "Q", "optional": true}}}"#,
                Some("image"),
            ),
        ];
        for (variable, want) in cases {
            let have = made(&format!(r#"{{"name": "x", "env": [{variable}]}}"#)).ok();
            assert_eq!(have.as_ref().map(|have| have["A"].as_str()), want, "{variable}");
        }
        let from =
            made(r#"{"name": "x", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}]}"#)
                .unwrap();
        assert_eq!(from["P_K"], "v");
    }

    #[test]
    fn quantities_become_whole_numbers() {
        let cases = [
            ("2", Some(2)),
            ("1500m", Some(2)),
            ("1Gi", Some(1 << 30)),
            ("5M", Some(5_000_000)),
            ("x", None),
        ];
        for (text, want) in cases {
            assert_eq!(whole(text), want, "{text}");
        }
    }
}
