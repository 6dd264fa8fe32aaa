// SPDX-License-Identifier: Apache-2.0

//! Labels, annotations, classes and groups that users know, each written once.
//!
//! The names are Istio's where Istio has the thing, so manifests written for ambient mode
//! work as they are. The kinds beyond Kubernetes live in [`gateway`] and [`istio`];
//! which addresses stand for hosts that have none, in [`vip`].

pub mod gateway;
pub mod istio;
pub mod vip;

/// Label on Namespace and Pod: `ambient` enrols, `none` keeps out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Label: name of the waypoint Gateway; `none` opts out.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label: namespace of the waypoint Gateway, own namespace when absent.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label on Gateway or GatewayClass: `service`, `workload`, `all` or `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Label on Service or Namespace: whether ingress goes through the waypoint.
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// Label on generated objects: which Gateway they belong to.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label on generated objects: the class of their Gateway.
pub const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Label on generated objects: the controller that manages them.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// Label on ConfigMap of the root namespace: the class whose Gateways it holds defaults for.
pub const DEFAULTS_FOR_CLASS: &str = "gateway.istio.io/defaults-for-class";
/// Label: telemetry name of a workload.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Label: telemetry revision of a workload.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Label: overrides the workload name derived from the owner.
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// Label on Node: region.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Label on Node: zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label on Node, Pod or WorkloadEntry: third level of locality.
pub const SUBZONE: &str = "topology.istio.io/subzone";

/// Label: network of a WorkloadEntry that names none in its spec.
pub const NETWORK: &str = "topology.istio.io/network";
/// Label on Pod or WorkloadEntry: `http` if it takes HBONE by itself.
pub const TUNNEL: &str = "networking.istio.io/tunnel";

/// Annotation on Pod: `enabled` once its capture is proven.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Annotation on Pod: inbound ports stay uncaptured.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Annotation on Pod: whether DNS is captured.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Annotation on Pod: a sidecar was injected, so the pod is never enrolled.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Annotation on AuthorizationPolicy: evaluate and log, never refuse.
pub const DRY_RUN: &str = "istio.io/dry-run";
/// Annotation on Service and Namespace: locality preference.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Annotation on Gateway: name of the generated objects.
pub const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
/// Annotation on Gateway: name of the generated ServiceAccount.
pub const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
/// Annotation on Gateway: type of the generated Service.
pub const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Annotation on Gateway: hops of `X-Forwarded-For` to trust, 0 by default.
pub const TRUSTED_HOPS: &str = "gateway.waymark.dev/trusted-hops";
/// Annotation on Gateway: `section=v1` or `section=v2`, comma separated: PROXY protocol.
pub const PROXY_PROTOCOL: &str = "gateway.waymark.dev/proxy-protocol";
/// Annotation on Gateway: `text` (the default), `json` or `off`: a line per request.
pub const ACCESS_LOG: &str = "gateway.waymark.dev/access-log";
/// Annotation on Gateway: OTLP endpoint that takes its traces.
pub const TRACING_ENDPOINT: &str = "gateway.waymark.dev/tracing-endpoint";
/// Annotation on Gateway: percentage of traces that start here, 0 to 100.
pub const TRACING_SAMPLING: &str = "gateway.waymark.dev/tracing-sampling";

/// API group of Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// API group of ServiceEntry and WorkloadEntry.
pub const NETWORKING_GROUP: &str = "networking.istio.io";
/// The port of HBONE.
pub const HBONE_PORT: u16 = 15008;
/// DNS suffix of Services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// What the objects of a class are for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// At the edge: own listeners.
    Ingress,
    /// In front of services of the mesh: one HBONE listener.
    Waypoint,
}

/// A GatewayClass that this controller serves without being told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BuiltinClass {
    /// Name of the GatewayClass.
    pub name: &'static str,
    /// Its `controllerName`.
    pub controller: &'static str,
    /// What its Gateways are.
    pub role: Role,
}

/// The classes served, ours and Istio's.
pub const CLASSES: [BuiltinClass; 4] = [
    BuiltinClass {
        name: "waymark",
        controller: "waymark.dev/gateway-controller",
        role: Role::Ingress,
    },
    BuiltinClass {
        name: "waymark-waypoint",
        controller: "waymark.dev/mesh-controller",
        role: Role::Waypoint,
    },
    BuiltinClass { name: "istio", controller: "istio.io/gateway-controller", role: Role::Ingress },
    BuiltinClass {
        name: "istio-waypoint",
        controller: "istio.io/mesh-controller",
        role: Role::Waypoint,
    },
];

/// The built-in class of this `controllerName`.
pub fn class_of_controller(controller: &str) -> Option<&'static BuiltinClass> {
    CLASSES.iter().find(|class| class.controller == controller)
}

/// The DNS name of a Service.
pub fn service_host(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// The key of a Service on the wire: `namespace/hostname`.
pub fn service_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{}", service_host(namespace, name))
}
