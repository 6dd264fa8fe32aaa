// SPDX-License-Identifier: Apache-2.0

//! Nodes with agent and tunnel, for tests in network namespaces.
//!
//! Owns: starting both in this process, in the namespace of a node of a
//! [`Topology`], and telling every tunnel what the controller would. What runs
//! is what ships: rules by the agent, ZDS between the two, sessions by the
//! tunnel's workers; only the controller's stream is left out.
//!
//! Start at [`World::new`].

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use routing::delta::{self, Change, Kind, Resource};
use routing::discovery::{Health, TunnelProtocol, Workload};
use routing::snapshot::Snapshot;
use routing::stream::{self, DeltaDiscoveryResponse};
use routing::wire::discovery::write_resource;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tunnel::access_log::LogWriter;
use tunnel::agent::Agent;
use tunnel::agent::enrol::Standing;
use tunnel::agent::node::Node as AgentNode;
use tunnel::agent::spec::PodSpec;
use tunnel::control::client::Apply as _;
use tunnel::control::snapshots::Snapshots;
use tunnel::credentials::{Authority, Credentials};
use tunnel::inpod::pods::Pods;
use tunnel::inpod::protocol;
use tunnel::metrics::Metrics;
use tunnel::proxy::{Core, Parts, TunnelWorkers};
use tunnel::settings::{Limits, Settings};
use tunnel::state::Shared;
use tunnel::trace::Tracer;
use tunnel::worker::Workers;

use crate::certs::Issuer;
use crate::netns::{Pod, Topology};
use crate::waypoint::PodGateway;

/// How long something that must happen may take.
pub const SOON: Duration = Duration::from_secs(20);

/// Lines that a tunnel has logged.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// All of them so far.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The tunnel of one node.
#[derive(Debug)]
pub struct Tunnel {
    /// What it knows.
    pub shared: Arc<Shared>,
    /// Pods it serves.
    pub pods: Arc<Pods>,
    /// Its counters.
    pub metrics: Arc<Metrics>,
    /// Its sessions.
    pub sessions: TaskTracker,
    /// Its access log.
    pub lines: Lines,
    registry: Registry,
    workers: TunnelWorkers,
    snapshots: Snapshots,
    versions: u64,
}

impl Tunnel {
    /// Starts a tunnel that follows the agent at `socket`.
    ///
    /// # Errors
    ///
    /// When its threads cannot be made.
    pub fn start(
        socket: &Path,
        authority: Arc<dyn Authority>,
        limits: Limits,
        traces: Option<Arc<Tracer>>,
    ) -> anyhow::Result<Self> {
        let variables = BTreeMap::from([
            ("NODE_NAME", "node".to_owned()),
            ("POD_NAME", "ztunnel".to_owned()),
            ("POD_NAMESPACE", "istio-system".to_owned()),
            ("INPOD_UDS", socket.display().to_string()),
        ]);
        let settings = Settings::read(|name| variables.get(name).cloned())?;
        let mut registry = Registry::default();
        let lines = Lines::default();
        let parts = Parts {
            settings: Arc::new(Settings { limits, ..settings }),
            shared: Arc::default(),
            metrics: Metrics::register(&mut registry),
            log: LogWriter::start(lines.clone(), false)?,
            traces,
            sessions: TaskTracker::new(),
        };
        let make = parts.clone();
        let (workers, _threads) = Workers::start(2, "worker", move |_| Core::new(&make))?;
        for worker in workers.iter() {
            worker.run(Core::chores);
        }
        tunnel::app::forget_gone(&parts.shared, &workers);
        let credentials = Credentials::new(authority, Handle::current());
        let trust = credentials.trust();
        let pods = Arc::new(Pods::new(parts.clone(), workers.clone(), credentials));
        let (socket, served) = (socket.to_owned(), Arc::clone(&pods));
        let ready = watch::Sender::new(false);
        tokio::spawn(async move { protocol::follow(&socket, &served, &ready).await });
        let snapshots = Snapshots::new(Arc::clone(&parts.shared), Arc::default(), trust);
        let Parts { shared, metrics, sessions, .. } = parts;
        let versions = 0;
        Ok(Self { shared, pods, metrics, sessions, lines, registry, workers, snapshots, versions })
    }

