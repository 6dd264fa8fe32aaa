// SPDX-License-Identifier: Apache-2.0

//! From peer and request to a permit; the decision itself is policy's.

use std::net::IpAddr;

use policy::authz::{Action, Denied, Permit, Recorded};
use policy::request::{Http, Request};
use routing::matching::Head;

use super::{Arrival, Asked};
use crate::state::Loaded;

/// Asks the policies of this gateway, and of the service that was called, as `loaded` has them.
///
/// # Errors
///
/// The policy that refuses.
pub(super) fn admit(
    loaded: &Loaded,
    asked: &Asked<'_>,
    head: &http::request::Parts,
) -> Result<Permit, Denied> {
    let (host, path, claims) = (Head::of(head).host, head.uri.path(), asked.claims.get());
    let http = Http { method: &head.method, path, host, headers: &head.headers, claims };
    decide(loaded, asked.arrival, asked.remote, Some(http))
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
    loaded.serving().judge(targets, &request, record)
}

/// Tells the operator of a policy that decides nothing.
fn record(only: Recorded<'_>) {
    let allows = only.action == Action::Allow && only.rule.is_some();
    tracing::info!(policy = %only.policy, action = ?only.action, rule = only.rule, allows,
        "policy is only recorded");
}
