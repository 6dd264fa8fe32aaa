// SPDX-License-Identifier: Apache-2.0

//! Which requests a rule answers, and how specific it is about them.
//!
//! [`RequestMatch`] is one entry of a rule's matches; [`RequestMatch::matches`] judges a
//! request, [`MatchRank`] orders the entries that do. Hosts are judged before all of this, by
//! [`HostPattern`]. Finding candidates without trying all of them is `table`'s.

mod head;
mod header;
mod host;
mod normal;
mod path;
mod pattern;
mod query;

pub use head::Head;
pub use header::HeaderMatch;
pub use host::{HostPattern, InvalidHost, canonical_host};
pub use normal::normalise;
pub use path::{GrpcMatch, PathMatch, PathRank, covers};
pub use pattern::{InvalidPattern, Pattern, TextMatch};
pub use query::QueryMatch;

/// One way to fall under a rule: all parts must hold.
///
/// Rule: `HTTPRouteMatch` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestMatch {
    /// The path, or the gRPC service and method in it.
    pub path: PathMatch,
    /// The method; none is any.
    pub method: Option<http::Method>,
    /// Headers that must be there.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters that must be there.
    pub query: Vec<QueryMatch>,
}

impl RequestMatch {
    /// The match of a rule that names none: every request.
    #[must_use]
    pub fn any() -> Self {
        Self { path: PathMatch::any(), method: None, headers: Vec::new(), query: Vec::new() }
    }

    /// Tells whether `head` falls under this match.
    #[must_use]
    pub fn matches(&self, head: &Head<'_>) -> bool {
        self.path.matches(head.path) && self.matches_beyond_path(head)
    }

    /// The part of [`Self::matches`] that is left once the path is known to match.
    pub(crate) fn matches_beyond_path(&self, head: &Head<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == head.method)
            && self.headers.iter().all(|header| header.matches(head.headers))
            && self.query.iter().all(|query| query.matches(head.query))
    }

    /// How specific this match is.
    #[must_use]
    pub fn rank(&self) -> MatchRank {
        MatchRank {
            path: self.path.rank(),
            method: self.method.is_some(),
            headers: u32::try_from(self.headers.len()).unwrap_or(u32::MAX),
            query: u32::try_from(self.query.len()).unwrap_or(u32::MAX),
        }
    }
}

/// How specific a matching rule is; the greatest wins.
///
/// The order of the fields is the order of the rule in `HTTPRouteRule.matches` (Gateway API
/// `apis/v1/httproute_types.go`): path, then method, then header count, then query count.
/// `GRPCRouteRule.matches` asks for service, method, header count, which [`PathRank`] carries.
/// Ties go to the senior rule ([`crate::route::Rule::seniority`]).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct MatchRank {
    path: PathRank,
    method: bool,
    headers: u32,
    query: u32,
}

impl MatchRank {
    /// True if this goes before the longest prefix: exact paths and expressions.
    pub(crate) fn outranks_prefixes(&self) -> bool {
        self.path.outranks_prefixes()
    }
}

#[cfg(test)]
mod tests;
