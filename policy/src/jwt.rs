// SPDX-License-Identifier: Apache-2.0

//! Tokens of end users: which are looked for where, and who they prove a request to be.
//!
//! Owns what a RequestAuthentication says and the one decision over it; the signature is checked
//! by the caller, who keeps keys in the form that its cryptography wants. What the token proves
//! is seen by policies as [`Claims`].
//!
//! Keeps: a request without a token passes, as nobody; every token that is found must be good
//! for some rule that reads it from there; a rule without keys refuses every token of its issuer.
//!
//! Start at [`judge`].

mod claims;
mod keys;
mod place;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use http::HeaderName;
use http::request::Parts;

pub use claims::Claims;
pub(crate) use claims::principal_matches;
pub use keys::{Algorithm, Curve, InvalidJwks, Jwk, Jwks, PublicKey};
pub use place::{Place, without_cookie, without_parameter};
pub use token::{InvalidToken, LEEWAY, Token};

use crate::authz::{PolicyName, Target};

/// Which tokens are taken at some gateways.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestAuthentication {
    /// Its name.
    pub name: PolicyName,
    /// What it governs; none governs every request.
    pub targets: Vec<Target>,
    /// One for each issuer.
    pub rules: Vec<JwtRule>,
    /// Why it cannot be read; it then refuses every request that it governs.
    pub unreadable: Option<Arc<str>>,
}

/// Tokens of one issuer.
///
/// Rule: `JWTRule` of Istio's RequestAuthentication reference.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtRule {
    /// `iss` of its tokens.
    pub issuer: Arc<str>,
    /// One of these must be in `aud`; none: any audience will do.
    pub audiences: Vec<Arc<str>>,
    /// Keys that sign; without one every token of the issuer is refused.
    pub keys: Vec<Jwk>,
    /// Where tokens are.
    pub places: Vec<Place>,
    /// The token goes on to the backend.
    pub forward: bool,
    /// Header that tells the backend the payload, as it is in the token.
    pub payload_header: Option<HeaderName>,
    /// Headers that tell the backend single claims.
    pub claim_headers: Vec<ClaimHeader>,
    /// Claims that are lists with spaces between, beside `scope` and `permission`.
    pub spaced_claims: Vec<Arc<str>>,
}

/// A header that tells a claim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClaimHeader {
    /// Name of the header.
    pub header: HeaderName,
    /// Name of the claim; dots lead into objects.
    pub claim: Arc<str>,
}

impl JwtRule {
    /// Headers that only this rule may set: whatever a client sends there is taken away.
    pub fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let claims = self.claim_headers.iter().map(|one| &one.header);
        self.payload_header.iter().chain(claims)
    }
}

/// A good token.
#[derive(Clone, Debug, PartialEq)]
pub struct Proven {
    /// Index of the rule that took it.
    pub rule: usize,
    /// Payload, as it is in the token.
    pub payload: String,
    /// What it says.
    pub claims: Claims,
    /// Every token of the request, with the index of the rule that took it.
    pub taken: Vec<(usize, String)>,
}

/// A token that is refused, and the rule that had the last word on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Index of a rule that reads tokens from where it was.
    pub rule: usize,
    /// Why.
    pub why: InvalidToken,
}

/// Who the tokens of a request prove it to be, by `rules`; nobody, if it has none.
///
/// `now` is in seconds since 1970. `signed` tells whether a token is signed by a key of the rule
/// with that index. Of several good tokens that of the first rule counts.
///
/// # Errors
///
/// The first token that no rule takes.
///
/// # Rule
///
/// Istio's RequestAuthentication: a request with invalid authentication is rejected, one without
/// any is accepted. Envoy's `jwt_authn` for the order of the checks.
pub fn judge(
    rules: &[&JwtRule],
    head: &Parts,
    now: u64,
    mut signed: impl FnMut(usize, &Token<'_>) -> Result<(), InvalidToken>,
) -> Result<Option<Proven>, Refused> {
    let mut best: Option<Proven> = None;
    let mut taken = Vec::new();
    for (text, readers) in place::tokens(rules, head) {
        let first = readers.first().copied().unwrap_or_default();
        let token = Token::parse(&text).map_err(|why| Refused { rule: first, why })?;
        let mut refused = Refused { rule: first, why: InvalidToken::UnknownIssuer };
        let mut found = None;
        for index in readers {
            let Some(rule) = rules.get(index) else { continue };
            if token.issuer() != &*rule.issuer {
                continue;
            }
            match token.suits(rule, now).and_then(|()| signed(index, &token)) {
                Ok(()) => {
                    found = Some((index, *rule));
                    break;
                }
                Err(why) => refused = Refused { rule: index, why },
            }
        }
        let Some((index, rule)) = found else { return Err(refused) };
        taken.push((index, text.to_string()));
        if best.as_ref().is_none_or(|best| index < best.rule) {
            let payload = token.payload().to_owned();
            let claims = token.into_claims(&rule.spaced_claims);
            best = Some(Proven { rule: index, payload, claims, taken: Vec::new() });
        }
    }
    Ok(best.map(|best| Proven { taken, ..best }))
}
