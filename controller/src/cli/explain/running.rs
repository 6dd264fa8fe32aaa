// SPDX-License-Identifier: Apache-2.0

//! What the proxies of a running mesh hold, read from its controller.

use std::collections::BTreeMap;

use base64::Engine as _;
use routing::delta::{self, Change, Kind};
use routing::snapshot::Snapshot;
use routing::wire::Names;
use routing::wire::discovery::read_resource;
use serde_json::Value;

use super::Known;
use crate::api::GATEWAY_NAME;
use crate::cli::Failure;
use crate::cli::format::{items, text};
use crate::cli::mesh::{Mesh, MeshArgs};

/// Asks the controller of the mesh that `args` means.
pub(super) fn known(args: &MeshArgs) -> Result<Known, Failure> {
    let mesh = Mesh::find(args)?;
    let told = mesh.ask("/snapshot")?;
    let pods = mesh.ask("/objects?kind=Pod")?;
    let resources = items(&told, "/resources").map(|resource| {
        let body = base64::engine::general_purpose::STANDARD.decode(text(resource, "/base64"));
        (text(resource, "/type"), body.unwrap_or_default())
    });
    Ok(Known {
        snapshot: snapshot(resources)?,
        gateways: gateways(items(&pods, "/items")),
        origin: format!("{}, revision {}", mesh.name(), text(&told, "/revision")),
    })
}

/// The snapshot that resources, each a type and its bytes, make up.
pub(super) fn snapshot(
    resources: impl Iterator<Item = (String, Vec<u8>)>,
) -> Result<Snapshot, Failure> {
    let mut names = Names::default();
    let mut changes = Vec::new();
    for (type_url, body) in resources {
        let Some(kind) = Kind::of_type_url(&type_url) else { continue };
        let (_, resource) = read_resource(kind, &body, &mut names).map_err(Failure::from_error)?;
        changes.push(Change::Put(resource));
    }
    let (snapshot, rejected) = delta::apply(&Snapshot::default(), changes);
    match rejected.first() {
        None => Ok(snapshot),
        Some(rejected) => {
            let message = format!("proxies would not take {}: {}", rejected.name, rejected.reason);
            Err(Failure { message, code: 1 })
        }
    }
}

/// Which of `pods` run which Gateway.
pub(super) fn gateways<'a>(pods: impl Iterator<Item = &'a Value>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods {
        let labels = pod.pointer("/metadata/labels");
        let gateway = labels.and_then(|labels| labels.get(GATEWAY_NAME)).and_then(Value::as_str);
        let Some(gateway) = gateway else { continue };
        let namespace = text(pod, "/metadata/namespace");
        let name = format!("{namespace}/{}", text(pod, "/metadata/name"));
        found.entry(format!("{namespace}/{gateway}")).or_default().push(name);
    }
    found
}
