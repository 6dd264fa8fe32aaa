// SPDX-License-Identifier: Apache-2.0

//! Heads as the rest of the gateway edits them, and what a proxy must do to each.
//!
//! A head is one of Pingora's behind a newtype: it derefs to the parts of `http`, and changes
//! go through the setters, which keep the spelling of names for HTTP/1 and the target in step.
//! Checks of heads from clients are in `check`.
//!
//! Rule: RFC 9110 §7.6.1 (what belongs to one hop only), RFC 9113 §8.2.2.

pub(super) mod check;

use std::ops::Deref;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use pingora_http::{RequestHeader, ResponseHeader};

use super::{Body, Error};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields that end at this hop whether or not `Connection` names them.
const HOP: [HeaderName; 7] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Fields that mean nothing, or harm, after a body.
///
/// Rule: RFC 9110 §6.5.1.
const NO_TRAILER: [HeaderName; 9] = [
    CONTENT_LENGTH,
    HOST,
    TE,
    TRAILER,
    EXPECT,
    http::header::AUTHORIZATION,
    http::header::COOKIE,
    http::header::SET_COOKIE,
    http::header::CONTENT_ENCODING,
];

/// Head of a request for a backend.
///
/// Made by [`super::Downstream::request_head`] or [`RequestHead::new`]; hop-by-hop fields are
/// out, the framing of the body is set when it is sent.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub(super) head: Box<RequestHeader>,
    pub(super) scheme: Scheme,
    pub(super) upgrade: Option<HeaderValue>,
}

impl RequestHead {
    /// A head with only the target and `Host`.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] if `authority` is no legal field value.
    pub fn new(method: Method, target: PathAndQuery, authority: &str) -> Result<Self, Error> {
        let mut head = RequestHeader::from(http::Request::new(()).into_parts().0);
        head.set_method(method);
        head.set_uri(target.into());
        let mut head = Self { head: Box::new(head), scheme: Scheme::HTTP, upgrade: None };
        head.set_authority(authority)?;
        Ok(head)
    }

    /// Changes the method.
    pub fn set_method(&mut self, method: Method) {
        self.head.set_method(method);
    }

    /// Changes path and query.
    pub fn set_target(&mut self, target: PathAndQuery) {
        self.head.set_uri(target.into());
    }

    /// Changes `Host`, which is `:authority` in HTTP/2.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] if it is no legal field value.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), Error> {
        let value = HeaderValue::from_str(authority).map_err(|_| Error::Head("authority"))?;
        self.insert(HOST, value)
    }

    /// Sets `:scheme` for HTTP/2; `http` unless told.
    pub fn set_scheme(&mut self, scheme: Scheme) {
        self.scheme = scheme;
    }

    /// Sets a field, replacing all of its name.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when there are too many fields.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
        self.head.insert_header(name, value).map_err(|_| Error::Head("too many fields"))
    }

    /// Adds a field.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when there are too many fields.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
        match self.head.append_header(name, value) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Head("too many fields")),
        }
    }

    /// Removes all fields of that name; `Host` stays.
    pub fn remove(&mut self, name: &HeaderName) {
        if name != HOST {
            self.head.remove_header(name);
        }
    }

    /// Takes an `Upgrade` request back: the backend sees a plain request.
    pub fn without_upgrade(&mut self) {
        self.upgrade = None;
    }

    /// As an HTTP/1.1 head with the framing of `body`.
    pub(super) fn into_h1(mut self, body: Body) -> Result<Box<RequestHeader>, Error> {
        self.head.set_version(Version::HTTP_11);
        if let Some(token) = self.upgrade.take() {
            self.insert(CONNECTION, HeaderValue::from_static("upgrade"))?;
            self.insert(UPGRADE, token)?;
        }
        match body {
            Body::None if expects_length(&self.head.method) => {
                self.insert(CONTENT_LENGTH, HeaderValue::from_static("0"))?;
            }
            Body::None => {
                self.head.remove_header(&CONTENT_LENGTH);
            }
            Body::Length(length) => self.insert(CONTENT_LENGTH, length.into())?,
            Body::Unknown => {
                self.head.remove_header(&CONTENT_LENGTH);
                self.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
            }
        }
        // Trailers of the response are read whether asked for or not, so TE says nothing more.
        self.head.remove_header(&TE);
        Ok(self.head)
    }

    /// As an HTTP/2 head: scheme and authority in the URI, no `Host`.
    pub(super) fn into_h2(mut self, body: Body) -> Result<Box<RequestHeader>, Error> {
        let host = self.head.remove_header(&HOST).ok_or(Error::Head("no authority"))?;
        let authority =
            Authority::try_from(host.as_bytes()).map_err(|_| Error::Head("authority"))?;
        let target = self.head.uri.path_and_query().cloned();
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(authority);
        parts.path_and_query = Some(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        self.head.set_uri(Uri::from_parts(parts).map_err(|_| Error::Head("target"))?);
        self.head.set_version(Version::HTTP_2);
        match body {
            Body::Length(length) => self.insert(CONTENT_LENGTH, length.into())?,
            Body::None | Body::Unknown => {
                self.head.remove_header(&CONTENT_LENGTH);
            }
        }
        Ok(self.head)
    }
}

