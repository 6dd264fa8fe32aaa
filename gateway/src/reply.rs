// SPDX-License-Identifier: Apache-2.0

//! Answers that come from the gateway itself.
//!
//! Owns the one map from a [`Refusal`] to status, gRPC status, response flag,
//! detail and body. No arm is left to a default, so a new reason cannot be
//! answered by accident. Redirects and preflights are answers of filters, not
//! refusals; see `routing::filter`.
//!
//! Rule: Gateway API `HTTPRouteRule.backendRefs` and `HTTPRouteTimeouts` for
//! 500 and 504; gRPC `doc/http-grpc-status-mapping.md`; Envoy's response flags.

use std::sync::Arc;

use http::StatusCode;
use policy::authz::{Denied, PolicyName};
use policy::jwt::InvalidToken;
use routing::discovery::ServiceKey;
use routing::l4;

/// Why a request gets no answer from a backend.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No listener of the port is for this host.
    #[error("no listener is for this host")]
    NoListener,
    /// The host belongs to another TLS listener than the connection's server name.
    #[error("host is not served on a connection for this server name")]
    Misdirected,
    /// No rule matches.
    #[error("no rule matches")]
    NoRoute,
    /// A policy says no.
    #[error("refused by policy")]
    Denied(#[source] Denied),
    /// A token of the request is bad.
    #[error("refused by RequestAuthentication {policy}")]
    Token {
        /// The RequestAuthentication that reads it.
        policy: PolicyName,
        /// What is wrong with it.
        #[source]
        why: InvalidToken,
    },
    /// A filter does not resolve, or gave no usable host or path.
    #[error("a filter of the rule cannot be applied: {0}")]
    Filter(Arc<str>),
    /// The rule has no backend, or the one whose turn it was does not resolve.
    #[error("the rule has no usable backend")]
    NoBackend(#[source] routing::split::NoBackend),
    /// The backend's service is not known.
    #[error("backend service {0} is not known")]
    UnknownService(ServiceKey),
    /// The backend's TLS policy is broken, so nothing may be sent.
    #[error("the TLS policy of backend {0} is invalid")]
    BackendTls(ServiceKey),
    /// No way leads to the backend.
    #[error("no way leads to the backend")]
    NoWay(#[source] l4::Refusal),
    /// No endpoint of the service takes traffic.
    #[error("service {0} has no healthy endpoint")]
    NoEndpoint(ServiceKey),
    /// This gateway has no certificate yet, and plaintext is no way out.
    #[error("this gateway has no certificate yet")]
    NoCertificate,
    /// Every endpoint that was tried could not be reached.
    #[error("no connection to a backend")]
    Connect(Arc<str>),
    /// The connection to the backend ended before it answered.
    #[error("backend ended the connection before it answered")]
    UpstreamGone,
    /// The backend's answer breaks the protocol.
    #[error("backend answered out of protocol")]
    UpstreamProtocol,
    /// The request, or the attempt at a backend, took too long.
    #[error("time is over")]
    Timeout,
    /// The client ended before there was an answer; nobody reads this one.
    #[error("client is gone")]
    ClientGone,
    /// The client's body breaks its framing.
    #[error("request body is malformed")]
    BadBody,
    /// The client's body is longer than allowed.
    #[error("request body is too long")]
    BodyTooLarge,
    /// Too many requests are running.
    #[error("too much is running already")]
    Overload,
    /// A fault of the gateway.
    #[error("internal fault: {0}")]
    Internal(&'static str),
}

/// What a refusal looks like to the client, and in metrics and log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Status for HTTP.
    pub status: StatusCode,
    /// Status for gRPC, which HTTP answers with 200.
    pub grpc: GrpcCode,
    /// Flag for metrics and log.
    pub flag: Flag,
    /// Word for the log, as Envoy's response code details.
    pub detail: &'static str,
    /// Text of the body, and of the gRPC message.
    pub body: &'static str,
}

/// The gRPC codes that a gateway gives.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum GrpcCode {
    /// 1.
    Cancelled,
    /// 2.
    Unknown,
    /// 7.
    PermissionDenied,
    /// 8.
    ResourceExhausted,
    /// 12.
    Unimplemented,
    /// 13.
    Internal,
    /// 14.
    Unavailable,
    /// 16.
    Unauthenticated,
}

impl GrpcCode {
    /// The number on the wire, as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "1",
            Self::Unknown => "2",
            Self::PermissionDenied => "7",
            Self::ResourceExhausted => "8",
            Self::Unimplemented => "12",
            Self::Internal => "13",
            Self::Unavailable => "14",
            Self::Unauthenticated => "16",
        }
    }
}

