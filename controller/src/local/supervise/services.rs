// SPDX-License-Identifier: Apache-2.0

//! From Services and pods to addresses, translation, names and the user's door. Pure.
//!
//! Owns: which pods stand behind a Service, on which ports; the runtime form of Services
//! (cluster and LoadBalancer addresses filled in); [`Table`], [`Zone`] and the target of the
//! relay.
//!
//! Rule: `ServiceSpec` of `core/v1`; every Service has both families unless it asks otherwise.
//!
//! Start at [`build`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, PodSpec, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::local::address::{DNS, FABRIC, ServiceAddresses};
use crate::local::dns::{DOMAIN, Zone};
use crate::local::vip::{Front, Protocol, Table};

/// A pod, as Services see it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Namespace.
    pub(super) namespace: String,
    /// Labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Takes traffic: ready and not going.
    pub(super) ready: bool,
    /// Host name and subdomain, for names of their own below a headless Service.
    pub(super) host: Option<(String, String)>,
    /// Its containers' ports, by name.
    pub(super) ports: BTreeMap<String, u16>,
}

impl Member {
    /// A pod by its object, ready as its status says.
    pub(super) fn of_pod(object: &Value) -> Option<Self> {
        let pod: Pod = serde_json::from_value(object.clone()).ok()?;
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|one| one.type_ == "Ready" && one.status == "True");
        Some(Self {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            addresses: status
                .pod_ips
                .iter()
                .flatten()
                .filter_map(|ip| ip.ip.parse().ok())
                .collect(),
            ready: ready && pod.metadata.deletion_timestamp.is_none(),
            ports: Self::named_ports(&spec),
            host: spec.hostname.zip(spec.subdomain),
        })
    }

    /// Named ports of a pod's containers.
    fn named_ports(spec: &PodSpec) -> BTreeMap<String, u16> {
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
            .collect()
    }
}

/// Everything that follows from Services and pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Built {
    /// Runtime form of each Service.
    pub(super) objects: Vec<Value>,
    /// What nodes translate.
    pub(super) table: Table,
    /// What DNS answers.
    pub(super) zone: Zone,
    /// Ingress Gateways in order of name: `namespace/gateway` and where it listens.
    pub(super) ingress: Vec<(String, SocketAddr)>,
}

/// Works out everything from `services` and `members`.
pub(super) fn build(
    services: &[Service],
    members: &[Member],
    addresses: &mut ServiceAddresses,
) -> Built {
    let mut built = Built::default();
    for (protocol, address) in
        [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|p| DNS.both().map(|a| (p, a)))
    {
        let server = FABRIC.both().map(|ip| SocketAddr::new(ip, 53));
        built.table.insert(Front { address, protocol, port: 53 }, &server);
    }
    built.zone.add(&format!("kube-dns.kube-system.svc.{DOMAIN}"), &DNS.both());
    let keys: Vec<String> = services.iter().map(key).collect();
    addresses.retain(|key| keys.iter().any(|have| have == key));
    for (service, key) in services.iter().zip(&keys) {
        one(service, key, members, addresses, &mut built);
    }
    for member in members {
        for address in &member.addresses {
            let name = address.to_string().replace(['.', ':'], "-");
            built.zone.add(&format!("{name}.{}.pod.{DOMAIN}", member.namespace), &[*address]);
        }
    }
    built
}

fn key(service: &Service) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}/{}", text(&service.metadata.namespace), text(&service.metadata.name))
}

