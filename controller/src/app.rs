// SPDX-License-Identifier: Apache-2.0

//! Makes the parts and starts them.
//!
//! Owns: [`State`] behind [`Hub`] (readers take it for a moment, the [`engine`] alone writes) and
//! start order: the root is there, everything there is was read, it is known who leads and what
//! was decided, then clients are let in. Where objects come from and where outputs go is
//! [`cluster`]'s.

pub mod cluster;
mod engine;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::api::core::v1::Service;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::cluster::{Sink, Source, Surroundings};
use self::engine::{Engine, Feeds};
use crate::ca::authority::{Authority, InForce};
use crate::ca::ledger::Ledger;
use crate::ca::review::Tokens;
use crate::graph::Graph;
use crate::keys::fetch::Client;
use crate::keys::{Keeper, Pace};
use crate::lead::Leader;
use crate::lead::follow::{self, Link};
use crate::lead::following::Part;
use crate::provision::Writer;
use crate::serve::clients::Clients;
use crate::serve::config::Published;
use crate::serve::followers::Followers;
use crate::serve::reports::{self, Report};
use crate::serve::server::Server;
use crate::settings::{Mesh, Settings};
use crate::source::Problem;
use crate::source::folder::Folders;
use crate::source::kubernetes::Watches;
use crate::source::selected::Selected;
use crate::status::Board;
use crate::steps::Steps;
use crate::store::facts::Objections;
use crate::store::{Name, Stores};
use crate::translate::shape;

/// Reports that wait for the engine.
const REPORTS: usize = 64;
/// Words of the leader that wait for the engine.
const WORDS: usize = 16;

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
    /// Whether this controller leads.
    pub part: Part,
}

/// Accounts with a role of their own.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Tunnels, `namespace/name`; they also may ask for the certificates of their node's pods.
    pub tunnels: HashSet<String>,
    /// Agents, `namespace/name`.
    pub agents: HashSet<String>,
    /// Controllers, `namespace/name`; they may follow the one that leads.
    pub controllers: HashSet<String>,
}

/// What all parts share.
#[derive(Debug)]
pub struct Hub {
    state: RwLock<State>,
    /// Newest revision of the published config.
    pub revision: watch::Sender<u64>,
    /// Newest revisions of the facts: of pods and services, and of the keys of issuers.
    pub facts: watch::Sender<(u64, u64)>,
    /// Newest revision of the leader that is contained here, while another leads.
    pub followed: watch::Sender<u64>,
    /// Who leads, as the Lease says.
    pub leader: watch::Sender<Leader>,
    /// Whether this controller writes: it leads, and knows how far all clients are.
    pub writes: watch::Sender<bool>,
    /// What stands against objects of Gateways; none while this controller did not try to write
    /// them all.
    pub objections: watch::Sender<Option<Objections>>,
    /// Who follows this controller.
    pub followers: Followers,
    /// The way to the leader.
    pub link: Link,
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
    /// What is counted, as text.
    pub fn print_metrics(&self) -> String {
        let services = self.read().stores.all::<Service>().count();
        self.metrics.print(self.clients.own().len(), services)
    }

