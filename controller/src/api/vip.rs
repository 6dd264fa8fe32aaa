// SPDX-License-Identifier: Apache-2.0

//! Virtual addresses for hosts of ServiceEntries that name none. Pure.
//!
//! Rule: Istio's `networking/serviceentry/ip_autoallocation.go`: pools 240.240.0.0/16 and
//! 2001:2::/48, told in `status.addresses`, kept once told. Here the place in a pool follows from
//! the host's name, so that the same host has the same address before its status is written, in
//! every controller and after a restart. Of hosts that share a place the first keeps it; the
//! others have it in one of the next blocks, 240.241.0.0/16 to 240.255.0.0/16, so no two hosts
//! are ever taken for each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kube::ResourceExt as _;
use sha2::{Digest, Sha256};

use super::istio::ServiceEntry;

/// Blocks that hosts of one place can be told apart by.
const BLOCKS: u8 = 16;
/// Label with which an entry asks for no address.
const ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

/// A place in the pools: the last two bytes of an address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place(u8, u8);

impl Place {
    /// The place that follows from the name of a host.
    fn of_name(namespace: &str, host: &str) -> Self {
        let digest = Sha256::digest(format!("{namespace}/{host}").as_bytes());
        let byte = |at: usize| digest.get(at).copied().unwrap_or(1);
        Self(byte(0), byte(1).clamp(1, 254))
    }

    /// The place as the value of an index.
    pub fn text(self) -> String {
        format!("{}.{}", self.0, self.1)
    }

    /// Its addresses in a block.
    fn addresses(self, block: u8) -> [IpAddr; 2] {
        let [high, low, wide] = [self.0, self.1, block].map(u16::from);
        let v4 = Ipv4Addr::new(240, 240 + block, self.0, self.1);
        [v4.into(), Ipv6Addr::new(0x2001, 2, 0, 0, 0, wide, high, low).into()]
    }
}

/// Tells whether hosts of the entry have addresses of the pools.
pub fn allocates(entry: &ServiceEntry) -> bool {
    let said = entry.metadata.labels.as_ref().and_then(|labels| labels.get(ALLOCATE));
    let none = entry.spec.resolution.as_deref().unwrap_or("NONE") == "NONE";
    entry.spec.addresses.is_empty() && !none && said.is_none_or(|said| said != "false")
}

/// What the status says of a host: its addresses.
fn assigned<'a>(entry: &'a ServiceEntry, host: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
    let listed = entry.status.iter().flat_map(|status| &status.addresses);
    listed
        .filter(move |one| one.host.as_deref().is_none_or(|other| other == host))
        .filter_map(|one| one.value.parse().ok())
}

/// Block and place of an assigned address that is of the pools.
fn located(entry: &ServiceEntry, host: &str) -> Option<(u8, Place)> {
    assigned(entry, host).find_map(|address| match address {
        IpAddr::V4(address) => {
            let [first, second, high, low] = address.octets();
            let block = second.checked_sub(240).filter(|_| first == 240)?;
            Some((block, Place(high, low)))
        }
        IpAddr::V6(_) => None,
    })
}

/// The places where hosts of the entry are or want to be.
pub fn places(entry: &ServiceEntry) -> Vec<Place> {
    let hosts = entry.spec.hosts.iter().filter(|_| allocates(entry));
    let namespace = entry.namespace().unwrap_or_default();
    hosts.flat_map(|host| wanted(entry, &namespace, host)).collect()
}

/// A host is looked for where it is, and where it goes should another be there.
fn wanted(entry: &ServiceEntry, namespace: &str, host: &str) -> Vec<Place> {
    let named = Place::of_name(namespace, host);
    let mut places = vec![named];
    places.extend(located(entry, host).map(|(_, place)| place).filter(|place| *place != named));
    places
}

/// The addresses of a host of an entry that allocates; `rivals` gives the entries at a place, the
/// entry itself among them.
///
/// None if more hosts are at the place than there are blocks.
pub fn addresses<'a, I>(
    entry: &ServiceEntry,
    host: &str,
    mut rivals: impl FnMut(Place) -> I,
) -> Vec<IpAddr>
where
    I: IntoIterator<Item = &'a ServiceEntry>,
{
    let namespace = entry.namespace().unwrap_or_default();
    let me = Claim::of(entry, &namespace, host);
    let is_mine = match me.fixed {
        Some((_, place)) => first_of(&claims(rivals(place)), me.fixed) == Some(&me),
        None => true,
    };
    let own: Vec<IpAddr> = assigned(entry, host).filter(|_| is_mine).collect();
    if !own.is_empty() {
        return own;
    }
    let all = claims(rivals(me.named));
    let at = |block| Some((block, me.named));
    let mut free = (0..BLOCKS).filter(|block| first_of(&all, at(*block)).is_none());
    // One that has its address elsewhere is given a block, too: whether it keeps that address is
    // not known here.
    let settled = |claim: &Claim| {
        let here = claim.fixed.is_some_and(|(_, place)| place == me.named);
        here && first_of(&all, claim.fixed) == Some(claim)
    };
    for claim in all.iter().filter(|claim| claim.named == me.named && !settled(claim)) {
        let block = free.next();
        if *claim == me {
            return block.map_or_else(Vec::new, |block| me.named.addresses(block).into());
        }
    }
    Vec::new()
}

