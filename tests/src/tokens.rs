// SPDX-License-Identifier: Apache-2.0

//! An issuer of tokens for end users, with a key of its own.

#![expect(clippy::missing_errors_doc, reason = "a test fails with whatever failed")]

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use policy::authz::{PolicyName, Target};
use policy::jwt::{Jwks, JwtRule, Place, RequestAuthentication};
use serde_json::{Value, json};

/// Signs tokens.
pub struct TokenIssuer {
    /// `iss` of its tokens.
    pub name: String,
    key: EncodingKey,
    header: Header,
    jwks: String,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssuer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TokenIssuer {
    /// An issuer with a fresh P-256 key.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        jwk.common.key_id = Some("one".to_owned());
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("one".to_owned());
        let jwks = json!({ "keys": [jwk] }).to_string();
        Ok(Self { name: name.to_owned(), key, header, jwks })
    }

    /// Its key set, as JSON.
    #[must_use]
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// A token that says `claims`, with issuer, and an hour to live, where they say nothing else.
    pub fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let mut all = json!({ "iss": self.name, "exp": now() + 3600 });
        let claims = claims.as_object().context("claims are an object")?;
        let known = all.as_object_mut().context("an object")?;
        known.extend(claims.clone());
        Ok(encode(&self.header, &all, &self.key)?)
    }

    /// A rule that takes its tokens where they are by default.
    pub fn rule(&self) -> anyhow::Result<JwtRule> {
        Ok(JwtRule {
            issuer: self.name.as_str().into(),
            audiences: Vec::new(),
            keys: Jwks::parse(self.jwks.as_bytes())?.keys,
            places: Place::defaults(),
            forward: false,
            payload_header: None,
            claim_headers: Vec::new(),
            spaced_claims: Vec::new(),
        })
    }
}

/// A RequestAuthentication of namespace `shop`.
#[must_use]
pub fn authentication(name: &str, target: Target, rules: Vec<JwtRule>) -> RequestAuthentication {
    let name = PolicyName::new("shop", name);
    RequestAuthentication { name, targets: vec![target], rules, unreadable: None }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
