// SPDX-License-Identifier: Apache-2.0

//! Messages of istiod, single refusals, and round trips of arbitrary resources.

use std::net::IpAddr;

use base64::Engine;
use proptest::prelude::*;

use super::*;
use crate::discovery::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health,
    HealthPolicy, LoadBalancing, LoadBalancingMode, LocalityScope, NetworkAddress, NetworkMode,
    TunnelProtocol, WorkloadType,
};

/// Resources of one type that istiod sent: name and message bytes.
pub(crate) fn vectors(type_url: &str) -> Vec<(String, Vec<u8>)> {
    let text = include_str!("../../../tests/vectors/istiod-bookinfo/resources.json");
    let resources: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let wanted = resources.into_iter().filter(|resource| resource["type"] == type_url);
    let decode = base64::engine::general_purpose::STANDARD;
    let read = |resource: serde_json::Value| {
        let bytes = decode.decode(resource["base64"].as_str().unwrap()).unwrap();
        (resource["name"].as_str().unwrap().to_owned(), bytes)
    };
    wanted.map(read).collect()
}

#[test]
fn what_istiod_sends_is_read_and_written_again_field_by_field() {
    let vectors = vectors("type.googleapis.com/istio.workload.Address");
    assert_eq!(vectors.len(), 30);
    for (name, bytes) in vectors {
        let message = wire::Address::decode(bytes.as_slice()).unwrap();
        let address = read(&message, &mut Names::default()).unwrap();
        assert_eq!(write(&address), message, "{name}");
        let own_name = match address {
            Address::Workload(workload) => workload.uid.to_string(),
            Address::Service(service) => service.key.to_string(),
        };
        assert_eq!(own_name, name);
    }
}

fn good_workload() -> wire::Workload {
    wire::Workload { uid: "u".into(), namespace: "default".into(), ..Default::default() }
}

fn refusal(change: impl FnOnce(&mut wire::Workload)) -> WireError {
    let mut message = good_workload();
    change(&mut message);
    read_workload(&message, &mut Names::default()).unwrap_err()
}

#[test]
fn an_empty_workload_has_the_documented_defaults() {
    let workload = read_workload(&good_workload(), &mut Names::default()).unwrap();
    assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/default/sa/default");
    assert_eq!(&*workload.cluster, "Kubernetes");
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.health, Health::Healthy);
}

#[test]
fn a_workload_that_is_wrong_in_part_is_refused_whole() {
    assert_eq!(refusal(|w| w.uid.clear()), WireError::Missing("uid"));
    assert!(matches!(refusal(|w| w.namespace.clear()), WireError::Name("namespace", _)));
    assert!(matches!(
        refusal(|w| w.service_account = "a/b".into()),
        WireError::Name("service_account", _)
    ));
    assert!(matches!(
        refusal(|w| w.trust_domain = "a/b".into()),
        WireError::Name("trust_domain", _)
    ));
    let short = refusal(|w| w.addresses = vec![vec![10, 0, 0]]);
    assert_eq!(short, WireError::AddressLength("addresses", 3));
    let sidecar = refusal(|w| w.tunnel_protocol = 2);
    assert_eq!(sidecar, WireError::NotServed("tunnel_protocol", "LEGACY_ISTIO_MTLS"));
    assert_eq!(refusal(|w| w.tunnel_protocol = 3), WireError::Unknown("tunnel_protocol", 3));
    assert_eq!(refusal(|w| w.status = 2), WireError::Unknown("status", 2));
    assert_eq!(refusal(|w| w.network_mode = -1), WireError::Unknown("network_mode", -1));
    assert_eq!(refusal(|w| w.workload_type = 4), WireError::Unknown("workload_type", 4));
    let gateway = refusal(|w| w.waypoint = Some(wire::GatewayAddress::default()));
    assert_eq!(gateway, WireError::Missing("destination"));
    let policy = refusal(|w| w.authorization_policies = vec!["noslash".into()]);
    assert!(matches!(policy, WireError::Policy("authorization_policies", _)));
    let key = refusal(|w| {
        w.services.insert("noslash".into(), wire::PortList::default());
    });
    assert!(matches!(key, WireError::Service("services", _)));
    let port = refusal(|w| {
        let port = wire::Port { service_port: 65_536, ..Default::default() };
        w.services.insert("a/b".into(), wire::PortList { ports: vec![port] });
    });
    assert_eq!(port, WireError::Port("service_port", 65_536));
    let uid = refusal(|w| {
        let extension = wire::Extension { name: POD_UID.into(), config: None };
        w.extensions.push(extension);
    });
    assert_eq!(uid, WireError::Missing("extensions.config"));
}

