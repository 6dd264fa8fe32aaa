// SPDX-License-Identifier: Apache-2.0

//! The rules of a RequestAuthentication: each read whole, or left without keys.

use std::sync::Arc;

use http::HeaderName;
use policy::duration::parse_duration;
use policy::jwt::{ClaimHeader, Jwk, Jwks, JwtRule as Domain, Place};

use super::in_words;
use crate::api::istio::{JwtRule, RequestAuthentication};
use crate::store::facts::KeySource;
use crate::store::lookup::Lookup;
use crate::translate::targets::Notes;

/// How long fetching keys may take, in milliseconds, unless a rule says otherwise.
const TIMEOUT: u64 = 5_000;

/// Reads all rules; `notes` is told of what is wrong.
pub(super) fn read(
    object: &RequestAuthentication,
    look: &mut Lookup<'_>,
    notes: &mut Notes,
) -> Vec<Domain> {
    let all = object.spec.jwt_rules.iter().enumerate();
    all.map(|(index, rule)| Reader { index, look, notes, bad: false }.rule(rule)).collect()
}

/// Where the keys of a rule are fetched, and within how many milliseconds; none: they are inline.
pub(super) fn source(rule: &JwtRule) -> Option<(KeySource, u64)> {
    if rule.jwks.as_ref().is_some_and(|text| !text.is_empty()) {
        return None;
    }
    let timeout = rule.timeout.as_deref().and_then(|text| parse_duration(text).ok());
    let timeout = timeout.and_then(|time| u64::try_from(time.as_millis()).ok());
    let timeout = timeout.filter(|time| *time > 0).unwrap_or(TIMEOUT);
    let source = match uri(rule) {
        Some(uri) => KeySource::Uri(uri.into()),
        None => KeySource::Issuer(rule.issuer.as_str().into()),
    };
    let uri = in_words(&source);
    (uri.starts_with("http://") || uri.starts_with("https://")).then_some((source, timeout))
}

/// Where a rule says that keys are.
fn uri(rule: &JwtRule) -> Option<&str> {
    let uri = rule.jwks_uri.as_ref().or(rule.older_jwks_uri.as_ref());
    uri.map(String::as_str).filter(|uri| !uri.is_empty())
}

/// Where an issuer tells about itself. Rule: OpenID Connect Discovery 1.0 §4.
pub(super) fn discovery(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer))
}

struct Reader<'a, 'b> {
    index: usize,
    look: &'a mut Lookup<'b>,
    notes: &'a mut Notes,
    /// The rule cannot be served as written.
    bad: bool,
}

impl Reader<'_, '_> {
    fn rule(mut self, rule: &JwtRule) -> Domain {
        if rule.issuer.is_empty() {
            self.invalid("issuer", "it is empty, wanted the iss of the issuer's tokens");
        }
        if let Some(Err(error)) = rule.timeout.as_deref().map(parse_duration) {
            self.invalid("timeout", &error.to_string());
        }
        let places = self.places(rule);
        let payload_header = rule.output_payload_to_header.as_deref();
        let payload_header =
            payload_header.and_then(|name| self.header("outputPayloadToHeader", name));
        let mut claim_headers = Vec::new();
        for (i, one) in rule.output_claim_to_headers.iter().enumerate() {
            let at = format!("outputClaimToHeaders[{i}]");
            let header = self.header(&format!("{at}.header"), &one.header);
            if one.claim.is_empty() {
                self.invalid(&format!("{at}.claim"), "it is empty, wanted the name of a claim");
            } else if let Some(header) = header {
                claim_headers.push(ClaimHeader { header, claim: one.claim.as_str().into() });
            }
        }
        let keys = self.keys(rule);
        let texts = |all: &[String]| all.iter().map(|text| Arc::from(text.as_str())).collect();
        Domain {
            issuer: rule.issuer.as_str().into(),
            audiences: texts(&rule.audiences),
            keys: if self.bad { Vec::new() } else { keys },
            places,
            forward: rule.forward_original_token.unwrap_or(false),
            payload_header,
            claim_headers,
            spaced_claims: texts(&rule.space_delimited_claims),
        }
    }

    fn invalid(&mut self, field: &str, why: &str) {
        self.bad = true;
        self.refuse("Invalid", field, why);
    }

    fn refuse(&mut self, reason: &'static str, field: &str, why: &str) {
        let text = format!(
            "spec.jwtRules[{}].{field}: {why}; every token of the issuer is refused",
            self.index
        );
        self.notes.refuse(reason, &text);
    }

    /// Where tokens are; a rule with no legal place reads them where they are by default.
    fn places(&mut self, rule: &JwtRule) -> Vec<Place> {
        let mut places = Vec::new();
        for (i, from) in rule.from_headers.iter().enumerate() {
            let name = self.header(&format!("fromHeaders[{i}].name"), &from.name);
            let prefix = from.prefix.as_deref().unwrap_or_default().into();
            places.extend(name.map(|name| Place::Header { name, prefix }));
        }
        type Make = fn(Arc<str>) -> Place;
        let named: [(&str, &[String], Make); 2] = [
            ("fromParams", &rule.from_params, Place::Parameter),
            ("fromCookies", &rule.from_cookies, Place::Cookie),
        ];
        for (field, names, make) in named {
            for (i, name) in names.iter().enumerate() {
                if name.is_empty() {
                    self.invalid(&format!("{field}[{i}]"), "it is empty, wanted a name");
                } else {
                    places.push(make(name.as_str().into()));
                }
            }
        }
        if places.is_empty() { Place::defaults() } else { places }
    }

    fn header(&mut self, field: &str, name: &str) -> Option<HeaderName> {
        let read = HeaderName::from_bytes(name.as_bytes());
        if read.is_err() {
            self.invalid(field, &format!("{name:?} is no name of a header"));
        }
        read.ok()
    }

    fn keys(&mut self, rule: &JwtRule) -> Vec<Jwk> {
        if let Some(text) = rule.jwks.as_deref().filter(|text| !text.is_empty()) {
            return match Jwks::parse(text.as_bytes()) {
                Ok(set) => {
                    if let Some(why) = set.left_out.first() {
                        let index = self.index;
                        let text = format!("in force; spec.jwtRules[{index}].jwks: left out {why}");
                        self.notes.in_force.get_or_insert(text);
                    }
                    set.keys
                }
                Err(error) => {
                    self.invalid("jwks", &error.to_string());
                    Vec::new()
                }
            };
        }
        let field = if uri(rule).is_some() { "jwksUri" } else { "issuer" };
        let Some((source, _)) = source(rule) else {
            let why = "wanted jwks, or a URL with http:// or https:// where keys can be fetched";
            self.invalid(field, why);
            return Vec::new();
        };
        let uri = in_words(&source);
        let (keys, trouble) = match self.look.keys(&source) {
            Some(fetched) => (fetched.keys.clone(), fetched.trouble.clone()),
            None => (Vec::new(), Some("they are being fetched".to_owned())),
        };
        match trouble {
            Some(why) if keys.is_empty() => {
                self.refuse("KeysNotFetched", field, &format!("no keys from {uri}: {why}"));
            }
            Some(why) => {
                let index = self.index;
                let text = format!(
                    "in force with the last good keys; spec.jwtRules[{index}].{field}: no newer keys from {uri}: {why}"
                );
                self.notes.in_force.get_or_insert(text);
            }
            None => {}
        }
        keys
    }
}
