// SPDX-License-Identifier: Apache-2.0

//! Follows all objects of one kind, or one object.
//!
//! Owns: what is gone after a list was read anew, what is left out with its namespace, and what
//! cannot be read (its last good version stays). Everything is listed again when a namespace
//! comes in: what was left out is kept nowhere. Ends when the kind is no longer served or nobody listens.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use kube::core::discovery::ApiResource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource as _, ResourceExt as _};
use serde::Deserialize as _;
use tokio::sync::mpsc;

use super::retry::retry;
use super::{Cluster, LeftOut, Raw, object};
use crate::source::{Change, Problem};
use crate::store::{Key, Kind, Name};

/// What is followed.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    /// All objects of a kind.
    All(Kind),
    /// One object.
    One(Key),
}

impl Scope {
    fn kind(&self) -> Kind {
        match self {
            Self::All(kind) => *kind,
            Self::One(key) => key.kind,
        }
    }
}

/// What one kind's watch has seen.
#[derive(Debug)]
pub(super) enum Seen {
    /// One object changed.
    Change(Change),
    /// One object cannot be read, or can be read again.
    Unreadable(Key, Option<Problem>),
    /// Everything there was has been told.
    Synced(Scope),
    /// A ConfigMap holds the defaults of a class, or does no longer.
    Default(Key, bool),
    /// Every ConfigMap with defaults has been told.
    DefaultsSynced,
}

/// The EndpointSlices that matter. Kubernetes' own controller makes one for Services that select
/// pods, and writes it anew with every pod: nothing is read there that pods do not say.
const SLICES: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";

/// Where all objects of a kind are found that matter: of those that run gateways, ours.
pub(super) fn all(
    cluster: &Cluster,
    kind: Kind,
    resource: &ApiResource,
) -> (Api<Raw>, watcher::Config) {
    let api = Api::all_with(cluster.client.clone(), resource);
    let config = watcher::Config::default();
    let config = if kind == Kind::EndpointSlice {
        config.labels(SLICES)
    } else if is_made(kind) {
        config.labels(crate::api::MANAGED)
    } else {
        config
    };
    (api, config)
}

/// Tells whether objects of the kind are looked at only if they were made for a Gateway.
fn is_made(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ServiceAccount
            | Kind::Deployment
            | Kind::HorizontalPodAutoscaler
            | Kind::PodDisruptionBudget
    )
}

/// Follows what `scope` names until it is no longer served or nobody listens.
pub(super) async fn follow(
    cluster: Arc<Cluster>,
    scope: Scope,
    (api, config): (Api<Raw>, watcher::Config),
    out: mpsc::Sender<Seen>,
) {
    let kind = scope.kind();
    let mut left_out = cluster.left_out.subscribe();
    let left = left_out.borrow_and_update().clone();
    let mut follower = Follower::new(cluster, scope, left);
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()).backoff(retry()));
        loop {
            let (seen, again) = tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => (follower.take(event), false),
                    Some(Err(error)) if is_answered(&error, 404) => (follower.clear(), false),
                    Some(Err(error)) => {
                        tracing::warn!(kind = kind.as_str(), %error, "watch failed; it is tried again");
                        (follower.failed(&error), false)
                    }
                    None => return,
                },
                Ok(()) = left_out.changed(), if !kind.is_cluster_wide() => {
                    let now = left_out.borrow_and_update().clone();
                    follower.leave_out(now)
                }
            };
            for seen in seen {
                if out.send(seen).await.is_err() {
                    return;
                }
            }
            if again {
                break;
            }
        }
    }
}

/// Tells whether the apiserver answered with `code`: 404 for a kind without a definition, or
/// whose definition is gone, 403 for what may not be read.
fn is_answered(error: &watcher::Error, code: u16) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) =
        error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == code)
}

struct Follower {
    cluster: Arc<Cluster>,
    kind: Kind,
    scope: Scope,
    known: HashSet<Name>,
    /// Names in the list that is being read.
    listed: Option<HashSet<Name>>,
    left: LeftOut,
}

impl Follower {
    fn new(cluster: Arc<Cluster>, scope: Scope, left: LeftOut) -> Self {
        let kind = scope.kind();
        // One that is not in the first list is gone: somebody followed it before, perhaps.
        let known = match &scope {
            Scope::All(_) => HashSet::new(),
            Scope::One(key) => HashSet::from([key.name.clone()]),
        };
        Self { cluster, kind, scope, known, listed: None, left }
    }

