// SPDX-License-Identifier: Apache-2.0

//! One client's delta stream.
//!
//! Owns the order in which families are sent: a policy goes before the workload that names it,
//! and is taken away after it. What was sent and answered is
//! [`routing::stream::server::Session`]'s.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use routing::stream::server::Session;
use routing::stream::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::clients::{Progress, Refusal};
use super::interest::{ClientView, Role};
use crate::app::{Hub, State};
use crate::ca::token::Bound;
use crate::output::Family;

/// Responses on their way to one client; config that changes meanwhile is sent once, later.
pub const QUEUE: usize = 16;

/// What a client is sent.
pub type Sender = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// One client on one connection.
#[derive(Debug)]
pub struct Stream {
    /// All that is shared.
    pub hub: Arc<Hub>,
    /// Who it is.
    pub caller: Bound,
    /// What it is.
    pub role: Role,
    /// Its number among the clients.
    pub id: u64,
    /// The way to it.
    pub sender: Sender,
    account: String,
    session: Session,
    at: u64,
}

impl Stream {
    /// A stream on which nothing was sent yet.
    pub fn new(hub: Arc<Hub>, caller: Bound, role: Role, id: u64, sender: Sender) -> Self {
        let account = caller.account();
        Self { hub, caller, role, id, sender, account, session: Session::default(), at: 0 }
    }

    /// Serves the client until it hangs up.
    pub async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut revisions = self.hub.revision.subscribe();
        loop {
            let open = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.take(request).await,
                    Some(Err(_)) | None => false,
                },
                changed = revisions.changed() => changed.is_ok() && self.follow().await,
                () = self.sender.closed() => false,
            };
            if !open {
                break;
            }
            self.tell();
        }
        let serves = self.serves();
        self.hub.clients.disconnect(self.id, serves, Instant::now());
        tracing::info!(pod = self.caller.pod_name(), role = self.role.as_str(), "client gone");
    }

    /// Tells whether the proxy goes on without its stream: its pod stays, and what it is for.
    fn serves(&self) -> bool {
        let state = self.hub.read();
        let stays = crate::ca::own_pod(&self.caller, &state.stores)
            .is_some_and(|pod| pod.metadata.deletion_timestamp.is_none());
        stays && Role::of(&self.caller, &state, &self.hub.accounts).is_some()
    }

    /// Takes a request; tells whether the client is still there.
    async fn take(&mut self, request: DeltaDiscoveryRequest) -> bool {
        let type_url = request.type_url.clone();
        if Family::of(&type_url).is_none_or(|family| !self.role.may_have(family)) {
            let text = format!("{type_url} is not for a {}", self.role.as_str());
            let _gone = self.sender.send(Err(Status::permission_denied(text))).await;
            return false;
        }
        let received = self.session.receive(request);
        for rejected in received.answered.iter().flatten() {
            tracing::warn!(
                pod = self.caller.pod_name(), kind = type_url, resource = %rejected.name,
                reason = %rejected.reason, "client refused a resource"
            );
        }
        if !received.subscribed {
            return true;
        }
        let response = {
            let state = self.hub.read();
            let view = ClientView {
                role: &self.role,
                account: &self.account,
                published: &state.published,
            };
            self.session.sync(&type_url, &view, state.published.revision())
        };
        if self.at == 0 {
            // Other families are still to be asked for; what they lack comes with their first answer.
            self.at = self.hub.read().published.revision();
        }
        self.send(response.into_iter().collect()).await
    }

    /// Sends what changed since the last time; tells whether the client is still there.
    async fn follow(&mut self) -> bool {
        let responses = {
            let hub = Arc::clone(&self.hub);
            let state = hub.read();
            let now = Role::of(&self.caller, &state, &hub.accounts);
            let Some(role) = now else { return false };
            let responses = if role == self.role { self.changes(&state) } else { None };
            self.role = role;
            let responses = responses.unwrap_or_else(|| self.everything(&state));
            self.at = state.published.revision();
            responses
        };
        self.send(responses).await
    }

    /// The responses for what is remembered to have changed; none if that is not known.
    fn changes(&mut self, state: &State) -> Option<Vec<DeltaDiscoveryResponse>> {
        let published = &state.published;
        let view = ClientView { role: &self.role, account: &self.account, published };
        let names = published.since(self.at)?;
        let of = |family: Family, there: Option<bool>| {
            let of_family = names.iter().filter(move |(of, _)| *of == family);
            of_family
                .filter(move |(_, name)| {
                    there.is_none_or(|there| published.get(family, name).is_some() == there)
                })
                .map(|(_, name)| name)
        };
        let revision = published.revision();
        let session = &mut self.session;
        let mut push = |family: Family, there: Option<bool>| {
            session.push(family.type_url(), of(family, there), &view, revision)
        };
        let mut responses = Vec::new();
        let policies =
            [Family::Authorization, Family::RequestAuthorization, Family::RequestAuthentication];
        for family in Family::ALL {
            let there = policies.contains(&family).then_some(true);
            responses.extend(push(family, there));
        }
        for family in policies {
            responses.extend(push(family, Some(false)));
        }
        Some(responses)
    }

    /// The responses for everything, whatever the client has.
    fn everything(&mut self, state: &State) -> Vec<DeltaDiscoveryResponse> {
        let view =
            ClientView { role: &self.role, account: &self.account, published: &state.published };
        let revision = state.published.revision();
        let session = &mut self.session;
        let sync = |family: Family| session.sync(family.type_url(), &view, revision);
        Family::ALL.into_iter().filter_map(sync).collect()
    }

    async fn send(&mut self, responses: Vec<DeltaDiscoveryResponse>) -> bool {
        for response in responses {
            if self.sender.send(Ok(response)).await.is_err() {
                return false;
            }
        }
        self.session.reached(self.at);
        true
    }

    /// Notes how far the client is.
    fn tell(&self) {
        let refused = self.session.rejections().map(|(kind, rejected)| Refusal {
            kind: kind.to_owned(),
            name: rejected.name.to_string(),
            reason: rejected.reason.to_string(),
        });
        let roots = Family::Roots.type_url();
        let refuses = self.session.rejections().any(|(kind, _)| kind == roots);
        let follows_roots = self.session.wants_all(roots) && !refuses;
        let progress = Progress {
            acked: self.session.acknowledged(),
            waiting: self.session.is_waiting(),
            follows_roots,
            refused: refused.collect(),
        };
        self.hub.clients.progress(self.id, progress, Instant::now());
    }
}
