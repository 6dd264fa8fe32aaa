// SPDX-License-Identifier: Apache-2.0

//! The supervisor of a local world: apiserver, scheduler and kubelet in one process.
//!
//! Owns: the order in which a world comes to be, and the loop that follows files and pods.
//! Its [`state`] decides; tasks of their own run pods ([`pod`]), translation of Service
//! addresses, DNS and the user's door.
//!
//! Start at [`run`].

mod cni;
mod container;
mod create;
mod door;
mod inquire;
mod logs;
pub(crate) mod object;
mod pod;
mod probe;
mod process;
mod record;
mod running;
mod say;
mod services;
mod state;
mod system;
mod tokens;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio::time::{Instant, sleep_until};

use self::pod::Event;
use self::say::Say;
use self::state::{Outlets, State};
use self::tokens::Tokens;
use super::address::FABRIC;
use super::dns::Zone;
use super::manifest::{self, LOCAL_FILE};
use super::plan::image::Images;
use super::vip::Table;
use super::{LocalError, UpOptions, dns, netns, paths, relay, vip};
use crate::ca::root;
use crate::source::folder::is_ours;
use crate::source::watch::{Edit, Watcher};

/// How long pods may take to end with the world.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Trust domain of every identity of a world.
const TRUST_DOMAIN: &str = "cluster.local";

/// How often tokens are looked at.
const TOKEN_CHECK: Duration = Duration::from_secs(60);

/// Runs the world of `options` until it is asked to stop.
///
/// # Errors
///
/// See [`LocalError`]: what keeps a world from beginning.
pub fn run(options: UpOptions) -> Result<ExitCode, LocalError> {
    let listeners = take_listeners()?;
    netns::make_fabric()?;
    super::runtime()?.block_on(serve(options, listeners))
}

/// The listeners that `waymark up` opened outside.
fn take_listeners() -> Result<Vec<std::net::TcpListener>, LocalError> {
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        listeners.extend(passed.take_tcp_listener(index).map_err(LocalError::Launch)?);
    }
    Ok(listeners)
}

async fn serve(
    options: UpOptions,
    listeners: Vec<std::net::TcpListener>,
) -> Result<ExitCode, LocalError> {
    let own = std::env::current_exe().map_err(LocalError::Launch)?;
    let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
    let nodes = state::make_nodes(options.nodes, options.reuse_addresses)?;
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    for name in &names {
        std::fs::create_dir_all(paths::node(name)).map_err(LocalError::Mount)?;
    }
    vip::setup(&names)?;
    let authority = root::load_or_make(Path::new(paths::CA), TRUST_DOMAIN)
        .map_err(|error| LocalError::Keys(pod::describe(&error)))?;
    let trusted = Path::new(paths::TRUST).join("root-cert.pem");
    record::write_whole(&trusted, authority.bundle().as_bytes()).map_err(LocalError::Mount)?;
    let tokens = Tokens::new()?;
    let (told, events) = mpsc::unbounded_channel();
    let outlets = doors(listeners, names, told)?;
    let system = system::manifests().map_err(|error| LocalError::Keys(error.to_string()))?;
    let mut state = State::new(nodes, system, tokens, outlets, beside.clone());
    state.reuse = options.reuse_addresses;
    tokio::spawn(logs::keep_short());
    tokio::spawn(inquire::watch_problems());
    let controller = start_controller(&options.folder, &beside);
    Supervisor { state, say: Say::new(&options), events, folder: options.folder, controller }
        .follow()
        .await
}

/// Starts everything that answers: translation, DNS, the user's door.
fn doors(
    listeners: Vec<std::net::TcpListener>,
    nodes: Vec<String>,
    told: mpsc::UnboundedSender<Event>,
) -> Result<Outlets, LocalError> {
    let (table, table_seen) = channel::channel(Arc::new(Table::default()));
    let (zone, zone_seen) = channel::channel(Arc::new(Zone::default()));
    let (target, target_seen) = channel::channel(None);
    tokio::spawn(translate(nodes, table_seen));
    tokio::spawn(async move {
        let addresses = FABRIC.both().map(|ip| SocketAddr::new(ip, 53));
        if let Err(cause) = dns::serve(&addresses, zone_seen).await {
            say::error(&format!("cluster DNS ended: {cause}"));
        }
    });
    for listener in listeners {
        listener.set_nonblocking(true).map_err(LocalError::Launch)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(LocalError::Launch)?;
        tokio::spawn(relay::serve(listener, target_seen.clone()));
    }
    Ok(Outlets { table, zone, target, told })
}

/// Keeps the nodes' tables as the newest [`Table`] says.
async fn translate(nodes: Vec<String>, mut wanted: channel::Receiver<Arc<Table>>) {
    let nodes = Arc::new(nodes);
    let mut applied = Arc::new(Table::default());
    while wanted.changed().await.is_ok() {
        let next = Arc::clone(&wanted.borrow_and_update());
        let (old, new, names) = (Arc::clone(&applied), Arc::clone(&next), Arc::clone(&nodes));
        let done = tokio::task::spawn_blocking(move || vip::change(&names, &old, &new)).await;
        match done {
            Ok(Ok(())) => applied = next,
            Ok(Err(error)) => say::error(&pod::describe(&error)),
            Err(error) => say::error(&error.to_string()),
        }
    }
}

