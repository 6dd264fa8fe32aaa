// SPDX-License-Identifier: Apache-2.0

//! Where the mesh does not reach: pods that a waypoint cannot guard, ports that nobody captures.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Pod, Service as Object};
use routing::delta::Resource as Plane;
use routing::discovery::{GatewayAddress, ServiceKey, TunnelProtocol, Workload};
use serde_json::{Value, json};

use crate::api;
use crate::app::State;
use crate::store::Stores;
use crate::translate::waypoint;

/// The waypoint of each Service that has one.
pub(super) fn waypoints(state: &State) -> HashMap<&ServiceKey, &GatewayAddress> {
    let services = state.published.plane().filter_map(|plane| {
        let Plane::Service(service) = plane else { return None };
        Some(service.as_ref())
    });
    services.filter_map(|service| Some((&service.key, service.waypoint.as_ref()?))).collect()
}

fn workloads(state: &State) -> impl Iterator<Item = &Workload> {
    state.published.plane().filter_map(|plane| {
        let Plane::Workload(workload) = plane else { return None };
        Some(workload.as_ref())
    })
}

/// Pods behind a waypoint that are not in the mesh, so that nothing keeps others from them.
///
/// The pods of gateways are exempt: they are the guards.
pub(super) fn unguarded(state: &State) -> Vec<Value> {
    let waypoints = waypoints(state);
    let open = |workload: &&Workload| {
        workload.tunnel == TunnelProtocol::None && !is_gateways(workload, &state.stores)
    };
    let line = |workload: &Workload| {
        let behind: Vec<String> = workload
            .services
            .keys()
            .filter(|service| waypoints.contains_key(service))
            .map(ToString::to_string)
            .collect();
        let bound = workload.waypoint.is_some() || !behind.is_empty();
        bound.then(|| {
            json!({
                "pod": format!("{}/{}", workload.namespace, workload.name),
                "services": behind,
            })
        })
    };
    workloads(state).filter(open).filter_map(line).collect()
}

fn is_gateways(workload: &Workload, stores: &Stores) -> bool {
    let pod = stores.get::<Pod>(workload.namespace.as_str(), &workload.name);
    pod.is_some_and(|pod| waypoint::is_gateways_own(&pod.metadata))
}

/// UDP ports of Services with pods of the mesh behind them, `namespace/service:port`: the
/// mesh carries what comes over TCP.
pub(super) fn udp(state: &State) -> BTreeSet<String> {
    let served: BTreeSet<&ServiceKey> = workloads(state)
        .filter(|workload| workload.tunnel == TunnelProtocol::Hbone)
        .flat_map(|workload| workload.services.keys())
        .collect();
    let served: BTreeSet<String> = served.into_iter().map(ToString::to_string).collect();
    let mut found = BTreeSet::new();
    for service in state.stores.all::<Object>() {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let udp = ports.filter(|port| port.protocol.as_deref() == Some("UDP"));
        if served.contains(&api::service_key(namespace, name)) {
            found.extend(udp.map(|port| format!("{namespace}/{name}:{}", port.port)));
        }
    }
    found
}
