// SPDX-License-Identifier: Apache-2.0

//! Which pods of this node are in the mesh, and the proof of it.
//!
//! Life of a pod here: [`link`] hears from the controller that it belongs in
//! the mesh, [`server`] from the CNI plug-in where it lives; [`node`] brings
//! both together and starts the pod's task, [`pod`]. That does what [`enrol`]
//! says, in this order: [`zds`] hands the namespace to the tunnel, [`host`] and
//! [`capture`] set the rules, [`probe`] sends connections through them. Then
//! it watches ([`notice`]) and proves again, until the controller lets the pod
//! go: rules first capture nothing new, the tunnel drains, the rules go.
//! [`install`] keeps the plug-in in the runtime's chain. When the mesh leaves the cluster,
//! [`leave`] takes everything off the node.
//!
//! The agent holds no traffic: while it is away, pods stay as they are.
//!
//! Start at [`run`].

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::{info, warn};

use self::admin::Admin;
use self::enrol::Pace;
use self::host::HostProbes;
use self::leave::Order;
use self::metrics::AgentMetrics;
use self::node::Node;
use self::pod::Tools;
use self::probe::Prober;
use self::settings::Settings;
use self::state::{Outside, StateFolder};
use self::zds::Zds;
use crate::inpod::proof::{KEY_FILE, KEY_LEN, Key};
use crate::sys::NetworkNamespace;

pub mod admin;
pub mod capture;
pub mod discover;
pub mod enrol;
pub mod host;
pub mod install;
pub mod leave;
pub mod link;
pub mod metrics;
pub mod node;
pub mod notice;
pub mod older;
pub mod plugin;
pub mod pod;
pub mod probe;
pub mod server;
pub mod settings;
pub mod spec;
pub mod state;

pub mod zds;

/// How often namespaces are looked for, and gone ones forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// Shortest time between two searches.
const SEARCH_PAUSE: Duration = Duration::from_millis(200);

/// Why the agent cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// Something local cannot be opened.
    #[error("cannot open {what}")]
    Open {
        /// Path or address.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// Something local stopped working.
    #[error("{0} has stopped")]
    Stopped(&'static str, #[source] io::Error),
}

/// The agent's local half: pods, files and sockets, without the controller.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    node: Node,
    zds: Zds,
    state: StateFolder,
    changed: watch::Receiver<u64>,
    metrics: AgentMetrics,
    admin: Arc<Admin>,
    calls: UnixListener,
    ready: watch::Sender<bool>,
    /// What plug-ins were told last.
    outside: Mutex<Option<Outside>>,
    host: Arc<HostProbes>,
    changes: watch::Sender<u64>,
    /// What the controller says of the mesh as a whole.
    order: watch::Sender<Order>,
    /// Where the plug-in is.
    plugin: watch::Sender<install::Standing>,
    /// The files are gone, and none is written again.
    cleared: watch::Sender<bool>,
    /// The order to leave that is carried out; empty if there is none.
    left: watch::Sender<Arc<str>>,
}

impl Agent {
    /// Takes up what an earlier agent left; nothing of it is interrupted.
    ///
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// When a file, socket or namespace cannot be opened.
    pub fn open(settings: Settings) -> Result<Self, AgentError> {
        let state = StateFolder::open(settings.folder.clone()).map_err(at(&settings.folder))?;
        let key_file = settings.tunnel_socket.with_file_name(KEY_FILE);
        let key = shared_key(&key_file).map_err(at(&key_file))?;
        let own = || NetworkNamespace::open(&settings.node_netns);
        let own = || own().map_err(at(&settings.node_netns));
        let mut registry = Registry::default();
        let metrics = AgentMetrics::register(&mut registry);
        let zds = Zds::new();
        let pace = Pace { proof: Duration::from_secs(1), drain: settings.drain };
        let (pace, paced) = watch::channel(pace);
        let (changes, changed) = watch::channel(0);
        let host = Arc::new(HostProbes::new(own()?, settings.kubelet_user));
        let tools = Arc::new(Tools {
            zds: zds.clone(),
            prober: Prober::new(key, own()?),
            host: Arc::clone(&host),
            pace: paced,
            metrics: metrics.clone(),
            changed: changes.clone(),
        });
        let node = Node::new(tools, own()?, settings.proc.clone(), pace);
        let socket = settings.folder.join(plugin::SOCKET);
        let calls = server::bind(&socket).map_err(at(&socket))?;
        let (ready, is_ready) = watch::channel(false);
        let admin = Arc::new(Admin { node: node.clone(), registry, ready: is_ready });
        node.restore(state.load());
        Ok(Self {
            settings,
            node,
            zds,
            state,
            changed,
            metrics,
            admin,
            calls,
            ready,
            outside: Mutex::default(),
            host,
            changes,
            order: watch::Sender::default(),
            plugin: watch::Sender::default(),
            cleared: watch::Sender::default(),
            left: watch::Sender::new("".into()),
        })
    }

    /// The pods.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Counts changes that are to be reported.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Tells plug-ins which namespaces are outside.
    ///
    /// A file that cannot be written is logged: plug-ins then ask more than they need.
    pub fn outside(&self, namespaces: &BTreeSet<String>) {
        let outside = Outside::of(namespaces.iter().cloned());
        let known =
            self.outside.lock().unwrap_or_else(PoisonError::into_inner).replace(outside.clone());
        if known.as_ref() == Some(&outside) || *self.cleared.borrow() {
            return;
        }
        if let Err(error) = self.state.save_outside(&outside) {
            warn!(%error, "cannot tell plug-ins which namespaces are outside");
        }
    }

