// SPDX-License-Identifier: Apache-2.0

//! What the controller wrote besides the objects of its installation.
//!
//! Objects that ran gateways, the root in each namespace, marks on pods, conditions on Services,
//! the Lease and the Secret with the root. Statuses of Gateways, routes and policies stay as
//! they were: they say who wrote them and of which generation.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::api::{self, CLASSES};
use crate::ca::secret;
use crate::cli::complain;
use crate::lead;
use crate::provision::roots;

/// What is left of an installation in `namespace` whose parts are gone.
pub(super) struct Remains<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    /// The root that it published; without one no ConfigMap is known to be its own.
    pub(super) root: Option<&'a str>,
}

impl Remains<'_> {
    /// Removes it all; what is not there is no error.
    pub(super) async fn remove(&self) -> kube::Result<()> {
        let managed = format!("{} in ({})", api::MANAGED, managers().join(","));
        Box::pin(self.all::<Deployment>(&managed)).await?;
        Box::pin(self.all::<HorizontalPodAutoscaler>(&managed)).await?;
        Box::pin(self.all::<PodDisruptionBudget>(&managed)).await?;
        Box::pin(self.all::<Service>(&managed)).await?;
        Box::pin(self.all::<ServiceAccount>(&managed)).await?;
        Box::pin(self.roots()).await?;
        Box::pin(self.marks()).await?;
        Box::pin(self.conditions()).await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), self.namespace);
        delete(&leases, lead::NAME).await?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), self.namespace);
        let ours = secrets.get_opt(secret::OWN).await?;
        if ours.is_some_and(|secret| secret.type_.as_deref() == Some(secret::TYPE)) {
            delete(&secrets, secret::OWN).await?;
        }
        Ok(())
    }

    /// Objects of a kind, in every namespace, that `labels` select.
    async fn all<K>(&self, labels: &str) -> kube::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        for found in api.list(&ListParams::default().labels(labels)).await?.items {
            let namespace = found.namespace().unwrap_or_default();
            delete(&Api::<K>::namespaced(self.client.clone(), &namespace), &found.name_any())
                .await?;
        }
        Ok(())
    }

    /// ConfigMaps with this installation's root; another mesh's stay.
    async fn roots(&self) -> kube::Result<()> {
        let Some(root) = self.root else { return Ok(()) };
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("metadata.name={}", roots::NAME));
        let mut removed = 0;
        for found in maps.list(&params).await?.items {
            let ours = found
                .data
                .as_ref()
                .and_then(|data| data.get(roots::KEY))
                .is_some_and(|pem| pem == root);
            if ours {
                let namespace = found.namespace().unwrap_or_default();
                delete_quietly(
                    &Api::<ConfigMap>::namespaced(self.client.clone(), &namespace),
                    roots::NAME,
                )
                .await?;
                removed += 1;
            }
        }
        complain(&format!("removed ConfigMap {} from {removed} namespaces", roots::NAME));
        Ok(())
    }

    /// Annotations of pods whose agents did not come to it.
    async fn marks(&self) -> kube::Result<()> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        for found in pods.list(&ListParams::default()).await?.items {
            if !found.annotations().contains_key(api::REDIRECTION) {
                continue;
            }
            let namespace = found.namespace().unwrap_or_default();
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let patch =
                json!({"metadata": {"uid": found.uid(), "annotations": {api::REDIRECTION: null}}});
            gone_is_fine(
                api.patch(&found.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await,
            )?;
            complain(&format!("took the mark off pod {namespace}/{}", found.name_any()));
        }
        Ok(())
    }

    /// Conditions of Services that tell of a waypoint.
    async fn conditions(&self) -> kube::Result<()> {
        let services: Api<Service> = Api::all(self.client.clone());
        for found in services.list(&ListParams::default()).await?.items {
            let all = found
                .status
                .as_ref()
                .and_then(|status| status.conditions.clone())
                .unwrap_or_default();
            let kept: Vec<_> =
                all.iter().filter(|one| !one.type_.starts_with("istio.io/")).collect();
            if kept.len() == all.len() {
                continue;
            }
            let api: Api<Service> =
                Api::namespaced(self.client.clone(), &found.namespace().unwrap_or_default());
            let patch = json!({"metadata": {"resourceVersion": found.resource_version()},
                "status": {"conditions": kept}});
            gone_is_fine(
                api.patch_status(&found.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                    .await,
            )?;
        }
        Ok(())
    }
}

/// Values of the label of what runs gateways.
fn managers() -> Vec<String> {
    CLASSES.iter().map(|class| class.controller.replace('/', "-")).collect()
}

async fn delete<K>(api: &Api<K>, name: &str) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if delete_quietly(api, name).await? {
        complain(&format!("removed {} {name}", K::kind(&())));
    }
    Ok(())
}

async fn delete_quietly<K>(api: &Api<K>, name: &str) -> kube::Result<bool>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// An object that went meanwhile, or another of its name, needs nothing.
fn gone_is_fine<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}
