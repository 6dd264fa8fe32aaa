// SPDX-License-Identifier: Apache-2.0

//! Values by host pattern, found from the most specific pattern to the least.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::matching::HostPattern;

/// Hashing without a seed. Keys come from the controller alone, so no client can make them
/// collide.
pub(super) type Fixed = BuildHasherDefault<DefaultHasher>;

/// Values by host pattern; clones share the maps.
#[derive(Clone, Debug)]
pub(crate) struct HostMap<V> {
    exact: Arc<HashMap<Arc<str>, V, Fixed>>,
    /// By what follows the `*`, leading dot included.
    wildcard: Arc<HashMap<Arc<str>, V, Fixed>>,
    any: Option<V>,
}

impl<V> Default for HostMap<V> {
    fn default() -> Self {
        Self { exact: Arc::default(), wildcard: Arc::default(), any: None }
    }
}

impl<V: Clone> HostMap<V> {
    /// The value of exactly this pattern, made if need be.
    pub(crate) fn entry(&mut self, pattern: &HostPattern) -> &mut V
    where
        V: Default,
    {
        match pattern {
            HostPattern::Any => self.any.get_or_insert_default(),
            HostPattern::Wildcard(suffix) => {
                Arc::make_mut(&mut self.wildcard).entry(Arc::clone(suffix)).or_default()
            }
            HostPattern::Exact(host) => {
                Arc::make_mut(&mut self.exact).entry(Arc::clone(host)).or_default()
            }
        }
    }

    /// Takes the value of exactly this pattern out.
    pub(crate) fn remove(&mut self, pattern: &HostPattern) {
        match pattern {
            HostPattern::Any => self.any = None,
            HostPattern::Wildcard(suffix) => {
                Arc::make_mut(&mut self.wildcard).remove(suffix);
            }
            HostPattern::Exact(host) => {
                Arc::make_mut(&mut self.exact).remove(host);
            }
        }
    }

    /// The values of all patterns that `host` (canonical) falls under, most specific first.
    pub(crate) fn covering<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a V> {
        let wildcards = if self.wildcard.is_empty() { "" } else { host };
        // From the second byte on: a wildcard stands for at least one character.
        let dots = wildcards.char_indices().skip(1).filter(|&(_, c)| c == '.');
        let suffixes = dots.filter_map(move |(at, _)| wildcards.get(at..));
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        exact
            .into_iter()
            .chain(suffixes.filter_map(|suffix| self.wildcard.get(suffix)))
            .chain(self.any.as_ref())
    }

    /// All values, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.exact.values().chain(self.wildcard.values()).chain(self.any.as_ref())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_comes_first() {
        let mut hosts = HostMap::default();
        for text in ["*.example.com", "*.foo.example.com", "abc.foo.example.com"] {
            *hosts.entry(&text.parse().unwrap()) = text;
        }
        *hosts.entry(&HostPattern::Any) = "*";
        let cases: [(&str, &[&str]); 6] = [
            (
                "abc.foo.example.com",
                &["abc.foo.example.com", "*.foo.example.com", "*.example.com", "*"],
            ),
            ("x.foo.example.com", &["*.foo.example.com", "*.example.com", "*"]),
            ("foo.example.com", &["*.example.com", "*"]),
            ("example.com", &["*"]),
            (".example.com", &["*"]),
            ("", &["*"]),
        ];
        for (host, want) in cases {
            assert_eq!(hosts.covering(host).copied().collect::<Vec<_>>(), want, "{host}");
        }
    }
}
