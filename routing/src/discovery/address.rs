// SPDX-License-Identifier: Apache-2.0

//! Names of places: addresses in networks, keys of services, gateways.
//!
//! Owns the small values that point at a workload or service. Leaves what is
//! found there to [`super::workload`] and [`super::service`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use policy::identity::{InvalidName, Namespace};

/// Port that takes HBONE unless something else is said.
pub const HBONE_PORT: u16 = 15008;

/// An address of one network; the default network has the empty name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NetworkAddress {
    /// Name of the network.
    pub network: Arc<str>,
    /// Address within it.
    pub address: IpAddr,
}

impl NetworkAddress {
    /// Puts the two together.
    pub fn new(network: Arc<str>, address: IpAddr) -> Self {
        Self { network, address }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// A virtual address of a service: one address, or a range of them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VirtualAddress {
    /// Name of the network.
    pub network: Arc<str>,
    /// The range; a full-length prefix is a single address.
    pub range: IpNet,
}

impl VirtualAddress {
    /// A single address.
    pub fn single(network: Arc<str>, address: IpAddr) -> Self {
        Self { network, range: address.into() }
    }

    /// The address, unless this is a range.
    pub fn address(&self) -> Option<IpAddr> {
        (self.range.prefix_len() == self.range.max_prefix_len()).then(|| self.range.addr())
    }
}

/// Unique name of a service: `namespace/hostname`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceKey {
    /// Namespace of the service.
    pub namespace: Namespace,
    /// Fully qualified name, such as `reviews.bookinfo.svc.cluster.local`; may begin with `*.`.
    pub hostname: Arc<str>,
}

impl ServiceKey {
    /// Puts the two together.
    pub fn new(namespace: Namespace, hostname: impl Into<Arc<str>>) -> Self {
        Self { namespace, hostname: hostname.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// Why a text is no key of a service.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidServiceKey {
    /// Not `namespace/hostname`, or one of them is empty.
    #[error("{0:?} is not namespace/hostname")]
    Form(String),
    /// The first half is no namespace.
    #[error("namespace is not legal")]
    Namespace(#[source] InvalidName),
}

impl FromStr for ServiceKey {
    type Err = InvalidServiceKey;

    fn from_str(text: &str) -> Result<Self, InvalidServiceKey> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() && !hostname.contains('/') => {
                let namespace = namespace.parse().map_err(InvalidServiceKey::Namespace)?;
                Ok(Self::new(namespace, hostname))
            }
            _ => Err(InvalidServiceKey::Form(text.to_owned())),
        }
    }
}

/// Where a gateway or waypoint is.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GatewayAddress {
    /// What to look up.
    pub destination: GatewayDestination,
    /// Port that takes HBONE there; [`HBONE_PORT`] by default.
    pub hbone_port: u16,
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)
    }
}

/// How a gateway or waypoint is named.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum GatewayDestination {
    /// A service by key.
    Hostname(ServiceKey),
    /// A service or workload by address.
    Address(NetworkAddress),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_key_is_namespace_and_hostname() {
        let cases = [
            ("a/b.svc", true),
            ("a/*.b", true),
            ("a/", false),
            ("/b", false),
            ("a", false),
            ("", false),
            ("a/b/c", false),
            ("A/b", false),
        ];
        for (text, legal) in cases {
            let key = text.parse::<ServiceKey>();
            assert_eq!(key.is_ok(), legal, "{text}");
            if let Ok(key) = key {
                assert_eq!(key.to_string(), text);
            }
        }
    }

    #[test]
    fn only_a_full_prefix_is_a_single_address() {
        let single = VirtualAddress::single("".into(), "10.0.0.1".parse().unwrap());
        let range = VirtualAddress { network: "".into(), range: "10.0.0.0/31".parse().unwrap() };
        assert_eq!(single.address(), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(range.address(), None);
    }
}
