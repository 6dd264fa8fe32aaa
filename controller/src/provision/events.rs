// SPDX-License-Identifier: Apache-2.0

//! Tells on each object what of it is not served, as an Event: `kubectl describe` and
//! `kubectl events` show it.
//!
//! Owns: one Event for each object and thing, whose name follows from the two: whoever writes it
//! again, this controller or the next, finds it there. The apiserver forgets Events after a while,
//! so all are written again once in that time. A change is told after a moment: what an object
//! lacks may be on its way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::app::{Hub, State};
use crate::lead::dirty::Outbox;
use crate::output::{Output, OutputKey};
use crate::source::kubernetes::Cluster;
use crate::store::{Key, Kind};
use crate::translate::not_served::NotServed;

/// Who tells.
const CONTROLLER: &str = "waymark.dev/controller";
/// Why.
const REASON: &str = "NotServed";
/// Where Events of objects without a namespace lie.
const DEFAULT: &str = "default";
/// How long a change is waited with.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two writes: a start with many of them is no load for an apiserver.
const PACE: Duration = Duration::from_millis(50);
/// The shortest and the longest time until a failed write is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How often all are written again: a little more than an apiserver keeps them
/// (`--event-ttl`, an hour by default).
const AGAIN: Duration = Duration::from_secs(61 * 60);

/// Writes Events for as long as the future lives.
pub async fn run(
    hub: Arc<Hub>,
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    mut leads: watch::Receiver<bool>,
) {
    let mut again = tokio::time::interval_at(tokio::time::Instant::now() + AGAIN, AGAIN);
    let mut wait = RETRY.0;
    loop {
        let keys = tokio::select! {
            keys = outbox.not_served.take() => keys,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                if *leads.borrow_and_update() { all(&hub.read()) } else { BTreeSet::new() }
            }
            _ = again.tick() => all(&hub.read()),
        };
        if keys.is_empty() || !*leads.borrow() {
            continue;
        }
        tokio::time::sleep(SETTLE).await;
        for key in keys {
            if !*leads.borrow() {
                break;
            }
            match write(&hub, &cluster, &key).await {
                Ok(()) => wait = RETRY.0,
                Err(error) => {
                    tracing::warn!(object = %key, %error, "event not written; it is tried again");
                    tokio::time::sleep(wait).await;
                    wait = wait.saturating_mul(2).min(RETRY.1);
                    outbox.not_served.add([key]);
                }
            }
        }
    }
}

/// Every object of which something is not served.
fn all(state: &State) -> BTreeSet<Key> {
    state.graph.table.not_served().into_iter().map(|told| told.key.clone()).collect()
}

/// Tells what of an object is not served now.
async fn write(hub: &Hub, cluster: &Cluster, key: &Key) -> kube::Result<()> {
    let told = match hub.read().graph.table.get(&OutputKey::NotServed(key.clone())) {
        Some(Output::NotServed(told)) => Arc::clone(told),
        Some(Output::Config(_) | Output::Status(_) | Output::Object(_) | Output::Attached(_))
        | None => return Ok(()),
    };
    // The kind may be going: its objects go with it.
    let Some(api_version) = cluster.api_version(key.kind) else { return Ok(()) };
    for note in &told.notes {
        let event = event(&told, note, &api_version, &hub.settings.pod_name);
        create(&cluster.client, &event).await?;
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// Makes an Event, unless it is there.
async fn create(client: &Client, event: &Event) -> kube::Result<()> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or(DEFAULT);
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), event).await {
        Ok(_) => Ok(()),
        // It is there, or its namespace is going or gone.
        Err(kube::Error::Api(status))
            if matches!(status.code, 404 | 409) || status.message.contains("being terminated") =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// What is told of one thing.
fn event(told: &NotServed, note: &str, api_version: &str, instance: &str) -> Event {
    let (kind, name) = (told.key.kind, &told.key.name);
    // Those who live in a namespace see what is told of it there.
    let lies = if kind == Kind::Namespace { &name.name } else { &name.namespace };
    let namespace = Some(lies.to_string()).filter(|namespace| !namespace.is_empty());
    let uid = told.uid.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{} {uid} {note}", told.key).as_bytes());
    let digest: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("waymark-{digest}")),
            namespace: Some(namespace.clone().unwrap_or_else(|| DEFAULT.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        action: Some("Translate".to_owned()),
        reason: Some(REASON.to_owned()),
        type_: Some("Warning".to_owned()),
        note: Some(note.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.as_str().to_owned()),
            name: Some(name.name.to_string()),
            namespace,
            uid: told.uid.as_deref().map(str::to_owned),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
