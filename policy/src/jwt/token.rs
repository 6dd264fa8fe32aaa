// SPDX-License-Identifier: Apache-2.0

//! One token: its form, its times, its audience.
//!
//! Owns parsing and every check but that of the signature. Words and order of the refusals are
//! those of Envoy's `jwt_authn`, which Istio's users know.
//!
//! Rule: RFC 7515 §3.1 and §5.2 (compact serialisation), RFC 7519 §4.1.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{Algorithm, Claims, JwtRule};

/// How far clocks may differ, in seconds. Rule: `clock_skew_seconds` of Envoy's `jwt_authn`.
pub const LEEWAY: u64 = 60;

/// Declares the reasons: name, text of the answer, word of the log.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $word:literal;)*) => {
        /// Why a token is refused.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum InvalidToken { $($(#[$doc])* $name,)* }

        impl InvalidToken {
            /// The reason, as the client is told.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The reason, as the access log has it.
            pub fn detail(self) -> &'static str {
                match self { $(Self::$name => concat!("jwt_authn_access_denied{", $word, "}"),)* }
            }
        }
    };
}

reasons! {
    /// Not three parts with dots between.
    Form, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        "Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections";
    /// The header is not base64url.
    HeaderBase64, "Jwt header is an invalid Base64url encoded",
        "Jwt_header_is_an_invalid_Base64url_encoded";
    /// The header is no JSON object.
    HeaderJson, "Jwt header is an invalid JSON", "Jwt_header_is_an_invalid_JSON";
    /// The header names no algorithm, or one that is not taken: `none` never is.
    Algorithm, "Jwt header [alg] is not supported", "Jwt_header_[alg]_is_not_supported";
    /// The header asks for what is not understood.
    Critical, "Jwt header [crit] is not supported", "Jwt_header_[crit]_is_not_supported";
    /// The name of the key is no text.
    KeyId, "Jwt header [kid] field is not a string", "Jwt_header_[kid]_field_is_not_a_string";
    /// The payload is not base64url.
    PayloadBase64, "Jwt payload is an invalid Base64url encoded",
        "Jwt_payload_is_an_invalid_Base64url_encoded";
    /// The payload is no JSON object.
    PayloadJson, "Jwt payload is an invalid JSON", "Jwt_payload_is_an_invalid_JSON";
    /// `exp` or `nbf` is no time.
    Time, "Jwt payload [exp] or [nbf] field is not a positive number",
        "Jwt_payload_[exp]_or_[nbf]_field_is_not_a_positive_number";
    /// The signature is not base64url.
    SignatureBase64, "Jwt signature is an invalid Base64url encoded",
        "Jwt_signature_is_an_invalid_Base64url_encoded";
    /// No rule that reads tokens from there is for its issuer.
    UnknownIssuer, "Jwt issuer is not configured", "Jwt_issuer_is_not_configured";
    /// `nbf` is to come.
    NotYetValid, "Jwt not yet valid", "Jwt_not_yet_valid";
    /// `exp` is over.
    Expired, "Jwt is expired", "Jwt_is_expired";
    /// None of its audiences is wanted.
    Audience, "Audiences in Jwt are not allowed", "Audiences_in_Jwt_are_not_allowed";
    /// The issuer has no key that is known.
    NoKeys, "Jwks doesn't have any valid public key", "Jwks_doesn't_have_any_valid_public_key";
    /// No key has the name and algorithm of the token.
    OtherKey, "Jwks doesn't have key to match kid or alg from Jwt",
        "Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt";
    /// No key of the issuer has signed it.
    Signature, "Jwt verification fails", "Jwt_verification_fails";
}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for InvalidToken {}

