// SPDX-License-Identifier: Apache-2.0

//! Proves that a pod is captured, by connections through its rules.
//!
//! Owns: what is tried (outbound, inbound, name queries, in each family that
//! the pod has) and the judgement of the answers. Leaves answering to
//! [`crate::inpod::proof`] in the tunnel, and what follows to [`super::enrol`].
//!
//! Keeps: only an answer that the tunnel alone can give counts. A family by
//! which nothing can leave the pod needs no proof outbound.
//!
//! Start at [`Prober::prove`].

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::capture::Families;
use crate::inpod::proof::{ADDRESS_V4, ADDRESS_V6, Answer, Key, Nonce, PORT, Way, hex, name_of};
use crate::sys::NetworkNamespace;

/// Time for one probe, from its first packet to the answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(900);

/// Port of name servers.
const NAME_SERVER_PORT: u16 = 53;

/// What is probed.
#[derive(Debug)]
pub struct Subject<'a> {
    /// UID of the pod.
    pub uid: &'a str,
    /// The pod's namespace.
    pub namespace: &'a NetworkNamespace,
    /// The pod's addresses, for inbound probes; none when inbound is not captured.
    pub inbound: &'a [IpAddr],
    /// Name queries are captured.
    pub names: bool,
}

/// A probe that was not answered by the tunnel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unproven {
    /// What it tried.
    pub attempt: Attempt,
    /// What came of it.
    pub reason: Reason,
}

/// One thing that a probe tries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attempt {
    /// Which capture.
    pub way: Way,
    /// Through UDP instead of TCP.
    pub udp: bool,
    /// Where to.
    pub target: SocketAddr,
}

/// Why a probe proves nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// Nobody answered in time.
    Silence,
    /// The connection failed so.
    Failed(io::ErrorKind),
    /// Somebody answered who is not the tunnel.
    Stranger,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.attempt.way {
            Way::Outbound => "outbound",
            Way::Inbound => "inbound",
            Way::Names => "name query",
        };
        let how = if self.attempt.udp { "UDP" } else { "TCP" };
        let family = if self.attempt.target.is_ipv6() { "IPv6" } else { "IPv4" };
        write!(f, "{what} over {how}, {family}: ")?;
        match self.reason {
            Reason::Silence => f.write_str("no answer"),
            Reason::Failed(kind) => write!(f, "{kind}"),
            Reason::Stranger => f.write_str("answered by another than the tunnel"),
        }
    }
}

/// Asks for proofs; one for all pods of a node.
#[derive(Debug)]
pub struct Prober {
    key: Key,
    node: NetworkNamespace,
}

impl Prober {
    /// A prober that shares `key` with the tunnel and calls pods from `node`.
    #[must_use]
    pub fn new(key: Key, node: NetworkNamespace) -> Self {
        Self { key, node }
    }

    /// Tries every way at once; done within a second.
    ///
    /// # Errors
    ///
    /// Each attempt that proved nothing. A namespace that cannot be entered fails them all.
    pub async fn prove(&self, subject: &Subject<'_>) -> Result<(), Vec<Unproven>> {
        let attempts = attempts(subject);
        let probes = attempts.into_iter().map(|attempt| async move {
            let outcome = self.probe(subject, attempt).await;
            outcome.map_err(|reason| Unproven { attempt, reason })
        });
        let unproven: Vec<Unproven> =
            join_all(probes).await.into_iter().filter_map(Result::err).collect();
        if unproven.is_empty() { Ok(()) } else { Err(unproven) }
    }

    async fn probe(&self, subject: &Subject<'_>, attempt: Attempt) -> Result<(), Reason> {
        let nonce: Nonce = rand::random();
        let want = self.key.answer(attempt.way, subject.uid, &nonce);
        let asked = async {
            match (attempt.way, attempt.udp) {
                (Way::Outbound, _) => exchange(subject.namespace, attempt.target, &nonce).await,
                (Way::Inbound, _) => exchange(&self.node, attempt.target, &nonce).await,
                (Way::Names, true) => query(subject.namespace, attempt.target, &nonce).await,
                (Way::Names, false) => query_tcp(subject.namespace, attempt.target, &nonce).await,
            }
        };
        let answer = match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
            Err(_) => return Err(Reason::Silence),
            Ok(Err(error)) => return Err(Reason::Failed(error.kind())),
            Ok(Ok(answer)) => answer,
        };
        let proven = match attempt.way {
            Way::Outbound | Way::Inbound => answer == want,
            Way::Names => answer == hex(&want).as_bytes(),
        };
        if proven { Ok(()) } else { Err(Reason::Stranger) }
    }
}

