// SPDX-License-Identifier: Apache-2.0

//! The mesh of a cluster, asked through its apiserver.
//!
//! Owns: which cluster is meant, which pod of the controller is asked, and the way to it. The
//! admin port of a controller is on its pod's loopback; it is reached by port-forwarding, so
//! whoever may `create pods/portforward` in the mesh's namespace may ask, and no pod may.
//!
//! Start at [`Cluster::find`].

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ListParams, Portforwarder, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::Failure;
use super::ask::{Answer, exchange};
use crate::install::NAMESPACE;
use crate::lead;
use crate::settings::ADMIN_PORT;
use crate::translate::pod::is_ready;

/// Exit code when there is nothing to ask.
const NOTHING_RUNS: u8 = 3;
/// What the pods of the controller are called.
pub(super) const CONTROLLER: &str = "app.kubernetes.io/name=waymark-controller";
/// Longest time of one question.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which cluster is meant.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct ClusterArgs {
    /// Kubeconfig file; `KUBECONFIG`, then `~/.kube/config` by default.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one by default.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Whether a cluster is asked for in so many words.
    pub(super) fn named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Whether there is a cluster to speak of: a kubeconfig with a context, or this is a pod.
    pub(super) fn configured(&self) -> bool {
        let current = |config: Kubeconfig| config.current_context.is_some_and(|c| !c.is_empty());
        self.named() || Kubeconfig::read().is_ok_and(current) || in_pod()
    }

    /// The way to the cluster, and its name for people. Must be called inside a tokio runtime.
    pub(super) async fn client(&self) -> Result<(Client, String), Failure> {
        // One provider for this process; a second try finds the first.
        let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let read = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let (config, name) = match read {
            Ok(file) => {
                let context = self.context.clone().or_else(|| file.current_context.clone());
                let config = Config::from_custom_kubeconfig(file, &options).await;
                let config = config.map_err(Failure::from_error)?;
                let name = context.unwrap_or_default();
                let name = format!("cluster {} of context {name:?}", config.cluster_url);
                (config, name)
            }
            Err(_) if !self.named() && in_pod() => {
                let config = Config::incluster().map_err(Failure::from_error)?;
                (config, "the cluster of this pod".to_owned())
            }
            Err(error) => {
                let failure = Failure::from_error(error);
                let message = format!(
                    "no cluster to speak of: {}; set KUBECONFIG or say --kubeconfig FILE",
                    failure.message
                );
                return Err(Failure { message, code: NOTHING_RUNS });
            }
        };
        Ok((Client::try_from(config).map_err(Failure::from_error)?, name))
    }
}

fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// The mesh of a cluster.
pub(super) struct Cluster {
    runtime: Runtime,
    client: Client,
    asked: Asked,
    /// The cluster, for people.
    pub(super) name: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The pod that is asked.
pub(super) struct Asked {
    pods: Api<Pod>,
    namespace: String,
    pod: String,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("pod", &self.pod).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The mesh whose parts are in `namespace` of the cluster that `args` means.
    pub(super) fn find(args: &ClusterArgs, namespace: &str) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let found = runtime.block_on(async {
            let (client, name) = args.client().await?;
            let asked = Asked::leader(&client, namespace, &name).await?;
            Ok::<_, Failure>((client, asked, name))
        });
        let (client, asked, name) = found?;
        Ok(Self { runtime, client, asked, name })
    }

    /// What the controller answers at `path`.
    pub(super) fn ask(&self, path: &str) -> Result<Value, Failure> {
        self.runtime.block_on(self.asked.ask(path))?.json()
    }

    /// What each ready controller answers at `path`.
    pub(super) fn ask_all(&self, path: &str) -> Result<Vec<Value>, Failure> {
        self.runtime.block_on(async {
            let all = Asked::all(&self.client, &self.asked.namespace, &self.name).await?;
            let mut answers = Vec::with_capacity(all.len());
            for asked in all {
                answers.push(asked.ask(path).await?.json()?);
            }
            Ok(answers)
        })
    }

    /// The Secret `name` beside the controllers, if it is there.
    pub(super) fn secret(&self, name: &str) -> Result<Option<Secret>, Failure> {
        let found = self.runtime.block_on(self.secrets().get_opt(name));
        found.map_err(Failure::from_error)
    }

    /// Replaces the Secret `name`, if it is still of the version that `next` says.
    pub(super) fn replace_secret(&self, name: &str, next: &Secret) -> Result<Secret, Failure> {
        let replaced = self.secrets();
        let replaced = self.runtime.block_on(replaced.replace(name, &PostParams::default(), next));
        replaced.map_err(Failure::from_error)
    }

    /// Namespace of the controllers.
    pub(super) fn namespace(&self) -> &str {
        &self.asked.namespace
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.asked.namespace)
    }
}

