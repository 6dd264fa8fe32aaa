// SPDX-License-Identifier: Apache-2.0

//! GatewayClasses of ours: whether they are accepted, and what they can do.

use gateway_api::experimental::gatewayclasses::GatewayClass;

use super::parameters;
use crate::api;
use crate::output::Output;
use crate::status::{Body, Condition, Status};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// What gateways of ours serve, by the names of Gateway API `pkg/features`, sorted.
const FEATURES: [&str; 48] = [
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructure",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// Outputs of one GatewayClass: its status, if it names one of our controllers.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(class) = look.get::<GatewayClass>("", &name.name) else { return Vec::new() };
    let Some(served) = api::class_of_controller(&class.spec.controller_name) else {
        return Vec::new();
    };
    let accepted = match parameters::check_class(&name.name, served, look) {
        Ok(()) => Condition::new("Accepted", true, "Accepted", String::new()),
        Err((reason, message)) => Condition::new("Accepted", false, reason, message),
    };
    let key = Key { kind: Kind::GatewayClass, name: name.clone() };
    let body = Body::Class { conditions: vec![accepted], features: FEATURES.to_vec() };
    vec![Output::Status(Status { key, generation: class.metadata.generation, body }.into())]
}

#[cfg(test)]
mod tests {
    use super::FEATURES;

    #[test]
    fn features_are_sorted_and_unique() {
        assert!(FEATURES.is_sorted_by(|a, b| a < b), "{FEATURES:?}");
    }
}
