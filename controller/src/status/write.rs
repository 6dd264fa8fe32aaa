// SPDX-License-Identifier: Apache-2.0

//! Writes changed statuses to Kubernetes.
//!
//! Owns: writes side by side, each object's one after the other, only while this controller
//! leads, only what differs from what stands; failed writes are tried again. When it is time
//! for an object is [`pace`]'s, what is written [`merge`]'s.
//!
//! Start at [`run`].

mod merge;
mod pace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use kube::core::Request;
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
    let mut writes = FuturesUnordered::new();
    loop {
        while leading
            && *leads.borrow()
            && writes.len() < PARALLEL
            && let Some(key) = pace.begin(Instant::now())
        {
            let (hub, cluster) = (Arc::clone(&hub), Arc::clone(&cluster));
            writes.push(async move {
                let done = write(&hub, &cluster, &key).await;
                (key, done)
            });
        }
        // With all under way, only the end of one lets another begin.
        let due = pace.next().filter(|_| writes.len() < PARALLEL);
        tokio::select! {
            keys = outbox.statuses.take() => {
                let (now, state) = (Instant::now(), hub.read());
                for key in keys {
                    let pending = state.board.is_pending(&key);
                    pace.changed(key, pending, now);
                }
            }
            Some((key, done)) = writes.next() => {
                pace.ended(&key);
                if let Err(error) = done {
                    tracing::warn!(object = %key, %error, "status not written; it is tried again");
                    pace.again(key, Instant::now() + RETRY);
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
        if !leading {
            pace.clear();
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
        let request = Request::new(api.resource_url())
            .patch_subresource("status", name, &PatchParams::default(), &Patch::Merge(patch))
            .map_err(kube::Error::BuildRequest)?;
        match cluster.client.request::<Wrote>(request).await {
            Ok(Wrote { metadata, status }) => {
                let version = metadata.version.map(Into::into);
                cluster.wrote(key, Standing { version, status });
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

/// What is read of the answer to a write, which tells the whole object.
#[derive(serde::Deserialize)]
struct Wrote {
    metadata: Version,
    #[serde(default)]
    status: Value,
}

#[derive(serde::Deserialize)]
struct Version {
    #[serde(rename = "resourceVersion")]
    version: Option<String>,
}

fn standing_of(mut object: Raw) -> Standing {
    Standing {
        version: object.resource_version().map(Into::into),
        status: object.fields.remove("status").unwrap_or(Value::Null),
    }
}
