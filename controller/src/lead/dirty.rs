// SPDX-License-Identifier: Apache-2.0

//! What waits for a writer, and until when: a set of keys, so that no change is written twice.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::store::Key;

/// Keys that wait.
#[derive(Debug)]
pub struct Dirty<T> {
    keys: Mutex<BTreeSet<T>>,
    told: Notify,
}

impl<T> Default for Dirty<T> {
    fn default() -> Self {
        Self { keys: Mutex::default(), told: Notify::new() }
    }
}

impl<T: Ord> Dirty<T> {
    /// Adds keys.
    pub fn add(&self, more: impl IntoIterator<Item = T>) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let before = keys.len();
        keys.extend(more);
        if keys.len() > before {
            self.told.notify_one();
        }
    }

    /// Waits for keys and takes them all. Cancel safe.
    pub async fn take(&self) -> BTreeSet<T> {
        loop {
            let taken =
                std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.told.notified().await;
        }
    }
}

/// Waits for a time; for ever if there is none.
pub(crate) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What waits for the writers of Kubernetes.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Objects whose status changed.
    pub statuses: Dirty<Key>,
    /// Objects that run gateways.
    pub objects: Dirty<Key>,
    /// Pods by UID whose proven state changed.
    pub pods: Dirty<String>,
    /// Objects of which something is not served, or is now.
    pub not_served: Dirty<Key>,
    /// Nodes by name that changed, or of which something was reported.
    pub nodes: Dirty<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_taken_once_and_waited_for() {
        let dirty = std::sync::Arc::new(Dirty::default());
        dirty.add([2, 1, 2]);
        assert_eq!(dirty.take().await, BTreeSet::from([1, 2]));
        let waiting = tokio::spawn({
            let dirty = std::sync::Arc::clone(&dirty);
            async move { dirty.take().await }
        });
        tokio::task::yield_now().await;
        dirty.add([3]);
        assert_eq!(waiting.await.unwrap(), BTreeSet::from([3]));
    }
}
