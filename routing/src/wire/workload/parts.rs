// SPDX-License-Identifier: Apache-2.0

//! Parts of workloads and services: gateways, balancing, and small enums, both ways.

use super::wire;
use crate::discovery::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, HBONE_PORT, Health,
    HealthPolicy, LoadBalancing, LoadBalancingMode, LocalityScope, NetworkAddress, NetworkMode,
    ServiceKey, TunnelProtocol, WorkloadType,
};
use crate::wire::error::{WireError, address, address_bytes, each, named, port_or_zero};

/// Reads where a gateway or waypoint is.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_gateway(message: &wire::GatewayAddress) -> Result<GatewayAddress, WireError> {
    let destination = message.destination.as_ref().ok_or(WireError::Missing("destination"))?;
    let destination = match destination {
        wire::gateway_address::Destination::Hostname(name) => {
            let namespace = name.namespace.parse().map_err(named("destination.namespace"))?;
            if name.hostname.is_empty() {
                return Err(WireError::Missing("destination.hostname"));
            }
            GatewayDestination::Hostname(ServiceKey::new(namespace, name.hostname.as_str()))
        }
        wire::gateway_address::Destination::Address(found) => {
            let ip = address("destination.address", &found.address)?;
            let network = found.network.as_str().into();
            GatewayDestination::Address(NetworkAddress::new(network, ip))
        }
    };
    let hbone_port = match port_or_zero("hbone_mtls_port", message.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(GatewayAddress { destination, hbone_port })
}

/// Writes where a gateway or waypoint is.
pub fn write_gateway(gateway: &GatewayAddress) -> wire::GatewayAddress {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => {
            wire::gateway_address::Destination::Hostname(wire::NamespacedHostname {
                namespace: key.namespace.to_string(),
                hostname: key.hostname.to_string(),
            })
        }
        GatewayDestination::Address(address) => {
            wire::gateway_address::Destination::Address(wire::NetworkAddress {
                network: address.network.to_string(),
                address: address_bytes(address.address),
                length: None,
            })
        }
    };
    wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: gateway.hbone_port.into(),
    }
}

