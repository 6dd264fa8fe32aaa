// SPDX-License-Identifier: Apache-2.0

//! Redirects: from a request to a `location`.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderValue, LOCATION};

use super::rewrite::{PathModifier, with_query};
use super::{Context, Reply, ReplyReason};
use crate::matching::canonical_host;

/// An answer that sends the client elsewhere; what is not given stays as it was.
///
/// Rule: `HTTPRequestRedirectFilter` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<Scheme>,
    /// New host, without port.
    pub host: Option<Arc<str>>,
    /// New path; the query stays.
    pub path: Option<PathModifier>,
    /// New port. Without: that of a new scheme, else the listener's.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// In TLS.
    Https,
}

impl Scheme {
    /// The scheme as it stands in a URI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port a URI of this scheme means if it names none.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Redirect {
    /// The answer to a request.
    pub(super) fn reply(&self, context: &Context<'_>) -> Reply {
        let location = self.location(context).map(HeaderValue::try_from);
        match location {
            Some(Ok(location)) => Reply {
                status: self.status,
                headers: vec![(LOCATION, location)],
                response: Vec::new(),
                reason: ReplyReason::Redirect,
            },
            Some(Err(_)) | None => Reply::error(ReplyReason::Unusable),
        }
    }

    /// Where the client is sent; a request without a host gets a path only.
    fn location(&self, context: &Context<'_>) -> Option<String> {
        let head = &context.head;
        let scheme = self.scheme.unwrap_or(context.scheme);
        let port = match (self.port, self.scheme) {
            (Some(port), _) => port,
            (None, Some(scheme)) => scheme.default_port(),
            (None, None) => context.listener_port,
        };
        let path = match &self.path {
            Some(modifier) => modifier.apply(head.path, context.matched)?,
            None if head.path.starts_with('/') => head.path.into(),
            None => "/".into(),
        };
        let path = with_query(path, head.query);
        let host = match &self.host {
            Some(host) => (&**host).into(),
            None => canonical_host(head.host),
        };
        Some(if host.is_empty() {
            path.into_owned()
        } else if port == scheme.default_port() {
            format!("{}://{host}{path}", scheme.as_str())
        } else {
            format!("{}://{host}:{port}{path}", scheme.as_str())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::{Head, PathMatch};

    fn plain() -> Redirect {
        let status = StatusCode::FOUND;
        Redirect { scheme: None, host: None, path: None, port: None, status }
    }

    fn location(redirect: &Redirect, scheme: Scheme, listener_port: u16, host: &str) -> String {
        let headers = http::HeaderMap::new();
        let method = http::Method::GET;
        let head =
            Head { method: &method, host, path: "/old/page", query: "q=1", headers: &headers };
        let matched = PathMatch::Prefix("/old".into());
        let reply = redirect.reply(&Context { head, scheme, listener_port, matched: &matched });
        assert_eq!(reply.status, redirect.status);
        reply.headers[0].1.to_str().unwrap().to_owned()
    }

    #[test]
    fn port_is_the_given_one_or_the_schemes_or_the_listeners() {
        use Scheme::{Http, Https};
        let cases = [
            // request scheme, listener port, new scheme, new port, wanted
            (Http, 80, None, None, "http://example.org/old/page?q=1"),
            (Http, 80, None, Some(80), "http://example.org/old/page?q=1"),
            (Http, 80, None, Some(8080), "http://example.org:8080/old/page?q=1"),
            (Http, 80, Some(Https), None, "https://example.org/old/page?q=1"),
            (Http, 80, Some(Https), Some(443), "https://example.org/old/page?q=1"),
            (Http, 80, Some(Https), Some(8443), "https://example.org:8443/old/page?q=1"),
            (Http, 8080, None, None, "http://example.org:8080/old/page?q=1"),
            (Http, 8080, Some(Http), None, "http://example.org/old/page?q=1"),
            (Http, 8080, Some(Https), None, "https://example.org/old/page?q=1"),
            (Https, 443, None, None, "https://example.org/old/page?q=1"),
            (Https, 443, Some(Http), None, "http://example.org/old/page?q=1"),
            (Https, 443, None, Some(80), "https://example.org:80/old/page?q=1"),
        ];
        for (scheme, listener, new_scheme, new_port, want) in cases {
            let redirect = Redirect {
                scheme: new_scheme,
                port: new_port,
                host: Some("example.org".into()),
                ..plain()
            };
            let got = location(&redirect, scheme, listener, "old.example:99");
            assert_eq!(got, want, "{scheme:?} {listener} {new_scheme:?} {new_port:?}");
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let full = Redirect { path: Some(PathModifier::Full("/new".into())), ..plain() };
        assert_eq!(location(&full, Scheme::Http, 80, "a.example:80"), "http://a.example/new?q=1");
        let prefix = Redirect { path: Some(PathModifier::Prefix("/new".into())), ..plain() };
        let got = location(&prefix, Scheme::Http, 8080, "[::1]:8080");
        assert_eq!(got, "http://[::1]:8080/new/page?q=1");
        assert_eq!(location(&plain(), Scheme::Http, 80, ""), "/old/page?q=1");
    }
}