    fn take(&mut self, event: Event<Raw>) -> Vec<Seen> {
        match event {
            Event::Init => {
                self.listed = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(name(&object));
                }
                self.put(object)
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<Name> = self.known.difference(&listed).cloned().collect();
                let mut seen: Vec<Seen> =
                    gone.into_iter().flat_map(|name| self.remove(name)).collect();
                seen.push(Seen::Synced(self.scope.clone()));
                seen
            }
            // It is in force here as it is; there are as many of these as of all other changes.
            Event::Apply(object) if self.is_own(&object) => Vec::new(),
            Event::Apply(object) => self.put(object),
            Event::Delete(object) => self.remove(name(&object)),
        }
    }

    /// The kind is not served: there are no objects of it.
    fn clear(&mut self) -> Vec<Seen> {
        self.listed = None;
        let known = std::mem::take(&mut self.known);
        let mut seen: Vec<Seen> = known.into_iter().flat_map(|name| self.remove(name)).collect();
        seen.push(Seen::Synced(self.scope.clone()));
        seen
    }

    /// Other namespaces are left out from now on; tells what goes with them, and whether some
    /// have to be read.
    fn leave_out(&mut self, now: LeftOut) -> (Vec<Seen>, bool) {
        let again = now.came_in != self.left.came_in;
        let left = self.known.iter().filter(|name| now.names.contains(&name.namespace));
        let left: Vec<Name> = left.cloned().collect();
        self.left = now;
        (left.into_iter().flat_map(|name| self.remove(name)).collect(), again)
    }

    /// Who waits for an object that may not be read waits no longer.
    fn failed(&self, error: &watcher::Error) -> Vec<Seen> {
        let scope @ Scope::One(key) = &self.scope else { return Vec::new() };
        if !is_answered(error, 403) {
            return Vec::new();
        }
        let message = "the controller may not read it (of Secrets those of pilot.secretNames, if \
                       there is such a list); it counts as missing, or as it was read last";
        let problem = problem(key, message.to_owned());
        vec![Seen::Unreadable(key.clone(), Some(problem)), Seen::Synced(scope.clone())]
    }

    /// Tells whether all that is new of a known object is a status that was written here. What
    /// others wrote just before came with an event of its own.
    fn is_own(&self, object: &Raw) -> bool {
        let key = Key { kind: self.kind, name: name(object) };
        let version = object.meta().resource_version.as_deref();
        self.known.contains(&key.name) && self.cluster.is_own(&key, version)
    }

    fn put(&mut self, object: Raw) -> Vec<Seen> {
        let key = Key { kind: self.kind, name: name(&object) };
        if self.kind == Kind::Namespace {
            let labels = object.fields.get("metadata").and_then(|meta| meta.get("labels"));
            let labels = labels.and_then(|labels| BTreeMap::deserialize(labels).ok());
            self.cluster.see_namespace(&key.name.name, Some(labels.as_ref()));
        }
        if self.left.names.contains(&key.name.namespace) {
            return Vec::new();
        }
        self.known.insert(key.name.clone());
        match object::read(self.kind, object.fields) {
            Ok((object, standing)) => {
                self.cluster.set_standing(&key, standing);
                vec![Seen::Change(Change::Put(object)), Seen::Unreadable(key, None)]
            }
            Err(error) => {
                let message = format!("{error}; its last good version, if any, stays in force");
                let problem = problem(&key, message);
                vec![Seen::Unreadable(key, Some(problem))]
            }
        }
    }

    fn remove(&mut self, name: Name) -> Vec<Seen> {
        self.known.remove(&name);
        if self.kind == Kind::Namespace {
            self.cluster.see_namespace(&name.name, None);
        }
        let key = Key { kind: self.kind, name };
        self.cluster.set_standing(&key, None);
        vec![Seen::Change(Change::Gone(key.clone())), Seen::Unreadable(key, None)]
    }
}

fn problem(key: &Key, message: String) -> Problem {
    Problem {
        file: PathBuf::from("kubernetes"),
        line: 0,
        object: Some(key.to_string()),
        field: None,
        message,
        in_force: false,
    }
}

