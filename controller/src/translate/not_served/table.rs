// SPDX-License-Identifier: Apache-2.0

//! Labels and annotations of Istio's that are not served, or not with every value.
//!
//! A key that has no row is served with every value, is written by programs alone, or is read by
//! others than the mesh (`prometheus.io/*`). Whoever begins to serve one takes its row out.
//!
//! Rule: Istio's `api/label` and `api/annotation`, as far as they concern ambient mode.

use crate::api;
use crate::store::Kind;

/// One key that is looked for.
#[derive(Debug)]
pub(super) struct Row {
    /// Where it stands.
    pub(super) place: Place,
    /// The key.
    pub(super) key: &'static str,
    /// Kinds on which it means something.
    pub(super) kinds: &'static [Kind],
    /// Values that are served, or that ask for nothing; an empty one never asks for anything.
    pub(super) fine: &'static [&'static str],
    /// What happens instead.
    pub(super) instead: &'static str,
}

/// Where a key stands in the metadata.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Label,
    Annotation,
}

impl Place {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Annotation => "annotation",
        }
    }
}

/// Label: the cluster of a workload; the mesh's own asks for nothing.
pub(super) const CLUSTER: &str = "topology.istio.io/cluster";
/// Who sees an entry or Service.
pub(super) const EVERYWHERE: &str = "it is visible in every namespace";

const FALSE: &[&str] = &["false", "0", "f", "F", "False", "FALSE"];
const BOOLS: &[&str] =
    &["true", "1", "t", "T", "True", "TRUE", "false", "0", "f", "F", "False", "FALSE"];
const BOUND: &[Kind] = &[Kind::Namespace, Kind::Service, Kind::ServiceEntry];
const POD: &[Kind] = &[Kind::Pod];
const WORKLOADS: &[Kind] = &[Kind::Pod, Kind::WorkloadEntry];
const GATEWAY: &[Kind] = &[Kind::Gateway];
const PROXIES: &[Kind] = &[Kind::Gateway, Kind::Pod];
const LOGS: &str =
    "proxies log as they are set up; for a Gateway's, spec.infrastructure.parametersRef changes it";
const NO_CANARY: &str = "all traffic goes to the waypoint of istio.io/use-waypoint";
const NO_SIDECAR: &str =
    "no sidecar is injected; label istio.io/dataplane-mode=ambient brings a pod into the mesh";
const ONE_NETWORK: &str = "everything is of one network; there are no gateways to other networks";