/// Who has the address that was assigned to several.
fn first_of(claims: &[Claim], fixed: Option<(u8, Place)>) -> Option<&Claim> {
    claims.iter().find(|claim| claim.fixed == fixed)
}

/// A host that wants an address; the least of those who want the same has it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Claim {
    /// When its entry was made; those of files, which have no time, first.
    since: Option<i128>,
    namespace: String,
    entry: String,
    host: String,
    named: Place,
    fixed: Option<(u8, Place)>,
}

impl Claim {
    fn of(entry: &ServiceEntry, namespace: &str, host: &str) -> Self {
        Self {
            since: entry.metadata.creation_timestamp.as_ref().map(|time| time.0.as_nanosecond()),
            namespace: namespace.to_owned(),
            entry: entry.name_any(),
            host: host.to_owned(),
            named: Place::of_name(namespace, host),
            fixed: located(entry, host),
        }
    }
}

/// The hosts of entries, in the order of their right.
fn claims<'a>(entries: impl IntoIterator<Item = &'a ServiceEntry>) -> Vec<Claim> {
    let mut all: Vec<Claim> = Vec::new();
    for entry in entries.into_iter().filter(|entry| allocates(entry)) {
        let namespace = entry.namespace().unwrap_or_default();
        all.extend(entry.spec.hosts.iter().map(|host| Claim::of(entry, &namespace, host)));
    }
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stores;
    use crate::store::index::Index;
    use crate::translate::testing::stores;

    fn entry(name: &str, hosts: &str, made: &str, status: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: n, creationTimestamp: '2026-01-01T00:00:0{made}Z'}}\n\
             spec: {{hosts: [{hosts}], resolution: DNS, ports: [{{number: 443, name: tls}}]}}\n\
             status: {{{status}}}\n"
        )
    }

    fn of(stores: &Stores, name: &str, host: &str) -> Vec<String> {
        let all: Vec<_> = stores.all::<ServiceEntry>().cloned().collect();
        let entry = all.iter().find(|entry| entry.name_any() == name).unwrap();
        let rivals = |place: Place| {
            let found = stores.list::<ServiceEntry>(Index::Place, &place.text());
            found.into_iter().map(|entry| &**entry)
        };
        addresses(entry, host, rivals).iter().map(ToString::to_string).collect()
    }

    /// Two hosts of namespace `n` whose names come to the same place.
    fn sharing() -> (String, String) {
        let mut seen: Vec<(Place, String)> = Vec::new();
        for number in 0.. {
            let host = format!("h{number}.example");
            let place = Place::of_name("n", &host);
            if let Some((_, other)) = seen.iter().find(|(at, _)| *at == place) {
                return (other.clone(), host);
            }
            seen.push((place, host));
        }
        unreachable!("there are fewer places than names")
    }

    #[test]
    fn hosts_that_share_a_place_never_share_an_address() {
        let (first, second) = sharing();
        let place = Place::of_name("n", &first);
        let [older, newer] = [("b", &first, "1"), ("a", &second, "2")]
            .map(|(name, host, made)| entry(name, host, made, ""));
        let both = stores(&[&older, &newer]);
        assert_eq!(of(&both, "b", &first), place.addresses(0).map(|ip| ip.to_string()));
        assert_eq!(of(&both, "a", &second), place.addresses(1).map(|ip| ip.to_string()));
        let alone = stores(&[&newer]);
        assert_eq!(of(&alone, "a", &second), place.addresses(0).map(|ip| ip.to_string()));
        let one = entry("c", &format!("{second}, {first}"), "1", "");
        let one = stores(&[&one]);
        assert_ne!(of(&one, "c", &first), of(&one, "c", &second), "of one entry");
    }

    #[test]
    fn what_was_assigned_stays_and_belongs_to_one() {
        let (first, second) = sharing();
        let place = Place::of_name("n", &first);
        let told = |block: u8, host: &str| {
            let [v4, v6] = place.addresses(block);
            format!("addresses: [{{value: '{v4}', host: {host}}}, {{value: '{v6}', host: {host}}}]")
        };
        // The other one was there once.
        let kept = stores(&[&entry("a", &second, "2", &told(1, &second))]);
        assert_eq!(of(&kept, "a", &second), place.addresses(1).map(|ip| ip.to_string()));
        // One that was assigned goes before one that only comes to the place.
        let late = entry("b", &first, "9", &told(0, &first));
        let both = stores(&[&late, &entry("a", &second, "2", "")]);
        assert_eq!(of(&both, "b", &first), place.addresses(0).map(|ip| ip.to_string()));
        assert_eq!(of(&both, "a", &second), place.addresses(1).map(|ip| ip.to_string()));
        // Two cannot have the same, whoever wrote it.
        let elsewhere = entry("x", "x.example", "0", &told(0, "x.example"));
        let three = stores(&[&late, &elsewhere]);
        assert_eq!(of(&three, "x", "x.example"), place.addresses(0).map(|ip| ip.to_string()));
        assert_eq!(of(&three, "b", &first), place.addresses(1).map(|ip| ip.to_string()));
        // An address that is not of the pools is nobody else's matter.
        let own = entry("a", &second, "2", "addresses: [{value: 10.9.0.1}]");
        assert_eq!(of(&stores(&[&own]), "a", &second), ["10.9.0.1"]);
    }
}
