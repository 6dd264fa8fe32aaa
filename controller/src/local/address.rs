// SPDX-License-Identifier: Apache-2.0

//! The address plan of a local world: which address belongs to whom.
//!
//! Owns: the fixed ranges of fabric, nodes, pods, services and load balancers, and
//! the pools that hand single addresses out. Pure: nothing here touches the kernel.
//!
//! Keeps: every party has one IPv4 and one IPv6 address that end in the same number,
//! so a person can tell them by sight; an address is held by one owner at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most nodes a world may have; the fabric's address range sets it.
pub const MAX_NODES: u8 = 99;

/// Prefix of every Service address, IPv4.
pub const SERVICES_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 16);
/// Prefix of every Service address, IPv6.
pub const SERVICES_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);
/// Prefix of every LoadBalancer address, IPv4.
pub const BALANCERS_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 97, 0, 0), 24);
/// Prefix of every LoadBalancer address, IPv6.
pub const BALANCERS_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x10, 0x97, 0, 0, 0, 0, 0), 112);

/// One party's two addresses.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// Both addresses, IPv4 first as Kubernetes lists them.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// Both addresses as text, IPv4 first.
    #[must_use]
    pub fn texts(self) -> Vec<String> {
        self.both().iter().map(ToString::to_string).collect()
    }
}

/// The world's own end of the fabric: controller and cluster DNS answer here.
pub const FABRIC: Pair =
    Pair { v4: Ipv4Addr::new(10, 254, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x254, 0, 0, 0, 0, 0, 1) };

/// The Service address of cluster DNS.
pub const DNS: Pair = Pair {
    v4: Ipv4Addr::new(10, 96, 0, 10),
    v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa),
};

/// Address of node `number` (from 1) on the fabric.
#[must_use]
pub fn node(number: u8) -> Pair {
    // The same digits in both families: node 1 is 10.254.0.11 and fd00:254::11.
    let digits = 10 + u16::from(number);
    Pair {
        v4: Ipv4Addr::new(10, 254, 0, 10u8.saturating_add(number)),
        v6: Ipv6Addr::new(0xfd00, 0x254, 0, 0, 0, 0, 0, decimal_as_hex(digits)),
    }
}

/// Address of the pod bridge of node `number`: what its pods use as their gateway.
#[must_use]
pub fn pod_gateway(number: u8) -> Pair {
    pod(number, 1)
}

/// Address `host` in the pod range of node `number`.
#[must_use]
pub fn pod(number: u8, host: u8) -> Pair {
    let node = decimal_as_hex(u16::from(number));
    let digits = decimal_as_hex(u16::from(host));
    Pair {
        v4: Ipv4Addr::new(10, 244, number, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node, 0, 0, 0, digits),
    }
}

/// Service address `index` of the Service range.
#[must_use]
pub fn service(index: u16) -> Pair {
    let [high, low] = index.to_be_bytes();
    Pair {
        v4: Ipv4Addr::new(10, 96, high, low),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, index),
    }
}

/// LoadBalancer address `index`.
#[must_use]
pub fn balancer(index: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 97, 0, index),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x97, 0, 0, 0, 0, u16::from(index)),
    }
}

/// Ethernet address of a pod: made from its IPv4 address, so that neighbours that
/// remember it stay right when the address comes back under another pod.
#[must_use]
pub fn pod_mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Reads the decimal digits of `number` as hexadecimal ones: 11 becomes 0x11.
fn decimal_as_hex(number: u16) -> u16 {
    let mut rest = number;
    let mut value = 0;
    let mut shift = 0;
    while rest > 0 && shift < 16 {
        value |= (rest % 10) << shift;
        rest /= 10;
        shift += 4;
    }
    value
}

/// Hands out the numbers of one range, each to one owner at a time.
///
/// A number that came back is handed out again last, as a kubelet does, unless the
/// pool was made with `reuse`, which takes the lowest free one first.
#[derive(Clone, Debug)]
pub struct Pool {
    first: u16,
    last: u16,
    next: u16,
    reuse: bool,
    held: BTreeSet<u16>,
}

impl Pool {
    /// A pool of `first` to `last`, both included.
    #[must_use]
    pub fn new(first: u16, last: u16, reuse: bool) -> Self {
        Self { first, last, next: first, reuse, held: BTreeSet::new() }
    }

