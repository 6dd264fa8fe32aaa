// SPDX-License-Identifier: Apache-2.0

//! The tunnel's half of ZDS: the agent hands pods over.
//!
//! Owns: the connection to the agent, the first set of pods, and trying again
//! what failed. Leaves packets to `routing::wire::zds`.
//!
//! Keeps: pods that a new first set does not name are served no more; a pod
//! that cannot be served is answered with the reason, and tried again.
//!
//! Start at [`follow`]. Rule: ztunnel's `proto/zds.proto`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use routing::wire::zds::{self, Request};
use routing::wire::{WireError, chain};
use tokio::sync::watch;

use super::pods::Pods;
use crate::control::backoff::Backoff;
use crate::sys::NetworkNamespace;
use crate::sys::packet::{Packet, PacketSocket};

/// Time between tries to serve pods that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Why a session with the agent ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// There is no connection, or it broke.
    #[error("no connection to the agent")]
    Io(#[source] io::Error),
    /// The agent said something that it must not.
    #[error("packet of the agent cannot be read")]
    Packet(#[source] WireError),
    /// A pod was to be kept that is not served, or after the first set.
    #[error("pod {0} was to be kept, but was not here to keep")]
    Keep(Arc<str>),
    /// A pod came without exactly one namespace.
    #[error("pod {0} came with {1} descriptors, wanted 1")]
    Descriptors(Arc<str>, usize),
    /// The agent has ended the session.
    #[error("the agent has ended the session")]
    Ended,
}

/// Follows the agent at `socket` for ever; `ready` tells whether the first set
/// is here and every pod of it is served.
pub async fn follow(socket: &Path, pods: &Pods, ready: &watch::Sender<bool>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(15));
    loop {
        let mut session = Session::new(pods, ready);
        let why = match session.run(socket, &mut backoff).await {
            Ok(()) => AgentError::Ended,
            Err(why) => why,
        };
        ready.send_replace(false);
        pods.metrics().pending_pods.store(0, Ordering::Relaxed);
        tracing::warn!(error = %chain(&why), "no session with the agent");
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// One session with the agent.
struct Session<'a> {
    pods: &'a Pods,
    ready: &'a watch::Sender<bool>,
    /// Pods that the first set has named; none once it is complete.
    named: Option<HashSet<Arc<str>>>,
    /// Pods that could not be served yet.
    failed: HashMap<Arc<str>, (zds::Pod, Arc<NetworkNamespace>)>,
}

impl<'a> Session<'a> {
    fn new(pods: &'a Pods, ready: &'a watch::Sender<bool>) -> Self {
        Self { pods, ready, named: Some(HashSet::new()), failed: HashMap::new() }
    }

    async fn run(&mut self, socket: &Path, backoff: &mut Backoff) -> Result<(), AgentError> {
        let agent = PacketSocket::connect(socket, zds::MAX_PACKET).map_err(AgentError::Io)?;
        agent.send(&zds::write_hello(), None).await.map_err(AgentError::Io)?;
        let mut retry = tokio::time::interval(RETRY);
        loop {
            let packet = tokio::select! {
                packet = agent.receive() => packet.map_err(AgentError::Io)?,
                _ = retry.tick() => {
                    self.retry();
                    continue;
                }
            };
            let Some(packet) = packet else { return Ok(()) };
            let outcome = self.take(packet)?;
            let ack = zds::write_ack(&outcome);
            agent.send(&ack, None).await.map_err(AgentError::Io)?;
            backoff.reset();
        }
    }

    /// Serves one request; the text tells why it failed, if it did.
    fn take(&mut self, packet: Packet) -> Result<String, AgentError> {
        let mut outcome = String::new();
        match Request::read(&packet.bytes).map_err(AgentError::Packet)? {
            Request::Add(pod) => outcome = self.add(pod, packet)?,
            Request::Keep(uid) => match &mut self.named {
                Some(named) if self.pods.pod(&uid).is_some() => {
                    named.insert(uid);
                }
                Some(_) | None => return Err(AgentError::Keep(uid)),
            },
            Request::Delete(uid) => {
                self.failed.remove(&uid);
                self.pods.remove(&uid);
            }
            Request::SnapshotSent => self.complete(),
        }
        self.tell();
        Ok(outcome)
    }

    fn add(&mut self, pod: zds::Pod, packet: Packet) -> Result<String, AgentError> {
        let count = packet.descriptors.len();
        let [fd] = <[_; 1]>::try_from(packet.descriptors)
            .map_err(|_| AgentError::Descriptors(Arc::clone(&pod.uid), count))?;
        let netns = NetworkNamespace::from_fd(fd).map_err(AgentError::Io)?;
        if let Some(named) = &mut self.named {
            named.insert(Arc::clone(&pod.uid));
        }
        self.failed.remove(&pod.uid);
        let again = netns.try_clone().map_err(AgentError::Io)?;
        match self.pods.add(&pod, netns) {
            Ok(()) => Ok(String::new()),
            Err(error) => {
                tracing::warn!(uid = %pod.uid, %error, "pod cannot be served yet");
                self.failed.insert(Arc::clone(&pod.uid), (pod, Arc::new(again)));
                Ok(error.to_string())
            }
        }
    }

    /// All pods were named: those that were not are gone.
    fn complete(&mut self) {
        let Some(named) = self.named.take() else { return };
        for uid in self.pods.uids() {
            if !named.contains(&uid) {
                self.pods.remove(&uid);
            }
        }
        tracing::info!(pods = named.len(), "the agent has named all pods");
    }

    fn retry(&mut self) {
        let pods = self.pods;
        self.failed.retain(|_, (pod, netns)| {
            let served = netns.try_clone().and_then(|netns| pods.add(pod, netns));
            served.is_err()
        });
        self.tell();
    }

    fn tell(&self) {
        let pending = i64::try_from(self.failed.len()).unwrap_or(i64::MAX);
        self.pods.metrics().pending_pods.store(pending, Ordering::Relaxed);
        let ready = self.named.is_none() && self.failed.is_empty();
        self.ready.send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }
}
