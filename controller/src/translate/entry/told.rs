// SPDX-License-Identifier: Apache-2.0

//! What entries are told: what of them cannot be served, and how they are bound to a waypoint.
//!
//! Owns the rule that no part of an entry is left out in silence. `Accepted` is false when
//! nothing of it is served; `PartiallyInvalid`, as routes have it, names what is left out of one
//! that is served otherwise.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy::identity::ServiceAccount;

use super::resolves;
use crate::api;
use crate::api::istio::{ServiceEntrySpec, WorkloadEntrySpec};
use crate::status::Condition;
use crate::store::facts::Step;
use crate::store::lookup::Lookup;
use crate::translate::service::bound;
use crate::translate::waypoint::{self, Binding};

/// How hosts of a ServiceEntry find their endpoints.
const RESOLUTIONS: [&str; 5] = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"];

/// A virtual address or a range of them.
pub(super) fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Into::into))
}

/// Tells whether a host stands for many, so that no name server knows its address.
pub(super) fn is_wildcard(host: &str) -> bool {
    host.contains('*')
}

/// What of a ServiceEntry is not served, a sentence each.
pub(super) fn of_service(spec: &ServiceEntrySpec) -> Vec<String> {
    let mut faults = Vec::new();
    if spec.hosts.is_empty() {
        faults.push("spec.hosts names no host".to_owned());
    }
    for (at, text) in spec.addresses.iter().enumerate().filter(|(_, text)| range(text).is_none()) {
        faults.push(format!(
            "spec.addresses[{at}] {text:?} is neither an IP address nor a range like 10.9.0.0/16: it is left out"
        ));
    }
    let word = spec.resolution.as_deref().unwrap_or("NONE");
    if !RESOLUTIONS.contains(&word) {
        let known = RESOLUTIONS.join(", ");
        faults.push(format!("spec.resolution {word:?} is none of {known}: it counts as STATIC"));
    }
    if spec.workload_selector.is_some() {
        if !spec.endpoints.is_empty() {
            let why = "spec.workloadSelector says who serves the hosts";
            faults.push(format!("spec.endpoints are left out: {why}"));
        }
        return faults;
    }
    if resolves(spec) && spec.endpoints.is_empty() {
        let hosts = spec.hosts.iter().enumerate().filter(|(_, host)| is_wildcard(host));
        faults.extend(hosts.map(|(at, host)| {
            format!(
                "spec.hosts[{at}] {host:?} has no address that could be looked up, so calls to it fail: \
                 list the hosts that are called, or give spec.endpoints"
            )
        }));
    }
    let endpoints = spec.endpoints.iter().enumerate();
    faults
        .extend(endpoints.flat_map(|(at, one)| of_workload(one, &format!("spec.endpoints[{at}]"))));
    faults
}

/// Why a WorkloadEntry, or an endpoint at a place of a ServiceEntry, is not served.
pub(super) fn of_workload(spec: &WorkloadEntrySpec, place: &str) -> Vec<String> {
    let mut faults = Vec::new();
    match spec.address.as_deref().unwrap_or_default() {
        "" => faults.push(format!("{place}.address is missing: the endpoint is left out")),
        address if !is_address(address) => faults.push(format!(
            "{place}.address {address:?} is neither an IP address nor a DNS name: the endpoint is left out"
        )),
        _ => {}
    }
    if let Some(account) = &spec.service_account
        && account.parse::<ServiceAccount>().is_err()
    {
        faults.push(format!(
            "{place}.serviceAccount {account:?} is no name of a service account: the endpoint is left out"
        ));
    }
    faults
}

/// Tells whether something may be reached at that: an IP address or a DNS name.
fn is_address(text: &str) -> bool {
    let word = |label: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(legal)
    };
    let name = || text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(word);
    text.parse::<IpAddr>().is_ok() || name()
}

/// The conditions of an entry with these faults; `serves` tells whether anything of it is served.
pub(super) fn conditions(faults: &[String], serves: bool) -> Vec<Condition> {
    let message = faults.join("; ");
    let accepted = || Condition::new("Accepted", true, "Accepted", String::new()).after_ack();
    match (faults.is_empty(), serves) {
        (true, _) => vec![accepted()],
        (false, true) => {
            let partly = Condition::new("PartiallyInvalid", true, "UnsupportedValue", message);
            vec![accepted(), partly]
        }
        (false, false) => vec![Condition::new("Accepted", false, "Invalid", message)],
    }
}

/// How a WorkloadEntry is bound to a waypoint; none if neither it nor its namespace names one.
///
/// Its guard is a matter of its own tunnel: where it has none, nothing can refuse those who reach
/// its address past the waypoint, and it is told so.
pub(super) fn workload_bound(
    meta: &ObjectMeta,
    binding: Option<&Binding>,
    look: &mut Lookup<'_>,
) -> Option<Condition> {
    let Some(binding) = binding else {
        // Named by itself, and of no use to it.
        let (gateway, _, serves) = waypoint::named(meta, look)?;
        let message = format!(
            "Waypoint {gateway} is not for workloads, as its label {} says: traffic to the entry's \
             own address passes no waypoint",
            api::WAYPOINT_FOR
        );
        let kind = "istio.io/WaypointBound";
        let wrong = || Condition::new(kind, false, "UnsupportedTrafficType", message);
        return (!serves.is_for_workloads()).then(wrong);
    };
    let mut condition = bound(binding, &Step::Settled, 0);
    let has_tunnel = waypoint::label(meta.labels.as_ref(), api::TUNNEL) == Some("http");
    condition.message += if has_tunnel {
        ". Calls past it are for the entry's own tunnel to refuse, by the policies of this mesh"
    } else {
        ". Nothing refuses calls that reach the entry's address past it: no tunnel of the mesh is there"
    };
    Some(condition)
}
