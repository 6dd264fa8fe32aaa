// SPDX-License-Identifier: Apache-2.0

//! Where tokens are in a request, and the request without them.
//!
//! Rule: `fromHeaders`, `fromParams` and `fromCookies` of Istio's `JWTRule`; of a header every
//! value counts, and the prefix is compared without case, as schemes are (RFC 9110 §11.1).

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE};
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::JwtRule;

/// Where a token may be.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Place {
    /// In a header, behind a prefix.
    Header {
        /// Name of the header.
        name: HeaderName,
        /// What stands before the token; what begins otherwise is no token.
        prefix: Arc<str>,
    },
    /// The value of a parameter of the query.
    Parameter(Arc<str>),
    /// The value of a cookie.
    Cookie(Arc<str>),
}

impl Place {
    /// Where tokens are unless a rule says otherwise.
    ///
    /// # Rule
    ///
    /// Istio's `JWTRule`: `Authorization: Bearer`, and the parameter `access_token`.
    pub fn defaults() -> Vec<Self> {
        vec![
            Self::Header { name: AUTHORIZATION, prefix: "Bearer ".into() },
            Self::Parameter("access_token".into()),
        ]
    }

    /// Tells `found` of every token that is there.
    fn each<'a>(&self, head: &'a Parts, found: &mut dyn FnMut(Cow<'a, str>)) {
        match self {
            Self::Header { name, prefix } => {
                let values = head.headers.get_all(name).iter();
                values.filter_map(|value| after(value, prefix)).for_each(found);
            }
            Self::Parameter(name) => {
                let query = head.uri.query().unwrap_or_default();
                let pairs = form_urlencoded::parse(query.as_bytes());
                let named = pairs.filter(|(key, _)| **key == **name);
                named.map(|(_, value)| value).for_each(found);
            }
            Self::Cookie(name) => {
                let values = head.headers.get_all(COOKIE).iter();
                let cookies = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
                cookies.filter_map(|cookie| cookie_value(cookie, name)).for_each(found);
            }
        }
    }

    /// Tells whether `token` is there.
    pub fn holds(&self, head: &Parts, token: &str) -> bool {
        let mut holds = false;
        self.each(head, &mut |found| holds |= found == token);
        holds
    }
}

/// What follows `prefix`; a value that is no text is no token, but must not pass for none.
fn after<'a>(value: &'a HeaderValue, prefix: &str) -> Option<Cow<'a, str>> {
    let bytes = value.as_bytes();
    let head = bytes.get(..prefix.len())?;
    let rest = bytes.get(prefix.len()..)?;
    let token = || String::from_utf8_lossy(rest.trim_ascii());
    head.eq_ignore_ascii_case(prefix.as_bytes()).then(token)
}

fn cookie_value<'a>(cookie: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let cookie = cookie.trim_ascii();
    let rest = cookie.strip_prefix(name.as_bytes())?;
    Some(String::from_utf8_lossy(rest.strip_prefix(b"=")?))
}

/// Every token of the request, each with the rules that read it, in their order.
///
/// Nothing is allocated for a request without a token.
pub(super) fn tokens<'a>(rules: &[&JwtRule], head: &'a Parts) -> Vec<(Cow<'a, str>, Vec<usize>)> {
    let mut found: Vec<(Cow<'a, str>, Vec<usize>)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        for place in &rule.places {
            place.each(
                head,
                &mut |token| match found.iter_mut().find(|(known, _)| *known == token) {
                    Some((_, readers)) if readers.last() == Some(&index) => {}
                    Some((_, readers)) => readers.push(index),
                    None => found.push((token, vec![index])),
                },
            );
        }
    }
    found
}

/// The value of a `Cookie` header without the cookie `name`; none if nothing is left.
pub fn without_cookie(value: &HeaderValue, name: &str) -> Option<HeaderValue> {
    let cookies = value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let kept: Vec<&[u8]> = cookies
        .filter(|cookie| !cookie.is_empty() && cookie_value(cookie, name).is_none())
        .collect();
    if kept.is_empty() {
        return None;
    }
    // Parts of a legal value are legal; if not, no cookie goes on.
    let nothing = HeaderValue::from_static("");
    Some(HeaderValue::from_bytes(&kept.join(&b"; "[..])).unwrap_or(nothing))
}

/// A query without the parameter `name`; the others stay as they were written.
pub fn without_parameter(query: &str, name: &str) -> String {
    let is = |pair: &&str| form_urlencoded::parse(pair.as_bytes()).any(|(key, _)| *key == *name);
    let kept: Vec<&str> = query.split('&').filter(|pair| !is(pair)).collect();
    kept.join("&")
}
