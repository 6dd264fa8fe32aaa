// SPDX-License-Identifier: Apache-2.0

//! CORS: answers to preflights, and what browsers may read of a response.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode, header};

use super::redirect::Scheme;
use super::{Reply, ReplyReason};
use crate::edit::HeaderEdit;
use crate::matching::{Head, HostPattern};

/// Who may call from a browser, and how.
///
/// Rule: `HTTPCORSFilter` in Gateway API `apis/v1/httproute_types.go` (GEP-1767), on top of the
/// Fetch standard.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cors {
    /// Origins that may.
    pub allow_origins: Vec<OriginPattern>,
    /// Whether cookies and credentials may be sent.
    pub allow_credentials: bool,
    /// Methods that may be used.
    pub allow_methods: AllowList,
    /// Request headers that may be sent.
    pub allow_headers: AllowList,
    /// Response headers that scripts may read.
    pub expose_headers: AllowList,
    /// Seconds for which a browser may keep the answer to a preflight.
    pub max_age: Option<u32>,
}

/// Names that are allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowList {
    /// All of them: a `*` in the list.
    Any,
    /// These; may be empty.
    Only(Vec<Arc<str>>),
}

impl Default for AllowList {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// Origins that may call.
///
/// Rule: `CORSOrigin` in Gateway API `apis/v1/httproute_types.go`: a wildcard stands for any
/// number of labels, and a port that is not given is the scheme's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OriginPattern {
    /// Every origin: `*`.
    Any,
    /// Origins of one scheme and port.
    Some {
        /// Scheme of the origin.
        scheme: Scheme,
        /// Its host.
        host: HostPattern,
        /// Its port.
        port: u16,
    },
}

/// Text that is no origin.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no origin")]
pub struct InvalidOrigin(String);

/// Scheme, host without case, and port of an origin.
fn split_origin(text: &str) -> Option<(Scheme, &str, u16)> {
    let (scheme, authority) = text.split_once("://")?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let Ok(port) = port.parse() else { return None };
            Some((scheme, host, port))
        }
        _ => Some((scheme, authority, scheme.default_port())),
    }
}

impl OriginPattern {
    /// Tells whether `origin`, as a browser sends it, may call.
    #[must_use]
    pub fn matches(&self, origin: &str) -> bool {
        let Self::Some { scheme, host, port } = self else { return true };
        split_origin(origin).is_some_and(|(its_scheme, its_host, its_port)| {
            its_scheme == *scheme
                && its_port == *port
                && !its_host.is_empty()
                && host.matches(&its_host.to_ascii_lowercase())
        })
    }
}

impl FromStr for OriginPattern {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let invalid = || InvalidOrigin(text.to_owned());
        if text == "*" {
            return Ok(Self::Any);
        }
        let (scheme, host, port) = split_origin(text).ok_or_else(invalid)?;
        let host = match host {
            "*" => HostPattern::Any,
            host => host.parse().map_err(|_| invalid())?,
        };
        Ok(Self::Some { scheme, host, port })
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Some { scheme, host, port } if *port == scheme.default_port() => {
                write!(f, "{}://{host}", scheme.as_str())
            }
            Self::Some { scheme, host, port } => write!(f, "{}://{host}:{port}", scheme.as_str()),
        }
    }
}

impl Cors {
    /// Answers a preflight, or says what the response to the request itself gets.
    ///
    /// # Errors
    ///
    /// The answer to a preflight; from an origin that may not call it is a 403. A plain
    /// request of such an origin goes on, and no script gets to read its response.
    pub(super) fn on_request(
        &self,
        head: &Head<'_>,
        response: &mut Vec<HeaderEdit>,
    ) -> Result<(), Reply> {
        let Some(origin) = head.headers.get(header::ORIGIN) else { return Ok(()) };
        let allowed = self.answer_to(origin);
        let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        if let (&Method::OPTIONS, Some(method)) = (head.method, asked) {
            return Err(self.preflight(allowed, method, head));
        }
        match allowed {
            Some(allowed) => {
                let add = |(name, value)| HeaderEdit::Set(name, value);
                response.extend(self.common(allowed).into_iter().map(add));
            }
            // What a backend says of itself does not widen what is allowed here.
            None => response.extend(
                [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::ACCESS_CONTROL_ALLOW_CREDENTIALS]
                    .map(HeaderEdit::Remove),
            ),
        }
        let vary = HeaderValue::from_static("origin");
        response.push(HeaderEdit::Add(header::VARY, vary));
        Ok(())
    }

    /// Value of `access-control-allow-origin`, if the origin may call.
    fn answer_to(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        let Ok(text) = origin.to_str() else { return None };
        let pattern = self.allow_origins.iter().find(|pattern| pattern.matches(text))?;
        Some(match pattern {
            OriginPattern::Any if !self.allow_credentials => HeaderValue::from_static("*"),
            OriginPattern::Any | OriginPattern::Some { .. } => origin.clone(),
        })
    }

    fn preflight(
        &self,
        allowed: Option<HeaderValue>,
        method: &HeaderValue,
        head: &Head<'_>,
    ) -> Reply {
        let mut headers = vec![(header::VARY, HeaderValue::from_static("origin"))];
        let status = match allowed {
            None => StatusCode::FORBIDDEN,
            Some(allowed) => {
                headers.extend(self.common(allowed));
                let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
                let methods = self.allow_methods.answer(Some(method), !self.allow_credentials);
                let names = self.allow_headers.answer(asked, !self.allow_credentials);
                let age = self.max_age.map(HeaderValue::from);
                headers.extend(methods.map(|v| (header::ACCESS_CONTROL_ALLOW_METHODS, v)));
                headers.extend(names.map(|v| (header::ACCESS_CONTROL_ALLOW_HEADERS, v)));
                headers.extend(age.map(|v| (header::ACCESS_CONTROL_MAX_AGE, v)));
                StatusCode::OK
            }
        };
        Reply { status, headers, response: Vec::new(), reason: ReplyReason::Preflight }
    }

    /// What preflights and other requests alike get.
    fn common(&self, allowed: HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = vec![(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed)];
        if self.allow_credentials {
            let value = HeaderValue::from_static("true");
            headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, value));
        }
        let exposed = self.expose_headers.answer(None, !self.allow_credentials);
        headers.extend(exposed.map(|v| (header::ACCESS_CONTROL_EXPOSE_HEADERS, v)));
        headers
    }
}

impl AllowList {
    /// The list as a header value; for all names it is what was asked for, else `*` if a
    /// wildcard may be said. None if nothing is to be said.
    fn answer(&self, asked: Option<&HeaderValue>, wildcard: bool) -> Option<HeaderValue> {
        match (self, asked) {
            (Self::Only(names), _) if names.is_empty() => None,
            (Self::Only(names), _) => {
                let Ok(names) = HeaderValue::try_from(names.join(", ")) else { return None };
                Some(names)
            }
            (Self::Any, Some(asked)) => Some(asked.clone()),
            (Self::Any, None) => wildcard.then(|| HeaderValue::from_static("*")),
        }
    }
}

#[cfg(test)]
mod tests;
