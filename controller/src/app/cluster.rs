// SPDX-License-Identifier: Apache-2.0

//! What differs between a folder and Kubernetes: where objects come from, where outputs go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{AppError, Hub, State};
use crate::ca::authority::Authority;
use crate::ca::review::{Reviewer, Tokens};
use crate::ca::token::TokenKey;
use crate::ca::{files, root, secret};
use crate::lead::dirty::Outbox;
use crate::lead::{self, Candidate};
use crate::output::OutputKey;
use crate::provision::{self, Writer};
use crate::settings::Settings;
use crate::source::Batch;
use crate::source::folder::Folders;
use crate::source::kubernetes::{Cluster, Watches};
use crate::store::facts::FactKey;
use crate::store::{Kind, ReadKey};

/// Where objects come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Folders.
    Folders(Box<Folders>),
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
            Self::Folders(folders) => folders.next().await.map_err(AppError::Folders),
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
            Self::Nowhere => {}
            Self::Directory(writer) => writer.write(&state.graph.table, changed),
            Self::Cluster(outbox) => {
                let object = |key: &OutputKey| match key {
                    OutputKey::Object(key) => Some(key.clone()),
                    OutputKey::Config(..) | OutputKey::Status(_) | OutputKey::Attached(_) => None,
                };
                outbox.objects.add(changed.iter().filter_map(object));
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

/// What the start of a controller needs of its surroundings.
pub(super) struct Surroundings {
    /// Who knows which tokens are good.
    pub(super) tokens: Tokens,
    /// What signs.
    pub(super) authority: Authority,
    /// Who keeps it up to date.
    pub(super) keeper: Keeper,
    /// The writers of Kubernetes.
    pub(super) writers: Option<Writers>,
}

/// Finds them as the settings say.
///
/// # Errors
///
/// See [`AppError`].
pub(super) async fn surroundings(settings: &Settings) -> Result<Surroundings, AppError> {
    if let (false, Some(directory)) = (settings.folders.is_empty(), &settings.ca_dir) {
        let tokens = TokenKey::load_or_make(directory).map_err(AppError::Token)?;
        let authority = root::load_or_make(directory, &settings.trust_domain);
        return Ok(Surroundings {
            tokens: Tokens::Key(tokens),
            authority: authority.map_err(AppError::Root)?,
            keeper: Keeper::Files(directory.clone()),
            writers: None,
        });
    }
    let failed = |error| AppError::Kubernetes(Box::new(error));
    let client = Client::try_default().await.map_err(failed)?;
    let authority = secret::load_or_make(&client, &settings.namespace, &settings.trust_domain);
    let authority = authority.await.map_err(AppError::Root)?;
    let cluster = Arc::new(Cluster::new(client.clone()));
    Ok(Surroundings {
        tokens: Tokens::Review(Reviewer::new(client.clone())),
        authority,
        keeper: Keeper::Secrets(client, settings.namespace.clone()),
        writers: Some(Writers { cluster, outbox: Arc::default() }),
    })
}

/// Who keeps the certificate authority up to date.
pub(super) enum Keeper {
    /// It is in files of this directory.
    Files(PathBuf),
    /// It is in Secrets of this namespace.
    Secrets(Client, String),
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Files(_) => "Files",
            Self::Secrets(..) => "Secrets",
        })
    }
}

impl Keeper {
    /// Follows it, for as long as the future lives.
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
pub(super) struct Writers {
    /// The apiserver.
    pub(super) cluster: Arc<Cluster>,
    /// What waits to be written.
    pub(super) outbox: Arc<Outbox>,
}

impl Writers {
    /// Writes while this controller leads, until `stop`; then lets the next one lead.
    pub(super) async fn run(self, hub: Arc<Hub>, stop: CancellationToken) {
        let (leads, leading) = watch::channel(false);
        let Self { cluster, outbox } = self;
        let client = cluster.client.clone();
        let name = &hub.settings.pod_name;
        let mut candidate = Candidate::new(client.clone(), &hub.settings.namespace, name);
        {
            let (hub, authorities) = (&hub, hub.ca.changes());
            let all = async {
                tokio::join!(
                    lead::hold(&mut candidate, &leads),
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
                    Box::pin(provision::roots::run(client, authorities, leading.clone())),
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
