// SPDX-License-Identifier: Apache-2.0

//! Gateways in pods, for tests in network namespaces.
//!
//! Owns: starting one in this process with all its threads inside the namespace of its
//! pod, and telling it what the controller would. What runs is what ships; only the
//! controller's stream is left out.
//!
//! Start at [`PodGateway::start`].

use std::sync::Arc;

use anyhow::Context as _;
use gateway::app::Gateway;
use routing::delta::{self, Change, Resource};
use routing::discovery::{GatewayAddress, GatewayDestination, NetworkAddress};
use routing::listener::Protocol;
use routing::snapshot::Snapshot;
use tokio::runtime::{Builder, Runtime};
use tunnel::hbone;

use crate::certs::Issuer;
use crate::mesh::{listener, resource, settings};
use crate::netns::Pod;

/// The gateway `shop/NAME` in a pod of the same name.
#[derive(Debug)]
pub struct PodGateway {
    /// Name of the gateway, its pod and its account.
    pub name: String,
    /// Its pod.
    pub pod: Pod,
    gateway: Gateway,
    snapshot: Snapshot,
    runtime: Option<Runtime>,
}

impl PodGateway {
    /// Starts one in `pod` that knows what `known` says: a waypoint, or one at the edge,
    /// which listens for HTTP on 8080.
    ///
    /// # Errors
    ///
    /// When its threads cannot be made.
    pub fn start(
        pod: Pod,
        name: &str,
        waypoint: bool,
        (known, issuer): (Snapshot, &Arc<Issuer>),
    ) -> anyhow::Result<Self> {
        // Threads live in the namespace of the thread that made them.
        let (runtime, gateway) = pod.netns.enter(|| {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let _inside = runtime.enter();
            let settings = settings(waypoint, name, name, pod.v4.into())?;
            let gateway = Gateway::start(settings, Arc::clone(issuer) as _)?;
            anyhow::Ok((runtime, gateway))
        })??;
        let runtime = Some(runtime);
        let mut this = Self { name: name.to_owned(), pod, gateway, snapshot: known, runtime };
        let door = match waypoint {
            true => listener(name, "mesh", (hbone::PORT, Protocol::Hbone))?,
            false => listener(name, "http", (8080, Protocol::Http))?,
        };
        let own = [
            Resource::Gateway(Arc::new(resource(waypoint, name)?)),
            Resource::Listener(Arc::new(door)),
        ];
        this.tell(own.into_iter().map(Change::Put))?;
        Ok(this)
    }

    /// Tells it of changes, as the controller's stream would.
    ///
    /// # Errors
    ///
    /// When a resource is refused.
    pub fn tell(&mut self, changes: impl IntoIterator<Item = Change>) -> anyhow::Result<()> {
        let (next, rejected) = delta::apply(&self.snapshot, changes);
        anyhow::ensure!(rejected.is_empty(), "{rejected:?}");
        self.snapshot = next.clone();
        self.gateway.publish(next);
        Ok(())
    }

    /// Waits until its ports are open and its certificate is here.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let ready = tokio::time::timeout(crate::node::SOON, self.gateway.ready());
        ready.await.with_context(|| format!("{} is not ready", self.name))
    }

    /// Where others find it as a waypoint.
    #[must_use]
    pub fn address(&self) -> GatewayAddress {
        let address = NetworkAddress::new("".into(), self.pod.v4.into());
        let destination = GatewayDestination::Address(address);
        GatewayAddress { destination, hbone_port: hbone::PORT }
    }

    /// All its series, as a scrape shows them.
    #[must_use]
    pub fn scrape(&self) -> String {
        self.gateway.scrape()
    }
}

impl Drop for PodGateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
