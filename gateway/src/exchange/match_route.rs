// SPDX-License-Identifier: Apache-2.0

//! From a head to the rule that answers it; the lookup itself is routing's.

use std::sync::Arc;

use routing::discovery::{Service, Workload};
use routing::matching::{Head, PathMatch};
use routing::ports::{Choice, Port, Transport};
use routing::route::Rule;
use routing::serving::Ruled;

use super::{Asked, Entry};
use crate::reply::Refusal;

/// The rule, and what else the later steps need of the place it was found at.
pub(crate) struct Matched<'a> {
    /// The rule; none sends the request straight on.
    pub(crate) rule: Option<&'a Arc<Rule>>,
    /// The path of the match that won.
    pub(crate) path: Option<&'a PathMatch>,
    /// Port that redirects mean if nothing else is said.
    pub(crate) listener_port: u16,
    /// The service of the mesh that was called.
    pub(crate) service: Option<&'a Arc<Service>>,
    /// The workload that was called by its own address.
    pub(crate) workload: Option<&'a Arc<Workload>>,
    /// Port of the service or workload that was called; of a listener, the declared one.
    pub(crate) port: u16,
}

/// Finds the rule for `head`.
///
/// # Errors
///
/// [`Refusal::NoListener`], [`Refusal::Misdirected`] or [`Refusal::NoRoute`].
pub(super) fn match_route<'a>(asked: &Asked<'a>, head: &Head<'_>) -> Result<Matched<'a>, Refusal> {
    match &asked.arrival.entry {
        Entry::Port(port) => {
            let port = asked.loaded.serving().ports().at(*port, Transport::Tcp);
            on_port(asked, port.ok_or(Refusal::NoListener)?, head)
        }
        Entry::Service(service, port) => on_service(asked, service, *port, head),
        Entry::Workload(workload) => Ok(Matched {
            rule: None,
            path: None,
            listener_port: asked.arrival.local.port(),
            service: None,
            workload: Some(workload),
            port: asked.arrival.local.port(),
        }),
    }
}

fn on_port<'a>(
    asked: &Asked<'a>,
    place: &'a Port,
    head: &Head<'_>,
) -> Result<Matched<'a>, Refusal> {
    let choice = match &asked.arrival.tls {
        None => place.by_host(head.host),
        Some(tls) => place.by_host_over_tls(tls.sni.as_deref(), head.host),
    };
    let listener = match choice {
        Choice::Serve(listener) => listener,
        Choice::NotFound => return Err(Refusal::NoListener),
        Choice::Misdirected => return Err(Refusal::Misdirected),
    };
    let rules = asked.loaded.serving().listener_rules(&listener.name);
    let found = rules.and_then(|rules| rules.http.find(head)).ok_or(Refusal::NoRoute)?;
    let port = listener.port;
    Ok(Matched {
        rule: Some(found.rule),
        path: Some(&found.matched.path),
        listener_port: port,
        service: None,
        workload: None,
        port,
    })
}

/// The rules of the service, or of the caller's namespace; without any the service itself.
fn on_service<'a>(
    asked: &Asked<'a>,
    service: &'a Arc<Service>,
    port: u16,
    head: &Head<'_>,
) -> Result<Matched<'a>, Refusal> {
    let straight = Matched {
        rule: None,
        path: None,
        listener_port: port,
        service: Some(service),
        workload: None,
        port,
    };
    let namespace = asked.arrival.peer.identity.as_ref().map(policy::identity::Identity::namespace);
    let rules = asked.loaded.serving().service_rules(&service.key, port, namespace);
    match rules.request(head) {
        Ruled::Straight => Ok(straight),
        Ruled::By(found) => {
            Ok(Matched { rule: Some(found.rule), path: Some(&found.matched.path), ..straight })
        }
        Ruled::Nowhere => Err(Refusal::NoRoute),
    }
}