impl Deref for RequestHead {
    type Target = http::request::Parts;

    fn deref(&self) -> &Self::Target {
        &self.head
    }
}

/// A method whose meaning lets servers expect a length even for no body.
///
/// Rule: RFC 9110 §8.6.
fn expects_length(method: &Method) -> bool {
    *method == Method::POST || *method == Method::PUT || *method == Method::PATCH
}

/// Head of a response for a client: a backend's, or our own by [`ResponseHead::new`].
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub(super) head: Box<ResponseHeader>,
}

impl ResponseHead {
    /// A head with only a status.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = status;
        Self { head: Box::new(ResponseHeader::from(parts)) }
    }

    /// Sets a field, replacing all of its name.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when there are too many fields.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
        self.head.insert_header(name, value).map_err(|_| Error::Head("too many fields"))
    }

    /// Adds a field.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when there are too many fields.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
        match self.head.append_header(name, value) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Head("too many fields")),
        }
    }

    /// Removes all fields of that name.
    pub fn remove(&mut self, name: &HeaderName) {
        self.head.remove_header(name);
    }

    /// Drops what belongs to the hop it came over.
    pub(super) fn strip_hop(&mut self) {
        let named = named_by_connection(&self.head.headers);
        for name in named.iter().chain(&HOP) {
            self.head.remove_header(name);
        }
    }
}

impl Deref for ResponseHead {
    type Target = http::response::Parts;

    fn deref(&self) -> &Self::Target {
        &self.head
    }
}

/// The copy of a client's head that goes to a backend.
///
/// `te: trailers` stays for HTTP/2 (gRPC servers ask for it); `Upgrade` is put aside. `told` are
/// fields of ours, which stay although `Connection` may name them.
pub(super) fn for_backend(
    head: &RequestHeader,
    upgrade: Option<HeaderValue>,
    secure: bool,
    told: &[HeaderName],
) -> RequestHead {
    let mut named = named_by_connection(&head.headers);
    named.retain(|name| !told.contains(name));
    let trailers = head.headers.get_all(TE).iter().any(|value| has_token(value, "trailers"));
    // Without the spelling of names: a second map to copy and keep, for no meaning.
    let mut head = Box::new(RequestHeader::from(head.as_owned_parts()));
    for name in named.iter().chain(&HOP) {
        if *name != HOST {
            head.remove_header(name);
        }
    }
    head.remove_header(&TE);
    let mut head =
        RequestHead { head, scheme: if secure { Scheme::HTTPS } else { Scheme::HTTP }, upgrade };
    if trailers {
        // One field fewer than before, so there is room.
        let _replaced = head.insert(TE, HeaderValue::from_static("trailers"));
    }
    head
}

/// Drops the fields that must not come after a body.
pub(super) fn clean_trailers(mut trailers: HeaderMap) -> HeaderMap {
    for name in HOP.iter().chain(&NO_TRAILER) {
        trailers.remove(name);
    }
    trailers
}

/// The tokens of `Connection` that are field names.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in tokens(value) {
            let known =
                token.eq_ignore_ascii_case("close") || token.eq_ignore_ascii_case("keep-alive");
            if let (false, Ok(name)) = (known, HeaderName::from_bytes(token.as_bytes())) {
                named.push(name);
            }
        }
    }
    named
}

/// Tells whether a list of tokens holds `wanted`.
pub(super) fn has_token(value: &HeaderValue, wanted: &str) -> bool {
    tokens(value).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let text = value.to_str().unwrap_or_default();
    text.split(',').map(|part| part.split(';').next().unwrap_or_default().trim())
}
