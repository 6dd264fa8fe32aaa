// SPDX-License-Identifier: Apache-2.0

//! BackendTLSPolicies → TLS towards a service, and their statuses.
//!
//! Owns which of several policies for one port counts: the oldest, then the first by name. A
//! policy that cannot be followed still goes out, as one that makes requests fail: what asked
//! for TLS never goes out without.
//!
//! Rule: `BackendTLSPolicy` in Gateway API `apis/v1/backendtlspolicy_types.go`.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use gateway_api::backendtlspolicies::{
    BackendTlsPolicy, BackendTlsPolicyTargetRefs as Target,
    BackendTlsPolicyValidationSubjectAltNames as AltName,
    BackendTlsPolicyValidationSubjectAltNamesType as AltNameType,
};
use k8s_openapi::api::core::v1::Service;
use routing::backend::{BackendTls, BackendTlsName, Roots, SubjectAltName};
use routing::delta::Resource as Plane;
use serde_json::json;

use super::certificate::{self, CaReasons, Reference};
use super::listener::{Refusal, condition};
use super::reference_grant::From;
use super::{routes, shape};
use crate::api;
use crate::output::{Config, Output, Scope};
use crate::status::packed::Packed;
use crate::status::{Body, Condition, ParentStatus, Status};
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Outputs of one BackendTLSPolicy.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(policy) = look.get::<BackendTlsPolicy>(&name.namespace, &name.name) else {
        return Vec::new();
    };
    let (roots, unresolved) = roots(policy, look);
    let mut outputs = Vec::new();
    let mut conflict = None;
    let mut ancestors = BTreeSet::new();
    for target in policy.spec.target_refs.iter().filter(|target| is_service(target)) {
        ancestors.extend(gateways_to(&name.namespace, &target.name, look));
        if let Some(winner) = winner_over(policy, target, look) {
            let message =
                format!("BackendTLSPolicy {winner} is for Service {} already", target.name);
            conflict.get_or_insert(("Conflicted", message));
            continue;
        }
        let Some(tls_name) = tls_name(&name.namespace, target, look) else { continue };
        let tls = match (&roots, names(policy)) {
            (Some(roots), Ok(subject_alt_names)) => BackendTls {
                name: tls_name,
                sni: policy.spec.validation.hostname.as_str().into(),
                roots: roots.clone(),
                subject_alt_names,
                invalid: None,
            },
            (None, _) => BackendTls::refusing(tls_name, "no CA certificate resolves"),
            (Some(_), Err(message)) => BackendTls::refusing(tls_name, &message),
        };
        outputs.push(Config::plane(Plane::BackendTls(Arc::new(tls)), Scope::AllGateways));
    }
    let refused = conflict.or_else(|| {
        let message = "no CA certificate resolves".to_owned();
        let no_roots = roots.is_none().then_some(("NoValidCACertificate", message));
        no_roots.or_else(|| names(policy).err().map(|message| ("Invalid", message)))
    });
    outputs.push(status(name, policy, &ancestors, (refused, unresolved)));
    outputs
}

fn is_service(target: &Target) -> bool {
    target.group.is_empty() && target.kind == "Service"
}

/// The policy that takes precedence over `policy` for the same target, if one does.
fn winner_over(
    policy: &BackendTlsPolicy,
    target: &Target,
    look: &mut Lookup<'_>,
) -> Option<String> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let value = index::object("Service", namespace, &target.name);
    let rivals = look.list::<BackendTlsPolicy>(Index::Target, &value);
    let same = |other: &&&Arc<BackendTlsPolicy>| {
        other.spec.target_refs.iter().any(|one| {
            is_service(one) && one.name == target.name && one.section_name == target.section_name
        })
    };
    let winner = rivals.iter().filter(same).min_by(|a, b| seniority(a, b))?;
    let name = winner.metadata.name.clone()?;
    (policy.metadata.name.as_deref() != Some(name.as_str())).then_some(name)
}

/// `Less` counts.
fn seniority(a: &BackendTlsPolicy, b: &BackendTlsPolicy) -> Ordering {
    let created = |policy: &BackendTlsPolicy| {
        policy.metadata.creation_timestamp.as_ref().map(|time| time.0.as_nanosecond())
    };
    (created(a).cmp(&created(b))).then_with(|| a.metadata.name.cmp(&b.metadata.name))
}

