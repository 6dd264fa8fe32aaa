// SPDX-License-Identifier: Apache-2.0

//! `istio.workload.Address`: workloads and services.
//!
//! Owns the conversion both ways. Keeps: what is read and written again is the
//! same message, apart from defaults that are spelled out and extensions that
//! are not known here. Start at [`read`] and [`write()`].

mod parts;

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;

use self::parts::{
    read_application_tunnel, read_balancing, read_health, read_network_mode, read_tunnel,
    read_workload_type, write_application_tunnel, write_balancing, write_health,
    write_network_mode, write_tunnel, write_workload_type,
};
pub use self::parts::{read_gateway, write_gateway};
use super::error::{Names, WireError, address, address_bytes, each, or, port, port_or_zero, range};
use super::messages::istio::workload as wire;
use super::messages::waymark::v1::{ClientAffinity, PodUid};
use crate::discovery::{
    AppProtocol, IpFamilies, Locality, Port, Service, ServiceKey, VirtualAddress, Visibility,
    WeightedWaypoint, Workload,
};

/// Name of the workload extension that holds the Kubernetes UID of the pod.
pub const POD_UID: &str = "waymark.v1.PodUid";

/// Name of the service extension that says that clients keep their endpoint.
pub const CLIENT_AFFINITY: &str = "waymark.v1.ClientAffinity";

/// A workload or a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
}

/// Reads a message.
///
/// # Errors
///
/// See [`WireError`]; nothing is taken from a message that is wrong in part.
pub fn read(message: &wire::Address, names: &mut Names) -> Result<Address, WireError> {
    match message.r#type.as_ref().ok_or(WireError::Missing("type"))? {
        wire::address::Type::Workload(workload) => {
            read_workload(workload, names).map(Arc::new).map(Address::Workload)
        }
        wire::address::Type::Service(service) => {
            read_service(service, names).map(Arc::new).map(Address::Service)
        }
    }
}

/// Writes a message.
pub fn write(address: &Address) -> wire::Address {
    match address {
        Address::Workload(workload) => write_workload(workload),
        Address::Service(service) => write_service(service),
    }
}

/// Reads a workload.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_workload(message: &wire::Workload, names: &mut Names) -> Result<Workload, WireError> {
    if message.uid.is_empty() {
        return Err(WireError::Missing("uid"));
    }
    let namespace = names.namespace("namespace", &message.namespace)?;
    let domain = or(&message.trust_domain, Workload::DEFAULT_TRUST_DOMAIN);
    let account = or(&message.service_account, Workload::DEFAULT_SERVICE_ACCOUNT);
    let policies = &message.authorization_policies;
    let policies = each(policies, |name| names.policy("authorization_policies", name))?;
    let hostname = (!message.hostname.is_empty()).then(|| names.share(&message.hostname));
    Ok(Workload {
        uid: names.share(&message.uid),
        pod_uid: pod_uid(&message.extensions)?,
        name: names.share(&message.name),
        identity: names.identity(domain, &namespace, account)?,
        namespace,
        addresses: each(&message.addresses, |bytes| address("addresses", bytes))?,
        hostname,
        network: names.share(&message.network),
        network_mode: read_network_mode(message.network_mode)?,
        network_gateway: message.network_gateway.as_ref().map(read_gateway).transpose()?,
        tunnel: read_tunnel(message.tunnel_protocol)?,
        native_tunnel: message.native_tunnel,
        application_tunnel: message
            .application_tunnel
            .as_ref()
            .map(read_application_tunnel)
            .transpose()?,
        waypoint: message.waypoint.as_ref().map(read_gateway).transpose()?,
        services: read_ports_by_service(&message.services, names)?,
        authorization_policies: policies,
        health: read_health(message.status)?,
        capacity: message.capacity.unwrap_or(1),
        node: names.share(&message.node),
        locality: message.locality.as_ref().map_or_else(Locality::default, |locality| Locality {
            region: names.share(&locality.region),
            zone: names.share(&locality.zone),
            subzone: names.share(&locality.subzone),
        }),
        cluster: names.share(or(&message.cluster_id, Workload::DEFAULT_CLUSTER)),
        workload_name: names.share(&message.workload_name),
        workload_type: read_workload_type(message.workload_type)?,
        canonical_name: names.share(&message.canonical_name),
        canonical_revision: names.share(&message.canonical_revision),
    })
}