fn one(
    service: &Service,
    key: &str,
    members: &[Member],
    addresses: &mut ServiceAddresses,
    built: &mut Built,
) {
    let spec = service.spec.clone().unwrap_or_default();
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    let host = format!("{name}.{namespace}.svc.{DOMAIN}");
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        built.zone.add_alias(&host, spec.external_name.as_deref().unwrap_or_default());
        built.objects.push(runtime(service, &[], &[]));
        return;
    }
    let selector = spec.selector.clone().unwrap_or_default();
    let chosen: Vec<&Member> = members
        .iter()
        .filter(|member| member.namespace == namespace && !selector.is_empty())
        .filter(|member| {
            selector.iter().all(|(label, value)| member.labels.get(label) == Some(value))
        })
        .filter(|member| member.ready || spec.publish_not_ready_addresses == Some(true))
        .collect();
    let cluster = cluster_addresses(&spec, key, addresses);
    let balancer: Vec<IpAddr> = match kind {
        "LoadBalancer" => {
            addresses.balancer(key).map(|pair| pair.both().to_vec()).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    if spec.cluster_ip.as_deref() == Some("None") {
        headless(&host, name, &chosen, built);
    } else {
        built.zone.add(&host, &cluster);
    }
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = Protocol::of(port.protocol.as_deref()) else { continue };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let endpoints = endpoints(port, number, &chosen);
        for address in cluster.iter().chain(&balancer) {
            built.table.insert(Front { address: *address, protocol, port: number }, &endpoints);
        }
        if let Some(port_name) = &port.name {
            let text = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
            built.zone.add_port(&host, port_name, text, number);
        }
    }
    built.ingress.extend(ingress(service, &balancer));
    built.objects.push(runtime(service, &cluster, &balancer));
}

/// The addresses of a Service: those it asks for, else from the range; none for a headless one.
fn cluster_addresses(
    spec: &k8s_openapi::api::core::v1::ServiceSpec,
    key: &str,
    addresses: &mut ServiceAddresses,
) -> Vec<IpAddr> {
    match spec.cluster_ip.as_deref() {
        Some("None") => Vec::new(),
        Some(text) if !text.is_empty() => {
            let mut given: Vec<IpAddr> = text.parse().into_iter().collect();
            let more = spec.cluster_ips.iter().flatten().filter_map(|text| text.parse().ok());
            given.extend(more.filter(|address| Some(address) != given.first()).collect::<Vec<_>>());
            given
        }
        _ => {
            let Some(pair) = addresses.service(key) else { return Vec::new() };
            let wanted = spec.ip_families.clone().unwrap_or_default();
            let single = spec.ip_family_policy.as_deref() == Some("SingleStack");
            let v6 = wanted.first().is_some_and(|family| family == "IPv6");
            match (single, v6) {
                (true, true) => vec![IpAddr::V6(pair.v6)],
                (true, false) => vec![IpAddr::V4(pair.v4)],
                (false, _) => pair.both().to_vec(),
            }
        }
    }
}

fn headless(host: &str, service: &str, chosen: &[&Member], built: &mut Built) {
    built.zone.add(host, &[]);
    for member in chosen {
        built.zone.add(host, &member.addresses);
        if let Some((name, subdomain)) = &member.host
            && subdomain == service
        {
            built.zone.add(&format!("{name}.{host}"), &member.addresses);
        }
    }
}

fn endpoints(port: &ServicePort, number: u16, chosen: &[&Member]) -> Vec<SocketAddr> {
    let target = |member: &Member| match &port.target_port {
        None => Some(number),
        Some(IntOrString::Int(0)) => Some(number),
        Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
        Some(IntOrString::String(name)) => member.ports.get(name).copied(),
    };
    chosen
        .iter()
        .filter_map(|member| target(member).map(|target| (member, target)))
        .flat_map(|(member, target)| {
            member.addresses.iter().map(move |ip| SocketAddr::new(*ip, target))
        })
        .collect()
}

/// Where an ingress Gateway's Service listens for users: its first port but the health one.
fn ingress(service: &Service, balancer: &[IpAddr]) -> Option<(String, SocketAddr)> {
    let labels = service.metadata.labels.as_ref()?;
    let gateway = labels.get(crate::api::GATEWAY_NAME)?;
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let ports = service.spec.as_ref()?.ports.iter().flatten();
    let tcp = |port: &&ServicePort| Protocol::of(port.protocol.as_deref()) == Some(Protocol::Tcp);
    let port = ports.filter(tcp).map(|port| port.port).find(|port| *port != 15021)?;
    let address = balancer.first()?;
    Some((format!("{namespace}/{gateway}"), SocketAddr::new(*address, u16::try_from(port).ok()?)))
}

