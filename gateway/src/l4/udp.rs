// SPDX-License-Identifier: Apache-2.0

//! UDP routes: one socket per client and port, so that answers find their way.
//!
//! A session is a client's address; it ends when nothing came either way for
//! [`crate::settings::GatewayLimits::udp_idle`], or when its permit is withdrawn. Datagrams are not in the
//! mesh's mutual TLS: they go to the endpoint as they are.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use policy::peer::Peer;
use routing::ports::Transport;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::exchange::{Arrival, Backend, Entry, To, Told, decide, ends, of_target};
use crate::l4::withdrawn;
use crate::reply::{Flag, Refusal};
use crate::state::Loaded;
use crate::worker::Worker;

/// Longest datagram.
const LONGEST: usize = 64 << 10;
/// Datagrams that wait for one session; more are dropped, as UDP may.
const QUEUE: usize = 64;

/// Serves one bound port until `drain`.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    socket: UdpSocket,
    port: u16,
    drain: CancellationToken,
) {
    let socket = Rc::new(socket);
    let mut sessions: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        let (length, client) = tokio::select! {
            () = drain.cancelled() => return,
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP answer to an earlier datagram shows up here.
                Err(error) => {
                    tracing::debug!(%error, port, "datagram was not received");
                    continue;
                }
            },
        };
        let datagram = buffer.get(..length).unwrap_or_default().to_vec();
        let Some(back) = push(sessions.get(&client), datagram) else { continue };
        sessions.retain(|_, queue| !queue.is_closed());
        if sessions.len() >= worker.shared.settings.limits.udp_sessions {
            tracing::debug!(port, "too many UDP sessions");
            continue;
        }
        let (queue, datagrams) = mpsc::channel(QUEUE);
        drop(queue.try_send(back));
        sessions.insert(client, queue);
        let session =
            Session { worker: Rc::clone(&worker), socket: Rc::clone(&socket), client, port };
        tokio::task::spawn_local(async move {
            if let Err(refusal) = session.run(datagrams).await {
                tracing::debug!(%refusal, %client, port, "UDP session refused");
            }
        });
    }
}

/// Hands a datagram to its session; gives it back if there is none.
fn push(session: Option<&mpsc::Sender<Vec<u8>>>, datagram: Vec<u8>) -> Option<Vec<u8>> {
    use mpsc::error::TrySendError::{Closed, Full};
    let Some(queue) = session else { return Some(datagram) };
    match queue.try_send(datagram) {
        Ok(()) | Err(Full(_)) => None,
        Err(Closed(datagram)) => Some(datagram),
    }
}

/// Bytes of a session so far.
#[derive(Default)]
struct Moved {
    /// From the client.
    received: Cell<u64>,
    /// To the client.
    sent: Cell<u64>,
}

struct Session {
    worker: Rc<Worker>,
    socket: Rc<UdpSocket>,
    client: SocketAddr,
    port: u16,
}

impl Session {
    async fn run(self, mut datagrams: mpsc::Receiver<Vec<u8>>) -> Result<(), Refusal> {
        let loaded = self.worker.load();
        let client = SocketAddr::new(self.client.ip().to_canonical(), self.client.port());
        let peer = Peer::plain(client);
        let told = Told::new(&peer, None, &self.worker.shared.settings.identity);
        let arrival = Arrival {
            peer: Arc::new(peer),
            told,
            local: self.local(&loaded),
            entry: Entry::Port(self.port),
            targets: Vec::new(),
            visited: None,
            tls: None,
        };
        let remote = client.ip();
        decide(&loaded, &arrival, remote, None).map_err(Refusal::Denied)?;
        let serving = loaded.serving();
        let place = serving.ports().at(self.port, Transport::Udp).ok_or(Refusal::NoListener)?;
        let listener = place.only().ok_or(Refusal::NoListener)?;
        let rules = serving.listener_rules(&listener.name);
        let rule = rules.and_then(|rules| rules.udp()).ok_or(Refusal::NoRoute)?;
        let chosen = routing::split::choose(&rule.backends, self.worker.roll());
        let backend = of_target(&loaded, &chosen.map_err(Refusal::NoBackend)?.target, &[])?;
        let Backend::Service { service, port, .. } = backend else { return Err(Refusal::NoRoute) };
        let none = || Refusal::NoEndpoint(service.key.clone());
        let candidates = self.worker.candidates(&loaded, service, port);
        let candidate =
            self.worker.pick(&candidates, (&**service, remote), &[]).ok_or_else(none)?;
        let address = routing::balance::address(&candidate.workload, Some(service), remote);
        let address = SocketAddr::new(address.ok_or_else(none)?, candidate.port);
        let upstream = connect(address).await;
        let upstream = upstream.map_err(|error| Refusal::Connect(error.to_string().into()))?;
        let to =
            To { service: Some(service), endpoint: Some(&candidate.workload), tunnelled: false };
        let ends = ends(&self.worker, &loaded, &arrival, to);
        let revision = loaded.snapshot.revision;
        let counted = self.worker.metrics.borrow_mut().connection(revision, &ends, Flag::None);
        counted.opened();
        let moved = Moved::default();
        let result = tokio::select! {
            biased;
            refusal = withdrawn(&self.worker, &arrival, revision) => Err(refusal),
            () = self.carry(&upstream, &mut datagrams, &moved) => Ok(()),
        };
        counted.closed(moved.received.get(), moved.sent.get());
        result
    }

    /// Where the datagrams came to: the socket of a port has no address of its own.
    fn local(&self, loaded: &Loaded) -> SocketAddr {
        let bound = self.socket.local_addr().unwrap_or(self.client);
        let mut own = loaded.own.addresses.iter().copied();
        let ip = own.find(|ip| ip.is_ipv4() == self.client.ip().to_canonical().is_ipv4());
        let ip = ip.filter(|_| bound.ip().is_unspecified());
        SocketAddr::new(ip.unwrap_or_else(|| bound.ip().to_canonical()), bound.port())
    }

    /// Carries datagrams both ways until nothing comes any more; counts the bytes.
    async fn carry(
        &self,
        upstream: &UdpSocket,
        datagrams: &mut mpsc::Receiver<Vec<u8>>,
        moved: &Moved,
    ) {
        let idle = self.worker.shared.settings.limits.udp_idle;
        let mut buffer = vec![0; LONGEST];
        let count = |cell: &Cell<u64>, length: usize| {
            cell.set(cell.get() + u64::try_from(length).unwrap_or_default());
        };
        loop {
            let step = tokio::time::timeout(idle, async {
                tokio::select! {
                    datagram = datagrams.recv() => datagram.map(Ok),
                    answer = upstream.recv(&mut buffer) => Some(Err(answer)),
                }
            });
            match step.await {
                Ok(Some(Ok(datagram))) => {
                    count(&moved.received, datagram.len());
                    // A datagram that cannot be sent is lost, as on any other link.
                    drop(upstream.send(&datagram).await);
                }
                Ok(Some(Err(Ok(length)))) => {
                    count(&moved.sent, length);
                    let answer = buffer.get(..length).unwrap_or_default();
                    drop(self.socket.send_to(answer, self.client).await);
                }
                // An ICMP answer: the endpoint is not there, or not yet.
                Ok(Some(Err(Err(_)))) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}
