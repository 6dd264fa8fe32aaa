// SPDX-License-Identifier: Apache-2.0

//! Conditions on the path: exact, prefix by segment, regular expression, gRPC method.

use std::sync::Arc;

use super::{Pattern, TextMatch};

/// What the path of a request must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathMatch {
    /// This path, byte for byte.
    Exact(Arc<str>),
    /// This path or one below it, by whole segments; see [`covers`].
    Prefix(Arc<str>),
    /// A path the expression matches as a whole.
    Regex(Pattern),
    /// A gRPC method, `/service/method`.
    Grpc(GrpcMatch),
}

/// A gRPC service, method, or both; with neither every path matches.
///
/// Rule: `GRPCMethodMatch` in Gateway API `apis/v1/grpcroute_types.go`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GrpcMatch {
    /// Full name of the service, with its package.
    pub service: Option<TextMatch>,
    /// Name of the method.
    pub method: Option<TextMatch>,
}

impl PathMatch {
    /// The match that a rule has which names no path.
    #[must_use]
    pub fn any() -> Self {
        Self::Prefix("/".into())
    }

    /// Tells whether `path` is what is asked for.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => covers(prefix, path),
            Self::Regex(pattern) => pattern.matches(path),
            Self::Grpc(grpc) => grpc.matches(path),
        }
    }

    pub(super) fn rank(&self) -> PathRank {
        let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
        match self {
            Self::Exact(exact) => PathRank::new(PathKind::Exact, length(exact)),
            Self::Prefix(prefix) => {
                PathRank::new(PathKind::Prefix, length(prefix.trim_end_matches('/')))
            }
            Self::Regex(pattern) => PathRank::new(PathKind::Regex, length(pattern.source())),
            Self::Grpc(grpc) => grpc.rank(),
        }
    }
}

impl GrpcMatch {
    fn matches(&self, path: &str) -> bool {
        if self.service.is_none() && self.method.is_none() {
            return true;
        }
        let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
            return false;
        };
        self.service.as_ref().is_none_or(|text| text.matches(service))
            && self.method.as_ref().is_none_or(|text| text.matches(method))
    }

    /// Rule: `GRPCRouteRule.matches` in Gateway API `apis/v1/grpcroute_types.go`: characters of
    /// the service, then characters of the method; where an expression stands among them is
    /// left open there, and follows paths here: below exact names, above none.
    fn rank(&self) -> PathRank {
        let length = |part: &Option<TextMatch>| {
            part.as_ref().map_or(0, |text| u32::try_from(text.len()).unwrap_or(u32::MAX))
        };
        let regex = |part: &Option<TextMatch>| matches!(part, Some(TextMatch::Regex(_)));
        let kind = match (&self.service, &self.method) {
            (service, method) if regex(service) || regex(method) => PathKind::Regex,
            (Some(_), Some(_)) => PathKind::Exact,
            _ => PathKind::Prefix,
        };
        PathRank { kind, length: length(&self.service), method: length(&self.method) }
    }
}

/// How specific a path is; the greatest wins.
///
/// Rule: `HTTPRouteRule.matches`: an exact path, then the longest prefix. Expressions have no
/// place in that order; here they stand between the two, the longer first, so that a catch-all
/// prefix in another route does not hide them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PathRank {
    kind: PathKind,
    length: u32,
    method: u32,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum PathKind {
    Prefix,
    Regex,
    Exact,
}

impl PathRank {
    fn new(kind: PathKind, length: u32) -> Self {
        Self { kind, length, method: 0 }
    }

    pub(super) fn outranks_prefixes(&self) -> bool {
        self.kind > PathKind::Prefix
    }
}

/// Tells whether `path` lies under `prefix`, counting whole segments only.
///
/// Rule: `PathMatchPathPrefix` in Gateway API `apis/v1/httproute_types.go`. The prefix `/`
/// covers everything, a path of `*` included.
#[must_use]
pub fn covers(prefix: &str, path: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    match path.strip_prefix(prefix) {
        Some(_) if prefix.is_empty() => true,
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_covers_whole_segments_only() {
        let cases = [
            // prefix, path, covered
            ("/", "/anything", true),
            ("/", "*", true),
            ("/abc", "/abc/", true),
            ("/abc", "/abc/def", true),
            ("/abc/", "/abc", true),
            ("/abc", "/abcd", false),
            ("/abc", "/ABC", false),
            ("/abc", "*", false),
        ];
        for (prefix, path, want) in cases {
            assert_eq!(covers(prefix, path), want, "{prefix} over {path}");
        }
    }

    #[test]
    fn grpc_methods_match_by_service_and_method() {
        let exact = |text: &str| Some(TextMatch::Exact(text.into()));
        let regex = |text: &str| Some(TextMatch::Regex(Pattern::new(text).unwrap()));
        let cases = [
            // service, method, path, matches
            (exact("a.Echo"), exact("Say"), "/a.Echo/Say", true),
            (exact("a.Echo"), exact("Say"), "/a.Echo/Sing", false),
            (exact("a.Echo"), None, "/a.Echo/Sing", true),
            (exact("a.Echo"), None, "/a.Echo", false),
            (None, exact("Say"), "/b.Echo/Say", true),
            (None, None, "/anything", true),
            (regex("a\\..*"), None, "/a.Echo/Say", true),
            (regex("a\\..*"), exact("Sing"), "/a.Echo/Say", false),
        ];
        for (service, method, path, want) in cases {
            let grpc = GrpcMatch { service, method };
            assert_eq!(PathMatch::Grpc(grpc.clone()).matches(path), want, "{grpc:?} on {path}");
        }
    }
}
