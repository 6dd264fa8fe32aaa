// SPDX-License-Identifier: Apache-2.0

//! Makes the parts and runs the one task that owns stores and graph.
//!
//! Owns: [`State`] behind [`Hub`] (readers take it for a moment, the engine alone writes), the
//! loop that batches what came in while it was at work, and start order: the root is there,
//! everything there is was read, then clients are let in. Where objects come from and where
//! outputs go is [`cluster`]'s.

mod cluster;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::cluster::{Keeper, Sink, Source, Surroundings, Writers};
use crate::ca::authority::{Authority, InForce};
use crate::ca::ledger::Ledger;
use crate::ca::review::Tokens;
use crate::graph::Graph;
use crate::keys::fetch::Client;
use crate::keys::{self, Fetched, Pace};
use crate::output::{Family, Output, OutputKey};
use crate::provision::Writer;
use crate::serve::clients::Clients;
use crate::serve::config::Published;
use crate::serve::reports::{self, Report};
use crate::serve::server::Server;
use crate::settings::{Mesh, Settings};
use crate::source::folder::Folders;
use crate::source::kubernetes::Watches;
use crate::source::{Batch, Change, Problem};
use crate::status::board::Moment;
use crate::status::{Board, Body, Status, rejected};
use crate::steps::{self, Steps};
use crate::store::facts::PodFact;
use crate::store::{Kind, Name, ReadKey, Stores};
use crate::translate::shape;

/// Reports that wait for the engine.
const REPORTS: usize = 64;
/// How long the start waits for the keys of token issuers: proxies that run have them already.
const FIRST_KEYS: Duration = Duration::from_secs(5);
/// How often silent clients and waiting steps are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Everything the controller knows.
#[derive(Debug, Default)]
pub struct State {
    /// Objects and facts.
    pub stores: Stores,
    /// Tasks and their outputs.
    pub graph: Graph,
    /// Resources as they are served.
    pub published: Published,
    /// Statuses.
    pub board: Board,
    /// What the folders hold that cannot be read.
    pub problems: Vec<Problem>,
    /// Account, `namespace/name`, → the Gateways whose proxies run as it.
    pub gateways: BTreeMap<String, BTreeSet<Name>>,
    /// Ordered changes under way.
    pub steps: Steps,
    /// Revision at which the roots to trust were published last.
    pub roots_at: u64,
}

/// Accounts with a role of their own.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Tunnels, `namespace/name`; they also may ask for the certificates of their node's pods.
    pub tunnels: HashSet<String>,
    /// Agents, `namespace/name`.
    pub agents: HashSet<String>,
}

/// What all parts share.
#[derive(Debug)]
pub struct Hub {
    state: RwLock<State>,
    /// Newest revision of the published config.
    pub revision: watch::Sender<u64>,
    /// Connected clients.
    pub clients: Clients,
    /// Accounts with a role of their own.
    pub accounts: Accounts,
    /// Who knows which tokens are good.
    pub tokens: Tokens,
    /// What signs, and what everybody is to trust.
    pub ca: Arc<InForce>,
    /// Who was given a certificate of which root.
    pub ledger: Ledger,
    /// Start values.
    pub settings: Settings,
    /// What holds for the mesh.
    pub mesh: Mesh,
    /// The way of reports to the engine.
    pub reports: mpsc::Sender<Report>,
    /// Counters.
    pub metrics: crate::metrics::Metrics,
}

