// SPDX-License-Identifier: Apache-2.0

//! Certificates of the identities that this process acts for.
//!
//! Owns: one certificate per identity in use, its renewal at half of its life,
//! and the TLS configurations made from it. Leaves signing to an
//! [`Authority`] and the check of peers to [`verify`].
//!
//! Keeps: an identity nobody holds is not renewed; while renewal fails the old
//! certificate serves until it expires, and then nothing does; a renewal cuts
//! no connection. What [`trust`] is told sets off the renewals that it needs.
//! Private keys are made here and never leave the process.
//!
//! Start at [`Credentials::hold`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use policy::identity::Identity;
use rand::Rng;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

pub use credential::{Credential, CredentialError};
use revocation::Revocations;
use tls::Material;
use trust::Trust;

mod credential;
pub mod revocation;
mod tls;
pub mod trust;
pub mod verify;

/// Who signs certificates.
pub trait Authority: Send + Sync + 'static {
    /// Has the certificate request `csr` (PEM) signed for `identity`.
    ///
    /// Gives PEM certificates: the leaf, intermediates, and all roots in the last element.
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, AuthorityError>>;

    /// What is told of roots between two answers; one that never tells anything tells nothing.
    fn trust(&self) -> Arc<Trust> {
        Arc::default()
    }
}

/// Why a certificate was not signed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthorityError(pub Arc<str>);

/// First wait after a failed request; doubles until [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);

/// Longest wait between requests.
const RETRY_MAX: Duration = Duration::from_secs(150);

/// Early renewals, one after the other, of a certificate that is not of the roots that were
/// told: a replica of the authority may hear of them late.
const EARLY: usize = 8;

/// Longest wait, by chance, before a renewal that news of roots set off.
const SPREAD: Duration = Duration::from_millis(500);

/// Requests under way at once; a node that starts must not storm the authority.
const PARALLEL_REQUESTS: usize = 8;

/// All certificates of this process; cloning is cheap.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

struct Inner {
    authority: Arc<dyn Authority>,
    runtime: Handle,
    requests: Semaphore,
    revocations: Arc<Revocations>,
    trust: Arc<Trust>,
    slots: Mutex<HashMap<Identity, Weak<Slot>>>,
}

/// State of one identity's certificate.
#[derive(Clone, Debug, Default)]
pub enum State {
    /// Asked for, not here yet.
    #[default]
    Initializing,
    /// Here; it may have expired since.
    Available(Arc<Credential>),
    /// Not signed, and no older one is valid.
    Unavailable(CredentialError),
}

#[derive(Debug)]
struct Slot {
    identity: Identity,
    state: watch::Sender<State>,
}

/// One holder's share in an identity's certificate; the last one to be dropped
/// ends its renewal.
#[derive(Clone, Debug)]
pub struct Held(Arc<Slot>);

impl Credentials {
    /// No certificates yet; requests to `authority` run on `runtime`.
    #[must_use]
    pub fn new(authority: Arc<dyn Authority>, runtime: Handle) -> Self {
        Self::checking(authority, runtime, Arc::default())
    }

    /// The same, for peers that must not be on the lists of `revocations`.
    #[must_use]
    pub fn checking(
        authority: Arc<dyn Authority>,
        runtime: Handle,
        revocations: Arc<Revocations>,
    ) -> Self {
        let requests = Semaphore::new(PARALLEL_REQUESTS);
        let (trust, slots) = (authority.trust(), Mutex::default());
        Self { inner: Arc::new(Inner { authority, runtime, requests, revocations, trust, slots }) }
    }

    /// What was told of roots; all certificates here go by it.
    #[must_use]
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.inner.trust)
    }

    /// Holds the certificate of `identity`; the first holder starts fetching it.
    #[must_use]
    pub fn hold(&self, identity: &Identity) -> Held {
        let mut slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(identity).and_then(Weak::upgrade) {
            return Held(slot);
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::new(Slot { identity: identity.clone(), state: watch::Sender::default() });
        slots.insert(identity.clone(), Arc::downgrade(&slot));
        let renewal = renew(Arc::clone(&self.inner), Arc::downgrade(&slot));
        self.inner.runtime.spawn(renewal);
        Held(slot)
    }

    /// The state of every identity in use, in the order of identity.
    #[must_use]
    pub fn states(&self) -> Vec<(Identity, State)> {
        let slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let live = slots.values().filter_map(Weak::upgrade);
        let mut states: Vec<_> =
            live.map(|slot| (slot.identity.clone(), slot.state.borrow().clone())).collect();
        states.sort_by(|a, b| a.0.cmp(&b.0));
        states
    }
}

