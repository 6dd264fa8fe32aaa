// SPDX-License-Identifier: Apache-2.0

//! Hands pods to the node's tunnel: the serving side of ZDS.
//!
//! Owns: the Unix socket, the set of pods that the tunnel shall serve, and the
//! dialogue with each connected tunnel. Leaves when a pod is handed over to
//! [`super::enrol`].
//!
//! Keeps: a tunnel that connects learns the whole set first; then one request
//! is in flight at a time. Additions go to the newest connection alone, since
//! an older one belongs to a tunnel that is draining; removals go to all.
//!
//! Rule: Istio's ZDS (`zds.proto`); limits and order as in its node agent.
//!
//! Start at [`serve`].

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use routing::wire::zds::{MAX_PACKET, Pod, PodName, Request as Packet, read_ack, read_hello};
use std::os::fd::AsFd as _;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::sys::NetworkNamespace;
use crate::sys::packet::{PacketListener, PacketSocket};

/// Longest wait for the other side.
const DEADLINE: Duration = Duration::from_secs(5);

/// Shortest time between two connections that are taken.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(200);

/// Why a tunnel did not do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZdsError {
    /// No tunnel is connected; the next one will be told.
    #[error("no tunnel is connected")]
    NoTunnel,

    /// The tunnel answered with an error.
    #[error("tunnel: {0}")]
    Refused(String),

    /// The tunnel went away, or did not answer.
    #[error("the tunnel did not answer")]
    Lost,

    /// What came is not ZDS.
    #[error("the tunnel does not speak ZDS version 1")]
    Protocol,

    /// The socket failed.
    #[error("ZDS connection failed")]
    Socket(#[from] io::Error),
}

/// A pod as the tunnel is told of it.
#[derive(Clone, Debug)]
pub struct ServedPod {
    /// UID of the pod.
    pub uid: Arc<str>,
    /// Name, namespace and service account.
    pub who: PodName,
    /// Its network namespace; without it a tunnel that serves the pod already goes on.
    pub netns: Option<Arc<NetworkNamespace>>,
}

/// Handle on the set of served pods and the connected tunnels.
#[derive(Clone, Debug)]
pub struct Zds {
    shared: Arc<Mutex<Shared>>,
    connected: watch::Sender<Connected>,
}

/// Who is connected.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Connected {
    /// Tunnels that are connected and know all pods.
    pub tunnels: usize,
    /// Counts connections since the start; a new value means a new tunnel.
    pub generation: u64,
}

#[derive(Debug, Default)]
struct Shared {
    pods: BTreeMap<Arc<str>, ServedPod>,
    tunnels: Vec<Tunnel>,
    next: u64,
}

#[derive(Debug)]
struct Tunnel {
    id: u64,
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
struct Order {
    request: Request,
    done: oneshot::Sender<Result<(), ZdsError>>,
}

#[derive(Clone, Debug)]
enum Request {
    Add(ServedPod),
    Del(Arc<str>),
    SnapshotSent,
}

impl Zds {
    /// An empty set, and no tunnel.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::default(), connected: watch::Sender::new(Connected::default()) }
    }

    /// Puts a pod into the set without telling anyone: a tunnel that connects later learns it.
    pub fn restore(&self, pod: ServedPod) {
        self.with(|shared| shared.pods.insert(Arc::clone(&pod.uid), pod));
    }

    /// Tells tunnels that connect about a pod, and the newest one now; done when it serves it.
    ///
    /// # Errors
    ///
    /// The pod is in the set all the same, so a later tunnel may serve it.
    pub async fn add(&self, pod: ServedPod) -> Result<(), ZdsError> {
        let done = self.with(|shared| {
            shared.pods.insert(Arc::clone(&pod.uid), pod.clone());
            shared.tunnels.last().and_then(|tunnel| tunnel.order(Request::Add(pod)))
        });
        let done = done.ok_or(ZdsError::NoTunnel)?;
        done.await.unwrap_or(Err(ZdsError::Lost))
    }

