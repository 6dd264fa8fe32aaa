// SPDX-License-Identifier: Apache-2.0

//! A small mesh on loopback: a gateway in this process, pods with and without a tunnel,
//! and a snapshot that says so.
//!
//! Every mesh and every pod has loopback addresses of its own, so ports never meet.

#![expect(clippy::missing_errors_doc, reason = "a test fails with whatever failed")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use gateway::app::Gateway;
use gateway::settings::Settings;
use http::HeaderMap;
use policy::authz::{Authorization, Target};
use policy::identity::Identity;
use policy::retry::Retry;
use policy::timeout::Timeouts;
use routing::delta::{self, Change, Kind, Resource};
use routing::discovery::{
    AppProtocol, GatewayAddress, GatewayDestination, NetworkAddress, Port, Service, TunnelProtocol,
    VirtualAddress, Workload,
};
use routing::gateway::{Gateway as GatewaySettings, GatewayKind};
use routing::l4::{Authority, Expected};
use routing::listener::{Listener, ListenerTls, Protocol};
use routing::matching::{HostPattern, RequestMatch};
use routing::route::{BackendRef, BackendTarget, Parent, ParentRef, Rule};
use routing::snapshot::Snapshot;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tunnel::hbone::client::Ask;
use tunnel::hbone::pool::{Key, OpenError, Pool};
use tunnel::hbone::{self, server, stream::Stream};

use crate::certs::Issuer;

/// An address of the loopback network that no other test of this machine uses.
pub fn address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::SeqCst);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let [_, _, _, own] = next.to_be_bytes();
    // 127.64.0.0/10 and up, away from what people use by hand.
    Ipv4Addr::new(127, 64 | (high & 0x3f), low, own).into()
}

/// What the process of a gateway `shop/NAME` is told at its start, in the pod `pod` at `ip`.
pub(crate) fn settings(
    waypoint: bool,
    name: &str,
    pod: &str,
    ip: IpAddr,
) -> anyhow::Result<Settings> {
    let kind = if waypoint { "waypoint" } else { "router" };
    let look = |variable: &str| {
        let value = match variable {
            "POD_NAMESPACE" => "shop".to_owned(),
            "SERVICE_ACCOUNT" | "GATEWAY_NAME" => name.to_owned(),
            "POD_NAME" => pod.to_owned(),
            "INSTANCE_IP" => ip.to_string(),
            "GATEWAY_WORKER_THREADS" => "2".to_owned(),
            _ => return None,
        };
        Some(value)
    };
    let mut settings = Settings::read(std::iter::once(kind.to_owned()), look)?;
    settings.limits.drain = std::time::Duration::from_secs(2);
    Ok(settings)
}

/// What the controller tells the gateway `shop/NAME` about itself.
pub(crate) fn resource(waypoint: bool, name: &str) -> anyhow::Result<GatewaySettings> {
    Ok(GatewaySettings {
        name: format!("shop/{name}").parse()?,
        kind: if waypoint { GatewayKind::Waypoint } else { GatewayKind::Ingress },
        class: "waymark".into(),
        trusted_hops: 0,
        tracing: None,
        access_log: None,
        client_certificate: None,
    })
}

/// A listener `section` of the gateway `shop/NAME`, for every hostname.
pub(crate) fn listener(
    name: &str,
    section: &str,
    (port, protocol): (u16, Protocol),
) -> anyhow::Result<Listener> {
    Ok(Listener {
        name: format!("shop/{name}/{section}").parse()?,
        port,
        target_port: port,
        protocol,
        hostname: HostPattern::Any,
        tls: None,
        proxy_protocol: false,
    })
}

/// A gateway with its world.
#[derive(Debug)]
pub struct Mesh {
    /// Who signs the mesh's certificates.
    pub issuer: Arc<Issuer>,
    /// Where the gateway listens.
    pub ip: IpAddr,
    /// The gateway.
    pub gateway: Gateway,
    snapshot: Snapshot,
    own: Identity,
}

