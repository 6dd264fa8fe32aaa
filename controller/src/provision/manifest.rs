// SPDX-License-Identifier: Apache-2.0

//! What the objects that run a gateway look like. Pure.
//!
//! Names, labels and probes are those of Istio's automated deployment, so that scripts and
//! dashboards made for it find what they look for.

use std::collections::{BTreeMap, BTreeSet};

use gateway_api::experimental::gateways::Gateway;
use routing::listener::{Listener, Protocol};
use serde_json::{Value, json};

use super::overlay::{self, InvalidOverlay, Overlay};
use crate::api::{self, BuiltinClass, Role};
use crate::settings::{Mesh, Proxies};
use crate::store::{Key, Kind, Name};
use crate::translate::shape::{self, Shape};

/// Name of the container that a proxy runs in.
pub const PROXY: &str = "istio-proxy";

/// One object, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its key.
    pub key: Key,
    /// The Gateway that it is for.
    pub owner: Name,
    /// The whole object.
    pub value: Value,
}

/// A Gateway whose objects are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The Gateway.
    pub gateway: &'a Gateway,
    /// Its class.
    pub class: &'a BuiltinClass,
    /// What its objects are called.
    pub shape: &'a Shape,
    /// The listeners that are served.
    pub listeners: &'a [Listener],
}

/// The ServiceAccount, Deployment and Service of a Gateway, in its namespace, with what users
/// lay over them, lowest layer first; an autoscaler and a disruption budget, if there is a layer
/// for them.
///
/// # Errors
///
/// Those of the layers.
pub fn objects(
    wanted: Wanted<'_>,
    overlays: &[Overlay],
    mesh: &Mesh,
) -> Result<Vec<Manifest>, InvalidOverlay> {
    let mut all = vec![wanted.account(), wanted.deployment(mesh), wanted.service()];
    let has = |kind| overlays.iter().any(|overlay| overlay.has(kind));
    if has(Kind::HorizontalPodAutoscaler) {
        all.push(wanted.autoscaler());
    }
    if has(Kind::PodDisruptionBudget) {
        all.push(wanted.budget());
    }
    for manifest in &mut all {
        for overlay in overlays {
            overlay.lay(manifest.key.kind, &mut manifest.value)?;
        }
    }
    Ok(all)
}

/// The keys of all objects that a Gateway may have.
pub fn keys(wanted: Wanted<'_>) -> Vec<Key> {
    let shape = wanted.shape;
    let key = |(_, kind): (&str, Kind)| {
        let name = if kind == Kind::ServiceAccount { &shape.account } else { &shape.name };
        Key { kind, name: Name::new(wanted.namespace(), name) }
    };
    overlay::KEYS.map(key).into()
}

/// The labels that the pods of a Gateway are made with.
pub fn pod_labels(wanted: Wanted<'_>) -> BTreeMap<String, String> {
    wanted.labels()
}

