// SPDX-License-Identifier: Apache-2.0

//! Client certificates that a Gateway asks for, by port.
//!
//! Rule: `GatewayFrontendTLS` in Gateway API `apis/v1/gateway_types.go`: a port's own setting
//! goes before the default.

use std::collections::BTreeMap;

use gateway_api::experimental::gateways::Gateway;
use routing::listener::{ClientValidation, ClientValidationMode};
use serde::{Deserialize, Serialize};

use super::certificate::{self, CaReasons, Reference};
use super::listener::Refusal;
use super::reference_grant::From;
use crate::store::lookup::Lookup;

/// What is asked of clients, by port.
#[derive(Clone, Debug, Default)]
pub struct Frontend {
    default: Option<Validation>,
    per_port: BTreeMap<i32, Option<Validation>>,
}

/// What is asked of clients on a port.
#[derive(Clone, Debug)]
pub struct Validation {
    /// What a proxy gets; none if no CA certificate resolves.
    pub value: Option<ClientValidation>,
    /// The first reference that does not resolve.
    pub unresolved: Option<Refusal>,
}

/// The members that the crate has under two names, once for the default and once for ports.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    ca_certificate_refs: Vec<WrittenRef>,
    mode: Option<String>,
}

#[derive(Deserialize)]
struct WrittenRef {
    group: String,
    kind: String,
    name: String,
    namespace: Option<String>,
}

impl Frontend {
    /// What is asked of clients on `port`, none if nothing.
    pub fn of_port(&self, port: i32) -> Option<&Validation> {
        self.per_port.get(&port).unwrap_or(&self.default).as_ref()
    }

    /// Tells whether clients without a valid certificate are taken on any port.
    pub fn is_insecure(&self) -> bool {
        let all = self.per_port.values().chain([&self.default]).flatten();
        all.filter_map(|validation| validation.value.as_ref())
            .any(|value| value.mode == ClientValidationMode::AllowInsecureFallback)
    }
}

/// Reads what a Gateway asks of clients.
pub fn read(gateway: &Gateway, look: &mut Lookup<'_>) -> Frontend {
    let Some(frontend) = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) else {
        return Frontend::default();
    };
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let default = frontend.default.validation.as_ref();
    let mut per_port = BTreeMap::new();
    for one in frontend.per_port.iter().flatten() {
        let validation = one.tls.validation.as_ref();
        per_port.insert(one.port, validation.map(|written| validate(written, namespace, look)));
    }
    Frontend { default: default.map(|written| validate(written, namespace, look)), per_port }
}

fn validate<T: Serialize>(written: &T, namespace: &str, look: &mut Lookup<'_>) -> Validation {
    let json = serde_json::to_value(written).unwrap_or_default();
    let Ok(written) = serde_json::from_value::<Written>(json) else {
        let refusal = ("InvalidCACertificateRef", "the setting cannot be read".to_owned());
        return Validation { value: None, unresolved: Some(refusal) };
    };
    let reasons =
        CaReasons { kind: "InvalidCACertificateKind", invalid: "InvalidCACertificateRef" };
    let (mut pem, mut unresolved) = (String::new(), None);
    for reference in &written.ca_certificate_refs {
        let reference = Reference {
            group: &reference.group,
            kind: &reference.kind,
            namespace: reference.namespace.as_deref().unwrap_or(namespace),
            name: &reference.name,
        };
        let from = From { kind: "Gateway", namespace };
        match certificate::resolve_ca(reference, from, reasons, look) {
            Ok(text) => {
                pem.push_str(&text);
                pem.push('\n');
            }
            Err(refusal) => {
                unresolved.get_or_insert(refusal);
            }
        }
    }
    let mode = match written.mode.as_deref() {
        Some("AllowInsecureFallback") => ClientValidationMode::AllowInsecureFallback,
        // A mode that is not known asks for the most.
        Some(_) | None => ClientValidationMode::AllowValidOnly,
    };
    let value = (!pem.is_empty()).then(|| ClientValidation { ca_pem: pem.into(), mode });
    Validation { value, unresolved }
}
