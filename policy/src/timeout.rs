// SPDX-License-Identifier: Apache-2.0

//! Limits of one request: the whole, and each attempt at a backend.
//!
//! Zero in the API means "no limit"; here that is `None`, so no code can take
//! a zero for an instant timeout. Rule: GEP-1742 and `HTTPRouteTimeouts` in
//! Gateway API `apis/v1/httproute_types.go`.

use std::time::Duration;

/// Limits of a rule's requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timeouts {
    /// From the request's head until the last byte of the response; none: no limit.
    pub request: Option<Duration>,
    /// Of one attempt at a backend; none: no limit but the request's.
    pub backend_request: Option<Duration>,
}
