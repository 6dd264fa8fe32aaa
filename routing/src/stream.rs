// SPDX-License-Identifier: Apache-2.0

//! The delta discovery protocol as two state machines.
//!
//! Owns who is subscribed to what, which versions the other side has, and how
//! responses are acknowledged or refused: [`client`] is the proxy's half,
//! [`server`] the controller's. Leaves transport to the tunnel and the
//! controller, and the resources to [`crate::wire`].
//!
//! Keeps: a response is answered exactly once; what was refused is named, and
//! the rest of the response counts.

pub mod client;
pub mod server;

use std::sync::Arc;

pub use crate::wire::messages::envoy::config::core::v3::Node;
pub use crate::wire::messages::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use crate::wire::messages::google::rpc::Status;
use crate::wire::messages::waymark::v1 as own;
use prost::Message;

/// Path of the gRPC method.
pub const DELTA_AGGREGATED_RESOURCES: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The name that stands for all resources of a kind.
pub const WILDCARD: &str = "*";

/// gRPC code of a refusal: INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

const REJECTED_URL: &str = "type.googleapis.com/waymark.v1.Rejected";

/// A resource that was refused.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rejected {
    /// Name of the resource; empty if the other side did not say.
    pub name: Arc<str>,
    /// Why, in one line.
    pub reason: Arc<str>,
}

/// The status that tells the server what was refused: in words, and name by name.
fn status(rejected: &[Rejected]) -> Status {
    let lines = rejected.iter().map(|one| format!("{}: {}", one.name, one.reason));
    let details = rejected.iter().map(|one| {
        let message = own::Rejected { name: one.name.to_string(), reason: one.reason.to_string() };
        prost_types::Any { type_url: REJECTED_URL.to_owned(), value: message.encode_to_vec() }
    });
    Status {
        code: INVALID_ARGUMENT,
        message: lines.collect::<Vec<_>>().join("; "),
        details: details.collect(),
    }
}

/// What a status says was refused; if it names nothing, its words stand under the empty name.
fn rejected(status: &Status) -> Vec<Rejected> {
    let ours = status.details.iter().filter(|detail| detail.type_url == REJECTED_URL);
    let read = ours.map(|detail| own::Rejected::decode(detail.value.as_slice()));
    let named: Vec<Rejected> = read
        .flatten()
        .map(|one| Rejected { name: one.name.into(), reason: one.reason.into() })
        .collect();
    if named.is_empty() {
        vec![Rejected { name: "".into(), reason: status.message.as_str().into() }]
    } else {
        named
    }
}

#[cfg(test)]
mod tests;
