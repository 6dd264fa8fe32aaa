// SPDX-License-Identifier: Apache-2.0

//! The one task that owns stores and graph.
//!
//! Owns: the loop that batches what came in while it was at work, and what it means to lead or
//! to follow. Who leads moves ordered changes on, fetches the keys of token issuers and lets
//! statuses out as clients acknowledge; it takes acknowledgements for full only once its
//! followers, and every ready proxy, were heard or waited for in vain. Who follows takes all
//! that from the leader; only the roots to trust each controller reads where they are kept.
//!
//! Start at [`Engine::run`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use routing::wire::chain;
use tokio::sync::{mpsc, watch};

use super::cluster::{Sink, Source};
use super::{AppError, Hub, State, gateways, timestamp};
use crate::ca::authority::Authority;
use crate::keys::{self, Fetched, Keeper, Wanted};
use crate::lead::follow::Word;
use crate::lead::following::{Following, Part};
use crate::lead::{Leader, words};
use crate::output::{Family, Output, OutputKey};
use crate::serve::reports::{self, Report};
use crate::source::{Batch, Change};
use crate::status::board::Moment;
use crate::status::{Body, ListenerStatus, Status, rejected};
use crate::steps;
use crate::store::facts::{Known, Objections, PodFact};
use crate::store::{Kind, ReadKey};
use crate::translate::pod;

/// How often silent clients and waiting steps are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long a start waits to hear who leads, and what was decided; a Lease that nobody renews
/// ends within this time.
const START: Duration = Duration::from_secs(20);
/// How long the start waits for the keys of token issuers: proxies that run have them already.
const FIRST_KEYS: Duration = Duration::from_secs(5);

/// What the engine is fed with.
#[derive(Debug)]
pub(super) struct Feeds {
    source: Source,
    inbox: mpsc::Receiver<Report>,
    words: mpsc::Receiver<Word>,
    issuers: Box<Keeper>,
    authorities: watch::Receiver<Arc<Authority>>,
    leader: watch::Receiver<Leader>,
    clients: watch::Receiver<()>,
    objections: watch::Receiver<Option<Objections>>,
    tick: tokio::time::Interval,
}

impl Feeds {
    /// Feeds from `source`, from agents, from the leader and from token issuers.
    pub(super) fn new(
        hub: &Hub,
        source: Source,
        (inbox, words): (mpsc::Receiver<Report>, mpsc::Receiver<Word>),
        issuers: Keeper,
    ) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leader = hub.leader.subscribe();
        leader.mark_changed();
        Self {
            source,
            inbox,
            words,
            issuers: Box::new(issuers),
            authorities: hub.ca.changes(),
            leader,
            clients: hub.clients.news.subscribe(),
            objections: hub.objections.subscribe(),
            tick,
        }
    }
}

/// The one writer.
#[derive(Debug)]
pub(super) struct Engine {
    hub: Arc<Hub>,
    sink: Sink,
    /// Other keys may be asked for than before.
    keys_due: bool,
    /// Keys are fetched here.
    fetches: bool,
}

impl Engine {
    /// One that knows nothing yet.
    pub(super) fn new(hub: Arc<Hub>, sink: Sink) -> Self {
        Self { hub, sink, keys_due: true, fetches: false }
    }