#[test]
fn a_service_that_is_wrong_in_part_is_refused_whole() {
    let good = wire::Service {
        namespace: "default".into(),
        hostname: "a.example".into(),
        ..Default::default()
    };
    let refusal = |change: &dyn Fn(&mut wire::Service)| {
        let mut message = good.clone();
        change(&mut message);
        read_service(&message, &mut Names::default()).unwrap_err()
    };
    assert!(read_service(&good, &mut Names::default()).is_ok());
    assert_eq!(refusal(&|s| s.hostname.clear()), WireError::Missing("hostname"));
    assert_eq!(refusal(&|s| s.visibility = 2), WireError::Unknown("visibility", 2));
    assert_eq!(refusal(&|s| s.ip_families = 4), WireError::Unknown("ip_families", 4));
    let prefix = refusal(&|s| {
        let address = vec![10, 0, 0, 0];
        s.addresses =
            vec![wire::NetworkAddress { address, length: Some(33), ..Default::default() }];
    });
    assert_eq!(prefix, WireError::PrefixLength("addresses", 33));
    let scope = refusal(&|s| {
        let balancing = wire::LoadBalancing { routing_preference: vec![0], ..Default::default() };
        s.load_balancing = Some(balancing);
    });
    assert_eq!(scope, WireError::Unknown("routing_preference", 0));
    let weighted = refusal(&|s| s.weighted_waypoints = vec![wire::WeightedWaypoint::default()]);
    assert_eq!(weighted, WireError::Missing("weighted_waypoints.destination"));
    assert_eq!(
        refusal(&|s| s.ports = vec![wire::Port::default()]),
        WireError::Port("service_port", 0)
    );
}

#[test]
fn an_extension_that_is_not_known_is_skipped() {
    let mut message = good_workload();
    message.extensions.push(wire::Extension { name: "other.v1.Thing".into(), config: None });
    assert!(read_workload(&message, &mut Names::default()).is_ok());
}

fn text() -> impl Strategy<Value = Arc<str>> {
    "[a-z]{0,5}".prop_map(Arc::from)
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,5}"
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (name(), "[a-z*][a-z.]{0,8}")
        .prop_map(|(namespace, hostname)| ServiceKey::new(namespace.parse().unwrap(), hostname))
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let address = (text(), any::<IpAddr>())
        .prop_map(|(network, ip)| GatewayDestination::Address(NetworkAddress::new(network, ip)));
    let destination = prop_oneof![service_key().prop_map(GatewayDestination::Hostname), address];
    (destination, 1_u16..)
        .prop_map(|(destination, hbone_port)| GatewayAddress { destination, hbone_port })
}

fn ports() -> impl Strategy<Value = Vec<Port>> {
    let protocol = prop::sample::select(vec![
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ]);
    let port =
        (1_u16.., any::<u16>(), protocol).prop_map(|(service_port, target_port, app_protocol)| {
            Port { service_port, target_port, app_protocol }
        });
    prop::collection::vec(port, 0..3)
}

