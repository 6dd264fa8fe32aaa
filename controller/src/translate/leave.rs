// SPDX-License-Identifier: Apache-2.0

//! The order that the mesh leaves the cluster: a ConfigMap in its own namespace.
//!
//! While it is there no pod belongs in the mesh: agents let theirs go in the order that keeps
//! traffic going, take everything of the mesh off their nodes, and report the order's UID.
//! Deleting it calls the order off. `waymark uninstall` writes it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use routing::node::Leave;

use crate::settings::Mesh;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// Name of the ConfigMap.
pub const NAME: &str = "waymark-uninstall";
/// Its key: longest wait for captured connections of a pod, in seconds.
pub const DRAIN_SECONDS: &str = "drain-seconds";
/// The wait where the key is missing or is no number.
pub const DRAIN: Duration = Duration::from_secs(60);

/// The ConfigMap that is the order.
pub fn key(mesh: &Mesh) -> Key {
    Key { kind: Kind::ConfigMap, name: Name::new(&mesh.root_namespace, NAME) }
}

/// Tells whether a change of this object may be about the order.
pub fn is_about(key: &Key) -> bool {
    key.kind == Kind::ConfigMap && *key.name.name == *NAME
}

/// Tells whether there is an order.
pub fn is_ordered(look: &mut Lookup<'_>) -> bool {
    let namespace = Arc::clone(&look.mesh().root_namespace);
    look.get::<ConfigMap>(&namespace, NAME).is_some()
}

/// The order, if there is one.
pub fn order(look: &mut Lookup<'_>) -> Option<Leave> {
    let namespace = Arc::clone(&look.mesh().root_namespace);
    let found = look.get::<ConfigMap>(&namespace, NAME)?;
    let drain = found.data.as_ref().and_then(|data| data.get(DRAIN_SECONDS)?.parse().ok());
    let id = found.metadata.uid.as_deref().unwrap_or(NAME).into();
    Some(Leave { id, drain: drain.map_or(DRAIN, Duration::from_secs) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Object, ReadKey, Stores};
    use serde_json::json;

    #[test]
    fn the_order_is_the_one_in_the_meshs_own_namespace() {
        let mesh = Mesh::default();
        let found = |namespace: &str, seconds: &str| {
            let mut stores = Stores::default();
            let map = json!({"metadata": {"name": NAME, "namespace": namespace, "uid": "u-1"},
                "data": {DRAIN_SECONDS: seconds}});
            let map: ConfigMap = serde_json::from_value(map).unwrap();
            let touched = stores.put(Object::ConfigMap(map.into()));
            let about = |key: &ReadKey| matches!(key, ReadKey::Object(key) if is_about(key));
            let read = touched.contains(&ReadKey::Object(key(&mesh)));
            assert_eq!(read, namespace == "istio-system", "no other one is read at all");
            assert!(touched.iter().any(about));
            order(&mut Lookup::new(&stores, &mesh))
        };
        let wanted =
            |seconds| Some(Leave { id: "u-1".into(), drain: Duration::from_secs(seconds) });
        assert_eq!(found("istio-system", "5"), wanted(5));
        assert_eq!(found("istio-system", "soon"), wanted(60));
        assert_eq!(found("default", "5"), None, "anybody may write there");
    }
}
