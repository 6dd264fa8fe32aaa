// SPDX-License-Identifier: Apache-2.0

//! The snapshot in use, and word of every change.
//!
//! Owns the one pointer that all cores read. A request loads it once and keeps
//! what it got; sessions that last subscribe to [`State::changes`].

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use policy::authz::Target;
use routing::discovery::{NetworkAddress, Workload};
use routing::gateway::LogFormat;
use routing::listener::GatewayName;
use routing::serving::{Serving, targets};
use routing::snapshot::Snapshot;
use tokio::sync::watch;

use crate::jwt::Authenticators;
use crate::settings::Settings;

/// A snapshot, and what this process makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) snapshot: Snapshot,
    /// The gateway itself, as others see it; until it is known, made from the settings.
    pub(crate) own: Arc<Workload>,
    /// The Gateway that this process serves.
    pub(crate) gateway: GatewayName,
    targets: Vec<Target>,
    authenticators: Arc<Authenticators>,
}

impl Loaded {
    /// What the gateway serves.
    pub(crate) fn serving(&self) -> &Serving {
        &self.snapshot.serving
    }

    /// What policies over all requests of this gateway point at: itself, and its class.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter()
    }

    /// Which tokens of end users are taken, with the keys that sign them.
    pub(crate) fn authenticators(&self) -> &Authenticators {
        &self.authenticators
    }

    /// Proxies in front of this gateway whose forwarding headers are believed.
    pub(crate) fn trusted_hops(&self) -> usize {
        let gateway = self.serving().gateway(&self.gateway);
        gateway.map_or(0, |gateway| usize::try_from(gateway.trusted_hops).unwrap_or(usize::MAX))
    }

    /// How a line is logged per request; none: not at all.
    pub(crate) fn log_format(&self) -> Option<LogFormat> {
        let gateway = self.serving().gateway(&self.gateway);
        gateway.map_or(Some(LogFormat::Text), |gateway| gateway.access_log)
    }
}

/// What one core has in use, which counts references to it without the other cores.
#[derive(Debug)]
pub(crate) struct OfCore(Arc<Loaded>);

impl OfCore {
    pub(crate) fn new(loaded: Arc<Loaded>) -> Self {
        Self(loaded)
    }

    /// Tells whether it is `other`.
    pub(crate) fn is(&self, other: &Arc<Loaded>) -> bool {
        Arc::ptr_eq(&self.0, other)
    }
}

impl Deref for OfCore {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.0
    }
}

/// The pointer to what is in use.
#[derive(Debug)]
pub(crate) struct State {
    loaded: ArcSwap<Loaded>,
    revisions: watch::Sender<u64>,
    stand_in: Arc<Workload>,
}

impl State {
    /// Nothing is known yet.
    pub(crate) fn new(settings: &Settings) -> Self {
        let stand_in = Arc::new(stand_in(settings));
        let loaded = Loaded {
            snapshot: Snapshot::default(),
            own: Arc::clone(&stand_in),
            gateway: settings.gateway.clone(),
            targets: Vec::new(),
            authenticators: Arc::default(),
        };
        Self { loaded: ArcSwap::from_pointee(loaded), revisions: watch::Sender::new(0), stand_in }
    }

    /// What is in use now.
    pub(crate) fn load(&self) -> Arc<Loaded> {
        self.loaded.load_full()
    }

    /// What is in use now, to be looked at for a moment.
    pub(crate) fn peek(&self) -> Guard<Arc<Loaded>> {
        self.loaded.load()
    }

    /// Takes `snapshot` into use: every request from now on sees it.
    pub(crate) fn swap(&self, snapshot: Snapshot) {
        let revision = snapshot.revision;
        let old = self.loaded.load();
        let gateway = old.gateway.clone();
        let authenticators = old.authenticators.next(&snapshot.serving.authentications);
        let authenticators =
            authenticators.map_or_else(|| Arc::clone(&old.authenticators), Arc::new);
        let own = self.own(&snapshot);
        let known = snapshot.serving.gateway(&gateway);
        let targets = match known {
            Some(known) => targets::of_gateway(known).to_vec(),
            None => vec![Target::Gateway(gateway.as_str().into())],
        };
        let loaded = Loaded { snapshot, own, gateway, targets, authenticators };
        self.loaded.store(Arc::new(loaded));
        self.revisions.send_replace(revision);
    }

    /// Word of every change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revisions.subscribe()
    }

    /// The own workload in `snapshot`, by address.
    fn own(&self, snapshot: &Snapshot) -> Arc<Workload> {
        let at = |ip: &_| {
            let address = NetworkAddress::new(Arc::clone(&self.stand_in.network), *ip);
            let found = snapshot.discovery.workload_at(&address);
            found.filter(|found| found.identity == self.stand_in.identity)
        };
        let found = self.stand_in.addresses.iter().find_map(at);
        Arc::clone(found.unwrap_or(&self.stand_in))
    }
}

/// The gateway's workload as far as the settings tell.
fn stand_in(settings: &Settings) -> Workload {
    let uid = Workload::pod_key(&settings.cluster, settings.namespace.as_str(), &settings.pod);
    let mut own = Workload::new(uid, settings.identity.clone(), settings.namespace.clone());
    own.name = settings.pod.as_str().into();
    own.addresses.clone_from(&settings.addresses);
    own.network = settings.network.as_str().into();
    own.cluster = settings.cluster.as_str().into();
    own.node = settings.node.as_str().into();
    own.workload_name = settings.gateway.name().into();
    own.canonical_name = settings.gateway.name().into();
    own
}
