// SPDX-License-Identifier: Apache-2.0

//! The parts of a request that routing looks at, borrowed.

use http::{HeaderMap, Method};

/// What routing sees of a request.
///
/// `path` is as the backend would get it: put it through [`super::normalise`] first, so that
/// routing, policy and backend speak of the same path.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Host of the request, with or without port, in any case.
    pub host: &'a str,
    /// Path, from its first `/`, without query; `*` or empty for requests that have none.
    pub path: &'a str,
    /// Query without `?`; empty if there is none.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    /// Takes a head apart; the URI's authority goes before the `host` header.
    ///
    /// A request with neither has the empty host, which only listeners and routes without
    /// hostnames serve.
    #[must_use]
    pub fn of(parts: &'a http::request::Parts) -> Self {
        let from_header = || {
            let Ok(text) = parts.headers.get(http::header::HOST)?.to_str() else { return None };
            Some(text)
        };
        let host = parts.uri.authority().map(http::uri::Authority::as_str).or_else(from_header);
        Self {
            method: &parts.method,
            host: host.unwrap_or(""),
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or(""),
            headers: &parts.headers,
        }
    }
}
