// SPDX-License-Identifier: Apache-2.0

//! `waymark uninstall`: the mesh leaves a cluster.
//!
//! Owns: the order. First every node is cleared while everything still works: the order to
//! leave is written, the controller lets pods go as it does when a label is taken off, agents
//! take rules and plug-in away and report ([`progress`]). Only then the objects go, those that
//! serve last, and what the controller wrote into other namespaces ([`remains`]).
//!
//! Keeps: a node that has not reported stops everything unless that is forced, and says what
//! would be left there. Twice or halfway is harmless: it goes on from where it stands.

mod progress;
mod remains;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use self::progress::Progress;
use super::cluster::{Asked, ClusterArgs, causes, runtime};
use super::install::not_of_helm;
use super::{Failure, complain};
use crate::install::cluster::{MANAGER, Target, name_of};
use crate::install::{self, NAMESPACE, crds};
use crate::provision::roots;
use crate::translate::leave;

/// Labels of the parts that run on each node.
const NODE_PARTS: [&str; 2] = ["app=waymark-agent", "app=ztunnel"];
/// Labels of the parts whose pods must be gone before their names may be used anew.
const PARTS: [&str; 3] = [NODE_PARTS[0], NODE_PARTS[1], super::cluster::CONTROLLER];
/// How often it is looked how far nodes are.
const PERIOD: Duration = Duration::from_secs(1);
/// How long pods of a part may take to end.
const ENDING: Duration = Duration::from_secs(90);

/// Arguments of `waymark uninstall`.
#[derive(clap::Args, Debug)]
pub(super) struct UninstallArgs {
    /// Namespace of the parts.
    #[arg(long, short, default_value = NAMESPACE)]
    namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Seconds that connections through the mesh may take to end before they are cut.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    drain: u32,
    /// Seconds that all nodes together may take to leave.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Go on although nodes have not reported: what is on them stays there.
    #[arg(long)]
    force: bool,
    /// Delete the definitions of Istio's kinds that an installation brought, too, and with them
    /// every object of those kinds: the policies that users wrote.
    #[arg(long)]
    crds: bool,
    /// This is Helm's own hook: what Helm made may go.
    #[arg(long, hide = true)]
    helm_hook: bool,
}

/// An installation that goes.
struct Going<'a> {
    args: &'a UninstallArgs,
    client: Client,
    target: Target,
    /// The cluster, for people.
    cluster: String,
}

/// Takes the mesh out of the cluster.
pub(super) fn uninstall(args: &UninstallArgs) -> Result<ExitCode, Failure> {
    runtime()?.block_on(async {
        let (client, cluster) = args.cluster.client().await?;
        let target = Target::new(client.clone());
        let installed = target.installed(&args.namespace).await.map_err(Failure::from_error)?;
        if let Some(found) = installed.as_ref().filter(|_| !args.helm_hook) {
            not_of_helm(found, "uninstall")?;
        }
        let going = Going { args, client, target, cluster };
        let nodes = going.nodes().await?;
        if !nodes.is_empty() {
            Box::pin(going.clear(&nodes)).await?;
        }
        Box::pin(going.remove()).await?;
        let namespace = &args.namespace;
        complain(&format!(
            "uninstalled; what is yours stays: namespace {namespace} (kubectl delete namespace \
             {namespace}), Gateway API and its objects{}",
            if args.crds {
                ""
            } else {
                ", Istio's kinds with your policies (--crds takes them, too)"
            }
        ));
        Ok(ExitCode::SUCCESS)
    })
}

