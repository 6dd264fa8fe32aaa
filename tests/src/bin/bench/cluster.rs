// SPDX-License-Identifier: Apache-2.0

//! The mesh on a real Kubernetes: how soon it follows, and what it costs.
//!
//! Runs inside the world of a cluster that has the mesh. Owns: the phases and their order,
//! the bars, the table, and that nothing of it stays. Routes are real and answer; pods and
//! their node are objects at the apiserver alone. The backend of every route is this process.
//!
//! Start at [`run`].

mod apiserver;
mod burst;
mod edits;
mod objects;
mod processes;
mod report;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::apiserver::{
    Apiserver, GATEWAYS, LEASES, NAMESPACES, NODES, PODS, ROUTES, SERVICES, SLICES,
};
use self::edits::{Cost, Waits};
use self::objects::{EDGE, NODE};
use self::processes::{Memory, Process};
use crate::progress;

/// Where the controller is, and the Lease that tells which of several leads.
const SYSTEM: &str = "istio-system";
const LEASE: &str = "waymark-controller-leader";
/// Address of this world on the network of the nodes.
const OWN: &str = "172.30.0.1";
/// Clients that make objects at once.
const CLIENTS: usize = 16;
/// Time in which everything is measured, and in which all is removed.
const LIMIT: Duration = Duration::from_secs(11 * 60);
const REMOVAL: Duration = Duration::from_secs(2 * 60);
/// The longest that anything may take to start, or to come to rest.
const SOON: Duration = Duration::from_secs(90);

/// How much is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct Size {
    /// Numbers of routes at which edits are measured, in rising order
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 5000])]
    routes: Vec<usize>,
    /// Routes that are made at once
    #[arg(long, default_value_t = 1000)]
    burst: usize,
    /// Seconds in which those are made
    #[arg(long, default_value_t = 5.0)]
    within: f64,
    /// Pods
    #[arg(long, default_value_t = 2000)]
    pods: usize,
    /// Edits at each number of routes
    #[arg(long, default_value_t = 100)]
    edits: usize,
    /// Seconds in which one pod each is replaced
    #[arg(long, default_value_t = 30)]
    churn: usize,
}

/// Where it is measured.
struct Place {
    api: Apiserver,
    clients: Vec<Apiserver>,
    /// The Gateway, as clients reach it.
    address: SocketAddr,
    /// The controller that leads.
    leader: Process,
    /// Those that do not.
    followers: Vec<Process>,
    gateway: Process,
    marks: AtomicUsize,
}

/// Figures at one number of routes.
struct AtSize {
    routes: usize,
    waits: Waits,
    cost: Cost,
}

/// A task that ends with this.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Everything that was measured.
struct Figures {
    edits: Vec<AtSize>,
    burst: burst::Burst,
    /// Routes, and the milliseconds of the controller's CPU for each of those that came last.
    made: (usize, f64),
    gateway: Memory,
    /// With all pods there.
    gateway_full: Memory,
    leader: Memory,
    followers: Vec<Memory>,
    /// Cores: nothing happening, and one pod replaced each second.
    idle: f64,
    churn: f64,
}

/// Measures on the cluster of the kubeconfig, and prints the table.
///
/// # Errors
///
/// When the mesh is not there, does not do what it should, or takes too long.
pub(crate) fn run(size: &Size) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(Box::pin(async {
        let api = Apiserver::connect().await?;
        remove(&api).await?;
        let measured = tokio::time::timeout(LIMIT, Box::pin(measure(&api, size))).await;
        progress("removing everything that was made");
        let removed = tokio::time::timeout(REMOVAL, remove(&api)).await;
        let figures = measured.with_context(|| format!("not done after {LIMIT:?}"))??;
        report::print(size, &figures)?;
        removed.with_context(|| format!("not removed after {REMOVAL:?}"))?
    }))
}

