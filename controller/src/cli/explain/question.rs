// SPDX-License-Identifier: Apache-2.0

//! From the words of a user to a question: who calls, where to, with which request.
//!
//! Owns: finding workloads, Services and gateways by name as a person writes them, and the
//! DNS search that an application in the caller's pod would see.
//!
//! Start at [`read`].

mod target;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use policy::identity::Namespace;
use policy::jwt::Claims;
use routing::discovery::{AppProtocol, Discovery, Health, NetworkAddress, Service, Workload};
use routing::explain::{From, Question};
use routing::gateway::GatewayKind;
use routing::listener::GatewayName;

use super::{ExplainArgs, Known};
use crate::api::CLUSTER_DOMAIN;
use crate::cli::Failure;
use crate::translate::shape;
use target::{Place, Target};

/// A question with everything that it names found.
pub(super) struct Asked {
    pub(super) caller: Caller,
    /// The address that the caller connects to; none for one from outside.
    pub(super) to: Option<SocketAddr>,
    pub(super) http: Option<Parts>,
    /// What its token is taken to prove.
    claims: Option<Claims>,
    /// What was taken for granted.
    pub(super) notes: Vec<String>,
    shown: String,
}

/// Who calls.
pub(super) enum Caller {
    /// A workload.
    Workload(Arc<Workload>),
    /// Someone outside, at a gateway.
    Outside(Outside),
}

/// A caller from outside and where it comes in.
pub(super) struct Outside {
    pub(super) client: IpAddr,
    pub(super) gateway: GatewayName,
    at: Arc<Workload>,
    pub(super) port: u16,
    sni: Option<String>,
}

impl Asked {
    /// The question for the engine.
    pub(super) fn question(&self, roll: u64) -> Question<'_> {
        let anywhere = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
        let from = match &self.caller {
            Caller::Workload(source) => From::Workload { source, to: self.to.unwrap_or(anywhere) },
            Caller::Outside(outside) => From::Outside {
                client: outside.client,
                gateway: &outside.gateway,
                at: &outside.at,
                port: outside.port,
                sni: outside.sni.as_deref(),
            },
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Question { from, http: self.http.as_ref(), claims: self.claims.as_ref(), now, roll }
    }

    /// The question in one line.
    pub(super) fn headline(&self) -> String {
        let who = match &self.caller {
            Caller::Workload(source) => source.uid.to_string(),
            Caller::Outside(outside) => {
                format!("{} at gateway {} port {}", outside.client, outside.gateway, outside.port)
            }
        };
        let method = self.http.as_ref().map(|parts| format!("{} ", parts.method));
        let method = method.unwrap_or_else(|| "connection to ".to_owned());
        format!("{who}: {method}{}", self.shown)
    }
}

fn wrong(message: String) -> Failure {
    Failure { message, code: 2 }
}

/// Reads `NAME: VALUE`.
pub(super) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) =
        text.split_once(':').ok_or("expected NAME: VALUE, such as end-user: jason")?;
    let name = name.trim().parse().map_err(|error| format!("{name:?}: {error}"))?;
    let value = value.trim().parse().map_err(|error| format!("{value:?}: {error}"))?;
    Ok((name, value))
}

/// Reads the claims of a token.
pub(super) fn claims(text: &str) -> Result<Claims, String> {
    let all = serde_json::from_str(text)
        .map_err(|error| format!("{error}; expected an object, such as {{\"iss\": \"ISSUER\"}}"))?;
    Ok(Claims::new(all, &[] as &[&str]))
}

/// Finds what `args` names in `known`.
pub(super) fn read(args: &ExplainArgs, known: &Known) -> Result<Asked, Failure> {
    let target: Target = args.to.parse().map_err(|error: String| {
        wrong(format!(
            "--to {}: {error}; expected a URL, NAMESPACE/SERVICE:PORT or IP:PORT",
            args.to
        ))
    })?;
    if args.from == "outside" {
        outside(args, &target, known)
    } else {
        inside(args, &target, known)
    }
}

fn inside(args: &ExplainArgs, target: &Target, known: &Known) -> Result<Asked, Failure> {
    let discovery = &known.snapshot.discovery;
    let source = workload(&args.from, discovery)?;
    let (to, host) = address(target, &source.namespace, discovery)?;
    let mut notes = Vec::new();
    let described = args.method.is_some() || !args.headers.is_empty() || args.claims.is_some();
    let http = if target.tls {
        notes.push("the request is inside TLS: proxies see the connection alone".to_owned());
        None
    } else if target.http || described {
        Some(request(args, target, &host)?)
    } else {
        if speaks_http(discovery, &source, to) {
            notes.push(format!(
                "asked as a bare connection, which has no method and no path for policies and \
                 routes; for a request: --to http://{host}/PATH"
            ));
        }
        None
    };
    let shown = if args.to.contains(&to.ip().to_string()) {
        args.to.clone()
    } else {
        format!("{} ({to})", args.to)
    };
    let (caller, claims) = (Caller::Workload(source), args.claims.clone());
    Ok(Asked { caller, to: Some(to), http, claims, notes, shown })
}