    /// Takes a pod out of the set and tells every tunnel; done when they answered.
    ///
    /// # Errors
    ///
    /// The first refusal; a tunnel that is gone serves nothing and is no error.
    pub async fn delete(&self, uid: &Arc<str>) -> Result<(), ZdsError> {
        let waits: Vec<_> = self.with(|shared| {
            shared.pods.remove(uid);
            let order = |tunnel: &Tunnel| tunnel.order(Request::Del(Arc::clone(uid)));
            shared.tunnels.iter().filter_map(order).collect()
        });
        let mut outcome = Ok(());
        for done in waits {
            match done.await {
                Ok(Err(error @ ZdsError::Refused(_))) if outcome.is_ok() => outcome = Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        outcome
    }

    /// Follows who is connected.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<Connected> {
        self.connected.subscribe()
    }

    /// Runs `work` on the shared state; nothing in it awaits or panics.
    fn with<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers a tunnel and gives it all pods, so that no change falls in between.
    fn enter(&self) -> (u64, Vec<ServedPod>, mpsc::UnboundedReceiver<Order>) {
        self.with(|shared| {
            shared.next += 1;
            let (orders, receiver) = mpsc::unbounded_channel();
            shared.tunnels.push(Tunnel { id: shared.next, orders });
            (shared.next, shared.pods.values().cloned().collect(), receiver)
        })
    }

    fn leave(&self, id: u64) {
        self.with(|shared| shared.tunnels.retain(|tunnel| tunnel.id != id));
    }
}

impl Default for Zds {
    fn default() -> Self {
        Self::new()
    }
}

impl Tunnel {
    fn order(&self, request: Request) -> Option<oneshot::Receiver<Result<(), ZdsError>>> {
        let (done, wait) = oneshot::channel();
        self.orders.send(Order { request, done }).ok().map(|()| wait)
    }
}

/// Takes tunnels at `path` for as long as the future lives.
///
/// # Errors
///
/// When the path cannot be listened on.
pub async fn serve(zds: Zds, path: &Path) -> io::Result<()> {
    let listener = PacketListener::bind(path)?;
    let mut pace = tokio::time::interval(ACCEPT_INTERVAL);
    loop {
        pace.tick().await;
        let socket = match listener.accept(MAX_PACKET).await {
            Ok(socket) => socket,
            Err(error) => {
                warn!(%error, "cannot take a ZDS connection");
                continue;
            }
        };
        let zds = zds.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(&zds, &socket).await {
                warn!(%error, "ZDS connection ended");
            }
        });
    }
}

async fn converse(zds: &Zds, socket: &PacketSocket) -> Result<(), ZdsError> {
    let hello = receive(socket).await?.ok_or(ZdsError::Protocol)?;
    read_hello(&hello).map_err(|_| ZdsError::Protocol)?;
    let (id, pods, orders) = zds.enter();
    info!(connection = id, pods = pods.len(), "tunnel connected");
    let outcome = follow(zds, socket, pods, orders, id).await;
    zds.leave(id);
    zds.connected.send_modify(|connected| connected.tunnels = connected.tunnels.saturating_sub(1));
    info!(connection = id, "tunnel disconnected");
    outcome
}

async fn follow(
    zds: &Zds,
    socket: &PacketSocket,
    pods: Vec<ServedPod>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    id: u64,
) -> Result<(), ZdsError> {
    let mut snapshot = Ok(());
    for pod in pods {
        let uid = Arc::clone(&pod.uid);
        match ask(socket, &Request::Add(pod)).await {
            Err(ZdsError::Refused(reason)) => warn!(%uid, reason, "tunnel refused a pod"),
            outcome => snapshot = snapshot.and(outcome),
        }
    }
    // Counted even if the snapshot failed: the end of the connection counts down again.
    zds.connected.send_modify(|connected| {
        connected.tunnels += 1;
        connected.generation = id;
    });
    snapshot?;
    ask(socket, &Request::SnapshotSent).await?;
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(Order { request, done }) = order else { return Ok(()) };
                let outcome = ask(socket, &request).await;
                let goes_on = matches!(outcome, Ok(()) | Err(ZdsError::Refused(_)));
                // Whoever asked may have stopped waiting.
                let _unheard = done.send(outcome);
                if !goes_on {
                    return Err(ZdsError::Lost);
                }
            }
            packet = socket.receive() => return match packet? {
                None => Ok(()),
                Some(_) => Err(ZdsError::Protocol),
            },
        }
    }
}

/// One request and its answer.
async fn ask(socket: &PacketSocket, request: &Request) -> Result<(), ZdsError> {
    let bytes = encode(request);
    let netns = match request {
        Request::Add(pod) => pod.netns.as_deref(),
        Request::Del(_) | Request::SnapshotSent => None,
    };
    let descriptor = netns.map(NetworkNamespace::as_fd);
    let sent = tokio::time::timeout(DEADLINE, socket.send(&bytes, descriptor)).await;
    sent.map_err(|_| ZdsError::Lost)??;
    let answer = receive(socket).await?.ok_or(ZdsError::Lost)?;
    match read_ack(&answer).map_err(|_| ZdsError::Protocol)? {
        None => Ok(()),
        Some(reason) => Err(ZdsError::Refused(reason)),
    }
}

async fn receive(socket: &PacketSocket) -> Result<Option<Vec<u8>>, ZdsError> {
    let packet = tokio::time::timeout(DEADLINE, socket.receive()).await;
    let packet = packet.map_err(|_| ZdsError::Lost)??;
    Ok(packet.map(|packet| packet.bytes))
}

fn encode(request: &Request) -> Vec<u8> {
    let packet = match request {
        Request::Add(pod) if pod.netns.is_some() => {
            Packet::Add(Pod { uid: Arc::clone(&pod.uid), who: Some(pod.who.clone()) })
        }
        Request::Add(pod) => Packet::Keep(Arc::clone(&pod.uid)),
        Request::Del(uid) => Packet::Delete(Arc::clone(uid)),
        Request::SnapshotSent => Packet::SnapshotSent,
    };
    packet.write()
}

#[cfg(test)]
mod tests;
