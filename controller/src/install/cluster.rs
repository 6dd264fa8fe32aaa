// SPDX-License-Identifier: Apache-2.0

//! Brings the objects of an installation to a cluster, waits until they work, and takes them
//! away again.
//!
//! Owns: how one object is written and deleted, and what counts as ready. Server-side apply, so
//! that an upgrade is the same as an installation. Definitions of Istio's kinds that somebody
//! else brought are left alone: they belong to the cluster.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;

/// Who the fields belong to.
pub const MANAGER: &str = "waymark-install";
/// How often it is looked whether something is ready.
const PERIOD: Duration = Duration::from_millis(250);

/// Why an installation fails.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The apiserver cannot be reached.
    #[error("cluster cannot be reached")]
    Reach(#[source] Box<kube::Error>),
    /// An object is refused.
    #[error("{0} is refused")]
    Refused(String, #[source] Box<kube::Error>),
    /// Something does not become ready.
    #[error("{what} is not ready after {seconds} s: {state}")]
    NotReady {
        /// Kind and name.
        what: String,
        /// How long it was waited for.
        seconds: u64,
        /// Its state.
        state: String,
    },
}

/// A cluster to install into.
pub struct Target {
    pub(super) client: Client,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").finish_non_exhaustive()
    }
}

impl Target {
    /// The cluster behind `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Every definition of the cluster.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Reach`].
    pub async fn definitions(&self) -> Result<Vec<CustomResourceDefinition>, ClusterError> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let listed = api.list(&kube::api::ListParams::default()).await;
        Ok(listed.map_err(|error| ClusterError::Reach(Box::new(error)))?.items)
    }

    /// The controller's Deployment of the installation in `namespace`, if there is one.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Reach`].
    pub async fn installed(&self, namespace: &str) -> Result<Option<Deployment>, ClusterError> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(super::owned::CONTROLLER).await;
        found.map_err(|error| ClusterError::Reach(Box::new(error)))
    }

    /// Applies one object; tells whether anything was written.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Refused`].
    pub async fn apply(&self, object: &Value) -> Result<bool, ClusterError> {
        let refused = |error| ClusterError::Refused(name_of(object), Box::new(error));
        let (api, name) = self.api(object).await.map_err(refused)?;
        if text(object, "/kind") == "CustomResourceDefinition" {
            let found = api.get_metadata_opt(&name).await.map_err(refused)?;
            if found.is_some_and(|found| !is_ours(&found.metadata)) {
                return Ok(false);
            }
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(object)).await.map_err(refused)?;
            self.established(&name).await?;
            return Ok(true);
        }
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(object)).await.map_err(refused)?;
        Ok(true)
    }

    /// Deletes one object; tells whether it was there.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Refused`].
    pub async fn delete(&self, object: &Value) -> Result<bool, ClusterError> {
        let refused = |error| ClusterError::Refused(name_of(object), Box::new(error));
        let (api, name) = match self.api(object).await {
            Ok(found) => found,
            // Its kind is not served, so it is not there.
            Err(kube::Error::Discovery(_)) => return Ok(false),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(error) => return Err(refused(error)),
        };
        match api.delete(&name, &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(refused(error)),
        }
    }

    async fn api(&self, object: &Value) -> kube::Result<(Api<DynamicObject>, String)> {
        let api_version = text(object, "/apiVersion");
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
        let (resource, _) = kube::discovery::pinned_kind(&self.client, &kind).await?;
        let api = match text(object, "/metadata/namespace") {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        Ok((api, text(object, "/metadata/name").to_owned()))
    }

    async fn established(&self, name: &str) -> Result<(), ClusterError> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let ready = |found: &CustomResourceDefinition| {
            let conditions = found.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let mut conditions = conditions.filter(|c| c.type_ == "Established");
            match conditions.any(|condition| condition.status == "True") {
                true => Ok(()),
                false => Err("not established".to_owned()),
            }
        };
        wait(&api, name, Duration::from_secs(30), (ready, |_: &str| {})).await
    }

    /// Waits until every pod of a Deployment or DaemonSet runs as it is written now; others
    /// are ready as they are. `tell` is told of each change on the way.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotReady`].
    pub async fn ready(
        &self,
        object: &Value,
        patience: Duration,
        tell: impl Fn(&str),
    ) -> Result<(), ClusterError> {
        let (namespace, name) =
            (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let client = self.client.clone();
        match text(object, "/kind") {
            "Deployment" => {
                let api: Api<Deployment> = Api::namespaced(client, namespace);
                wait(&api, name, patience, (deployment, tell)).await
            }
            "DaemonSet" => {
                let api: Api<DaemonSet> = Api::namespaced(client, namespace);
                wait(&api, name, patience, (daemon_set, tell)).await
            }
            _ => Ok(()),
        }
    }
}

