// SPDX-License-Identifier: Apache-2.0

//! The leader's half of the stream with a follower.
//!
//! Owns: who may follow (the account of controllers), what a follower is told (decisions that
//! no object holds, keys of token issuers, who was given certificates, and how what it publishes
//! should look), and that its clients count among ours. A follower whose stream ends takes its clients along: they are waited for like own
//! ones that hung up. The other half is [`crate::lead::follow`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use routing::wire::messages::waymark::v1::{
    Followed, FollowedClient, Leading, LeadingResource, NodeReport, NodeReportAck,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::clients::{Client, Refusal};
use super::reports::Report;
use crate::app::{Hub, State};
use crate::ca::token::Bound;
use crate::lead::{Leader, words};

/// Path of the stream.
pub const FOLLOW: &str = "/waymark.v1.Replica/Follow";
/// Path of the method that takes the report of an agent from the follower it was made to.
pub const RELAY: &str = "/waymark.v1.Replica/Relay";
/// How often a follower hears of us if nothing changes.
pub const BEAT: Duration = Duration::from_secs(1);
/// How long a follower may take to read.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the leader sends.
pub type Words = ReceiverStream<Result<Leading, Status>>;

/// Which followers have said what their clients are: `namespace/pod` → open streams.
#[derive(Debug, Default)]
pub struct Followers {
    reported: Mutex<BTreeMap<String, u32>>,
}

impl Followers {
    /// Tells whether a follower has reported.
    pub fn reported(&self, pod: &str) -> bool {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).contains_key(pod)
    }

    /// The followers that have reported.
    pub fn list(&self) -> Vec<String> {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.keys().cloned().collect()
    }

    fn came(&self, pod: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        *reported.entry(pod.to_owned()).or_default() += 1;
    }

    fn went(&self, pod: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = reported.get_mut(pod) {
            *open -= 1;
            if *open == 0 {
                reported.remove(pod);
            }
        }
    }
}

/// The controller that calls.
async fn controller(hub: &Arc<Hub>, metadata: &MetadataMap) -> Result<Bound, Status> {
    let caller = super::authenticate(hub, metadata).await?;
    if !hub.accounts.controllers.contains(&caller.account()) {
        tracing::warn!(pod = caller.pod_name(), "a pod that is no controller wants to follow");
        return Err(Status::permission_denied("only controllers follow"));
    }
    if !hub.read().part.leads() {
        return Err(Status::unavailable("this controller does not lead"));
    }
    Ok(caller)
}

/// Takes the report of an agent that a follower passes on; it has proven whose it is.
///
/// # Errors
///
/// `Unauthenticated` and `PermissionDenied` for callers that are no controller, `Unavailable`
/// while this controller does not lead.
pub async fn relay(
    hub: Arc<Hub>,
    request: Request<NodeReport>,
) -> Result<Response<NodeReportAck>, Status> {
    controller(&hub, request.metadata()).await?;
    take_report(&hub, request.into_inner()).await
}

/// Has the engine take a report.
///
/// # Errors
///
/// `Unavailable` when this controller ends, or leads no longer.
pub async fn take_report(
    hub: &Arc<Hub>,
    said: NodeReport,
) -> Result<Response<NodeReportAck>, Status> {
    let (reply, answer) = oneshot::channel();
    let ended = || Status::unavailable("this controller ends, or leads no longer");
    let report = Report { node: said.node.clone(), said, reply };
    hub.reports.send(report).await.map_err(|_| ended())?;
    answer.await.map(Response::new).map_err(|_| ended())
}

/// Starts the stream of a follower.
///
/// # Errors
///
/// Those of [`relay`].
pub async fn follow(
    hub: &Arc<Hub>,
    request: Request<Streaming<Followed>>,
) -> Result<Response<Words>, Status> {
    let caller = controller(hub, request.metadata()).await?;
    let pod: Arc<str> = caller.pod_name().into();
    tracing::info!(follower = &*pod, "a controller follows");
    let (sender, words) = mpsc::channel(1);
    let follower =
        Follower { hub: Arc::clone(hub), pod, ids: HashMap::new(), sent: None, reported: false };
    tokio::spawn(follower.run(request.into_inner(), sender));
    Ok(Response::new(ReceiverStream::new(words)))
}

/// The revisions that a follower was told.
#[derive(Clone, Copy)]
struct Sent {
    config: u64,
    facts: u64,
    keys: u64,
    leaves: u64,
}

