// SPDX-License-Identifier: Apache-2.0

//! The longest of many literal prefixes above a path.
//!
//! A radix tree (`matchit`) answers, and a change of it copies it whole. So there are two: most
//! prefixes lie in one that changes seldom, the latest in a small one that moves over when it
//! has grown. What is taken out stays in its tree until that is mostly dead: the caller looks
//! each answer up and goes on to the next shorter one anyway.

use std::sync::Arc;

/// Prefixes that may be there beside a tree of none.
const FEW: usize = 16;

/// A set of prefixes, each without trailing slash; a clone shares all but what is changed in it.
#[derive(Clone, Default)]
pub(super) struct Prefixes {
    settled: Option<Arc<Tree>>,
    recent: Option<Arc<Tree>>,
    /// Of those in the trees, how many were taken out.
    dead: usize,
}

impl Prefixes {
    /// Puts a prefix in that is not there; it must not be empty.
    pub(super) fn insert(&mut self, prefix: &Arc<str>) {
        if self.trees().any(|tree| tree.holds(prefix)) {
            self.dead -= 1;
            return;
        }
        let settled = self.settled.as_ref().map_or(0, |tree| tree.all.len());
        let recent = Arc::make_mut(self.recent.get_or_insert_default());
        recent.insert(prefix);
        // The square root: then copies of the one and of the other cost about the same.
        if recent.all.len() > settled.isqrt().max(FEW) {
            let moved = self.recent.take();
            let settled = Arc::make_mut(self.settled.get_or_insert_default());
            moved.iter().flat_map(|tree| &tree.all).for_each(|prefix| settled.insert(prefix));
        }
    }

    /// Takes a prefix out that is there; `lives` tells those that are there then.
    pub(super) fn remove(&mut self, lives: impl Fn(&str) -> bool) {
        self.dead += 1;
        let all = self.trees().map(|tree| tree.all.len()).sum::<usize>();
        if self.dead > FEW && self.dead * 2 > all || self.dead == all {
            let mut settled = Tree::default();
            let living = self.trees().flat_map(|tree| &tree.all).filter(|prefix| lives(prefix));
            living.for_each(|prefix| settled.insert(prefix));
            let settled = (!settled.all.is_empty()).then(|| Arc::new(settled));
            *self = Self { settled, recent: None, dead: 0 };
        }
    }

    /// The longest prefix that `path` lies below; it may be one that was taken out.
    pub(super) fn above(&self, path: &str) -> Option<&Arc<str>> {
        self.trees().filter_map(|tree| tree.above(path)).max_by_key(|prefix| prefix.len())
    }

    fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.settled.iter().chain(&self.recent).map(|tree| &**tree)
    }
}

#[derive(Clone, Default)]
struct Tree {
    /// All paths below a prefix, to the prefix.
    below: matchit::Router<Arc<str>>,
    all: Vec<Arc<str>>,
}

impl Tree {
    fn insert(&mut self, prefix: &Arc<str>) {
        let own = prefix.replace('{', "{{").replace('}', "}}");
        // Literal paths with one catch-all below each never conflict.
        let inserted = self.below.insert(format!("{own}/{{*below}}"), Arc::clone(prefix));
        debug_assert!(inserted.is_ok(), "prefixes do not conflict");
        self.all.push(Arc::clone(prefix));
    }

    fn above(&self, path: &str) -> Option<&Arc<str>> {
        match self.below.at(path) {
            Ok(found) => Some(found.value),
            Err(matchit::MatchError::NotFound) => None,
        }
    }

    fn holds(&self, prefix: &str) -> bool {
        self.above(&format!("{prefix}/below")).is_some_and(|found| **found == *prefix)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The longest of `there` above `path`, by looking at all.
    fn longest<'a>(there: &'a BTreeSet<Arc<str>>, path: &str) -> Option<&'a Arc<str>> {
        let covers = |prefix: &&Arc<str>| {
            path.strip_prefix(&***prefix)
                .is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
        };
        there.iter().filter(covers).max_by_key(|prefix| prefix.len())
    }

    /// As callers ask: what was taken out is passed over.
    fn ask<'a>(
        prefixes: &'a Prefixes,
        there: &BTreeSet<Arc<str>>,
        path: &str,
    ) -> Option<&'a Arc<str>> {
        let mut found = prefixes.above(path)?;
        while !there.contains(found) {
            let parent = found.rfind('/').and_then(|slash| found.get(..slash))?;
            let below = format!("{parent}/x");
            found = prefixes.above(&below)?;
        }
        Some(found)
    }

    #[test]
    fn an_older_copy_stays_and_what_is_dead_goes_in_the_end() {
        let all: Vec<Arc<str>> = (0..500).map(|n| format!("/a/{n}").into()).collect();
        let mut prefixes = Prefixes::default();
        all.iter().for_each(|prefix| prefixes.insert(prefix));
        let recent = |prefixes: &Prefixes| prefixes.recent.as_ref().map_or(0, |one| one.all.len());
        assert!(recent(&prefixes) <= 22, "{} copied with each change", recent(&prefixes));
        let old = prefixes.clone();
        let mut there: BTreeSet<Arc<str>> = all.iter().cloned().collect();
        for prefix in &all {
            there.remove(prefix);
            prefixes.remove(|prefix| there.contains(prefix));
            assert!(prefixes.dead <= FEW.max(there.len()), "{} dead", prefixes.dead);
        }
        assert!(prefixes.settled.is_none() && prefixes.recent.is_none());
        assert_eq!(old.above("/a/7/x").map(|found| &**found), Some("/a/7"));
    }

    proptest! {
        #[test]
        fn the_longest_is_found_whatever_came_and_went(
            changes in prop::collection::vec("(/[ab{}]{1,2}){1,4}", 1..120),
            paths in prop::collection::vec("(/[ab{}]{1,2}){1,6}", 1..20),
        ) {
            let (mut prefixes, mut there) = (Prefixes::default(), BTreeSet::new());
            for prefix in changes {
                let prefix: Arc<str> = prefix.into();
                if there.remove(&prefix) {
                    prefixes.remove(|prefix| there.contains(prefix));
                } else {
                    prefixes.insert(&prefix);
                    there.insert(prefix);
                }
                for path in &paths {
                    prop_assert_eq!(ask(&prefixes, &there, path), longest(&there, path), "{}", path);
                }
            }
        }
    }
}