/// Whether HTTP is spoken at the Service port of `to`.
fn speaks_http(discovery: &Discovery, source: &Workload, to: SocketAddr) -> bool {
    let at = NetworkAddress::new(Arc::clone(&source.network), to.ip());
    let service = discovery.service_at(&at, &source.namespace);
    let port = service.and_then(|service| service.port(to.port()));
    port.is_some_and(|port| {
        matches!(port.app_protocol, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc)
    })
}

/// The head of the request as it arrives at a proxy.
fn request(args: &ExplainArgs, target: &Target, host: &str) -> Result<Parts, Failure> {
    let mut request = http::Request::builder()
        .method(args.method.clone().unwrap_or(Method::GET))
        .uri(target.path.as_str())
        .header(http::header::HOST, host)
        .body(())
        .map_err(|error| wrong(format!("--to {}: {error}", args.to)))?;
    for (name, value) in &args.headers {
        if *name == http::header::HOST {
            request.headers_mut().insert(name, value.clone());
        } else {
            request.headers_mut().append(name, value.clone());
        }
    }
    Ok(request.into_parts().0)
}

/// The workload that `text` means: its name, its Deployment, or the beginning of its name.
fn workload(text: &str, discovery: &Discovery) -> Result<Arc<Workload>, Failure> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let mut here: Vec<&Arc<Workload>> = discovery
        .workloads()
        .filter(|workload| namespace.is_none_or(|wanted| workload.namespace.as_str() == wanted))
        .collect();
    here.sort_by(|one, other| one.uid.cmp(&other.uid));
    let fits: [&dyn Fn(&Workload) -> bool; 3] = [
        &|workload| *workload.name == *name,
        &|workload| *workload.workload_name == *name,
        &|workload| workload.name.starts_with(name),
    ];
    let found = fits.iter().find_map(|fits| {
        let found: Vec<_> = here.iter().copied().filter(|workload| fits(workload)).collect();
        (!found.is_empty()).then_some(found)
    });
    let found = found.unwrap_or_default();
    let Some(first) = found.first() else {
        return Err(wrong(format!(
            "--from {text}: no workload of this name has an address; \
             see: waymark workloads (or say outside)"
        )));
    };
    let alike = |other: &&Arc<Workload>| {
        other.namespace == first.namespace && other.workload_name == first.workload_name
    };
    if found.iter().all(alike) {
        return Ok(Arc::clone(first));
    }
    let names: Vec<String> =
        found.iter().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
    Err(wrong(format!("--from {text} may be any of {}", names.join(", "))))
}

/// Where a connection to `target` goes, and the host that a request names.
fn address(
    target: &Target,
    from: &Namespace,
    discovery: &Discovery,
) -> Result<(SocketAddr, String), Failure> {
    let host = target.authority();
    match &target.place {
        Place::Address(ip) => {
            let port = target
                .port
                .or(target.usual_port())
                .ok_or_else(|| wrong(format!("--to {ip}: expected a port, such as {ip}:9080")))?;
            Ok((SocketAddr::new(*ip, port), host))
        }
        Place::Object { namespace, name } => {
            let own = namespace.as_ref().map(|namespace| namespace.parse::<Namespace>());
            let own = own.transpose().map_err(|error| wrong(format!("--to: {error}")))?;
            let namespace = own.as_ref().unwrap_or(from);
            let full = format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}");
            if let Some(service) = discovery.service_named(&full, namespace) {
                let to = of_service(service, target, discovery)?;
                return Ok((to, format!("{name}.{namespace}:{}", to.port())));
            }
            let workload = workload(&format!("{namespace}/{name}"), discovery).map_err(|_| {
                wrong(format!(
                    "no Service or pod {namespace}/{name}; see: waymark get services -n {namespace}"
                ))
            })?;
            of_workload(&workload, target).map(|to| (to, host))
        }
        Place::Host(name) => match by_dns(name, from, discovery) {
            Some(service) => Ok((of_service(service, target, discovery)?, host)),
            None => Err(wrong(format!(
                "{name}: no Service of this name is seen from namespace {from}; \
                 see: waymark get services, or give IP:PORT"
            ))),
        },
    }
}

/// The Service that `name` means in a pod of `namespace`.
///
/// Rule: the search list that a kubelet writes into `resolv.conf`.
fn by_dns<'a>(
    name: &str,
    namespace: &Namespace,
    discovery: &'a Discovery,
) -> Option<&'a Arc<Service>> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let searched = [
        format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        format!("{name}.svc.{CLUSTER_DOMAIN}"),
        format!("{name}.{CLUSTER_DOMAIN}"),
        name,
    ];
    searched.iter().find_map(|name| discovery.service_named(name, namespace))
}

