// SPDX-License-Identifier: Apache-2.0

//! Gateways → settings and listeners of their proxies, the objects that run them, and status.
//!
//! Rule: `Gateway` in Gateway API `apis/v1/gateway_types.go`; objects and addresses as Istio's
//! automated deployment has them.

use std::collections::BTreeSet;
use std::sync::Arc;

use gateway_api::experimental::gateways::Gateway as Object;
use k8s_openapi::api::core::v1::{Pod, Service};
use routing::delta::Resource as Plane;
use routing::gateway::{Gateway, GatewayKind, LogFormat, Tracing};
use routing::listener::{Listener, SecretName};

use super::certificate::{self, Reference};
use super::listener::{self, Judged, Owner, Refusal, condition};
use super::reference_grant::From;
use super::shape::{self, Shape};
use super::waypoint::label;
use super::{frontend, parameters, pod};
use crate::api::{self, BuiltinClass, Role};
use crate::output::{Config, Family, Output, OutputKey, Scope};
use crate::provision::manifest::{self, Wanted};
use crate::settings::Mesh;
use crate::status::{Body, Condition, Status};
use crate::store::facts::Objection;
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// What is said of a Gateway that serves nothing.
const NOTHING: &str = "nothing can be served";
/// What is said of a Gateway whose parameters are refused.
const STANDING: &str = "the parameters are refused; the objects stay as they were";

/// What is said of a Gateway whose Service waits for a load balancer.
const NO_ADDRESS: &str = "no address is assigned yet; a Service of type LoadBalancer has none until \
    something in the cluster gives it one: where nothing does, annotate the Gateway with \
    networking.istio.io/service-type: ClusterIP or NodePort";

/// Outputs of one Gateway; none if its class is not ours.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(object) = look.get::<Object>(&name.namespace, &name.name) else { return Vec::new() };
    let Some(class) = shape::class(&object.spec.gateway_class_name, look) else {
        return Vec::new();
    };
    let shape = shape::of(object, look);
    let judged = listener::judge(object, class.role, look);
    let client = client_certificate(object, look);
    let mut outputs = Vec::new();

    let only = || Scope::Gateways([name.clone()].into());
    outputs.extend(
        settings(object, class, client.as_ref(), look.mesh())
            .map(|settings| Config::plane(Plane::Gateway(Arc::new(settings)), only())),
    );
    let listeners: Vec<Listener> = judged.iter().filter_map(|one| one.resource.clone()).collect();
    outputs.extend(
        listeners
            .iter()
            .map(|listener| Config::plane(Plane::Listener(Arc::new(listener.clone())), only())),
    );
    for kept in judged.iter().filter_map(|one| one.kept.as_ref()) {
        look.keep(OutputKey::Config(Family::Listener, kept.name.as_str().into()));
    }
    let listeners: Vec<Listener> =
        judged.iter().filter_map(|one| one.resource.clone().or_else(|| one.kept.clone())).collect();
    // Also for a Gateway that is refused: an edit gone wrong must not end proxies at work.
    let wanted = Wanted { gateway: object, class, shape: &shape, listeners: &listeners };
    let made = parameters::objects(wanted, look);
    let told = Told {
        client: client.as_ref().err(),
        parameters: made.as_ref().err(),
        objections: objections(wanted, look),
    };
    outputs.push(status(object, &shape, &judged, &told, look));
    match made {
        Ok(made) if is_managed(object) => {
            outputs.extend(made.into_iter().map(|one| Output::Object(Arc::new(one))));
        }
        Ok(_) => {}
        // They stay as they were before the parameters went wrong.
        Err(_) => {
            manifest::keys(wanted).into_iter().for_each(|key| look.keep(OutputKey::Object(key)));
        }
    }
    outputs
}

/// What of a Gateway is refused besides its listeners.
struct Told<'a> {
    /// The certificate that backends are shown.
    client: Option<&'a Refusal>,
    /// The parameters of its objects.
    parameters: Option<&'a Refusal>,
    /// What stands against its objects.
    objections: Vec<&'a Objection>,
}

/// What stands against the objects of a Gateway.
fn objections<'a>(wanted: Wanted<'_>, look: &mut Lookup<'a>) -> Vec<&'a Objection> {
    if !is_managed(wanted.gateway) {
        return Vec::new();
    }
    manifest::keys(wanted).iter().filter_map(|key| look.objection(key)).collect()
}

