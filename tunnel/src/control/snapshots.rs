// SPDX-License-Identifier: Apache-2.0

//! Puts what the controller says into the shared snapshot.
//!
//! Owns the order: decode, apply, publish, then tell sessions and pools what
//! concerns them. Leaves decoding to `routing::wire` and the meaning to
//! `routing::delta`.

use std::sync::Arc;

use routing::delta::{self, Change, Kind, Resource};
use routing::discovery::{Health, Workload};
use routing::snapshot::Snapshot;
use routing::stream::{DeltaDiscoveryResponse, Rejected};
use routing::wire;
use routing::wire::roots::ROOTS_URL;

use super::ControlError;
use super::client::Apply;
use super::metrics::StreamMetrics;
use crate::credentials::trust::Trust;
use crate::state::Shared;

/// Applies responses to a [`Shared`].
#[derive(Debug)]
pub struct Snapshots {
    shared: Arc<Shared>,
    metrics: Arc<StreamMetrics>,
    trust: Arc<Trust>,
}

impl Snapshots {
    /// Publishes into `shared`, tells `trust` of roots, and counts in `metrics`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, metrics: Arc<StreamMetrics>, trust: Arc<Trust>) -> Self {
        Self { shared, metrics, trust }
    }
}

impl Apply for Snapshots {
    fn apply(&mut self, response: &DeltaDiscoveryResponse) -> Vec<Rejected> {
        self.metrics.received(response);
        if response.type_url == ROOTS_URL {
            return self.trust.apply(response);
        }
        let changes = match wire::discovery::read(response) {
            Ok(changes) => changes,
            Err(error) => {
                let reason = wire::chain(&error).into();
                return vec![Rejected { name: "".into(), reason }];
            }
        };
        let old = self.shared.snapshot();
        let policies = Kind::of_type_url(&response.type_url).is_some_and(is_policy)
            || changes.iter().any(|change| lists_other_policies(change, &old));
        let gone = changes.iter().filter_map(|change| gone(change, &old)).collect();
        let (next, rejected) = delta::apply(&old, changes);
        self.shared.publish(Arc::new(next), policies, gone);
        rejected.into_iter().map(|one| Rejected { name: one.name, reason: one.reason }).collect()
    }

    fn complete(&mut self) {
        self.shared.synced();
    }

    fn disconnected(&mut self, why: &ControlError) {
        self.metrics.ended(why);
        tracing::warn!(
            error = %wire::chain(why),
            revision = self.shared.snapshot().revision,
            "no stream with the controller; the last good configuration stays in force"
        );
    }
}

fn is_policy(kind: Kind) -> bool {
    match kind {
        Kind::Authorization | Kind::GatewayAuthorization => true,
        Kind::Address
        | Kind::Gateway
        | Kind::Listener
        | Kind::Route
        | Kind::BackendTls
        | Kind::Secret
        | Kind::RequestAuthentication => false,
    }
}

fn lists_other_policies(change: &Change, old: &Snapshot) -> bool {
    let Change::Put(Resource::Workload(new)) = change else { return false };
    let old = old.discovery.workload(&new.uid);
    old.is_some_and(|old| old.authorization_policies != new.authorization_policies)
}

/// The uid of a workload to which no old connection may be used any more: it is
/// gone, is another pod, has moved, or is about to end.
fn gone(change: &Change, old: &Snapshot) -> Option<Arc<str>> {
    let changed = |new: &Workload, old: &Workload| {
        old.pod_uid != new.pod_uid
            || old.addresses != new.addresses
            || old.identity != new.identity
            || (old.health == Health::Healthy && new.health != Health::Healthy)
    };
    match change {
        Change::Gone(Kind::Address, name) => Some(Arc::clone(name)),
        Change::Put(Resource::Workload(new)) => {
            let old = old.discovery.workload(&new.uid)?;
            changed(new, old).then(|| Arc::clone(&new.uid))
        }
        Change::Put(_) | Change::Gone(..) | Change::Unreadable { .. } => None,
    }
}