pub(super) fn read_balancing(message: &wire::LoadBalancing) -> Result<LoadBalancing, WireError> {
    use wire::load_balancing as lb;
    let scope = |value: &i32| match lb::Scope::try_from(*value) {
        Ok(lb::Scope::Region) => Ok(LocalityScope::Region),
        Ok(lb::Scope::Zone) => Ok(LocalityScope::Zone),
        Ok(lb::Scope::Subzone) => Ok(LocalityScope::Subzone),
        Ok(lb::Scope::Node) => Ok(LocalityScope::Node),
        Ok(lb::Scope::Cluster) => Ok(LocalityScope::Cluster),
        Ok(lb::Scope::Network) => Ok(LocalityScope::Network),
        Ok(lb::Scope::UnspecifiedScope) | Err(_) => {
            Err(WireError::Unknown("routing_preference", *value))
        }
    };
    let mode = match lb::Mode::try_from(message.mode) {
        Ok(lb::Mode::UnspecifiedMode) => LoadBalancingMode::Any,
        Ok(lb::Mode::Strict) => LoadBalancingMode::Strict,
        Ok(lb::Mode::Failover) => LoadBalancingMode::Failover,
        Ok(lb::Mode::Passthrough) => LoadBalancingMode::Passthrough,
        Err(_) => return Err(WireError::Unknown("mode", message.mode)),
    };
    let health = match lb::HealthPolicy::try_from(message.health_policy) {
        Ok(lb::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(lb::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Err(_) => return Err(WireError::Unknown("health_policy", message.health_policy)),
    };
    let preference = each(&message.routing_preference, scope)?;
    Ok(LoadBalancing { preference, mode, health })
}

pub(super) fn write_balancing(balancing: &LoadBalancing) -> wire::LoadBalancing {
    use wire::load_balancing as lb;
    let scope = |scope: &LocalityScope| match scope {
        LocalityScope::Region => lb::Scope::Region,
        LocalityScope::Zone => lb::Scope::Zone,
        LocalityScope::Subzone => lb::Scope::Subzone,
        LocalityScope::Node => lb::Scope::Node,
        LocalityScope::Cluster => lb::Scope::Cluster,
        LocalityScope::Network => lb::Scope::Network,
    };
    let mode = match balancing.mode {
        LoadBalancingMode::Any => lb::Mode::UnspecifiedMode,
        LoadBalancingMode::Strict => lb::Mode::Strict,
        LoadBalancingMode::Failover => lb::Mode::Failover,
        LoadBalancingMode::Passthrough => lb::Mode::Passthrough,
    };
    let health = match balancing.health {
        HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
        HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
    };
    wire::LoadBalancing {
        routing_preference: balancing.preference.iter().map(|one| scope(one).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    }
}

pub(super) fn read_application_tunnel(
    message: &wire::ApplicationTunnel,
) -> Result<ApplicationTunnel, WireError> {
    let protocol = match wire::application_tunnel::Protocol::try_from(message.protocol) {
        Ok(wire::application_tunnel::Protocol::None) => ApplicationProtocol::None,
        Ok(wire::application_tunnel::Protocol::Proxy) => ApplicationProtocol::Proxy,
        Err(_) => return Err(WireError::Unknown("application_tunnel", message.protocol)),
    };
    let port = port_or_zero("application_tunnel.port", message.port)?;
    Ok(ApplicationTunnel { protocol, port: (port != 0).then_some(port) })
}

pub(super) fn write_application_tunnel(tunnel: ApplicationTunnel) -> wire::ApplicationTunnel {
    let protocol = match tunnel.protocol {
        ApplicationProtocol::None => wire::application_tunnel::Protocol::None,
        ApplicationProtocol::Proxy => wire::application_tunnel::Protocol::Proxy,
    };
    wire::ApplicationTunnel {
        protocol: protocol.into(),
        port: tunnel.port.unwrap_or_default().into(),
    }
}

pub(super) fn read_tunnel(value: i32) -> Result<TunnelProtocol, WireError> {
    match wire::TunnelProtocol::try_from(value) {
        Ok(wire::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(wire::TunnelProtocol::LegacyIstioMtls) => {
            Err(WireError::NotServed("tunnel_protocol", "LEGACY_ISTIO_MTLS"))
        }
        Err(_) => Err(WireError::Unknown("tunnel_protocol", value)),
    }
}

pub(super) fn write_tunnel(tunnel: TunnelProtocol) -> wire::TunnelProtocol {
    match tunnel {
        TunnelProtocol::None => wire::TunnelProtocol::None,
        TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
    }
}

pub(super) fn read_health(value: i32) -> Result<Health, WireError> {
    match wire::WorkloadStatus::try_from(value) {
        Ok(wire::WorkloadStatus::Healthy) => Ok(Health::Healthy),
        Ok(wire::WorkloadStatus::Unhealthy) => Ok(Health::Unhealthy),
        Err(_) => Err(WireError::Unknown("status", value)),
    }
}

pub(super) fn write_health(health: Health) -> wire::WorkloadStatus {
    match health {
        Health::Healthy => wire::WorkloadStatus::Healthy,
        Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
    }
}

pub(super) fn read_network_mode(value: i32) -> Result<NetworkMode, WireError> {
    match wire::NetworkMode::try_from(value) {
        Ok(wire::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire::NetworkMode::HostNetwork) => Ok(NetworkMode::Host),
        Err(_) => Err(WireError::Unknown("network_mode", value)),
    }
}

pub(super) fn write_network_mode(mode: NetworkMode) -> wire::NetworkMode {
    match mode {
        NetworkMode::Standard => wire::NetworkMode::Standard,
        NetworkMode::Host => wire::NetworkMode::HostNetwork,
    }
}

pub(super) fn read_workload_type(value: i32) -> Result<WorkloadType, WireError> {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Deployment) => Ok(WorkloadType::Deployment),
        Ok(wire::WorkloadType::Cronjob) => Ok(WorkloadType::CronJob),
        Ok(wire::WorkloadType::Pod) => Ok(WorkloadType::Pod),
        Ok(wire::WorkloadType::Job) => Ok(WorkloadType::Job),
        Err(_) => Err(WireError::Unknown("workload_type", value)),
    }
}

pub(super) fn write_workload_type(kind: WorkloadType) -> wire::WorkloadType {
    match kind {
        WorkloadType::Deployment => wire::WorkloadType::Deployment,
        WorkloadType::CronJob => wire::WorkloadType::Cronjob,
        WorkloadType::Pod => wire::WorkloadType::Pod,
        WorkloadType::Job => wire::WorkloadType::Job,
    }
}
