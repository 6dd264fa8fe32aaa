// SPDX-License-Identifier: Apache-2.0

//! A stand-in for the tunnel: speaks ZDS with the agent, takes what is captured, and answers
//! probes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, Record};
use routing::wire::zds::{MAX_PACKET, Request, write_ack, write_hello};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tunnel::agent::capture::rules::TUNNEL_MARK;
use tunnel::inpod::proof::{Prover, Way};
use tunnel::sys::packet::PacketSocket;
use tunnel::sys::{self, NetworkNamespace, SocketSettings};

/// Serves the pods that an agent hands over, until dropped.
pub(crate) struct StandIn {
    tasks: Arc<Mutex<BTreeMap<Arc<str>, Vec<JoinHandle<()>>>>>,
    dialogue: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.dialogue.abort();
        for task in std::mem::take(&mut *self.tasks.lock().unwrap()).into_values().flatten() {
            task.abort();
        }
    }
}

impl StandIn {
    /// Connects again whenever the agent is replaced.
    pub(crate) fn start(socket: &Path) -> Self {
        let tasks = Arc::new(Mutex::new(BTreeMap::new()));
        let (path, served) = (socket.to_owned(), Arc::clone(&tasks));
        let dialogue = tokio::spawn(async move {
            loop {
                if let Ok(socket) = PacketSocket::connect(&path, MAX_PACKET) {
                    let _ended = Self::follow(&socket, &path, &served).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { tasks, dialogue }
    }

    async fn follow(
        socket: &PacketSocket,
        path: &Path,
        served: &Mutex<BTreeMap<Arc<str>, Vec<JoinHandle<()>>>>,
    ) -> io::Result<()> {
        socket.send(&write_hello(), None).await?;
        while let Some(mut packet) = socket.receive().await? {
            match Request::read(&packet.bytes).unwrap() {
                Request::Add(pod) => {
                    let namespace = NetworkNamespace::from_fd(packet.descriptors.remove(0))?;
                    let known = served.lock().unwrap().contains_key(&pod.uid);
                    if !known {
                        let tasks = serve(Arc::clone(&pod.uid), Arc::new(namespace), path);
                        served.lock().unwrap().insert(pod.uid, tasks);
                    }
                }
                Request::Delete(uid) => {
                    // Listeners end; what is carried goes on.
                    for task in served.lock().unwrap().remove(&uid).into_iter().flatten() {
                        task.abort();
                    }
                }
                Request::Keep(_) | Request::SnapshotSent => {}
            }
            socket.send(&write_ack(""), None).await?;
        }
        Ok(())
    }

    pub(crate) fn serves(&self, uid: &str) -> bool {
        self.tasks.lock().unwrap().contains_key(uid)
    }
}

/// Opens the listeners of one pod.
fn serve(uid: Arc<str>, namespace: Arc<NetworkNamespace>, socket: &Path) -> Vec<JoinHandle<()>> {
    let prover = Prover::beside(socket);
    let settings = SocketSettings { mark: TUNNEL_MARK, transparent: true, reuse_port: true };
    let mut tasks = Vec::new();
    for (port, way) in [(15001, Way::Outbound), (15006, Way::Inbound)] {
        let open = || sys::listen_tcp(sys::any_address(port), settings);
        let listener = TcpListener::from_std(namespace.enter(open).unwrap().unwrap()).unwrap();
        let (uid, prover, namespace) = (Arc::clone(&uid), prover.clone(), Arc::clone(&namespace));
        tasks.push(tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (uid, prover) = (Arc::clone(&uid), prover.clone());
                tokio::spawn(carry(stream, peer, way, uid, prover, Arc::clone(&namespace)));
            }
        }));
    }
    for ip in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(ip.parse().unwrap(), 15053);
        let plain = SocketSettings { mark: TUNNEL_MARK, ..SocketSettings::default() };
        let open = || (sys::bind_udp(address, plain), sys::listen_tcp(address, plain));
        let (udp, tcp) = namespace.enter(open).unwrap();
        let udp = UdpSocket::from_std(udp.unwrap()).unwrap();
        let tcp = TcpListener::from_std(tcp.unwrap()).unwrap();
        tasks.push(tokio::spawn(answer_names(udp, tcp, Arc::clone(&uid), prover.clone())));
    }
    tasks
}

async fn carry(
    mut stream: TcpStream,
    peer: SocketAddr,
    way: Way,
    uid: Arc<str>,
    prover: Prover,
    namespace: Arc<NetworkNamespace>,
) {
    let target = sys::original_destination(&stream, peer).unwrap();
    if way.is_probe(target) {
        let _refused = prover.take(&mut stream, way, &uid).await;
        return;
    }
    let inbound = way == Way::Inbound;
    let settings =
        SocketSettings { mark: TUNNEL_MARK, transparent: inbound, ..SocketSettings::default() };
    let source = inbound.then(|| SocketAddr::new(sys::canonical(peer).ip(), 0));
    let socket = namespace.enter(|| sys::client_tcp(target, source, settings)).unwrap().unwrap();
    if let Ok(mut onward) = socket.connect(target).await {
        let _ended = copy_bidirectional(&mut stream, &mut onward).await;
    }
}

async fn answer_names(udp: UdpSocket, tcp: TcpListener, uid: Arc<str>, prover: Prover) {
    let mut query = [0; 512];
    loop {
        tokio::select! {
            Ok((len, from)) = udp.recv_from(&mut query) => {
                if let Some(reply) = reply_to(&query[..len], &uid, &prover) {
                    let _gone = udp.send_to(&reply, from).await;
                }
            }
            Ok((mut stream, _)) = tcp.accept() => {
                let Ok(len) = stream.read_u16().await else { continue };
                let mut query = vec![0; len.into()];
                let Ok(_) = stream.read_exact(&mut query).await else { continue };
                if let Some(reply) = reply_to(&query, &uid, &prover) {
                    let len = u16::try_from(reply.len()).unwrap();
                    let _gone = stream.write_all(&[&len.to_be_bytes()[..], &reply].concat()).await;
                }
            }
        }
    }
}

fn reply_to(query: &[u8], uid: &str, prover: &Prover) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let name = query.queries.first()?.name().clone();
    let text = prover.text_record(&name.to_ascii(), uid)?;
    let mut reply = query;
    reply.metadata.message_type = MessageType::Response;
    reply.add_answer(Record::from_rdata(name, 0, RData::TXT(TXT::new(vec![text]))));
    reply.to_vec().ok()
}
