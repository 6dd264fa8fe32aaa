// SPDX-License-Identifier: Apache-2.0

//! Certificates that their issuers have withdrawn.
//!
//! Owns the lists, in a file that may change while we run, and the question whether one of
//! them names a certificate of a peer's chain. Leaves refusing to [`super::verify`] and the
//! end of open connections to [`crate::hbone`].
//!
//! Keeps: a list counts only for the issuer whose key has signed it; a file that cannot be
//! read leaves the last good lists in force, and refuses everybody while there are none. A
//! certificate of which no list speaks is taken, and counted. No file means no lists.
//!
//! Rule: ztunnel's `src/tls/crl`; RFC 5280 section 5.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use routing::wire::chain;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExtendedKeyUsageValidator, KeyUsage,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::tls;

/// Time between looks at the file: mounted files are replaced as whole folders.
const LOOK: Duration = Duration::from_secs(2);

/// Most bytes of the file.
const MAX_FILE: u64 = 64 << 20;

/// Which end of a connection a peer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// It opened the connection: we are the destination.
    Client,
    /// We opened it: we are the source.
    Server,
}

impl Role {
    /// Both, in the order of counters, with how we report.
    const ALL: [(Self, &'static str); 2] =
        [(Self::Server, "source"), (Self::Client, "destination")];

    fn of(self, counters: &[AtomicU64; 2]) -> &AtomicU64 {
        let [server, client] = counters;
        match self {
            Self::Server => server,
            Self::Client => client,
        }
    }
}

/// Why a file of lists cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// It cannot be read.
    #[error("the file cannot be read")]
    File(#[source] io::Error),
    /// It is no list of revoked certificates, in PEM or DER.
    #[error("it holds no list that can be read: {0}")]
    Unreadable(Arc<str>),
}

/// What the lists say of a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Good,
    Revoked,
    /// No list is of its issuer.
    Unknown,
}

#[derive(Debug, Default)]
struct Lists {
    all: Vec<CertRevocationList<'static>>,
    /// There is a file, and none of its states could be read.
    broken: bool,
}

/// The lists of now; shared by all certificates of the process.
#[derive(Debug)]
pub struct Revocations {
    lists: ArcSwap<Lists>,
    changed: watch::Sender<()>,
    rejected: [AtomicU64; 2],
    untracked: [AtomicU64; 2],
}

impl Default for Revocations {
    fn default() -> Self {
        let (rejected, untracked) = Default::default();
        let changed = watch::Sender::new(());
        Self { lists: ArcSwap::default(), changed, rejected, untracked }
    }
}

impl Revocations {
    /// Takes the lists in `bytes`, PEM or DER, in place of those of before; none revokes nothing.
    ///
    /// # Errors
    ///
    /// When one cannot be read; then those of before stay in force.
    pub fn replace(&self, bytes: Option<&[u8]>) -> Result<(), ListError> {
        match bytes.map_or_else(|| Ok(Vec::new()), read) {
            Ok(all) => self.publish(Lists { all, broken: false }),
            Err(error) => {
                self.unreadable();
                return Err(error);
            }
        }
        Ok(())
    }

    /// There are lists that cannot be read: without older ones nobody can be told good.
    fn unreadable(&self) {
        if self.lists.load().all.is_empty() {
            self.publish(Lists { all: Vec::new(), broken: true });
        }
    }

    fn publish(&self, lists: Lists) {
        self.lists.store(Arc::new(lists));
        self.changed.send_replace(());
    }

    /// Tells whether a peer in a handshake may be taken.
    pub(crate) fn admit(
        &self,
        role: Role,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        roots: &RootCertStore,
    ) -> Result<(), Error> {
        let lists = self.lists.load();
        let refuse = |error: CertificateError| {
            role.of(&self.rejected).fetch_add(1, Ordering::Relaxed);
            Err(error.into())
        };
        if lists.broken {
            return refuse(CertificateError::UnknownRevocationStatus);
        }
        if lists.all.is_empty() {
            return Ok(());
        }
        match lists.verdict(role, (leaf, intermediates), roots) {
            Verdict::Good => Ok(()),
            Verdict::Revoked => refuse(CertificateError::Revoked),
            Verdict::Unknown => {
                role.of(&self.untracked).fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Completes once a certificate of a peer's chain is revoked; for an open connection.
    pub(crate) fn withdrawn(
        self: &Arc<Self>,
        role: Role,
        chain: Option<&[CertificateDer<'_>]>,
        roots: &Arc<RootCertStore>,
    ) -> impl Future<Output = Revoked> + Send + 'static + use<> {
        let (this, roots) = (Arc::clone(self), Arc::clone(roots));
        let chain: Vec<_> =
            chain.unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
        let mut changed = self.changed.subscribe();
        // Lists may have come between the handshake and now.
        changed.mark_changed();
        async move {
            let Some((leaf, intermediates)) = chain.split_first() else {
                return std::future::pending().await;
            };
            while changed.changed().await.is_ok() {
                let lists = this.lists.load_full();
                if lists.verdict(role, (leaf, intermediates), &roots) == Verdict::Revoked {
                    role.of(&this.rejected).fetch_add(1, Ordering::Relaxed);
                    return Revoked;
                }
            }
            std::future::pending().await
        }
    }
}

/// The file of the lists, which may change while we run.
#[derive(Debug)]
pub struct ListFile {
    path: PathBuf,
    /// What it held when it was looked at last, in short, or why that could not be told.
    seen: Option<Result<Option<[u8; 32]>, String>>,
}

impl ListFile {
    /// The file at `path`, not looked at yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Looks once, and puts the lists in force if the file has changed. Each of its states is
    /// told of once.
    pub async fn look(&mut self, revocations: &Revocations) {
        let bytes = read_file(&self.path).await;
        let short =
            |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| Sha256::digest(bytes).into());
        let now = bytes.as_ref().map(short).map_err(|error| chain(error));
        if self.seen.as_ref() == Some(&now) {
            return;
        }
        self.seen = Some(now);
        let there = matches!(bytes, Ok(Some(_)));
        let taken = match bytes {
            Ok(bytes) => revocations.replace(bytes.as_deref()),
            Err(error) => {
                revocations.unreadable();
                Err(error)
            }
        };
        let path = &self.path;
        match taken {
            Ok(()) if there => tracing::info!(?path, "lists of revoked certificates in force"),
            Ok(()) => tracing::info!(?path, "no file of revoked certificates: none is revoked"),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(?path, error, "lists of revoked certificates cannot be used");
            }
        }
    }

    /// Looks again and again, for ever.
    pub async fn follow(mut self, revocations: Arc<Revocations>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(&revocations).await;
        }
    }
}

/// The bytes of a file, if it is there.
async fn read_file(path: &std::path::Path) -> Result<Option<Vec<u8>>, ListError> {
    match tokio::fs::metadata(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ListError::File(error)),
        Ok(file) if file.len() > MAX_FILE => {
            return Err(ListError::Unreadable("it is too long".into()));
        }
        Ok(_) => {}
    }
    tokio::fs::read(path).await.map(Some).map_err(ListError::File)
}