    /// Works until the source fails.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub(super) async fn run(mut self, mut feeds: Feeds) -> Result<(), AppError> {
        loop {
            self.step(&mut feeds).await?;
        }
    }

    /// Works until clients may be served: this controller leads, or knows what the leader
    /// decided, and keys were fetched. One that hears of no leader serves what objects say.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub(super) async fn enter(&mut self, feeds: &mut Feeds) -> Result<(), AppError> {
        let late = tokio::time::sleep(START);
        let mut late = std::pin::pin!(late);
        while !self.hub.read().part.may_serve() {
            tokio::select! {
                done = self.step(feeds) => done?,
                () = &mut late => {
                    tracing::error!(leader = ?*self.hub.leader.borrow(), "the leader was not heard; serving what objects say");
                    break;
                }
            }
        }
        self.ask_keys(&mut feeds.issuers);
        let late = tokio::time::sleep(FIRST_KEYS);
        let mut late = std::pin::pin!(late);
        while self.lacks_keys() {
            tokio::select! {
                done = self.step(feeds) => done?,
                () = &mut late => break,
            }
        }
        Ok(())
    }

    /// Tells whether some key set that objects ask for was never tried to be fetched.
    fn lacks_keys(&self) -> bool {
        let state = self.hub.read();
        let facts = &state.stores.facts;
        keys::wanted(&state.stores).keys().any(|source| facts.keys(source).is_none())
    }

    /// Takes one thing in.
    async fn step(&mut self, feeds: &mut Feeds) -> Result<(), AppError> {
        tokio::select! {
            batch = feeds.source.next() => self.take(batch?),
            Some(report) = feeds.inbox.recv() => self.report(report),
            Some(said) = feeds.words.recv() => self.heard(&said),
            Some(fetched) = feeds.issuers.next() => self.fetched(fetched),
            Ok(()) = feeds.authorities.changed() => self.trust(),
            Ok(()) = feeds.objections.changed() => {
                let now = feeds.objections.borrow_and_update().clone();
                self.write(|state| state.stores.facts.take_objections(now));
            }
            Ok(()) = feeds.leader.changed() => {
                let leads = *feeds.leader.borrow_and_update() == Leader::Me;
                if leads { self.lead() } else { self.follow() }
            }
            Ok(()) = feeds.clients.changed() => self.acknowledged(),
            _ = feeds.tick.tick() => self.acknowledged(),
        }
        self.ask_keys(&mut feeds.issuers);
        Ok(())
    }

    /// There are no other controllers.
    pub(super) fn alone(&self) {
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        state.part = Part::alone(Instant::now());
    }

    /// This controller decides from now on.
    fn lead(&mut self) {
        if self.hub.read().part.leads() {
            return;
        }
        tracing::info!("leading");
        let (hub, now) = (Arc::clone(&self.hub), Instant::now());
        self.write(|state| {
            let revision = state.published.revision();
            let drain = hub.settings.guard_drain();
            let moment = steps::Moment { acked: 0, revision, now, drain };
            state.steps.take_over(&state.stores, moment);
            state.part = Part::Leads { since: now, complete: false };
            Vec::new()
        });
        self.acknowledged();
    }

    /// Another decides from now on, or nobody.
    fn follow(&mut self) {
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.part.leads() {
            tracing::info!("leading no longer");
            self.hub.writes.send_replace(false);
            state.part = Part::Follows(Following::default());
        }
    }

    /// Takes what the leader decided and publishes.
    fn heard(&mut self, (session, said): &Word) {
        if let Part::Follows(following) = &self.hub.read().part
            && !following.continues(*session, said)
        {
            return;
        }
        let mut known: BTreeMap<&str, Known> = BTreeMap::new();
        for fact in &said.facts {
            match words::read(fact) {
                Ok(fact_known) => {
                    known.insert(&fact.what, fact_known);
                }
                Err(error) => {
                    tracing::error!(
                        what = fact.what,
                        error = chain(&error),
                        "decision of the leader not understood"
                    );
                }
            }
        }
        let issuers = said.keys.as_ref().map(words::read_issuers);
        self.hub.ledger.merge(words::read_leaves(said.leaves.clone()));
        self.write(|state| {
            if state.part.leads() {
                return Vec::new();
            }
            let facts = &mut state.stores.facts;
            let mut touched: Vec<_> =
                issuers.into_iter().flat_map(|issuers| facts.take_keys(issuers)).collect();
            if said.whole {
                let mut gone = facts.all();
                said.facts.iter().for_each(|fact| {
                    gone.remove(fact.what.as_str());
                });
                touched.extend(gone.iter().flat_map(|what| facts.take(what, Known::default())));
            }
            touched.extend(known.into_iter().flat_map(|(what, known)| facts.take(what, known)));
            touched
        });
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        let State { published, part, .. } = &mut *state;
        let Part::Follows(following) = part else { return };
        following.heard(*session, said, published);
        self.hub.followed.send_replace(following.contained());
    }

    /// Takes what the source gave.
    pub(super) fn take(&mut self, batch: Batch) {
        for problem in &batch.problems {
            if !self.hub.read().problems.contains(problem) {
                tracing::warn!(%problem, "file not in force as it stands");
            }
        }
        self.write(|state| {
            state.problems = batch.problems;
            let mut touched = Vec::new();
            for change in batch.changes {
                touched.extend(match change {
                    Change::Put(object) => state.stores.put(object),
                    Change::Gone(key) => state.stores.remove(&key),
                });
            }
            touched
        });
    }

    /// Lets `issuers` fetch what objects ask for now. Where there is a leader it alone fetches:
    /// its followers take what it got, so that all publish the same.
    fn ask_keys(&mut self, issuers: &mut Keeper) {
        let fetches = self.hub.read().part.leads() || !self.hub.link.is_up();
        let turned = std::mem::replace(&mut self.fetches, fetches) != fetches;
        if !std::mem::take(&mut self.keys_due) && !turned {
            return;
        }
        if !fetches {
            issuers.want(&Wanted::new());
            return;
        }
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        let wanted = keys::wanted(&state.stores);
        state.stores.facts.retain_keys(|source| wanted.contains_key(source));
        issuers.want(&wanted);
    }

    /// Takes the keys of an issuer, or why there are none.
    fn fetched(&mut self, fetched: Fetched) {
        if !self.fetches {
            // It was under way when the leader was found.
            return;
        }
        self.write(|state| {
            let touched = state.stores.facts.set_keys(&fetched.source, fetched.result);
            touched.into_iter().collect()
        });
    }

    /// The roots in force, PEM each.
    pub(super) fn roots(&self) -> Vec<String> {
        self.hub.ca.now().roots.iter().map(|root| root.pem.clone()).collect()
    }

    /// Takes the roots in force before anything else is known.
    pub(super) fn begin_with(&self, roots: Vec<String>) {
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        state.stores.facts.set_roots(roots);
    }

    /// Takes the roots in force.
    fn trust(&mut self) {
        let roots = self.roots();
        self.write(|state| state.stores.facts.set_roots(roots).into_iter().collect());
    }

    /// Takes proven pods from before a restart.
    pub(super) fn restore(&self, pods: BTreeMap<String, PodFact>) {
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        for (uid, fact) in pods {
            state.stores.facts.set_pod(&uid, Some(fact));
        }
    }

    /// Takes what an agent says, keeps it, and answers.
    fn report(&mut self, report: Report) {
        if !self.hub.read().part.leads() {
            // The caller hears that this controller leads no longer.
            return;
        }
        let mut changed = false;
        self.write(|state| {
            let touched = reports::apply(&report, state);
            changed = !touched.is_empty();
            touched
        });
        if let (true, Some(path)) = (changed, self.hub.settings.state_path()) {
            reports::save(&path, &self.hub.read().stores.facts);
        }
        let ack = reports::answer(&report, &self.hub.read().stores, &self.hub.mesh);
        let _caller_gone = report.reply.send(ack);
    }

    /// Changes the stores and brings everything that follows from it up to date.
    fn write(&mut self, change: impl FnOnce(&mut State) -> Vec<ReadKey>) {
        let began = Instant::now();
        let hub = Arc::clone(&self.hub);
        let revision = {
            let mut guard = hub.state.write().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *guard;
            let mut touched = change(state);
            let revision = state.published.revision();
            let now = Instant::now();
            let acked = state.acknowledged(&hub, now);
            let drain = hub.settings.guard_drain();
            let moment = steps::Moment { acked, revision, now, drain };
            let (stores, steps) = (&mut state.stores, &mut state.steps);
            let moved = match state.part {
                Part::Leads { .. } => steps.settle(stores, &hub.mesh, &touched, moment),
                Part::Follows(_) => steps.begin(stores, &hub.mesh, &touched, moment),
            };
            touched.extend(moved);
            hub.facts.send_if_modified(|known| {
                let facts = &state.stores.facts;
                let newest = (facts.revision(), facts.keys_revision());
                std::mem::replace(known, newest) != newest
            });
            if touched.is_empty() {
                return;
            }
            self.keys_due |= touched.iter().any(is_about_keys);
            let changed = state.graph.run(&state.stores, &hub.mesh, &touched);
            let revision = state.published.update(&state.graph.table, &changed);
            if changed.iter().any(|key| matches!(key, OutputKey::Config(Family::Roots, _))) {
                state.roots_at = revision;
            }
            if touched.iter().any(is_about_gateways) {
                state.gateways = gateways(&state.stores, &hub.mesh);
            }
            if let Part::Follows(following) = &mut state.part {
                following.published(&state.published, &changed);
                hub.followed.send_replace(following.contained());
            }
            hub.clients.owe(revision, now);
            state.tell(&changed, &hub, revision);
            self.sink.take(state, &touched, &changed);
            self.sink.tell(state);
            revision
        };
        hub.metrics.batch(began.elapsed());
        hub.revision.send_if_modified(|current| {
            let newer = *current != revision;
            *current = revision;
            newer
        });
    }

    /// Lets out the statuses that waited, and moves ordered changes on.
    fn acknowledged(&mut self) {
        let hub = Arc::clone(&self.hub);
        {
            let mut state = hub.state.write().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            hub.clients.sweep(now, |pod| state.stays(pod));
            state.complete(&hub, now);
            if let Part::Follows(following) = &mut state.part
                && following.strays(now)
            {
                hub.link.renew();
            }
            let acked = state.acknowledged(&hub, now);
            let known = rejected::Known {
                stores: &state.stores,
                table: &state.graph.table,
                mesh: &hub.mesh,
            };
            let refused = rejected::by_object(&hub.clients.refusing(now), known);
            let time = timestamp();
            let moment = Moment { acked, now: &time };
            state.board.rejected(refused, moment);
            state.board.acknowledged(moment);
            self.sink.tell(&mut state);
        }
        self.write(|_| Vec::new());
    }
}