/// Why a response is not the backend's own, in Envoy's words.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Flag {
    /// It is.
    #[default]
    None,
    /// No route.
    NoRoute,
    /// No healthy upstream.
    NoHealthyUpstream,
    /// No connection to the upstream.
    UpstreamFailure,
    /// Upstream ended the connection.
    UpstreamTermination,
    /// Upstream broke the protocol.
    UpstreamProtocol,
    /// Upstream took too long.
    UpstreamTimeout,
    /// Client ended the connection.
    DownstreamTermination,
    /// Client broke the protocol.
    DownstreamProtocol,
    /// Refused by policy.
    Denied,
    /// Refused to protect what is running.
    Overload,
}

impl Flag {
    /// The flag as Istio's `response_flags` label writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamFailure => "UF",
            Self::UpstreamTermination => "UC",
            Self::UpstreamProtocol => "UPE",
            Self::UpstreamTimeout => "UT",
            Self::DownstreamTermination => "DC",
            Self::DownstreamProtocol => "DPE",
            Self::Denied => "DENY",
            Self::Overload => "OM",
        }
    }
}

impl Refusal {
    /// What the client, the metrics and the log are told.
    #[expect(clippy::too_many_lines, reason = "one exhaustive map, an arm per refusal")]
    pub fn answer(&self) -> Answer {
        use GrpcCode as G;
        use StatusCode as S;
        let (status, grpc, flag, detail, body) = match self {
            Self::NoListener | Self::NoRoute => {
                (S::NOT_FOUND, G::Unimplemented, Flag::NoRoute, "route_not_found", "")
            }
            Self::Misdirected => {
                (S::MISDIRECTED_REQUEST, G::Unknown, Flag::NoRoute, "misdirected_request", "")
            }
            Self::Denied(_) => (
                S::FORBIDDEN,
                G::PermissionDenied,
                Flag::Denied,
                "rbac_access_denied_matched_policy",
                "RBAC: access denied",
            ),
            // An audience is refused with 403: Envoy's `jwt_authn`.
            Self::Token { why: InvalidToken::Audience, .. } => (
                S::FORBIDDEN,
                G::PermissionDenied,
                Flag::Denied,
                InvalidToken::Audience.detail(),
                InvalidToken::Audience.as_str(),
            ),
            Self::Token { why, .. } => {
                (S::UNAUTHORIZED, G::Unauthenticated, Flag::Denied, why.detail(), why.as_str())
            }
            Self::Filter(_) => {
                (S::INTERNAL_SERVER_ERROR, G::Unknown, Flag::NoRoute, "filter_invalid", "")
            }
            Self::NoBackend(_) | Self::UnknownService(_) => {
                (S::INTERNAL_SERVER_ERROR, G::Unknown, Flag::NoRoute, "no_backend", "")
            }
            Self::BackendTls(_) => {
                (S::INTERNAL_SERVER_ERROR, G::Unknown, Flag::NoRoute, "backend_tls_invalid", "")
            }
            Self::NoWay(_) | Self::NoEndpoint(_) => (
                S::SERVICE_UNAVAILABLE,
                G::Unavailable,
                Flag::NoHealthyUpstream,
                "no_healthy_upstream",
                "no healthy upstream",
            ),
            Self::NoCertificate => (
                S::SERVICE_UNAVAILABLE,
                G::Unavailable,
                Flag::UpstreamFailure,
                "no_certificate",
                "no certificate",
            ),
            Self::Connect(_) => (
                S::SERVICE_UNAVAILABLE,
                G::Unavailable,
                Flag::UpstreamFailure,
                "upstream_connection_failure",
                "upstream connect error",
            ),
            Self::UpstreamGone => (
                S::SERVICE_UNAVAILABLE,
                G::Unavailable,
                Flag::UpstreamTermination,
                "upstream_reset_before_response_started",
                "upstream connection ended before it answered",
            ),
            Self::UpstreamProtocol => (
                S::BAD_GATEWAY,
                G::Unavailable,
                Flag::UpstreamProtocol,
                "upstream_protocol_error",
                "upstream answered out of protocol",
            ),
            Self::Timeout => (
                S::GATEWAY_TIMEOUT,
                G::Unavailable,
                Flag::UpstreamTimeout,
                "response_timeout",
                "upstream request timeout",
            ),
            Self::ClientGone => (
                StatusCode::from_u16(499).unwrap_or(S::BAD_REQUEST),
                G::Cancelled,
                Flag::DownstreamTermination,
                "downstream_remote_disconnect",
                "",
            ),
            Self::BadBody => {
                (S::BAD_REQUEST, G::Internal, Flag::DownstreamProtocol, "body_malformed", "")
            }
            Self::BodyTooLarge => (
                S::PAYLOAD_TOO_LARGE,
                G::ResourceExhausted,
                Flag::DownstreamProtocol,
                "body_too_large",
                "",
            ),
            Self::Overload => {
                (S::SERVICE_UNAVAILABLE, G::Unavailable, Flag::Overload, "overload", "overload")
            }
            Self::Internal(_) => {
                (S::INTERNAL_SERVER_ERROR, G::Internal, Flag::None, "internal", "")
            }
        };
        Answer { status, grpc, flag, detail, body }
    }