    /// The controller has named every pod: from now on the agent is ready.
    pub fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Takes what the controller says of the mesh as a whole.
    pub fn set_order(&self, order: Order) {
        self.order.send_if_modified(|known| {
            let changed = *known != order;
            if changed {
                info!(?order, "order of the controller");
                *known = order;
            }
            changed
        });
    }

    /// Whether a pod that starts now is captured; else why not.
    #[must_use]
    pub fn serving(&self) -> (bool, String) {
        use install::Standing;
        let plugin = match &*self.plugin.borrow() {
            Standing::InPlace | Standing::NotOurs => None,
            Standing::Unknown => Some("the plug-in is not in place yet".to_owned()),
            Standing::Missing(reason) => Some(format!("the plug-in is not in place: {reason}")),
            Standing::Removed => Some("the mesh leaves this node".to_owned()),
            Standing::Stuck(reason) => Some(format!("the plug-in cannot be taken away: {reason}")),
        };
        let no_tunnel = self.zds.connected().borrow().tunnels == 0;
        let tunnel = no_tunnel.then(|| "no tunnel is connected to the agent".to_owned());
        let why: Vec<String> = plugin.into_iter().chain(tunnel).collect();
        (why.is_empty() && *self.ready.borrow(), why.join("; "))
    }

    /// There is something to report that no pod's change tells.
    fn report_again(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Files that the agent makes besides its state: sockets and the key of proofs.
    fn own_files(&self) -> [PathBuf; 3] {
        let tunnel = &self.settings.tunnel_socket;
        [self.settings.folder.join(plugin::SOCKET), tunnel.with_file_name(KEY_FILE), tunnel.clone()]
    }

    /// Serves the tunnel, plug-ins and readers of metrics, and keeps the state on disk.
    ///
    /// # Errors
    ///
    /// Never returns but with one.
    pub async fn serve(self: &Arc<Self>) -> Result<(), AgentError> {
        for address in &self.settings.listen {
            let listener = admin::bind(*address)
                .await
                .map_err(|source| AgentError::Open { what: address.to_string(), source })?;
            tokio::spawn(admin::serve(Arc::clone(&self.admin), listener));
        }
        let tunnels = zds::serve(self.zds.clone(), &self.settings.tunnel_socket);
        tokio::select! {
            outcome = tunnels => match outcome {
                Ok(()) => Ok(()),
                Err(error) => Err(AgentError::Stopped("the socket for tunnels", error)),
            },
            () = self.serve_calls() => Ok(()),
            () = self.follow_tunnels() => Ok(()),
            () = self.keep_state() => Ok(()),
            () = self.sweep() => Ok(()),
        }
    }

    async fn serve_calls(&self) {
        server::serve(self.node.clone(), &self.calls).await;
    }

    /// Each new tunnel is to prove what it serves.
    async fn follow_tunnels(&self) {
        let mut connected = self.zds.connected();
        let mut known = 0;
        loop {
            let now = *connected.borrow_and_update();
            self.metrics.tunnels(now.tunnels);
            self.report_again();
            if now.generation > known {
                known = now.generation;
                self.node.tunnel_connected();
            }
            if connected.changed().await.is_err() {
                return;
            }
        }
    }

    async fn keep_state(&self) {
        let mut changed = self.changed.clone();
        let mut kept = Vec::new();
        loop {
            let _count = *changed.borrow_and_update();
            let records = self.node.records();
            if records != kept && !*self.cleared.borrow() {
                match self.state.save(&records) {
                    Ok(()) => kept = records,
                    Err(error) => warn!(%error, "cannot keep the agent's state"),
                }
            }
            self.count_pods();
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn count_pods(&self) {
        let report = self.node.report();
        for (standing, name) in enrol::STANDINGS {
            let count = report.iter().filter(|pod| pod.standing == standing).count();
            self.metrics.pods(name, count);
        }
    }

    async fn sweep(&self) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                _ = tick.tick() => self.node.sweep(),
                () = self.node.homeless() => {}
            }
            self.node.look_for_namespaces().await;
            // Pods that come together are looked for together.
            tokio::time::sleep(SEARCH_PAUSE).await;
        }
    }
}

/// Runs the agent until `stop`; pods stay in the mesh when it ends.
///
/// # Errors
///
/// When something local cannot be opened or stops working. A lost controller is no error.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let agent = Arc::new(Agent::open(settings.clone())?);
    tokio::select! {
        outcome = agent.serve() => outcome,
        () = link::follow(&agent, &settings) => Ok(()),
        () = keep_plugin(&agent, &settings) => Ok(()),
        () = leave::follow(&agent) => Ok(()),
        () = stop => {
            info!("agent ends; its pods stay in the mesh");
            Ok(())
        }
    }
}

/// Keeps the plug-in where it belongs, and reports where it is.
async fn keep_plugin(agent: &Agent, settings: &Settings) {
    let report = async {
        let mut plugin = agent.plugin.subscribe();
        while plugin.changed().await.is_ok() {
            agent.report_again();
        }
    };
    let (ready, order) = (agent.ready.subscribe(), agent.order.subscribe());
    tokio::select! {
        () = install::keep(settings.plugins.as_ref(), ready, order, &agent.plugin) => {}
        () = report => {}
    }
}

/// An error with its causes, in one line.
fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn at(path: &Path) -> impl Fn(io::Error) -> AgentError {
    let what = path.display().to_string();
    move |source| AgentError::Open { what: what.clone(), source }
}

/// The key of an earlier agent, or a new one; only root can read it.
fn shared_key(path: &PathBuf) -> io::Result<Key> {
    if let Ok(key) = Key::read(path) {
        return Ok(key);
    }
    let bytes: [u8; KEY_LEN] = rand::random();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&fresh)?;
    io::Write::write_all(&mut file, &bytes)?;
    std::fs::rename(&fresh, path)?;
    Ok(Key::new(bytes))
}