fn deployment(found: &Deployment) -> Result<(), String> {
    let (spec, status) = (found.spec.as_ref(), found.status.as_ref());
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let seen = status.and_then(|s| s.observed_generation) == found.metadata.generation;
    let updated = status.and_then(|s| s.updated_replicas).unwrap_or(0);
    let available = status.and_then(|s| s.available_replicas).unwrap_or(0);
    let all = status.and_then(|s| s.replicas).unwrap_or(0);
    match seen && updated == wanted && available == wanted && all == wanted {
        true => Ok(()),
        false => Err(format!("{available} of {wanted} available, {updated} up to date")),
    }
}

fn daemon_set(found: &DaemonSet) -> Result<(), String> {
    let Some(status) = &found.status else { return Err("not seen yet".to_owned()) };
    let seen = status.observed_generation == found.metadata.generation;
    let wanted = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let available = status.number_available.unwrap_or(0);
    match seen && updated == wanted && available == wanted {
        true => Ok(()),
        false => Err(format!("{available} of {wanted} available, {updated} up to date")),
    }
}

async fn wait<K>(
    api: &Api<K>,
    name: &str,
    patience: Duration,
    (ready, tell): (impl Fn(&K) -> Result<(), String>, impl Fn(&str)),
) -> Result<(), ClusterError>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let what = format!("{} {name}", K::kind(&()));
    let began = Instant::now();
    let mut told = String::new();
    loop {
        let found = api.get_opt(name).await;
        let found = found.map_err(|error| ClusterError::Refused(what.clone(), Box::new(error)))?;
        let state = match found.as_ref().map(&ready) {
            Some(Ok(())) => return Ok(()),
            Some(Err(state)) => state,
            None => "not there".to_owned(),
        };
        if state != told {
            tell(&format!("{what}: {state}"));
            told.clone_from(&state);
        }
        if began.elapsed() > patience {
            return Err(ClusterError::NotReady { what, seconds: patience.as_secs(), state });
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Whether a definition was brought by an installation.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    let mut managers = metadata.managed_fields.iter().flatten();
    managers.any(|one| one.manager.as_deref() == Some(MANAGER))
}

/// Kind and name of an object, for people.
pub fn name_of(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_means_every_pod_as_it_is_written_now() {
        let deployment = |status: Value| {
            let value = json!({"metadata": {"generation": 2},
                "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
            deployment(&serde_json::from_value(value).unwrap())
        };
        let status = |seen: i64, updated: i32, available: i32, all: i32| {
            json!({"observedGeneration": seen, "updatedReplicas": updated,
                "availableReplicas": available, "replicas": all})
        };
        assert_eq!(deployment(status(2, 2, 2, 2)), Ok(()));
        assert!(deployment(status(1, 2, 2, 2)).is_err(), "not seen yet");
        assert!(deployment(status(2, 1, 2, 2)).is_err(), "an old pod is there");
        assert!(deployment(status(2, 2, 2, 3)).is_err(), "one too many");
        let state = deployment(status(2, 2, 1, 2)).unwrap_err();
        assert_eq!(state, "1 of 2 available, 2 up to date");

        let daemons = |available: i32| {
            let value = json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1,
                "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "currentNumberScheduled": 2,
                "numberMisscheduled": 0, "numberReady": available, "numberAvailable": available}});
            daemon_set(&serde_json::from_value(value).unwrap())
        };
        assert_eq!(daemons(2), Ok(()));
        assert!(daemons(1).is_err());
    }
}