/// The Service as an apiserver would show it.
fn runtime(service: &Service, cluster: &[IpAddr], balancer: &[IpAddr]) -> Value {
    let mut object = serde_json::to_value(service).unwrap_or_default();
    let texts =
        |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), "v1".into());
        map.insert("kind".into(), "Service".into());
    }
    if let Some(spec) = object.pointer_mut("/spec").and_then(Value::as_object_mut) {
        spec.entry("type").or_insert("ClusterIP".into());
        if let Some(first) = cluster.first() {
            let families = cluster.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" });
            spec.insert("clusterIP".into(), first.to_string().into());
            spec.insert("clusterIPs".into(), texts(cluster).into());
            spec.insert("ipFamilies".into(), families.collect::<Vec<_>>().into());
        }
    }
    if !balancer.is_empty()
        && let Some(map) = object.as_object_mut()
    {
        let ingress: Vec<Value> = texts(balancer).iter().map(|ip| json!({"ip": ip})).collect();
        map.insert("status".into(), json!({"loadBalancer": {"ingress": ingress}}));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Service {
        serde_saphyr::from_str(text).unwrap()
    }

    fn member(name: &str, address: &str, ready: bool) -> Member {
        Member {
            namespace: "n".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            addresses: vec![address.parse().unwrap()],
            ready,
            host: Some((name.into(), "peers".into())),
            ports: [("http".to_owned(), 8080)].into(),
        }
    }

    fn front(address: &str, port: u16) -> Front {
        Front { address: address.parse().unwrap(), protocol: Protocol::Tcp, port }
    }

    const WEB: &str = "metadata: {name: web, namespace: n}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: http, name: web}]}";

    #[test]
    fn only_ready_pods_stand_behind_a_service() {
        let members = [member("a", "10.244.1.2", true), member("b", "10.244.1.3", false)];
        let built = build(&[service(WEB)], &members, &mut ServiceAddresses::default());
        let mut want = build(&[], &[], &mut ServiceAddresses::default()).table;
        want.insert(front("10.96.0.20", 80), &["10.244.1.2:8080".parse().unwrap()]);
        assert_eq!(built.table, want);
        let object = &built.objects[0];
        assert_eq!(
            object.pointer("/spec/clusterIPs").unwrap(),
            &json!(["10.96.0.20", "fd00:10:96::14"])
        );
    }

    #[test]
    fn a_headless_service_names_its_pods() {
        let text = WEB
            .replace("name: web, namespace", "name: peers, namespace")
            .replace("spec: {", "spec: {clusterIP: None, ");
        let built = build(
            &[service(&text)],
            &[member("a-0", "10.244.1.2", true)],
            &mut ServiceAddresses::default(),
        );
        let mut want =
            build(&[], &[member("a-0", "10.244.1.2", true)], &mut ServiceAddresses::default()).zone;
        want.add("peers.n.svc.cluster.local", &["10.244.1.2".parse().unwrap()]);
        want.add("a-0.peers.n.svc.cluster.local", &["10.244.1.2".parse().unwrap()]);
        want.add_port("peers.n.svc.cluster.local", "web", "tcp", 80);
        assert_eq!(built.zone, want);
    }

    #[test]
    fn the_door_leads_to_the_first_port_of_a_gateway() {
        let text = "metadata: {name: gw-istio, namespace: n, labels: {gateway.networking.k8s.io/gateway-name: gw}}\n\
                    spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 15021, name: status-port}, {port: 80, name: http}]}";
        let built = build(&[service(text)], &[], &mut ServiceAddresses::default());
        assert_eq!(built.ingress, [("n/gw".to_owned(), "10.97.0.1:80".parse().unwrap())]);
        let ingress = built.objects[0].pointer("/status/loadBalancer/ingress/0/ip").unwrap();
        assert_eq!(ingress, "10.97.0.1");
    }
}