/// Writes a workload.
///
/// The cluster and the identity are always spelled out but for their defaults
/// `cluster.local` and `default`.
pub fn write_workload(workload: &Workload) -> wire::Address {
    let or_empty = |text: &str, default: &str| {
        if text == default { String::new() } else { text.to_owned() }
    };
    let identity = &workload.identity;
    let services = workload.services.iter().map(|(key, ports)| {
        let ports = ports.iter().copied().map(write_port).collect();
        (key.to_string(), wire::PortList { ports })
    });
    let locality = (workload.locality != Locality::default()).then(|| wire::Locality {
        region: workload.locality.region.to_string(),
        zone: workload.locality.zone.to_string(),
        subzone: workload.locality.subzone.to_string(),
    });
    let message = wire::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(address_bytes).collect(),
        hostname: workload.hostname.as_deref().unwrap_or_default().to_owned(),
        network: workload.network.to_string(),
        tunnel_protocol: write_tunnel(workload.tunnel).into(),
        trust_domain: or_empty(identity.trust_domain(), Workload::DEFAULT_TRUST_DOMAIN),
        service_account: or_empty(identity.service_account(), Workload::DEFAULT_SERVICE_ACCOUNT),
        waypoint: workload.waypoint.as_ref().map(write_gateway),
        network_gateway: workload.network_gateway.as_ref().map(write_gateway),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: write_workload_type(workload.workload_type).into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel.map(write_application_tunnel),
        services: services.collect(),
        authorization_policies: workload
            .authorization_policies
            .iter()
            .map(ToString::to_string)
            .collect(),
        status: write_health(workload.health).into(),
        cluster_id: workload.cluster.to_string(),
        locality,
        network_mode: write_network_mode(workload.network_mode).into(),
        extensions: workload.pod_uid.as_deref().map(pod_uid_extension).into_iter().collect(),
        capacity: (workload.capacity != 1).then_some(workload.capacity),
    };
    wire::Address { r#type: Some(wire::address::Type::Workload(message)) }
}

fn pod_uid(extensions: &[wire::Extension]) -> Result<Option<Arc<str>>, WireError> {
    let Some(extension) = extensions.iter().find(|extension| extension.name == POD_UID) else {
        return Ok(None);
    };
    let config = extension.config.as_ref().ok_or(WireError::Missing("extensions.config"))?;
    let message = PodUid::decode(config.value.as_slice()).map_err(WireError::Message)?;
    if message.uid.is_empty() {
        return Err(WireError::Missing("extensions.config.uid"));
    }
    Ok(Some(message.uid.into()))
}

fn pod_uid_extension(uid: &str) -> wire::Extension {
    extension(POD_UID, &PodUid { uid: uid.to_owned() })
}

fn extension(name: &str, message: &impl Message) -> wire::Extension {
    wire::Extension {
        name: name.to_owned(),
        config: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: message.encode_to_vec(),
        }),
    }
}

fn read_ports_by_service(
    services: &BTreeMap<String, wire::PortList>,
    names: &mut Names,
) -> Result<BTreeMap<ServiceKey, Arc<[Port]>>, WireError> {
    let mut read = |(key, list): (&String, &wire::PortList)| {
        let key = names.service("services", key)?;
        let ports = each(&list.ports, read_port)?;
        Ok((key, names.ports(&ports)))
    };
    services.iter().map(&mut read).collect()
}

