// SPDX-License-Identifier: Apache-2.0

//! Checks of request heads, beyond those of Pingora's session and of h2: what two parsers could
//! read in two ways is refused, what remains is brought to one form.
//!
//! Afterwards every head has: an origin-form (or `*`) target without dot segments, exactly one
//! `Host`, and at most one `Content-Length`.
//!
//! Rule: RFC 9112 §3.2, §6; RFC 9113 §8.2, §8.3; table in the design notes on smuggling.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};
use pingora_core::protocols::http::authority::{
    RawTargetAuthority, raw_target_authority, validate_request_authority,
};
use pingora_http::RequestHeader;
use routing::matching::normalise;

use super::{CONNECTION, has_token};
use crate::http::{BadRequest, Body};

/// What the checks found out about a request.
#[derive(Debug, Default)]
pub(in crate::http) struct Facts {
    pub(in crate::http) body: Body,
    pub(in crate::http) chunked: bool,
    pub(in crate::http) expects_continue: bool,
    pub(in crate::http) upgrade: Option<HeaderValue>,
}

/// Checks an HTTP/1 head that the session accepted; `raw` are its bytes.
pub(in crate::http) fn http1(
    head: &mut RequestHeader,
    raw: &[u8],
    headers: usize,
) -> Result<Facts, BadRequest> {
    is_served(head, headers)?;
    let chunked = transfer_coding(&head.headers)?;
    if chunked && has_field(raw, b"content-length") {
        return Err(BadRequest::Malformed("both Content-Length and Transfer-Encoding"));
    }
    let length = content_length(head)?;
    absolute_form(head)?;
    if !head.headers.contains_key(HOST) {
        if head.version == Version::HTTP_11 {
            return Err(BadRequest::Malformed("no Host"));
        }
        set(head, HOST, HeaderValue::from_static(""))?;
    }
    target(head)?;
    let body = match length {
        _ if chunked => Body::Unknown,
        None | Some(0) => Body::None,
        Some(length) => Body::Length(length),
    };
    let modern = head.version == Version::HTTP_11;
    let expects = head.headers.get(EXPECT).is_some_and(|value| has_token(value, "100-continue"));
    let upgrade = upgrade(head).filter(|_| modern && body == Body::None);
    Ok(Facts { body, chunked, expects_continue: modern && expects && body != Body::None, upgrade })
}

/// Checks an HTTP/2 head that h2 accepted; brings it to the form of [`http1`].
pub(in crate::http) fn http2(
    head: &mut RequestHeader,
    ended: bool,
    headers: usize,
) -> Result<Facts, BadRequest> {
    is_served(head, headers)?;
    if head.headers.contains_key(TRANSFER_ENCODING) {
        return Err(BadRequest::Malformed("Transfer-Encoding in HTTP/2"));
    }
    validate_request_authority(head).map_err(|_| BadRequest::Malformed("authority"))?;
    let length = content_length(head)?;
    let authority = head.uri.authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    match authority {
        Some(Ok(authority)) => set(head, HOST, authority)?,
        None if head.headers.contains_key(HOST) => {}
        Some(Err(_)) | None => return Err(BadRequest::Malformed("no authority")),
    }
    let target_only = head.uri.path_and_query().cloned();
    head.set_uri(target_only.ok_or(BadRequest::Malformed("no path"))?.into());
    target(head)?;
    let body = match length {
        _ if ended => Body::None,
        None | Some(0) => Body::Unknown,
        Some(length) => Body::Length(length),
    };
    if ended && length.is_some_and(|length| length > 0) {
        return Err(BadRequest::Malformed("Content-Length without a body"));
    }
    let expects = head.headers.get(EXPECT).is_some_and(|value| has_token(value, "100-continue"));
    Ok(Facts { body, chunked: false, expects_continue: expects && !ended, upgrade: None })
}

/// Refuses too many fields, and what a reverse proxy does not do.
fn is_served(head: &RequestHeader, headers: usize) -> Result<(), BadRequest> {
    if head.headers.len() > headers {
        return Err(BadRequest::TooLarge);
    }
    if head.method == Method::CONNECT {
        return Err(BadRequest::Connect);
    }
    Ok(())
}

