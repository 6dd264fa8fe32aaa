// SPDX-License-Identifier: Apache-2.0

//! What signs, and what everybody is to trust.
//!
//! Owns: which texts make an authority ([`Authority::read`]: one that no peer could verify is
//! none), which may follow which ([`Authority::may_follow`]: no leaf that is in use is left
//! without a root, none is signed that nobody trusts yet), and the one in force ([`InForce`]).
//! Where the texts come from is [`super::secret`]'s and [`super::root`]'s.
//!
//! Keeps: the root under which leaves are signed stands first among the roots.
//!
//! Rule: Istio's `security/pkg/pki/util/keycertbundle.go` and `security/pkg/server/ca`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use routing::wire::chain;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{RootCertStore, client::verify_server_cert_signed_by_trust_anchor};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::sign::{self, SignError};

/// Certificate that signs: name of the file or the key of the Secret.
pub const CERT: &str = "ca-cert.pem";
/// Its key.
pub const KEY: &str = "ca-key.pem";
/// Certificates between it and the root.
pub const CHAIN: &str = "cert-chain.pem";
/// All roots to trust.
pub const ROOTS: &str = "root-cert.pem";

/// The texts of an authority, PEM each.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Texts {
    /// Where they are from, for people.
    pub origin: String,
    /// The certificate that signs.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Certificates between it and the root; may hold both, too.
    pub chain: String,
    /// All roots to trust; empty: the certificate that signs.
    pub roots: String,
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Texts").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Why texts are no authority, or not the next one.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A part lacks.
    #[error("{0} lacks, or is empty")]
    Lacks(&'static str),
    /// A part cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(&'static str, String),
    /// The key is that of another certificate.
    #[error(
        "the key is of another certificate: {KEY} and {CERT}; of files, root-key.pem and root-cert.pem"
    )]
    OtherKey,
    /// The certificate may not sign others.
    #[error("{CERT} is no certificate of an authority: wanted CA:TRUE and keyCertSign")]
    NoAuthority,
    /// It is not in its time.
    #[error("{CERT} is valid from {0} to {1}, not now")]
    Time(String, String),
    /// What it signs would not be believed.
    #[error("what {CERT} signs chains to no root of {ROOTS}: {0}")]
    NoRoot(String),
    /// Nothing can be signed with it.
    #[error("nothing can be signed with {KEY}")]
    Sign(#[source] SignError),
    /// Nobody trusts the next root yet.
    #[error(
        "it signs under the root {next}, which is not in force; first add that root to {ROOTS} \
         beside the others, keep the key, and wait until every proxy trusts it"
    )]
    NotTrusted {
        /// Fingerprint of the next root.
        next: String,
    },
    /// The root that signed until now would go.
    #[error(
        "{ROOTS} lacks the root {old}, which signed until now; keep it there until every \
         certificate is renewed, then take it away"
    )]
    StillUsed {
        /// Fingerprint of that root.
        old: String,
    },
}

/// One root.
#[derive(Clone, Debug)]
pub struct Root {
    /// PEM, with a line end.
    pub pem: String,
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// Its subject, for people.
    pub subject: String,
    /// End of its life.
    pub not_after: OffsetDateTime,
    der: CertificateDer<'static>,
}

/// What signs, and what everybody is to trust.
pub struct Authority {
    /// What it was made of.
    texts: Texts,
    /// The certificate that signs, if it is no root, and those above it, PEM.
    pub intermediates: Vec<String>,
    /// All roots to trust; the first is that of what is signed.
    pub roots: Vec<Root>,
    /// End of the life of the certificate that signs.
    pub not_after: OffsetDateTime,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Authority");
        f.field("origin", &self.origin()).field("signs", &self.signs()).finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority that `texts` make.
    ///
    /// # Errors
    ///
    /// See [`AuthorityError`]; all but the last two may come.
    pub fn read(texts: &Texts) -> Result<Self, AuthorityError> {
        let mut roots = Vec::new();
        for der in certificates(ROOTS, &texts.roots)? {
            if !roots.iter().any(|root: &Root| root.der == der) {
                roots.push(Root::new(ROOTS, der)?);
            }
        }
        let own = certificates(CERT, &texts.certificate)?;
        let own = own.first().ok_or(AuthorityError::Lacks(CERT))?;
        if texts.key.trim().is_empty() {
            return Err(AuthorityError::Lacks(KEY));
        }
        let unreadable = |name: &'static str, error: rcgen::Error| {
            AuthorityError::Unreadable(name, error.to_string())
        };
        let key = KeyPair::from_pem(&texts.key).map_err(|error| unreadable(KEY, error))?;
        let not_after = check(own, &key)?;
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(|error| unreadable(CERT, error))?;
        if roots.is_empty() {
            roots.push(Root::new(CERT, own.clone())?);
        }
        let mut between = vec![own.clone()];
        between.extend(certificates(CHAIN, &texts.chain)?);
        let is_root = |der: &CertificateDer<'_>| roots.iter().any(|root| root.der == *der);
        let mut above: Vec<CertificateDer<'static>> = Vec::new();
        for der in between {
            if !is_root(&der) && !above.contains(&der) {
                above.push(der);
            }
        }
        let first = proven(&issuer, &above, &roots)?;
        roots.rotate_left(first);
        let intermediates = above.iter().map(pem).collect();
        Ok(Self { texts: texts.clone(), intermediates, roots, not_after, issuer })
    }

    /// Where it is from, for people.
    pub fn origin(&self) -> &str {
        &self.texts.origin
    }

    /// Fingerprint of the root of what is signed.
    pub fn signs(&self) -> &str {
        self.roots.first().map(|root| root.fingerprint.as_str()).unwrap_or_default()
    }

    /// All roots, PEM, one after the other.
    pub fn bundle(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }

    fn trusts(&self, fingerprint: &str) -> bool {
        self.roots.iter().any(|root| root.fingerprint == fingerprint)
    }

    /// Whether this one may take the place of `old` while leaves of it are in use.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::NotTrusted`] and [`AuthorityError::StillUsed`].
    pub fn may_follow(&self, old: &Self) -> Result<(), AuthorityError> {
        if !old.trusts(self.signs()) {
            return Err(AuthorityError::NotTrusted { next: self.signs().to_owned() });
        }
        if !self.trusts(old.signs()) {
            return Err(AuthorityError::StillUsed { old: old.signs().to_owned() });
        }
        Ok(())
    }
}

