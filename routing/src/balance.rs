// SPDX-License-Identifier: Apache-2.0

//! Which endpoint of a service, and which one next if that fails.
//!
//! Owns locality, health, weight, the choice by chance, and that of a client
//! which keeps its endpoint ([`Candidates::pick_for`]). Leaves how busy
//! endpoints are to the caller, and failures to [`outlier`].
//!
//! Keeps: chance is given by the caller, so the same roll gives the same
//! choice; an endpoint of capacity zero is never chosen; one that failed lately
//! is left out only while another is left.
//!
//! Start at [`Candidates::of`].

mod affinity;
pub mod outlier;

use std::net::IpAddr;
use std::sync::Arc;

use crate::discovery::{
    Endpoint, Health, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope,
    Service, Workload,
};

/// Random numbers from a caller-given start (SplitMix64): even, cheap, the same every time.
#[derive(Clone, Debug)]
pub struct Rolls(u64);

impl Rolls {
    /// Numbers that follow from `start`.
    pub fn new(start: u64) -> Self {
        Self(start)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number below `end`; zero if `end` is zero.
    pub fn below(&mut self, end: u64) -> u64 {
        let wide = u128::from(self.roll()) * u128::from(end);
        u64::try_from(wide >> 64).unwrap_or_default()
    }
}

/// An endpoint that may be chosen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Port of the workload.
    pub port: u16,
    /// How far down the preference it is; zero is best.
    pub tier: u8,
}

/// What is asked of the endpoints of a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Want {
    /// Those that serve this service port.
    Port(u16),
    /// Those of a waypoint: they take HBONE on this port, whether or not the
    /// service says so, if tunnelled traffic is handed on to their application.
    Waypoint(u16),
}

/// The endpoints of a service that may be chosen, best tier first.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    list: Vec<Candidate>,
    tiers: Vec<Tier>,
}

/// One run of `list`.
#[derive(Clone, Debug)]
struct Tier {
    start: usize,
    /// Sums of capacities up to and with each member.
    sums: Vec<u64>,
}

impl Tier {
    fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or_default()
    }

    /// Member whose share of the capacity holds `point`.
    fn at(&self, point: u64) -> usize {
        self.start + self.sums.partition_point(|sum| *sum <= point)
    }
}

impl Candidates {
    /// Those of `endpoints` that a connection from `source` to `service` may choose.
    ///
    /// Rule: `load_balance` of Istio's ztunnel (`src/state.rs`), with one
    /// addition: under FAILOVER lesser tiers stay as the way out when all of the best failed.
    pub fn of(source: &Workload, service: &Service, endpoints: &[Endpoint], want: Want) -> Self {
        let any = LoadBalancing::default();
        let balancing = service.load_balancing.as_ref().unwrap_or(&any);
        let mut list: Vec<Candidate> = endpoints
            .iter()
            .filter(|endpoint| usable(source, &endpoint.workload, balancing.health))
            .filter_map(|endpoint| {
                let port = port_of(endpoint, want)?;
                let tier = tier(source, &endpoint.workload, balancing)?;
                Some(Candidate { workload: Arc::clone(&endpoint.workload), port, tier })
            })
            .collect();
        list.sort_by_key(|candidate| candidate.tier);
        let mut tiers = Vec::new();
        for run in list.chunk_by(|one, two| one.tier == two.tier) {
            let start = tiers.last().map_or(0, |tier: &Tier| tier.start + tier.sums.len());
            let mut sum = 0;
            let sums = run.iter().map(|candidate| {
                sum += u64::from(candidate.workload.capacity);
                sum
            });
            tiers.push(Tier { start, sums: sums.collect() });
        }
        Self { list, tiers }
    }

