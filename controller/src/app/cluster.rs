// SPDX-License-Identifier: Apache-2.0

//! What differs between a folder and Kubernetes: where objects come from, where outputs go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use kube::{Client, Config};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{AppError, Hub, State};
use crate::ca::authority::Authority;
use crate::ca::review::{Reviewer, Tokens};
use crate::ca::token::TokenKey;
use crate::ca::{files, root, secret};
use crate::lead::dirty::Outbox;
use crate::lead::{self, Candidate, Leader};
use crate::output::{Output, OutputKey};
use crate::provision::{self, Writer};
use crate::settings::Settings;
use crate::source::Batch;
use crate::source::folder::Folders;
use crate::source::kubernetes::{Apiserver, Cluster, Watches};
use crate::source::selected::Selected;
use crate::store::facts::FactKey;
use crate::store::{Key, Kind, ReadKey};

/// Where objects come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Folders, and what of them is looked at.
    Folders(Box<Folders>, Selected),
    /// An apiserver.
    Cluster(Box<Watches>),
}

impl Source {
    /// The next batch; the first holds everything there is.
    ///
    /// # Errors
    ///
    /// [`AppError::Folders`].
    pub(super) async fn next(&mut self) -> Result<Batch, AppError> {
        match self {
            Self::Folders(folders, selected) => {
                folders.next().await.map(|batch| selected.filter(batch)).map_err(AppError::Folders)
            }
            Self::Cluster(watches) => Ok(watches.next().await),
        }
    }
}

/// Where outputs go that are not served.
#[derive(Debug)]
pub(super) enum Sink {
    /// Nowhere: they can be asked for.
    Nowhere,
    /// Objects go into a directory.
    Directory(Writer),
    /// Writers take them to Kubernetes.
    Cluster(Arc<Outbox>),
}

impl Sink {
    /// Takes what a batch changed.
    pub(super) fn take(
        &mut self,
        state: &State,
        touched: &[ReadKey],
        changed: &BTreeSet<OutputKey>,
    ) {
        match self {
            Self::Nowhere => log_not_served(state, changed),
            Self::Directory(writer) => {
                log_not_served(state, changed);
                writer.write(&state.graph.table, changed);
            }
            Self::Cluster(outbox) => {
                let object = |key: &OutputKey| match key {
                    OutputKey::Object(key) => Some(key.clone()),
                    OutputKey::Config(..)
                    | OutputKey::Status(_)
                    | OutputKey::Attached(_)
                    | OutputKey::NotServed(_) => None,
                };
                outbox.objects.add(changed.iter().filter_map(object));
                outbox.not_served.add(changed.iter().filter_map(not_served).cloned());
                // Somebody changed or deleted what we keep: it is put back.
                let kept = |key: &ReadKey| match key {
                    ReadKey::Object(key) => {
                        let wanted = OutputKey::Object(key.clone());
                        state.graph.table.get(&wanted).map(|_| key.clone())
                    }
                    ReadKey::Index(..) | ReadKey::Fact(_) => None,
                };
                outbox.objects.add(touched.iter().filter_map(kept));
                let pod = |key: &ReadKey| match key {
                    ReadKey::Fact(FactKey::Pod(uid)) => Some(uid.to_string()),
                    ReadKey::Object(_) | ReadKey::Index(..) | ReadKey::Fact(_) => None,
                };
                outbox.pods.add(touched.iter().filter_map(pod));
                let node = |key: &ReadKey| match key {
                    ReadKey::Fact(FactKey::Node(name)) => Some(name.to_string()),
                    ReadKey::Object(key) if key.kind == Kind::Node => {
                        Some(key.name.name.to_string())
                    }
                    ReadKey::Object(_) | ReadKey::Index(..) | ReadKey::Fact(_) => None,
                };
                outbox.nodes.add(touched.iter().filter_map(node));
            }
        }
    }

    /// Takes what the board says differently now.
    pub(super) fn tell(&self, state: &mut State) {
        let changed = state.board.take_changed();
        if let Self::Cluster(outbox) = self {
            outbox.statuses.add(changed);
        }
    }
}

/// The object of which something is not served, or is now.
fn not_served(changed: &OutputKey) -> Option<&Key> {
    match changed {
        OutputKey::NotServed(key) => Some(key),
        OutputKey::Config(..)
        | OutputKey::Status(_)
        | OutputKey::Object(_)
        | OutputKey::Attached(_) => None,
    }
}

/// Where nobody can be told on the object, the log tells.
fn log_not_served(state: &State, changed: &BTreeSet<OutputKey>) {
    for key in changed.iter().filter(|key| not_served(key).is_some()) {
        let Some(Output::NotServed(told)) = state.graph.table.get(key) else { continue };
        for note in &told.notes {
            tracing::warn!(object = %told.key, note, "not served");
        }
    }
}

/// What the start of a controller needs of its surroundings.
#[derive(Debug)]
pub struct Surroundings {
    /// Who knows which tokens are good.
    pub tokens: Tokens,
    /// What signs.
    pub authority: Authority,
    /// Where that is kept.
    pub origin: Origin,
    /// Who leads; with writers, they find out.
    pub leader: watch::Sender<Leader>,
    /// The writers of Kubernetes; none for folders.
    pub writers: Option<Writers>,
}