    /// The policy that refused, if one did.
    pub fn denied(&self) -> Option<&Denied> {
        if let Self::Denied(denied) = self { Some(denied) } else { None }
    }

    /// The RequestAuthentication that refused a token, if one did.
    pub fn authentication(&self) -> Option<&PolicyName> {
        if let Self::Token { policy, .. } = self { Some(policy) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_statuses_that_clients_expect() {
        let key: ServiceKey = "ns/svc.ns.svc.cluster.local".parse().unwrap();
        let denied = Denied::NotAllowed(PolicyName::new("ns", "p"));
        let token = |why| Refusal::Token { policy: PolicyName::new("ns", "p"), why };
        let cases = [
            (Refusal::NoRoute, 404, "12", "NR"),
            (Refusal::Misdirected, 421, "2", "NR"),
            (Refusal::Denied(denied), 403, "7", "DENY"),
            (token(InvalidToken::Expired), 401, "16", "DENY"),
            (token(InvalidToken::Audience), 403, "7", "DENY"),
            (Refusal::NoBackend(routing::split::NoBackend::None), 500, "2", "NR"),
            (Refusal::UnknownService(key.clone()), 500, "2", "NR"),
            (Refusal::NoEndpoint(key), 503, "14", "UH"),
            (Refusal::Connect("refused".into()), 503, "14", "UF"),
            (Refusal::UpstreamGone, 503, "14", "UC"),
            (Refusal::UpstreamProtocol, 502, "14", "UPE"),
            (Refusal::Timeout, 504, "14", "UT"),
            (Refusal::ClientGone, 499, "1", "DC"),
            (Refusal::BodyTooLarge, 413, "8", "DPE"),
        ];
        for (refusal, status, grpc, flag) in cases {
            let answer = refusal.answer();
            let got = (answer.status.as_u16(), answer.grpc.as_str(), answer.flag.as_str());
            assert_eq!(got, (status, grpc, flag), "{refusal:?}");
        }
    }
}