struct Follower {
    hub: Arc<Hub>,
    pod: Arc<str>,
    /// Number there → number here.
    ids: HashMap<u64, u64>,
    sent: Option<Sent>,
    reported: bool,
}

impl Follower {
    async fn run(
        mut self,
        mut requests: Streaming<Followed>,
        sender: mpsc::Sender<Result<Leading, Status>>,
    ) {
        let hub = Arc::clone(&self.hub);
        let mut revisions = hub.revision.subscribe();
        let mut facts = hub.facts.subscribe();
        let mut leader = hub.leader.subscribe();
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let mut due = true;
            tokio::select! {
                said = requests.next() => match said {
                    Some(Ok(said)) => {
                        self.take(said);
                        due = false;
                    }
                    Some(Err(_)) | None => break,
                },
                changed = revisions.changed() => if changed.is_err() { break },
                changed = facts.changed() => if changed.is_err() { break },
                changed = leader.changed() => if changed.is_err() { break },
                _ = beat.tick() => {}
                () = sender.closed() => break,
            }
            if *leader.borrow() != Leader::Me {
                break;
            }
            if due {
                let Ok(Ok(place)) = tokio::time::timeout(PATIENCE, sender.reserve()).await else {
                    break;
                };
                place.send(Ok(self.next(&hub.read())));
            }
        }
        let now = Instant::now();
        self.ids.values().for_each(|id| hub.clients.disconnect(*id, true, now));
        if self.reported {
            hub.followers.went(&self.pod);
        }
        tracing::info!(follower = &*self.pod, "follower gone");
    }

    /// What the follower has not been told.
    fn next(&mut self, state: &State) -> Leading {
        let (published, facts) = (&state.published, &state.stores.facts);
        let since = self
            .sent
            .and_then(|sent| Some((published.since(sent.config)?, facts.since(sent.facts)?)));
        let whole = since.is_none();
        let (names, known) = since.unwrap_or_else(|| (published.names(), facts.all()));
        let before = self.sent.filter(|_| !whole);
        let keys = before.is_none_or(|sent| sent.keys != facts.keys_revision());
        let (leaves, given) = self.hub.ledger.since(before.map_or(0, |sent| sent.leaves));
        self.sent = Some(Sent {
            config: published.revision(),
            facts: facts.revision(),
            keys: facts.keys_revision(),
            leaves,
        });
        let resource = |named: &super::config::Named| LeadingResource {
            kind: named.0.type_url().to_owned(),
            name: named.1.to_string(),
            mark: published.mark(named),
        };
        Leading {
            whole,
            revision: published.revision(),
            resources: names.iter().map(resource).collect(),
            facts: known.iter().map(|what| words::write(what, &facts.known(what))).collect(),
            keys: keys.then(|| words::write_issuers(facts)),
            leaves: words::write_leaves(given),
        }
    }

    /// Takes what the follower says of its clients.
    fn take(&mut self, said: Followed) {
        let (newest, now) = (*self.hub.revision.borrow(), Instant::now());
        self.hub.ledger.merge(words::read_leaves(said.leaves));
        for id in said.gone {
            if let Some(id) = self.ids.remove(&id) {
                self.hub.clients.disconnect(id, false, now);
            }
        }
        for client in said.clients {
            let there = client.id;
            let Some(client) = client_of(client, &self.pod) else { continue };
            let known = self.ids.remove(&there);
            if let Some(id) = self.hub.clients.followed(known, client, newest, now) {
                self.ids.insert(there, id);
            }
        }
        if !self.reported {
            self.reported = true;
            self.hub.followers.came(&self.pod);
            self.hub.clients.news.send_replace(());
        }
    }
}

/// A client of a follower; none if its role is not known here.
fn client_of(said: FollowedClient, follower: &Arc<str>) -> Option<Client> {
    let role = ["tunnel", "agent", "gateway"].into_iter().find(|role| *role == said.role)?;
    let refusal = |refused: routing::wire::messages::waymark::v1::FollowedRefusal| Refusal {
        kind: refused.kind,
        name: refused.name,
        reason: refused.reason,
    };
    Some(Client {
        role,
        pod: said.pod,
        node: said.node,
        address: said.address.parse().ok(),
        acked: said.acknowledged,
        owes_since: None,
        gone: said.gone,
        fresh: said.fresh,
        follows_roots: said.follows_roots,
        refused: said.refused.into_iter().map(refusal).collect(),
        via: Some(Arc::clone(follower)),
    })
}
