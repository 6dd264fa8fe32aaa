// SPDX-License-Identifier: Apache-2.0

//! Candidates by path, for one host.
//!
//! Exact paths lie in a map, prefixes in another with a radix tree that finds the longest; the
//! prefix of all paths has a place of its own, and what is neither (expressions, gRPC methods
//! without a service) lies in one ranked list. A request
//! may fail the method or headers of the longest prefix and still belong to a shorter one: then
//! the parent of that prefix is asked for, and so on up to the root. So no candidate lies in
//! more than one place, and a change touches that place only.

use std::cmp::Ordering;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Found;
use super::prefixes::Prefixes;
use crate::discovery::Shards;
use crate::matching::{GrpcMatch, Head, MatchRank, PathMatch, RequestMatch, TextMatch};
use crate::route::Rule;

/// Candidates of one path, the best first; most paths have one.
type Ranked = Arc<SmallVec<[Candidate; 1]>>;

/// One match of a rule.
#[derive(Clone, Debug)]
struct Candidate {
    rule: Arc<Rule>,
    index: usize,
}

/// Candidates by path, for one host.
#[derive(Clone, Default)]
pub(super) struct PathTable {
    exact: Shards<Arc<str>, Ranked>,
    /// By prefix, without trailing slash.
    prefixes: Shards<Arc<str>, Ranked>,
    /// Finds the longest of those.
    tree: Prefixes,
    /// Of the prefix of all paths: the only match that most hosts have.
    root: Option<Ranked>,
    /// All other matches.
    others: Option<Ranked>,
}

impl std::fmt::Debug for PathTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PathTable")
            .field("exact", &self.exact)
            .field("prefixes", &self.prefixes)
            .field("root", &self.root)
            .field("others", &self.others)
            .finish_non_exhaustive()
    }
}

/// Where the candidate of a match lies.
enum Place<'a> {
    Exact(Arc<str>),
    Prefix(&'a str),
    GrpcService(Arc<str>),
    Other,
}

fn place(path: &PathMatch) -> Place<'_> {
    match path {
        PathMatch::Exact(exact) => Place::Exact(Arc::clone(exact)),
        PathMatch::Prefix(prefix) if prefix.is_empty() || prefix.starts_with('/') => {
            Place::Prefix(prefix.trim_end_matches('/'))
        }
        PathMatch::Grpc(GrpcMatch { service: None, method: None }) => Place::Prefix(""),
        PathMatch::Grpc(GrpcMatch { service: Some(TextMatch::Exact(service)), method })
            if !service.is_empty() && !service.contains('/') =>
        {
            match method {
                Some(TextMatch::Exact(name)) => Place::Exact(format!("/{service}/{name}").into()),
                // A regular expression ranks before prefixes, so it may not lie among them.
                Some(TextMatch::Regex(_)) => Place::Other,
                None => Place::GrpcService(format!("/{service}").into()),
            }
        }
        PathMatch::Prefix(_) | PathMatch::Regex(_) | PathMatch::Grpc(_) => Place::Other,
    }
}

impl PathTable {
    pub(super) fn insert(&mut self, rule: &Arc<Rule>) {
        for (index, entry) in rule.matches.iter().enumerate() {
            let candidate = Candidate { rule: Arc::clone(rule), index };
            self.change(&entry.path, |ranked| {
                let place = ranked.partition_point(|other| other.order(&candidate).is_le());
                Arc::make_mut(ranked).insert(place, candidate);
            });
        }
    }

    pub(super) fn remove(&mut self, rule: &Rule) {
        for entry in &rule.matches {
            self.change(&entry.path, |ranked| {
                Arc::make_mut(ranked).retain(|candidate| !std::ptr::eq(&*candidate.rule, rule));
            });
        }
    }

    /// Changes the candidates of a path, making or unmaking its place.
    fn change(&mut self, path: &PathMatch, change: impl FnOnce(&mut Ranked)) {
        match place(path) {
            Place::Exact(path) => change_in(&mut self.exact, path, change),
            Place::Prefix("") => change_one(&mut self.root, change),
            Place::Prefix(prefix) => self.change_prefix(prefix.into(), change),
            Place::GrpcService(prefix) => self.change_prefix(prefix, change),
            Place::Other => change_one(&mut self.others, change),
        }
    }

