// SPDX-License-Identifier: Apache-2.0

//! The roots that the controller tells of between two renewals.
//!
//! Owns: what was told last, in force for every certificate of the process at once, for both
//! directions and for the controller's own certificate. Leaves renewal to [`super`].
//!
//! Keeps: a root that was told is trusted beside those that came with a certificate, so a peer
//! with a leaf of the next root is taken before ours is of it; one that is told no longer goes
//! with the next renewal, which the news of it sets off. What cannot be read changes nothing.
//! Open connections live on.
//!
//! Rule: Istio's agent, `security/pkg/nodeagent/cache`, which adds the roots of `ProxyConfig`
//! to those of the authority.

use std::sync::Arc;

use arc_swap::ArcSwap;
use routing::stream::{DeltaDiscoveryResponse, Rejected};
use routing::wire::chain;
use routing::wire::roots::{ROOTS, read_roots};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::watch;

/// Why roots cannot be taken.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A text holds no certificate, or one that cannot be read.
    #[error("root {0} is no PEM certificate: {1}")]
    Unreadable(usize, Arc<str>),
}

/// Roots that were told; one per process.
#[derive(Debug)]
pub struct Trust {
    told: ArcSwap<Told>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Told {
    /// As certificates, the one that signs now first.
    roots: Vec<CertificateDer<'static>>,
    /// The same as text.
    pem: String,
}

impl Default for Trust {
    fn default() -> Self {
        Self { told: ArcSwap::default(), changed: watch::Sender::new(()) }
    }
}

impl Trust {
    /// Takes `roots`, PEM texts, in place of those told before; none takes them back.
    ///
    /// # Errors
    ///
    /// [`TrustError`]; those told before then stay in force.
    pub fn tell(&self, roots: &[String]) -> Result<(), TrustError> {
        let told = read(roots)?;
        if told.roots == self.told.load().roots {
            return Ok(());
        }
        tracing::info!(roots = told.roots.len(), "roots of the mesh were told");
        self.told.store(Arc::new(told));
        self.changed.send_replace(());
        Ok(())
    }

    /// Takes a response of the discovery stream about roots; gives what it refuses.
    pub fn apply(&self, response: &DeltaDiscoveryResponse) -> Vec<Rejected> {
        let refuse = |reason: String| vec![Rejected { name: ROOTS.into(), reason: reason.into() }];
        match read_roots(response) {
            Ok(None) => Vec::new(),
            Ok(Some(roots)) => match self.tell(&roots) {
                Ok(()) => Vec::new(),
                Err(error) => refuse(chain(&error)),
            },
            Err(error) => refuse(chain(&error)),
        }
    }

    /// The roots told last, in PEM, one after the other.
    pub(crate) fn pem(&self) -> String {
        self.told.load().pem.clone()
    }

    /// Tells of changes from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Tells whether an authority that answered with `own` roots knows of what was told: none
    /// of its roots was taken back, and it signs under the one that is to sign.
    pub(super) fn agrees(&self, own: &[CertificateDer<'static>]) -> bool {
        let told = self.told.load();
        told.roots.is_empty()
            || (told.roots.first() == own.first() && own.iter().all(|one| told.roots.contains(one)))
    }

    /// `own` roots, and those told beside them.
    pub(super) fn with(&self, own: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
        let told = self.told.load();
        let more = told.roots.iter().filter(|one| !own.contains(one));
        own.iter().chain(more).cloned().collect()
    }

    /// The store of `own` roots with those told beside them; none if there are no others.
    pub(super) fn beside(
        &self,
        own: &[CertificateDer<'static>],
        store: &RootCertStore,
    ) -> Option<Arc<RootCertStore>> {
        let told = self.told.load();
        let more: Vec<_> = told.roots.iter().filter(|one| !own.contains(one)).collect();
        if more.is_empty() {
            return None;
        }
        let mut all = store.clone();
        // Each was read when it was told.
        all.add_parsable_certificates(more.into_iter().cloned());
        Some(Arc::new(all))
    }
}

fn read(texts: &[String]) -> Result<Told, TrustError> {
    let mut roots = Vec::new();
    let mut pem = String::new();
    for (place, text) in texts.iter().enumerate() {
        let unreadable = |why: String| TrustError::Unreadable(place + 1, why.into());
        let before = roots.len();
        for root in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let root = root.map_err(|error| unreadable(error.to_string()))?;
            let mut store = RootCertStore::empty();
            store.add(root.clone()).map_err(|error| unreadable(error.to_string()))?;
            roots.push(root);
        }
        if roots.len() == before {
            return Err(unreadable("it holds no certificate".to_owned()));
        }
        pem.push_str(text.trim_end());
        pem.push('\n');
    }
    Ok(Told { roots, pem })
}

#[cfg(test)]
mod tests;
