// SPDX-License-Identifier: Apache-2.0

//! Headers that tell the backend where a request came from.
//!
//! Owns `x-forwarded-for`, `-proto`, `-host`, `x-forwarded-client-cert` and
//! `x-request-id`. At the edge the client's own are replaced, unless it is one
//! of the trusted hops; within the mesh they were set at the edge and stay.
//!
//! Rule: Envoy's `x-forwarded-for` and `xff_num_trusted_hops`, its XFCC in
//! mode SANITIZE_SET.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use policy::identity::Identity;
use policy::peer::Peer;

use super::{Asked, Entry, TlsSession};
use crate::http::{Error, RequestHead};
use crate::trace::RequestSpan;

/// Addresses on the way so far.
pub(super) const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Name of a request in every log on its way.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Address of the first client: `trusted` hops before the one at `peer`, if they named one.
///
/// With fewer entries than trusted hops the first entry is taken; what does not parse ends the
/// trust, so the hop that sent it counts as the client.
pub(super) fn remote(headers: &HeaderMap, peer: IpAddr, trusted: usize) -> IpAddr {
    let mut best = peer.to_canonical();
    let entries = headers.get_all(FOR).iter().rev();
    let entries = entries.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    for entry in entries.take(trusted) {
        let Some(address) = address_of(entry) else { break };
        best = address;
    }
    best
}

/// The first client that the headers name.
pub(super) fn first(headers: &HeaderMap) -> Option<IpAddr> {
    let first = headers.get(FOR)?.as_bytes().split(|byte| *byte == b',').next()?;
    address_of(first)
}

/// An address as an entry has it.
fn address_of(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).unwrap_or_default().trim();
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Sets the headers on `head`.
///
/// # Errors
///
/// [`Error::Head`] when there are too many fields.
pub(super) fn set(asked: &Asked<'_>, head: &mut RequestHead) -> Result<(), Error> {
    let edge = matches!(asked.arrival.entry, Entry::Port(_));
    let trusted = if edge { asked.loaded.trusted_hops() } else { usize::MAX };
    let peer = asked.arrival.peer.address.ip().to_canonical();
    let told = &asked.arrival.told;
    if edge && trusted > 0 {
        forwarded_for(head, peer, trusted)?;
    } else if edge || !head.headers.contains_key(FOR) {
        head.insert(FOR, told.address.clone())?;
    }
    if trusted == 0 || !head.headers.contains_key(PROTO) {
        let scheme = if asked.arrival.is_secure() { "https" } else { "http" };
        head.insert(PROTO, HeaderValue::from_static(scheme))?;
    }
    if edge && (trusted == 0 || !head.headers.contains_key(FORWARDED_HOST)) {
        let host = head.headers.get(HOST).cloned();
        if let Some(host) = host {
            head.insert(FORWARDED_HOST, host)?;
        }
    }
    match &told.certificate {
        Some(value) => head.insert(CLIENT_CERT, value.clone())?,
        None => head.remove(&CLIENT_CERT),
    }
    if let Some((name, value)) = asked.span.as_ref().and_then(RequestSpan::header) {
        head.insert(name, value)?;
    }
    if trusted == 0 || !head.headers.contains_key(REQUEST_ID) {
        head.insert(REQUEST_ID, request_id(asked.worker.roll(), asked.worker.roll()))?;
    }
    Ok(())
}

/// Appends the peer to what trusted hops said; what came before them goes.
fn forwarded_for(head: &mut RequestHead, peer: IpAddr, trusted: usize) -> Result<(), Error> {
    let entries = head.headers.get_all(FOR).iter();
    let entries = entries.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut kept: Vec<String> =
        entries.map(|entry| String::from_utf8_lossy(entry).trim().to_owned()).collect();
    kept.drain(..kept.len().saturating_sub(trusted));
    kept.push(peer.to_string());
    let value = HeaderValue::from_str(&kept.join(", ")).unwrap_or_else(|_| address(peer));
    head.insert(FOR, value)
}

fn address(ip: IpAddr) -> HeaderValue {
    // An address prints as visible ASCII, so the fallback is never taken.
    HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// What every request of a connection tells the backend about its caller.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    address: HeaderValue,
    /// A mesh identity, or a certificate shown at the edge.
    certificate: Option<HeaderValue>,
}

impl Told {
    /// About `peer`, and the TLS session with it, by the gateway `own`.
    pub(crate) fn new(peer: &Peer, tls: Option<&TlsSession>, own: &Identity) -> Self {
        let certificate = match (tls, &peer.identity) {
            (Some(tls), _) => tls.client.clone(),
            (None, Some(identity)) => {
                HeaderValue::try_from(format!("By={own};URI={identity}")).ok()
            }
            (None, None) => None,
        };
        Self { address: address(peer.address.ip().to_canonical()), certificate }
    }
}

/// A random UUID (RFC 9562, version 4).
fn request_id(high: u64, low: u64) -> HeaderValue {
    let high = (high & 0xffff_ffff_ffff_0fff) | 0x4000;
    let low = (low & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
    let mut text = String::with_capacity(36);
    // Writing to a string does not fail, and hexadecimal digits are visible ASCII.
    let _ok = write!(
        text,
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff,
    );
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_client_is_as_far_back_as_trust_goes() {
        let cases: [(&[&str], usize, &str); 9] = [
            // headers, trusted hops, client
            (&[], 0, "10.0.0.1"),
            (&["1.1.1.1"], 0, "10.0.0.1"),
            (&["1.1.1.1"], 1, "1.1.1.1"),
            (&["1.1.1.1, 2.2.2.2"], 1, "2.2.2.2"),
            (&["1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
            (&["1.1.1.1", "2.2.2.2"], 1, "2.2.2.2"),
            (&["2.2.2.2"], 5, "2.2.2.2"),
            (&["1.1.1.1, junk"], 2, "10.0.0.1"),
            (&["[::1]"], 1, "::1"),
        ];
        for (values, trusted, want) in cases {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(FOR, HeaderValue::from_static(value));
            }
            let got = remote(&headers, "::ffff:10.0.0.1".parse().unwrap(), trusted);
            assert_eq!(got, want.parse::<IpAddr>().unwrap(), "{values:?} trusting {trusted}");
        }
    }

    #[test]
    fn entries_before_the_trusted_ones_are_dropped() {
        let cases = [
            (1, "1.1.1.1, 2.2.2.2", "2.2.2.2, 10.0.0.1"),
            (2, "1.1.1.1, 2.2.2.2", "1.1.1.1, 2.2.2.2, 10.0.0.1"),
        ];
        for (trusted, sent, want) in cases {
            let mut head =
                RequestHead::new(http::Method::GET, "/".parse().unwrap(), "a.example").unwrap();
            head.insert(FOR, sent.parse().unwrap()).unwrap();
            forwarded_for(&mut head, "10.0.0.1".parse().unwrap(), trusted).unwrap();
            assert_eq!(head.headers[&FOR], want, "trusting {trusted}");
        }
    }

    #[test]
    fn request_ids_are_uuids_of_version_four() {
        let id = request_id(u64::MAX, 0);
        assert_eq!(id, "ffffffff-ffff-4fff-8000-000000000000");
        assert_eq!(request_id(0, u64::MAX), "00000000-0000-4000-bfff-ffffffffffff");
    }
}
