// SPDX-License-Identifier: Apache-2.0

//! Reads what there is to decide about from a cluster, and asks the parts of the mesh in it.
//!
//! Keeps: what may not be read is a finding of its own, and no reason to look at nothing else.

use std::collections::BTreeSet;
use std::fmt::Debug;

use gateway_api::experimental::gatewayclasses::GatewayClass;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::after::{self, Controller, NodePart, Roots};
use super::before::{self, Others};
use super::finding::{Finding, Level};
use super::{network_policy, probe};
use crate::api::GATEWAY_NAME;
use crate::cli::Failure;
use crate::cli::cluster::{Asked, CONTROLLER, causes};
use crate::provision::roots;
use crate::settings::Mesh;
use crate::translate::pod::is_ready;

/// The Deployment of the controller.
const DEPLOYMENT: &str = "waymark-controller";
/// Role and label of the parts that run on each node.
const NODE_PARTS: [(&str, &str); 2] = [("tunnel", "app=ztunnel"), ("agent", "app=waymark-agent")];
/// What an installation makes: group and resource.
const MADE: [(&str, &str); 7] = [
    ("apps", "deployments"),
    ("apps", "daemonsets"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("gateway.networking.k8s.io", "gatewayclasses"),
];

/// What was found so far, and the way to more.
pub(super) struct Gatherer {
    client: Client,
    namespace: String,
    /// What was found so far.
    pub(super) findings: Vec<Finding>,
}

impl Gatherer {
    /// Nothing was looked at yet; the parts are in `namespace`.
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), findings: Vec::new() }
    }

    /// Whether the mesh is installed; `cluster` is its name for people.
    pub(super) async fn installed(&self, cluster: &str) -> Result<bool, Failure> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(DEPLOYMENT).await;
        let found = found.map_err(|error| not_asked(cluster, &error))?;
        Ok(found.is_some())
    }

    /// Looks whether the mesh fits into the cluster.
    pub(super) async fn before(&mut self, installed: bool) -> Result<(), Failure> {
        let version = self.client.apiserver_version().await;
        let version = version.map_err(|error| not_asked("the cluster", &error))?;
        self.findings.push(before::kubernetes(&version.git_version));
        if let Some(all) = self.all::<CustomResourceDefinition>().await {
            self.findings.extend(before::gateway_api(&all));
        }
        if let Some(all) = self.all::<Node>().await {
            self.findings.extend(before::nodes(&all));
        }
        let others = self.others().await;
        self.findings.extend(before::others(&others, &self.namespace));
        let api: Api<Namespace> = Api::all(self.client.clone());
        if let Ok(Some(namespace)) = api.get_opt(&self.namespace).await {
            self.findings.push(before::pod_security(&namespace));
        }
        let lists = (
            self.all::<NetworkPolicy>().await,
            self.all::<Pod>().await,
            self.all::<Namespace>().await,
        );
        if let (Some(policies), Some(pods), Some(namespaces)) = lists {
            let stores = network_policy::stores(pods, namespaces);
            let mesh = Mesh { root_namespace: self.namespace.as_str().into(), ..Mesh::default() };
            self.findings.extend(network_policy::blocked(&policies, &stores, &mesh));
        }
        if !installed {
            self.rights().await;
        }
        Ok(())
    }

    /// Looks whether every part works.
    pub(super) async fn after(&mut self, cluster: &str) -> Result<(), Failure> {
        let now = OffsetDateTime::now_utc();
        let mut known = self.roots().await;
        Box::pin(self.controllers(known.own.as_deref(), now)).await;
        let Ok(leader) = Asked::leader(&self.client, &self.namespace, cluster).await else {
            return Ok(());
        };
        let mut status = match leader.ask("/status").await.and_then(|answer| answer.json()) {
            Ok(status) => status,
            Err(failure) => {
                self.findings.push(
                    Finding::ok("controller", "status", failure.message)
                        .but(Level::Error, "see the controller's log"),
                );
                return Ok(());
            }
        };
        let gateways = leader.ask("/objects?kind=Gateway").await.and_then(|answer| answer.json());
        let gateways = gateways.ok().and_then(|all| all.get("items").cloned());
        if let Some(fields) = status.as_object_mut() {
            fields.insert("nodes".to_owned(), self.linux_nodes().await);
            fields.insert("gateways".to_owned(), gateways.unwrap_or_default());
        }
        let parts = Box::pin(self.node_parts()).await;
        let gateway_pods = self.labelled(false, GATEWAY_NAME).await;
        known.needed = gateway_pods.iter().filter_map(|pod| pod.namespace()).collect();
        known.needed.insert(self.namespace.clone());
        self.findings.extend(after::roots(&known, now));
        self.findings.extend(after::nodes(&status, &parts));
        self.findings.extend(after::certificates(&parts, now));
        self.findings.extend(after::capture(&status));
        self.findings.extend(after::gateways(&status));
        self.findings.extend(after::refused(&status));
        Ok(())
    }

    async fn controllers(&mut self, root: Option<&str>, now: OffsetDateTime) {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let wanted = match api.get_opt(DEPLOYMENT).await {
            Ok(found) => found.and_then(|found| found.spec?.replicas).unwrap_or(1),
            Err(_) => 1,
        };
        let mut all = Vec::new();
        for pod in self.labelled(true, CONTROLLER).await {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let asked = Asked::of(&self.client, &self.namespace, &pod.name_any());
            let ready = is_ready(&pod);
            let (answers, certificate) = if ready {
                let answer = asked.ask("/readyz").await.and_then(|answer| answer.checked());
                let certificate = probe::controller(&asked, root, &self.namespace).await;
                (answer.map(|_| ()).map_err(|failure| failure.message), certificate)
            } else {
                let why = "not asked, as it is not ready".to_owned();
                (Err(why.clone()), Err(why))
            };
            let pod = format!("{}/{}", self.namespace, pod.name_any());
            all.push(Controller { pod, ready, answers, certificate });
        }
        let wanted = usize::try_from(wanted).unwrap_or(1);
        self.findings.extend(after::controllers(&all, wanted, now));
    }

    async fn node_parts(&mut self) -> Vec<NodePart> {
        let mut parts = Vec::new();
        for (role, label) in NODE_PARTS {
            for pod in self.labelled(true, label).await {
                // Of two that overlap while one follows the other the newer counts.
                if pod.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let ready = is_ready(&pod);
                let certificates = if role == "tunnel" && ready {
                    probe::tunnel(&Asked::of(&self.client, &self.namespace, &pod.name_any())).await
                } else {
                    Ok(Vec::new())
                };
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                parts.push(NodePart {
                    role,
                    pod: format!("{}/{}", self.namespace, pod.name_any()),
                    node: node.unwrap_or_default(),
                    ready,
                    certificates,
                });
            }
        }
        parts
    }

    /// The nodes that the parts run on.
    async fn linux_nodes(&mut self) -> Value {
        let nodes = self.all::<Node>().await.unwrap_or_default();
        let linux =
            |node: &&Node| node.labels().get("kubernetes.io/os").is_none_or(|os| os == "linux");
        let name = |node: &Node| json!({"metadata": {"name": node.name_any()}});
        nodes.iter().filter(linux).map(name).collect()
    }

    async fn roots(&mut self) -> Roots {
        let api: Api<ConfigMap> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("metadata.name={}", roots::NAME));
        let listed = api.list(&params).await;
        let listed =
            self.taken(listed.map(|listed| listed.items), "configmaps").unwrap_or_default();
        let mut known = Roots::default();
        for map in listed {
            let root = map.data.as_ref().and_then(|data| data.get(roots::KEY)).cloned();
            known.published.insert(map.namespace().unwrap_or_default(), root.unwrap_or_default());
        }
        known.own = known.published.get(&self.namespace).cloned();
        known.ends = known.own.as_deref().map(probe::end_of_pem);
        known
    }

    async fn others(&mut self) -> Others {
        let mut others = Others::default();
        let ours = |name: &str, all: &[DaemonSet], namespace: &Option<String>| {
            let agent = |one: &DaemonSet| {
                one.name_any() == "waymark-agent" && one.namespace() == *namespace
            };
            name == "waymark-agent" || (name == "ztunnel" && all.iter().any(agent))
        };
        let daemons = self.all::<DaemonSet>().await.unwrap_or_default();
        let strangers =
            daemons.iter().filter(|one| !ours(&one.name_any(), &daemons, &one.namespace()));
        others.daemon_sets = strangers.map(full_name).collect();
        let deployments = self.all::<Deployment>().await.unwrap_or_default();
        let istiod = |one: &&Deployment| {
            one.labels().get("app").is_some_and(|app| app == "istiod")
                && one.name_any() != DEPLOYMENT
        };
        others.controllers = deployments.iter().filter(istiod).map(full_name).collect();
        let webhooks = self.all::<MutatingWebhookConfiguration>().await.unwrap_or_default();
        others.webhooks = webhooks.iter().map(|one| one.name_any()).collect();
        let classes = self.all::<GatewayClass>().await.unwrap_or_default();
        others.classes =
            classes.into_iter().map(|one| (one.name_any(), one.spec.controller_name)).collect();
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "kube-system");
        others.cilium = maps.get_opt("cilium-config").await.ok().flatten();
        others
    }

    /// Whether this user may make what an installation consists of.
    async fn rights(&mut self) {
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let mut refused = BTreeSet::new();
        for (group, resource) in MADE {
            let attributes = ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                namespace: (group == "apps").then(|| self.namespace.clone()),
                verb: Some("create".to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            };
            let question = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            match api.create(&PostParams::default(), &question).await {
                Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
                Ok(_) => {
                    refused.insert(resource);
                }
                Err(error) => {
                    let message = format!("cannot be asked for: {}", causes(&error));
                    self.findings.push(
                        Finding::ok("rights", resource, message)
                            .but(Level::Warning, "see that you may make what is installed"),
                    );
                    return;
                }
            }
        }
        let refused: Vec<_> = refused.into_iter().collect();
        self.findings.push(if refused.is_empty() {
            Finding::ok("rights", "you", "may make everything that is installed")
        } else {
            Finding::ok("rights", "you", format!("may not make {}", refused.join(", ")))
                .but(Level::Error, "install as somebody who is bound to ClusterRole cluster-admin")
        });
    }

    /// Every object of a kind; none, and a finding, if they may not be listed.
    async fn all<K>(&mut self) -> Option<Vec<K>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let listed = api.list(&ListParams::default()).await.map(|listed| listed.items);
        self.taken(listed, &K::plural(&()))
    }

    /// Pods with a label: those of the mesh's own parts, or all.
    async fn labelled(&mut self, own: bool, label: &str) -> Vec<Pod> {
        let api: Api<Pod> = match own {
            true => Api::namespaced(self.client.clone(), &self.namespace),
            false => Api::all(self.client.clone()),
        };
        let listed = api.list(&ListParams::default().labels(label)).await;
        self.taken(listed.map(|listed| listed.items), "pods").unwrap_or_default()
    }

    fn taken<T>(&mut self, listed: kube::Result<Vec<T>>, what: &str) -> Option<Vec<T>> {
        match listed {
            Ok(items) => Some(items),
            // A kind that is not there has no objects.
            Err(kube::Error::Api(status)) if status.code == 404 => Some(Vec::new()),
            Err(error) => {
                let message = format!("cannot be listed, so not looked at: {}", causes(&error));
                let finding = Finding::ok("rights", what, message)
                    .but(Level::Warning, format!("ask as somebody who may list {what}"));
                if !self.findings.contains(&finding) {
                    self.findings.push(finding);
                }
                None
            }
        }
    }
}

fn full_name(object: &impl kube::ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn not_asked(cluster: &str, error: &kube::Error) -> Failure {
    Failure { message: format!("{cluster} cannot be asked: {}", causes(error)), code: 3 }
}
