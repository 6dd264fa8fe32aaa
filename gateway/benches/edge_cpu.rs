// SPDX-License-Identifier: Apache-2.0

//! CPU that one request costs the whole gateway: 200 routes on one host, one policy that lets
//! it in, metrics; beside nginx without any of that.
//!
//! `taskset -c 0,1 cargo bench -p waymark-gateway --bench edge_cpu`.

#[path = "relay/work.rs"]
mod work;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use gateway::app::Gateway;
use gateway::settings::Settings;
use policy::authz::{Action, Authorization, PolicyName, Scope, Target};
use policy::authz::{
    Clause, Field, Match, PathMatch as PolicyPath, Rule as PolicyRule, StringMatch,
};
use policy::identity::Identity;
use routing::delta::{self, Change, Resource};
use routing::discovery::{AppProtocol, Port, Service, ServiceKey, VirtualAddress, Workload};
use routing::gateway::{Gateway as GatewaySettings, GatewayKind};
use routing::listener::{Listener, Protocol};
use routing::matching::{HostPattern, PathMatch, RequestMatch};
use routing::route::{BackendRef, BackendTarget, Parent, ParentRef, Rule};
use routing::snapshot::Snapshot;
use tunnel::credentials::{Authority, AuthorityError};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    work::main(|| None, Some(start))
}

/// Signs nothing: nothing here is in mutual TLS.
struct Nobody;

impl Authority for Nobody {
    fn sign<'a>(
        &'a self,
        _: &'a Identity,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, AuthorityError>> {
        async { Err(AuthorityError("nobody signs".into())) }.boxed()
    }
}

fn start(backend: SocketAddr) -> Result<(Box<dyn Any>, SocketAddr)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let look = |name: &str| {
        let value = match name {
            "POD_NAMESPACE" => "shop",
            "SERVICE_ACCOUNT" | "GATEWAY_NAME" => "gw",
            "POD_NAME" => "gw-1",
            "INSTANCE_IP" => "127.0.0.1",
            "GATEWAY_WORKER_THREADS" => "1",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let mut settings = Settings::read(std::iter::once("router".to_owned()), look)?;
    settings.bind = [127, 0, 0, 1].into();
    settings.limits.http.requests = u32::MAX;
    let gateway = Gateway::start(settings, Arc::new(Nobody))?;
    let changes = world(backend, port)?.into_iter().map(Change::Put);
    let (snapshot, rejected) = delta::apply(&Snapshot::default(), changes);
    if !rejected.is_empty() {
        bail!("{rejected:?}");
    }
    gateway.publish(snapshot);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    while std::net::TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((Box::new(gateway), address))
}

/// One service with one pod, 200 routes of which the last is asked for, one policy.
fn world(backend: SocketAddr, port: u16) -> Result<Vec<Resource>> {
    let key: ServiceKey = "shop/web.shop.svc.cluster.local".parse()?;
    let at =
        |target_port| Port { service_port: 80, target_port, app_protocol: AppProtocol::Http11 };
    let mut service = Service::new(key.clone());
    service.ports = vec![at(0)];
    service.addresses = vec![VirtualAddress::single("".into(), [10, 96, 0, 1].into())];
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
    let uid = Workload::pod_key("Kubernetes", "shop", "web");
    let mut pod = Workload::new(uid, identity, "shop".parse()?);
    pod.addresses = vec![backend.ip()];
    pod.services.insert(key.clone(), [at(backend.port())].into());
    let listener = Listener {
        name: "shop/gw/http".parse()?,
        port,
        target_port: port,
        protocol: Protocol::Http,
        hostname: HostPattern::Any,
        tls: None,
        proxy_protocol: false,
    };
    let settings = GatewaySettings {
        name: "shop/gw".parse()?,
        kind: GatewayKind::Ingress,
        class: "waymark".into(),
        trusted_hops: 0,
        tracing: None,
        access_log: None,
        client_certificate: None,
    };
    let mut all = vec![
        Resource::Service(Arc::new(service)),
        Resource::Workload(Arc::new(pod)),
        Resource::Gateway(Arc::new(settings)),
        Resource::Listener(Arc::new(listener)),
        Resource::GatewayAuthorization(Arc::new(policy()?)),
    ];
    for number in 0..200 {
        let prefix = if number == 199 { "/some".to_owned() } else { format!("/other/{number}") };
        let target = BackendTarget::Service { key: key.clone(), port: 80 };
        let parent = Parent::Listener("shop/gw/http".parse()?);
        all.push(Resource::Rule(Arc::new(Rule {
            name: format!("HTTPRoute/shop/route-{number}/0").parse()?,
            rule_name: None,
            created: 1,
            parents: vec![ParentRef { parent, hostnames: vec!["backend.example".parse()?] }],
            matches: vec![RequestMatch {
                path: PathMatch::Prefix(prefix.as_str().into()),
                ..RequestMatch::any()
            }],
            filters: Vec::new(),
            backends: vec![BackendRef { target, weight: 1, filters: Vec::new() }],
            timeouts: policy::timeout::Timeouts::default(),
            retry: policy::retry::Retry::default(),
        })));
    }
    Ok(all)
}

/// Lets `GET` of paths below `/some` in.
fn policy() -> Result<Authorization> {
    let one = Match {
        paths: Field { any: vec![PolicyPath::parse("/some*")?], not: Vec::new() },
        methods: Field { any: vec![StringMatch::parse("GET")?], not: Vec::new() },
        ..Match::default()
    };
    Ok(Authorization {
        name: PolicyName::new("shop", "readers"),
        scope: Scope::Targets(vec![Target::Gateway("shop/gw".into())]),
        action: Action::Allow,
        dry_run: false,
        unsupported: None,
        rules: vec![PolicyRule { clauses: vec![Clause { matches: vec![one] }] }],
    })
}