    /// Applies a response as the controller's stream would.
    ///
    /// # Errors
    ///
    /// When a resource is refused.
    pub fn tell(&mut self, kind: Kind, put: &[Resource], gone: &[&str]) -> anyhow::Result<()> {
        self.versions += 1;
        let mut resources = Vec::new();
        for resource in put {
            let (_, name, value) = write_resource(resource)?;
            let body = prost_types::Any { type_url: kind.type_url().to_owned(), value };
            let version = self.versions.to_string();
            resources.push(stream::Resource {
                name,
                version,
                resource: Some(body),
                ..stream::Resource::default()
            });
        }
        let refused = self.snapshots.apply(&DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources,
            removed_resources: gone.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        });
        if !refused.is_empty() {
            bail!("refused: {refused:?}");
        }
        Ok(())
    }

    /// The sum of a counter over all series whose line holds all of `labels`.
    ///
    /// # Errors
    ///
    /// When the metrics cannot be printed.
    pub async fn count(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let (tell, mut told) = tokio::sync::mpsc::channel::<()>(1);
        for worker in self.workers.iter() {
            let tell = tell.clone();
            worker.run(move |core| async move {
                core.metrics.flush();
                drop(tell);
            });
        }
        drop(tell);
        told.recv().await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.map(|line| Ok(line.rsplit(' ').next().context("no value")?.parse::<f64>()?)).sum()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.workers.stop();
    }
}

/// A node: an agent on a runtime of its own, and a tunnel.
#[derive(Debug)]
pub struct MeshNode {
    /// The agent's pods.
    pub agent: AgentNode,
    /// The tunnel.
    pub tunnel: Tunnel,
    runtime: Option<Runtime>,
    folder: tempfile::TempDir,
}

impl MeshNode {
    fn start(
        topology: &Topology,
        index: u8,
        issuer: &Arc<Issuer>,
        (limits, traces): (Limits, Option<Arc<Tracer>>),
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let node = topology.node(index);
        let variables = BTreeMap::from([
            ("NODE_NAME", node.name.clone()),
            ("AGENT_RUN_DIR", folder.path().display().to_string()),
            ("AGENT_NODE_NETNS", node.netns.path().display().to_string()),
            ("AGENT_LISTEN", String::new()),
            ("AGENT_DRAIN_SECONDS", "30".to_owned()),
        ]);
        let settings =
            tunnel::agent::settings::Settings::read(|name| variables.get(name).cloned())?;
        let runtime = Runtime::new()?;
        let agent = {
            let _inside = runtime.enter();
            Arc::new(Agent::open(settings)?)
        };
        let pods = agent.node().clone();
        runtime.spawn(async move { agent.serve().await });
        let socket = folder.path().join("ztunnel.sock");
        let authority: Arc<dyn Authority> = Arc::clone(issuer) as _;
        let tunnel = Tunnel::start(&socket, authority, limits, traces)?;
        Ok(Self { agent: pods, tunnel, runtime: Some(runtime), folder })
    }

    /// Folder of the agent.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for MeshNode {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A mesh of nodes; every tunnel and every gateway knows all addresses.
#[derive(Debug)]
pub struct World {
    /// Nodes, counted from 1; the first comes at index 0.
    pub nodes: Vec<MeshNode>,
    /// Gateways, in the order they were started.
    pub gateways: Vec<PodGateway>,
    /// All addresses that were told.
    known: Snapshot,
    /// Signs all certificates.
    pub issuer: Arc<Issuer>,
    /// Namespaces; dropped last.
    pub topology: Topology,
}

impl World {
    /// A mesh of `nodes` nodes without pods.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn new(nodes: u8, limits: Limits) -> anyhow::Result<Self> {
        Self::traced(nodes, limits, &[])
    }