impl Asked {
    /// The pod of this name.
    pub(super) fn of(client: &Client, namespace: &str, pod: &str) -> Self {
        let pods = Api::namespaced(client.clone(), namespace);
        Self { pods, namespace: namespace.to_owned(), pod: pod.to_owned() }
    }

    /// The controller that leads, else any that is ready.
    pub(super) async fn leader(
        client: &Client,
        namespace: &str,
        cluster: &str,
    ) -> Result<Self, Failure> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let mut all = Self::all(client, namespace, cluster).await?;
        // Who may not read Leases gets an answer all the same.
        let lease = leases.get_opt(lead::NAME).await.ok().flatten();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        let leads = |asked: &Self| holder.as_deref() == Some(asked.pod.as_str());
        let chosen = all.iter().position(leads).unwrap_or(0);
        Ok(all.swap_remove(chosen))
    }

    /// Every controller that is ready; there is at least one.
    pub(super) async fn all(
        client: &Client,
        namespace: &str,
        cluster: &str,
    ) -> Result<Vec<Self>, Failure> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let listed = pods.list(&ListParams::default().labels(CONTROLLER)).await;
        let listed = listed.map_err(|error| not_listed(&error, namespace, cluster))?;
        let some = !listed.items.is_empty();
        let ready = listed.items.into_iter().filter(is_ready);
        let all: Vec<Self> = ready
            .map(|pod| Self {
                pods: pods.clone(),
                namespace: namespace.to_owned(),
                pod: pod.name_any(),
            })
            .collect();
        if !all.is_empty() {
            return Ok(all);
        }
        let message = if some {
            format!(
                "no controller in namespace {namespace} of {cluster} is ready; see: \
                 kubectl -n {namespace} get pods -l {CONTROLLER}"
            )
        } else {
            format!(
                "Waymark is not installed in namespace {namespace} of {cluster}; install it: \
                 waymark install{}",
                if namespace == NAMESPACE { "" } else { " --namespace ..." }
            )
        };
        Err(Failure { message, code: NOTHING_RUNS })
    }

    /// What this pod answers at `path` of its admin port.
    pub(super) async fn ask(&self, path: &str) -> Result<Answer, Failure> {
        let who = format!("{}/{}", self.namespace, self.pod);
        match tokio::time::timeout(PATIENCE, self.forward(path, &who)).await {
            Ok(answer) => answer,
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                let message = format!("pod {who} has not answered within {seconds} s");
                Err(Failure { message, code: NOTHING_RUNS })
            }
        }
    }

    /// A way to a port of this pod, for as long as the answer lives.
    pub(super) async fn forwarded(&self, port: u16) -> Result<Portforwarder, Failure> {
        let who = format!("{}/{}", self.namespace, self.pod);
        let forwarded = self.pods.portforward(&self.pod, &[port]).await;
        forwarded.map_err(|error| cannot_be_asked(&who, &not_forwarded(&error, &who)))
    }

    async fn forward(&self, path: &str, who: &str) -> Result<Answer, Failure> {
        let failed = |why: String| cannot_be_asked(who, &why);
        let mut forwarded = self.forwarded(ADMIN_PORT).await?;
        let stream = forwarded.take_stream(ADMIN_PORT);
        let stream = stream.ok_or_else(|| failed("its port was not forwarded".to_owned()))?;
        let refused = forwarded.take_error(ADMIN_PORT);
        match exchange(stream, Method::GET, path).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                // What the node says of it tells more than the end of the stream.
                let said = async { refused?.await };
                let said = tokio::time::timeout(Duration::from_secs(1), said).await;
                Err(failed(said.ok().flatten().unwrap_or_else(|| error.to_string())))
            }
        }
    }
}

fn cannot_be_asked(who: &str, why: &str) -> Failure {
    Failure { message: format!("pod {who} cannot be asked: {why}"), code: NOTHING_RUNS }
}

/// A runtime for a verb.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(Failure::from_error)
}

fn not_listed(error: &kube::Error, namespace: &str, cluster: &str) -> Failure {
    let status = if let kube::Error::Api(status) = error { Some(status) } else { None };
    let message = match status.map(|status| (status.code, status.message.as_str())) {
        Some((403, _)) => format!("you may not list pods in namespace {namespace} of {cluster}"),
        Some((401, _)) => {
            format!("{cluster} does not know you; renew the credentials of the kubeconfig")
        }
        Some((_, said)) => format!("{cluster} refuses: {said}"),
        None => format!("{cluster} cannot be reached: {}", causes(error)),
    };
    Failure { message, code: NOTHING_RUNS }
}

fn not_forwarded(error: &kube::Error, who: &str) -> String {
    let namespace = who.split('/').next().unwrap_or_default();
    let text = causes(error);
    if text.contains("403") {
        return format!(
            "you may not forward ports there; it takes: kubectl create role waymark-reader -n \
             {namespace} --verb=create --resource=pods/portforward"
        );
    }
    text
}

/// An error with its causes, in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}