fn read(bytes: &[u8]) -> Result<Vec<CertRevocationList<'static>>, ListError> {
    let unreadable = |why: String| ListError::Unreadable(why.into());
    let pem = CertificateRevocationListDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
    let mut ders: Vec<Vec<u8>> = pem
        .map_err(|error| unreadable(error.to_string()))?
        .iter()
        .map(|one| one.as_ref().to_vec())
        .collect();
    if ders.is_empty() && !bytes.trim_ascii().is_empty() {
        ders.push(bytes.to_vec());
    }
    let lists = ders.iter().map(|der| OwnedCertRevocationList::from_der(der).map(Into::into));
    lists.collect::<Result<_, _>>().map_err(|error| unreadable(error.to_string()))
}

impl Lists {
    fn verdict(
        &self,
        role: Role,
        chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        roots: &RootCertStore,
    ) -> Verdict {
        let verdicts = self.all.iter().map(|list| match role {
            Role::Client => ask(list, chain, roots, KeyUsage::client_auth),
            Role::Server => ask(list, chain, roots, KeyUsage::server_auth),
        });
        verdicts.fold(Verdict::Unknown, |all, one| match (all, one) {
            (Verdict::Revoked, _) | (_, Verdict::Revoked) => Verdict::Revoked,
            (Verdict::Good, _) | (_, Verdict::Good) => Verdict::Good,
            (Verdict::Unknown, Verdict::Unknown) => Verdict::Unknown,
        })
    }
}

/// What one list says. Lists are asked one by one: issuers may share their name, and then
/// only the key of the list tells whose it is.
fn ask<U: ExtendedKeyUsageValidator>(
    list: &CertRevocationList<'static>,
    (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    roots: &RootCertStore,
    usage: impl Fn() -> U,
) -> Verdict {
    let Ok(certificate) = EndEntityCert::try_from(leaf) else { return Verdict::Unknown };
    let algorithms = tls::provider().signature_verification_algorithms.all;
    let lists = [list];
    let verify = |depth, unknown| {
        let options =
            RevocationOptionsBuilder::new(&lists).map_err(|_| webpki::Error::UnknownIssuer)?;
        let options = options.with_depth(depth).with_status_policy(unknown).build();
        let now = within_life(leaf);
        let anchors = &roots.roots;
        let options = Some(options);
        certificate
            .verify_for_usage(algorithms, anchors, intermediates, now, usage(), options, None)
            .map(|_| ())
    };
    match verify(RevocationCheckDepth::Chain, UnknownStatusPolicy::Allow) {
        Err(webpki::Error::CertRevoked) => Verdict::Revoked,
        Err(_) => Verdict::Unknown,
        Ok(()) => match verify(RevocationCheckDepth::EndEntity, UnknownStatusPolicy::Deny) {
            Ok(()) => Verdict::Good,
            Err(_) => Verdict::Unknown,
        },
    }
}

/// A moment in the life of a certificate, now if that is one: an open connection may outlive
/// the certificate it began with.
fn within_life(leaf: &CertificateDer<'_>) -> UnixTime {
    let now = UnixTime::now().as_secs();
    let parsed = x509_parser::parse_x509_certificate(leaf).ok();
    let life = parsed.map(|(_, leaf)| {
        let moment =
            |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        (moment(leaf.validity().not_before), moment(leaf.validity().not_after))
    });
    let now = life.map_or(now, |(from, to)| now.max(from).min(to));
    UnixTime::since_unix_epoch(Duration::from_secs(now))
}

/// A certificate of the peer's chain was revoked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the peer's certificate was revoked")]
pub struct Revoked;

/// Tells whether a TLS handshake failed because the peer's certificate was revoked.
#[must_use]
pub fn is_revoked(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    matches!(cause, Some(Error::InvalidCertificate(CertificateError::Revoked)))
}

impl Collector for Revocations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let families = [
            ("istio_crl_policy_rejections", "Peers whose certificates are revoked", &self.rejected),
            ("istio_crl_untracked_connections", "Peers of which no list speaks", &self.untracked),
        ];
        for (name, help, counts) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (role, reporter) in Role::ALL {
                let count = role.of(counts).load(Ordering::Relaxed);
                let labels = [("reporter", reporter)];
                let mut one = family.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