/// Starts the controller; it is asked to stop through what is returned.
fn start_controller(folder: &Path, beside: &Path) -> channel::Sender<Option<Duration>> {
    let (stop, stopped) = channel::channel(None);
    let unit = system::controller(folder, beside);
    let (state, _) = channel::channel(container::State::default());
    tokio::spawn(async move { unit.run(&state, stopped).await });
    stop
}

struct Supervisor {
    state: State,
    say: Say,
    events: mpsc::UnboundedReceiver<Event>,
    folder: PathBuf,
    controller: channel::Sender<Option<Duration>>,
}

impl Supervisor {
    /// Follows files and pods until asked to stop.
    async fn follow(mut self) -> Result<ExitCode, LocalError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(LocalError::Launch)?;
        let failed = |cause| LocalError::Folder(self.folder.clone(), cause);
        let mut watcher =
            Watcher::new(&self.folders()).map_err(failed)?.patient_with(self.folder.clone());
        let due = self.files();
        self.read(&mut watcher, due)?;
        let (wish, mut wishes) = mpsc::unbounded_channel();
        door::serve(Path::new(paths::SUPERVISOR_SOCKET), wish).map_err(LocalError::Mount)?;
        let mut token_check = tokio::time::interval(TOKEN_CHECK);
        loop {
            if let Err(cause) = self.state.reconcile() {
                say::error(&format!("objects cannot be written: {cause}"));
            }
            self.say.look(&self.state);
            tokio::select! {
                Some(event) = self.events.recv() => {
                    self.state.take(event);
                    while let Ok(event) = self.events.try_recv() {
                        self.state.take(event);
                    }
                }
                edits = watcher.next() => {
                    let failed = |cause| LocalError::Folder(self.folder.clone(), cause);
                    let edits = edits.map_err(failed)?;
                    let mut due = BTreeSet::new();
                    self.note(edits, &mut due);
                    self.read(&mut watcher, due)?;
                }
                Some(door::Delete { namespace, name, grace, found }) = wishes.recv() => {
                    let done = self.state.delete_named(&namespace, &name, grace);
                    // Whoever asked may have left.
                    found.send(done).ok();
                }
                _ = token_check.tick() => {
                    if let Err(cause) = self.state.renew_tokens() {
                        say::error(&format!("tokens cannot be renewed: {cause}"));
                    }
                }
                () = self.say.due() => {}
                _ = terminate.recv() => return self.stop().await,
            }
        }
    }

    fn folders(&self) -> [PathBuf; 2] {
        [self.folder.clone(), PathBuf::from(paths::PROVISIONED)]
    }

    /// All files there are, with the user's `local.yaml`.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut files: BTreeSet<_> =
            self.folders().iter().flat_map(|folder| manifest::in_folder(folder)).collect();
        files.insert(self.folder.join(LOCAL_FILE));
        files
    }

    /// Lets removed files go and adds to `due` those to be read.
    fn note(&mut self, edits: Vec<Edit>, due: &mut BTreeSet<PathBuf>) {
        for edit in edits {
            match edit {
                Edit::Finished(path) if is_ours(&path) || self.is_local_file(&path) => {
                    due.insert(path);
                }
                Edit::Finished(_) => {}
                Edit::Unfinished(path) => {
                    due.remove(&path);
                }
                Edit::Removed(path) if self.is_local_file(&path) => {
                    due.insert(path);
                }
                Edit::Removed(path) => {
                    due.remove(&path);
                    self.state.folders.forget(&path);
                }
                Edit::Lost => {
                    *due = self.files();
                    self.state.folders.retain(due);
                }
            }
        }
    }

    fn is_local_file(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| name == LOCAL_FILE)
            && path.parent() == Some(&self.folder)
    }

    /// Reads the files of `due`, and again what was modified meanwhile.
    fn read(
        &mut self,
        watcher: &mut Watcher,
        mut due: BTreeSet<PathBuf>,
    ) -> Result<(), LocalError> {
        while !due.is_empty() {
            let failed = |cause| LocalError::Folder(self.folder.clone(), cause);
            let (read, edits) = watcher.read(std::mem::take(&mut due)).map_err(failed)?;
            for (path, text) in read {
                if self.is_local_file(&path) {
                    self.read_images(path, &text.ok().flatten().unwrap_or_default());
                } else {
                    self.state.folders.take(path, text);
                }
            }
            self.note(edits, &mut due);
        }
        self.state.retry_broken();
        Ok(())
    }

    fn read_images(&mut self, file: PathBuf, text: &str) {
        match Images::parse(text) {
            Ok(images) => {
                self.state.images = images;
                self.say.local_file(None);
            }
            Err((line, message)) => self.say.local_file(Some((file, line, message))),
        }
    }

    /// Ends all pods, then the world.
    async fn stop(mut self) -> Result<ExitCode, LocalError> {
        self.controller.send_replace(Some(STOP_GRACE));
        let limit = Instant::now() + STOP_GRACE + Duration::from_secs(1);
        while self.state.stop_all(STOP_GRACE) {
            tokio::select! {
                Some(event) = self.events.recv() => self.state.take(event),
                () = sleep_until(limit) => break,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