impl Going<'_> {
    /// The nodes with an agent or a tunnel: those that are to be cleared. One whose agent alone is
    /// missing has something to clear all the same.
    async fn nodes(&self) -> Result<BTreeSet<String>, Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let node = |pod: Pod| pod.spec.and_then(|spec| spec.node_name);
        let mut nodes = BTreeSet::new();
        for part in NODE_PARTS {
            let listed = pods.list(&ListParams::default().labels(part)).await;
            nodes.extend(listed.map_err(Failure::from_error)?.into_iter().filter_map(node));
        }
        Ok(nodes)
    }

    /// Gives the order, and waits until every node has carried it out.
    async fn clear(&self, nodes: &BTreeSet<String>) -> Result<(), Failure> {
        let id = self.order().await?;
        complain(&format!("{} nodes are to be cleared: pods leave the mesh", nodes.len()));
        let until = Instant::now() + Duration::from_secs(self.args.timeout);
        let mut last = Progress::default();
        loop {
            let now = match self.answers().await {
                Ok(answers) => progress::of(nodes, &answers, &id),
                Err(failure) => Progress::unknown(nodes, &failure.message),
            };
            now.news(&last).iter().for_each(|line| complain(line));
            if now.waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return self.late(&now);
            }
            last = now;
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Writes the order to leave; one that stands is the same order.
    async fn order(&self) -> Result<String, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let order = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": leave::NAME, "namespace": self.args.namespace},
            "data": {leave::DRAIN_SECONDS: self.args.drain.to_string()},
        });
        let params = PatchParams::apply(MANAGER).force();
        let made = maps.patch(leave::NAME, &params, &Patch::Apply(order)).await;
        Ok(made.map_err(Failure::from_error)?.uid().unwrap_or_default())
    }

    /// What each controller that is ready knows: an agent reports to one of them.
    async fn answers(&self) -> Result<Vec<Value>, Failure> {
        let controllers = Asked::all(&self.client, &self.args.namespace, &self.cluster).await?;
        let mut answers = Vec::new();
        let mut failed = None;
        for one in &controllers {
            match one.ask("/status").await.and_then(|answer| answer.json()) {
                Ok(answer) => answers.push(answer),
                Err(failure) => failed = Some(failure),
            }
        }
        match failed {
            Some(failure) if answers.is_empty() => Err(failure),
            Some(_) | None => Ok(answers),
        }
    }

    fn late(&self, now: &Progress) -> Result<(), Failure> {
        let waiting: Vec<String> =
            now.waiting.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        let waiting = waiting.join("\n  ");
        if self.args.force {
            complain(&format!(
                "these nodes have not reported; rules in their pods, the plug-in in their CNI \
                 configuration, or files stay there until they are set up anew:\n  {waiting}"
            ));
            return Ok(());
        }
        let message = format!(
            "after {} s these nodes have not reported that they are cleared:\n  {waiting}\n\
             Nothing else was removed. Bring them back and run this again; for a node that is gone \
             for good: kubectl delete node NODE; to go on all the same: --force. To call it off: \
             kubectl -n {} delete configmap {}",
            self.args.timeout,
            self.args.namespace,
            leave::NAME,
        );
        Err(Failure { message, code: 1 })
    }

    /// Removes the objects.
    async fn remove(&self) -> Result<(), Failure> {
        let namespace = &self.args.namespace;
        let root = self.root().await;
        let owned = self.target.owned(namespace).await.map_err(Failure::from_error)?;
        let manifest = install::objects(namespace, &[]).map_err(Failure::from_error)?;
        let all = progress::order(&manifest, owned);
        let (pods, rest): (Vec<&Value>, Vec<&Value>) =
            all.iter().partition(|object| progress::has_pods(object));
        for object in pods {
            self.delete(object).await?;
        }
        self.ended().await?;
        // From here on nobody writes these again.
        let remains = remains::Remains { client: &self.client, namespace, root: root.as_deref() };
        Box::pin(remains.remove()).await.map_err(|error| {
            let why = causes(&error);
            Failure {
                message: format!("what the controller wrote cannot be removed: {why}"),
                code: 1,
            }
        })?;
        for object in rest {
            self.delete(object).await?;
        }
        if self.args.crds {
            self.definitions().await?;
        }
        // Last, so that an end halfway is taken up where it was.
        let order = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": leave::NAME, "namespace": namespace}});
        self.delete(&order).await
    }

    async fn delete(&self, object: &Value) -> Result<(), Failure> {
        if self.target.delete(object).await.map_err(Failure::from_error)? {
            complain(&format!("removed {}", name_of(object)));
        }
        Ok(())
    }

    /// The root that was published.
    async fn root(&self) -> Option<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.args.namespace);
        maps.get_opt(roots::NAME).await.ok().flatten()?.data?.remove(roots::KEY)
    }

    /// Waits until the pods of the parts are gone; those of a node that is away stay.
    async fn ended(&self) -> Result<(), Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let until = Instant::now() + ENDING;
        loop {
            let mut left = Vec::new();
            for part in PARTS {
                let listed = pods.list(&ListParams::default().labels(part)).await;
                left.extend(listed.map_err(Failure::from_error)?.iter().map(|pod| pod.name_any()));
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                complain(&format!("still ending, and not waited for: {}", left.join(", ")));
                return Ok(());
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Deletes the definitions that an installation brought.
    async fn definitions(&self) -> Result<(), Failure> {
        let there = self.target.definitions().await.map_err(Failure::from_error)?;
        for definition in crds::all() {
            let name = definition.pointer("/metadata/name").and_then(Value::as_str);
            let found = there.iter().find(|found| found.metadata.name.as_deref() == name);
            match found {
                Some(found) if install::cluster::is_ours(&found.metadata) => {
                    self.delete(&definition).await?;
                }
                Some(_) => complain(&format!("{} is not ours: it stays", name_of(&definition))),
                None => {}
            }
        }
        Ok(())
    }
}
