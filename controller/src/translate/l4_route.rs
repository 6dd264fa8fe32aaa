// SPDX-License-Identifier: Apache-2.0

//! TLSRoutes, TCPRoutes and UDPRoutes → one rule resource per rule, and their statuses.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use routing::route::RouteKind;

use super::attach::Route;
use super::route::{self, Parts, Reader};
use crate::api::gateway as written;
use crate::output::Output;
use crate::store::Name;
use crate::store::lookup::Lookup;

/// Outputs of one TLSRoute.
pub fn run_tls(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<written::TlsRoute>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let spec = &object.spec;
    let hosts = spec.hostnames.as_slice();
    run(RouteKind::Tls, &object.metadata, &spec.parent_refs, hosts, (&spec.rules, look))
}

/// Outputs of one TCPRoute.
pub fn run_tcp(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<written::TcpRoute>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let spec = &object.spec;
    run(RouteKind::Tcp, &object.metadata, &spec.parent_refs, &[], (&spec.rules, look))
}

/// Outputs of one UDPRoute.
pub fn run_udp(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<written::UdpRoute>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let spec = &object.spec;
    run(RouteKind::Udp, &object.metadata, &spec.parent_refs, &[], (&spec.rules, look))
}

fn run(
    kind: RouteKind,
    meta: &ObjectMeta,
    parents: &[written::ParentRef],
    hostnames: &[String],
    (rules, look): (&[written::L4Rule], &mut Lookup<'_>),
) -> Vec<Output> {
    route::outputs(Route { kind, meta, parents, hostnames }, rules, look, read)
}

fn read(rule: &written::L4Rule, reader: &mut Reader<'_, '_>) -> Result<Parts, String> {
    Ok(Parts {
        name: rule.name.as_deref().map(Into::into),
        backends: reader.backends(&rule.backend_refs)?,
        ..Parts::default()
    })
}
