// SPDX-License-Identifier: Apache-2.0

//! Own kube types for the route kinds of Gateway API.
//!
//! The `gateway-api` crate gives each occurrence of a parent reference, backend reference and
//! filter a type of its own (five parents, two copies of every filter) and binds TCPRoute and
//! UDPRoute at `v1alpha2` only. One type per thing keeps the translators single; the test
//! holds that nothing the crate's types carry is dropped here. Gateway, GatewayClass,
//! ReferenceGrant and BackendTLSPolicy are the crate's.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares one route kind with its spec.
macro_rules! route_kind {
    ($spec:ident, $root:literal, $kind:literal, $plural:literal, { $($field:tt)* }) => {
        #[doc = concat!("Spec of a ", $kind, ".")]
        #[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, JsonSchema, PartialEq)]
        #[kube(group = "gateway.networking.k8s.io", version = "v1", kind = $kind, root = $root,
            plural = $plural, namespaced, status = "RouteStatus", derive = "PartialEq", derive = "Default",
            doc = "A route of Gateway API.")]
        #[serde(rename_all = "camelCase")]
        pub struct $spec {
            /// Gateways, listeners or Services that this route attaches to.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub parent_refs: Vec<ParentRef>,
            /// Attachment to default Gateways.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub use_default_gateways: Option<String>,
            $($field)*
        }
    };
}

route_kind!(HttpRouteSpec, "HttpRoute", "HTTPRoute", "httproutes", {
    /// Host names that the route answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Rules in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<HttpRule>>,
});
route_kind!(GrpcRouteSpec, "GrpcRoute", "GRPCRoute", "grpcroutes", {
    /// Host names that the route answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Rules in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<GrpcRule>>,
});
route_kind!(TlsRouteSpec, "TlsRoute", "TLSRoute", "tlsroutes", {
    /// Server names that the route answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Rules in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<L4Rule>,
});
route_kind!(TcpRouteSpec, "TcpRoute", "TCPRoute", "tcproutes", {
    /// Rules in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<L4Rule>,
});
route_kind!(UdpRouteSpec, "UdpRoute", "UDPRoute", "udproutes", {
    /// Rules in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<L4Rule>,
});

/// Declares a plain structure of a route: camel case, absent fields left out.
macro_rules! plain {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize, Clone, Debug, Default, JsonSchema, PartialEq)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