    /// Takes a free number; none if all are held.
    pub fn take(&mut self) -> Option<u16> {
        let from = if self.reuse { self.first } else { self.next };
        let found = (from..=self.last)
            .chain(self.first..from)
            .find(|number| !self.held.contains(number))?;
        self.held.insert(found);
        self.next = if found >= self.last { self.first } else { found + 1 };
        Some(found)
    }

    /// Marks `number` as held; false if it lies outside the pool or is held already.
    pub fn claim(&mut self, number: u16) -> bool {
        (self.first..=self.last).contains(&number) && self.held.insert(number)
    }

    /// Gives `number` back.
    pub fn release(&mut self, number: u16) {
        self.held.remove(&number);
    }
}

/// Service and LoadBalancer addresses by Service key, stable while the Service lives.
#[derive(Clone, Debug)]
pub struct ServiceAddresses {
    services: Pool,
    balancers: Pool,
    service_of: BTreeMap<String, u16>,
    balancer_of: BTreeMap<String, u8>,
}

impl Default for ServiceAddresses {
    fn default() -> Self {
        Self {
            // The low numbers are for Services that ask for an address by name.
            services: Pool::new(20, u16::MAX - 1, false),
            balancers: Pool::new(1, 254, false),
            service_of: BTreeMap::new(),
            balancer_of: BTreeMap::new(),
        }
    }
}

impl ServiceAddresses {
    /// The Service address of `key`, `namespace/name`; none when the range is used up.
    pub fn service(&mut self, key: &str) -> Option<Pair> {
        if let Some(index) = self.service_of.get(key) {
            return Some(service(*index));
        }
        let index = self.services.take()?;
        self.service_of.insert(key.to_owned(), index);
        Some(service(index))
    }

    /// The LoadBalancer address of `key`; none when the range is used up.
    pub fn balancer(&mut self, key: &str) -> Option<Pair> {
        if let Some(index) = self.balancer_of.get(key) {
            return Some(balancer(*index));
        }
        let index = u8::try_from(self.balancers.take()?).ok()?;
        self.balancer_of.insert(key.to_owned(), index);
        Some(balancer(index))
    }

    /// Gives back the addresses of all keys that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let Self { services, balancers, service_of, balancer_of } = self;
        service_of.retain(|key, index| {
            keep(key) || {
                services.release(*index);
                false
            }
        });
        balancer_of.retain(|key, index| {
            keep(key) || {
                balancers.release(u16::from(*index));
                false
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_end_in_the_same_digits() {
        let cases = [
            (node(1), "10.254.0.11", "fd00:254::11"),
            (node(9), "10.254.0.19", "fd00:254::19"),
            (pod_gateway(2), "10.244.2.1", "fd00:10:244:2::1"),
            (pod(12, 254), "10.244.12.254", "fd00:10:244:12::254"),
            (service(20), "10.96.0.20", "fd00:10:96::14"),
            (service(258), "10.96.1.2", "fd00:10:96::102"),
            (balancer(1), "10.97.0.1", "fd00:10:97::1"),
            (DNS, "10.96.0.10", "fd00:10:96::a"),
        ];
        for (pair, v4, v6) in cases {
            assert_eq!(pair.texts(), [v4, v6], "{pair:?}");
        }
    }

    #[test]
    fn a_number_has_one_owner_and_comes_back_last_unless_reuse_is_asked_for() {
        let mut pool = Pool::new(2, 4, false);
        assert_eq!((pool.take(), pool.take()), (Some(2), Some(3)));
        pool.release(2);
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(4), Some(2), None));

        let mut pool = Pool::new(2, 4, true);
        assert_eq!((pool.take(), pool.take()), (Some(2), Some(3)));
        pool.release(2);
        assert_eq!(pool.take(), Some(2));
        assert!(!pool.claim(2), "held");
        assert!(!pool.claim(9), "outside");
    }

    #[test]
    fn a_service_keeps_its_address_until_it_goes() {
        let mut addresses = ServiceAddresses::default();
        let first = addresses.service("a/x");
        let second = addresses.service("a/y");
        assert_ne!(first, second);
        assert_eq!(addresses.service("a/x"), first);
        addresses.retain(|key| key == "a/y");
        assert_eq!(addresses.service("a/y"), second);
        assert!(!addresses.service_of.contains_key("a/x"));
    }

    #[test]
    fn a_pod_keeps_its_ethernet_address_with_its_ip() {
        assert_eq!(pod_mac(pod(1, 5).v4), "0a:58:0a:f4:01:05");
    }
}