impl State {
    /// The revision that every client has acknowledged which answers; nothing counts as
    /// acknowledged while that is not known.
    fn acknowledged(&self, hub: &Hub, now: Instant) -> u64 {
        match self.part.is_complete() {
            true => hub.clients.acknowledged(self.published.revision(), now),
            false => 0,
        }
    }

    /// Notes, once this controller leads, that all who are there were heard.
    fn complete(&mut self, hub: &Hub, now: Instant) {
        let Part::Leads { since, complete: false } = self.part else {
            let leads = self.part.leads() && *hub.leader.borrow() == Leader::Me;
            hub.writes.send_if_modified(|writes| std::mem::replace(writes, leads) != leads);
            return;
        };
        let missing = self.unheard(hub);
        if !missing.is_empty() && now.duration_since(since) <= hub.settings.silence() {
            return;
        }
        if !missing.is_empty() {
            tracing::warn!(?missing, "not heard since this controller leads; not waited for");
        }
        self.part = Part::Leads { since, complete: true };
        hub.writes.send_replace(*hub.leader.borrow() == Leader::Me);
    }

    /// Tells whether a pod, `namespace/name`, is there and not on its way out.
    fn stays(&self, pod: &str) -> bool {
        let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
        let found = self.stores.get::<Pod>(namespace, name);
        found.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    /// Ready pods of controllers and proxies that are not heard here, nor at a follower.
    pub fn unheard(&self, hub: &Hub) -> Vec<String> {
        let connected = hub.clients.pods();
        let me = format!("{}/{}", hub.settings.namespace, hub.settings.pod_name);
        let missing = |found: &Pod| {
            let meta = &found.metadata;
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let name = format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default());
            let account = format!("{namespace}/{}", pod::service_account(found));
            let accounts = &hub.accounts;
            let heard = if accounts.controllers.contains(&account) {
                name == me || hub.followers.reported(&name)
            } else if accounts.tunnels.contains(&account)
                || accounts.agents.contains(&account)
                || self.gateways.contains_key(&account)
            {
                connected.contains(&name)
            } else {
                true
            };
            (!heard && pod::is_ready(found)).then_some(name)
        };
        self.stores.all::<Pod>().filter_map(|found| missing(found)).collect()
    }