/// All that must be proven of a pod.
fn attempts(subject: &Subject<'_>) -> Vec<Attempt> {
    let mut all = Vec::new();
    let v6 = Families::of(subject.namespace).is_ok_and(|families| families.v6);
    let reserved = [Some(IpAddr::V4(ADDRESS_V4)), v6.then_some(IpAddr::V6(ADDRESS_V6))];
    for ip in reserved.into_iter().flatten() {
        let Some(ip) = way_out(subject.namespace, ip) else { continue };
        let target = with_port(ip, PORT);
        all.push(Attempt { way: Way::Outbound, udp: false, target });
        if subject.names {
            let target = with_port(ip, NAME_SERVER_PORT);
            all.push(Attempt { way: Way::Names, udp: true, target });
            all.push(Attempt { way: Way::Names, udp: false, target });
        }
    }
    for ip in subject.inbound {
        let target = SocketAddr::new(*ip, PORT);
        all.push(Attempt { way: Way::Inbound, udp: false, target });
    }
    all
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// The address, if the pod has a route to it.
///
/// A pod whose only IPv6 address is its link's reaches no one by it once it is captured: such a
/// socket is bound to the link and cannot be led to the tunnel, so the kernel refuses it.
fn way_out(namespace: &NetworkNamespace, ip: IpAddr) -> Option<SocketAddr> {
    let target = SocketAddr::new(ip, PORT);
    let any: IpAddr = match target {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket sends nothing; it only looks up the route.
    let connect = || std::net::UdpSocket::bind((any, 0)).and_then(|s| s.connect(target));
    let reachable = namespace.enter(connect).is_ok_and(|outcome| outcome.is_ok());
    reachable.then_some(target)
}

async fn connect(namespace: &NetworkNamespace, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = namespace.enter(|| match target {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })??;
    // A reset at the end leaves no state behind, here or in connection tracking.
    socket.set_zero_linger()?;
    socket.connect(target).await
}

async fn exchange(
    namespace: &NetworkNamespace,
    target: SocketAddr,
    nonce: &Nonce,
) -> io::Result<Vec<u8>> {
    let mut stream = connect(namespace, target).await?;
    stream.write_all(nonce).await?;
    let mut answer = Answer::default();
    stream.read_exact(&mut answer).await?;
    Ok(answer.to_vec())
}

async fn query(
    namespace: &NetworkNamespace,
    target: SocketAddr,
    nonce: &Nonce,
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = namespace.enter(|| std::net::UdpSocket::bind((any, 0)))??;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(target).await?;
    let question = question(nonce)?;
    socket.send(&question.to_vec().map_err(io::Error::other)?).await?;
    let mut reply = vec![0; 1024];
    let len = socket.recv(&mut reply).await?;
    reply.truncate(len);
    text_of(&question, &reply)
}

async fn query_tcp(
    namespace: &NetworkNamespace,
    target: SocketAddr,
    nonce: &Nonce,
) -> io::Result<Vec<u8>> {
    let mut stream = connect(namespace, target).await?;
    let question = question(nonce)?;
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], &bytes].concat()).await?;
    let len = stream.read_u16().await?;
    let mut reply = vec![0; len.into()];
    stream.read_exact(&mut reply).await?;
    text_of(&question, &reply)
}

fn question(nonce: &Nonce) -> io::Result<Message> {
    let name = Name::from_ascii(format!("{}.", name_of(nonce))).map_err(io::Error::other)?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::TXT));
    Ok(message)
}

/// The text of the answer; empty when the reply has none, which proves nothing.
fn text_of(question: &Message, reply: &[u8]) -> io::Result<Vec<u8>> {
    let reply = Message::from_vec(reply).map_err(io::Error::other)?;
    if reply.metadata.id != question.metadata.id {
        return Ok(Vec::new());
    }
    let text = reply.answers.iter().find_map(|record| {
        let RData::TXT(text) = &record.data else { return None };
        Some(text.txt_data.concat())
    });
    Ok(text.unwrap_or_default())
}