plain!(
    /// What a route attaches to.
    ParentRef {
        /// API group, Gateway API's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
        /// Kind, `Gateway` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Name of the parent.
        name: String,
        /// Namespace, the route's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Port of the listener or Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<i32>,
        /// Name of the listener.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        section_name: Option<String>,
    }
);
plain!(
    /// Where a rule sends.
    BackendRef {
        /// API group, core when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
        /// Kind, `Service` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Name of the backend.
        name: String,
        /// Namespace, the route's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Port of the Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<i32>,
        /// Share of the traffic, 1 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight: Option<i32>,
        /// Filters that act for this backend only.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        filters: Vec<Filter>,
    }
);
plain!(
    /// One rule of an HTTPRoute.
    HttpRule {
        /// Name of the rule.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Any of these must match; everything does when absent.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        matches: Vec<HttpMatch>,
        /// Filters in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        filters: Vec<Filter>,
        /// Where to send.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        backend_refs: Vec<BackendRef>,
        /// Time limits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeouts: Option<Timeouts>,
        /// When to try again (GEP-1731).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry: Option<Retry>,
        /// Session persistence, kept as written: not served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(skip)]
        session_persistence: Option<serde_json::Value>,
    }
);
plain!(
    /// One rule of a GRPCRoute.
    GrpcRule {
        /// Name of the rule.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Any of these must match; everything does when absent.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        matches: Vec<GrpcMatch>,
        /// Filters in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        filters: Vec<Filter>,
        /// Where to send.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        backend_refs: Vec<BackendRef>,
        /// Session persistence, kept as written: not served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(skip)]
        session_persistence: Option<serde_json::Value>,
    }
);
plain!(
    /// One rule of a TLSRoute, TCPRoute or UDPRoute.
    L4Rule {
        /// Name of the rule.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Where to send.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        backend_refs: Vec<BackendRef>,
    }
);
plain!(
    /// All of these must hold.
    HttpMatch {
        /// Path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<TypedValue>,
        /// Headers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<NamedMatch>,
        /// Query parameters.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        query_params: Vec<NamedMatch>,
        /// Method.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method: Option<String>,
    }
);
plain!(
    /// All of these must hold.
    GrpcMatch {
        /// Service and method.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method: Option<GrpcMethod>,
        /// Headers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<NamedMatch>,
    }
);
plain!(
    /// A gRPC service and method.
    GrpcMethod {
        /// `Exact` when absent, or `RegularExpression`.
        #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Service; any when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        /// Method; any when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method: Option<String>,
    }
);
plain!(
    /// A path match: its type and its value.
    TypedValue {
        /// `PathPrefix` when absent.
        #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// `/` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    }
);
plain!(
    /// A header or query match.
    NamedMatch {
        /// `Exact` when absent.
        #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Name.
        name: String,
        /// Value or expression.
        value: String,
    }
);
plain!(
    /// Time limits in the form of GEP-2257.
    Timeouts {
        /// Whole request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<String>,
        /// One try.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backend_request: Option<String>,
    }
);
plain!(
    /// When and how often to try again.
    Retry {
        /// Status codes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        codes: Vec<i64>,
        /// Tries after the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempts: Option<i64>,
        /// Pause between two tries.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backoff: Option<String>,
    }
);
plain!(
    /// One filter: `type` says which of the members is meant. The others are absent, and take
    /// no room.
    Filter {
        /// Name of the filter.
        #[serde(rename = "type")]
        kind: String,
        /// Edits of request headers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_header_modifier: Option<Box<HeaderModifier>>,
        /// Edits of response headers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        response_header_modifier: Option<Box<HeaderModifier>>,
        /// Copies of the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_mirror: Option<Box<Mirror>>,
        /// An answer that points elsewhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_redirect: Option<Box<Redirect>>,
        /// Another host or path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url_rewrite: Option<Box<Rewrite>>,
        /// Cross-origin answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cors: Option<Box<Cors>>,
        /// A filter outside Gateway API: not served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(skip)]
        extension_ref: Option<serde_json::Value>,
        /// External authorisation: not served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(skip)]
        external_auth: Option<serde_json::Value>,
    }
);
plain!(
    /// Edits of headers.
    HeaderModifier {
        /// Replace.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        set: Vec<NamedValue>,
        /// Append.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        add: Vec<NamedValue>,
        /// Remove.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        remove: Vec<String>,
    }
);
plain!(
    /// A header and its value.
    NamedValue {
        /// Name.
        name: String,
        /// Value.
        value: String,
    }
);
plain!(
    /// Copies of requests to another backend.
    Mirror {
        /// Where the copies go.
        backend_ref: BackendRef,
        /// Share in percent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        percent: Option<i32>,
        /// Share as a fraction.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fraction: Option<Fraction>,
    }
);
plain!(
    /// A share of requests.
    Fraction {
        /// Above the line.
        numerator: i32,
        /// Below the line, 100 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        denominator: Option<i32>,
    }
);
plain!(
    /// An answer that points elsewhere.
    Redirect {
        /// `http` or `https`; the request's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scheme: Option<String>,
        /// Host; the request's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
        /// Path; the request's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathModifier>,
        /// Port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<i32>,
        /// 302 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status_code: Option<i64>,
    }
);
plain!(
    /// Another host or path towards the backend.
    Rewrite {
        /// Host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
        /// Path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathModifier>,
    }
);
plain!(
    /// How a path changes.
    PathModifier {
        /// `ReplaceFullPath` or `ReplacePrefixMatch`.
        #[serde(rename = "type")]
        kind: String,
        /// The whole new path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replace_full_path: Option<String>,
        /// What stands in place of the matched prefix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replace_prefix_match: Option<String>,
    }
);
plain!(
    /// Cross-origin answers.
    Cors {
        /// Origins.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow_origins: Vec<String>,
        /// Whether credentials may be sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow_credentials: Option<bool>,
        /// Methods.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow_methods: Vec<String>,
        /// Request headers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow_headers: Vec<String>,
        /// Response headers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        expose_headers: Vec<String>,
        /// Seconds that an answer may be kept, 5 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_age: Option<i32>,
    }
);

/// Status of a route, kept as written.
#[derive(Serialize, Deserialize, Clone, Debug, Default, JsonSchema, PartialEq)]
pub struct RouteStatus {
    /// One entry per parent and controller.
    #[serde(default)]
    #[schemars(skip)]
    pub parents: Vec<serde_json::Value>,
}