    /// Tells whether there is nothing to choose.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Number of candidates, of all tiers.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// All candidates, best tier first.
    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.list.iter()
    }

    /// One candidate of the best tier that has one not `out`, by capacity; if
    /// all are out, one of the best tier all the same.
    pub fn pick(&self, rolls: &mut Rolls, out: impl Fn(&Candidate) -> bool) -> Option<&Candidate> {
        let found = self.tiers.iter().find_map(|tier| self.pick_in(tier, rolls, &out));
        found.or_else(|| self.pick_in(self.tiers.first()?, rolls, &|_| false))
    }

    /// The candidate for one more connection or request of `client` to `service`: [`Self::pick`],
    /// or the one that it keeps if the service wants that.
    pub fn pick_for(
        &self,
        service: &Service,
        client: IpAddr,
        rolls: &mut Rolls,
        out: impl Fn(&Candidate) -> bool,
    ) -> Option<&Candidate> {
        if !service.client_affinity {
            return self.pick(rolls, out);
        }
        let found =
            self.tiers.iter().find_map(|tier| affinity::best(self.tier(tier), client, &out));
        found.or_else(|| affinity::best(self.tier(self.tiers.first()?), client, &|_| false))
    }

    /// The less loaded of two picks; see [`Self::pick`].
    pub fn least_loaded(
        &self,
        rolls: &mut Rolls,
        out: impl Fn(&Candidate) -> bool,
        load: impl Fn(&Candidate) -> u64,
    ) -> Option<&Candidate> {
        let one = self.pick(rolls, &out)?;
        let other = |candidate: &Candidate| candidate.workload.uid == one.workload.uid;
        let two = self.pick(rolls, |candidate| other(candidate) || out(candidate))?;
        // The second pick leaves the first one's tier if nothing else is in it.
        let better = two.tier == one.tier && !out(two) && load(two) < load(one);
        Some(if better { two } else { one })
    }

    /// Up to `limit` different candidates in the order to try them.
    pub fn order(&self, rolls: &mut Rolls, limit: usize) -> Vec<&Candidate> {
        let mut chosen: Vec<&Candidate> = Vec::with_capacity(limit.min(self.list.len()));
        for tier in &self.tiers {
            while chosen.len() < limit {
                let taken = |candidate: &Candidate| {
                    chosen.iter().any(|other| other.workload.uid == candidate.workload.uid)
                };
                let Some(next) = self.pick_in(tier, rolls, &taken) else { break };
                chosen.push(next);
            }
        }
        chosen
    }

    /// Up to `limit` different candidates in the order in which `client`, which keeps to the
    /// first of them, tries them.
    pub fn order_for(&self, client: IpAddr, limit: usize) -> Vec<&Candidate> {
        let tiers = self.tiers.iter();
        tiers.flat_map(|tier| affinity::order(self.tier(tier), client)).take(limit).collect()
    }

    fn tier(&self, tier: &Tier) -> &[Candidate] {
        self.list.get(tier.start..tier.start + tier.sums.len()).unwrap_or_default()
    }

    fn pick_in(
        &self,
        tier: &Tier,
        rolls: &mut Rolls,
        out: &impl Fn(&Candidate) -> bool,
    ) -> Option<&Candidate> {
        // Most often few are out, so a try or two hits; then count exactly.
        for _ in 0..3 {
            let candidate = self.list.get(tier.at(rolls.below(tier.total())))?;
            if !out(candidate) {
                return Some(candidate);
            }
        }
        let members = self.tier(tier).iter();
        let left: Vec<&Candidate> = members.filter(|candidate| !out(candidate)).collect();
        let total = left.iter().map(|candidate| u64::from(candidate.workload.capacity)).sum();
        let mut point = rolls.below(total);
        left.into_iter().find(|candidate| {
            let capacity = u64::from(candidate.workload.capacity);
            let hit = point < capacity;
            point = point.saturating_sub(capacity);
            hit
        })
    }
}

/// Tells whether `workload` may be chosen at all.
fn usable(source: &Workload, workload: &Workload, health: HealthPolicy) -> bool {
    let healthy = workload.health == Health::Healthy || health == HealthPolicy::AllowAll;
    let reachable = !workload.addresses.is_empty() || workload.hostname.is_some();
    healthy && reachable && workload.capacity > 0 && workload.network == source.network
}

fn port_of(endpoint: &Endpoint, want: Want) -> Option<u16> {
    match want {
        Want::Port(port) => endpoint.target_port(port),
        Want::Waypoint(port) => {
            let hands_on = endpoint.workload.application_tunnel.is_some();
            endpoint.target_port(port).or_else(|| hands_on.then_some(port))
        }
    }
}

/// Place of `workload` in the preference of a caller at `source`; none: it may not be chosen.
fn tier(source: &Workload, workload: &Workload, balancing: &LoadBalancing) -> Option<u8> {
    let scopes = balancing.preference.as_slice();
    match balancing.mode {
        LoadBalancingMode::Any | LoadBalancingMode::Passthrough => Some(0),
        LoadBalancingMode::Strict => {
            scopes.iter().all(|scope| near(source, workload, *scope)).then_some(0)
        }
        LoadBalancingMode::Failover => {
            // NETWORK in front weighs as much as all others together, and a miss
            // there does not end the comparison of the others.
            let (network, others) = match scopes.split_first() {
                Some((LocalityScope::Network, others)) => {
                    (near(source, workload, LocalityScope::Network), others)
                }
                _ => (false, scopes),
            };
            let matched = others.iter().take_while(|scope| near(source, workload, **scope)).count();
            let rank = matched + if network { others.len() } else { 0 };
            let missed = (2 * others.len()).saturating_sub(rank);
            Some(u8::try_from(missed).unwrap_or(u8::MAX))
        }
    }
}

fn near(source: &Workload, workload: &Workload, scope: LocalityScope) -> bool {
    let (here, there) = (&source.locality, &workload.locality);
    match scope {
        LocalityScope::Region => here.region == there.region,
        LocalityScope::Zone => here.zone == there.zone,
        LocalityScope::Subzone => here.subzone == there.subzone,
        LocalityScope::Node => source.node == workload.node,
        LocalityScope::Cluster => source.cluster == workload.cluster,
        LocalityScope::Network => source.network == workload.network,
    }
}

/// The address of `workload` to dial for a connection that asked for `target`.
///
/// Rule: ztunnel's `src/state.rs`, dual stack: the very address asked for, else
/// what the service's families admit, else the family asked for, else the first.
pub fn address(workload: &Workload, service: Option<&Service>, target: IpAddr) -> Option<IpAddr> {
    let addresses = &workload.addresses;
    if addresses.contains(&target) {
        return Some(target);
    }
    let first_v4 = |v4: bool| addresses.iter().find(|ip| ip.is_ipv4() == v4).copied();
    match service.map(|service| service.ip_families) {
        Some(IpFamilies::V4) => return first_v4(true),
        Some(IpFamilies::V6) => return first_v4(false),
        Some(IpFamilies::Automatic | IpFamilies::Dual) | None => {}
    }
    first_v4(target.is_ipv4()).or_else(|| addresses.first().copied())
}

#[cfg(test)]
mod tests;
