// SPDX-License-Identifier: Apache-2.0

//! What policies point at that are in force for a request or session at a gateway.

use policy::authz::{Denied, Permit, Recorded, Target, evaluate_and_record};
use policy::request::Request;

use super::Serving;
use crate::discovery::{ServiceKey, Workload};
use crate::gateway::Gateway;

/// What policies over everything that passes `gateway` point at: itself and its class.
pub fn of_gateway(gateway: &Gateway) -> [Target; 2] {
    let name = Target::Gateway(gateway.name.as_str().into());
    [name, Target::Class(gateway.class.clone())]
}

/// What policies over calls to a service point at.
pub fn of_service(service: &ServiceKey) -> Target {
    Target::Service(service.to_string().into())
}

/// What policies over calls to `port` of `workload`, by its own address, point
/// at: every service that targets the port, so that a call by address is no way
/// around them.
pub fn of_workload(workload: &Workload, port: u16) -> impl Iterator<Item = Target> {
    workload.services_on(port).map(|(key, _)| of_service(key))
}

impl Serving {
    /// Asks the policies that point at `targets` about a request or session.
    /// `record` is told of each policy that is only recorded.
    ///
    /// # Errors
    ///
    /// The policy that refuses.
    pub fn judge<'a>(
        &'a self,
        targets: impl IntoIterator<Item = &'a Target>,
        request: &Request<'_>,
        record: impl FnMut(Recorded<'a>),
    ) -> Result<Permit, Denied> {
        let policies = targets.into_iter().flat_map(|target| self.policies(target));
        evaluate_and_record(policies.map(|policy| &**policy), request, record)
    }
}
