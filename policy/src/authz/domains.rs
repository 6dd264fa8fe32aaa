// SPDX-License-Identifier: Apache-2.0

//! Principals where several trust domains are one.
//!
//! A mesh that changes its trust domain keeps the old one as an alias, so that policies written
//! before go on meaning the same workloads.

use std::sync::Arc;

use super::StringMatch;

impl StringMatch {
    /// The patterns over principals that this one stands for, where all of `domains`, the mesh's
    /// own and its aliases, are one. The pattern itself is among them.
    ///
    /// Only a trust domain that is written out is replaced: `*/ns/a/sa/b` is left as it is.
    ///
    /// # Rule
    ///
    /// Istio's `meshConfig.trustDomainAliases`.
    #[must_use]
    pub fn across(self, domains: &[Arc<str>]) -> Vec<Self> {
        let (text, make): (&str, fn(Arc<str>) -> Self) = match &self {
            Self::Exact(text) => (text, Self::Exact),
            Self::Prefix(text) => (text, Self::Prefix),
            Self::Suffix(_) | Self::Presence => return vec![self],
        };
        let Some((domain, rest)) = text.split_once('/') else { return vec![self] };
        if !domains.iter().any(|one| **one == *domain) {
            return vec![self];
        }
        let others = domains.iter().filter(|one| ***one != *domain);
        let others: Vec<Self> =
            others.map(|other| make(format!("{other}/{rest}").into())).collect();
        [self].into_iter().chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_means_the_workload_in_every_domain_of_the_mesh() {
        let domains: [Arc<str>; 2] = ["new".into(), "old".into()];
        let cases: [(&str, &[&str]); 8] = [
            // pattern, what it stands for
            ("new/ns/a/sa/b", &["new/ns/a/sa/b", "old/ns/a/sa/b"]),
            ("old/ns/a/sa/b", &["old/ns/a/sa/b", "new/ns/a/sa/b"]),
            ("old/ns/a/*", &["old/ns/a/*", "new/ns/a/*"]),
            ("other/ns/a/sa/b", &["other/ns/a/sa/b"]),
            ("older/ns/a/*", &["older/ns/a/*"]),
            ("ol*", &["ol*"]),
            ("*/ns/a/sa/b", &["*/ns/a/sa/b"]),
            ("*", &["*"]),
        ];
        for (pattern, want) in cases {
            let got = StringMatch::parse(pattern).unwrap().across(&domains);
            let want: Vec<_> = want.iter().map(|text| StringMatch::parse(text).unwrap()).collect();
            assert_eq!(got, want, "{pattern}");
        }
    }

    #[test]
    fn a_mesh_without_aliases_takes_policies_as_they_are() {
        let domains: [Arc<str>; 1] = ["cluster.local".into()];
        let pattern = StringMatch::parse("cluster.local/ns/a/sa/b").unwrap();
        assert_eq!(pattern.clone().across(&domains), [pattern]);
    }
}