/// Settings of the proxies; none if the Gateway's name is no name.
fn settings(
    object: &Object,
    class: &BuiltinClass,
    client: Result<&Option<SecretName>, &Refusal>,
    mesh: &Mesh,
) -> Option<Gateway> {
    let meta = &object.metadata;
    let annotation = |key| label(meta.annotations.as_ref(), key);
    let name = format!("{}/{}", meta.namespace.as_deref()?, meta.name.as_deref()?);
    let percent = annotation(api::TRACING_SAMPLING).and_then(|text| text.trim().parse().ok());
    let tracing = annotation(api::TRACING_ENDPOINT).map(|endpoint| Tracing {
        endpoint: endpoint.into(),
        sampled_per_million: percent.map_or(10_000, per_million),
    });
    Some(Gateway {
        name: name.parse().ok()?,
        kind: match class.role {
            Role::Ingress => GatewayKind::Ingress,
            Role::Waypoint => GatewayKind::Waypoint,
        },
        class: object.spec.gateway_class_name.as_str().into(),
        trusted_hops: annotation(api::TRUSTED_HOPS)
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0),
        tracing,
        access_log: match annotation(api::ACCESS_LOG) {
            Some("off") => None,
            Some("json") => Some(LogFormat::Json),
            None if mesh.proxies.pods.log_as_json() => Some(LogFormat::Json),
            Some(_) | None => Some(LogFormat::Text),
        },
        client_certificate: client.ok().cloned().flatten(),
    })
}

/// A percentage as parts of a million, between none and all.
fn per_million(percent: f64) -> u32 {
    let scaled = (percent.clamp(0.0, 100.0) * 10_000.0).round();
    // In bounds by the clamp; a value that is no number samples nothing.
    format!("{scaled:.0}").parse().unwrap_or(0)
}

/// The certificate that backends are shown.
fn client_certificate(
    object: &Object,
    look: &mut Lookup<'_>,
) -> Result<Option<SecretName>, Refusal> {
    let backend = object.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
    let Some(written) = backend.and_then(|backend| backend.client_certificate_ref.as_ref()) else {
        return Ok(None);
    };
    let own = object.metadata.namespace.as_deref().unwrap_or_default();
    let reference = Reference {
        group: written.group.as_deref().unwrap_or(""),
        kind: written.kind.as_deref().unwrap_or("Secret"),
        namespace: written.namespace.as_deref().unwrap_or(own),
        name: &written.name,
    };
    let from = From { kind: "Gateway", namespace: own };
    certificate::resolve(reference, from, "InvalidClientCertificateRef", look).map(Some)
}

