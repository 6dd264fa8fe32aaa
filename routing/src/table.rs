// SPDX-License-Identifier: Apache-2.0

//! From a request to the rule that answers it, without trying all rules.
//!
//! A [`RouteTable`] holds the HTTP and gRPC rules of one parent: a listener, or a service in
//! the mesh. It is an index: host, then path (`matchit`), then the few candidates of that path
//! in the order of their rank. [`scan`] gives the same answers by trying everything and is the
//! judge in tests. [`ParentTable`] adds the TLS, TCP and UDP rules of the parent; choosing the
//! parent of a request is `gateway_state`'s.
//!
//! Tables change by value: a clone shares everything, and a rule put in or taken out of it
//! copies what lies on its way (its host's entry and the candidates of its paths).

mod hosts;
mod paths;
mod prefixes;
pub mod scan;

use std::sync::Arc;

pub(crate) use hosts::HostMap;
use paths::PathTable;

use crate::matching::{Head, HostPattern, RequestMatch, canonical_host};
use crate::route::{RouteKind, Rule};

/// The rule that answers a request, and the one of its matches that won.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The rule.
    pub rule: &'a Arc<Rule>,
    /// The best of its matches that the request falls under.
    pub matched: &'a RequestMatch,
}

/// HTTP and gRPC rules of one parent.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    hosts: HostMap<Arc<PathTable>>,
}

impl RouteTable {
    /// A table of `rules`, each with the hosts it serves; no host means any.
    #[must_use]
    pub fn build<'a>(rules: impl IntoIterator<Item = (&'a Arc<Rule>, &'a [HostPattern])>) -> Self {
        let mut table = Self::default();
        for (rule, hosts) in rules {
            table.insert(rule, hosts);
        }
        table
    }

    /// Puts a rule in; it must not be there yet.
    pub fn insert(&mut self, rule: &Arc<Rule>, hosts: &[HostPattern]) {
        if rule.matches.is_empty() {
            return;
        }
        for host in or_any(hosts) {
            Arc::make_mut(self.hosts.entry(host)).insert(rule);
        }
    }

    /// Takes a rule out that was put in with these hosts: this very one, not one of its name, so
    /// that a new version can be put in before the old one leaves and no place is unmade.
    pub fn remove(&mut self, rule: &Rule, hosts: &[HostPattern]) {
        for host in or_any(hosts) {
            let paths = Arc::make_mut(self.hosts.entry(host));
            paths.remove(rule);
            if paths.is_empty() {
                self.hosts.remove(host);
            }
        }
    }

    /// The rule that answers `head`, or none.
    ///
    /// No allocation unless the host has upper case letters, a header was sent twice or a
    /// query parameter is encoded, and a rule looks at it.
    ///
    /// Rule: `HTTPRouteSpec.hostnames` and `HTTPRouteRule.matches` in Gateway API
    /// `apis/v1/httproute_types.go`: the most specific host that has a matching rule, then
    /// [`crate::matching::MatchRank`], then [`Rule::seniority`].
    #[must_use]
    pub fn find(&self, head: &Head<'_>) -> Option<Found<'_>> {
        let host = canonical_host(head.host);
        self.hosts.covering(&host).find_map(|paths| paths.find(head))
    }

    /// True if no rule is in the table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// All rules of one parent.
#[derive(Clone, Debug, Default)]
pub struct ParentTable {
    /// HTTPRoute and GRPCRoute.
    pub http: RouteTable,
    tls: HostMap<Seniors>,
    tcp: Seniors,
    udp: Seniors,
}

/// Rules that say the same about a connection, the senior one first.
type Seniors = Arc<Vec<Arc<Rule>>>;

impl ParentTable {
    /// Puts a rule in; it must not be there yet.
    pub fn insert(&mut self, rule: &Arc<Rule>, hosts: &[HostPattern]) {
        match rule.name.kind {
            RouteKind::Http | RouteKind::Grpc => self.http.insert(rule, hosts),
            RouteKind::Tls => {
                or_any(hosts).for_each(|host| put(self.tls.entry(host), rule));
            }
            RouteKind::Tcp => put(&mut self.tcp, rule),
            RouteKind::Udp => put(&mut self.udp, rule),
        }
    }

    /// Takes a rule out that was put in with these hosts: this very one, not one of its name, so
    /// that a new version can be put in before the old one leaves and no place is unmade.
    pub fn remove(&mut self, rule: &Rule, hosts: &[HostPattern]) {
        match rule.name.kind {
            RouteKind::Http | RouteKind::Grpc => self.http.remove(rule, hosts),
            RouteKind::Tls => {
                for host in or_any(hosts) {
                    let seniors = self.tls.entry(host);
                    take(seniors, rule);
                    if seniors.is_empty() {
                        self.tls.remove(host);
                    }
                }
            }
            RouteKind::Tcp => take(&mut self.tcp, rule),
            RouteKind::Udp => take(&mut self.udp, rule),
        }
    }

    /// The TLS rule for a connection with this SNI; none names no host.
    ///
    /// Rule: `TLSRouteSpec.hostnames` in Gateway API: the most specific host, then the senior.
    #[must_use]
    pub fn tls(&self, sni: Option<&str>) -> Option<&Arc<Rule>> {
        let host = canonical_host(sni.unwrap_or(""));
        self.tls.covering(&host).find_map(|rules| rules.first())
    }

    /// The rule for a TLS connection with this SNI: a TLS rule, else the TCP rule.
    #[must_use]
    pub fn over_tls(&self, sni: Option<&str>) -> Option<&Arc<Rule>> {
        self.tls(sni).or_else(|| self.tcp())
    }

    /// The TCP rule: of several routes only the oldest serves.
    #[must_use]
    pub fn tcp(&self) -> Option<&Arc<Rule>> {
        self.tcp.first()
    }

    /// The UDP rule: of several routes only the oldest serves.
    #[must_use]
    pub fn udp(&self) -> Option<&Arc<Rule>> {
        self.udp.first()
    }

    /// True if no rule is in the table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let l4 = self.tls.is_empty() && self.tcp.is_empty() && self.udp.is_empty();
        l4 && self.http.is_empty()
    }
}

fn put(seniors: &mut Seniors, rule: &Arc<Rule>) {
    let place = seniors.partition_point(|other| other.seniority(rule).is_le());
    Arc::make_mut(seniors).insert(place, Arc::clone(rule));
}

fn take(seniors: &mut Seniors, rule: &Rule) {
    Arc::make_mut(seniors).retain(|other| !std::ptr::eq(&**other, rule));
}

/// The hosts a rule is filed under.
fn or_any(hosts: &[HostPattern]) -> impl Iterator<Item = &HostPattern> {
    const ANY: &[HostPattern] = &[HostPattern::Any];
    if hosts.is_empty() { ANY.iter() } else { hosts.iter() }
}

#[cfg(test)]
mod tests;
