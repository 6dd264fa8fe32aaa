// SPDX-License-Identifier: Apache-2.0

//! Istio's labels, from the two ends of what is counted.

use std::ptr;
use std::sync::Arc;

use policy::identity::Identity;
use routing::discovery::{Service, Workload};

use super::Outcome;
use crate::reply::Flag;

/// Who counts, in Istio's words.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reporter {
    /// A waypoint.
    Waypoint,
    /// A gateway at the edge: it is the source of what it sends.
    Source,
}

/// What is counted: requests of one protocol, or connections.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RequestProtocol {
    /// HTTP.
    Http,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

impl RequestProtocol {
    /// The value of the label `request_protocol`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// The two ends of a request or connection, as far as they are known.
///
/// Borrowed, for cores share what it points at and would contend for its count of references.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Who counts.
    pub reporter: Reporter,
    /// The workload that sends.
    pub source: Option<&'a Arc<Workload>>,
    /// Its identity, if it was proven; one object for equal identities, or series are found slowly.
    pub source_identity: Option<&'a Identity>,
    /// The workload that was chosen.
    pub destination: Option<&'a Arc<Workload>>,
    /// The service that was asked for.
    pub service: Option<&'a Arc<Service>>,
    /// True if the counted hop is in mutual TLS.
    pub mutual_tls: bool,
}

/// Keeps what a [`Key`] has the places of, so that they become no other object's.
#[derive(Debug)]
pub(super) struct Pins {
    _workloads: [Option<Arc<Workload>>; 2],
    _identity: Option<Identity>,
    _service: Option<Arc<Service>>,
}

impl Pins {
    pub(super) fn new(ends: &Ends<'_>) -> Self {
        Self {
            _workloads: [ends.source.cloned(), ends.destination.cloned()],
            _identity: ends.source_identity.cloned(),
            _service: ends.service.cloned(),
        }
    }
}

/// A series as one core knows it: by the addresses of the shared ends.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    reporter: Reporter,
    source: usize,
    source_identity: usize,
    destination: usize,
    service: usize,
    mutual_tls: bool,
    protocol: RequestProtocol,
    code: u16,
    grpc: Option<u16>,
    flag: Flag,
}

impl Key {
    pub(super) fn http(ends: &Ends<'_>, outcome: &Outcome) -> Self {
        let Outcome { protocol, code, grpc, flag, .. } = *outcome;
        Self { protocol, code, grpc, ..Self::tcp(ends, flag) }
    }

    pub(super) fn tcp(ends: &Ends<'_>, flag: Flag) -> Self {
        Self {
            reporter: ends.reporter,
            source: place(ends.source),
            source_identity: ends.source_identity.map_or(0, |name| name.as_str().as_ptr().addr()),
            destination: place(ends.destination),
            service: place(ends.service),
            mutual_tls: ends.mutual_tls,
            protocol: RequestProtocol::Tcp,
            code: 0,
            grpc: None,
            flag,
        }
    }
}

fn place<T>(shared: Option<&Arc<T>>) -> usize {
    shared.map_or(0, |shared| ptr::from_ref::<T>(shared).addr())
}

/// The labels of one series, in Istio's order.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct LabelSet {
    labels: Vec<(&'static str, Arc<str>)>,
    workloads: [Option<Arc<str>>; 2],
}

impl LabelSet {
    pub(super) fn new(key: &Key, ends: &Ends<'_>) -> Self {
        let mut labels = Vec::with_capacity(25);
        let reporter = match ends.reporter {
            Reporter::Waypoint => "waypoint",
            Reporter::Source => "source",
        };
        labels.push(("reporter", Arc::from(reporter)));
        let source = ends.source.map(|source| &**source);
        push_end(&mut labels, &SOURCE, source, ends.source_identity);
        let destination = ends.destination.map(|destination| &**destination);
        push_service(&mut labels, ends.service.map(|service| &**service), destination);
        let proven = destination.filter(|_| ends.mutual_tls).map(|workload| &workload.identity);
        push_end(&mut labels, &DESTINATION, destination, proven);
        labels.push(("request_protocol", key.protocol.as_str().into()));
        if key.protocol != RequestProtocol::Tcp {
            labels.push(("response_code", key.code.to_string().into()));
            let grpc = key.grpc.map(|code| code.to_string()).unwrap_or_default();
            labels.push(("grpc_response_status", grpc.into()));
        }
        labels.push(("response_flags", key.flag.as_str().into()));
        let security = if ends.mutual_tls { "mutual_tls" } else { UNKNOWN };
        labels.push(("connection_security_policy", security.into()));
        let uid = |workload: &Arc<Workload>| Arc::clone(&workload.uid);
        let workloads = [ends.source.map(uid), ends.destination.map(uid)];
        Self { labels, workloads }
    }

    pub(super) fn as_slice(&self) -> &[(&'static str, Arc<str>)] {
        &self.labels
    }

    /// Tells whether it is about gRPC calls.
    pub(super) fn is_grpc(&self) -> bool {
        let grpc = RequestProtocol::Grpc.as_str();
        self.labels.iter().any(|(name, value)| *name == "request_protocol" && **value == *grpc)
    }

    /// Uids of the workloads that the series is about.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &str> {
        self.workloads.iter().flatten().map(|uid| &**uid)
    }
}

const UNKNOWN: &str = "unknown";

/// Names of the labels of one end.
struct EndNames {
    workload: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
}

const SOURCE: EndNames = EndNames {
    workload: "source_workload",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
};

const DESTINATION: EndNames = EndNames {
    workload: "destination_workload",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
};

fn push_end(
    labels: &mut Vec<(&'static str, Arc<str>)>,
    names: &EndNames,
    workload: Option<&Workload>,
    identity: Option<&Identity>,
) {
    let text = |part: fn(&Workload) -> &Arc<str>| -> Arc<str> {
        let part = workload.map(part).filter(|text| !text.is_empty());
        part.map_or_else(|| UNKNOWN.into(), Arc::clone)
    };
    let namespace = workload.map_or(UNKNOWN, |workload| workload.namespace.as_str());
    labels.extend([
        (names.workload, text(|w| &w.workload_name)),
        (names.canonical_service, text(|w| &w.canonical_name)),
        (names.canonical_revision, text(|w| &w.canonical_revision)),
        (names.namespace, namespace.into()),
        (names.principal, identity.map_or(UNKNOWN, |identity| identity.as_str()).into()),
        (names.app, text(|w| &w.canonical_name)),
        (names.version, text(|w| &w.canonical_revision)),
        (names.cluster, text(|w| &w.cluster)),
    ]);
}

fn push_service(
    labels: &mut Vec<(&'static str, Arc<str>)>,
    service: Option<&Service>,
    destination: Option<&Workload>,
) {
    let unknown = || Arc::from(UNKNOWN);
    let host = service.map_or_else(unknown, |service| Arc::clone(&service.key.hostname));
    let name = service.map_or_else(unknown, |service| Arc::clone(&service.name));
    let namespace = match (service, destination) {
        (Some(service), _) => service.key.namespace.as_str(),
        (None, Some(workload)) => workload.namespace.as_str(),
        (None, None) => UNKNOWN,
    };
    labels.extend([
        ("destination_service", host),
        ("destination_service_namespace", namespace.into()),
        ("destination_service_name", name),
    ]);
}
