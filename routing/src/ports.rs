// SPDX-License-Identifier: Apache-2.0

//! Listeners by the port that they share, and which of them a connection or request belongs to.
//!
//! Owns that choice alone: the rules of the chosen listener are found by its name, in
//! [`crate::serving`], so a changed rule does not touch this. Keeps: of two listeners for one
//! host on one port the first by name answers, whatever the order in which they came.
//!
//! Start at [`Ports::at`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::listener::{Listener, Protocol};
use crate::matching::canonical_host;
use crate::table::HostMap;

/// What a port carries.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// All ports that a gateway process binds; cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    places: Arc<BTreeMap<(u16, Transport), Arc<Port>>>,
}

/// The listeners that share a port.
#[derive(Clone, Debug, Default)]
pub struct Port {
    listeners: HostMap<Vec<Arc<Listener>>>,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice<'a> {
    /// This listener's.
    Serve(&'a Arc<Listener>),
    /// No listener serves the host: 404.
    NotFound,
    /// The host is another listener's than the one that the connection was made for: 421, so
    /// that the client makes another connection.
    Misdirected,
}

impl Ports {
    /// All ports to bind, with what is served there.
    pub fn iter(&self) -> impl Iterator<Item = (u16, Transport, &Arc<Port>)> {
        self.places.iter().map(|(&(port, transport), table)| (port, transport, table))
    }

    /// What is served on a port that the process has bound.
    #[must_use]
    pub fn at(&self, port: u16, transport: Transport) -> Option<&Arc<Port>> {
        self.places.get(&(port, transport))
    }

    /// Takes a listener in; its older version must be out.
    pub fn put(&mut self, listener: &Arc<Listener>) {
        let port = Arc::make_mut(&mut self.places).entry(place(listener)).or_default();
        let same_host = Arc::make_mut(port).listeners.entry(&listener.hostname);
        let at = same_host.partition_point(|other| other.name < listener.name);
        same_host.insert(at, Arc::clone(listener));
    }

    /// Takes a listener out.
    pub fn remove(&mut self, listener: &Listener) {
        let places = Arc::make_mut(&mut self.places);
        let Some(port) = places.get_mut(&place(listener)) else { return };
        let listeners = &mut Arc::make_mut(port).listeners;
        let same_host = listeners.entry(&listener.hostname);
        same_host.retain(|other| other.name != listener.name);
        if same_host.is_empty() {
            listeners.remove(&listener.hostname);
        }
        if listeners.is_empty() {
            places.remove(&place(listener));
        }
    }
}

/// Port and transport that the process binds for a listener.
fn place(listener: &Listener) -> (u16, Transport) {
    let transport = match listener.protocol {
        Protocol::Udp => Transport::Udp,
        Protocol::Http | Protocol::Https | Protocol::Tls | Protocol::Tcp | Protocol::Hbone => {
            Transport::Tcp
        }
    };
    (listener.target_port, transport)
}

impl Port {
    /// The listeners of the port, in no order; at least one.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values().filter_map(|same_host| same_host.first())
    }

    /// The listener for connections that name no host: TCP, UDP, HBONE.
    #[must_use]
    pub fn only(&self) -> Option<&Arc<Listener>> {
        self.most_specific("")
    }

    /// The listener for a TLS connection, by the name that the client asked for.
    ///
    /// None: the connection is closed without an answer.
    #[must_use]
    pub fn by_sni(&self, sni: Option<&str>) -> Option<&Arc<Listener>> {
        self.most_specific(&canonical_host(sni.unwrap_or("")))
    }

