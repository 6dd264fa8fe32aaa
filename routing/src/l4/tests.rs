// SPDX-License-Identifier: Apache-2.0

//! The decision table, row by row.

use super::*;
use crate::discovery::{
    AppProtocol, ApplicationTunnel, Change, GatewayDestination, Health, LoadBalancing, NetworkMode,
    Port, VirtualAddress, Visibility, WeightedWaypoint,
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn key(namespace: &str, hostname: &str) -> ServiceKey {
    ServiceKey::new(namespace.parse().unwrap(), hostname)
}

pub(crate) fn pod(namespace: &str, name: &str, address: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}").parse().unwrap();
    let uid = Workload::pod_key("Kubernetes", namespace, name);
    let mut workload = Workload::new(uid, identity, namespace.parse().unwrap());
    workload.name = name.into();
    workload.addresses = vec![ip(address)];
    workload.tunnel = TunnelProtocol::Hbone;
    workload
}

pub(crate) fn serves(
    mut workload: Workload,
    service: &ServiceKey,
    port: u16,
    target: u16,
) -> Workload {
    workload.services.insert(service.clone(), [port_of(port, target)].into());
    workload
}

fn port_of(service_port: u16, target_port: u16) -> Port {
    Port { service_port, target_port, app_protocol: AppProtocol::Unknown }
}

pub(crate) fn service(key: &ServiceKey, address: &str, port: u16) -> Service {
    let mut service = Service::new(key.clone());
    service.addresses = vec![VirtualAddress::single("".into(), ip(address))];
    service.ports = vec![port_of(port, 0)];
    service
}

pub(crate) fn by_name(key: &ServiceKey) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(key.clone()), hbone_port: 15008 }
}

/// A mesh with a plain service, one with a waypoint, and some oddities.
pub(crate) struct World {
    pub(crate) discovery: Discovery,
    pub(crate) client: Workload,
    pub(crate) plain: ServiceKey,
    pub(crate) guarded: ServiceKey,
    pub(crate) waypoint: ServiceKey,
}

pub(crate) fn world() -> World {
    let plain = key("default", "plain.default.svc.cluster.local");
    let guarded = key("default", "guarded.default.svc.cluster.local");
    let waypoint = key("default", "waypoint.default.svc.cluster.local");
    let client = pod("default", "client", "10.0.0.1");
    let mut guarded_service = service(&guarded, "10.96.0.2", 80);
    guarded_service.waypoint = Some(by_name(&waypoint));
    let mut behind = serves(pod("default", "behind", "10.0.0.3"), &guarded, 80, 8080);
    behind.waypoint = Some(by_name(&waypoint));
    let mut outside = serves(pod("default", "outside", "10.0.0.4"), &plain, 80, 8081);
    outside.tunnel = TunnelProtocol::None;
    outside.health = Health::Unhealthy;
    let mut proxy = serves(pod("default", "proxy", "10.0.0.9"), &waypoint, 15008, 15008);
    proxy.tunnel = TunnelProtocol::None;
    let mut discovery = Discovery::default();
    discovery.apply(
        [service(&plain, "10.96.0.1", 80), guarded_service, service(&waypoint, "10.96.0.9", 15008)]
            .map(|service| Change::Service(Arc::new(service))),
    );
    discovery.apply(
        [
            client.clone(),
            serves(pod("default", "server", "10.0.0.2"), &plain, 80, 8080),
            behind,
            outside,
            proxy,
        ]
        .map(|workload| Change::Workload(Arc::new(workload))),
    );
    World { discovery, client, plain, guarded, waypoint }
}

impl World {
    /// Changes the workload `name` of namespace default.
    pub(crate) fn workload(&mut self, name: &str, change: impl FnOnce(&mut Workload)) {
        let uid = Workload::pod_key("Kubernetes", "default", name);
        let mut workload = Workload::clone(self.discovery.workload(&uid).unwrap());
        change(&mut workload);
        self.discovery.apply([Change::Workload(Arc::new(workload))]);
    }

    pub(crate) fn service(&mut self, key: &ServiceKey, change: impl FnOnce(&mut Service)) {
        let mut service = Service::clone(self.discovery.service(key).unwrap());
        change(&mut service);
        self.discovery.apply([Change::Service(Arc::new(service))]);
    }

    fn ask(&self, target: &str) -> Result<Way, Refusal> {
        resolve(&self.client, target.parse().unwrap(), &self.discovery, 1)
    }

    fn show(&self, target: &str) -> String {
        show(self.ask(target))
    }
}

fn show(way: Result<Way, Refusal>) -> String {
    let tunnel = |kind: &str, tunnel: &Tunnel| {
        let Dial::Address(to) = &tunnel.to else { panic!("{tunnel:?}") };
        format!("{kind} {to} for {} as {}", tunnel.authority, tunnel.expected.identity)
    };
    let hop = |hop: &Hop| match hop {
        Hop::Direct { to: Dial::Address(to), .. } => format!("direct {to}"),
        Hop::Direct { to: Dial::Name(name, port), .. } => format!("direct {name}:{port}"),
        Hop::Tunnel(to) => tunnel("tunnel", to),
        Hop::Waypoint(to) => tunnel("waypoint", to),
        Hop::Passthrough(to) => format!("passthrough {to}"),
    };
    match way {
        Ok(way) => way.hops.iter().map(hop).collect::<Vec<_>>().join(", "),
        Err(refusal) => format!("refuse: {refusal}"),
    }
}

