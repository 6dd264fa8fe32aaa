// SPDX-License-Identifier: Apache-2.0

//! Answers to a pod's name queries, on port 15053 of its loopback.
//!
//! Owns sockets and messages. Leaves what a name stands for to [`names`] and
//! what is asked of the node's resolver to [`forward`].
//!
//! Keeps: a pod has a bounded number of queries under way; the answer is made
//! from the snapshot of that moment, and nothing is cached. A tunnel that ends
//! answers what has come to it: a client asks again only after seconds.
//!
//! Start at [`serve`]. Rule: ztunnel's `src/dns/server.rs`.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::seq::SliceRandom as _;
use routing::discovery::Workload;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::inpod::pods::Pod;
use crate::inpod::proof::NAME_SUFFIX;
use crate::metrics::dns::Transport;
use crate::proxy::Core;
use crate::sys::{self, SocketSettings};

mod forward;
mod names;

use names::{Found, Question};

/// Port that captured queries arrive on.
pub const PORT: u16 = 15053;

/// Life of an answer from the snapshot, in seconds.
const TTL: u32 = 30;

/// Longest query taken over UDP, in bytes.
const MAX_QUERY: usize = 4096;

/// Longest answer sent over UDP to a client that does not say more, in bytes.
const PLAIN_UDP: u16 = 512;

/// Silence after which a TCP connection is closed.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// Open sockets of one pod.
#[derive(Debug, Default)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Opens both kinds at `address`, in the namespace that the thread is in.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn bind(&mut self, address: SocketAddr, settings: SocketSettings) -> io::Result<()> {
        self.udp.push(sys::bind_udp(address, settings)?);
        self.tcp.push(sys::listen_tcp(address, settings)?);
        Ok(())
    }
}

/// Answers until the pod ends.
pub async fn serve(core: Rc<Core>, pod: Arc<Pod>, sockets: Sockets) {
    for socket in sockets.udp {
        let (core, pod) = (Rc::clone(&core), Arc::clone(&pod));
        tokio::task::spawn_local(async move {
            if let Err(error) = serve_udp(&core, &pod, socket).await {
                tracing::error!(%error, uid = %pod.uid, "name listener has failed");
            }
        });
    }
    for listener in sockets.tcp {
        let (core, pod) = (Rc::clone(&core), Arc::clone(&pod));
        tokio::task::spawn_local(async move {
            tokio::select! {
                result = serve_tcp(&core, &pod, listener) => if let Err(error) = result {
                    tracing::error!(%error, uid = %pod.uid, "name listener has failed");
                },
                () = pod.stopping() => {}
            }
        });
    }
}

async fn serve_udp(core: &Rc<Core>, pod: &Arc<Pod>, socket: UdpSocket) -> io::Result<()> {
    let socket = Rc::new(tokio::net::UdpSocket::from_std(socket)?);
    let mut buffer = vec![0; MAX_QUERY];
    let mut stopping = std::pin::pin!(pod.stopping());
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = &mut stopping => break,
        };
        match received {
            Ok((length, client)) => {
                take(core, pod, &socket, buffer.get(..length).unwrap_or_default(), client);
            }
            // An answer to a client that has gone comes back as an error here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    while let Ok((length, client)) = socket.try_recv_from(&mut buffer) {
        take(core, pod, &socket, buffer.get(..length).unwrap_or_default(), client);
    }
    Ok(())
}

/// Answers a datagram, if the pod's share has room for it.
fn take(
    core: &Rc<Core>,
    pod: &Arc<Pod>,
    socket: &Rc<tokio::net::UdpSocket>,
    query: &[u8],
    client: SocketAddr,
) {
    let Some(turn) = pod.share.query() else { return };
    let (asked, pod, socket) = (Rc::clone(core), Arc::clone(pod), Rc::clone(socket));
    let query = query.to_vec();
    core.spawn(async move {
        if let Some(answer) = answer(&asked, &pod, &query, Transport::Udp).await {
            // A client that does not wait asks again.
            drop(socket.send_to(&answer, client).await);
        }
        drop(turn);
    });
}

