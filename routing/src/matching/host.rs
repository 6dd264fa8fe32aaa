// SPDX-License-Identifier: Apache-2.0

//! Host patterns: any, exact, wildcard; their order and intersection.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Hosts a listener or route is for.
///
/// Rule: `Hostname` in Gateway API `apis/v1/shared_types.go`: a wildcard stands for one or more
/// whole labels, so `*.example.com` covers `a.b.example.com` and not `example.com`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HostPattern {
    /// Every host, the empty one included.
    Any,
    /// What follows the `*`, with its leading dot, in lower case: `.example.com`.
    Wildcard(Arc<str>),
    /// One host, in lower case.
    Exact(Arc<str>),
}

/// Text that is no hostname or wildcard.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no hostname")]
pub struct InvalidHost(String);

impl HostPattern {
    /// Tells whether `host` (canonical, see [`canonical_host`]) is one of these.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Wildcard(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Exact(exact) => host == &**exact,
        }
    }

    /// The hosts that both patterns stand for, none if there are none.
    ///
    /// Of two wildcards, one of which lies under the other, the longer is the answer.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, pattern) | (pattern, Self::Any) => Some(pattern.clone()),
            (Self::Exact(host), pattern) | (pattern, Self::Exact(host)) => {
                pattern.matches(host).then(|| Self::Exact(Arc::clone(host)))
            }
            (Self::Wildcard(a), Self::Wildcard(b)) => {
                let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
                long.ends_with(&**short).then(|| Self::Wildcard(Arc::clone(long)))
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(legal);
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(InvalidHost(text.to_owned()));
        }
        Ok(match lower.strip_prefix('*') {
            Some(suffix) => Self::Wildcard(suffix.into()),
            None => Self::Exact(lower.into()),
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Wildcard(suffix) => write!(f, "*{suffix}"),
            Self::Exact(host) => f.write_str(host),
        }
    }
}

/// The host of a request as patterns want it: lower case, no port, no trailing dot.
///
/// Allocates only for hosts with upper case letters. An IPv6 literal keeps its brackets.
#[must_use]
pub fn canonical_host(host: &str) -> Cow<'_, str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !is_open(name) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// True for text inside an IPv6 literal, where a colon begins no port.
fn is_open(name: &str) -> bool {
    name.starts_with('[') && !name.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        if text == "*" { HostPattern::Any } else { text.parse().unwrap() }
    }

    #[test]
    fn wildcard_covers_labels_and_never_the_apex() {
        let cases = [
            // pattern, host, matches
            ("*", "", true),
            ("*", "example.com", true),
            ("example.com", "example.com", true),
            ("example.com", "a.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "aexample.com", false),
            ("*.com", "example.com", true),
        ];
        for (text, host, want) in cases {
            assert_eq!(pattern(text).matches(host), want, "{text} on {host}");
        }
    }

    #[test]
    fn intersection_is_the_narrower_pattern() {
        let cases = [
            ("*", "*", Some("*")),
            ("*", "a.com", Some("a.com")),
            ("*.com", "a.com", Some("a.com")),
            ("*.com", "com", None),
            ("*.com", "*.a.com", Some("*.a.com")),
            ("*.b.com", "*.a.com", None),
            ("*.a.com", "*.ba.com", None),
            ("a.com", "a.com", Some("a.com")),
            ("a.com", "b.com", None),
        ];
        for (a, b, want) in cases {
            let want = want.map(pattern);
            assert_eq!(pattern(a).intersect(&pattern(b)), want, "{a} with {b}");
            assert_eq!(pattern(b).intersect(&pattern(a)), want, "{b} with {a}");
        }
    }

    #[test]
    fn hosts_lose_port_case_and_trailing_dot() {
        let cases = [
            ("Example.COM:8080", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:80", "example.com"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("", ""),
            ("a:b", "a:b"),
        ];
        for (host, want) in cases {
            assert_eq!(canonical_host(host), want, "{host}");
        }
    }

    #[test]
    fn broken_patterns_are_refused() {
        for bad in ["", "*", "*.", "a..b", "*a.com", "a.*.com", "a com", "a:80"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?}");
        }
    }
}
