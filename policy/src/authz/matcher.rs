// SPDX-License-Identifier: Apache-2.0

//! Matchers of single values: text, service account, path.
//!
//! Owns how a pattern is read and compared. Comparing allocates nothing.

use std::sync::Arc;

/// Pattern over a text.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum StringMatch {
    /// The very text.
    Exact(Arc<str>),
    /// Begins with the text (`text*`).
    Prefix(Arc<str>),
    /// Ends with the text (`*text`).
    Suffix(Arc<str>),
    /// Is there and not empty (`*`).
    Presence,
}

/// A service account of a namespace, whatever its trust domain.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct AccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// Pattern over a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathMatch {
    /// Exact, prefix, suffix or presence.
    Text(StringMatch),
    /// Istio's path template, such as `/products/{*}/reviews/{**}`.
    Template(PathTemplate),
}

/// A path template: `{*}` is one segment, `{**}` any number of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PathTemplate {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Segment {
    Literal(Arc<str>),
    One,
    Rest,
}

/// A pattern out of grammar.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no legal pattern: {1}")]
pub struct InvalidPattern(pub String, pub &'static str);
