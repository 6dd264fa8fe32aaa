// SPDX-License-Identifier: Apache-2.0

//! From peer and request to a permit; the decision itself is policy's.

use std::net::IpAddr;

use policy::authz::{Action, Denied, Permit, Recorded, Target, evaluate_and_record};
use policy::request::{Http, Request};
use routing::discovery::{Port, Service, Workload};
use routing::matching::Head;

use super::Arrival;
use crate::state::Loaded;

/// Asks the policies of this gateway, and of the service that was called.
///
/// # Errors
///
/// The policy that refuses.
pub(super) fn admit(
    loaded: &Loaded,
    arrival: &Arrival,
    remote: IpAddr,
    head: &http::request::Parts,
) -> Result<Permit, Denied> {
    let host = Head::of(head).host;
    let http = Http { method: &head.method, path: head.uri.path(), host, headers: &head.headers };
    decide(loaded, arrival, remote, Some(http))
}

/// The decision over a request, or over a connection below HTTP.
///
/// # Errors
///
/// The policy that refuses.
pub(crate) fn decide(
    loaded: &Loaded,
    arrival: &Arrival,
    remote: IpAddr,
    http: Option<Http<'_>>,
) -> Result<Permit, Denied> {
    let request = Request {
        peer: &arrival.peer,
        remote,
        destination: arrival.local,
        sni: arrival.sni(),
        http,
    };
    let targets = loaded.targets().chain(&arrival.targets);
    let policies = targets.flat_map(|target| loaded.serving().policies(target));
    evaluate_and_record(policies.map(|policy| &**policy), &request, record)
}

/// What the policies over calls to `service` point at.
pub(crate) fn targets_of_service(service: &Service) -> Vec<Target> {
    vec![Target::Service(service.key.to_string().into())]
}

/// What the policies over calls to `port` of `workload`, by its own address, point at: every
/// service that targets the port, so that a call by address is no way around them.
pub(crate) fn targets_of_workload(workload: &Workload, port: u16) -> Vec<Target> {
    let targets = |ports: &[Port]| {
        ports.iter().any(|one| {
            let target = if one.target_port == 0 { one.service_port } else { one.target_port };
            target == port
        })
    };
    let services = workload.services.iter().filter(|(_, ports)| targets(ports));
    services.map(|(key, _)| Target::Service(key.to_string().into())).collect()
}

/// Tells the operator of a policy that decides nothing.
fn record(only: Recorded<'_>) {
    let allows = only.action == Action::Allow && only.rule.is_some();
    tracing::info!(policy = %only.policy, action = ?only.action, rule = only.rule, allows,
        "policy is only recorded");
}