impl Place {
    /// A mark that no route bore yet.
    fn mark(&self) -> String {
        self.marks.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Waits until controller and gateway have nothing to do.
    async fn rest(&self) -> anyhow::Result<()> {
        processes::quiet(&[&self.leader, &self.gateway], SOON).await
    }
}

async fn measure(api: &Apiserver, size: &Size) -> anyhow::Result<Figures> {
    let place = start(api).await?;
    let mut figures_at = Vec::new();
    let (mut there, mut sizes) = (0, size.routes.clone());
    sizes.sort_unstable();

    // Those below the burst come first, and go before it: it starts from nothing.
    let later = sizes.split_off(sizes.partition_point(|routes| *routes < size.burst));
    for routes in sizes {
        burst::make(&place, there..routes, Duration::ZERO).await?;
        there = routes;
        figures_at.push(at(&place, routes, size.edits).await?);
    }
    place.api.delete_all(ROUTES, EDGE).await?;
    burst::counted(&place, 0).await?;
    place.rest().await?;

    progress(&format!("{} routes by {CLIENTS} clients within {} s", size.burst, size.within));
    let within = Duration::from_secs_f64(size.within);
    let burst = burst::measure(&place, size.burst, within).await?;
    there = size.burst;
    let mut made = (there, burst.cpu);
    for routes in later.iter().copied().filter(|routes| *routes <= there) {
        figures_at.push(at(&place, routes, size.edits).await?);
    }
    let mut gateway = place.gateway.memory();
    for routes in later.into_iter().filter(|routes| *routes > size.burst) {
        progress(&format!("making routes up to {routes}"));
        made = (routes, grow(&place, there..routes).await?);
        there = routes;
        gateway = place.gateway.memory();
        figures_at.push(at(&place, there, size.edits).await?);
    }
    let heart = make_pods(&place, size.pods).await?;
    place.rest().await?;
    let (leader, gateway_full) = (place.leader.memory(), place.gateway.memory());
    let followers = place.followers.iter().map(Process::memory).collect();
    progress("nothing happens, then one pod a second is replaced");
    let seconds = Duration::from_secs(u64::try_from(size.churn)?);
    let idle = place.leader.cores(seconds).await?;
    let churn = churn(&place, size).await?;
    drop(heart);
    let edits = figures_at;
    Ok(Figures { edits, burst, made, gateway, gateway_full, leader, followers, idle, churn })
}

/// Edits with so many routes there.
async fn at(place: &Place, routes: usize, edits: usize) -> anyhow::Result<AtSize> {
    place.rest().await?;
    progress(&format!("{edits} edits among {routes} routes"));
    let waits = edits::follow(place, routes, edits).await?;
    place.rest().await?;
    let cost = edits::cost(place, routes, edits * 2).await?;
    Ok(AtSize { routes, waits, cost })
}

/// Makes more routes as quickly as the apiserver can; milliseconds of the controller's CPU for each.
async fn grow(place: &Place, range: std::ops::Range<usize>) -> anyhow::Result<f64> {
    let (before, count, end) = (place.leader.cpu()?, range.len(), range.end);
    burst::make(place, range, Duration::ZERO).await?;
    burst::counted(place, end).await?;
    place.rest().await?;
    Ok((place.leader.cpu()? - before) * 1e3 / f64::from(u32::try_from(count.max(1))?))
}

/// Makes a node, Services, and pods behind them; the node lives for as long as the task.
async fn make_pods(place: &Place, pods: usize) -> anyhow::Result<Task> {
    progress(&format!("making {pods} pods"));
    place.api.make(NODES, "", objects::node()).await?;
    place.api.patch_status(NODES, "", NODE, &objects::node_status()).await?;
    let leases: Api<DynamicObject> = place.api.objects(LEASES, "kube-node-lease");
    let heart = tokio::spawn(async move {
        let apply = PatchParams::apply("waymark-bench").force();
        loop {
            let beat = leases.patch(NODE, &apply, &Patch::Apply(objects::heartbeat())).await;
            if let Err(error) = beat {
                progress(&format!("heartbeat of {NODE} failed: {error}"));
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    });
    let heart = Task(heart.abort_handle());
    let services = |api: Apiserver, at| async move {
        api.make(SERVICES, objects::PODS, objects::pods_service(at)).await
    };
    let count = objects::services_of(pods);
    apiserver::share(&place.clients, 0..count, Duration::ZERO, services).await?;
    let make = |api: Apiserver, at| async move { make_pod(&api, at, pods).await };
    apiserver::share(&place.clients, 0..pods, Duration::ZERO, make).await?;
    place.rest().await?;
    Ok(heart)
}

async fn make_pod(api: &Apiserver, at: usize, pods: usize) -> anyhow::Result<()> {
    api.make(PODS, objects::PODS, objects::pod(at, pods)).await?;
    let status = objects::pod_status(at);
    api.patch_status(PODS, objects::PODS, &objects::pod_name(at), &status).await
}

/// Replaces one pod a second; cores that the controller uses.
async fn churn(place: &Place, size: &Size) -> anyhow::Result<f64> {
    let (before, began) = (place.leader.cpu()?, Instant::now());
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for old in 0..size.churn.min(size.pods) {
        second.tick().await;
        place.api.delete(PODS, objects::PODS, &objects::pod_name(old)).await?;
        make_pod(&place.api, size.pods + old, size.pods).await?;
    }
    second.tick().await;
    Ok((place.leader.cpu()? - before) / began.elapsed().as_secs_f64())
}

/// Makes the Gateway and the Services that routes send to, and waits until it answers.
async fn start(api: &Apiserver) -> anyhow::Result<Place> {
    let listener = TcpListener::bind((OWN, 0)).await.with_context(|| {
        format!("no address {OWN} here: run it inside a cluster, by tests/bench.sh cluster")
    })?;
    let own = listener.local_addr()?;
    tokio::spawn(waymark_tests::load::serve::http(listener, "bench".to_owned(), 2));
    let clients = apiserver::clients(CLIENTS).await?;
    for name in [EDGE, objects::PODS] {
        api.make(NAMESPACES, "", objects::namespace(name)).await?;
    }
    api.make(GATEWAYS, EDGE, objects::gateway()).await?;
    let backend = |api: Apiserver, at| async move {
        api.make(SERVICES, EDGE, objects::backend(at)).await?;
        api.make(SLICES, EDGE, objects::slice(at, own)).await
    };
    apiserver::share(&clients, 0..objects::BACKENDS, Duration::ZERO, backend).await?;
    let address = programmed(api).await?;
    let leases: Api<Lease> = api.typed(SYSTEM);
    let lease = leases.get(LEASE).await.context("no controller of the mesh leads here")?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
    let controllers = Process::all("waymark-controller").into_iter();
    let (leader, followers): (Vec<_>, Vec<_>) = controllers.partition(|one| one.pod == holder);
    let leader = leader.into_iter().next();
    let leader = leader.with_context(|| format!("no process of the leading pod {holder}"))?;
    let is_ours = |one: &Process| one.pod.starts_with(&format!("{}-waymark-", objects::GATEWAY));
    let gateway = Process::all("waymark-gateway").into_iter().find(is_ours);
    let gateway = gateway.context("no process of the Gateway's pod")?;
    let (api, marks) = (api.clone(), AtomicUsize::new(1));
    Ok(Place { api, clients, address, leader, followers, gateway, marks })
}

/// Waits until the Gateway is programmed; where it is reached.
async fn programmed(api: &Apiserver) -> anyhow::Result<SocketAddr> {
    let began = Instant::now();
    loop {
        let gateway = api.objects(GATEWAYS, EDGE).get(objects::GATEWAY).await?;
        let conditions = gateway.data.pointer("/status/conditions").and_then(|all| all.as_array());
        let programmed = conditions.into_iter().flatten().any(|condition| {
            condition.get("type").is_some_and(|kind| kind == "Programmed")
                && condition.get("status").is_some_and(|status| status == "True")
        });
        let address = gateway.data.pointer("/status/addresses/0/value");
        if let (true, Some(address)) = (programmed, address.and_then(|one| one.as_str())) {
            return Ok(SocketAddr::new(address.parse()?, 80));
        }
        if began.elapsed() > SOON {
            bail!("the Gateway is not programmed after {SOON:?}: {:?}", gateway.data.get("status"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Removes all that a run makes, also of one that was ended before it could.
async fn remove(api: &Apiserver) -> anyhow::Result<()> {
    let namespaces = api.objects(NAMESPACES, "");
    for (name, kind) in [(EDGE, ROUTES), (objects::PODS, PODS)] {
        if namespaces.get_opt(name).await?.is_some() {
            api.delete_all(kind, name).await?;
            api.delete(NAMESPACES, "", name).await?;
        }
    }
    api.delete(NODES, "", NODE).await?;
    api.delete(LEASES, "kube-node-lease", NODE).await?;
    for name in [EDGE, objects::PODS] {
        while namespaces.get_opt(name).await?.is_some() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}
