// SPDX-License-Identifier: Apache-2.0

//! What the process listens on: as the snapshot asks, added and removed while running.
//!
//! Owns the bound sockets. Each port is accepted on the thread of the caller
//! and every socket handed, once, to the least loaded worker. A port that the
//! snapshot no longer asks for is closed and its connections drained; one that
//! cannot be bound is tried again and named in the log and in [`Listening`].

pub(crate) mod hbone;
mod hello;
mod proxy_protocol;
pub(crate) mod refused;
mod sniff;
mod tcp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use routing::ports::Transport;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tunnel::worker::Workers;

use crate::l4::udp;
use crate::worker::{Shared, Worker};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Between attempts at a port that cannot be bound.
const RETRY: Duration = Duration::from_secs(1);

/// Ports as they are; readable from anywhere.
#[derive(Debug, Default)]
pub(crate) struct Listening {
    bound: Mutex<BTreeMap<(u16, Transport), SocketAddr>>,
    failed: Mutex<BTreeMap<(u16, Transport), String>>,
}

impl Listening {
    /// Where each port that is served is bound.
    pub(crate) fn bound(&self) -> BTreeMap<(u16, Transport), SocketAddr> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ports that cannot be bound, and why.
    pub(crate) fn failed(&self) -> BTreeMap<(u16, Transport), String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A port that is served; closed when dropped.
struct Bound {
    stop: CancellationToken,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Keeps the bound ports those of the snapshot, until the process drains.
pub(crate) async fn follow(shared: Arc<Shared>, workers: Workers<Worker>) {
    let mut changes = shared.state.changes();
    let mut ports: BTreeMap<(u16, Transport), Bound> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let complete = reconcile(&shared, &workers, &mut ports);
        tokio::select! {
            () = shared.drain.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !complete => {}
        }
    }
}

/// Binds what is new and closes what is gone; false if something could not be bound.
fn reconcile(
    shared: &Arc<Shared>,
    workers: &Workers<Worker>,
    ports: &mut BTreeMap<(u16, Transport), Bound>,
) -> bool {
    let loaded = shared.state.load();
    let wanted: BTreeSet<_> =
        loaded.serving().ports().iter().map(|(port, transport, _)| (port, transport)).collect();
    ports.retain(|place, _| wanted.contains(place));
    let mut failed = BTreeMap::new();
    let mut bound = shared.listening.bound();
    bound.retain(|place, _| wanted.contains(place));
    for place in wanted {
        if ports.contains_key(&place) {
            continue;
        }
        let stop = shared.drain.child_token();
        match open(shared, workers, place, &stop) {
            Ok(address) => {
                tracing::info!(%address, transport = ?place.1, "listening");
                bound.insert(place, address);
                ports.insert(place, Bound { stop });
            }
            Err(error) => {
                tracing::error!(port = place.0, %error, "port cannot be bound");
                failed.insert(place, error.to_string());
            }
        }
    }
    let complete = failed.is_empty();
    *shared.listening.bound.lock().unwrap_or_else(PoisonError::into_inner) = bound;
    *shared.listening.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    complete
}

fn open(
    shared: &Arc<Shared>,
    workers: &Workers<Worker>,
    (port, transport): (u16, Transport),
    stop: &CancellationToken,
) -> io::Result<SocketAddr> {
    let address = SocketAddr::new(shared.settings.bind, port);
    match transport {
        Transport::Tcp => {
            let socket = socket(address, Type::STREAM, Protocol::TCP)?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from_std(socket.into())?;
            let address = listener.local_addr()?;
            let stop = stop.clone();
            tokio::spawn(accept(listener, port, Arc::clone(shared), workers.clone(), stop));
            Ok(address)
        }
        Transport::Udp => {
            let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
            let address = socket.local_addr()?.as_socket().unwrap_or(address);
            let stop = stop.clone();
            let worker = workers.least_loaded().ok_or_else(|| io::Error::other("no worker"))?;
            worker.run(move |worker| async move {
                match UdpSocket::from_std(socket.into()) {
                    Ok(socket) => udp::serve(worker, socket, port, stop).await,
                    Err(error) => tracing::error!(%error, "datagram socket cannot be used"),
                }
            });
            Ok(address)
        }
    }
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if kind == Type::STREAM {
        // A restarted process takes the port over from connections that linger.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepts until `stop`, and hands each socket to the least loaded worker.
async fn accept(
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
    workers: Workers<Worker>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: a pause lets some be closed.
                tracing::warn!(%error, port, "connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (Ok(stream), Some(worker)) = (stream.into_std(), workers.least_loaded()) else {
            continue;
        };
        let load = (worker.load(), shared.connections.enter());
        let refused = Arc::clone(&shared.refused);
        let stop = stop.clone();
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        worker.run(move |worker| async move {
            let serving = tcp::serve(worker, stream, remote, port, stop);
            if let Err(error) = Box::pin(serving).await {
                refused.note(error.cause(), &error, remote);
            }
            drop(load);
        });
    }
}

/// The address of a socket as others write it.
fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
