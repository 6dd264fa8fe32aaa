// SPDX-License-Identifier: Apache-2.0

//! Writes the objects that run gateways to Kubernetes.
//!
//! Server-side apply, so twice or halfway is harmless; objects go with their Gateway by owner
//! reference. A refused object holds up no other: it is tried again with backoff. An object of
//! the same name that is not marked as managed is another's, and left alone.
//!
//! Start at [`run`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams};
use tokio::sync::watch;

use crate::api;
use crate::app::Hub;
use crate::lead::dirty::{self, Outbox};
use crate::output::{Output, OutputKey};
use crate::source::kubernetes::{Cluster, is_made};
use crate::store::{Key, Object};

/// Who the fields belong to.
pub const MANAGER: &str = "waymark-controller";
/// The shortest and the longest time until a refused object is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Refused objects: how often, and when they are tried again.
#[derive(Debug, Default)]
struct Refused {
    tries: BTreeMap<Key, (u32, Instant)>,
}

impl Refused {
    fn note(&mut self, key: Key, now: Instant) {
        let tries = self.tries.get(&key).map_or(0, |(tries, _)| *tries);
        let wait = BACKOFF.0.saturating_mul(1 << tries.min(8)).min(BACKOFF.1);
        self.tries.insert(key, (tries + 1, now + wait));
    }

    fn due(&self, now: Instant) -> BTreeSet<Key> {
        self.tries.iter().filter(|(_, (_, at))| *at <= now).map(|(key, _)| key.clone()).collect()
    }

    fn next(&self) -> Option<Instant> {
        self.tries.values().map(|(_, at)| *at).min()
    }
}

/// Writes objects for as long as the future lives.
pub async fn run(
    hub: Arc<Hub>,
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    mut leads: watch::Receiver<bool>,
) {
    let mut refused = Refused::default();
    loop {
        let next = refused.next();
        let keys = tokio::select! {
            keys = outbox.objects.take() => keys,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                if *leads.borrow_and_update() { all(&hub) } else { BTreeSet::new() }
            }
            () = dirty::until(next) => refused.due(Instant::now()),
        };
        if !*leads.borrow() {
            refused = Refused::default();
            continue;
        }
        for key in keys {
            match write(&hub, &cluster, &key).await {
                Ok(()) => {
                    refused.tries.remove(&key);
                }
                Err(error) => {
                    tracing::warn!(object = %key, %error, "object of a Gateway not written; it is tried again");
                    refused.note(key, Instant::now());
                }
            }
        }
    }
}

/// Every object that is wanted.
fn all(hub: &Hub) -> BTreeSet<Key> {
    let state = hub.read();
    let object = |key: &OutputKey| match key {
        OutputKey::Object(key) => Some(key.clone()),
        OutputKey::Config(..) | OutputKey::Status(_) | OutputKey::Attached(_) => None,
    };
    state.graph.table.all().filter_map(|(key, _)| object(key)).collect()
}

async fn write(hub: &Hub, cluster: &Cluster, key: &Key) -> kube::Result<()> {
    let Some(api) = cluster.api(key) else { return Ok(()) };
    let (wanted, standing) = {
        let state = hub.read();
        let wanted = match state.graph.table.get(&OutputKey::Object(key.clone())) {
            Some(Output::Object(manifest)) => Some(manifest.value.clone()),
            _ => None,
        };
        (wanted, state.stores.object(key))
    };
    if standing.as_ref().is_some_and(|object| !is_managed(object)) {
        if wanted.is_some() {
            tracing::warn!(object = %key, "an object of this name is not managed here; it is left alone");
        }
        return Ok(());
    }
    // Of such kinds only ours are known: whether another's bears the name is asked.
    if wanted.is_some() && standing.is_none() && is_made(key.kind) {
        let found = api.get_metadata_opt(&key.name.name).await?;
        let labels = found.and_then(|found| Some(found.metadata.labels.unwrap_or_default()));
        if labels.is_some_and(|labels| !labels.contains_key(api::MANAGED)) {
            tracing::warn!(object = %key, "an object of this name is not managed here; it is left alone");
            return Ok(());
        }
    }
    match wanted {
        Some(value) => {
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&key.name.name, &params, &Patch::Apply(value)).await?;
            tracing::debug!(object = %key, "applied");
        }
        None if standing.is_some() => {
            match api.delete(&key.name.name, &DeleteParams::default()).await {
                Ok(_) => tracing::info!(object = %key, "deleted"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        None => {}
    }
    Ok(())
}

fn is_managed(object: &Object) -> bool {
    let labels = object.meta().labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key(api::MANAGED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, Name};

    #[test]
    fn a_refused_object_waits_longer_each_time_up_to_a_limit() {
        let start = Instant::now();
        let key = || Key { kind: Kind::Service, name: Name::new("n", "s") };
        let mut refused = Refused::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            refused.note(key(), start);
            waits.push(refused.next().unwrap().duration_since(start).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert!(refused.due(start + Duration::from_secs(29)).is_empty());
        assert_eq!(refused.due(start + Duration::from_secs(30)), BTreeSet::from([key()]));
    }
}
