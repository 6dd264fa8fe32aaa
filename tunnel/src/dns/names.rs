// SPDX-License-Identifier: Apache-2.0

//! What a name stands for, from the snapshot alone.
//!
//! Pure. Owns which services a name may mean, in which order, and which
//! addresses answer. Rule: Istio's ztunnel `src/dns/server.rs`.

use std::net::IpAddr;

use policy::identity::Namespace;
use routing::discovery::{Discovery, Health, HealthPolicy, IpFamilies, Service, Workload};

/// A question for addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// In small letters, without a last dot.
    pub(super) name: &'a str,
    /// IPv6 addresses are asked for.
    pub(super) v6: bool,
    /// Who asks.
    pub(super) local: &'a Workload,
    /// Domain of the cluster.
    pub(super) domain: &'a str,
}

/// What there is for a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// Not a name of the mesh: the resolver is asked.
    Elsewhere,
    /// The name of a service; it may have no address of the family.
    Here {
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// The name without the search domain that the client appended.
        alias: Option<String>,
    },
}

/// Finds a name among the services that the asking pod may see.
pub(super) fn find(question: &Question<'_>, discovery: &Discovery) -> Found {
    for (name, alias) in candidates(question) {
        let Some(service) = named(&name, &question.local.namespace, discovery) else { continue };
        return match addresses(question, service, discovery) {
            Some(addresses) => Found::Here { addresses, alias },
            None => Found::Elsewhere,
        };
    }
    Found::Elsewhere
}

/// Names that the question may mean, the most likely first; with the name that
/// was asked for if a search domain had to be cut off.
fn candidates(question: &Question<'_>) -> Vec<(String, Option<String>)> {
    let Question { name, domain, local, .. } = question;
    let namespace = local.namespace.as_str();
    let mut all: Vec<(String, Option<String>)> =
        expansions(name, namespace, domain).into_iter().map(|name| (name, None)).collect();
    let searches =
        [format!(".{namespace}.svc.{domain}"), format!(".svc.{domain}"), format!(".{domain}")];
    for search in searches {
        if let Some(short) = name.strip_suffix(search.as_str()).filter(|short| !short.is_empty()) {
            let expanded = expansions(short, namespace, domain).into_iter();
            all.extend(expanded.map(|name| (name, Some(short.to_owned()))));
        }
    }
    all
}

/// The name as it is, and as Kubernetes lets clients shorten it.
fn expansions(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let mut all = vec![name.to_owned()];
    match name.split('.').count() {
        1 => all.push(format!("{name}.{namespace}.svc.{domain}")),
        2 => all.push(format!("{name}.svc.{domain}")),
        3 if name.ends_with(".svc") => all.push(format!("{name}.{domain}")),
        _ => {}
    }
    all
}

/// The service of this name, else the one whose wildcard covers it.
fn named<'a>(name: &str, namespace: &Namespace, discovery: &'a Discovery) -> Option<&'a Service> {
    if let Some(service) = discovery.service_named(name, namespace) {
        return Some(service);
    }
    let mut rest = name;
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some(service) = discovery.service_named(&format!("*.{parent}"), namespace) {
            return Some(service);
        }
        rest = parent;
    }
    None
}

/// Addresses of a service for the asking pod; none if the resolver knows better.
fn addresses(
    question: &Question<'_>,
    service: &Service,
    discovery: &Discovery,
) -> Option<Vec<IpAddr>> {
    let wanted = |ip: &IpAddr| ip.is_ipv6() == question.v6;
    let serves = match service.ip_families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::V4 => !question.v6,
        IpFamilies::V6 => question.v6,
    };
    let network = &question.local.network;
    let single = service.addresses.iter().filter(|address| address.network == *network);
    let virtual_ones: Vec<IpAddr> = single.filter_map(|address| address.address()).collect();
    if !virtual_ones.is_empty() {
        return Some(virtual_ones.into_iter().filter(|ip| serves && wanted(ip)).collect());
    }
    let in_cluster = service.key.hostname.ends_with(&format!(".svc.{}", question.domain));
    if !in_cluster {
        return None;
    }
    let all =
        service.load_balancing.as_ref().is_some_and(|one| one.health == HealthPolicy::AllowAll);
    let endpoints = discovery.endpoints(&service.key).iter().map(|endpoint| &endpoint.workload);
    let healthy = endpoints.filter(|workload| all || workload.health == Health::Healthy);
    let ips = healthy.flat_map(|workload| workload.addresses.iter().copied());
    Some(ips.filter(|ip| serves && wanted(ip)).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use routing::discovery::{Change, Port, ServiceKey, VirtualAddress};

    use super::*;

    fn service(key: &str, vips: &[&str]) -> Change {
        let mut service = Service::new(key.parse().unwrap());
        service.addresses =
            vips.iter().map(|ip| VirtualAddress::single("".into(), ip.parse().unwrap())).collect();
        Change::Service(Arc::new(service))
    }

    fn workload(name: &str, ip: &str, service: &str) -> Workload {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap();
        let mut workload = Workload::new(name, identity, "shop".parse().unwrap());
        workload.addresses = vec![ip.parse().unwrap()];
        let key: ServiceKey = service.parse().unwrap();
        let port = Port { service_port: 80, target_port: 8080, app_protocol: Default::default() };
        workload.services.insert(key, [port].into());
        workload
    }

    #[test]
    fn names_are_found_as_clients_of_kubernetes_write_them() {
        let headless = "shop/db.shop.svc.cluster.local";
        let mut sick = workload("sick", "10.0.0.2", headless);
        sick.health = Health::Unhealthy;
        let mut discovery = Discovery::default();
        discovery.apply([
            service("shop/web.shop.svc.cluster.local", &["10.96.0.1", "fd00::1"]),
            service("other/api.other.svc.cluster.local", &["10.96.0.2"]),
            service("shop/*.example.com", &["10.96.0.3"]),
            service("shop/novip.example.org", &[]),
            service(headless, &[]),
            Change::Workload(Arc::new(workload("well", "10.0.0.1", headless))),
            Change::Workload(Arc::new(sick)),
        ]);
        let local = workload("client", "10.0.0.9", "shop/none");
        let here = |ips: &[&str], alias: Option<&str>| Found::Here {
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            alias: alias.map(str::to_owned),
        };
        let twice = "web.shop.svc.cluster.local.shop.svc.cluster.local";
        let cases = [
            ("web", false, here(&["10.96.0.1"], None)),
            ("web", true, here(&["fd00::1"], None)),
            ("web.shop", false, here(&["10.96.0.1"], None)),
            ("web.shop.svc", false, here(&["10.96.0.1"], None)),
            ("web.shop.svc.cluster.local", false, here(&["10.96.0.1"], None)),
            (twice, false, here(&["10.96.0.1"], Some("web.shop.svc.cluster.local"))),
            ("api.other", false, here(&["10.96.0.2"], None)),
            ("api.other", true, here(&[], None)),
            ("api", false, Found::Elsewhere),
            ("a.b.example.com", false, here(&["10.96.0.3"], None)),
            ("example.com", false, Found::Elsewhere),
            ("novip.example.org", false, Found::Elsewhere),
            ("db", false, here(&["10.0.0.1"], None)),
            ("well.db.shop.svc.cluster.local", false, Found::Elsewhere),
            ("example.net", false, Found::Elsewhere),
        ];
        for (name, v6, want) in cases {
            let question = Question { name, v6, local: &local, domain: "cluster.local" };
            assert_eq!(find(&question, &discovery), want, "{name} v6={v6}");
        }
    }
}