/// Service and port of a target; none if there is no such Service or port.
fn tls_name(namespace: &str, target: &Target, look: &mut Lookup<'_>) -> Option<BackendTlsName> {
    let service = look.get::<Service>(namespace, &target.name)?;
    let port = match target.section_name.as_deref() {
        None | Some("") => None,
        Some(section) => {
            let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            let port = ports.find(|port| port.name.as_deref() == Some(section))?;
            Some(u16::try_from(port.port).ok()?)
        }
    };
    let service = api::service_key(namespace, &target.name).parse().ok()?;
    Some(BackendTlsName { service, port })
}

/// Whom the policy trusts, and the first reference that does not resolve.
fn roots(policy: &BackendTlsPolicy, look: &mut Lookup<'_>) -> (Option<Roots>, Option<Refusal>) {
    let validation = &policy.spec.validation;
    if validation.well_known_ca_certificates.as_deref() == Some("System") {
        return (Some(Roots::System), None);
    }
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let reasons = CaReasons { kind: "InvalidKind", invalid: "InvalidCACertificateRef" };
    let (mut pem, mut unresolved) = (String::new(), None);
    for reference in validation.ca_certificate_refs.iter().flatten() {
        let reference = Reference {
            group: &reference.group,
            kind: &reference.kind,
            namespace,
            name: &reference.name,
        };
        let from = From { kind: "BackendTLSPolicy", namespace };
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
    ((!pem.is_empty()).then(|| Roots::Pem(pem.into())), unresolved)
}

fn names(policy: &BackendTlsPolicy) -> Result<Vec<SubjectAltName>, String> {
    let read = |name: &AltName| match (&name.r#type, &name.hostname, &name.uri) {
        (AltNameType::Hostname, Some(host), _) => {
            Ok(SubjectAltName::Hostname(host.as_str().into()))
        }
        (AltNameType::Uri, _, Some(uri)) => Ok(SubjectAltName::Uri(uri.as_str().into())),
        _ => Err("a subject alternative name lacks its value".to_owned()),
    };
    policy.spec.validation.subject_alt_names.iter().flatten().map(read).collect()
}

/// Gateways of ours that send to a Service, with the name of their controller.
fn gateways_to(
    namespace: &str,
    service: &str,
    look: &mut Lookup<'_>,
) -> BTreeSet<(Name, &'static str)> {
    let mut gateways = BTreeSet::new();
    for gateway in routes::gateways_to(namespace, service, look) {
        let class = shape::class(&gateway.spec.gateway_class_name, look);
        let meta = &gateway.metadata;
        if let (Some(class), Some(namespace), Some(name)) = (class, &meta.namespace, &meta.name) {
            gateways.insert((Name::new(namespace, name), class.controller));
        }
    }
    gateways
}

fn status(
    name: &Name,
    policy: &BackendTlsPolicy,
    ancestors: &BTreeSet<(Name, &'static str)>,
    (refused, unresolved): (Option<Refusal>, Option<Refusal>),
) -> Output {
    let accepted = condition("Accepted", "Accepted", refused.as_ref());
    let accepted = if refused.is_none() { accepted.after_ack() } else { accepted };
    let conditions: Vec<Condition> =
        vec![accepted, condition("ResolvedRefs", "ResolvedRefs", unresolved.as_ref())];
    let parents = ancestors.iter().map(|(gateway, controller)| ParentStatus {
        reference: Packed::from(&json!({
            "group": api::GATEWAY_GROUP, "kind": "Gateway",
            "namespace": &*gateway.namespace, "name": &*gateway.name,
        })),
        controller,
        conditions: conditions.clone(),
    });
    let key = Key { kind: Kind::BackendTlsPolicy, name: name.clone() };
    let body = Body::Parents { fields: ("ancestors", "ancestorRef"), parents: parents.collect() };
    Output::Status(Status { key, generation: policy.metadata.generation, body }.into())
}

#[cfg(test)]
mod tests;
