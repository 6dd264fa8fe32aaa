// SPDX-License-Identifier: Apache-2.0

//! The plain answer: every rule is tried, the best one wins.
//!
//! Slow, short and close to the words of the specification; the judge of the index in tests
//! and fuzzing, and of use where a handful of rules is asked once.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Found, or_any};
use crate::matching::{Head, HostPattern, MatchRank, RequestMatch, canonical_host};
use crate::route::Rule;

/// What [`super::RouteTable::find`] says of the same rules.
#[must_use]
pub fn find<'a>(
    rules: impl IntoIterator<Item = (&'a Arc<Rule>, &'a [HostPattern])>,
    head: &Head<'_>,
) -> Option<Found<'a>> {
    let host = canonical_host(head.host);
    let mut best: Option<Scored<'a>> = None;
    for (rule, hosts) in rules {
        let Some(host) = or_any(hosts).filter(|pattern| pattern.matches(&host)).max_by(longer)
        else {
            continue;
        };
        for matched in rule.matches.iter().filter(|entry| entry.matches(head)) {
            let scored = Scored { host: host.clone(), rank: matched.rank(), rule, matched };
            if best.as_ref().is_none_or(|best| scored.beats(best)) {
                best = Some(scored);
            }
        }
    }
    best.map(|best| Found { rule: best.rule, matched: best.matched })
}

struct Scored<'a> {
    host: HostPattern,
    rank: MatchRank,
    rule: &'a Arc<Rule>,
    matched: &'a RequestMatch,
}

impl Scored<'_> {
    fn beats(&self, other: &Self) -> bool {
        longer(&&self.host, &&other.host)
            .then_with(|| self.rank.cmp(&other.rank))
            .then_with(|| other.rule.seniority(self.rule))
            .is_gt()
    }
}

/// Order of two patterns that the same host falls under.
///
/// Rule: `HTTPRouteSpec.hostnames`: characters of a host without wildcard, then characters.
fn longer(a: &&HostPattern, b: &&HostPattern) -> Ordering {
    let weight = |pattern: &HostPattern| match pattern {
        HostPattern::Any => (0, 0),
        HostPattern::Wildcard(suffix) => (1, suffix.len()),
        HostPattern::Exact(host) => (2, host.len()),
    };
    weight(a).cmp(&weight(b))
}
