// SPDX-License-Identifier: Apache-2.0

//! What stands behind a Service, as far as its status tells of it: pods that the guard cannot
//! cover, and ports that another Service's waypoint has closed to it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};

use crate::api::istio::WorkloadEntry;
use crate::store::facts::{PodState, Step};
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::translate::waypoint::{self, label};
use crate::translate::workload::{selecting, workload_port};
use crate::translate::{pod, service};

/// The pods that a Service selects.
pub(super) fn pods<'a>(object: &Service, look: &mut Lookup<'a>) -> Vec<&'a Arc<Pod>> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let selector = object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let Some((key, value)) = selector.and_then(|selector| selector.first_key_value()) else {
        return Vec::new();
    };
    let mut found = look.list::<Pod>(Index::Label, &index::label(namespace, key, value));
    found.retain(|found| {
        let own = found.metadata.labels.as_ref();
        let has = |(key, value)| own.is_some_and(|own| own.get(key) == Some(value));
        selector.into_iter().flatten().all(has) && !pod::is_terminal(found)
    });
    found
}

/// The WorkloadEntries that a Service selects.
fn entries<'a>(object: &Service, look: &mut Lookup<'a>) -> Vec<&'a Arc<WorkloadEntry>> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let selector = object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let Some((key, value)) = selector.and_then(|selector| selector.first_key_value()) else {
        return Vec::new();
    };
    let mut found = look.list::<WorkloadEntry>(Index::Label, &index::label(namespace, key, value));
    found.retain(|found| {
        let own = found.all_labels();
        selector.into_iter().flatten().all(|(key, value)| own.get(key) == Some(value))
    });
    found
}

/// How many of the Service's pods are not proven to be in the mesh, so that nothing guards them;
/// with the WorkloadEntries that have no tunnel.
pub(super) fn unguarded(object: &Service, look: &mut Lookup<'_>) -> usize {
    let open = |entry: &&Arc<WorkloadEntry>| {
        label(Some(&entry.all_labels()), crate::api::TUNNEL) != Some("http")
    };
    let mut count = entries(object, look).into_iter().filter(open).count();
    for found in pods(object, look) {
        let uid = found.metadata.uid.as_deref().unwrap_or_default();
        let proven = look.pod(uid).is_some_and(|fact| fact.state == PodState::Enrolled);
        if !proven && !waypoint::is_gateways_own(&found.metadata) {
            count += 1;
        }
    }
    count
}

/// The Service and waypoint that close a port of this Service, which has no waypoint, in words.
pub(super) fn closed_by(object: &Service, look: &mut Lookup<'_>) -> Option<String> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let own: Vec<_> = object.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).collect();
    for found in pods(object, look) {
        if waypoint::is_gateways_own(&found.metadata) {
            continue;
        }
        let labels = found.metadata.labels.clone().unwrap_or_default();
        for other in selecting(namespace, &labels, look) {
            let spec = other.spec.as_ref()?;
            let name = other.metadata.name.as_deref().unwrap_or_default();
            if service::addresses(spec).is_empty() {
                continue;
            }
            let Some(binding) = waypoint::of_service(&other.metadata, look) else { continue };
            if look.step(&crate::api::service_key(namespace, name)) != Step::Settled {
                continue;
            }
            for theirs in spec.ports.iter().flatten() {
                let target = workload_port(found, theirs).map(|port| port.target_port);
                let shared = own.iter().any(|ours| {
                    target.is_some()
                        && workload_port(found, ours).map(|port| port.target_port) == target
                });
                if shared {
                    return Some(format!(
                        "calls are refused: port {} of its pods admits only waypoint {} of Service {namespace}/{name}",
                        target.unwrap_or_default(),
                        binding.gateway,
                    ));
                }
            }
        }
    }
    None
}