    /// A look at the state; never held over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The threads that it runs on cannot be set up.
    #[error("cannot set up threads")]
    Threads(#[source] std::io::Error),
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
    feeds: Feeds,
    keeping: JoinHandle<()>,
    following: JoinHandle<()>,
    writers: Option<JoinHandle<()>>,
    stopped: CancellationToken,
    server: Server,
    serving: Handle,
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
    let surroundings = Box::pin(cluster::surroundings(&settings)).await?;
    Box::pin(start_in(settings, surroundings)).await
}

/// The same, in surroundings that are known.
///
/// # Errors
///
/// See [`AppError`].
pub async fn start_in(settings: Settings, surroundings: Surroundings) -> Result<App, AppError> {
    let Surroundings { tokens, authority, origin, leader, writers } = surroundings;
    let (reports, inbox) = mpsc::channel(REPORTS);
    let hub = Arc::new(hub(settings, tokens, authority, (leader, reports)));
    let (mut source, sink) = match &writers {
        Some(writers) => {
            let watches = Watches::new(Arc::clone(&writers.cluster), &hub.mesh);
            let watches = Box::pin(watches).await;
            let watches = watches.map_err(|error| AppError::Kubernetes(Box::new(error)))?;
            (Source::Cluster(Box::new(watches)), Sink::Cluster(Arc::clone(&writers.outbox)))
        }
        None => folders(&hub)?,
    };
    let mut engine = Engine::new(Arc::clone(&hub), sink);
    if let Some(path) = hub.settings.state_path() {
        engine.restore(reports::load(&path));
    }
    if writers.is_none() && *hub.leader.borrow() == Leader::Me {
        engine.alone();
    }
    engine.begin_with(engine.roots());
    let first = Box::pin(source.next()).await?;
    engine.take(first);
    let keeping = tokio::spawn(Box::pin(origin.run(Arc::clone(&hub))));
    let stopped = CancellationToken::new();
    let writers = writers
        .map(|writers| tokio::spawn(Box::pin(writers.run(Arc::clone(&hub), stopped.clone()))));
    let (told, words) = mpsc::channel(WORDS);
    let following = tokio::spawn(Box::pin(follow::run(Arc::clone(&hub), told)));
    let client = Client::new().map_err(AppError::Keys)?;
    let pace = Pace { refresh: hub.settings.jwt_keys_refresh, ..Pace::default() };
    let issuers = Keeper::new(client, pace);
    let mut feeds = Feeds::new(&hub, source, (inbox, words), issuers);
    Box::pin(engine.enter(&mut feeds)).await?;
    let admin = crate::admin::bind(&hub.settings).map_err(AppError::Admin)?;
    let server = crate::serve::server::bind(&hub).await.map_err(AppError::Serve)?;
    let serving = Handle::current();
    Ok(App { hub, engine, feeds, keeping, following, writers, stopped, server, serving, admin })
}

/// Folders as the source, and a directory for what is made.
fn folders(hub: &Hub) -> Result<(Source, Sink), AppError> {
    let mut folders = Folders::new(&hub.settings.all_folders()).map_err(AppError::Folders)?;
    // The first is a person's; the others belong to programs, which rename.
    if let Some(root) = hub.settings.folders.first() {
        folders = folders.patient_with(root.clone());
    }
    if let Some(state) = hub.settings.state_path() {
        let copies = state.with_file_name("last-good");
        folders = folders.remembering(copies).map_err(AppError::Folders)?;
    }
    let writer = hub.settings.provision_dir.clone().map(Writer::new);
    let selected = Selected::new(hub.mesh.discovery.clone());
    Ok((
        Source::Folders(Box::new(folders), selected),
        writer.map_or(Sink::Nowhere, Sink::Directory),
    ))
}

impl App {
    /// Serves clients on threads of their own: those of `serving`.
    ///
    /// # Errors
    ///
    /// [`AppError::Threads`].
    pub fn served_by(self, serving: Handle) -> Result<Self, AppError> {
        let server = self.server.moved_to(&serving).map_err(AppError::Threads)?;
        Ok(Self { server, serving, ..self })
    }

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
        let serving = self.serving.spawn(self.server.run(Arc::clone(&self.hub)));
        let answering = tokio::spawn(crate::admin::run(self.admin, Arc::clone(&self.hub)));
        let ended = tokio::select! {
            ended = Box::pin(self.engine.run(self.feeds)) => ended,
            () = stop => Ok(()),
        };
        serving.abort();
        answering.abort();
        self.keeping.abort();
        self.following.abort();
        self.stopped.cancel();
        if let Some(writers) = self.writers
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
    (leader, reports): (watch::Sender<Leader>, mpsc::Sender<Report>),
) -> Hub {
    let (mesh, ca) = (settings.mesh(), Arc::new(InForce::new(authority)));
    Hub {
        state: RwLock::default(),
        revision: watch::Sender::new(0),
        facts: watch::Sender::new((0, 0)),
        followed: watch::Sender::new(0),
        leader,
        writes: watch::Sender::new(false),
        objections: watch::Sender::default(),
        followers: Followers::default(),
        link: Link::default(),
        clients: Clients::new(settings.silence(), settings.max_clients),
        accounts: Accounts {
            tunnels: settings.trusted_node_accounts.iter().cloned().collect(),
            agents: settings.agent_accounts.iter().cloned().collect(),
            controllers: settings.controller_accounts.iter().cloned().collect(),
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
