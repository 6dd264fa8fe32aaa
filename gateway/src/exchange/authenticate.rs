// SPDX-License-Identifier: Apache-2.0

//! From the tokens of a request to what they prove, before anything else looks at the request.
//!
//! What a token is, and when it is good, is [`policy::jwt`]'s. Here the head is changed: headers
//! that only a rule may set are taken from the client, claims are told, the token goes. So routes,
//! policies, log and backend see the same request.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, COOKIE, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::uri::PathAndQuery;
use http::{HeaderName, Method};
use policy::authz::Denied;
use policy::jwt::{
    InvalidToken, JwtRule, Place, Proven, Token, judge, without_cookie, without_parameter,
};

use super::Asked;
use crate::http::{Downstream, Error, ResponseHead};
use crate::jwt::Ready;
use crate::reply::Refusal;

/// Finds out what the tokens of the request prove, and keeps it with `asked`.
///
/// # Errors
///
/// [`Refusal::Token`] for a bad one, [`Refusal::Denied`] where a RequestAuthentication cannot be
/// read, and [`Refusal::Internal`] when the head has no room for what backends are told.
pub(super) fn authenticate(asked: &Asked<'_>, down: &mut Downstream) -> Result<(), Refusal> {
    let all = asked.loaded.authenticators();
    if all.is_empty() {
        return Ok(());
    }
    let found = all.of(asked.loaded.targets().chain(&asked.arrival.targets));
    if let Some(one) = found.iter().find(|one| one.source.unreadable.is_some()) {
        let reason = one.source.unreadable.clone().unwrap_or_default();
        let policy = one.source.name.clone();
        return Err(Refusal::Denied(Denied::Unsupported { policy, reason }));
    }
    let mut rules: Vec<Ready<'_>> = found.iter().flat_map(|one| one.rules()).collect();
    if rules.is_empty() {
        return Ok(());
    }
    // Of several good tokens one counts: that of the first issuer by name, as Istio has it.
    rules.sort_by(|one, other| one.rule.issuer.cmp(&other.rule.issuer));
    for name in rules.iter().flat_map(|ready| ready.rule.own_headers()) {
        down.remove_header(name);
    }
    if is_preflight(down.head()) {
        return Ok(());
    }
    let only: Vec<&JwtRule> = rules.iter().map(|ready| ready.rule).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let signed = |index: usize, token: &Token<'_>| {
        rules.get(index).map_or(Err(InvalidToken::NoKeys), |ready| ready.signed(token))
    };
    match judge(&only, down.head(), now, signed) {
        Ok(None) => Ok(()),
        Ok(Some(proven)) => {
            tell(&only, &proven, down)
                .map_err(|_| Refusal::Internal("request head has no room"))?;
            // It is asked once for a request.
            drop(asked.claims.set(proven.claims));
            Ok(())
        }
        Err(refused) => Err(match rules.get(refused.rule) {
            Some(by) => Refusal::Token { policy: by.of.name.clone(), why: refused.why },
            None => Refusal::Internal("a token was refused by no rule"),
        }),
    }
}

/// A question of a browser that cannot carry a token. Rule: Istio's `bypassCorsPreflight`.
fn is_preflight(head: &http::request::Parts) -> bool {
    head.method == Method::OPTIONS
        && head.headers.contains_key(ORIGIN)
        && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Takes good tokens away unless they go on, and puts in what backends are told.
fn tell(rules: &[&JwtRule], proven: &Proven, down: &mut Downstream) -> Result<(), Error> {
    for (index, token) in &proven.taken {
        let Some(rule) = rules.get(*index).filter(|rule| !rule.forward) else { continue };
        for place in &rule.places {
            if place.holds(down.head(), token) {
                take_away(place, down)?;
            }
        }
    }
    let Some(rule) = rules.get(proven.rule) else { return Ok(()) };
    if let Some(name) = &rule.payload_header {
        set(down, name, &proven.payload)?;
    }
    for told in &rule.claim_headers {
        if let Some(value) = proven.claims.header_value(&told.claim) {
            set(down, &told.header, &value)?;
        }
    }
    Ok(())
}

/// Sets a header; a claim that is no legal value is not told.
fn set(down: &mut Downstream, name: &HeaderName, value: &str) -> Result<(), Error> {
    match HeaderValue::from_str(value) {
        Ok(value) => down.insert_header(name.clone(), value),
        Err(_) => Ok(()),
    }
}

fn take_away(place: &Place, down: &mut Downstream) -> Result<(), Error> {
    match place {
        Place::Header { name, .. } => down.remove_header(name),
        Place::Parameter(name) => {
            let uri = &down.head().uri;
            let kept = without_parameter(uri.query().unwrap_or_default(), name);
            let mark = if kept.is_empty() { "" } else { "?" };
            let target = format!("{}{mark}{kept}", uri.path());
            let target = PathAndQuery::try_from(target).map_err(|_| Error::Head("target"))?;
            down.set_target(target);
        }
        Place::Cookie(name) => {
            let all = down.head().headers.get_all(COOKIE).iter();
            let kept: Vec<_> = all.filter_map(|value| without_cookie(value, name)).collect();
            down.remove_header(&COOKIE);
            for value in kept {
                down.append_header(COOKIE, value)?;
            }
        }
    }
    Ok(())
}

/// Tells a client whose token was refused why.
///
/// # Rule
///
/// RFC 6750 §3, in the words of Envoy's `jwt_authn`; the query is left out, it may hold a token.
pub(super) fn challenge(head: &http::request::Parts, secure: bool, answer: &mut ResponseHead) {
    let host = routing::matching::Head::of(head).host;
    let scheme = if secure { "https" } else { "http" };
    let mut text = String::with_capacity(80);
    let quoted = |text: &str| text.replace(['"', '\\'], "");
    // Writing to a string does not fail.
    let _ok = write!(
        text,
        "Bearer realm=\"{scheme}://{}{}\", error=\"invalid_token\"",
        quoted(host),
        quoted(head.uri.path())
    );
    let value = HeaderValue::try_from(text)
        .unwrap_or_else(|_| HeaderValue::from_static("Bearer error=\"invalid_token\""));
    // A head with three fields always has room for one more.
    drop(answer.insert(WWW_AUTHENTICATE, value));
}
