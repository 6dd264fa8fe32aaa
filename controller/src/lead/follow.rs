// SPDX-License-Identifier: Apache-2.0

//! The follower's half of the stream with the leader.
//!
//! Owns: the connection to the leader that the Lease names, proven both ways (the leader by a
//! certificate of our roots, this controller by the token of its pod), what the leader is told
//! of our clients and of the certificates given here, and the passing on of reports. While there is no leader what it decided
//! last stays in force; clients are served on. The other half is
//! [`crate::serve::followers`].
//!
//! Start at [`run`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use routing::wire::chain;
use routing::wire::messages::waymark::v1::{
    Followed, FollowedClient, FollowedRefusal, Leading, NodeReport, NodeReportAck,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::{Leader, dirty, words};
use crate::app::Hub;
use crate::lead::following::Part;
use crate::serve::clients::Client;
use crate::serve::followers::{BEAT, FOLLOW, RELAY};

/// The name that every controller proves.
const NAME: &str = "istiod.istio-system.svc";
/// How long a connection may take, and a message on it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a lost leader is left alone.
const RETRY: Duration = Duration::from_millis(500);
/// How long news of clients are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// Largest message, in bytes: the names of everything that is published.
const MAX_MESSAGE: usize = 256 << 20;

/// What a leader said, and on which stream, by its number.
pub type Word = (u64, Leading);

/// Why the leader cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The own token cannot be read.
    #[error("own token {0} cannot be read")]
    Token(String, #[source] std::io::Error),
    /// The own token cannot be sent.
    #[error("own token {0} holds what no header may")]
    Header(String),
    /// The leader cannot be reached.
    #[error("leader cannot be reached")]
    Connect(#[source] tonic::transport::Error),
    /// The leader refuses.
    #[error("leader refuses: {0}")]
    Refused(String),
    /// What is published here differs from there for too long.
    #[error("what is published here differs from the leader's; everything is asked for anew")]
    Strays,
    /// The leader is silent.
    #[error("leader is silent")]
    Silent,
}

/// The way to the leader, while there is one.
#[derive(Debug, Default)]
pub struct Link {
    channel: Mutex<Option<Channel>>,
    stale: Notify,
}

impl Link {
    fn set(&self, channel: Option<Channel>) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// Ends the stream with the leader, so that the next one begins with everything.
    pub fn renew(&self) {
        self.stale.notify_waiters();
    }

    /// Tells whether the leader is connected.
    pub fn is_up(&self) -> bool {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Passes the report of an agent on to the leader.
    ///
    /// # Errors
    ///
    /// `Unavailable` when no leader is there to take it; the agent tries again.
    pub async fn relay(&self, hub: &Hub, said: NodeReport) -> Result<NodeReportAck, Status> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let channel = channel.ok_or_else(|| Status::unavailable("no controller leads"))?;
        let failed = |error: &FollowError| Status::unavailable(chain(error));
        let request = request(hub, said).map_err(|error| failed(&error))?;
        let mut grpc = Grpc::new(channel);
        let ready = tokio::time::timeout(PATIENCE, grpc.ready()).await;
        ready
            .map_err(|_| failed(&FollowError::Silent))?
            .map_err(|error| failed(&FollowError::Connect(error)))?;
        let codec = ProstCodec::<NodeReport, NodeReportAck>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(RELAY), codec);
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let answer = answer.map_err(|_| failed(&FollowError::Silent))?;
        // Whether this controller may pass on is no matter of the agent's.
        answer.map(tonic::Response::into_inner).map_err(|status| {
            tracing::warn!(%status, "the leader does not take a report");
            Status::unavailable("the leader does not take the report")
        })
    }
}

/// Follows whoever leads, for as long as the future lives.
pub async fn run(hub: Arc<Hub>, words: mpsc::Sender<Word>) {
    let mut leader = hub.leader.subscribe();
    let mut sessions = 0;
    loop {
        let now = leader.borrow_and_update().clone();
        let Leader::Other { address: Some(address), .. } = &now else {
            if let Leader::Other { name, address: None } = &now {
                tracing::warn!(leader = name, "the leader does not say where it is");
            }
            if leader.changed().await.is_err() {
                return;
            }
            continue;
        };
        sessions += 1;
        tokio::select! {
            ended = session(&hub, *address, &words, sessions) => {
                if let Err(error) = ended {
                    tracing::warn!(%address, error = chain(&error), "leader not followed");
                }
            }
            () = changed(&mut leader, &now) => {}
        }
        hub.link.set(None);
        tokio::time::sleep(RETRY).await;
    }
}

/// Waits until another leads.
async fn changed(leader: &mut watch::Receiver<Leader>, now: &Leader) {
    while leader.changed().await.is_ok() {
        if *leader.borrow() != *now {
            return;
        }
    }
}

/// Follows one leader until it is lost.
async fn session(
    hub: &Arc<Hub>,
    address: SocketAddr,
    words: &mpsc::Sender<Word>,
    number: u64,
) -> Result<(), FollowError> {
    let channel = connect(hub, address).await?;
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(FollowError::Connect)?;
    let mut clients = hub.clients.changed.subscribe();
    let mut followed = hub.followed.subscribe();
    let mut leaves = hub.ledger.changes();
    let (out, outgoing) = mpsc::channel(1);
    let mut told = Told { session: number, clients: BTreeMap::new(), leaves: 0 };
    // The queue is empty: it takes the first at once.
    let _taken = out.try_send(told.next(hub));
    let request = request(hub, ReceiverStream::new(outgoing))?;
    let codec = ProstCodec::<Followed, Leading>::default();
    let answer = grpc.streaming(request, PathAndQuery::from_static(FOLLOW), codec);
    let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| FollowError::Silent)?;
    let refused = |status: Status| FollowError::Refused(status.message().to_owned());
    let mut leading = answer.map_err(refused)?.into_inner();
    hub.link.set(Some(channel));
    tracing::info!(%address, "following the leader");
    let mut due = None;
    loop {
        tokio::select! {
            said = tokio::time::timeout(PATIENCE + BEAT, leading.message()) => {
                let said = said.map_err(|_| FollowError::Silent)?.map_err(refused)?;
                let Some(said) = said else { return Ok(()) };
                if words.send((number, said)).await.is_err() {
                    return Ok(());
                }
            }
            () = hub.link.stale.notified() => return Err(FollowError::Strays),
            Ok(()) = clients.changed() => { due.get_or_insert(Instant::now() + GATHER); }
            Ok(()) = leaves.changed() => { due.get_or_insert(Instant::now() + GATHER); }
            Ok(()) = followed.changed() => { due.get_or_insert(Instant::now() + GATHER); }
            () = dirty::until(due) => {
                due = None;
                let next = told.next(hub);
                if next == Followed::default() {
                    continue;
                }
                let sent = tokio::time::timeout(PATIENCE, out.send(next)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return Err(FollowError::Silent);
                }
            }
        }
    }
}

