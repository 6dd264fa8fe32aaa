// SPDX-License-Identifier: Apache-2.0

//! Routes as the data plane knows them: one Kubernetes rule is one [`Rule`].
//!
//! Owns the values; matching is `matching`'s, precedence and lookup are `table`'s, the choice
//! among backends is `split`'s. A rule points up at its parents (listeners or services) and
//! holds all its answers need, so a changed rule travels alone.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use policy::retry::Retry;
pub use policy::timeout::Timeouts;

use crate::discovery::ServiceKey;
use crate::filter::Filter;
use crate::listener::ListenerName;
use crate::matching::{HostPattern, RequestMatch};

/// The kind of route a rule came from.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RouteKind {
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
    /// UDPRoute.
    Udp,
}

impl RouteKind {
    /// The kind as Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
            Self::Udp => "UDPRoute",
        }
    }

    /// True if requests, not connections, are routed.
    #[must_use]
    pub fn is_l7(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }
}

/// Which rule of which route: `Kind/namespace/name/index`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RuleName {
    /// Kind of the route.
    pub kind: RouteKind,
    /// Namespace of the route.
    pub namespace: Arc<str>,
    /// Name of the route.
    pub name: Arc<str>,
    /// Position of the rule in the route, from zero.
    pub index: u32,
}

/// Text that is no `Kind/namespace/name/index`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no name of a rule")]
pub struct InvalidRuleName(String);

impl FromStr for RuleName {
    type Err = InvalidRuleName;

    fn from_str(text: &str) -> Result<Self, InvalidRuleName> {
        let invalid = || InvalidRuleName(text.to_owned());
        let mut parts = text.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or_else(invalid);
        let kind = match next()? {
            "HTTPRoute" => RouteKind::Http,
            "GRPCRoute" => RouteKind::Grpc,
            "TLSRoute" => RouteKind::Tls,
            "TCPRoute" => RouteKind::Tcp,
            "UDPRoute" => RouteKind::Udp,
            _ => return Err(invalid()),
        };
        let (namespace, name) = (next()?.into(), next()?.into());
        let index = next()?.parse().map_err(|_| invalid())?;
        match parts.next() {
            None => Ok(Self { kind, namespace, name, index }),
            Some(_) => Err(invalid()),
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, index } = self;
        write!(f, "{}/{namespace}/{name}/{index}", kind.as_str())
    }
}

/// One rule of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Where it came from.
    pub name: RuleName,
    /// `HTTPRouteRule.name`, which users see in logs; routing does not look at it.
    pub rule_name: Option<Arc<str>>,
    /// Creation of the route, in nanoseconds since 1970; the older route wins a tie.
    pub created: u64,
    /// What the rule is attached to; empty means it serves nobody.
    pub parents: Vec<ParentRef>,
    /// Any of these lets the rule answer a request; a rule that names none has
    /// [`RequestMatch::any`]. Not read for TLS, TCP and UDP.
    pub matches: Vec<RequestMatch>,
    /// Changes to the request and its response, in order.
    pub filters: Vec<Filter>,
    /// Where requests go, by weight.
    pub backends: Vec<BackendRef>,
    /// How long a request may take.
    pub timeouts: Timeouts,
    /// When a failed attempt is repeated.
    pub retry: Retry,
}

impl Rule {
    /// Order of rules that match a request equally well: `Less` wins.
    ///
    /// Rule: `HTTPRouteRule.matches` in Gateway API `apis/v1/httproute_types.go`: the oldest
    /// route, then `namespace/name` in alphabetical order, then the first rule.
    #[must_use]
    pub fn seniority(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.name, &other.name);
        (self.created.cmp(&other.created))
            .then_with(|| a.namespace.cmp(&b.namespace))
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| a.kind.cmp(&b.kind))
            .then_with(|| a.index.cmp(&b.index))
    }
}

/// A parent of a rule, with the hosts the rule serves there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParentRef {
    /// The parent.
    pub parent: Parent,
    /// Hosts of the route as far as the parent allows them; empty means any host.
    pub hostnames: Vec<HostPattern>,
}

/// What a rule can be attached to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Parent {
    /// A listener of a gateway.
    Listener(ListenerName),
    /// A service in the mesh.
    Service {
        /// The service.
        key: ServiceKey,
        /// One of its ports; none means all.
        port: Option<u16>,
        /// Only callers of this namespace: the route is a consumer's, not the service owner's.
        consumer: Option<Arc<str>>,
    },
}

/// One backend of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    /// Where the share of requests goes.
    pub target: BackendTarget,
    /// Share of requests, relative to the sum of all weights of the rule; zero gets none.
    pub weight: u32,
    /// Filters for requests that go here, after those of the rule.
    pub filters: Vec<Filter>,
}

/// Where a backend reference leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BackendTarget {
    /// A port of a service.
    Service {
        /// The service.
        key: ServiceKey,
        /// Its service port.
        port: u16,
    },
    /// Nowhere: the reference does not resolve or is not permitted. Its share gets a 500.
    Invalid {
        /// Why, for logs and `explain`.
        reason: Arc<str>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_names_read_back_as_written() {
        for text in ["HTTPRoute/ns/name/0", "UDPRoute/a/b.c/15", "GRPCRoute/n/x/4294967295"] {
            assert_eq!(text.parse::<RuleName>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "HTTPRoute/ns/name",
            "Route/ns/name/0",
            "HTTPRoute//n/0",
            "TLSRoute/a/b/x",
            "TCPRoute/a/b/0/1",
        ] {
            assert!(bad.parse::<RuleName>().is_err(), "{bad:?}");
        }
    }
}
