// SPDX-License-Identifier: Apache-2.0

//! Values by host pattern, found from the most specific pattern to the least.

use std::sync::Arc;

use crate::discovery::Shards;
use crate::matching::HostPattern;

/// Values by host pattern; a clone shares all but what is changed in it.
#[derive(Clone, Debug)]
pub(crate) struct HostMap<V> {
    exact: Shards<Arc<str>, V>,
    /// By what follows the `*`, leading dot included.
    wildcard: Shards<Arc<str>, V>,
    any: Option<V>,
}

impl<V> Default for HostMap<V> {
    fn default() -> Self {
        Self { exact: Shards::default(), wildcard: Shards::default(), any: None }
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
            HostPattern::Wildcard(suffix) => self.wildcard.entry(suffix),
            HostPattern::Exact(host) => self.exact.entry(host),
        }
    }

    /// Takes the value of exactly this pattern out.
    pub(crate) fn remove(&mut self, pattern: &HostPattern) {
        match pattern {
            HostPattern::Any => self.any = None,
            HostPattern::Wildcard(suffix) => {
                self.wildcard.remove(suffix);
            }
            HostPattern::Exact(host) => {
                self.exact.remove(host);
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
