// SPDX-License-Identifier: Apache-2.0

//! The mesh's own pods and objects in a local world: what an installation is in a cluster.
//!
//! Owns: the manifests of tunnel and agent, one per node, the namespaces that every cluster
//! has, the Service of cluster DNS, and the command line of the controller.
//! Leaves their life to the same code as that of all pods.
//!
//! Start at [`manifests`] and [`controller`].

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::container::{Restart, Unit};
use super::process::Dress;
use crate::local::address::{DNS, FABRIC};
use crate::local::manifest::{Manifest, Object, ObjectKey};
use crate::local::paths;
use crate::local::plan::image::Launch;

/// Namespace of the mesh's own pods.
pub(super) const NAMESPACE: &str = "istio-system";

/// Namespaces that are there without being written.
pub(super) const NAMESPACES: [&str; 3] = ["default", "kube-system", NAMESPACE];

/// The manifests of tunnel and agent.
///
/// # Errors
///
/// If they do not fit the Kubernetes types; they are constant, so a test would see it.
pub(super) fn manifests() -> Result<Vec<Manifest>, serde_json::Error> {
    let root = format!("{}/root-cert.pem", paths::TRUST);
    let server = format!("https://{}:15012", FABRIC.v4);
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let common = |account: &str| {
        vec![
            field("NODE_NAME", "spec.nodeName"),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_UID", "metadata.uid"),
            field("INSTANCE_IP", "status.podIP"),
            value("SERVICE_ACCOUNT", account),
            value("CLUSTER_ID", "Kubernetes"),
            value("XDS_ADDRESS", &server),
            value("CA_ADDRESS", &server),
            value("XDS_ROOT_CA", &root),
            value("CA_ROOT_CA", &root),
            value("TOKEN_FILE", &format!("{}/$(POD_UID)/istio-token", paths::TOKENS)),
        ]
    };
    let sockets = format!("{}/nodes/$(NODE_NAME)", paths::ROOT);
    let mut tunnel = common("ztunnel");
    tunnel.push(value("INPOD_UDS", &format!("{sockets}/ztunnel.sock")));
    tunnel.push(value("INPOD_ENABLED", "true"));
    let mut agent = common("waymark-agent");
    agent.push(value("AGENT_RUN_DIR", &sockets));
    agent.push(value("INPOD_UDS", &format!("{sockets}/ztunnel.sock")));
    let ready = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}, "periodSeconds": 2});
    Ok(vec![
        daemon_set("ztunnel", "ztunnel", "waymark/tunnel", tunnel, ready("/healthz/ready", 15021))?,
        daemon_set(
            "waymark-agent",
            "waymark-agent",
            "waymark/agent",
            agent,
            ready("/readyz", 8000),
        )?,
    ])
}

fn daemon_set(
    name: &str,
    account: &str,
    image: &str,
    env: Vec<Value>,
    ready: Value,
) -> Result<Manifest, serde_json::Error> {
    let container = json!({"name": name, "image": image, "env": env, "readinessProbe": ready});
    let object = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name, "istio.io/dataplane-mode": "none"}},
                "spec": {
                    "hostNetwork": true,
                    "serviceAccountName": account,
                    "terminationGracePeriodSeconds": 30,
                    "containers": [container],
                },
            },
        },
    }))?;
    let key =
        ObjectKey { kind: "DaemonSet".into(), namespace: NAMESPACE.into(), name: name.into() };
    Ok(Manifest { key, line: 0, object: Object::DaemonSet(object) })
}

/// Objects that nobody wrote but every cluster has.
pub(super) fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = NAMESPACES.iter().map(|name| namespace(name)).collect();
    for account in ["ztunnel", "waymark-agent"] {
        objects.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": NAMESPACE},
        }));
    }
    objects
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    })
}

/// Contents of a pod's `resolv.conf`.
pub(super) fn resolv_conf(namespace: &str) -> String {
    format!(
        "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5\n",
        DNS.v4
    )
}

/// The controller as a process of the world itself.
pub(super) fn controller(folder: &Path, beside: &Path) -> Unit {
    let flag = |name: &str, value: &Path| vec![format!("--{name}"), value.display().to_string()];
    let mut command = vec![beside.join("waymark-controller").display().to_string()];
    command.extend(flag("folder", folder));
    command.extend(flag("folder", Path::new(paths::OBJECTS)));
    command.extend(flag("provision-dir", Path::new(paths::PROVISIONED)));
    command.extend(flag("admin-socket", Path::new(paths::CONTROLLER_SOCKET)));
    command.extend(flag("ca-dir", Path::new(paths::CA)));
    command.extend(flag("roots-file", &Path::new(paths::TRUST).join("root-cert.pem")));
    command.extend(["--gateway-xds-address".to_owned(), format!("https://{}:15012", FABRIC.v4)]);
    for name in FABRIC.texts() {
        command.extend(["--server-name".to_owned(), name]);
    }
    let env = ["WAYMARK_LOG", "RUST_BACKTRACE"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect::<BTreeMap<_, _>>();
    Unit {
        dress: Dress::default(),
        launch: Launch { command, env: BTreeMap::new() },
        env,
        log: paths::log(NAMESPACE, "waymark-controller", "controller"),
        restart: Restart::AtOnce,
        startup: None,
        liveness: None,
        readiness: None,
        pre_stop: None,
        pre_stop_sleep: std::time::Duration::ZERO,
        grace: std::time::Duration::from_secs(5),
        prober: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_fit_their_types_and_name_their_node_by_variable() {
        let manifests = manifests().unwrap();
        assert_eq!(manifests.len(), 2);
        for manifest in manifests {
            let Object::DaemonSet(set) = manifest.object else { panic!("{}", manifest.key) };
            let spec = set.spec.unwrap().template.spec.unwrap();
            assert_eq!(spec.host_network, Some(true));
            let env = spec.containers[0].env.clone().unwrap();
            assert!(env.iter().any(|variable| variable.name == "TOKEN_FILE"));
        }
    }
}
