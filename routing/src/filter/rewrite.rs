// SPDX-License-Identifier: Apache-2.0

//! Rewrites of host and path.

use std::borrow::Cow;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};

use super::{Context, Reply, ReplyReason};
use crate::edit::Edits;
use crate::matching::PathMatch;

/// A new host or path for the backend.
///
/// Rule: `HTTPURLRewriteFilter` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rewrite {
    /// New host.
    pub host: Option<Arc<str>>,
    /// New path; the query stays.
    pub path: Option<PathModifier>,
}

/// How a path changes.
///
/// Rule: `HTTPPathModifier` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathModifier {
    /// The whole path becomes this.
    Full(Arc<str>),
    /// The prefix that matched becomes this.
    Prefix(Arc<str>),
}

impl Rewrite {
    /// Puts the new host and path into `edits`.
    ///
    /// # Errors
    ///
    /// A 500 if the outcome is no host or path.
    pub(super) fn edit(&self, context: &Context<'_>, edits: &mut Edits) -> Result<(), Reply> {
        let unusable = || Reply::error(ReplyReason::Unusable);
        if let Some(host) = &self.host {
            edits.authority = Some(host.parse::<Authority>().map_err(|_| unusable())?);
        }
        if let Some(modifier) = &self.path {
            let path = modifier.apply(context.head.path, context.matched).ok_or_else(unusable)?;
            let with_query = with_query(path, context.head.query);
            let target = PathAndQuery::try_from(with_query.as_ref()).map_err(|_| unusable())?;
            edits.path_and_query = Some(target);
        }
        Ok(())
    }
}

impl PathModifier {
    /// The new path, or none if a prefix is to be replaced and none matched.
    ///
    /// Rule: the table at `HTTPPathModifier.replacePrefixMatch`; trailing slashes of both
    /// prefixes do not count, and the outcome always begins with a slash.
    pub(super) fn apply<'a>(&'a self, path: &str, matched: &PathMatch) -> Option<Cow<'a, str>> {
        match self {
            Self::Full(full) if full.starts_with('/') => Some(Cow::Borrowed(full)),
            Self::Full(full) => Some(Cow::Owned(format!("/{full}"))),
            Self::Prefix(replacement) => {
                let PathMatch::Prefix(prefix) = matched else { return None };
                let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
                let start = replacement.trim_end_matches('/');
                let slash = if start.is_empty() || start.starts_with('/') { "" } else { "/" };
                let whole = format!("{slash}{start}{rest}");
                Some(Cow::Owned(if whole.is_empty() { "/".to_owned() } else { whole }))
            }
        }
    }
}

/// Puts the query of a request behind a path.
pub(super) fn with_query<'a>(path: Cow<'a, str>, query: &str) -> Cow<'a, str> {
    if query.is_empty() { path } else { Cow::Owned(format!("{path}?{query}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_prefix_follows_the_table_of_the_specification() {
        let cases = [
            // path, prefix, replacement, outcome
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ];
        for (path, prefix, replacement, want) in cases {
            let modifier = PathModifier::Prefix(replacement.into());
            let got = modifier.apply(path, &PathMatch::Prefix(prefix.into()));
            assert_eq!(got.as_deref(), Some(want), "{path}: {prefix} by {replacement:?}");
        }
    }

    #[test]
    fn a_prefix_is_only_replaced_where_a_prefix_matched() {
        let modifier = PathModifier::Prefix("/x".into());
        assert_eq!(modifier.apply("/a", &PathMatch::Exact("/a".into())), None);
    }
}
