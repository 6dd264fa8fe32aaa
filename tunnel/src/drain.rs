// SPDX-License-Identifier: Apache-2.0

//! The end, without a lost byte as far as time allows.
//!
//! Order: no new connections; HBONE peers are told to go elsewhere; sessions
//! go on until they end or the time is over. A new process may serve the same
//! pods meanwhile: the ports are shared.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::inpod::pods::Pods;

/// Completes once the process is told to end: by SIGTERM, SIGINT, or `end`.
pub async fn told(end: &CancellationToken) {
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    match signals {
        Ok((mut terminate, mut interrupt)) => tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = end.cancelled() => {}
        },
        Err(error) => {
            tracing::error!(%error, "signals cannot be heard");
            end.cancelled().await;
        }
    }
}

/// Ends all pods, and waits for their sessions, at most `patience`.
pub async fn drain(pods: &Pods, sessions: &TaskTracker, patience: Duration) {
    tracing::info!(?patience, "draining");
    pods.remove_all();
    sessions.close();
    let ended = tokio::time::timeout(patience, sessions.wait()).await;
    tracing::info!(all_ended = ended.is_ok(), cut = sessions.len(), "drained");
}