    /// Puts changed statuses on the board.
    fn tell(&mut self, changed: &BTreeSet<OutputKey>, hub: &Hub, revision: u64) {
        let acked = self.acknowledged(hub, Instant::now());
        let now = timestamp();
        for key in changed {
            let OutputKey::Status(object) = key else { continue };
            let wanted = match self.graph.table.get(key) {
                Some(Output::Status(status)) => Some(Arc::clone(status)),
                _ => None,
            };
            let wanted = wanted.map(|status| (self.counts(&status), status));
            let wanted = wanted.map(|(counts, status)| (status, counts));
            self.board.update(object, wanted, revision, Moment { acked, now: &now });
        }
    }

    /// Routes of each listener, if the status is that of a Gateway or ListenerSet.
    fn counts(&self, status: &Status) -> BTreeMap<String, usize> {
        let (Body::Gateway { listeners, .. } | Body::Set { listeners, .. }) = &status.body else {
            return BTreeMap::new();
        };
        let count = |listener: &ListenerStatus| {
            let listened = (status.key.clone(), Arc::from(listener.name.as_str()));
            (listener.name.clone(), self.graph.table.attached(&listened))
        };
        listeners.iter().map(count).collect()
    }
}

fn is_about_gateways(key: &ReadKey) -> bool {
    match key {
        ReadKey::Object(key) => matches!(key.kind, Kind::Gateway | Kind::GatewayClass),
        ReadKey::Index(..) | ReadKey::Fact(_) => false,
    }
}

fn is_about_keys(key: &ReadKey) -> bool {
    match key {
        ReadKey::Object(key) => key.kind == Kind::RequestAuthentication,
        ReadKey::Index(..) | ReadKey::Fact(_) => false,
    }
}
