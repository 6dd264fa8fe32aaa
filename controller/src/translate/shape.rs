// SPDX-License-Identifier: Apache-2.0

//! Whose a Gateway is, what it is for, and what its objects are called.

use std::borrow::Cow;

use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use sha2::{Digest as _, Sha256};

use super::waypoint::label;
use crate::api::{self, BuiltinClass, Role};
use crate::store::lookup::Lookup;

/// Names of the objects that run a Gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Name of Deployment and Service.
    pub name: String,
    /// Name of the ServiceAccount: the identity of the proxies.
    pub account: String,
}

/// The class of ours that serves `name`; none if the class is another controller's or unknown.
///
/// A built-in class needs no GatewayClass object; one that exists decides.
pub fn class(name: &str, look: &mut Lookup<'_>) -> Option<&'static BuiltinClass> {
    match look.get::<GatewayClass>("", name) {
        Some(class) => api::class_of_controller(&class.spec.controller_name),
        None => api::CLASSES.iter().find(|class| class.name == name),
    }
}

/// What the objects of `gateway` are called, whether or not we make them.
///
/// Rule: Istio's names: a waypoint's are the Gateway's own, others end with the class.
pub fn of(gateway: &Gateway, look: &mut Lookup<'_>) -> Shape {
    let own = gateway.metadata.name.as_deref().unwrap_or_default();
    let annotations = gateway.metadata.annotations.as_ref();
    let class_name = &gateway.spec.gateway_class_name;
    let role = class(class_name, look).map(|class| class.role);
    let name = match (label(annotations, api::NAME_OVERRIDE), role) {
        (Some(name), _) => name.to_owned(),
        (None, Some(Role::Ingress)) => format!("{own}-{class_name}"),
        (None, Some(Role::Waypoint) | None) => own.to_owned(),
    };
    let name = bounded(&name).into_owned();
    let account = label(annotations, api::SERVICE_ACCOUNT).unwrap_or(&name).to_owned();
    Shape { name, account }
}

/// The longest that a Service's name and a label's value may be, in bytes.
const LONGEST: usize = 63;

/// `name`, or if it is too long for a Service or a label, its beginning and a digest of it.
///
/// A Gateway's own name may have 253 characters, and dots, which a Service's cannot have.
pub fn bounded(name: &str) -> Cow<'_, str> {
    if name.len() <= LONGEST && !name.contains('.') {
        return Cow::Borrowed(name);
    }
    let digest = Sha256::digest(name.as_bytes());
    let digest: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let room = LONGEST - digest.len() - 1;
    let begin: String = name.chars().take(room).map(|c| if c == '.' { '-' } else { c }).collect();
    Cow::Owned(format!("{}-{digest}", begin.trim_end_matches('-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_length_fit_and_differ() {
        assert_eq!(bounded("bookinfo-gateway-istio"), "bookinfo-gateway-istio");
        let longest = "x".repeat(63);
        assert_eq!(bounded(&longest), longest);
        let (one, other) = (format!("{longest}1"), format!("{longest}2"));
        assert!(bounded(&one).len() <= 63 && bounded(&one).starts_with("xxxx"));
        assert_ne!(bounded(&one), bounded(&other));
        let dotted = bounded("a.b");
        assert!(dotted.starts_with("a-b-") && dotted != bounded("a-b"), "{dotted}");
    }
}