async fn connect(hub: &Hub, address: SocketAddr) -> Result<Channel, FollowError> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(hub.ca.now().bundle()))
        .domain_name(NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}"));
    let endpoint = endpoint.and_then(|endpoint| endpoint.tls_config(tls));
    let endpoint = endpoint.map_err(FollowError::Connect)?;
    let endpoint = endpoint
        .connect_timeout(PATIENCE)
        .http2_keep_alive_interval(PATIENCE)
        .keep_alive_timeout(PATIENCE)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(FollowError::Connect)
}

/// A request with the token of this pod, read anew: a kubelet renews it.
fn request<T>(hub: &Hub, message: T) -> Result<Request<T>, FollowError> {
    let path = &hub.settings.token_file;
    let name = || path.display().to_string();
    let token = std::fs::read_to_string(path).map_err(|error| FollowError::Token(name(), error))?;
    let value = format!("Bearer {}", token.trim()).parse();
    let value = value.map_err(|_| FollowError::Header(name()))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// What the leader was told of each client, and of certificates until which revision.
#[derive(Debug)]
struct Told {
    session: u64,
    clients: BTreeMap<u64, FollowedClient>,
    leaves: u64,
}

impl Told {
    /// What the leader has not been told.
    fn next(&mut self, hub: &Hub) -> Followed {
        let own = hub.clients.own();
        let state = hub.read();
        let leaders = |own: u64| match &state.part {
            Part::Follows(following) => following.leaders(self.session, own),
            Part::Leads { .. } => 0,
        };
        let all: BTreeMap<u64, FollowedClient> =
            own.into_iter().map(|(id, client)| (id, write(id, client, leaders))).collect();
        let before = std::mem::replace(&mut self.clients, all);
        let differs = |(id, client): &(&u64, &FollowedClient)| before.get(*id) != Some(*client);
        let changed = self.clients.iter().filter(differs);
        let gone = before.keys().filter(|id| !self.clients.contains_key(*id));
        let (newest, given) = hub.ledger.since(self.leaves);
        self.leaves = newest;
        Followed {
            clients: changed.map(|(_, client)| client.clone()).collect(),
            gone: gone.copied().collect(),
            leaves: words::write_leaves(given),
        }
    }
}

fn write(id: u64, client: Client, leaders: impl Fn(u64) -> u64) -> FollowedClient {
    let refusal = |refused: crate::serve::clients::Refusal| FollowedRefusal {
        kind: refused.kind,
        name: refused.name,
        reason: refused.reason,
    };
    FollowedClient {
        id,
        role: client.role.to_owned(),
        pod: client.pod,
        node: client.node,
        address: client.address.map(|address| address.to_string()).unwrap_or_default(),
        acknowledged: leaders(client.acked),
        fresh: client.fresh,
        follows_roots: client.follows_roots,
        gone: client.gone,
        refused: client.refused.into_iter().map(refusal).collect(),
    }
}