fn name(object: &Raw) -> Name {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    Name::new(namespace, &object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Apiserver, Standing};
    use super::*;
    use crate::discovery::Selectors;

    fn object(namespace: &str, name: &str, labels: Value) -> Raw {
        let meta = json!({"name": name, "namespace": namespace, "labels": labels});
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    fn told(seen: Vec<Seen>) -> Vec<String> {
        let told = seen.into_iter().filter_map(|seen| match seen {
            Seen::Change(Change::Put(object)) => Some(format!("put {}", object.key())),
            Seen::Change(Change::Gone(key)) => Some(format!("gone {key}")),
            Seen::Unreadable(..) | Seen::Synced(_) | Seen::Default(..) | Seen::DefaultsSynced => {
                None
            }
        });
        told.collect()
    }

    /// Of which nothing is asked.
    fn cluster(selectors: &str) -> Arc<Cluster> {
        let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let apiserver = Apiserver::new(nowhere).unwrap();
        Arc::new(Cluster::new(apiserver, selectors.parse::<Selectors>().unwrap()))
    }

    #[tokio::test]
    async fn a_status_that_was_written_here_is_no_news() {
        let cluster = cluster("[]");
        let mut follower =
            Follower::new(Arc::clone(&cluster), Scope::All(Kind::HttpRoute), LeftOut::default());
        let route = |version: &str| {
            let meta = json!({"name": "r", "namespace": "n", "resourceVersion": version});
            serde_json::from_value::<Raw>(json!({"metadata": meta, "spec": {}})).unwrap()
        };
        let key = Key { kind: Kind::HttpRoute, name: Name::new("n", "r") };
        let standing =
            |version: &str| Standing { version: Some(version.into()), ..Standing::default() };
        let news = vec!["put HTTPRoute n/r".to_owned()];
        cluster.wrote(&key, standing("1"));
        assert_eq!(told(follower.take(Event::Apply(route("1")))), news, "it is not known here yet");
        cluster.wrote(&key, standing("3"));
        assert_eq!(told(follower.take(Event::Apply(route("2")))), news, "of somebody, before it");
        cluster.wrote(&key, standing("3"));
        assert!(told(follower.take(Event::Apply(route("3")))).is_empty());
        assert_eq!(told(follower.take(Event::Apply(route("4")))), news);
        // Read at the apiserver, which tells nothing of what else changed.
        cluster.set_standing(&key, Some(standing("5")));
        assert_eq!(told(follower.take(Event::Apply(route("5")))), news);
    }

    #[tokio::test]
    async fn objects_are_left_out_with_their_namespace_and_read_when_it_comes_in() {
        let cluster = cluster(r#"[{"matchLabels": {"mesh": "yes"}}]"#);
        let follower =
            |kind| Follower::new(Arc::clone(&cluster), Scope::All(kind), LeftOut::default());
        let (mut namespaces, mut accounts) =
            (follower(Kind::Namespace), follower(Kind::ServiceAccount));
        let now = || cluster.left_out.borrow().clone();
        let account = || object("n", "a", Value::Null);

        // Of what namespace it is comes second.
        assert_eq!(told(accounts.take(Event::InitApply(account()))), ["put ServiceAccount n/a"]);
        namespaces.take(Event::InitApply(object("", "n", json!({"mesh": "no"}))));
        let (seen, again) = accounts.leave_out(now());
        assert_eq!((told(seen), again), (vec!["gone ServiceAccount n/a".to_owned()], false));
        assert!(told(accounts.take(Event::Apply(account()))).is_empty());

        namespaces.take(Event::Apply(object("", "n", json!({"mesh": "yes"}))));
        let (seen, again) = accounts.leave_out(now());
        assert_eq!((told(seen), again), (Vec::new(), true), "everything is listed again");
        accounts.take(Event::Init);
        assert_eq!(told(accounts.take(Event::InitApply(account()))), ["put ServiceAccount n/a"]);

        // One that goes for good asks for nothing.
        namespaces.take(Event::Apply(object("", "n", json!({}))));
        accounts.leave_out(now());
        namespaces.take(Event::Delete(object("", "n", json!({}))));
        assert!(!accounts.leave_out(now()).1);
    }
}