impl Held {
    /// Whose certificate it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The certificate, if it is here and has not expired.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Credential>> {
        match &*self.0.state.borrow() {
            State::Available(credential) if credential.is_valid_at(SystemTime::now()) => {
                Some(Arc::clone(credential))
            }
            State::Available(_) | State::Initializing | State::Unavailable(_) => None,
        }
    }

    /// Waits for a valid certificate, at most `patience`. Cancel safe.
    ///
    /// # Errors
    ///
    /// The last failure of the authority, or that it has not answered.
    pub async fn wait(&self, patience: Duration) -> Result<Arc<Credential>, CredentialError> {
        if let Some(credential) = self.current() {
            return Ok(credential);
        }
        let mut states = self.0.state.subscribe();
        let valid = states.wait_for(|state| {
            matches!(state, State::Available(found) if found.is_valid_at(SystemTime::now()))
        });
        drop(tokio::time::timeout(patience, valid).await);
        match &*self.0.state.borrow() {
            State::Available(found) if found.is_valid_at(SystemTime::now()) => {
                Ok(Arc::clone(found))
            }
            State::Available(_) => Err(CredentialError::Expired),
            State::Initializing => Err(CredentialError::NotYet),
            State::Unavailable(error) => Err(error.clone()),
        }
    }

    /// Changes of the certificate, from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }
}

/// Fetches and renews one certificate until nobody holds it.
async fn renew(inner: Arc<Inner>, slot: Weak<Slot>) {
    let mut told = inner.trust.changes();
    let mut wait = RETRY_MIN;
    let mut early = 0;
    loop {
        let Some(identity) = slot.upgrade().map(|slot| slot.identity.clone()) else { return };
        told.mark_unchanged();
        let result = {
            let _turn = inner.requests.acquire().await;
            fetch(&inner, &identity).await
        };
        let Some(held) = slot.upgrade() else { return };
        let pause = match result {
            Ok(credential) => {
                let half = credential.until_half_life(SystemTime::now()).max(RETRY_MIN);
                let settled = credential.is_of_told_roots() || early >= EARLY;
                held.state.send_replace(State::Available(Arc::new(credential)));
                if settled {
                    (wait, early) = (RETRY_MIN, 0);
                    half
                } else {
                    early += 1;
                    half.min(longer(&mut wait))
                }
            }
            Err(error) => {
                tracing::warn!(%identity, error = %Chain(&error), "certificate was not signed");
                held.state.send_if_modified(|state| failed(state, error));
                longer(&mut wait)
            }
        };
        drop(held);
        if nap(pause, &slot, &mut told).await {
            (wait, early) = (RETRY_MIN, 0);
            let spread = SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(spread).await;
        }
    }
}

/// The wait for now, with some chance on top; the next one is twice as long.
fn longer(wait: &mut Duration) -> Duration {
    let pause = *wait;
    *wait = (pause * 2).min(RETRY_MAX);
    pause.mul_f64(1.0 + rand::rng().random_range(0.0..0.2))
}

/// Sleeps for `pause`, and ends early once nobody holds the slot, or once roots were told that
/// its certificate is not of; tells whether the latter.
async fn nap(pause: Duration, slot: &Weak<Slot>, told: &mut watch::Receiver<()>) -> bool {
    let step = Duration::from_secs(30);
    let until = tokio::time::Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        if left.is_zero() || slot.strong_count() == 0 {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(step)) => {}
            Ok(()) = told.changed() => {
                let Some(held) = slot.upgrade() else { return false };
                if let State::Available(credential) = &*held.state.borrow()
                    && !credential.is_of_told_roots()
                {
                    return true;
                }
            }
        }
    }
}

/// Notes a failure, unless a certificate is there that still serves.
fn failed(state: &mut State, error: CredentialError) -> bool {
    match state {
        State::Available(old) if old.is_valid_at(SystemTime::now()) => false,
        State::Available(_) | State::Initializing | State::Unavailable(_) => {
            *state = State::Unavailable(error);
            true
        }
    }
}

async fn fetch(inner: &Inner, identity: &Identity) -> Result<Credential, CredentialError> {
    let request = Material::new(identity)?;
    let chain = inner.authority.sign(identity, &request.csr).await;
    let chain = chain.map_err(CredentialError::Authority)?;
    let against = (Arc::clone(&inner.trust), Arc::clone(&inner.revocations));
    Credential::checking(identity, &chain, request.key, against)
}

/// Prints an error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