/// A token as it was read; nothing in it is proven before its signature is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Token<'a> {
    /// What the signature is over.
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
    algorithm: Algorithm,
    key_id: Option<String>,
    expires: Option<u64>,
    not_before: Option<u64>,
    claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    /// Reads a token in compact form.
    ///
    /// # Errors
    ///
    /// What is wrong with its form.
    pub fn parse(text: &'a str) -> Result<Self, InvalidToken> {
        let (signed, signature) = text.rsplit_once('.').ok_or(InvalidToken::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(InvalidToken::Form)?;
        if payload.contains('.') {
            return Err(InvalidToken::Form);
        }
        let header = decode(header, InvalidToken::HeaderBase64)?;
        let header = object(&header, InvalidToken::HeaderJson)?;
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::of);
        let algorithm = algorithm.ok_or(InvalidToken::Algorithm)?;
        if header.contains_key("crit") {
            return Err(InvalidToken::Critical);
        }
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(InvalidToken::KeyId),
        };
        let claims = decode(payload, InvalidToken::PayloadBase64)?;
        let claims = object(&claims, InvalidToken::PayloadJson)?;
        Ok(Self {
            signed,
            payload,
            signature: decode(signature, InvalidToken::SignatureBase64)?,
            algorithm,
            key_id,
            expires: time(claims.get("exp"))?,
            not_before: time(claims.get("nbf"))?,
            claims,
        })
    }

    /// `iss`; empty if there is none.
    pub fn issuer(&self) -> &str {
        self.claims.get("iss").and_then(Value::as_str).unwrap_or_default()
    }

    /// The algorithm that it says it is signed with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The name of the key that it says it is signed with.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// What the signature is over.
    pub fn signed(&self) -> &'a str {
        self.signed
    }

    /// The signature.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The payload, as it is in the token.
    pub fn payload(&self) -> &'a str {
        self.payload
    }

    /// Tells whether times and audience are those that `rule` wants; `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`InvalidToken::NotYetValid`], [`InvalidToken::Expired`] or [`InvalidToken::Audience`].
    pub fn suits(&self, rule: &JwtRule, now: u64) -> Result<(), InvalidToken> {
        if self.not_before.is_some_and(|from| now.saturating_add(LEEWAY) < from) {
            return Err(InvalidToken::NotYetValid);
        }
        if self.expires.is_some_and(|until| now > until.saturating_add(LEEWAY)) {
            return Err(InvalidToken::Expired);
        }
        let wanted =
            |audience: &str| rule.audiences.iter().any(|wanted| bare(wanted) == bare(audience));
        let suits = match self.claims.get("aud") {
            _ if rule.audiences.is_empty() => true,
            Some(Value::String(one)) => wanted(one),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).any(wanted),
            Some(_) | None => false,
        };
        if suits { Ok(()) } else { Err(InvalidToken::Audience) }
    }

    /// What it says, once its signature is proven; `spaced` are claims with spaces between.
    pub fn into_claims(self, spaced: &[impl AsRef<str>]) -> Claims {
        Claims::new(self.claims, spaced)
    }
}

/// An audience without what does not count. Rule: `CheckAudience` of Envoy's `jwt_authn`.
fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

fn decode(text: &str, otherwise: InvalidToken) -> Result<Vec<u8>, InvalidToken> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| otherwise)
}

fn object(bytes: &[u8], otherwise: InvalidToken) -> Result<Map<String, Value>, InvalidToken> {
    serde_json::from_slice(bytes).map_err(|_| otherwise)
}

/// Seconds since 1970; a fraction is cut off.
fn time(value: Option<&Value>) -> Result<Option<u64>, InvalidToken> {
    let Some(value) = value else { return Ok(None) };
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds));
    }
    // A fraction: its whole part, as text, is a number without sign.
    let whole = value.as_f64().filter(|seconds| seconds.is_finite()).map(f64::trunc);
    match whole.map(|seconds| format!("{seconds:.0}").parse()) {
        Some(Ok(seconds)) => Ok(Some(seconds)),
        Some(Err(_)) | None => Err(InvalidToken::Time),
    }
}