const PROXY: &str = "as spiffe://cluster.local/ns/default/sa/proxy";

#[test]
fn each_row_of_the_decision_table_holds() {
    let world = world();
    let cases = [
        ("0 own port at loopback", "127.0.0.1:15001", "refuse: port 15001 is the tunnel's own"),
        ("0 own port at own address", "10.0.0.1:15008", "refuse: port 15008 is the tunnel's own"),
        ("other port at loopback", "127.0.0.1:80", "passthrough 127.0.0.1:80"),
        (
            "2 service with waypoint",
            "10.96.0.2:80",
            &format!("waypoint 10.0.0.9:15008 for 10.96.0.2:80 {PROXY}"),
        ),
        (
            "4, 10 service without waypoint",
            "10.96.0.1:80",
            "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as spiffe://cluster.local/ns/default/sa/server",
        ),
        (
            "6 port is none of the service's",
            "10.96.0.1:81",
            "refuse: service default/plain.default.svc.cluster.local has no port 81",
        ),
        ("7 unknown", "1.1.1.1:443", "passthrough 1.1.1.1:443"),
        (
            "9 workload with waypoint",
            "10.0.0.3:8080",
            &format!("waypoint 10.0.0.9:15008 for 10.0.0.3:8080 {PROXY}"),
        ),
        (
            "10 workload in the mesh",
            "10.0.0.2:9999",
            "tunnel 10.0.0.2:15008 for 10.0.0.2:9999 as spiffe://cluster.local/ns/default/sa/server",
        ),
        ("11 workload outside the mesh", "10.0.0.4:22", "direct 10.0.0.4:22"),
    ];
    for (name, target, want) in cases {
        assert_eq!(world.show(target), want, "{name}");
    }
}

#[test]
fn a_service_without_healthy_endpoint_refuses() {
    let mut world = world();
    world.workload("server", |server| server.health = Health::Unhealthy);
    assert_eq!(world.ask("10.96.0.1:80"), Err(Refusal::NoEndpoint(world.plain.clone())));
}

#[test]
fn a_passthrough_service_goes_to_the_very_address() {
    let mut world = world();
    world.service(&world.plain.clone(), |service| {
        service.load_balancing =
            Some(LoadBalancing { mode: LoadBalancingMode::Passthrough, ..Default::default() });
    });
    assert_eq!(world.show("10.96.0.1:4711"), "passthrough 10.96.0.1:4711");
}

#[test]
fn a_waypoint_that_is_declared_is_never_walked_around() {
    let waypoint = by_name(&world().waypoint);

    let mut gone = world();
    gone.discovery.apply([Change::ServiceGone(gone.waypoint.clone())]);
    let unknown = Err(Refusal::WaypointUnknown(waypoint.clone()));
    assert_eq!(gone.ask("10.96.0.2:80"), unknown, "service");
    assert_eq!(gone.ask("10.0.0.3:8080"), unknown, "workload");

    let mut down = world();
    down.workload("proxy", |proxy| proxy.health = Health::Unhealthy);
    let absent = Err(Refusal::WaypointAbsent(waypoint));
    assert_eq!(down.ask("10.96.0.2:80"), absent, "service");
    assert_eq!(down.ask("10.0.0.3:8080"), absent, "workload");
}

#[test]
fn the_waypoint_itself_goes_on() {
    let world = world();
    let proxy = world.discovery.workload("Kubernetes//Pod/default/proxy").unwrap();
    let on =
        "tunnel 10.0.0.3:15008 for 10.0.0.3:8080 as spiffe://cluster.local/ns/default/sa/behind";
    for target in ["10.0.0.3:8080", "10.96.0.2:80"] {
        let way = resolve(proxy, target.parse().unwrap(), &world.discovery, 1);
        assert_eq!(show(way), on, "{target}");
    }
}

#[test]
fn a_service_addressed_call_never_enters_the_waypoint_of_a_workload() {
    let mut world = world();
    world.service(&world.guarded.clone(), |service| service.waypoint = None);
    assert!(world.show("10.96.0.2:80").starts_with("tunnel 10.0.0.3:15008"));
}

#[test]
fn a_waypoint_may_be_named_by_address() {
    let mut world = world();
    for (address, what) in [("10.0.0.9", "workload"), ("10.96.0.9", "service")] {
        let address = NetworkAddress::new("".into(), ip(address));
        let destination = GatewayDestination::Address(address);
        let gateway = GatewayAddress { destination, hbone_port: 15008 };
        world.service(&world.guarded.clone(), |service| service.waypoint = Some(gateway));
        assert!(world.show("10.96.0.2:80").starts_with("waypoint 10.0.0.9:15008"), "{what}");
    }
}

