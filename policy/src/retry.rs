// SPDX-License-Identifier: Apache-2.0

//! Which failures are worth another attempt, and how many there may be.
//!
//! Owns the rule; counting and waiting is the gateway's. Rule: GEP-1731 and
//! `HTTPRouteRetry` in Gateway API `apis/v1/httproute_types.go`.

use std::time::Duration;

/// How far a failed attempt got, seen from the backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No connection was made, or the stream was refused before any byte of it
    /// was looked at: nothing can have happened.
    Unsent,
    /// The connection broke, or was reset, before a response head.
    Broken,
    /// The backend gave no head within the limit of one attempt.
    TimedOut,
    /// The backend answered with this status.
    Status(u16),
}

/// How often a rule's requests are tried again, and after what.
///
/// The default is what every rule has without a word about retries: two more
/// attempts where nothing can have happened, none otherwise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Attempts after the first; zero means none.
    pub attempts: u32,
    /// Statuses that are tried again, each 400 to 599.
    pub codes: Vec<u16>,
    /// Shortest wait before an attempt after the first; zero means at once.
    pub backoff: Duration,
    /// Whether the rule asked for retries, so that a broken connection counts.
    pub asked: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, codes: Vec::new(), backoff: Duration::ZERO, asked: false }
    }
}
