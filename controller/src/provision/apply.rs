// SPDX-License-Identifier: Apache-2.0

//! Writes the objects that run gateways to Kubernetes.
//!
//! Server-side apply, so twice or halfway is harmless; objects go with their Gateway by owner
//! reference. A refused object holds up no other: it is tried again with backoff. An object of
//! the same name that is not marked as managed is another's, and left alone. The Gateway is told
//! of both ([`objection`]) until it works.
//!
//! Start at [`run`].

mod objection;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use tokio::sync::watch;

use self::objection::{Objected, WriteError};
use super::overlay;
use crate::api;
use crate::app::Hub;
use crate::lead::dirty::{self, Outbox};
use crate::output::{Output, OutputKey, Table};
use crate::source::kubernetes::Cluster;
use crate::store::{Key, Kind, Name, Stores};

/// Who the fields belong to.
pub const MANAGER: &str = "waymark-controller";

/// Writes objects for as long as the future lives.
pub async fn run(
    hub: Arc<Hub>,
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    mut leads: watch::Receiver<bool>,
) {
    let mut objected = Objected::default();
    let mut leading = false;
    loop {
        let next = objected.next();
        let keys = tokio::select! {
            keys = outbox.objects.take() => keys,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                leading = *leads.borrow_and_update();
                if leading { all(&hub) } else { BTreeSet::new() }
            }
            () = dirty::until(next) => objected.due(Instant::now()),
        };
        if !(leading && *leads.borrow()) {
            objected = Objected::default();
            hub.objections.send_if_modified(|known| known.take().is_some());
            continue;
        }
        for key in with_left_over(&hub, keys) {
            let written = write(&hub, &cluster, &key).await;
            let differs = objected.take(&key, written.err(), Instant::now());
            if differs && hub.objections.borrow().is_some() {
                tell(&hub, &objected);
            }
        }
        tell(&hub, &objected);
    }
}

/// Lets Gateways know what stands against their objects.
fn tell(hub: &Hub, objected: &Objected) {
    let now = Some(objected.told());
    hub.objections.send_if_modified(|known| {
        let differs = *known != now;
        known.clone_from(&now);
        differs
    });
}

/// Every object that is wanted, and those that no longer are.
fn all(hub: &Hub) -> BTreeSet<Key> {
    let state = hub.read();
    let mut wanted = BTreeSet::new();
    let mut gateways = BTreeSet::new();
    for (_, output) in state.graph.table.all() {
        if let Output::Object(manifest) = output {
            wanted.insert(manifest.key.clone());
            gateways.insert(manifest.owner.clone());
        }
    }
    let left = left_over(&state.stores, &wanted, &gateways);
    wanted.into_iter().chain(left).collect()
}

/// Objects that a controller before this one made for a Gateway that wants others now.
///
/// Of a Gateway for which nothing is wanted nothing is taken away: its parameters may be
/// refused, and its objects stay as they were.
fn left_over(stores: &Stores, wanted: &BTreeSet<Key>, gateways: &BTreeSet<Name>) -> Vec<Key> {
    let kinds = overlay::KEYS.iter().map(|(_, kind)| *kind);
    let keys = kinds.flat_map(|kind| {
        let keys = stores.names(kind).into_iter().map(move |name| Key { kind, name });
        keys.filter(|key| !wanted.contains(key))
    });
    keys.filter(|key| is_gateways(stores, key, |gateway| gateways.contains(gateway))).collect()
}

/// `keys`, and what a controller before this one made for their Gateways that these want no more:
/// what was refused when this one began to lead may be accepted only now.
fn with_left_over(hub: &Hub, keys: BTreeSet<Key>) -> BTreeSet<Key> {
    let state = hub.read();
    let left = left_beside(&state.stores, &state.graph.table, &keys);
    keys.into_iter().chain(left).collect()
}

/// Objects with the names of `keys` that the Gateways of these do not want.
fn left_beside(stores: &Stores, table: &Table, keys: &BTreeSet<Key>) -> Vec<Key> {
    let mut left = Vec::new();
    for key in keys {
        let wanted = table.get(&OutputKey::Object(key.clone()));
        let Some(Output::Object(manifest)) = wanted else { continue };
        for (_, kind) in overlay::KEYS {
            let beside = Key { kind, name: key.name.clone() };
            if table.get(&OutputKey::Object(beside.clone())).is_none()
                && is_gateways(stores, &beside, |gateway| *gateway == manifest.owner)
            {
                left.push(beside);
            }
        }
    }
    left
}

