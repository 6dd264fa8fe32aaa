// SPDX-License-Identifier: Apache-2.0

//! One certificate with its key and what TLS needs of it.
//!
//! Owns reading an authority's answer. Keeps: a certificate that names another
//! identity, lacks roots or is out of its time is no credential.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use policy::identity::Identity;
use routing::l4::Expected;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::revocation::{Revocations, Revoked, Role};
use super::trust::Trust;
use super::verify::{CertificateError, Peers, identity_of};
use super::{AuthorityError, tls};

/// Why there is no certificate to use.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The authority has not answered yet.
    #[error("the authority has not answered yet")]
    NotYet,
    /// The last certificate has expired and could not be renewed.
    #[error("the certificate has expired")]
    Expired,
    /// The authority did not sign.
    #[error("the authority did not sign")]
    Authority(#[source] AuthorityError),
    /// Its answer is no chain of PEM certificates with roots.
    #[error("the authority's answer cannot be read: {0}")]
    Unreadable(Arc<str>),
    /// It signed for somebody else.
    #[error("the authority signed for {0}")]
    OtherIdentity(Identity),
    /// The leaf names no workload.
    #[error("the certificate names no workload")]
    NoIdentity(#[source] CertificateError),
    /// The key could not be made or used.
    #[error("the key cannot be used: {0}")]
    Key(Arc<str>),
}

/// A certificate with its key, and the roots of the mesh.
pub struct Credential {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    peers: Peers,
    key: Arc<CertifiedKey>,
    server: Arc<rustls::ServerConfig>,
    not_before: SystemTime,
    not_after: SystemTime,
    epoch: u64,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Credential");
        f.field("identity", &self.identity).field("epoch", &self.epoch);
        f.field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Credential {
    /// Reads an authority's answer to a request for `identity`: PEM text of the
    /// leaf, intermediates, and all roots in the last element.
    ///
    /// # Errors
    ///
    /// See [`CredentialError`]; every variant but the first three may come.
    pub fn new(
        identity: &Identity,
        answer: &[String],
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CredentialError> {
        Self::checking(identity, answer, key, Default::default())
    }

    /// The same, for peers that may be of any root of `trust`, and must not be on the lists of
    /// `revocations`.
    pub(super) fn checking(
        identity: &Identity,
        answer: &[String],
        key: PrivateKeyDer<'static>,
        (trust, revocations): (Arc<Trust>, Arc<Revocations>),
    ) -> Result<Self, CredentialError> {
        let (roots, chain) = answer.split_last().ok_or_else(|| unreadable("it is empty"))?;
        let roots = certificates(std::slice::from_ref(roots))?;
        let chain = certificates(chain)?;
        let leaf = chain.first().ok_or_else(|| unreadable("it holds no leaf"))?;
        let named = identity_of(leaf).map_err(CredentialError::NoIdentity)?;
        if named != *identity {
            return Err(CredentialError::OtherIdentity(named));
        }
        let (not_before, not_after) = validity(leaf)?;
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(root.clone()).map_err(unreadable)?;
        }
        let peers = Peers { own: roots.into(), store: Arc::new(store), trust, revocations };
        let key = CertifiedKey::from_der(chain.clone(), key, &tls::provider())
            .map_err(|error| CredentialError::Key(error.to_string().into()))?;
        let key = Arc::new(key);
        let server = tls::server(identity, Arc::clone(&key), peers.clone())?;
        let epoch = next_epoch();
        let identity = identity.clone();
        Ok(Self { identity, chain, peers, key, server, not_before, not_after, epoch })
    }

    /// Whom it names.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Differs between any two credentials of this process; later ones are greater.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Leaf and intermediates.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Roots of the mesh: those that came with it, and those told since.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.peers.trust.with(&self.peers.own)
    }

    /// Tells whether the authority signed it knowing of all that was told of roots since.
    pub(super) fn is_of_told_roots(&self) -> bool {
        self.peers.trust.agrees(&self.peers.own)
    }

    /// First moment of its life.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Last moment of its life.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Tells whether it has not expired.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// Time left until half of its life is over; zero once it is.
    #[must_use]
    pub fn until_half_life(&self, now: SystemTime) -> Duration {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        (self.not_before + life / 2).duration_since(now).unwrap_or_default()
    }

    /// Completes once a certificate of the chain of a peer that we are connected to, and that
    /// plays `role`, is revoked.
    pub(crate) fn withdrawn(
        &self,
        role: Role,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> impl Future<Output = Revoked> + Send + 'static + use<> {
        self.peers.revocations.withdrawn(role, chain, &self.peers.roots())
    }

    /// TLS for connections that others open to us: HBONE only, mutual.
    #[must_use]
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.server)
    }

    /// TLS for one connection that we open to a peer that is one of the `expected`.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own settings.
    pub fn client(
        &self,
        expected: &Expected,
    ) -> Result<Arc<rustls::ClientConfig>, CredentialError> {
        tls::client(Arc::clone(&self.key), self.peers.clone(), expected.clone())
    }
}

fn next_epoch() -> u64 {
    static EPOCHS: AtomicU64 = AtomicU64::new(1);
    EPOCHS.fetch_add(1, Ordering::Relaxed)
}

fn unreadable(reason: impl ToString) -> CredentialError {
    CredentialError::Unreadable(reason.to_string().into())
}

fn certificates(pems: &[String]) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let each = pems.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()));
    each.collect::<Result<_, _>>().map_err(unreadable)
}

fn validity(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), CredentialError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(unreadable)?;
    let validity = parsed.validity();
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    Ok((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}
