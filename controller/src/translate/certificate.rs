// SPDX-License-Identifier: Apache-2.0

//! Certificates that Gateways name: whether they resolve, and who gets them.

use std::collections::BTreeSet;

use gateway_api::experimental::gateways::Gateway;
use gateway_api::listenersets::ListenerSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use routing::backend;
use routing::delta::Resource as Plane;
use routing::listener::SecretName;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::listener::Refusal;
use super::reference_grant::{self, From, To};
use super::{allowed, listener_set, shape};
use crate::output::{Config, Family, Output, OutputKey, Scope};
use crate::store::Name;
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;

/// A reference to an object that holds certificates.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// Group; empty for core.
    pub group: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
}

/// Tells whether a reference leads to a certificate with its key.
///
/// # Errors
///
/// `RefNotPermitted`, or `invalid` as the reason for all else.
pub fn resolve(
    reference: Reference<'_>,
    from: From<'_>,
    invalid: &'static str,
    look: &mut Lookup<'_>,
) -> Result<SecretName, Refusal> {
    let Reference { group, kind, namespace, name } = reference;
    if !(group.is_empty() && kind == "Secret") {
        return Err((invalid, format!("certificates of kind {kind} are not served")));
    }
    if !reference_grant::permits(from, To { group, kind, namespace, name }, look) {
        let message = format!("no ReferenceGrant in {namespace} permits Secret {name}");
        return Err(("RefNotPermitted", message));
    }
    let Some(secret) = look.get::<Secret>(namespace, name) else {
        return Err((invalid, format!("Secret {namespace}/{name} does not exist")));
    };
    let read = read(namespace, name, secret);
    read.map(|secret| secret.name).map_err(|message| (invalid, message))
}

/// A Secret as proxies get it.
fn read(namespace: &str, name: &str, secret: &Secret) -> Result<backend::Secret, String> {
    let bytes = |key: &str| -> Option<Vec<u8>> {
        let data = secret.data.as_ref().and_then(|data| data.get(key)).map(|data| data.0.clone());
        let text = || secret.string_data.as_ref()?.get(key).map(|text| text.clone().into_bytes());
        data.or_else(text)
    };
    let missing = |key| format!("Secret {namespace}/{name} has no {key}");
    let certificate_pem = bytes("tls.crt").ok_or_else(|| missing("tls.crt"))?;
    let key_pem = bytes("tls.key").ok_or_else(|| missing("tls.key"))?;
    if certificates(&certificate_pem).is_none() {
        return Err(format!("tls.crt of Secret {namespace}/{name} is no certificate"));
    }
    if PrivateKeyDer::from_pem_slice(&key_pem).is_err() {
        return Err(format!("tls.key of Secret {namespace}/{name} is no private key"));
    }
    Ok(backend::Secret {
        name: format!("{namespace}/{name}").parse().map_err(|_| missing("legal name"))?,
        certificate_pem: certificate_pem.into(),
        key_pem: key_pem.into(),
    })
}

/// Number of certificates in PEM text, none if any is broken or there is none.
fn certificates(pem: &[u8]) -> Option<usize> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let der = certificate.ok()?;
        x509_parser::parse_x509_certificate(&der).ok()?;
        count += 1;
    }
    (count > 0).then_some(count)
}

/// Reasons for a CA reference of a wrong kind, and for one that does not resolve.
#[derive(Clone, Copy, Debug)]
pub struct CaReasons {
    /// The kind is not served.
    pub kind: &'static str,
    /// All else but a missing grant.
    pub invalid: &'static str,
}

/// The CA certificates, PEM, in a ConfigMap.
///
/// # Errors
///
/// `RefNotPermitted`, or one of `reasons`.
pub fn resolve_ca(
    reference: Reference<'_>,
    from: From<'_>,
    reasons: CaReasons,
    look: &mut Lookup<'_>,
) -> Result<String, Refusal> {
    let Reference { group, kind, namespace, name } = reference;
    if !(group.is_empty() && kind == "ConfigMap") {
        return Err((reasons.kind, format!("CA certificates of kind {kind} are not served")));
    }
    if !reference_grant::permits(from, To { group, kind, namespace, name }, look) {
        let message = format!("no ReferenceGrant in {namespace} permits ConfigMap {name}");
        return Err(("RefNotPermitted", message));
    }
    let map = look.get::<ConfigMap>(namespace, name);
    let text = map.and_then(|map| map.data.as_ref()).and_then(|data| data.get("ca.crt"));
    match text.filter(|text| certificates(text.as_bytes()).is_some()) {
        Some(text) => Ok(text.clone()),
        None => {
            let message = format!("ConfigMap {namespace}/{name} has no certificate in ca.crt");
            Err((reasons.invalid, message))
        }
    }
}

/// Outputs of one Secret: it goes to the gateways that name it and may.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(secret) = look.get::<Secret>(&name.namespace, &name.name) else { return Vec::new() };
    let value = index::object("Secret", &name.namespace, &name.name);
    let mut naming: Vec<(&Gateway, From<'_>)> = Vec::new();
    for gateway in look.list::<Gateway>(Index::Refers, &value) {
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
        naming.push((gateway, From { kind: "Gateway", namespace }));
    }
    for set in look.list::<ListenerSet>(Index::Refers, &value) {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(gateway) = listener_set::gateway_of(set, look)
            && allowed::listener_set(gateway, namespace, look)
        {
            naming.push((gateway, From { kind: "ListenerSet", namespace }));
        }
    }
    let mut gateways = BTreeSet::new();
    let to = To { group: "", kind: "Secret", namespace: &name.namespace, name: &name.name };
    for (gateway, from) in naming {
        let meta = &gateway.metadata;
        let (Some(namespace), Some(own)) = (&meta.namespace, &meta.name) else { continue };
        let served = shape::class(&gateway.spec.gateway_class_name, look).is_some();
        if served && reference_grant::permits(from, to, look) {
            gateways.insert(Name::new(namespace, own));
        }
    }
    if gateways.is_empty() {
        return Vec::new();
    }
    let read = read(&name.namespace, &name.name, secret);
    match read {
        Ok(secret) => {
            let scope = Scope::Gateways(gateways.into_iter().collect());
            vec![Config::plane(Plane::Secret(secret.into()), scope)]
        }
        // Proxies go on with what they had; their listeners say what is wrong.
        Err(_) => {
            look.keep(OutputKey::Config(Family::Secret, name.to_string().into()));
            Vec::new()
        }
    }
}