    fn change_prefix(&mut self, prefix: Arc<str>, change: impl FnOnce(&mut Ranked)) {
        let was = self.prefixes.get(&prefix).is_some();
        change_in(&mut self.prefixes, Arc::clone(&prefix), change);
        let is = self.prefixes.get(&prefix).is_some();
        if is && !was {
            self.tree.insert(&prefix);
        } else if was && !is {
            self.tree.remove(|prefix| self.prefixes.get(prefix).is_some());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let maps = self.exact.is_empty() && self.prefixes.is_empty();
        maps && self.root.is_none() && self.others.is_none()
    }

    /// The best candidate for `head`: exact path, then expressions, then prefixes from long to
    /// short, then what says nothing of a prefix.
    pub(super) fn find(&self, head: &Head<'_>) -> Option<Found<'_>> {
        let exact = self.exact.get(head.path).and_then(|ranked| first(ranked, head));
        if let Some(exact) = exact {
            return exact.found();
        }
        let mut others = self.others.iter().flat_map(|ranked| ranked.iter());
        let other = others.find(|c| c.entry().is_some_and(|entry| entry.matches(head)));
        match other {
            Some(other) if other.rank().is_some_and(|rank| rank.outranks_prefixes()) => {
                other.found()
            }
            _ => self.find_prefix(head, other)?.found(),
        }
    }

    fn find_prefix<'a>(
        &'a self,
        head: &Head<'_>,
        other: Option<&'a Candidate>,
    ) -> Option<&'a Candidate> {
        // Trailing slashes make no difference to a prefix.
        let mut path = head.path.trim_end_matches('/');
        let ranked = |prefix: &str| self.prefixes.get(prefix).and_then(|all| first(all, head));
        while path.starts_with('/') {
            if let Some(found) = ranked(path) {
                return Some(found);
            }
            let Some(prefix) = self.tree.above(path) else { break };
            if let Some(found) = ranked(prefix) {
                return Some(found);
            }
            let parent = prefix.rfind('/').and_then(|slash| path.get(..slash));
            path = parent.unwrap_or("").trim_end_matches('/');
        }
        let root = self.root.as_ref().and_then(|ranked| first(ranked, head));
        match (root, other) {
            (Some(root), Some(other)) => Some(if root.order(other).is_lt() { root } else { other }),
            (root, other) => root.or(other),
        }
    }
}

/// The first candidate that matches.
///
/// Its place has settled the path, except that a gRPC service is more than a prefix: the path
/// must go on behind it.
fn first<'a>(ranked: &'a Ranked, head: &Head<'_>) -> Option<&'a Candidate> {
    let matches = |entry: &RequestMatch| match entry.path {
        PathMatch::Grpc(_) => entry.matches(head),
        PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::Regex(_) => {
            entry.matches_beyond_path(head)
        }
    };
    ranked.iter().find(|c| c.entry().is_some_and(matches))
}

/// Changes candidates that are in no map; none are left as nothing.
fn change_one(at: &mut Option<Ranked>, change: impl FnOnce(&mut Ranked)) {
    let ranked = at.get_or_insert_default();
    change(ranked);
    if ranked.is_empty() {
        *at = None;
    }
}

fn change_in(map: &mut Shards<Arc<str>, Ranked>, key: Arc<str>, change: impl FnOnce(&mut Ranked)) {
    let ranked = map.entry(&key);
    change(ranked);
    if ranked.is_empty() {
        map.remove(&key);
    }
}

impl Candidate {
    fn entry(&self) -> Option<&RequestMatch> {
        self.rule.matches.get(self.index)
    }

    /// Nothing is less specific than an entry that is not there.
    fn rank(&self) -> Option<MatchRank> {
        self.entry().map(RequestMatch::rank)
    }

    fn found(&self) -> Option<Found<'_>> {
        self.entry().map(|matched| Found { rule: &self.rule, matched })
    }

    /// `Less` is tried first.
    fn order(&self, other: &Self) -> Ordering {
        (other.rank().cmp(&self.rank()))
            .then_with(|| self.rule.seniority(&other.rule))
            .then_with(|| self.index.cmp(&other.index))
    }
}