    /// The listener for a request that came in the clear.
    ///
    /// Rule: `Listener.hostname` in Gateway API `apis/v1/gateway_types.go`: only the most
    /// specific listener for the host answers; a wider one does not stand in for it.
    #[must_use]
    pub fn by_host(&self, host: &str) -> Choice<'_> {
        match self.most_specific(&canonical_host(host)) {
            Some(listener) => Choice::Serve(listener),
            None => Choice::NotFound,
        }
    }

    /// The listener for a request on a TLS connection that was made for `sni`.
    ///
    /// Rule: `GatewaySpec.listeners` in Gateway API `apis/v1/gateway_types.go` and RFC 9110,
    /// 15.5.20: the most specific listener for the host must be the one that the connection
    /// was made for. A host that no named listener is for stays with the catch-all and finds
    /// no route there.
    #[must_use]
    pub fn by_host_over_tls(&self, sni: Option<&str>, host: &str) -> Choice<'_> {
        let Some(connected) = self.by_sni(sni) else { return Choice::NotFound };
        match self.most_specific(&canonical_host(host)) {
            Some(best) if Arc::ptr_eq(best, connected) => Choice::Serve(best),
            Some(_) | None => Choice::Misdirected,
        }
    }

    fn most_specific(&self, host: &str) -> Option<&Arc<Listener>> {
        self.listeners.covering(host).find_map(|same_host| same_host.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::HostPattern;

    fn listener(section: &str, host: &str, port: u16, protocol: Protocol) -> Arc<Listener> {
        Arc::new(Listener {
            name: format!("ns/gw/{section}").parse().unwrap(),
            port,
            target_port: port,
            protocol,
            hostname: if host.is_empty() { HostPattern::Any } else { host.parse().unwrap() },
            tls: None,
            proxy_protocol: false,
        })
    }

    fn port_of(hosts: &[&str]) -> Ports {
        let mut ports = Ports::default();
        for host in hosts {
            let section = format!("l{}", host.replace(['*', '.'], "x"));
            ports.put(&listener(&section, host, 443, Protocol::Https));
        }
        ports
    }

    fn served(choice: Choice<'_>) -> String {
        match choice {
            Choice::Serve(listener) => listener.hostname.to_string(),
            Choice::NotFound => "404".to_owned(),
            Choice::Misdirected => "421".to_owned(),
        }
    }

    #[test]
    fn gateway_http_listener_isolation() {
        let ports = port_of(&["", "*.example.com", "*.foo.example.com", "abc.foo.example.com"]);
        let port = ports.at(443, Transport::Tcp).unwrap();
        let cases = [
            ("bar.com", "*"),
            ("bar.example.com", "*.example.com"),
            ("bar.foo.example.com", "*.foo.example.com"),
            ("abc.foo.example.com", "abc.foo.example.com"),
            ("ABC.foo.example.com:80", "abc.foo.example.com"),
            ("example.com", "*"),
            ("", "*"),
        ];
        for (host, want) in cases {
            assert_eq!(served(port.by_host(host)), want, "{host}");
        }
        let narrow = port_of(&["*.foo.com"]);
        let port = narrow.at(443, Transport::Tcp).unwrap();
        assert_eq!(served(port.by_host("bar.com")), "404");
        assert_eq!(port.by_sni(Some("bar.com")), None);
        assert_eq!(port.by_sni(None), None);
    }

    #[test]
    fn https_listener_detects_misdirected_requests() {
        let ports = port_of(&["", "*.wildcard.org", "example.org", "second-example.org"]);
        let port = ports.at(443, Transport::Tcp).unwrap();
        let cases = [
            // SNI, host, outcome
            (Some("example.org"), "example.org", "example.org"),
            (Some("example.org"), "second-example.org", "421"),
            (Some("example.org"), "unknown-example.org", "421"),
            (Some("second-example.org"), "second-example.org", "second-example.org"),
            (Some("second-example.org"), "example.org", "421"),
            (Some("a.wildcard.org"), "b.wildcard.org", "*.wildcard.org"),
            (Some("a.wildcard.org"), "wildcard.org", "421"),
            (Some("a.wildcard.org"), "example.org", "421"),
            (Some("unknown-example.org"), "example.org", "421"),
            (Some("unknown-example.org"), "unknown-example.org", "*"),
            (Some("unknown-example.org"), "other.net", "*"),
            (None, "other.net", "*"),
            (None, "example.org", "421"),
        ];
        for (sni, host, want) in cases {
            assert_eq!(served(port.by_host_over_tls(sni, host)), want, "{sni:?} {host}");
        }
        let named = port_of(&["example.org"]);
        let port = named.at(443, Transport::Tcp).unwrap();
        assert_eq!(served(port.by_host_over_tls(Some("example.org"), "other")), "421");
        assert_eq!(served(port.by_host_over_tls(Some("other"), "other")), "404");
    }

    #[test]
    fn of_two_listeners_for_a_host_the_first_by_name_answers_until_it_goes() {
        let first = listener("a", "example.com", 80, Protocol::Http);
        let second = listener("b", "example.com", 80, Protocol::Http);
        for order in [[&first, &second], [&second, &first]] {
            let mut ports = Ports::default();
            order.into_iter().for_each(|listener| ports.put(listener));
            let port = ports.at(80, Transport::Tcp).unwrap();
            assert_eq!(port.by_host("example.com"), Choice::Serve(&first));
            ports.remove(&first);
            let port = ports.at(80, Transport::Tcp).unwrap();
            assert_eq!(port.by_host("example.com"), Choice::Serve(&second));
            ports.remove(&second);
            assert_eq!(ports.iter().count(), 0, "no listener, no port");
        }
    }

    #[test]
    fn tcp_and_udp_share_no_port() {
        let mut ports = Ports::default();
        ports.put(&listener("dns-tcp", "", 53, Protocol::Tcp));
        ports.put(&listener("dns-udp", "", 53, Protocol::Udp));
        let section = |transport| ports.at(53, transport).unwrap().only().unwrap().name.section();
        assert_eq!(section(Transport::Tcp), "dns-tcp");
        assert_eq!(section(Transport::Udp), "dns-udp");
    }
}
