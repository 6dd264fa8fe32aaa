// SPDX-License-Identifier: Apache-2.0

//! Makes the parts, starts them in order, ends them in order.
//!
//! Order of start: workers; certificates; the stream with the controller; the
//! session with the agent; admin. Order of end: see [`crate::drain`].
//!
//! Start at [`run`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use routing::delta::Kind;
use routing::stream::Node;
use routing::stream::client::Client;
use routing::wire::roots::ROOTS_URL;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log::LogWriter;
use crate::admin::{self, Admin};
use crate::control::authority::RemoteAuthority;
use crate::control::client::follow;
use crate::control::metrics::StreamMetrics;
use crate::control::snapshots::Snapshots;
use crate::credentials::Credentials;
use crate::credentials::revocation::{ListFile, Revocations};
use crate::drain;
use crate::inpod::{pods::Pods, protocol};
use crate::metrics::Metrics;
use crate::proxy::{Core, Parts, TunnelWorkers};
use crate::settings::Settings;
use crate::state::Shared;
use crate::trace::Tracer;
use crate::worker::Workers;

/// Time between looks for series whose workloads are gone.
const SERIES_SWEEP: Duration = Duration::from_secs(15);

/// Runs the tunnel on the calling thread's runtime until it is told to end.
///
/// # Errors
///
/// When it cannot start: threads, or the ports of admin, metrics or readiness.
pub async fn run(settings: Settings, logs: Logs) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let stream = Arc::<StreamMetrics>::default();
    registry.register_collector(Box::new(Arc::clone(&stream)));
    let settings = Arc::new(settings);
    let parts = Parts {
        settings: Arc::clone(&settings),
        shared: Arc::default(),
        metrics: Arc::clone(&metrics),
        log: logs.writer,
        traces: tracer(&settings)?,
        sessions: TaskTracker::new(),
    };
    let make = parts.clone();
    let (workers, threads) = Workers::start(settings.workers, "worker", move |_| Core::new(&make))?;
    for worker in workers.iter() {
        worker.run(Core::chores);
    }
    forget_gone(&parts.shared, &workers);

    let authority = RemoteAuthority {
        controller: settings.authority.clone(),
        impersonate: true,
        life: settings.certificate_life,
    };
    let revocations = revocations(&settings).await;
    registry.register_collector(Box::new(Arc::clone(&revocations)));
    let credentials = Credentials::checking(Arc::new(authority), Handle::current(), revocations);
    let trust = credentials.trust();
    let pods = Arc::new(Pods::new(parts.clone(), workers.clone(), credentials.clone()));
    let (agent_ready, agent) = watch::channel(false);
    let end = CancellationToken::new();
    let admin = Admin {
        settings: Arc::clone(&settings),
        shared: Arc::clone(&parts.shared),
        pods: Arc::clone(&pods),
        credentials,
        workers: workers.clone(),
        registry: Arc::new(registry),
        agent,
        levels: logs.levels,
        end: end.clone(),
    };
    admin::start(admin).await?;
    let snapshots = Snapshots::new(Arc::clone(&parts.shared), stream, trust);
    tokio::spawn(follow_controller(Arc::clone(&settings), snapshots));
    tokio::spawn(follow_agent(settings.agent.clone(), Arc::clone(&pods), agent_ready));
    tokio::spawn(sweep_series(metrics, Arc::clone(&parts.shared)));
    tracing::info!(workers = workers.count(), node = settings.node, "tunnel has started");

    drain::told(&end).await;
    drain::drain(&pods, &parts.sessions, settings.limits.drain).await;
    workers.stop();
    // Sending the last spans may take a while, as the workers' ends do.
    let traces = parts.traces;
    tokio::task::spawn_blocking(move || {
        threads.join();
        drop(traces);
    })
    .await?;
    Ok(())
}

async fn follow_agent(socket: PathBuf, pods: Arc<Pods>, ready: watch::Sender<bool>) {
    protocol::follow(&socket, &pods, &ready).await;
}

/// The lists of revoked certificates, looked at before the first peer is.
async fn revocations(settings: &Settings) -> Arc<Revocations> {
    let revocations = Arc::<Revocations>::default();
    if let Some(path) = settings.revocations.clone() {
        let mut file = ListFile::new(path);
        file.look(&revocations).await;
        tokio::spawn(file.follow(Arc::clone(&revocations)));
    }
    revocations
}

/// Where spans go, if anywhere.
fn tracer(settings: &Settings) -> anyhow::Result<Option<Arc<Tracer>>> {
    let Some(endpoint) = settings.collector.clone() else { return Ok(None) };
    let own = &settings.own;
    let more = [
        ("k8s.namespace.name", own.namespace.clone()),
        ("k8s.pod.name", own.name.clone()),
        ("k8s.node.name", settings.node.clone()),
        ("k8s.cluster.name", settings.cluster.clone()),
    ];
    let service = format!("ztunnel.{}", own.namespace);
    let tracer = Tracer::start(endpoint, service, more, settings.sampled_per_million)?;
    Ok(Some(Arc::new(tracer)))
}

/// Where log lines go, and how their levels are changed.
#[derive(Debug)]
pub struct Logs {
    /// Writes lines.
    pub writer: LogWriter,
    /// Changes levels.
    pub levels: admin::Levels,
}

/// Connections to workloads that are gone are never used again, on any worker.
pub fn forget_gone(shared: &Shared, workers: &TunnelWorkers) {
    let workers = workers.clone();
    shared.on_gone(move |gone| {
        let gone: Arc<[Arc<str>]> = gone.into();
        for worker in workers.iter() {
            let gone = Arc::clone(&gone);
            worker.run(move |core| async move {
                core.pool.remove(|key| gone.contains(&key.workload));
                core.outliers.borrow_mut().retain(|uid| !gone.contains(uid));
            });
        }
    });
}

async fn follow_controller(settings: Arc<Settings>, mut snapshots: Snapshots) {
    // What is told of roots goes first: peers may show certificates of them any moment.
    let [addresses, policies] = [Kind::Address, Kind::Authorization].map(Kind::type_url);
    let kinds = [ROOTS_URL, addresses, policies];
    let client = Client::new(node(&settings), kinds).optional(ROOTS_URL);
    follow(&settings.discovery, client, &mut snapshots).await;
}

/// Who we are to the controller.
fn node(settings: &Settings) -> Node {
    let own = &settings.own;
    let text = |value: &str| Value { kind: Some(ValueKind::StringValue(value.to_owned())) };
    let address = own.address.to_string();
    let fields = [
        ("NAME", &own.name),
        ("NAMESPACE", &own.namespace),
        ("INSTANCE_IPS", &address),
        ("NODE_NAME", &settings.node),
        ("CLUSTER_ID", &settings.cluster),
        ("NETWORK", &settings.network),
    ];
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
    Node {
        id: format!(
            "ztunnel~{address}~{}.{}~{}.svc.{}",
            own.name, own.namespace, own.namespace, settings.cluster_domain
        ),
        cluster: settings.cluster.clone(),
        metadata: Some(Struct { fields }),
        user_agent_name: "waymark-tunnel".to_owned(),
        ..Node::default()
    }
}

async fn sweep_series(metrics: Arc<Metrics>, shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(SERIES_SWEEP);
    loop {
        tick.tick().await;
        metrics.end_series(&shared.snapshot().discovery);
    }
}
