// SPDX-License-Identifier: Apache-2.0

//! Keys of issuers in the form that checks signatures, by what they govern.
//!
//! Owns parsing a key once, when it is told, and finding the rules of a request without a scan.
//! Leaves what a token must be to [`policy::jwt`].
//!
//! Start at [`Authenticators::of`].

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use policy::authz::Target;
use policy::jwt::{Algorithm, InvalidToken, Jwk, JwtRule, PublicKey, RequestAuthentication, Token};
use routing::authentications::Authentications;

/// What a RequestAuthentication says, ready for use.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// What it was made of.
    pub(crate) source: Arc<RequestAuthentication>,
    /// Keys of each rule, in the order of the rules.
    keys: Vec<Vec<Key>>,
}

/// A key, parsed for each algorithm that it may sign with.
#[derive(Debug)]
pub(crate) struct Key {
    id: Option<Arc<str>>,
    parsed: Vec<(Algorithm, ParsedPublicKey)>,
}

/// A rule and its keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready<'a> {
    /// The RequestAuthentication that it is of.
    pub(crate) of: &'a RequestAuthentication,
    /// The rule.
    pub(crate) rule: &'a JwtRule,
    keys: &'a [Key],
}

/// All RequestAuthentications by what they govern.
#[derive(Debug, Default)]
pub(crate) struct Authenticators {
    source: Authentications,
    by_target: HashMap<Target, Vec<Arc<Authenticator>>>,
    /// Those of which not even the targets could be read.
    everywhere: Vec<Arc<Authenticator>>,
}

impl Authenticators {
    /// Those that `now` asks for; none if they are these. What has not changed is shared.
    pub(crate) fn next(&self, now: &Authentications) -> Option<Self> {
        if self.source.is(now) {
            return None;
        }
        let mut next = Self { source: now.clone(), ..Self::default() };
        let made = self.by_target.values().flatten().chain(&self.everywhere);
        let made: HashMap<_, _> = made.map(|one| (Arc::as_ptr(&one.source), one)).collect();
        for source in now.all() {
            let known = made.get(&Arc::as_ptr(source)).map(|known| Arc::clone(known));
            let one = known.unwrap_or_else(|| Arc::new(Authenticator::new(source)));
            for target in &source.targets {
                next.by_target.entry(target.clone()).or_default().push(Arc::clone(&one));
            }
            if source.targets.is_empty() {
                next.everywhere.push(one);
            }
        }
        Some(next)
    }

    /// Tells whether there is none, so that no request has to look.
    pub(crate) fn is_empty(&self) -> bool {
        self.source.is_empty()
    }

    /// Those in force for any of `targets`, each once; nothing is allocated if there is none.
    pub(crate) fn of<'a>(
        &'a self,
        targets: impl Iterator<Item = &'a Target>,
    ) -> Vec<&'a Authenticator> {
        let pointed = targets.filter_map(|target| self.by_target.get(target)).flatten();
        let mut found: Vec<&Authenticator> = Vec::new();
        for one in self.everywhere.iter().chain(pointed) {
            if !found.iter().any(|known| std::ptr::eq(*known, &**one)) {
                found.push(one);
            }
        }
        found
    }
}

impl Authenticator {
    fn new(source: &Arc<RequestAuthentication>) -> Self {
        let keys = |rule: &JwtRule| -> Vec<Key> {
            let parsed = rule.keys.iter().map(|jwk| (jwk, Key::new(jwk)));
            parsed
                .filter_map(|(jwk, key)| {
                    if key.is_none() {
                        tracing::warn!(policy = %source.name, issuer = %rule.issuer,
                            kid = jwk.id.as_deref(), "key cannot be used: it is no point or number");
                    }
                    key
                })
                .collect()
        };
        Self { source: Arc::clone(source), keys: source.rules.iter().map(keys).collect() }
    }

    /// Its rules with their keys.
    pub(crate) fn rules(&self) -> impl Iterator<Item = Ready<'_>> {
        let rules = self.source.rules.iter().zip(&self.keys);
        rules.map(|(rule, keys)| Ready { of: &self.source, rule, keys })
    }
}

impl Ready<'_> {
    /// Tells whether one of the keys has signed `token`.
    ///
    /// # Errors
    ///
    /// [`InvalidToken::NoKeys`], [`InvalidToken::OtherKey`] or [`InvalidToken::Signature`].
    pub(crate) fn signed(&self, token: &Token<'_>) -> Result<(), InvalidToken> {
        let mut refused =
            if self.keys.is_empty() { InvalidToken::NoKeys } else { InvalidToken::OtherKey };
        for key in self.keys {
            let other = |id: &Arc<str>| token.key_id().is_some_and(|wanted| *wanted != **id);
            if key.id.as_ref().is_some_and(other) {
                continue;
            }
            let fits = key.parsed.iter().find(|(algorithm, _)| *algorithm == token.algorithm());
            if let Some((_, parsed)) = fits {
                let verified = parsed.verify_sig(token.signed().as_bytes(), token.signature());
                if verified.is_ok() {
                    return Ok(());
                }
                refused = InvalidToken::Signature;
            }
        }
        Err(refused)
    }
}

impl Key {
    /// Parses a key; none if it is none.
    fn new(jwk: &Jwk) -> Option<Self> {
        let may = |algorithm: &Algorithm| {
            jwk.key.fits(*algorithm) && jwk.algorithm.is_none_or(|only| only == *algorithm)
        };
        let algorithms = Algorithm::ALL.iter().copied().filter(may);
        let parse = |algorithm| Some((algorithm, parse(algorithm, &jwk.key)?));
        let parsed: Option<Vec<_>> = algorithms.map(parse).collect();
        Some(Self { id: jwk.id.clone(), parsed: parsed? })
    }
}

fn parse(algorithm: Algorithm, key: &PublicKey) -> Option<ParsedPublicKey> {
    use Algorithm as A;
    let other = |algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]| {
        ParsedPublicKey::new(algorithm, bytes).ok()
    };
    let rsa = |parameters: &'static RsaParameters| {
        let PublicKey::Rsa { n, e } = key else { return None };
        RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters).ok()
    };
    let point = |algorithm: &'static dyn VerificationAlgorithm| {
        let PublicKey::Ec { x, y, .. } = key else { return None };
        // Uncompressed: SEC 1 §2.3.3.
        other(algorithm, &[&[4][..], x, y].concat())
    };
    match algorithm {
        A::Rs256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
        A::Rs384 => rsa(&RSA_PKCS1_2048_8192_SHA384),
        A::Rs512 => rsa(&RSA_PKCS1_2048_8192_SHA512),
        A::Ps256 => rsa(&RSA_PSS_2048_8192_SHA256),
        A::Ps384 => rsa(&RSA_PSS_2048_8192_SHA384),
        A::Ps512 => rsa(&RSA_PSS_2048_8192_SHA512),
        A::Es256 => point(&ECDSA_P256_SHA256_FIXED),
        A::Es384 => point(&ECDSA_P384_SHA384_FIXED),
        A::Es512 => point(&ECDSA_P521_SHA512_FIXED),
        A::EdDsa => {
            let PublicKey::Ed25519(x) = key else { return None };
            other(&ED25519, x)
        }
    }
}

#[cfg(test)]
mod tests;