/// Whether an object is managed here, and of a Gateway that `is_one` takes.
fn is_gateways(stores: &Stores, key: &Key, is_one: impl Fn(&Name) -> bool) -> bool {
    let Some(object) = stores.object(key) else { return false };
    let owners = object.meta().owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.kind == Kind::Gateway.as_str());
    is_managed(object.meta())
        && owners.any(|owner| is_one(&Name::new(&key.name.namespace, &owner.name)))
}

async fn write(hub: &Hub, cluster: &Cluster, key: &Key) -> Result<(), WriteError> {
    let Some(api) = cluster.api(key) else { return Ok(()) };
    let (wanted, standing) = {
        let state = hub.read();
        let wanted = match state.graph.table.get(&OutputKey::Object(key.clone())) {
            Some(Output::Object(manifest)) => Some(manifest.value.clone()),
            _ => None,
        };
        (wanted, state.stores.object(key))
    };
    let managed = match &standing {
        Some(object) => Some(is_managed(object.meta())),
        // It may be another's, of which we are not told, or written a moment ago.
        None => api.get_metadata_opt(&key.name.name).await?.map(|one| is_managed(&one.metadata)),
    };
    match (wanted, managed) {
        // Of an account the name alone counts: it may be a user's own.
        (Some(_), Some(false)) if key.kind == Kind::ServiceAccount => {}
        (Some(_), Some(false)) => return Err(WriteError::Foreign),
        (Some(value), Some(true) | None) => {
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&key.name.name, &params, &Patch::Apply(value)).await?;
            tracing::debug!(object = %key, "applied");
        }
        (None, Some(true)) => match api.delete(&key.name.name, &DeleteParams::default()).await {
            Ok(_) => tracing::info!(object = %key, "deleted"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        },
        (None, Some(false) | None) => {}
    }
    Ok(())
}

fn is_managed(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().is_some_and(|labels| labels.contains_key(api::MANAGED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::testing::{Edited, stores};

    fn scaler(name: &str, gateway: &str, label: &str) -> String {
        format!(
            "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata:\n  name: {name}\n  \
             namespace: n\n  labels: {{{label}: c}}\n  ownerReferences: [{{apiVersion: g/v1, kind: Gateway, \
             name: {gateway}, uid: u}}]\nspec: {{maxReplicas: 1, scaleTargetRef: {{kind: D, name: d}}}}\n"
        )
    }

    #[test]
    fn what_an_earlier_controller_made_goes_unless_its_gateway_is_in_doubt() {
        let texts = [
            scaler("left", "good", api::MANAGED),
            scaler("wanted", "good", api::MANAGED),
            scaler("others", "good", "app"),
            scaler("stays", "doubtful", api::MANAGED),
        ];
        let stores = stores(&texts.each_ref().map(String::as_str));
        let key =
            |name: &str| Key { kind: Kind::HorizontalPodAutoscaler, name: Name::new("n", name) };
        let gateways = BTreeSet::from([Name::new("n", "good")]);
        let left = left_over(&stores, &BTreeSet::from([key("wanted")]), &gateways);
        assert_eq!(left, [key("left")]);
    }

    #[test]
    fn what_an_earlier_controller_made_goes_once_its_gateway_is_in_doubt_no_more() {
        let mut edited = Edited::default();
        edited.put(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: n}\n\
             spec:\n  gatewayClassName: waymark\n  listeners: [{name: http, port: 80, protocol: HTTP}]\n",
        );
        let key = |kind| Key { kind, name: Name::new("n", "gw-waymark") };
        let written = BTreeSet::from([key(Kind::Deployment), key(Kind::Service)]);
        let cases: [(&str, &str, &[Kind]); 3] = [
            ("gw", api::MANAGED, &[Kind::HorizontalPodAutoscaler]),
            ("other", api::MANAGED, &[]),
            ("gw", "app", &[]),
        ];
        for (gateway, label, want) in cases {
            let stores = stores(&[&scaler("gw-waymark", gateway, label)]);
            let left: BTreeSet<Key> =
                left_beside(&stores, edited.table(), &written).into_iter().collect();
            let want: BTreeSet<Key> = want.iter().map(|kind| key(*kind)).collect();
            assert_eq!(left, want, "{gateway} {label}");
        }
    }
}
