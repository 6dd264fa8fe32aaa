// SPDX-License-Identifier: Apache-2.0

//! Writes changed statuses to Kubernetes.
//!
//! Owns: one write for each object and batch, only while this controller leads, only what
//! differs from what stands; failed writes are tried again. When it is time for an object is
//! [`pace`]'s, what is written [`merge`]'s.
//!
//! Start at [`run`].

mod merge;
mod pace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::Value;
use tokio::sync::watch;

use self::pace::Pace;
use crate::app::Hub;
use crate::lead::dirty::{self, Outbox};
use crate::source::kubernetes::{Cluster, Raw, Standing};
use crate::store::Key;

/// Writes under way at once.
const PARALLEL: usize = 16;
/// How often one write is tried when others write too.
const TRIES: usize = 5;
/// How long a failed write waits.
const RETRY: Duration = Duration::from_secs(1);
/// How long a new leader waits for the objects of Gateways, and how often it looks.
const OBJECTS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// Writes statuses for as long as the future lives.
pub async fn run(
    hub: Arc<Hub>,
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    mut leads: watch::Receiver<bool>,
) {
    let mut pace = Pace::default();
    let mut leading = false;
    loop {
        let due = pace.next();
        tokio::select! {
            keys = outbox.statuses.take() => {
                let (now, state) = (Instant::now(), hub.read());
                for key in keys {
                    let pending = state.board.is_pending(&key);
                    pace.changed(key, pending, now);
                }
            }
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                leading = *leads.borrow_and_update();
                if leading {
                    objections(&hub).await;
                    // What the leader before left unwritten is unknown: all are compared.
                    outbox.statuses.add(hub.read().board.keys());
                }
            }
            () = dirty::until(due) => {}
        }
        let due = pace.due(Instant::now());
        if !(leading && *leads.borrow()) {
            continue;
        }
        let writes = stream::iter(due).map(|key| {
            let (hub, cluster) = (Arc::clone(&hub), Arc::clone(&cluster));
            async move { write(&hub, &cluster, &key).await.map_err(|error| (key, error)) }
        });
        let done: Vec<_> = writes.buffer_unordered(PARALLEL).collect().await;
        for (key, error) in done.into_iter().filter_map(Result::err) {
            tracing::warn!(object = %key, %error, "status not written; it is tried again");
            pace.again(key, Instant::now() + RETRY);
        }
    }
}

/// Waits until it is known what stands against the objects of Gateways: one that was told of it
/// is not told that all is well for a moment.
async fn objections(hub: &Hub) {
    let until = Instant::now() + OBJECTS;
    while !hub.read().stores.facts.knows_objections() && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
}

/// Brings the status of one object to what the board says.
async fn write(hub: &Hub, cluster: &Cluster, key: &Key) -> kube::Result<()> {
    for _ in 0..TRIES {
        let (Some(standing), Some(api)) = (cluster.standing(key), cluster.api(key)) else {
            return Ok(());
        };
        let wanted = hub.read().board.get(key);
        let Some(patch) = merge::patch(key.kind, wanted, &standing) else {
            return Ok(());
        };
        let name = &key.name.name;
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(object) => {
                cluster.wrote(key, standing_of(object));
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let Some(object) = api.get_opt(name).await? else { return Ok(()) };
                cluster.set_standing(key, Some(standing_of(object)));
            }
            Err(error) => return Err(error),
        }
    }
    tracing::warn!(object = %key, "others write its status all the time");
    Ok(())
}

fn standing_of(mut object: Raw) -> Standing {
    Standing {
        version: object.resource_version().map(Into::into),
        status: object.fields.remove("status").unwrap_or(Value::Null),
    }
}
