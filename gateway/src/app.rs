// SPDX-License-Identifier: Apache-2.0

//! Makes the parts and ends them again, in order.
//!
//! Start: credentials, workers, listeners, admin, and last the stream with the
//! controller. End: listeners close, connections drain, workers stop.
//!
//! Start at [`run`]; [`Gateway`] is the same without a controller.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use routing::delta::{self, Kind};
use routing::snapshot::Snapshot;
use routing::stream::client::Client;
use routing::stream::{DeltaDiscoveryResponse, Node, Rejected};
use routing::wire;
use routing::wire::roots::ROOTS_URL;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunnel::control::authority::RemoteAuthority;
use tunnel::control::client::{Apply, follow};
use tunnel::control::{ControlError, Controller};
use tunnel::credentials::trust::Trust;
use tunnel::credentials::{Authority, Credentials};
use tunnel::worker::{Threads, Workers};

use crate::access_log::AccessLog;
use crate::admin;
use crate::listen::{self, Listening};
use crate::metrics::Metrics;
use crate::settings::{Role, Settings};
use crate::state::State;
use crate::trace::{self, Traces};
use crate::worker::{Connections, Shared, Worker};

/// Life asked for certificates.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What the gateway asks the controller for: what refuses comes before what serves.
const KINDS: [Kind; 8] = [
    Kind::GatewayAuthorization,
    Kind::RequestAuthentication,
    Kind::Secret,
    Kind::BackendTls,
    Kind::Gateway,
    Kind::Address,
    Kind::Route,
    Kind::Listener,
];

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A worker, or the writer of the log, cannot be started.
    #[error("threads cannot be started")]
    Threads(#[source] io::Error),
    /// A port of our own is taken.
    #[error("port of {0} cannot be bound")]
    Port(&'static str, #[source] io::Error),
}

/// A gateway that runs, whoever tells it what to serve.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    workers: Workers<Worker>,
    threads: Option<Threads>,
}

impl Gateway {
    /// Starts one whose certificates come from `authority`; it serves nothing yet.
    ///
    /// # Errors
    ///
    /// When threads cannot be started.
    pub fn start(settings: Settings, authority: Arc<dyn Authority>) -> Result<Self, AppError> {
        // A second start in one process finds it installed.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let mut limits = settings.limits.http.clone();
        limits.drain = settings.limits.drain;
        limits.quiet = limits.quiet.min(limits.drain / 2);
        let credentials = Credentials::new(authority, Handle::current());
        let count = settings.workers;
        let shared = Arc::new(Shared {
            http_limits: Arc::new(limits),
            state: State::new(&settings),
            listening: Listening::default(),
            connections: Connections::default(),
            refused: Arc::default(),
            credential: credentials.hold(&settings.identity),
            trust: credentials.trust(),
            access_log: AccessLog::start(io::stdout()).map_err(AppError::Threads)?,
            traces: Traces::default(),
            metrics: Arc::new(Metrics::default()),
            pod: settings.pod.as_str().into(),
            baggage: baggage(&settings),
            drain: CancellationToken::new(),
            synced: watch::Sender::new(false),
            settings,
        });
        let of_worker = Arc::clone(&shared);
        let make = move |_| Worker::start(Arc::clone(&of_worker));
        let (workers, threads) =
            Workers::start(count, "gateway", make).map_err(AppError::Threads)?;
        tokio::spawn(listen::follow(Arc::clone(&shared), workers.clone()));
        tokio::spawn(trace::follow(Arc::clone(&shared)));
        tokio::spawn(forget_series(Arc::clone(&shared)));
        Ok(Self { shared, workers, threads: Some(threads) })
    }

    /// Serves what `snapshot` says, from now on.
    pub fn publish(&self, snapshot: Snapshot) {
        self.shared.state.swap(snapshot);
    }