impl Mesh {
    /// A waypoint or a gateway at the edge, in namespace `shop`, named `gw`.
    pub async fn start(waypoint: bool) -> anyhow::Result<Self> {
        let issuer = Issuer::new()?;
        let ip = address();
        let mut settings = settings(waypoint, "gw", "gw-1", ip)?;
        settings.bind = ip;
        let own = settings.identity.clone();
        let gateway = Gateway::start(settings, Arc::clone(&issuer) as _)?;
        let mut mesh =
            Self { issuer, ip, gateway, snapshot: Snapshot::default(), own: own.clone() };
        let settings = resource(waypoint, "gw")?;
        mesh.put([Resource::Gateway(Arc::new(settings))]);
        mesh.put_workload("gw-1", own, ip, |_| {});
        if waypoint {
            mesh.listener("mesh", (15008, Protocol::Hbone), "", None)?;
        }
        Ok(mesh)
    }

    /// Takes resources in, and serves them.
    pub fn put(&mut self, resources: impl IntoIterator<Item = Resource>) {
        self.change(resources.into_iter().map(Change::Put));
    }

    /// Takes a resource out.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        self.change([Change::Gone(kind, name.into())]);
    }

    fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let (next, rejected) = delta::apply(&self.snapshot, changes);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.snapshot = next.clone();
        self.gateway.publish(next);
    }

    /// The settings of the gateway, changed.
    pub fn settings(&mut self, change: impl FnOnce(&mut GatewaySettings)) -> anyhow::Result<()> {
        let now = self.snapshot.serving.gateway(&"shop/gw".parse()?);
        let mut now =
            now.map(|now| (**now).clone()).ok_or_else(|| anyhow::anyhow!("no gateway"))?;
        change(&mut now);
        self.put([Resource::Gateway(Arc::new(now))]);
        Ok(())
    }

    fn put_workload(
        &mut self,
        name: &str,
        identity: Identity,
        ip: IpAddr,
        change: impl FnOnce(&mut Workload),
    ) {
        let Ok(namespace) = identity.namespace().parse() else { return };
        let uid = Workload::pod_key("Kubernetes", identity.namespace(), name);
        let mut workload = Workload::new(uid, identity, namespace);
        workload.name = name.into();
        workload.pod_uid = Some(format!("uid-of-{name}").into());
        workload.workload_name = name.into();
        workload.canonical_name = name.into();
        workload.addresses = vec![ip];
        change(&mut workload);
        self.put([Resource::Workload(Arc::new(workload))]);
    }

    /// A service `name` of namespace `shop`, with the port 80 for pods of `backends`.
    ///
    /// Pods named in `enrolled` take HBONE.
    pub fn service(
        &mut self,
        name: &str,
        protocol: AppProtocol,
        backends: &[(&str, SocketAddr)],
        enrolled: &[&str],
    ) -> anyhow::Result<()> {
        let key = key(name).parse::<routing::discovery::ServiceKey>()?;
        let mut service = Service::new(key.clone());
        let port = |target_port| Port { service_port: 80, target_port, app_protocol: protocol };
        service.ports = vec![port(0)];
        service.addresses = vec![VirtualAddress::single("".into(), vip(name))];
        self.put([Resource::Service(Arc::new(service))]);
        for (pod, at) in backends {
            let identity = format!("spiffe://cluster.local/ns/shop/sa/{pod}").parse()?;
            let ports: Arc<[Port]> = [port(at.port())].into();
            self.put_workload(pod, identity, at.ip(), |workload| {
                workload.services.insert(key.clone(), ports);
                if enrolled.contains(pod) {
                    workload.tunnel = TunnelProtocol::Hbone;
                }
            });
        }
        Ok(())
    }

    /// Lets the clients of a service keep their endpoint.
    pub fn keep_clients(&mut self, name: &str) -> anyhow::Result<()> {
        self.change_service(name, |service| service.client_affinity = true)
    }

    /// Makes the gateway the waypoint of a service.
    pub fn bind_waypoint(&mut self, name: &str) -> anyhow::Result<()> {
        let own = self.waypoint();
        self.change_service(name, |service| service.waypoint = Some(own))
    }

    fn change_service(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Service),
    ) -> anyhow::Result<()> {
        let found = self.snapshot.discovery.service(&key(name).parse()?);
        let mut service = (**found.ok_or_else(|| anyhow::anyhow!("no service {name}"))?).clone();
        change(&mut service);
        self.put([Resource::Service(Arc::new(service))]);
        Ok(())
    }

    /// Makes the gateway the waypoint of a pod that is called by its own address.
    pub fn bind_pod(&mut self, pod: &str) -> anyhow::Result<()> {
        let uid = Workload::pod_key("Kubernetes", "shop", pod);
        let found = self.snapshot.discovery.workload(&uid);
        let mut pod = (**found.ok_or_else(|| anyhow::anyhow!("no pod {pod}"))?).clone();
        pod.waypoint = Some(self.waypoint());
        self.put([Resource::Workload(Arc::new(pod))]);
        Ok(())
    }

    fn waypoint(&self) -> GatewayAddress {
        let address = NetworkAddress::new("".into(), self.ip);
        GatewayAddress { destination: GatewayDestination::Address(address), hbone_port: 15008 }
    }

    /// A listener `section` of the gateway.
    pub fn listener(
        &mut self,
        section: &str,
        (port, protocol): (u16, Protocol),
        hostname: &str,
        tls: Option<ListenerTls>,
    ) -> anyhow::Result<()> {
        let mut listener = listener("gw", section, (port, protocol))?;
        if !hostname.is_empty() {
            listener.hostname = hostname.parse()?;
        }
        listener.tls = tls;
        self.put([Resource::Listener(Arc::new(listener))]);
        Ok(())
    }

    /// Puts a policy in for what `target` says.
    pub fn policy(&mut self, mut policy: Authorization, target: Target) {
        policy.scope = policy::authz::Scope::Targets(vec![target]);
        self.put([Resource::GatewayAuthorization(Arc::new(policy))]);
    }

    /// A client of the mesh: its identity, and a way to open streams through the gateway.
    pub async fn client(&self, account: &str) -> anyhow::Result<MeshClient> {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse()?;
        let credential = self.issuer.credential(&identity).await?;
        Ok(MeshClient {
            identity,
            credential,
            pool: Pool::new(hbone::Limits::default()),
            waypoint: SocketAddr::new(self.ip, 15008),
            expected: Expected { identity: self.own.clone(), alternatives: Arc::default() },
        })
    }
}

