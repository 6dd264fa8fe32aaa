// SPDX-License-Identifier: Apache-2.0

//! Every pod its share of the tunnel.
//!
//! Owns how much one pod may have under way at once. What is beyond is refused
//! at once instead of queued, so a noisy pod cannot make its neighbours wait.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::settings::Limits;

/// What one pod may have under way; shared by all workers.
#[derive(Clone, Debug)]
pub struct Share {
    sessions: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    queries: Arc<Semaphore>,
}

/// One thing under way, until dropped.
pub type Turn = OwnedSemaphorePermit;

impl Share {
    /// The share of one pod.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let most = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            sessions: most(limits.pod_sessions),
            handshakes: most(limits.pod_handshakes),
            queries: most(limits.pod_queries),
        }
    }

    /// A session's turn; none if the pod has all it may have.
    #[must_use]
    pub fn session(&self) -> Option<Turn> {
        Arc::clone(&self.sessions).try_acquire_owned().ok()
    }

    /// A set-up's turn; none if the pod has all it may have.
    #[must_use]
    pub fn handshake(&self) -> Option<Turn> {
        Arc::clone(&self.handshakes).try_acquire_owned().ok()
    }

    /// A name query's turn; none if the pod has all it may have.
    #[must_use]
    pub fn query(&self) -> Option<Turn> {
        Arc::clone(&self.queries).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_share_is_refused_until_something_ends() {
        let limits = Limits { pod_sessions: 2, ..Limits::default() };
        let (noisy, other) = (Share::new(&limits), Share::new(&limits));
        let (first, _second) = (noisy.session().unwrap(), noisy.session().unwrap());
        assert!(noisy.session().is_none());
        assert!(other.session().is_some(), "a neighbour has its own share");
        drop(first);
        assert!(noisy.session().is_some());
    }
}
