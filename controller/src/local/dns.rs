// SPDX-License-Identifier: Apache-2.0

//! Cluster DNS of a local world.
//!
//! Owns: the names of Services, headless Services and pods below `cluster.local`, as data
//! ([`Zone`]); the answers; the server over UDP and TCP. There is nothing outside a world,
//! so every other name does not exist.
//!
//! Rule: Kubernetes DNS-based service discovery 1.1.0; RFC 2308 for negative answers.
//!
//! Start at [`Zone`] and [`serve`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

/// Suffix of all names.
pub const DOMAIN: &str = "cluster.local";

/// How long an answer may be kept, in seconds; short, as in CoreDNS's plug-in.
const TTL: u32 = 5;

/// Links of a chain of aliases that are followed.
const MAX_ALIASES: usize = 8;

/// Most bytes of an answer over UDP, whatever the client offers.
const MAX_UDP: usize = 1232;

/// Most TCP connections at once.
const MAX_CONNECTIONS: usize = 256;

/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// What is known of one name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Entry {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    alias: Option<String>,
    ports: Vec<(u16, String)>,
}

/// All names, in lower case without the last dot.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Zone {
    names: BTreeMap<String, Entry>,
}

impl Zone {
    /// Adds `addresses` to a name.
    pub fn add(&mut self, name: &str, addresses: &[IpAddr]) {
        let entry = self.entry(name);
        for address in addresses {
            match address {
                IpAddr::V4(v4) if !entry.v4.contains(v4) => entry.v4.push(*v4),
                IpAddr::V6(v6) if !entry.v6.contains(v6) => entry.v6.push(*v6),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
        }
    }

    /// Makes `name` another name of `target`, as a Service of type ExternalName does.
    pub fn add_alias(&mut self, name: &str, target: &str) {
        self.entry(name).alias = Some(target.trim_end_matches('.').to_ascii_lowercase());
    }

    /// Adds a named port of a Service: `_port._protocol.` before `service`.
    pub fn add_port(&mut self, service: &str, port_name: &str, protocol: &str, port: u16) {
        let name = format!("_{port_name}._{protocol}.{service}");
        self.entry(&name).ports.push((port, service.to_ascii_lowercase()));
    }

    /// The entry of `name`; names above it exist from then on, without records.
    fn entry(&mut self, name: &str) -> &mut Entry {
        let name = name.to_ascii_lowercase();
        let mut above = name.as_str();
        while let Some((_, rest)) = above.split_once('.') {
            if !self.names.contains_key(rest) {
                self.names.insert(rest.to_owned(), Entry::default());
            }
            above = rest;
        }
        self.names.entry(name).or_default()
    }

    /// Records for `name`, and whether the name exists at all.
    fn find(&self, name: &Name, kind: RecordType) -> (Vec<Record>, bool) {
        let mut records = Vec::new();
        let mut text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let mut owner = name.clone();
        for _ in 0..MAX_ALIASES {
            let Some(entry) = self.names.get(&text) else {
                // An alias that leads out of the zone was answered all the same.
                return (
                    records,
                    text != name.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
                );
            };
            match &entry.alias {
                Some(target) => {
                    let Ok(next) = Name::from_ascii(format!("{target}.")) else { break };
                    records.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(next.clone()))));
                    text.clone_from(target);
                    owner = next;
                    if kind == RecordType::CNAME {
                        break;
                    }
                }
                None => {
                    records.extend(entry.records(&owner, kind));
                    break;
                }
            }
        }
        (records, true)
    }
}

impl Entry {
    fn records(&self, owner: &Name, kind: RecordType) -> Vec<Record> {
        let record = |data| Record::from_rdata(owner.clone(), TTL, data);
        let all = kind == RecordType::ANY;
        let mut records = Vec::new();
        if all || kind == RecordType::A {
            records.extend(self.v4.iter().map(|address| record(RData::A((*address).into()))));
        }
        if all || kind == RecordType::AAAA {
            records.extend(self.v6.iter().map(|address| record(RData::AAAA((*address).into()))));
        }
        if all || kind == RecordType::SRV {
            for (port, target) in &self.ports {
                if let Ok(target) = Name::from_ascii(format!("{target}.")) {
                    records.push(record(RData::SRV(SRV::new(0, 100, *port, target))));
                }
            }
        }
        records
    }
}

/// The answer to `request`; none for what is no question at all.
#[must_use]
pub fn answer(zone: &Zone, request: &[u8]) -> Option<Message> {
    let request = Message::from_vec(request).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(request.queries.iter().cloned());
    let [query] = request.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return Some(reply);
    };
    if request.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return Some(reply);
    }
    let (records, exists) = zone.find(query.name(), query.query_type());
    reply.metadata.authoritative = true;
    if records.is_empty() {
        reply.add_authority(start_of_authority());
        if !exists {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
    }
    reply.add_answers(records);
    Some(reply)
}

/// Carries how long a negative answer may be kept.
fn start_of_authority() -> Record {
    let name = |text: &str| Name::from_ascii(text).unwrap_or_else(|_error| Name::root());
    let zone = name("cluster.local.");
    let data = SOA::new(
        name("ns.dns.cluster.local."),
        name("hostmaster.cluster.local."),
        1,
        7200,
        1800,
        86400,
        TTL,
    );
    Record::from_rdata(zone, TTL, RData::SOA(data))
}

