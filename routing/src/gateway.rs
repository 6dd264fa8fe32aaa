// SPDX-License-Identifier: Apache-2.0

//! Settings of a gateway as a whole.
//!
//! What holds for all listeners and routes of one Gateway object; the process that serves the
//! gateway reads them at each request.

use std::sync::Arc;

use crate::listener::{GatewayName, SecretName};

/// Settings of one gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gateway {
    /// Which gateway.
    pub name: GatewayName,
    /// What it is for.
    pub kind: GatewayKind,
    /// Name of its GatewayClass; policies may point at that.
    pub class: Arc<str>,
    /// Proxies in front of it whose `x-forwarded-for` entries are believed.
    pub trusted_hops: u32,
    /// Where spans go; none makes none.
    pub tracing: Option<Tracing>,
    /// How one line per request is logged; none: not at all.
    pub access_log: Option<LogFormat>,
    /// Certificate to show to TLS backends.
    ///
    /// Rule: `GatewayBackendTLS` in Gateway API `apis/v1/gateway_types.go`.
    pub client_certificate: Option<SecretName>,
}

/// What a gateway is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum GatewayKind {
    /// At the edge: its listeners choose the routes.
    Ingress,
    /// In front of services in the mesh: the destination of a CONNECT chooses the routes.
    Waypoint,
}

/// How a line of the access log is written.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum LogFormat {
    /// Envoy's default text.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Where spans go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tracing {
    /// Host and port of an OTLP collector that speaks gRPC.
    pub endpoint: Arc<str>,
    /// Traces that begin here, out of a million requests; at most a million.
    pub sampled_per_million: u32,
}