    /// Waits until all ports of the snapshot are bound and the certificate is here.
    pub async fn ready(&self) {
        while !admin::pending(&self.shared).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All series, as a scrape shows them.
    #[must_use]
    pub fn scrape(&self) -> String {
        admin::scrape(&self.shared)
    }

    /// Stops accepting, lets connections end, then ends.
    pub async fn stop(mut self) {
        self.shared.drain.cancel();
        let limit = Instant::now() + self.shared.settings.limits.drain + Duration::from_millis(200);
        while self.shared.connections.count() > 0 && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.workers.stop();
        if let Some(threads) = self.threads.take() {
            // A worker that panicked has said so itself.
            drop(tokio::task::spawn_blocking(move || threads.join()).await);
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.drain.cancel();
        self.workers.stop();
    }
}

/// Runs a gateway as its controller says, until `stop`.
///
/// # Errors
///
/// [`AppError`]; once it runs, nothing ends it but `stop`.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), AppError> {
    let trust = Arc::<Trust>::default();
    let controller = |address: &str, roots: &std::path::Path| Controller {
        address: address.to_owned(),
        roots: roots.to_owned(),
        name: None,
        token: settings.token.clone(),
        cluster: settings.cluster.clone(),
        trust: Arc::clone(&trust),
    };
    let discovery = controller(&settings.xds_address, &settings.xds_root);
    let authority = RemoteAuthority {
        controller: controller(&settings.ca_address, &settings.ca_root),
        impersonate: false,
        life: CERTIFICATE_LIFE,
    };
    let bind = |name: &'static str, address| async move {
        TcpListener::bind(address).await.map_err(|error| AppError::Port(name, error))
    };
    let (admin, readiness, stats) = (
        bind("admin", settings.admin).await?,
        bind("readiness", settings.readiness).await?,
        bind("metrics", settings.stats).await?,
    );
    // What is told of roots goes first: peers may show certificates of them any moment.
    let kinds = std::iter::once(ROOTS_URL).chain(KINDS.iter().map(|kind| kind.type_url()));
    let client = Client::new(node(&settings), kinds).optional(ROOTS_URL);
    let gateway = Gateway::start(settings, Arc::new(authority))?;
    let quit = CancellationToken::new();
    let shared = &gateway.shared;
    tokio::spawn(admin::serve(admin, admin::Face::Admin(quit.clone()), Arc::clone(shared)));
    tokio::spawn(admin::serve(readiness, admin::Face::Readiness, Arc::clone(shared)));
    tokio::spawn(admin::serve(stats, admin::Face::Stats, Arc::clone(shared)));
    let mut sink = Publisher(Arc::clone(shared));
    tokio::select! {
        () = stop => tracing::info!("told to end"),
        () = quit.cancelled() => tracing::info!("asked to end by its admin port"),
        () = follow(&discovery, client, &mut sink) => {}
    }
    gateway.stop().await;
    Ok(())
}

/// Puts what the controller says into use.
struct Publisher(Arc<Shared>);

impl Apply for Publisher {
    fn apply(&mut self, response: &DeltaDiscoveryResponse) -> Vec<Rejected> {
        if response.type_url == ROOTS_URL {
            return self.0.trust.apply(response);
        }
        let changes = match wire::discovery::read(response) {
            Ok(changes) => changes,
            Err(error) => {
                let reason = wire::chain(&error).into();
                return vec![Rejected { name: "".into(), reason }];
            }
        };
        let now = self.0.state.load();
        let (next, rejected) = delta::apply(&now.snapshot, changes);
        self.0.state.swap(next);
        rejected.into_iter().map(|one| Rejected { name: one.name, reason: one.reason }).collect()
    }

    fn complete(&mut self) {
        self.0.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    fn disconnected(&mut self, why: &ControlError) {
        tracing::warn!(
            error = %wire::chain(why),
            revision = self.0.state.load().snapshot.revision,
            "no stream with the controller; the last good configuration stays in force"
        );
    }
}

/// Drops the series of workloads that are gone, a while after each change.
async fn forget_series(shared: Arc<Shared>) {
    /// So long a last scrape may still take.
    const GRACE: Duration = Duration::from_secs(60);
    let mut changes = shared.state.changes();
    while changes.changed().await.is_ok() {
        tokio::time::sleep(GRACE).await;
        changes.mark_unchanged();
        let loaded = shared.state.load();
        let own = &loaded.own.uid;
        let discovery = &loaded.snapshot.discovery;
        shared.metrics.forget(|uid| **own != *uid && discovery.workload(uid).is_none());
    }
}

/// Who we are, for the controller.
fn node(settings: &Settings) -> Node {
    let role = match settings.role {
        Role::Waypoint => "waypoint",
        Role::Router => "router",
    };
    let ip = settings.addresses.first().map(ToString::to_string).unwrap_or_default();
    let namespace = &settings.namespace;
    let pod = &settings.pod;
    let text = |value: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
    };
    let metadata = [
        ("NAME", pod.as_str()),
        ("NAMESPACE", namespace.as_str()),
        ("NODE_NAME", &settings.node),
        ("CLUSTER_ID", &settings.cluster),
        ("GATEWAY_NAME", settings.gateway.name()),
    ];
    let fields = metadata.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
    Node {
        id: format!("{role}~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(prost_types::Struct { fields }),
        ..Node::default()
    }
}

/// Who we are, for the tunnels that we send through.
///
/// Rule: ztunnel's `src/proxy`.
fn baggage(settings: &Settings) -> Option<HeaderValue> {
    let (namespace, name) = (&settings.namespace, settings.gateway.name());
    let cluster = &settings.cluster;
    let text = format!(
        "k8s.cluster.name={cluster},k8s.namespace.name={namespace},\
         k8s.deployment.name={name},service.name={name}"
    );
    HeaderValue::try_from(text).ok()
}
