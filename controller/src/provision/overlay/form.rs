// SPDX-License-Identifier: Apache-2.0

//! Whether what came of layers is an object of its kind. Pure.
//!
//! An apiserver refuses a member that it does not know and a value of another type, and would
//! do so with each try: it is found here, and the Gateway's status says it.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fault;
use crate::store::Kind;

/// Quantities by the member that they stand in.
const QUANTITIES: [&str; 3] = ["sizeLimit", "averageValue", "storage"];

/// Tells whether `value` is an object of `kind`.
///
/// # Errors
///
/// [`Fault::Unknown`] and [`Fault::Value`].
pub(super) fn check(key: &'static str, kind: Kind, value: &Value) -> Result<(), Fault> {
    if kind == Kind::Deployment {
        read::<Deployment>(key, value)
    } else if kind == Kind::Service {
        read::<Service>(key, value)
    } else if kind == Kind::ServiceAccount {
        read::<ServiceAccount>(key, value)
    } else if kind == Kind::HorizontalPodAutoscaler {
        read::<HorizontalPodAutoscaler>(key, value)
    } else {
        read::<PodDisruptionBudget>(key, value)
    }
}

fn read<T: DeserializeOwned>(key: &'static str, value: &Value) -> Result<(), Fault> {
    strictly::<T>(value).map(|_| ()).map_err(|misfit| match misfit {
        Misfit::Unknown(field) => Fault::Unknown { key, field },
        Misfit::Value { field, message } => Fault::Value { key, field, message },
    })
}

/// Why a value is not one of a type.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Misfit {
    /// The type has no such member.
    #[error("{0}: there is no such field")]
    Unknown(String),
    /// A member's value is not of its type.
    #[error("{field}: {message}")]
    Value {
        /// The member.
        field: String,
        /// What is wrong.
        message: String,
    },
}

/// Reads a value that has no member besides those of its type.
///
/// # Errors
///
/// See [`Misfit`].
pub(crate) fn strictly<T: DeserializeOwned>(value: &Value) -> Result<T, Misfit> {
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let read = {
        let mut note = |path: serde_ignored::Path<'_>| {
            unknown.get_or_insert_with(|| path.to_string().replace("?.", ""));
        };
        let ignored = serde_ignored::Deserializer::new(value, &mut note);
        T::deserialize(serde_path_to_error::Deserializer::new(ignored, &mut track))
    };
    match (read, unknown) {
        (Ok(_), Some(field)) => Err(Misfit::Unknown(field)),
        (Ok(read), None) => Ok(read),
        (Err(error), _) => {
            let (field, message) = (track.path().to_string(), error.to_string());
            Err(Misfit::Value { field, message })
        }
    }
}

/// Writes quantities that are numbers as text, which an apiserver takes for the same.
pub(crate) fn write_quantities(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                if matches!(name.as_str(), "limits" | "requests") {
                    value
                        .as_object_mut()
                        .into_iter()
                        .for_each(|all| all.values_mut().for_each(write));
                } else if QUANTITIES.contains(&name.as_str()) {
                    write(value);
                } else if name == "target" {
                    value.get_mut("value").into_iter().for_each(write);
                }
                write_quantities(value);
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(write_quantities),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn write(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
}