/// Answers on `addresses`, UDP and TCP, until dropped.
///
/// # Errors
///
/// Those of binding; what single clients do wrong is theirs.
pub async fn serve(
    addresses: &[SocketAddr],
    zone: watch::Receiver<Arc<Zone>>,
) -> std::io::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for address in addresses {
        let udp = UdpSocket::bind(address).await?;
        let tcp = TcpListener::bind(address).await?;
        tasks.spawn(serve_udp(udp, zone.clone()));
        tasks.spawn(serve_tcp(tcp, zone.clone()));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn serve_udp(socket: UdpSocket, zone: watch::Receiver<Arc<Zone>>) {
    let mut buffer = vec![0; 4096];
    loop {
        // An ICMP error of an earlier answer may show up here; it concerns nobody else.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let request = buffer.get(..length).unwrap_or_default();
        let now = Arc::clone(&zone.borrow());
        let Some(reply) = answer(&now, request) else { continue };
        let limit =
            Message::from_vec(request).map_or(512, |request| usize::from(request.max_payload()));
        let bytes = match reply.to_vec() {
            Ok(bytes) if bytes.len() > limit.min(MAX_UDP) => reply.truncate().to_vec(),
            other => other,
        };
        if let Ok(bytes) = bytes {
            // Lost answers are asked for again.
            drop(socket.send_to(&bytes, client).await);
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: watch::Receiver<Arc<Zone>>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let zone = zone.clone();
        tokio::spawn(async move {
            // A client that breaks off needs no answer.
            drop(serve_connection(stream, &zone).await);
            drop(slot);
        });
    }
}

async fn serve_connection(
    mut stream: TcpStream,
    zone: &watch::Receiver<Arc<Zone>>,
) -> std::io::Result<()> {
    loop {
        let Ok(length) = tokio::time::timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let mut request = vec![0; usize::from(length?)];
        let Ok(read) = tokio::time::timeout(IDLE, stream.read_exact(&mut request)).await else {
            return Ok(());
        };
        read?;
        let now = Arc::clone(&zone.borrow());
        let Some(bytes) = answer(&now, &request).and_then(|reply| reply.to_vec().ok()) else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
        stream.write_all(&[length.to_be_bytes().as_slice(), &bytes].concat()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    fn zone() -> Zone {
        let mut zone = Zone::default();
        zone.add(
            "web.shop.svc.cluster.local",
            &["10.96.0.20".parse().unwrap(), "fd00:10:96::14".parse().unwrap()],
        );
        zone.add_port("web.shop.svc.cluster.local", "http", "tcp", 80);
        zone.add_alias("out.shop.svc.cluster.local", "web.shop.svc.cluster.local.");
        zone.add_alias("far.shop.svc.cluster.local", "example.org");
        zone
    }

    /// Code and record data of the answer.
    fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let reply = answer(&zone(), &message.to_vec().unwrap()).unwrap();
        assert_eq!(reply.metadata.id, message.metadata.id);
        let code = reply.metadata.response_code;
        assert_eq!(
            reply.answers.is_empty(),
            !reply.authorities.is_empty(),
            "a negative answer has its SOA"
        );
        (code, reply.answers.iter().map(|record| record.data.to_string()).collect())
    }

    #[test]
    fn names_are_answered_as_kubernetes_does() {
        use RecordType as T;
        let ok = ResponseCode::NoError;
        let cases: [(&str, T, ResponseCode, &[&str]); 11] = [
            ("web.shop.svc.cluster.local.", T::A, ok, &["10.96.0.20"]),
            ("WEB.shop.svc.cluster.local.", T::A, ok, &["10.96.0.20"]),
            ("web.shop.svc.cluster.local.", T::AAAA, ok, &["fd00:10:96::14"]),
            ("web.shop.svc.cluster.local.", T::TXT, ok, &[]),
            (
                "_http._tcp.web.shop.svc.cluster.local.",
                T::SRV,
                ok,
                &["0 100 80 web.shop.svc.cluster.local."],
            ),
            (
                "out.shop.svc.cluster.local.",
                T::A,
                ok,
                &["web.shop.svc.cluster.local.", "10.96.0.20"],
            ),
            ("far.shop.svc.cluster.local.", T::A, ok, &["example.org."]),
            ("shop.svc.cluster.local.", T::A, ok, &[]),
            ("none.shop.svc.cluster.local.", T::A, ResponseCode::NXDomain, &[]),
            (
                "web.shop.svc.cluster.local.shop.svc.cluster.local.",
                T::A,
                ResponseCode::NXDomain,
                &[],
            ),
            ("example.org.", T::A, ResponseCode::NXDomain, &[]),
        ];
        for (name, kind, code, records) in cases {
            let (have_code, have) = ask(name, kind);
            assert_eq!(have_code, code, "{name} {kind}");
            assert_eq!(have, records, "{name} {kind}");
        }
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        assert!(answer(&zone(), b"garbage").is_none());
        let reply = answer(&zone(), &Message::query().to_vec().unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr, "no question");
        let echo = reply.to_vec().unwrap();
        assert!(answer(&zone(), &echo).is_none(), "a response is not answered");
    }
}