/// An arbitrary workload.
pub(crate) fn workloads() -> impl Strategy<Value = Workload> {
    let who = (name(), name(), name(), "[a-z/]{1,8}");
    let places = (
        prop::collection::vec(any::<IpAddr>(), 0..3),
        prop::collection::btree_map(service_key(), ports().prop_map(Arc::from), 0..3),
        prop::option::of(gateway()),
        prop::option::of(gateway()),
    );
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0_u32..4);
    let texts = prop::collection::vec(text(), 12);
    let tunnel = prop::option::of((any::<bool>(), prop::option::of(1_u16..)));
    (who, places, flags, texts, tunnel).prop_map(|(who, places, flags, texts, tunnel)| {
        let (domain, namespace, account, uid) = who;
        let identity = format!("spiffe://{domain}/ns/{namespace}/sa/{account}").parse().unwrap();
        let mut texts = texts.into_iter();
        let mut text = || texts.next().unwrap();
        let optional = |text: Arc<str>| (!text.is_empty()).then_some(text);
        let policy = format!("{namespace}/{account}").parse().unwrap();
        Workload {
            name: text(),
            pod_uid: optional(text()),
            hostname: optional(text()),
            addresses: places.0,
            services: places.1,
            waypoint: places.2,
            network_gateway: places.3,
            network: text(),
            network_mode: if flags.0 { NetworkMode::Host } else { NetworkMode::Standard },
            tunnel: if flags.1 { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            native_tunnel: flags.2,
            health: if flags.3 { Health::Unhealthy } else { Health::Healthy },
            capacity: flags.4,
            workload_type: [
                WorkloadType::Deployment,
                WorkloadType::CronJob,
                WorkloadType::Pod,
                WorkloadType::Job,
            ][usize::try_from(flags.4).unwrap()],
            application_tunnel: tunnel.map(|(proxy, port)| ApplicationTunnel {
                protocol: if proxy {
                    ApplicationProtocol::Proxy
                } else {
                    ApplicationProtocol::None
                },
                port,
            }),
            authorization_policies: vec![policy],
            node: text(),
            locality: Locality { region: text(), zone: text(), subzone: text() },
            cluster: optional(text()).unwrap_or_else(|| Workload::DEFAULT_CLUSTER.into()),
            workload_name: text(),
            canonical_name: text(),
            canonical_revision: text(),
            ..Workload::new(uid, identity, namespace.parse().unwrap())
        }
    })
}

/// An arbitrary service.
pub(crate) fn services() -> impl Strategy<Value = Service> {
    let address = (text(), any::<IpAddr>(), 0_u8..=32).prop_map(|(network, ip, length)| {
        let range = ipnet::IpNet::new(ip, length).unwrap().trunc();
        VirtualAddress { network, range }
    });
    let scope = prop::sample::select(vec![
        LocalityScope::Region,
        LocalityScope::Zone,
        LocalityScope::Subzone,
        LocalityScope::Node,
        LocalityScope::Cluster,
        LocalityScope::Network,
    ]);
    let balancing = (prop::collection::vec(scope, 0..4), 0_usize..4, any::<bool>()).prop_map(
        |(preference, mode, all)| LoadBalancing {
            preference,
            mode: [
                LoadBalancingMode::Any,
                LoadBalancingMode::Strict,
                LoadBalancingMode::Failover,
                LoadBalancingMode::Passthrough,
            ][mode],
            health: if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy },
        },
    );
    let weighted = (gateway(), any::<u32>())
        .prop_map(|(destination, weight)| WeightedWaypoint { destination, weight });
    let lists = (
        prop::collection::vec(address, 0..3),
        ports(),
        prop::collection::vec(text(), 0..3),
        prop::collection::vec(weighted, 0..3),
    );
    let options = (prop::option::of(gateway()), prop::option::of(balancing), any::<bool>());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), 0_usize..4);
    (text(), service_key(), lists, options, flags).prop_map(|(name, key, lists, options, flags)| {
        Service {
            name,
            key,
            addresses: lists.0,
            ports: lists.1,
            subject_alt_names: lists.2.into(),
            weighted_waypoints: lists.3,
            waypoint: options.0,
            load_balancing: options.1,
            client_affinity: options.2,
            ip_families: [IpFamilies::Automatic, IpFamilies::V4, IpFamilies::V6, IpFamilies::Dual]
                [flags.3],
            canonical: flags.0,
            ingress_use_waypoint: flags.1,
            visibility: if flags.2 { Visibility::Namespace } else { Visibility::Public },
        }
    })
}

proptest! {
    #[test]
    fn any_workload_is_read_as_it_was_written(workload in workloads()) {
        let bytes = write_workload(&workload).encode_to_vec();
        let message = wire::Address::decode(bytes.as_slice()).unwrap();
        let read = read(&message, &mut Names::default());
        prop_assert_eq!(read, Ok(Address::Workload(Arc::new(workload))));
    }

    #[test]
    fn any_service_is_read_as_it_was_written(service in services()) {
        let bytes = write_service(&service).encode_to_vec();
        let message = wire::Address::decode(bytes.as_slice()).unwrap();
        let read = read(&message, &mut Names::default());
        prop_assert_eq!(read, Ok(Address::Service(Arc::new(service))));
    }
}