#[test]
fn weighted_waypoints_share_and_stand_in_for_each_other() {
    let mut world = world();
    let canary = key("default", "canary.default.svc.cluster.local");
    let proxy = serves(pod("default", "canary", "10.0.0.8"), &canary, 15008, 15008);
    let primary = by_name(&world.waypoint);
    world.discovery.apply([
        Change::Service(Arc::new(service(&canary, "10.96.0.8", 15008))),
        Change::Workload(Arc::new(proxy)),
    ]);
    let set = |world: &mut World, weights: [u32; 2]| {
        let destinations = [primary.clone(), by_name(&canary)];
        let weighted = destinations.into_iter().zip(weights);
        let weighted =
            weighted.map(|(destination, weight)| WeightedWaypoint { destination, weight });
        let weighted: Vec<_> = weighted.collect();
        world.service(&world.guarded.clone(), |service| service.weighted_waypoints = weighted);
    };
    let first = |world: &World, roll| {
        let way = resolve(&world.client, "10.96.0.2:80".parse().unwrap(), &world.discovery, roll);
        show(way).split(' ').nth(1).unwrap().to_owned()
    };
    set(&mut world, [90, 10]);
    let canaries = (0..1_000).filter(|roll| first(&world, *roll) == "10.0.0.8:15008").count();
    assert!((60..140).contains(&canaries), "{canaries} of 1000");
    assert_eq!(world.ask("10.96.0.2:80").unwrap().hops.len(), 2, "the other one is tried next");
    set(&mut world, [1, 0]);
    assert!((0..100).all(|roll| first(&world, roll) == "10.0.0.9:15008"));
    assert_eq!(world.ask("10.96.0.2:80").unwrap().hops.len(), 1, "weight zero is never tried");
    set(&mut world, [0, 0]);
    assert_eq!(world.ask("10.96.0.2:80"), Err(Refusal::WaypointWeights(world.guarded.clone())));
}

#[test]
fn endpoints_follow_each_other_until_one_takes_the_connection() {
    let mut world = world();
    for i in 0..20 {
        let more = pod("default", &format!("more-{i}"), &format!("10.0.1.{i}"));
        let more = serves(more, &world.plain, 80, 8080);
        world.discovery.apply([Change::Workload(Arc::new(more))]);
    }
    let way = world.ask("10.96.0.1:80").unwrap();
    assert_eq!(way.hops.len(), MOST_HOPS);
    let mut targets: Vec<_> = way.hops.iter().map(|hop| format!("{hop:?}")).collect();
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), MOST_HOPS, "each is named once");
    assert_eq!(way.service.unwrap().key, world.plain);
}

#[test]
fn an_endpoint_may_prove_a_name_of_its_service() {
    let mut world = world();
    let other: Arc<str> = "spiffe://partner.example/ns/x/sa/y".into();
    let names = Arc::from([Arc::clone(&other)]);
    world.service(&world.plain.clone(), |service| service.subject_alt_names = names);
    let way = world.ask("10.96.0.1:80").unwrap();
    let Some(Hop::Tunnel(tunnel)) = way.hops.first() else { panic!("{way:?}") };
    let admits = |name: &str| tunnel.expected.admits(&name.parse().unwrap());
    assert!(admits("spiffe://cluster.local/ns/default/sa/server"));
    assert!(admits(&other));
    assert!(!admits("spiffe://cluster.local/ns/default/sa/client"));
}

#[test]
fn services_of_other_namespaces_are_seen_by_their_visibility() {
    let mut world = world();
    world.service(&world.plain.clone(), |service| service.visibility = Visibility::Namespace);
    assert!(world.show("10.96.0.1:80").starts_with("tunnel"));
    world.client.namespace = "other".parse().unwrap();
    assert_eq!(world.show("10.96.0.1:80"), "passthrough 10.96.0.1:80");
}

#[test]
fn workloads_that_share_node_addresses_are_not_found_by_them() {
    let mut world = world();
    world.workload("server", |server| server.network_mode = NetworkMode::Host);
    assert_eq!(world.show("10.0.0.2:80"), "passthrough 10.0.0.2:80");
    assert!(world.show("10.96.0.1:80").starts_with("tunnel 10.0.0.2"), "but by their service");
}

#[test]
fn a_workload_known_by_name_is_dialled_by_name() {
    let mut world = world();
    world.workload("server", |server| {
        server.addresses.clear();
        server.hostname = Some("db.example".into());
        server.tunnel = TunnelProtocol::None;
    });
    assert_eq!(world.show("10.96.0.1:80"), "direct db.example:8080");
}

#[test]
fn a_waypoint_that_hands_on_needs_no_port_in_its_service() {
    let mut world = world();
    let waypoint = world.waypoint.clone();
    world.workload("proxy", |proxy| {
        proxy.services.insert(waypoint, [port_of(80, 8080)].into());
        proxy.application_tunnel =
            Some(ApplicationTunnel { protocol: Default::default(), port: Some(15088) });
    });
    assert!(world.show("10.96.0.2:80").starts_with("waypoint 10.0.0.9:15008"));
}