/// One end of the mesh that sends; lives on one `LocalSet`.
#[derive(Debug)]
pub struct MeshClient {
    identity: Identity,
    credential: Arc<tunnel::credentials::Credential>,
    pool: Pool,
    waypoint: SocketAddr,
    expected: Expected,
}

impl MeshClient {
    /// Opens a stream to `authority` through the waypoint.
    pub async fn open(&self, authority: &str, headers: HeaderMap) -> Result<Stream, OpenError> {
        let key = Key {
            source: self.identity.clone(),
            epoch: self.credential.epoch(),
            source_pod: "client".into(),
            workload: "waypoint".into(),
            pod_uid: None,
            address: self.waypoint,
            expected: self.expected.clone(),
        };
        let authority: Authority =
            authority.parse().unwrap_or_else(|_| unreachable!("a legal one"));
        let ask = Ask::new(&authority, headers).unwrap_or_else(|_| unreachable!("a legal one"));
        let to = self.waypoint;
        let opened = self.pool.open(&key, &self.credential, &ask, move || connect(to));
        opened.await.map(|(stream, _)| stream)
    }
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The tunnel of an enrolled pod, on port 15008 of its address: takes CONNECT from the
/// gateway, and hands the bytes to `port` of the pod.
#[derive(Clone, Debug, Default)]
pub struct PodTunnel {
    /// CONNECT streams so far.
    pub streams: Rc<AtomicUsize>,
    /// Identities that connected.
    pub peers: Rc<std::cell::RefCell<Vec<Identity>>>,
}

impl PodTunnel {
    /// Starts one on the current `LocalSet`.
    pub async fn start(issuer: &Arc<Issuer>, pod: &str, ip: IpAddr) -> anyhow::Result<Self> {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{pod}").parse()?;
        let credential = issuer.credential(&identity).await?;
        let listener = TcpListener::bind((ip, hbone::PORT)).await?;
        let this = Self::default();
        let state = this.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (state, credential) = (state.clone(), Arc::clone(&credential));
                tokio::task::spawn_local(async move {
                    let limits = hbone::Limits::default();
                    let Ok(mut connection) =
                        server::accept(stream, from, &credential, &limits).await
                    else {
                        return;
                    };
                    state.peers.borrow_mut().extend(connection.peer().identity.clone());
                    while let Ok(Some(connect)) = connection.next().await {
                        state.streams.fetch_add(1, Ordering::SeqCst);
                        tokio::task::spawn_local(hand_on(connect));
                    }
                });
            }
        });
        Ok(this)
    }
}

