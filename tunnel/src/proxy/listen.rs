// SPDX-License-Identifier: Apache-2.0

//! The listeners of a pod, and the one hand-over of a connection.
//!
//! Owns: opening the ports inside the pod, accepting, and giving each fresh
//! socket to the least loaded worker. Keeps: a pod that has its share under
//! way gets new connections closed at once; its neighbours do not notice.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Core, TunnelWorkers, inbound, outbound, passthrough};
use crate::dns;
use crate::inpod::pods::Pod;
use crate::metrics::Cause;
use crate::settings::Settings;
use crate::sys::{self, SocketSettings};

/// Which way the connections of a listener go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Captured connections that the pod opens: port 15001.
    Outbound,
    /// Captured plain connections to the pod: port 15006.
    Inbound,
    /// HBONE to the pod: port 15008.
    Hbone,
}

/// Open ports of one pod.
#[derive(Debug)]
pub struct Listeners {
    sessions: Vec<(Way, TcpListener)>,
    names: dns::Sockets,
}

impl Listeners {
    /// Opens all ports in the namespace that the thread is in.
    ///
    /// # Errors
    ///
    /// When one of them cannot be opened; then none is.
    pub fn bind(settings: &Settings) -> io::Result<Self> {
        let socket = SocketSettings {
            mark: settings.mark,
            reuse_port: settings.reuse_port,
            transparent: false,
        };
        // Half-open connections of a process that ends go to its successor. Without
        // the file, or where it may not be written, they are lost as before.
        drop(std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1"));
        let mut sessions = Vec::new();
        for (way, port) in [(Way::Outbound, 15001), (Way::Inbound, 15006), (Way::Hbone, 15008)] {
            let listener = sys::listen_tcp(sys::any_address(port), socket)?;
            // Accepted sockets inherit this.
            sys::tune_tcp(&listener, Some(settings.limits.keepalive))?;
            sessions.push((way, listener));
        }
        let mut names = dns::Sockets::default();
        if settings.names {
            names.bind((Ipv4Addr::LOCALHOST, dns::PORT).into(), socket)?;
            if sys::has_ipv6() {
                names.bind((Ipv6Addr::LOCALHOST, dns::PORT).into(), socket)?;
            }
        }
        Ok(Self { sessions, names })
    }
}

/// Starts to take the connections of a pod, on the least loaded worker.
pub fn start(workers: &TunnelWorkers, pod: &Arc<Pod>, listeners: Listeners) {
    let Some(home) = workers.least_loaded() else { return };
    for (way, listener) in listeners.sessions {
        let (workers, pod, home_index) = (workers.clone(), Arc::clone(pod), home.index());
        home.run(move |core| async move {
            let listener = match watch(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, uid = %pod.uid, ?way, "listener cannot be used");
                    return;
                }
            };
            let take = |(socket, peer)| {
                hand_over(&core, home_index, &workers, &pod, (way, socket, peer));
            };
            tokio::select! {
                never = accept_all(&listener, way, take) => match never {},
                () = pod.stopping() => {}
            }
            // Those that wait already would be reset with the listener.
            while let Ok(waiting) = accept_now(listener.get_ref()) {
                take(waiting);
            }
        });
    }
    let pod = Arc::clone(pod);
    home.run(move |core| dns::serve(core, pod, listeners.names));
}

fn watch(listener: TcpListener) -> io::Result<AsyncFd<OwnedFd>> {
    listener.set_nonblocking(true)?;
    sys::watched(listener.into())
}

async fn accept_all(
    listener: &AsyncFd<OwnedFd>,
    way: Way,
    take: impl Fn((TcpStream, SocketAddr)),
) -> Infallible {
    loop {
        match listener.async_io(Interest::READABLE, accept_now).await {
            Ok(accepted) => take(accepted),
            // The peer is gone already, or descriptors ran out for now.
            Err(error) => {
                tracing::debug!(%error, ?way, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn accept_now(listener: &OwnedFd) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    let peer = peer.ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((fd.into(), sys::canonical(peer)))
}

fn hand_over(
    core: &Rc<Core>,
    home: usize,
    workers: &TunnelWorkers,
    pod: &Arc<Pod>,
    (way, socket, peer): (Way, TcpStream, SocketAddr),
) {
    let Some(turn) = pod.share.session() else {
        core.metrics.process().refused.count(Cause::Overload);
        return;
    };
    let Some(worker) = workers.least_loaded() else { return };
    let (load, pod) = (worker.load(), Arc::clone(pod));
    let task = move |core: Rc<Core>| async move {
        let session = core.sessions.token();
        take(core, pod, way, socket, peer).await;
        drop((turn, load, session));
    };
    match worker.index() == home {
        true => drop(tokio::task::spawn_local(task(Rc::clone(core)))),
        false => worker.run(task),
    }
}

async fn take(core: Rc<Core>, pod: Arc<Pod>, way: Way, socket: TcpStream, peer: SocketAddr) {
    let stream = match tokio::net::TcpStream::from_std(socket) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "accepted socket cannot be used");
            return;
        }
    };
    match way {
        Way::Outbound => Box::pin(outbound::serve(&core, &pod, stream, peer)).await,
        Way::Inbound => Box::pin(passthrough::serve(&core, &pod, stream, peer)).await,
        Way::Hbone => Box::pin(inbound::serve(&core, &pod, stream, peer)).await,
    }
}