/// Tells whether we make the objects: not if the address is a name that exists elsewhere.
fn is_managed(object: &Object) -> bool {
    let mut addresses = object.spec.addresses.iter().flatten();
    !addresses
        .any(|address| address.r#type.as_deref() == Some("Hostname") && address.value.is_some())
}

/// Why a Gateway is not accepted as a whole.
fn refused(object: &Object, told: &Told<'_>) -> Option<Refusal> {
    if let Some(parameters) = told.parameters {
        return Some(parameters.clone());
    }
    let addresses = object.spec.addresses.iter().flatten();
    let kind = |kind: Option<&str>| kind.unwrap_or("IPAddress").to_owned();
    let unknown = addresses
        .map(|address| kind(address.r#type.as_deref()))
        .find(|kind| !matches!(kind.as_str(), "IPAddress" | "Hostname"));
    unknown.map(|kind| ("UnsupportedAddress", format!("addresses of type {kind} are not served")))
}

fn status(
    object: &Object,
    shape: &Shape,
    judged: &[Judged],
    told: &Told<'_>,
    look: &mut Lookup<'_>,
) -> Output {
    let has_client = object.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref()).is_some();
    let addresses = addresses(object, shape, look);
    let serving = is_serving(object, look);
    let own: Vec<&Judged> = judged.iter().filter(|one| one.owner == Owner::Gateway).collect();
    let mut conditions = vec![accepted(object, &own, told)];
    conditions.push(match (told.parameters, refused(object, told)) {
        (Some(_), _) => Condition::new("Programmed", false, "Invalid", STANDING.to_owned()),
        (None, Some(_)) => Condition::new("Programmed", false, "Invalid", NOTHING.to_owned()),
        (None, None) => programmed(object, judged, &told.objections, &addresses, serving),
    });
    if has_client {
        conditions.push(condition("ResolvedRefs", "ResolvedRefs", told.client));
    }
    if frontend::read(object, look).is_insecure() {
        let message = "clients without a valid certificate are taken".to_owned();
        let kind = "InsecureFrontendValidationMode";
        conditions.push(Condition::new(kind, true, "ConfigurationChanged", message));
    }
    let body = Body::Gateway {
        conditions,
        addresses,
        listeners: own.iter().map(|one| one.status(serving)).collect(),
        sets: sets(judged),
    };
    let meta = &object.metadata;
    let name = Name::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    );
    let key = Key { kind: Kind::Gateway, name };
    Output::Status(Status { key, generation: object.metadata.generation, body }.into())
}

/// Number of ListenerSets of which anything is served.
fn sets(judged: &[Judged]) -> usize {
    let served = judged.iter().filter(|one| one.resource.is_some());
    let sets = served.filter_map(|one| match &one.owner {
        Owner::Set(name) => Some(name),
        Owner::Gateway => None,
    });
    sets.collect::<BTreeSet<_>>().len()
}

fn accepted(object: &Object, judged: &[&Judged], told: &Told<'_>) -> Condition {
    if let Some((reason, message)) = refused(object, told) {
        return Condition::new("Accepted", false, reason, message);
    }
    let standing = judged.iter().filter(|one| one.stands()).count();
    let bad: Vec<&str> =
        judged.iter().filter(|one| !one.stands()).map(|one| one.section.as_str()).collect();
    let message = || format!("listeners that are not accepted: {}", bad.join(", "));
    match (standing, bad.is_empty()) {
        (_, true) => Condition::new("Accepted", true, "Accepted", String::new()),
        (0, false) => Condition::new("Accepted", false, "ListenersNotValid", message()),
        (_, false) => Condition::new("Accepted", true, "ListenersNotValid", message()),
    }
}

fn programmed(
    object: &Object,
    judged: &[Judged],
    objections: &[&Objection],
    addresses: &[(&'static str, String)],
    serving: bool,
) -> Condition {
    let no =
        |reason, message: &str| Condition::new("Programmed", false, reason, message.to_owned());
    if judged.iter().all(|one| one.resource.is_none()) {
        return no("Invalid", NOTHING);
    }
    if let Some(first) = objections.first() {
        let all: Vec<&str> = objections.iter().map(|one| one.message.as_str()).collect();
        return no(first.reason, &all.join("; "));
    }
    let asked = object.spec.addresses.iter().flatten().filter_map(|address| address.value.as_ref());
    let unusable: Vec<_> =
        asked.filter(|value| addresses.iter().all(|(_, have)| have != *value)).collect();
    if let Some(value) = unusable.first() {
        return no("AddressNotUsable", &format!("address {value} cannot be had"));
    }
    match (addresses.is_empty(), serving) {
        (true, _) => no("AddressNotAssigned", NO_ADDRESS),
        (false, false) => no("Pending", "no proxy of the Gateway is ready yet"),
        (false, true) => {
            let message = "every ready proxy serves the listeners".to_owned();
            Condition::new("Programmed", true, "Programmed", message).after_ack()
        }
    }
}

/// Tells whether any proxy of the Gateway is ready.
pub fn is_serving(object: &Object, look: &mut Lookup<'_>) -> bool {
    if !is_managed(object) {
        return true;
    }
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let value = index::label(namespace, api::GATEWAY_NAME, &shape::bounded(name));
    pod::any_serves(look.list::<Pod>(Index::Label, &value))
}

/// Where the Gateway is reached: what its Service was given; without a load balancer the
/// Service's own address and name.
fn addresses(object: &Object, shape: &Shape, look: &mut Lookup<'_>) -> Vec<(&'static str, String)> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    if !is_managed(object) {
        let listed = object.spec.addresses.iter().flatten();
        return listed.filter_map(|one| one.value.clone()).map(|name| ("Hostname", name)).collect();
    }
    let Some(service) = look.get::<Service>(namespace, &shape.name) else { return Vec::new() };
    addresses_of(namespace, &shape.name, service)
}

fn addresses_of(namespace: &str, name: &str, service: &Service) -> Vec<(&'static str, String)> {
    let spec = service.spec.as_ref();
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let ips = ingress.iter().filter_map(|one| one.ip.clone()).map(|ip| ("IPAddress", ip));
    let names = ingress.iter().filter_map(|one| one.hostname.clone());
    let given: Vec<_> = ips.chain(names.map(|name| ("Hostname", name))).collect();
    let is_balancer = spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    if !given.is_empty() || is_balancer {
        return given;
    }
    let cluster_ip = spec.and_then(|spec| spec.cluster_ip.clone());
    let ip = cluster_ip.filter(|ip| !ip.is_empty() && ip != "None");
    let own = ip.map(|ip| ("IPAddress", ip));
    own.into_iter().chain([("Hostname", api::service_host(namespace, name))]).collect()
}

#[cfg(test)]
mod tests;