async fn hand_on(connect: server::Connect) {
    let Ok(to) = connect.authority().parse::<SocketAddr>() else { return };
    let (Ok(mut app), Ok(mut stream)) =
        (TcpStream::connect(to).await, connect.accept(HeaderMap::new()))
    else {
        return;
    };
    drop(tokio::io::copy_bidirectional(&mut stream, &mut app).await);
}

/// Runs a test on one thread, with tasks that stay on it.
pub fn local<F: Future<Output = anyhow::Result<()>>>(test: F) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limit = std::time::Duration::from_secs(30);
    LocalSet::new().block_on(&runtime, async { tokio::time::timeout(limit, test).await })?
}

/// Name of a service of namespace `shop`, as a resource.
pub fn key(name: &str) -> String {
    format!("shop/{name}.shop.svc.cluster.local")
}

/// Virtual address of a service, from its name.
pub fn vip(name: &str) -> IpAddr {
    let sum = name.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    Ipv4Addr::new(10, 96, 0, sum).into()
}

/// A share of a rule's requests.
pub fn to(service: &str, weight: u32) -> anyhow::Result<BackendRef> {
    let target = BackendTarget::Service { key: key(service).parse()?, port: 80 };
    Ok(BackendRef { target, weight, filters: Vec::new() })
}

/// A rule `Kind/shop/NAME/0` for everything, attached to listeners `shop/gw/SECTION`.
pub fn rule(name: &str, sections: &[&str], backends: Vec<BackendRef>) -> anyhow::Result<Rule> {
    let parents = sections.iter().map(|section| {
        let listener = format!("shop/gw/{section}").parse()?;
        Ok(ParentRef { parent: Parent::Listener(listener), hostnames: Vec::new() })
    });
    Ok(Rule {
        name: format!("{name}/0").parse()?,
        rule_name: None,
        created: 1,
        parents: parents.collect::<anyhow::Result<_>>()?,
        matches: vec![RequestMatch::any()],
        filters: Vec::new(),
        backends,
        timeouts: Timeouts::default(),
        retry: Retry::default(),
    })
}

/// The same rule, attached to a service of the mesh instead.
pub fn on_service(mut rule: Rule, service: &str) -> anyhow::Result<Rule> {
    let parent = Parent::Service { key: key(service).parse()?, port: None, consumer: None };
    rule.parents = vec![ParentRef { parent, hostnames: Vec::new() }];
    Ok(rule)
}
