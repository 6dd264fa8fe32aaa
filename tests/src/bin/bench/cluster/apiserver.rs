// SPDX-License-Identifier: Apache-2.0

//! The apiserver, as clients of it see it: objects made by several at once, and watches.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, TypeMeta,
    WatchEvent, WatchParams,
};
use kube::{Api, Client, Config};
use serde_json::Value;
use tokio::time::Instant;

/// A kind of objects: API group, version, kind, and its name in paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind(&'static str, &'static str, &'static str, &'static str);

pub(super) const NAMESPACES: Kind = Kind("", "v1", "Namespace", "namespaces");
pub(super) const NODES: Kind = Kind("", "v1", "Node", "nodes");
pub(super) const PODS: Kind = Kind("", "v1", "Pod", "pods");
pub(super) const SERVICES: Kind = Kind("", "v1", "Service", "services");
pub(super) const SLICES: Kind = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices");
pub(super) const LEASES: Kind = Kind("coordination.k8s.io", "v1", "Lease", "leases");
pub(super) const GATEWAYS: Kind = Kind("gateway.networking.k8s.io", "v1", "Gateway", "gateways");
pub(super) const ROUTES: Kind = Kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes");

impl Kind {
    fn resource(self) -> ApiResource {
        let Self(group, version, kind, plural) = self;
        let api_version =
            if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }
}

/// Changes of objects since some moment.
pub(super) type Watch = BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>;

/// One client of the apiserver.
#[derive(Clone)]
pub(super) struct Apiserver(Client);

impl Apiserver {
    /// A client with connections of its own, as the kubeconfig in force says.
    pub(super) async fn connect() -> anyhow::Result<Self> {
        let config = Config::infer().await.context("no cluster is configured")?;
        let one = Self(Client::try_from(config)?);
        one.0.apiserver_version().await.context("the apiserver does not answer")?;
        Ok(one)
    }

    /// The objects of a kind; the namespace is empty for kinds of the whole cluster.
    pub(super) fn objects(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.0.clone(), &kind.resource())
        } else {
            Api::namespaced_with(self.0.clone(), namespace, &kind.resource())
        }
    }

    /// The objects of a type in a namespace.
    pub(super) fn typed<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.0.clone(), namespace)
    }

    /// Makes one object.
    pub(super) async fn make(
        &self,
        kind: Kind,
        namespace: &str,
        object: Value,
    ) -> anyhow::Result<()> {
        let mut object: DynamicObject = serde_json::from_value(object)?;
        let ApiResource { api_version, kind: of, .. } = kind.resource();
        object.types = Some(TypeMeta { api_version, kind: of });
        let made = self.objects(kind, namespace).create(&PostParams::default(), &object).await;
        made.with_context(|| format!("{} {:?} not made", kind.2, object.metadata.name))?;
        Ok(())
    }

    /// Merges `patch` into one object.
    pub(super) async fn patch(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> anyhow::Result<()> {
        let objects = self.objects(kind, namespace);
        let patched = objects.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("{} {name} not changed", kind.2))?;
        Ok(())
    }

    /// Merges `patch` into the status of one object.
    pub(super) async fn patch_status(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> anyhow::Result<()> {
        let objects = self.objects(kind, namespace);
        let patched =
            objects.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("status of {} {name} not changed", kind.2))?;
        Ok(())
    }

    /// Deletes one object at once; one that is not there is no failure.
    pub(super) async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<()> {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        match self.objects(kind, namespace).delete(name, &now).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{} {name} not deleted", kind.2)),
        }
    }

    /// Deletes all objects of a kind in a namespace at once.
    pub(super) async fn delete_all(&self, kind: Kind, namespace: &str) -> anyhow::Result<()> {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let objects = self.objects(kind, namespace);
        objects.delete_collection(&now, &ListParams::default()).await?;
        Ok(())
    }

    /// Changes from now on of a kind's objects in a namespace.
    pub(super) async fn watch(&self, kind: Kind, namespace: &str) -> anyhow::Result<Watch> {
        let objects = self.objects(kind, namespace);
        let listed = objects.list_metadata(&ListParams::default().limit(1)).await?;
        let version = listed.metadata.resource_version.unwrap_or_default();
        Ok(objects.watch(&WatchParams::default(), &version).await?.boxed())
    }
}

/// The next object that came or changed in a watch, and whether it came.
pub(super) async fn next(watch: &mut Watch) -> anyhow::Result<(DynamicObject, bool)> {
    loop {
        match watch.try_next().await?.context("a watch ended early")? {
            WatchEvent::Added(object) => return Ok((object, true)),
            WatchEvent::Modified(object) => return Ok((object, false)),
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(error) => anyhow::bail!("a watch failed: {error:?}"),
        }
    }
}

/// Clients that each have connections of their own.
pub(super) async fn clients(count: usize) -> anyhow::Result<Vec<Apiserver>> {
    try_join_all((0..count).map(|_| Apiserver::connect())).await
}

/// Does the work of each number of `range` once, shared among `clients`; evenly over `within`,
/// as far as the apiserver keeps up.
pub(super) async fn share<W>(
    clients: &[Apiserver],
    range: std::ops::Range<usize>,
    within: Duration,
    work: impl Fn(Apiserver, usize) -> W,
) -> anyhow::Result<()>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let began = Instant::now();
    let count = u32::try_from(range.len().max(1))?;
    let (range, work) = (&range, &work);
    let each = clients.iter().enumerate().map(|(first, client)| async move {
        for at in range.clone().skip(first).step_by(clients.len()) {
            let place = u32::try_from(at - range.start)?;
            tokio::time::sleep_until(began + within * place / count).await;
            work(client.clone(), at).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(each).await?;
    Ok(())
}
