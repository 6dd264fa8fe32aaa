// SPDX-License-Identifier: Apache-2.0

//! What all workers share: the snapshot, and word of its changes.
//!
//! Keeps: the snapshot is replaced whole and read without a lock; a change of
//! policy is told apart from other changes, so that open sessions are woken
//! only when their permits may have ended.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use routing::snapshot::Snapshot;
use tokio::sync::watch;

/// Told which workloads are gone, by uid.
type OnGone = Box<dyn Fn(&[Arc<str>]) + Send + Sync>;

/// What all workers share.
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    revision: watch::Sender<u64>,
    policies: watch::Sender<u64>,
    synced: watch::Sender<bool>,
    on_gone: Mutex<Vec<OnGone>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("revision", &*self.revision.borrow()).finish_non_exhaustive()
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            snapshot: ArcSwap::default(),
            revision: watch::Sender::new(0),
            policies: watch::Sender::new(0),
            synced: watch::Sender::new(false),
            on_gone: Mutex::default(),
        }
    }
}

impl Shared {
    /// The snapshot of now; keep it as long as one decision takes.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The snapshot of now, to be kept.
    #[must_use]
    pub fn snapshot_full(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Replaces the snapshot. `policies` tells that permits may have changed,
    /// `gone` are uids of workloads to which old connections must not be used.
    pub fn publish(&self, snapshot: Arc<Snapshot>, policies: bool, gone: Vec<Arc<str>>) {
        let revision = snapshot.revision;
        self.snapshot.store(snapshot);
        if !gone.is_empty() {
            let listeners = self.on_gone.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.iter().for_each(|tell| tell(&gone));
        }
        self.revision.send_replace(revision);
        if policies {
            self.policies.send_replace(revision);
        }
    }

    /// Revisions of the snapshot, from now on.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Revisions in which policies changed, from now on.
    #[must_use]
    pub fn policies(&self) -> watch::Receiver<u64> {
        self.policies.subscribe()
    }

    /// Notes that the first full configuration is here.
    pub fn synced(&self) {
        self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    /// Whether the first full configuration is here.
    #[must_use]
    pub fn is_synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Has `tell` told of workloads that are gone, on the publisher's thread.
    pub fn on_gone(&self, tell: impl Fn(&[Arc<str>]) + Send + Sync + 'static) {
        let mut listeners = self.on_gone.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Box::new(tell));
    }
}