fn of_service(
    service: &Service,
    target: &Target,
    discovery: &Discovery,
) -> Result<SocketAddr, Failure> {
    let only = match service.ports.as_slice() {
        [only] if !target.is_url() => Some(only.service_port),
        _ => None,
    };
    let Some(port) = target.port.or(only).or(target.usual_port()) else {
        let ports: Vec<String> =
            service.ports.iter().map(|port| port.service_port.to_string()).collect();
        let (key, ports) = (&service.key, ports.join(", "));
        return Err(wrong(format!(
            "--to: {key} has the ports {ports}; say which, as in NAME:PORT"
        )));
    };
    if let Some(vip) = service.addresses.iter().find_map(|vip| vip.address()) {
        return Ok(SocketAddr::new(vip, port));
    }
    // A headless one: its name is answered with the addresses of its pods.
    let ready = |workload: &&Arc<Workload>| workload.health == Health::Healthy;
    let mut pods = discovery.endpoints(&service.key).iter().map(|endpoint| &endpoint.workload);
    let ip = pods.find(ready).and_then(|workload| workload.addresses.first());
    match ip {
        Some(ip) => Ok(SocketAddr::new(*ip, port)),
        None => Err(wrong(format!("--to: {} has no address and no ready pod", service.key))),
    }
}

fn of_workload(workload: &Workload, target: &Target) -> Result<SocketAddr, Failure> {
    let port = target.port.or(target.usual_port());
    match (workload.addresses.first(), port) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(*ip, port)),
        (None, _) => Err(wrong(format!("--to: {} has no address", workload.name))),
        (_, None) => {
            Err(wrong(format!("--to: {0} is a pod; say its port, as in {0}:9080", workload.name)))
        }
    }
}

fn outside(args: &ExplainArgs, target: &Target, known: &Known) -> Result<Asked, Failure> {
    if !target.is_url() {
        return Err(wrong(
            "from outside, only gateways are reached: --to needs a URL, such as http://localhost/"
                .to_owned(),
        ));
    }
    let gateway = gateway(args.gateway.as_deref(), known)?;
    let mut notes = Vec::new();
    let port = listener_port(&gateway, target, known, &mut notes);
    let labelled = format!("{}/{}", gateway.namespace(), shape::bounded(gateway.name()));
    let pods = known.gateways.get(&labelled).into_iter().flatten();
    let at = pods.filter_map(|pod| workload(pod, &known.snapshot.discovery).ok()).next();
    let at = at.ok_or_else(|| Failure {
        message: format!("no pod of gateway {gateway} runs; see: waymark get pods, waymark status"),
        code: 1,
    })?;
    let http = if target.http || target.tls {
        Some(request(args, target, &target.authority())?)
    } else {
        None
    };
    let sni = match (&target.place, target.tls) {
        (Place::Host(name), true) => Some(name.clone()),
        _ => None,
    };
    let caller = Caller::Outside(Outside { client: args.client, gateway, at, port, sni });
    let claims = args.claims.clone();
    Ok(Asked { caller, to: None, http, claims, notes, shown: args.to.clone() })
}

/// The gateway of that name, else the only one that lets anyone in.
fn gateway(name: Option<&str>, known: &Known) -> Result<GatewayName, Failure> {
    let serving = &known.snapshot.serving;
    let mut names: Vec<GatewayName> = serving
        .gateways()
        .filter(|gateway| gateway.kind == GatewayKind::Ingress)
        .map(|gateway| gateway.name.clone())
        .collect();
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    let listed = || names.iter().map(GatewayName::as_str).collect::<Vec<_>>().join(", ");
    match (name, names.as_slice()) {
        (_, []) => Err(wrong("no Gateway lets anyone in; see: waymark get gateways".to_owned())),
        (Some(name), _) => {
            let found = names.iter().find(|one| one.as_str() == name || one.name() == name);
            found
                .cloned()
                .ok_or_else(|| wrong(format!("no gateway {name}; there are {}", listed())))
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(wrong(format!("choose with --gateway: {}", listed()))),
    }
}

/// The listener port that a URL leads to.
///
/// The port of localhost is the user's own choice and leads to the first listener that fits.
fn listener_port(
    gateway: &GatewayName,
    target: &Target,
    known: &Known,
    notes: &mut Vec<String>,
) -> u16 {
    let listeners = known.snapshot.serving.listeners();
    let mut ports: Vec<u16> = listeners
        .filter(|listener| listener.name.gateway() == *gateway)
        .map(|listener| listener.port)
        .collect();
    ports.sort_unstable();
    let usual = target.usual_port().unwrap_or(80);
    let asked = target.port.unwrap_or(usual);
    if !target.is_localhost() || ports.contains(&asked) {
        return asked;
    }
    let port = if ports.contains(&usual) { Some(usual) } else { ports.first().copied() };
    match port {
        Some(port) => {
            notes.push(format!("localhost:{asked} leads to port {port} of gateway {gateway}"));
            port
        }
        None => asked,
    }
}

#[cfg(test)]
mod tests;