impl Hub {
    /// A look at the state; never held over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A directory cannot be made.
    #[error("cannot make {0}")]
    Directory(PathBuf, #[source] std::io::Error),
    /// The folders cannot be read or watched.
    #[error("folders cannot be read")]
    Folders(#[source] std::io::Error),
    /// There is no token key.
    #[error("no token key")]
    Token(#[source] crate::ca::token::TokenError),
    /// There is no root.
    #[error("no root certificate")]
    Root(#[source] crate::ca::root::RootError),
    /// The apiserver cannot be reached, or not be asked.
    #[error("apiserver cannot be asked")]
    Kubernetes(#[source] Box<kube::Error>),
    /// Keys of token issuers cannot be fetched at all.
    #[error("cannot set up TLS to fetch keys")]
    Keys(#[source] rustls::Error),
    /// Clients cannot be served.
    #[error("cannot serve")]
    Serve(#[source] crate::serve::server::ServeError),
    /// The admin socket cannot be opened.
    #[error("admin socket cannot be opened")]
    Admin(#[source] std::io::Error),
}

/// A controller that is ready to serve.
#[derive(Debug)]
pub struct App {
    /// What all parts share.
    pub hub: Arc<Hub>,
    engine: Engine,
    source: Source,
    keeper: Keeper,
    writers: Option<Writers>,
    inbox: mpsc::Receiver<Report>,
    issuers: Box<keys::Keeper>,
    server: Server,
    admin: crate::admin::Doors,
}

/// Reads everything there is and binds the listeners; nothing is served yet.
///
/// # Errors
///
/// See [`AppError`].
pub async fn start(settings: Settings) -> Result<App, AppError> {
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directories = [settings.ca_dir.as_ref(), settings.provision_dir.as_ref()];
    for directory in directories.into_iter().flatten() {
        std::fs::create_dir_all(directory)
            .map_err(|error| AppError::Directory(directory.clone(), error))?;
    }
    let (reports, inbox) = mpsc::channel(REPORTS);
    let Surroundings { tokens, authority, keeper, writers } =
        Box::pin(cluster::surroundings(&settings)).await?;
    let hub = Arc::new(hub(settings, tokens, authority, reports));
    let (mut source, sink) = match &writers {
        Some(writers) => {
            let watches = Box::pin(Watches::new(Arc::clone(&writers.cluster))).await;
            let watches = watches.map_err(|error| AppError::Kubernetes(Box::new(error)))?;
            (Source::Cluster(Box::new(watches)), Sink::Cluster(Arc::clone(&writers.outbox)))
        }
        None => {
            let mut folders =
                Folders::new(&hub.settings.all_folders()).map_err(AppError::Folders)?;
            // The first is a person's; the others belong to programs, which rename.
            if let Some(root) = hub.settings.folders.first() {
                folders = folders.patient_with(root.clone());
            }
            if let Some(state) = hub.settings.state_path() {
                let copies = state.with_file_name("last-good");
                folders = folders.remembering(copies).map_err(AppError::Folders)?;
            }
            let writer = hub.settings.provision_dir.clone().map(Writer::new);
            (Source::Folders(Box::new(folders)), writer.map_or(Sink::Nowhere, Sink::Directory))
        }
    };
    let mut engine = Engine { hub: Arc::clone(&hub), sink, keys_due: false };
    if let Some(path) = hub.settings.state_path() {
        engine.restore(reports::load(&path));
    }
    engine.begin_with(engine.roots());
    let first = Box::pin(source.next()).await?;
    engine.take(first);
    let client = Client::new().map_err(AppError::Keys)?;
    let mut issuers = Box::new(keys::Keeper::new(client, Pace::default()));
    engine.ask_keys(&mut issuers);
    for fetched in issuers.first(FIRST_KEYS).await {
        engine.fetched(fetched);
    }
    let admin = crate::admin::bind(&hub.settings).map_err(AppError::Admin)?;
    let server = crate::serve::server::bind(&hub).await.map_err(AppError::Serve)?;
    Ok(App { hub, engine, source, keeper, writers, inbox, issuers, server, admin })
}

impl App {
    /// Where clients are served.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.server.address()
    }

    /// Serves until `stop` ends.
    ///
    /// # Errors
    ///
    /// [`AppError::Folders`] when the folders can no longer be watched.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), AppError> {
        let serving = tokio::spawn(self.server.run(Arc::clone(&self.hub)));
        let answering = tokio::spawn(crate::admin::run(self.admin, Arc::clone(&self.hub)));
        let keeping = tokio::spawn(Box::pin(self.keeper.run(Arc::clone(&self.hub))));
        let stopped = CancellationToken::new();
        let writers = self.writers.map(|writers| {
            tokio::spawn(Box::pin(writers.run(Arc::clone(&self.hub), stopped.clone())))
        });
        let ended = tokio::select! {
            ended = Box::pin(self.engine.run(self.source, self.inbox, self.issuers)) => ended,
            () = stop => Ok(()),
        };
        serving.abort();
        answering.abort();
        keeping.abort();
        stopped.cancel();
        if let Some(writers) = writers
            && let Err(error) = writers.await
        {
            tracing::error!(%error, "writers ended in disorder");
        }
        ended
    }
}

fn hub(
    settings: Settings,
    tokens: Tokens,
    authority: Authority,
    reports: mpsc::Sender<Report>,
) -> Hub {
    let (mesh, ca) = (settings.mesh(), Arc::new(InForce::new(authority)));
    Hub {
        state: RwLock::default(),
        revision: watch::Sender::new(0),
        clients: Clients::new(settings.silence(), settings.max_clients),
        accounts: Accounts {
            tunnels: settings.trusted_node_accounts.iter().cloned().collect(),
            agents: settings.agent_accounts.iter().cloned().collect(),
        },
        tokens,
        metrics: crate::metrics::Metrics::of(Arc::clone(&ca)),
        ca,
        ledger: Ledger::default(),
        settings,
        mesh,
        reports,
    }
}

/// The one writer.
#[derive(Debug)]
struct Engine {
    hub: Arc<Hub>,
    sink: Sink,
    /// Other keys may be asked for than before.
    keys_due: bool,
}

impl Engine {
    async fn run(
        mut self,
        mut source: Source,
        mut inbox: mpsc::Receiver<Report>,
        mut issuers: Box<keys::Keeper>,
    ) -> Result<(), AppError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let hub = Arc::clone(&self.hub);
        let mut authorities = hub.ca.changes();
        loop {
            tokio::select! {
                Ok(()) = authorities.changed() => self.trust(),
                batch = source.next() => self.take(batch?),
                Some(report) = inbox.recv() => self.report(report),
                Some(fetched) = issuers.next() => self.fetched(fetched),
                () = hub.clients.changed.notified() => self.acknowledged(),
                _ = tick.tick() => self.acknowledged(),
            }
            self.ask_keys(&mut issuers);
        }
    }

    /// Takes what the source gave.
    fn take(&mut self, batch: Batch) {
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

    /// Lets `issuers` fetch what objects ask for now.
    fn ask_keys(&mut self, issuers: &mut keys::Keeper) {
        if std::mem::take(&mut self.keys_due) {
            let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
            let wanted = keys::wanted(&state.stores);
            state.stores.facts.retain_keys(|source| wanted.contains_key(source));
            issuers.want(&wanted);
        }
    }

    /// Takes the keys of an issuer, or why there are none.
    fn fetched(&mut self, fetched: Fetched) {
        self.write(|state| {
            let touched = state.stores.facts.set_keys(&fetched.source, fetched.result);
            touched.into_iter().collect()
        });
    }

    /// Takes proven pods from before a restart.
    fn restore(&self, pods: BTreeMap<String, PodFact>) {
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        for (uid, fact) in pods {
            state.stores.facts.set_pod(&uid, Some(fact));
        }
    }

    /// The roots in force, PEM each.
    fn roots(&self) -> Vec<String> {
        self.hub.ca.now().roots.iter().map(|root| root.pem.clone()).collect()
    }

    /// Takes the roots in force before anything else is known.
    fn begin_with(&self, roots: Vec<String>) {
        let mut state = self.hub.state.write().unwrap_or_else(PoisonError::into_inner);
        state.stores.facts.set_roots(roots);
    }

    /// Takes the roots in force.
    fn trust(&mut self) {
        let roots = self.roots();
        self.write(|state| state.stores.facts.set_roots(roots).into_iter().collect());
    }

    /// Takes what an agent says, keeps it, and answers.
    fn report(&mut self, report: Report) {
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
            let acked = hub.clients.acknowledged(revision, now);
            let drain = hub.settings.guard_drain();
            let moment = steps::Moment { acked, revision, now, drain };
            let (stores, steps) = (&mut state.stores, &mut state.steps);
            let moved = steps.settle(stores, &hub.mesh, &touched, moment);
            touched.extend(moved);
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
            hub.clients.sweep(now);
            let acked = hub.clients.acknowledged(state.published.revision(), now);
            let (refused, time) = (rejected::by_object(&hub.clients.list(now)), timestamp());
            let moment = Moment { acked, now: &time };
            state.board.rejected(refused, moment);
            state.board.acknowledged(moment);
            self.sink.tell(&mut state);
        }
        self.write(|_| Vec::new());
    }
}

impl State {
    /// Puts changed statuses on the board.
    fn tell(&mut self, changed: &BTreeSet<OutputKey>, hub: &Hub, revision: u64) {
        let acked = hub.clients.acknowledged(revision, Instant::now());
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
        let count = |listener: &crate::status::ListenerStatus| {
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

/// Which Gateways the proxies of an account serve.
fn gateways(stores: &Stores, mesh: &Mesh) -> BTreeMap<String, BTreeSet<Name>> {
    let mut found: BTreeMap<String, BTreeSet<Name>> = BTreeMap::new();
    for gateway in stores.all::<gateway_api::experimental::gateways::Gateway>() {
        let mut look = crate::store::lookup::Lookup::new(stores, mesh);
        if shape::class(&gateway.spec.gateway_class_name, &mut look).is_none() {
            continue;
        }
        let account = shape::of(gateway, &mut look).account;
        let meta = &gateway.metadata;
        let name = Name::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        found.entry(format!("{}/{account}", name.namespace)).or_default().insert(name);
    }
    found
}

/// The time, as conditions write it.
pub fn timestamp() -> String {
    let now = time::OffsetDateTime::now_utc();
    let whole = now.replace_nanosecond(0).unwrap_or(now);
    whole.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