/// Reads a service.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_service(message: &wire::Service, names: &mut Names) -> Result<Service, WireError> {
    let namespace = names.namespace("namespace", &message.namespace)?;
    if message.hostname.is_empty() {
        return Err(WireError::Missing("hostname"));
    }
    let weighted_waypoints = each(&message.weighted_waypoints, |weighted| {
        let destination = weighted.destination.as_ref();
        let destination =
            destination.ok_or(WireError::Missing("weighted_waypoints.destination"))?;
        Ok(WeightedWaypoint { destination: read_gateway(destination)?, weight: weighted.weight })
    })?;
    let addresses = each(&message.addresses, |address| read_virtual(address, names))?;
    Ok(Service {
        name: names.share(&message.name),
        key: ServiceKey::new(namespace, names.share(&message.hostname)),
        addresses,
        ports: each(&message.ports, read_port)?,
        subject_alt_names: message.subject_alt_names.iter().map(|san| names.share(san)).collect(),
        waypoint: message.waypoint.as_ref().map(read_gateway).transpose()?,
        weighted_waypoints,
        load_balancing: message.load_balancing.as_ref().map(read_balancing).transpose()?,
        client_affinity: message.extensions.iter().any(|one| one.name == CLIENT_AFFINITY),
        ip_families: match wire::IpFamilies::try_from(message.ip_families) {
            Ok(wire::IpFamilies::Automatic) => IpFamilies::Automatic,
            Ok(wire::IpFamilies::Ipv4Only) => IpFamilies::V4,
            Ok(wire::IpFamilies::Ipv6Only) => IpFamilies::V6,
            Ok(wire::IpFamilies::Dual) => IpFamilies::Dual,
            Err(_) => return Err(WireError::Unknown("ip_families", message.ip_families)),
        },
        canonical: message.canonical,
        ingress_use_waypoint: message.ingress_use_waypoint,
        visibility: match wire::service::Visibility::try_from(message.visibility) {
            Ok(wire::service::Visibility::Public) => Visibility::Public,
            Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
            Err(_) => return Err(WireError::Unknown("visibility", message.visibility)),
        },
    })
}

/// Writes a service.
pub fn write_service(service: &Service) -> wire::Address {
    let weighted = service.weighted_waypoints.iter().map(|weighted| wire::WeightedWaypoint {
        destination: Some(write_gateway(&weighted.destination)),
        weight: weighted.weight,
    });
    let families = match service.ip_families {
        IpFamilies::Automatic => wire::IpFamilies::Automatic,
        IpFamilies::V4 => wire::IpFamilies::Ipv4Only,
        IpFamilies::V6 => wire::IpFamilies::Ipv6Only,
        IpFamilies::Dual => wire::IpFamilies::Dual,
    };
    let visibility = match service.visibility {
        Visibility::Public => wire::service::Visibility::Public,
        Visibility::Namespace => wire::service::Visibility::Namespace,
    };
    let message = wire::Service {
        name: service.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: service.key.hostname.to_string(),
        addresses: service.addresses.iter().map(write_virtual).collect(),
        ports: service.ports.iter().copied().map(write_port).collect(),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(write_gateway),
        load_balancing: service.load_balancing.as_ref().map(write_balancing),
        ip_families: families.into(),
        extensions: service
            .client_affinity
            .then(|| extension(CLIENT_AFFINITY, &ClientAffinity {}))
            .into_iter()
            .collect(),
        canonical: service.canonical,
        ingress_use_waypoint: service.ingress_use_waypoint,
        weighted_waypoints: weighted.collect(),
        visibility: visibility.into(),
    };
    wire::Address { r#type: Some(wire::address::Type::Service(message)) }
}

fn read_virtual(
    message: &wire::NetworkAddress,
    names: &mut Names,
) -> Result<VirtualAddress, WireError> {
    let network = names.share(&message.network);
    match message.length {
        None => Ok(VirtualAddress::single(network, address("addresses", &message.address)?)),
        Some(length) => {
            let range = range("addresses", &message.address, length)?;
            Ok(VirtualAddress { network, range })
        }
    }
}

fn write_virtual(address: &VirtualAddress) -> wire::NetworkAddress {
    let length = address.address().is_none().then(|| u32::from(address.range.prefix_len()));
    wire::NetworkAddress {
        network: address.network.to_string(),
        address: address_bytes(address.range.addr()),
        length,
    }
}

fn read_port(message: &wire::Port) -> Result<Port, WireError> {
    let app_protocol = match wire::AppProtocol::try_from(message.app_protocol) {
        Ok(wire::AppProtocol::Unknown) => AppProtocol::Unknown,
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Err(_) => return Err(WireError::Unknown("app_protocol", message.app_protocol)),
    };
    Ok(Port {
        service_port: port("service_port", message.service_port)?,
        target_port: port_or_zero("target_port", message.target_port)?,
        app_protocol,
    })
}

fn write_port(port: Port) -> wire::Port {
    let app_protocol = match port.app_protocol {
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
        AppProtocol::Http11 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    };
    wire::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: app_protocol.into(),
    }
}

#[cfg(test)]
pub(super) mod tests;
