// SPDX-License-Identifier: Apache-2.0

//! The pods that are served, each with its namespace, share and certificate.
//!
//! Owns: opening a pod's listeners inside its namespace and ending them. Keeps:
//! a pod is served on all its ports or not at all; the same UID in another
//! namespace is another pod.
//!
//! Start at [`Pods::add`].

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use policy::identity::{Identity, Namespace, ServiceAccount, TrustDomain};
use routing::discovery::Workload;
use routing::snapshot::Snapshot;
use routing::wire::zds;
use tokio_util::sync::CancellationToken;

use super::sessions::OpenSessions;
use crate::credentials::{Credentials, Held};
use crate::metrics::{Metrics, count};
use crate::proxy::listen::{self, Listeners};
use crate::proxy::{Parts, TunnelWorkers};
use crate::share::Share;
use crate::sys::NetworkNamespace;

/// One pod that is served.
#[derive(Debug)]
pub struct Pod {
    /// Kubernetes UID.
    pub uid: Arc<str>,
    /// Name, namespace and account, if the agent knows them.
    pub who: Option<zds::PodName>,
    /// Its network namespace.
    pub netns: NetworkNamespace,
    /// What it may have under way.
    pub share: Share,
    /// What it has open.
    pub sessions: OpenSessions,
    /// Uid of its workload when that does not say the pod's.
    workload_uid: Option<String>,
    credentials: Credentials,
    held: Mutex<Option<Held>>,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Pod {
    /// The workload that it is, if the controller has told.
    #[must_use]
    pub fn workload(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let discovery = &snapshot.discovery;
        let by_uid = discovery.pod(&self.uid);
        // A controller that does not tell UIDs of pods is asked by name.
        let by_name = || {
            let named = discovery.workload(self.workload_uid.as_deref()?)?;
            named.pod_uid.is_none().then_some(named)
        };
        by_uid.or_else(by_name).cloned()
    }

    /// Its certificate for `identity`; the first call for one starts fetching it.
    pub fn credential(&self, identity: &Identity) -> Held {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(held) if held.identity() == identity => held.clone(),
            Some(_) | None => held.insert(self.credentials.hold(identity)).clone(),
        }
    }

    /// Completes once it takes no new connections.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Completes once its sessions must end.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Takes no new connections; sessions go on until `drain` has passed.
    fn end(&self, drain: std::time::Duration) {
        self.stop.cancel();
        let cut = self.cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(drain).await;
            cut.cancel();
        });
    }
}

/// All pods that are served.
#[derive(Debug)]
pub struct Pods {
    parts: Parts,
    workers: TunnelWorkers,
    credentials: Credentials,
    served: Mutex<HashMap<Arc<str>, Arc<Pod>>>,
}

impl Pods {
    /// No pods yet.
    #[must_use]
    pub fn new(parts: Parts, workers: TunnelWorkers, credentials: Credentials) -> Self {
        Self { parts, workers, credentials, served: Mutex::default() }
    }

    /// Serves a pod. Once it returns the listeners of the pod take connections.
    ///
    /// # Errors
    ///
    /// When its namespace cannot be entered or a port is taken.
    pub fn add(&self, pod: &zds::Pod, netns: NetworkNamespace) -> io::Result<()> {
        if let Some(old) = self.pod(&pod.uid) {
            if old.netns.id() == netns.id() {
                return Ok(());
            }
            self.remove(&pod.uid);
        }
        let settings = &self.parts.settings;
        let listeners = netns.enter(|| Listeners::bind(settings))??;
        let workload_uid = pod
            .who
            .as_ref()
            .map(|who| Workload::pod_key(&settings.cluster, &who.namespace, &who.name));
        let served = Arc::new(Pod {
            uid: Arc::clone(&pod.uid),
            who: pod.who.clone(),
            netns,
            share: Share::new(&settings.limits),
            sessions: OpenSessions::default(),
            workload_uid,
            credentials: self.credentials.clone(),
            held: Mutex::default(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
        });
        // Fetched before the first connection needs it.
        if let Some(identity) = self.identity_of(&served) {
            served.credential(&identity);
        }
        self.lock().insert(Arc::clone(&served.uid), Arc::clone(&served));
        listen::start(&self.workers, &served, listeners);
        let metrics = self.metrics();
        count(&metrics.pods_started);
        metrics.active_pods.fetch_add(1, Ordering::Relaxed);
        tracing::info!(uid = %served.uid, pod = %name_of(&served), "pod is served");
        Ok(())
    }

    /// Serves a pod no more: takes no new connections, tells peers to go elsewhere,
    /// and cuts what is left after the time to drain.
    pub fn remove(&self, uid: &str) {
        let Some(pod) = self.lock().remove(uid) else { return };
        pod.end(self.parts.settings.limits.pod_drain);
        for worker in self.workers.iter() {
            let uid = Arc::clone(&pod.uid);
            worker.run(move |core| async move {
                core.pool.remove(|key| key.source_pod == uid);
            });
        }
        let metrics = self.metrics();
        count(&metrics.pods_stopped);
        metrics.active_pods.fetch_sub(1, Ordering::Relaxed);
        tracing::info!(%uid, pod = %name_of(&pod), "pod is served no more");
    }

    /// Serves no pod any more.
    pub fn remove_all(&self) {
        for uid in self.uids() {
            self.remove(&uid);
        }
    }

    /// UIDs of the pods that are served.
    #[must_use]
    pub fn uids(&self) -> Vec<Arc<str>> {
        self.lock().keys().cloned().collect()
    }

    /// The pod with this UID, if it is served.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.lock().get(uid).cloned()
    }

    /// All pods that are served.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.lock().values().cloned().collect()
    }

    /// Counters of the process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// What the pod's identity will be, for all that is known now.
    fn identity_of(&self, pod: &Pod) -> Option<Identity> {
        if let Some(workload) = pod.workload(&self.parts.shared.snapshot()) {
            return Some(workload.identity.clone());
        }
        let who = pod.who.as_ref()?;
        let domain: TrustDomain = self.parts.settings.trust_domain.parse().ok()?;
        let namespace: Namespace = who.namespace.parse().ok()?;
        let account: ServiceAccount = who.service_account.parse().ok()?;
        Some(Identity::new(&domain, &namespace, &account))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<Pod>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_of(pod: &Pod) -> String {
    pod.who.as_ref().map(|who| format!("{}/{}", who.namespace, who.name)).unwrap_or_default()
}