/// Every such key.
pub(super) const ROWS: &[Row] = &[
    Row {
        place: Place::Label,
        key: api::DATAPLANE_MODE,
        kinds: &[Kind::Namespace, Kind::Pod],
        fine: &["ambient", "none", "sidecar"],
        instead: "it counts as if it were not there; wanted ambient or none",
    },
    Row {
        place: Place::Label,
        key: api::WAYPOINT_FOR,
        kinds: &[Kind::Gateway, Kind::GatewayClass],
        fine: &["service", "workload", "all", "none"],
        instead: "it counts as service; wanted service, workload, all or none",
    },
    Row {
        place: Place::Label,
        key: "istio.io/use-waypoint-canary",
        kinds: BOUND,
        fine: &["none"],
        instead: NO_CANARY,
    },
    Row {
        place: Place::Label,
        key: "istio.io/use-waypoint-canary-namespace",
        kinds: BOUND,
        fine: &[],
        instead: NO_CANARY,
    },
    Row {
        place: Place::Annotation,
        key: "istio.io/use-waypoint-canary-weight",
        kinds: BOUND,
        fine: &["0"],
        instead: NO_CANARY,
    },
    Row {
        place: Place::Label,
        key: "istio.io/global",
        kinds: &[Kind::Service],
        fine: FALSE,
        instead: "the Service is known in this cluster alone",
    },
    Row {
        place: Place::Label,
        key: "istio.io/rev",
        kinds: &[Kind::Namespace, Kind::Gateway, Kind::Pod],
        fine: &["default"],
        instead: "there is one control plane, and it serves objects of every revision",
    },
    Row {
        place: Place::Label,
        key: api::NETWORK,
        kinds: &[Kind::Namespace, Kind::Pod, Kind::Service, Kind::Gateway],
        fine: &[],
        instead: ONE_NETWORK,
    },
    Row {
        place: Place::Label,
        key: "networking.istio.io/gatewayPort",
        kinds: &[Kind::Gateway, Kind::Service],
        fine: &[],
        instead: ONE_NETWORK,
    },
    Row {
        place: Place::Label,
        key: CLUSTER,
        kinds: WORKLOADS,
        fine: &[],
        instead: "the workload is told as one of this mesh's own cluster",
    },
    Row {
        place: Place::Label,
        key: api::TUNNEL,
        kinds: WORKLOADS,
        fine: &["http"],
        instead: "the workload counts as one that takes no HBONE by itself; wanted http",
    },
    Row {
        place: Place::Label,
        key: "security.istio.io/tlsMode",
        kinds: WORKLOADS,
        fine: &["disabled"],
        instead: "mutual TLS is that of the mesh, to workloads that are in it; others get plain bytes",
    },
    Row {
        place: Place::Label,
        key: "sidecar.istio.io/inject",
        kinds: POD,
        fine: FALSE,
        instead: NO_SIDECAR,
    },
    Row {
        place: Place::Annotation,
        key: "sidecar.istio.io/inject",
        kinds: POD,
        fine: FALSE,
        instead: NO_SIDECAR,
    },
    Row {
        place: Place::Annotation,
        key: api::BYPASS_INBOUND,
        kinds: POD,
        fine: BOOLS,
        instead: "it counts as false; wanted true or false",
    },
    Row {
        place: Place::Annotation,
        key: api::DNS_CAPTURE,
        kinds: POD,
        fine: BOOLS,
        instead: "it counts as true; wanted true or false",
    },
    Row {
        place: Place::Annotation,
        key: "istio.io/reroute-virtual-interfaces",
        kinds: POD,
        fine: &[],
        instead: "what comes by these interfaces is not taken for traffic that the pod sends",
    },
    Row {
        place: Place::Annotation,
        key: "ambient.istio.io/waypoint-inbound-binding",
        kinds: &[Kind::Gateway, Kind::GatewayClass],
        fine: &[],
        instead: "waypoints take HBONE on port 15008",
    },
    Row {
        place: Place::Annotation,
        key: "ambient.istio.io/xfcc-include-client-identity",
        kinds: GATEWAY,
        fine: &["true"],
        instead: "a waypoint always tells the proven caller in x-forwarded-client-cert",
    },
    Row {
        place: Place::Annotation,
        key: "istio.io/connect-strategy",
        kinds: &[Kind::ServiceEntry],
        fine: &[],
        instead: "addresses of a name are tried as for entries without it",
    },
    Row {
        place: Place::Annotation,
        key: api::DRY_RUN,
        kinds: &[Kind::AuthorizationPolicy],
        fine: BOOLS,
        instead: "the policy is enforced; wanted true or false",
    },
    Row {
        place: Place::Annotation,
        key: "networking.istio.io/exportTo",
        kinds: &[Kind::Service, Kind::ServiceEntry],
        fine: &["*"],
        instead: EVERYWHERE,
    },
    Row {
        place: Place::Annotation,
        key: api::SERVICE_TYPE,
        kinds: GATEWAY,
        fine: &["ClusterIP", "NodePort", "LoadBalancer"],
        instead: "the Gateway's Service cannot be made; wanted ClusterIP, NodePort or LoadBalancer",
    },
    Row {
        place: Place::Annotation,
        key: "networking.istio.io/address-type",
        kinds: GATEWAY,
        fine: &[],
        instead: "an address in the status is of the type that it is: IPAddress or Hostname",
    },
    Row {
        place: Place::Annotation,
        key: "gateway.istio.io/controller-version",
        kinds: GATEWAY,
        fine: &[],
        instead: "the Gateway is served whichever version of a controller is named",
    },
    Row {
        place: Place::Annotation,
        key: "proxy.istio.io/config",
        kinds: PROXIES,
        fine: &[],
        instead: "proxies of this mesh do not read it",
    },
    Row {
        place: Place::Annotation,
        key: "sidecar.istio.io/proxyImage",
        kinds: PROXIES,
        fine: &[],
        instead: "proxies run the image of the installation; for a Gateway's, spec.infrastructure.parametersRef changes it",
    },
    Row {
        place: Place::Annotation,
        key: "sidecar.istio.io/logLevel",
        kinds: PROXIES,
        fine: &[],
        instead: LOGS,
    },
    Row {
        place: Place::Annotation,
        key: "sidecar.istio.io/componentLogLevel",
        kinds: PROXIES,
        fine: &[],
        instead: LOGS,
    },
    Row {
        place: Place::Annotation,
        key: "sidecar.istio.io/agentLogLevel",
        kinds: PROXIES,
        fine: &[],
        instead: LOGS,
    },
    Row {
        place: Place::Annotation,
        key: "prometheus.istio.io/merge-metrics",
        kinds: POD,
        fine: FALSE,
        instead: "metrics of the application are not merged into a proxy's: Prometheus scrapes the pod itself",
    },
];