impl Root {
    fn new(name: &'static str, der: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        let unreadable = |why: String| AuthorityError::Unreadable(name, why);
        RootCertStore::empty().add(der.clone()).map_err(|error| unreadable(error.to_string()))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        let subject = parsed.subject().to_string();
        let not_after = parsed.validity().not_after.to_datetime();
        let digest = Sha256::digest(&der);
        let fingerprint = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { pem: pem(&der), fingerprint, subject, not_after, der })
    }
}

/// Checks that the certificate may sign, now, with this key; gives the end of its life.
fn check(own: &CertificateDer<'_>, key: &KeyPair) -> Result<OffsetDateTime, AuthorityError> {
    let (_, parsed) = X509Certificate::from_der(own)
        .map_err(|error| AuthorityError::Unreadable(CERT, error.to_string()))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(AuthorityError::OtherKey);
    }
    let usage = parsed.key_usage().ok().flatten();
    if !parsed.is_ca() || !usage.is_none_or(|usage| usage.value.key_cert_sign()) {
        return Err(AuthorityError::NoAuthority);
    }
    let validity = parsed.validity();
    if !validity.is_valid() {
        return Err(AuthorityError::Time(
            validity.not_before.to_string(),
            validity.not_after.to_string(),
        ));
    }
    Ok(validity.not_after.to_datetime())
}

/// Signs a leaf and verifies it as a peer would; gives the place of the root that it chains to.
fn proven(
    issuer: &Issuer<'static, KeyPair>,
    above: &[CertificateDer<'static>],
    roots: &[Root],
) -> Result<usize, AuthorityError> {
    let leaf = sign::probe(issuer).map_err(AuthorityError::Sign)?;
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let mut why = "there is none".to_owned();
    for (place, root) in roots.iter().enumerate() {
        let mut store = RootCertStore::empty();
        let tried = store.add(root.der.clone()).and_then(|()| {
            let leaf = ParsedCertificate::try_from(&leaf)?;
            let now = UnixTime::now();
            verify_server_cert_signed_by_trust_anchor(&leaf, &store, above, now, algorithms)
        });
        match tried {
            Ok(()) => return Ok(place),
            Err(error) => why = error.to_string(),
        }
    }
    Err(AuthorityError::NoRoot(why))
}

fn certificates(
    name: &'static str,
    text: &str,
) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let unreadable = |why: &dyn ToString| AuthorityError::Unreadable(name, why.to_string());
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| unreadable(&error))?;
    if found.is_empty() && !text.trim().is_empty() {
        return Err(unreadable(&"it holds no certificate in PEM"));
    }
    Ok(found)
}

/// A certificate as PEM text.
pub fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (place, letter) in text.chars().enumerate() {
        if place > 0 && place % 64 == 0 {
            pem.push('\n');
        }
        pem.push(letter);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}

/// The authority in force, which changes while the controller runs.
#[derive(Debug)]
pub struct InForce {
    current: watch::Sender<Arc<Authority>>,
    refused: Mutex<Option<String>>,
}

impl InForce {
    /// Begins with `first`.
    pub fn new(first: Authority) -> Self {
        Self { current: watch::Sender::new(Arc::new(first)), refused: Mutex::default() }
    }

    /// The one in force now.
    pub fn now(&self) -> Arc<Authority> {
        Arc::clone(&self.current.borrow())
    }

    /// It, and all that follow.
    pub fn changes(&self) -> watch::Receiver<Arc<Authority>> {
        self.current.subscribe()
    }

    /// Why the newest texts are not in force, if they are not.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the authority of `texts` in force if it may follow; else the last good one stays.
    /// Tells whether it did.
    pub fn offer(&self, texts: &Texts) -> bool {
        let old = self.now();
        if old.texts == *texts {
            self.say(None);
            return true;
        }
        let next = Authority::read(texts).and_then(|next| next.may_follow(&old).map(|()| next));
        match next {
            Ok(next) => {
                tracing::info!(
                    origin = next.origin(),
                    signs = next.signs(),
                    roots = next.roots.len(),
                    "certificate authority in force"
                );
                self.say(None);
                self.current.send_replace(Arc::new(next));
                true
            }
            Err(error) => {
                let why = format!("{}: {}", texts.origin, chain(&error));
                tracing::error!(why, "certificate authority refused; the last good one stays");
                self.say(Some(why));
                false
            }
        }
    }

    /// Notes that the texts in force are gone, which changes nothing.
    pub fn gone(&self, origin: &str) {
        let why =
            format!("{origin}: it is gone; put it back, or restart the controller to do without");
        tracing::error!(why, "certificate authority is gone; the last good one stays");
        self.say(Some(why));
    }

    fn say(&self, why: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

#[cfg(test)]
mod tests;