/// Finds them as the settings say.
///
/// # Errors
///
/// See [`AppError`].
pub async fn surroundings(settings: &Settings) -> Result<Surroundings, AppError> {
    if let (false, Some(directory)) = (settings.folders.is_empty(), &settings.ca_dir) {
        let tokens = TokenKey::load_or_make(directory).map_err(AppError::Token)?;
        let authority = root::load_or_make(directory, &settings.trust_domain);
        return Ok(Surroundings {
            tokens: Tokens::Key(tokens),
            authority: authority.map_err(AppError::Root)?,
            origin: Origin::Files(directory.clone()),
            leader: watch::Sender::new(Leader::Me),
            writers: None,
        });
    }
    let failed = |error| AppError::Kubernetes(Box::new(error));
    let config = Config::infer().await.map_err(kube::Error::InferConfig).map_err(failed)?;
    let apiserver = Apiserver::new(config).map_err(failed)?;
    let client = apiserver.shared.clone();
    let authority = secret::load_or_make(&client, &settings.namespace, &settings.trust_domain);
    let authority = authority.await.map_err(AppError::Root)?;
    let cluster = Arc::new(Cluster::new(apiserver, settings.discovery()));
    Ok(Surroundings {
        tokens: Tokens::Review(Reviewer::new(client.clone())),
        authority,
        origin: Origin::Secrets(client, settings.namespace.clone()),
        leader: watch::Sender::default(),
        writers: Some(Writers { cluster, outbox: Arc::default() }),
    })
}

/// Where the certificate authority is kept.
pub enum Origin {
    /// In files of this directory.
    Files(PathBuf),
    /// In Secrets of this namespace.
    Secrets(Client, String),
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Files(_) => "Files",
            Self::Secrets(..) => "Secrets",
        })
    }
}

impl Origin {
    /// Keeps the authority in force up to date with it, for as long as the future lives.
    pub(super) async fn run(self, hub: Arc<Hub>) {
        let in_force = Arc::clone(&hub.ca);
        match self {
            Self::Files(directory) => {
                tokio::join!(root::follow(&directory, in_force), hand_out(&hub));
            }
            Self::Secrets(client, namespace) => {
                Box::pin(secret::follow(client, namespace, in_force)).await;
            }
        }
    }
}

/// Keeps the file that proxies of this machine read the roots of.
async fn hand_out(hub: &Hub) {
    let Some(path) = &hub.settings.roots_file else { return };
    let mut changes = hub.ca.changes();
    loop {
        let bundle = changes.borrow_and_update().bundle();
        if let Err(error) = files::replace(path, bundle.as_bytes(), false) {
            tracing::error!(?path, %error, "file of roots not written");
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The writers of Kubernetes.
#[derive(Debug)]
pub struct Writers {
    /// The apiserver.
    pub(super) cluster: Arc<Cluster>,
    /// What waits to be written.
    pub(super) outbox: Arc<Outbox>,
}

impl Writers {
    /// Finds out who leads, and writes while this controller does, until `stop`; then lets the
    /// next one lead.
    pub(super) async fn run(self, hub: Arc<Hub>, stop: CancellationToken) {
        let leading = hub.writes.subscribe();
        let Self { cluster, outbox } = self;
        let client = cluster.client.clone();
        let name = &hub.settings.pod_name;
        let address = hub.settings.own_address();
        let mut candidate = Candidate::new(client.clone(), &hub.settings.namespace, name, address);
        {
            let (hub, authorities) = (&hub, hub.ca.changes());
            let all = async {
                tokio::join!(
                    lead::hold(&mut candidate, &hub.leader),
                    stop_writing(hub),
                    Box::pin(crate::status::write::run(
                        Arc::clone(hub),
                        Arc::clone(&cluster),
                        Arc::clone(&outbox),
                        leading.clone(),
                    )),
                    Box::pin(provision::apply::run(
                        Arc::clone(hub),
                        Arc::clone(&cluster),
                        Arc::clone(&outbox),
                        leading.clone(),
                    )),
                    Box::pin(provision::mark::run(
                        Arc::clone(hub),
                        Arc::clone(&cluster),
                        Arc::clone(&outbox),
                        leading.clone(),
                    )),
                    Box::pin(provision::events::run(
                        Arc::clone(hub),
                        Arc::clone(&cluster),
                        Arc::clone(&outbox),
                        leading.clone(),
                    )),
                    Box::pin(provision::roots::run(
                        client,
                        authorities,
                        hub.mesh.discovery.clone(),
                        leading.clone(),
                    )),
                    Box::pin(provision::untaint::run(
                        Arc::clone(hub),
                        Arc::clone(&cluster),
                        Arc::clone(&outbox),
                        leading.clone(),
                    )),
                )
            };
            tokio::select! {
                _ = all => {}
                () = stop.cancelled() => {}
            }
        }
        candidate.release().await;
    }
}

/// Ends writing at once when another may lead, whatever the engine is at.
async fn stop_writing(hub: &Hub) {
    let mut leader = hub.leader.subscribe();
    while leader.changed().await.is_ok() {
        if *leader.borrow_and_update() != Leader::Me {
            hub.writes.send_replace(false);
        }
    }
}