async fn serve_tcp(core: &Rc<Core>, pod: &Arc<Pod>, listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(turn) = pod.share.query() else { continue };
        let (core, pod) = (Rc::clone(core), Arc::clone(pod));
        tokio::task::spawn_local(async move {
            if let Err(error) = serve_stream(&core, &pod, stream).await {
                tracing::debug!(%error, "name connection has failed");
            }
            drop(turn);
        });
    }
}

async fn serve_stream(core: &Core, pod: &Pod, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        };
        let Ok(Ok(query)) = tokio::time::timeout(TCP_IDLE, read).await else { return Ok(()) };
        let Some(answer) = answer(core, pod, &query, Transport::Tcp).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        stream.write_all(&[&length.to_be_bytes(), &*answer].concat()).await?;
    }
}

/// The answer to a query, or none if it is not worth one.
async fn answer(core: &Core, pod: &Pod, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    let [question] = query.queries.as_slice() else {
        return encode(&refuse(&query, ResponseCode::FormErr), &query, transport);
    };
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let name = question.name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.');
    if name.ends_with(NAME_SUFFIX) {
        return encode(&prove(core, pod, &query, question, name), &query, transport);
    }
    let v6 = question.query_type() == RecordType::AAAA;
    let addresses = v6 || question.query_type() == RecordType::A;
    // A tunnel that has just started hears of its pods a little later than it serves them.
    let known = match addresses {
        true => core.local(pod).await,
        false => core.known(pod),
    };
    let asker = core.metrics.names.asked(known.as_deref(), question.query_type(), transport);
    let found = match addresses && query.metadata.op_code == OpCode::Query {
        true => {
            let Some(local) = known else {
                return encode(&refuse(&query, ResponseCode::ServFail), &query, transport);
            };
            look_up(core, &local, name, v6)
        }
        false => Found::Elsewhere,
    };
    match found {
        Found::Elsewhere => {
            let begun = Instant::now();
            let answer = forward::ask(core, pod, bytes, transport == Transport::Tcp).await;
            core.metrics.names.forwarded(&asker, begun.elapsed(), answer.is_some());
            answer.or_else(|| encode(&refuse(&query, ResponseCode::ServFail), &query, transport))
        }
        Found::Here { addresses, alias } => {
            encode(&respond(&query, question, addresses, alias)?, &query, transport)
        }
    }
}

fn look_up(core: &Core, local: &Workload, name: &str, v6: bool) -> Found {
    let question = Question { name, v6, local, domain: &core.settings.cluster_domain };
    names::find(&question, &core.shared.snapshot().discovery)
}

fn respond(
    query: &Message,
    question: &Query,
    mut addresses: Vec<IpAddr>,
    alias: Option<String>,
) -> Option<Message> {
    let mut response = reply(query);
    response.metadata.authoritative = true;
    let mut name = question.name().clone();
    if let Some(alias) = alias {
        let target = Name::from_ascii(format!("{alias}.")).ok()?;
        response.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
        name = target;
    }
    addresses.shuffle(&mut rand::rng());
    for address in addresses {
        let data = match address {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        response.add_answer(Record::from_rdata(name.clone(), TTL, data));
    }
    Some(response)
}

/// Answers the agent's probe of capture; other names below the suffix do not exist.
fn prove(core: &Core, pod: &Pod, query: &Message, question: &Query, name: &str) -> Message {
    match core.prover.text_record(name, &pod.uid) {
        Some(text) if question.query_type() == RecordType::TXT => {
            let mut response = reply(query);
            let data = RData::TXT(TXT::new(vec![text]));
            response.add_answer(Record::from_rdata(question.name().clone(), 0, data));
            response
        }
        Some(_) | None => refuse(query, ResponseCode::NXDomain),
    }
}

fn reply(query: &Message) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.queries.clone_from(&query.queries);
    response
}

fn refuse(query: &Message, code: ResponseCode) -> Message {
    let mut response = reply(query);
    response.metadata.response_code = code;
    response
}

/// The bytes of a response; one that is too long for the client's UDP says so.
fn encode(response: &Message, query: &Message, transport: Transport) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    let most = usize::from(query.max_payload().max(PLAIN_UDP));
    match transport {
        Transport::Udp if bytes.len() > most => response.truncate().to_vec().ok(),
        Transport::Udp | Transport::Tcp => Some(bytes),
    }
}