    /// The same, with spans: where those of each node go, in the order of nodes.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn traced(
        nodes: u8,
        limits: Limits,
        traces: &[Option<Arc<Tracer>>],
    ) -> anyhow::Result<Self> {
        let topology = Topology::new(nodes)?;
        let issuer = Issuer::new()?;
        let traces = traces.iter().cloned().chain(std::iter::repeat(None));
        let started = (1..=nodes)
            .zip(traces)
            .map(|(index, traces)| MeshNode::start(&topology, index, &issuer, (limits, traces)));
        let nodes = started.collect::<anyhow::Result<_>>()?;
        Ok(Self { nodes, gateways: Vec::new(), known: Snapshot::default(), issuer, topology })
    }

    /// Starts the gateway `shop/NAME` in a new pod of `node`: a waypoint, or one at the
    /// edge with an HTTP listener on 8080.
    ///
    /// # Errors
    ///
    /// When it is not ready soon.
    pub async fn gateway(
        &mut self,
        name: &str,
        node: u8,
        waypoint: bool,
    ) -> anyhow::Result<&PodGateway> {
        let pod = self.topology.pod(node)?;
        let workload = self.workload(name, &pod, false)?;
        let known = (self.known.clone(), &self.issuer);
        self.gateways.push(PodGateway::start(pod, name, waypoint, known)?);
        self.tell(Kind::Address, &[Resource::Workload(Arc::new(workload))], &[])?;
        let started = self.gateways.last().context("it was just added")?;
        started.ready().await?;
        Ok(started)
    }

    /// The workload that `pod` is, under the name `name` in the namespace `shop`.
    ///
    /// # Errors
    ///
    /// When the name is not legal.
    pub fn workload(&self, name: &str, pod: &Pod, captured: bool) -> anyhow::Result<Workload> {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse()?;
        let uid = Workload::pod_key("Kubernetes", "shop", name);
        let mut workload = Workload::new(uid, identity, "shop".parse()?);
        workload.pod_uid = Some(uid_of(pod));
        workload.name = name.into();
        workload.workload_name = name.into();
        workload.canonical_name = name.into();
        workload.addresses = vec![pod.v4.into(), pod.v6.into()];
        workload.node = self.topology.node(pod.node).name.as_str().into();
        workload.health = Health::Healthy;
        if captured {
            workload.tunnel = TunnelProtocol::Hbone;
        }
        Ok(workload)
    }

    /// Tells every tunnel, and every gateway if it is about addresses.
    ///
    /// # Errors
    ///
    /// When a resource is refused.
    pub fn tell(&mut self, kind: Kind, put: &[Resource], gone: &[&str]) -> anyhow::Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.tunnel.tell(kind, put, gone))?;
        if kind != Kind::Address {
            return Ok(());
        }
        let gone = gone.iter().map(|name| Change::Gone(kind, (*name).into()));
        let changes: Vec<_> = put.iter().cloned().map(Change::Put).chain(gone).collect();
        (self.known, _) = delta::apply(&self.known, changes.clone());
        self.gateways.iter_mut().try_for_each(|gateway| gateway.tell(changes.clone()))
    }

    /// Has the agent of its node enrol a pod, and waits for the proof.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub async fn enrol(&self, name: &str, pod: &Pod) -> anyhow::Result<()> {
        let node = self.nodes.get(usize::from(pod.node) - 1).context("no such node")?;
        let uid = uid_of(pod);
        let addresses = vec![pod.v4.into(), pod.v6.into()];
        node.agent.put(PodSpec {
            uid: Arc::clone(&uid),
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            service_account: name.to_owned(),
            addresses: addresses.clone(),
            probes: Vec::new(),
            dns: true,
            bypass_inbound: false,
            strict: false,
            generation: 1,
        });
        let standing = node.agent.place(&uid, &pod.netns.path(), addresses, SOON).await?;
        if standing != Standing::Enrolled {
            bail!("{name} is {standing:?}: {:?}", node.agent.report());
        }
        Ok(())
    }

    /// The tunnel of the node with this index, counted from 1.
    ///
    /// # Errors
    ///
    /// When there is no such node.
    pub fn tunnel(&self, node: u8) -> anyhow::Result<&Tunnel> {
        let node = self.nodes.get(usize::from(node) - 1).context("no such node")?;
        Ok(&node.tunnel)
    }
}

/// The UID that the tests give a pod: that of its namespace.
#[must_use]
pub fn uid_of(pod: &Pod) -> Arc<str> {
    pod.netns.name().into()
}