/// True for exactly one `chunked`, false for none.
fn transfer_coding(headers: &HeaderMap) -> Result<bool, BadRequest> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(first) = codings.next() else { return Ok(false) };
    if codings.next().is_some() {
        return Err(BadRequest::Malformed("two Transfer-Encoding lines"));
    }
    let coding = first.as_bytes().trim_ascii();
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(true);
    }
    let repeated =
        coding.to_ascii_lowercase().windows(7).filter(|word| word == b"chunked").count() > 1;
    Err(if repeated { BadRequest::Malformed("chunked twice") } else { BadRequest::Coding })
}

/// The one length that all `Content-Length` fields agree on; rewrites them to one.
fn content_length(head: &mut RequestHeader) -> Result<Option<u64>, BadRequest> {
    const BAD: BadRequest = BadRequest::Malformed("Content-Length");
    let mut agreed = None;
    let mut count = 0;
    for value in head.headers.get_all(CONTENT_LENGTH) {
        for part in value.to_str().map_err(|_| BAD)?.split(',') {
            let digits = part.trim_matches([' ', '\t']);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(BAD);
            }
            let length: u64 = digits.parse().map_err(|_| BAD)?;
            if agreed.is_some_and(|other| other != length) {
                return Err(BAD);
            }
            agreed = Some(length);
            count += 1;
        }
    }
    if let (Some(length), true) = (agreed, count > 1) {
        set(head, CONTENT_LENGTH, length.into())?;
    }
    Ok(agreed)
}

/// Brings `GET http://host/path` to `GET /path`; the authority is `Host`.
fn absolute_form(head: &mut RequestHeader) -> Result<(), BadRequest> {
    const BAD: BadRequest = BadRequest::Malformed("request target");
    if !head.raw_path_is_utf8() {
        return Err(BAD);
    }
    let authority = match head.raw_path() {
        [b'/', ..] | b"*" => return Ok(()),
        raw => match raw_target_authority(raw) {
            RawTargetAuthority::Absolute { scheme, authority, .. }
                if scheme.eq_ignore_ascii_case(b"http")
                    || scheme.eq_ignore_ascii_case(b"https") =>
            {
                HeaderValue::from_bytes(authority).map_err(|_| BAD)?
            }
            RawTargetAuthority::Absolute { .. }
            | RawTargetAuthority::AmbiguousAuthority
            | RawTargetAuthority::None => return Err(BAD),
        },
    };
    if !head.headers.contains_key(HOST) {
        set(head, HOST, authority)?;
    }
    Ok(())
}

/// Leaves in the URI the one form of the target that is routed on and forwarded.
fn target(head: &mut RequestHeader) -> Result<(), BadRequest> {
    const BAD: BadRequest = BadRequest::Malformed("request target");
    let Some(target) = head.uri.path_and_query().filter(|_| head.uri.authority().is_none()) else {
        return if head.uri == "/" { Ok(()) } else { Err(BAD) };
    };
    let asterisk = target.as_str() == "*";
    if asterisk && head.method != Method::OPTIONS || !(asterisk || target.path().starts_with('/')) {
        return Err(BAD);
    }
    let target = match normalise(target.path()).ok_or(BAD)? {
        Cow::Borrowed(_) if head.raw_path() == target.as_str().as_bytes() => return Ok(()),
        Cow::Borrowed(_) => target.clone(),
        Cow::Owned(path) => {
            let query = target.query().map(|query| format!("?{query}")).unwrap_or_default();
            PathAndQuery::try_from(path + &query).map_err(|_| BAD)?
        }
    };
    head.set_uri(target.into());
    Ok(())
}

/// The token of an `Upgrade` that `Connection` names.
fn upgrade(head: &RequestHeader) -> Option<HeaderValue> {
    let named = head.headers.get_all(CONNECTION).iter().any(|value| has_token(value, "upgrade"));
    let token = head.headers.get(UPGRADE).filter(|_| named)?;
    token.to_str().is_ok_and(|token| !token.contains(',')).then(|| token.clone())
}

/// Looks for a field in the raw head; for fields that a session has taken out.
fn has_field(raw: &[u8], name: &[u8]) -> bool {
    raw.split(|byte| *byte == b'\n').any(|line| {
        line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            && line.get(name.len()) == Some(&b':')
    })
}

fn set(
    head: &mut RequestHeader,
    name: http::HeaderName,
    value: HeaderValue,
) -> Result<(), BadRequest> {
    head.insert_header(name, value).map_err(|_| BadRequest::TooLarge)
}
