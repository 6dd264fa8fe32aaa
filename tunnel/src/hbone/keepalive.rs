// SPDX-License-Identifier: Apache-2.0

//! PINGs that tell a dead connection from a silent one.

use std::future::poll_fn;

use h2::{Ping, PingPong};

use super::Limits;

/// The peer has not answered a PING in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("peer did not answer a ping in time")]
pub struct Silent;

/// Sends a PING every interval; returns once one is not answered in time.
///
/// Without a handle it waits for ever. A connection error ends it too: the
/// driver of the connection tells that better, so this just stops looking.
pub(super) async fn watch(ping: Option<PingPong>, limits: Limits) -> Silent {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(limits.ping_interval).await;
        if ping.send_ping(Ping::opaque()).is_err() {
            return std::future::pending().await;
        }
        let pong = poll_fn(|context| ping.poll_pong(context));
        match tokio::time::timeout(limits.ping_timeout, pong).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return Silent,
        }
    }
}