impl Wanted<'_> {
    fn namespace(&self) -> &str {
        self.gateway.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.gateway.metadata.name.as_deref().unwrap_or_default()
    }

    fn manifest(&self, kind: Kind, name: &str, api_version: &str, mut value: Value) -> Manifest {
        let meta = &self.gateway.metadata;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".to_owned(), api_version.into());
            fields.insert("kind".to_owned(), kind.as_str().into());
            let mut metadata = json!({
                "name": name,
                "namespace": self.namespace(),
                "labels": self.labels(),
                "annotations": self.annotations(kind),
            });
            // Without a UID (objects from a folder) nothing could own them.
            if let (Some(uid), Some(metadata)) = (&meta.uid, metadata.as_object_mut()) {
                let owner = json!([{
                    "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                    "name": self.name(), "uid": uid, "controller": true,
                }]);
                metadata.insert("ownerReferences".to_owned(), owner);
            }
            fields.insert("metadata".to_owned(), metadata);
        }
        let owner = Name::new(self.namespace(), self.name());
        Manifest { key: Key { kind, name: Name::new(self.namespace(), name) }, owner, value }
    }

    /// Labels of every object and of the pods.
    ///
    /// Rule: `GatewayInfrastructure.labels`; those that Gateway API owns stay ours.
    fn labels(&self) -> BTreeMap<String, String> {
        let written = self.gateway.spec.infrastructure.as_ref().and_then(|i| i.labels.clone());
        let mut labels = written.unwrap_or_default();
        labels.retain(|key, _| !key.starts_with("gateway.networking.k8s.io/"));
        labels.extend(self.selector());
        let own = [
            (api::GATEWAY_CLASS_NAME, self.class_name().to_owned()),
            (api::MANAGED, self.class.controller.replace('/', "-")),
            (api::CANONICAL_NAME, self.shape.name.clone()),
            (api::CANONICAL_REVISION, "latest".to_owned()),
            (api::DATAPLANE_MODE, "none".to_owned()),
            ("sidecar.istio.io/inject", "false".to_owned()),
        ];
        labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
        labels
    }

    fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(api::GATEWAY_NAME.to_owned(), shape::bounded(self.name()).into_owned())])
    }

    fn class_name(&self) -> &str {
        &self.gateway.spec.gateway_class_name
    }

    fn annotations(&self, kind: Kind) -> BTreeMap<String, String> {
        let written = self.gateway.spec.infrastructure.as_ref().and_then(|i| i.annotations.clone());
        let mut annotations = written.unwrap_or_default();
        if kind == Kind::Service && self.class.role == Role::Waypoint {
            let key = api::TRAFFIC_DISTRIBUTION.to_owned();
            annotations.entry(key).or_insert_with(|| "PreferClose".to_owned());
        }
        annotations
    }

    fn account(&self) -> Manifest {
        self.manifest(Kind::ServiceAccount, &self.shape.account, "v1", json!({}))
    }

    fn deployment(&self, mesh: &Mesh) -> Manifest {
        let mut annotations = self.annotations(Kind::Deployment);
        let scrape = [
            ("prometheus.io/path", "/stats/prometheus"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/scrape", "true"),
        ];
        annotations.extend(scrape.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let mut pod = json!({
            "serviceAccountName": self.shape.account,
            "terminationGracePeriodSeconds": 30,
            "securityContext": {
                // Namespaces that enforce `restricted` take no pod without one.
                "seccompProfile": {"type": "RuntimeDefault"},
                // Listeners may have low ports, and the process no privilege.
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            },
            "containers": [self.container(mesh)],
        });
        if let Some(pod) = pod.as_object_mut() {
            pod.extend(volumes(&mesh.proxies).map(|volumes| ("volumes".to_owned(), volumes)));
            pod.extend(mesh.proxies.pods.of_pod(self.class.role));
        }
        let value = json!({
            "spec": {
                "selector": {"matchLabels": self.selector()},
                "template": {
                    "metadata": {"labels": self.labels(), "annotations": annotations},
                    "spec": pod,
                },
            },
        });
        self.manifest(Kind::Deployment, &self.shape.name, "apps/v1", value)
    }

    fn container(&self, mesh: &Mesh) -> Value {
        let proxies = &mesh.proxies;
        let role = match self.class.role {
            Role::Ingress => "router",
            Role::Waypoint => "waypoint",
        };
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let value = |name: &str, value: &str| json!({"name": name, "value": value});
        let mut container = json!({
            "name": PROXY,
            "image": &*proxies.image,
            "args": ["proxy", role],
            "env": [
                field("NODE_NAME", "spec.nodeName"),
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("POD_UID", "metadata.uid"),
                field("INSTANCE_IP", "status.podIP"),
                field("INSTANCE_IPS", "status.podIPs"),
                value("GATEWAY_NAME", self.name()),
                value("SERVICE_ACCOUNT", &self.shape.account),
                value("TRUST_DOMAIN", &mesh.trust_domain),
                value("CLUSTER_ID", &mesh.cluster_id),
                value("XDS_ADDRESS", &proxies.address),
                value("CA_ADDRESS", &proxies.address),
                value("XDS_ROOT_CA", &proxies.root_file),
                value("CA_ROOT_CA", &proxies.root_file),
                value("TOKEN_FILE", &proxies.token_file),
            ],
            "ports": [
                {"name": "metrics", "containerPort": 15020, "protocol": "TCP"},
                {"name": "status-port", "containerPort": 15021, "protocol": "TCP"},
            ],
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": 1337,
                "runAsNonRoot": true,
                "runAsUser": 1337,
            },
            "startupProbe": probe(1, 30),
            "readinessProbe": probe(15, 4),
        });
        let aliases = mesh.trust_domain_aliases.join(",");
        let more = [
            (!aliases.is_empty()).then(|| value("TRUST_DOMAIN_ALIASES", &aliases)),
            proxies.pods.log_as_json().then(|| value("LOG_FORMAT", "json")),
        ];
        if let Some(env) = container.pointer_mut("/env").and_then(Value::as_array_mut) {
            env.extend(more.into_iter().flatten());
        }
        if let Some(container) = container.as_object_mut() {
            container.extend(proxies.pods.of_container(self.class.role));
        }
        if let (Some(mounts), Some(container)) = (mounts(proxies), container.as_object_mut()) {
            container.insert("volumeMounts".to_owned(), mounts);
            // Nodes still send connections here until they have heard that the pod goes.
            container.insert("lifecycle".to_owned(), json!({"preStop": {"sleep": {"seconds": 3}}}));
        }
        container
    }

    fn service(&self) -> Manifest {
        let annotations = self.gateway.metadata.annotations.as_ref();
        let said = annotations.and_then(|annotations| annotations.get(api::SERVICE_TYPE));
        let kind = said.map_or(
            match self.class.role {
                Role::Ingress => "LoadBalancer",
                Role::Waypoint => "ClusterIP",
            },
            String::as_str,
        );
        let mut spec = json!({
            "type": kind,
            "selector": self.selector(),
            "ports": self.ports(),
            "ipFamilyPolicy": "PreferDualStack",
        });
        let addresses = self.gateway.spec.addresses.iter().flatten();
        let mut values = addresses.filter_map(|address| address.value.as_deref());
        if let (Some(address), None, Some(spec)) =
            (values.next(), values.next(), spec.as_object_mut())
        {
            spec.insert("loadBalancerIP".to_owned(), address.into());
        }
        self.manifest(Kind::Service, &self.shape.name, "v1", json!({"spec": spec}))
    }

    /// Between one proxy and one: who lays a layer over it says how many.
    fn autoscaler(&self) -> Manifest {
        let target =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": self.shape.name});
        let value = json!({"spec": {"scaleTargetRef": target, "maxReplicas": 1}});
        self.manifest(Kind::HorizontalPodAutoscaler, &self.shape.name, "autoscaling/v2", value)
    }

    fn budget(&self) -> Manifest {
        let value = json!({"spec": {"selector": {"matchLabels": self.selector()}}});
        self.manifest(Kind::PodDisruptionBudget, &self.shape.name, "policy/v1", value)
    }

    fn ports(&self) -> Vec<Value> {
        let mut ports = vec![json!({
            "name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP",
        })];
        let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::from(["status-port".to_owned()]));
        for listener in self.listeners {
            let (transport, speaks) = match listener.protocol {
                Protocol::Http => ("TCP", "http"),
                Protocol::Https => ("TCP", "https"),
                Protocol::Tls => ("TCP", "tls"),
                Protocol::Tcp => ("TCP", "tcp"),
                Protocol::Udp => ("UDP", "udp"),
                Protocol::Hbone => ("TCP", "all"),
            };
            if !seen.insert((listener.port, transport)) {
                continue;
            }
            // Listeners of a ListenerSet may have the names of the Gateway's own.
            let mut name = port_name(listener.name.section(), 63);
            if names.contains(&name) {
                name = format!("{}-{}", port_name(&name, 57), listener.port);
            }
            names.insert(name.clone());
            ports.push(json!({
                "name": name, "port": listener.port, "targetPort": listener.target_port,
                "protocol": transport, "appProtocol": speaks,
            }));
        }
        ports
    }
}

/// The name of a listener as that of a port, of so many letters at most.
///
/// Rule: ports of Services have names of one label each (RFC 1123), listeners names with dots.
fn port_name(section: &str, most: usize) -> String {
    let label: String =
        section.chars().map(|c| if c == '.' { '-' } else { c }).take(most).collect();
    label.trim_end_matches('-').to_owned()
}

fn probe(period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": "/healthz/ready", "port": 15021},
        "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 3,
    })
}

/// Token and roots as a kubelet brings them; none where files lie there already.
fn volumes(proxies: &Proxies) -> Option<Value> {
    proxies.in_cluster().then(|| {
        json!([
            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": "istio-ca", "expirationSeconds": 43_200, "path": "istio-token",
            }}]}},
            {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
        ])
    })
}

fn mounts(proxies: &Proxies) -> Option<Value> {
    proxies.in_cluster().then(|| {
        json!([
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
            {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
        ])
    })
}
