// SPDX-License-Identifier: Apache-2.0

//! Which pods shall run: from the objects of the folder and the pods that are there to
//! the next steps.
//!
//! Owns: the roles that Kubernetes' controllers and scheduler have in a cluster, as pure
//! functions: replicas, rollouts, names, placement. [`image`] tells what to run for a
//! container, [`environment`] with which variables.
//!
//! Keeps: the same input gives the same steps, but for the suffix of names, whose
//! randomness the caller gives. A rollout never goes below the replicas that must be
//! ready, nor above those that may exist.
//!
//! Start at [`owner_of`] and [`steps`].

pub mod environment;
pub mod image;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest as _, Sha256};

use super::manifest::{Object, ObjectKey};

/// What kind of object wants pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OwnerKind {
    /// Interchangeable replicas with rolling update.
    Deployment {
        /// How many more than the replicas may exist during a rollout.
        surge: usize,
        /// How many fewer than the replicas may be ready during a rollout.
        unavailable: usize,
        /// Old ones go before new ones come.
        recreate: bool,
    },
    /// Numbered replicas.
    StatefulSet {
        /// All at once, instead of one after the other.
        parallel: bool,
    },
    /// One on each node.
    DaemonSet,
    /// The pod itself.
    Pod,
}

/// An object that wants pods.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The object.
    pub key: ObjectKey,
    /// Which rules hold.
    pub kind: OwnerKind,
    /// How many pods; for a DaemonSet one per node instead.
    pub replicas: usize,
    /// What each looks like.
    pub template: PodTemplateSpec,
    /// Short hash of the template: pods with another one are old.
    pub hash: String,
}

/// What a step needs to know of a pod that exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodView {
    /// Name.
    pub name: String,
    /// Template hash it was made from.
    pub hash: String,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Whether it is going.
    pub terminating: bool,
    /// Node it runs on, by index from 0.
    pub node: usize,
}

/// One thing to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make a pod of this name, if given on this node (index from 0).
    Create {
        /// Its name.
        name: String,
        /// Its node, where the owner decides that.
        node: Option<usize>,
    },
    /// Let a pod go.
    Delete {
        /// Its name.
        name: String,
    },
}

/// The owner that `object` is, if it wants pods at all.
#[must_use]
pub fn owner_of(key: &ObjectKey, object: &Object) -> Option<Owner> {
    let (kind, replicas, template) = match object {
        Object::Deployment(deployment) => {
            let spec = deployment.spec.clone().unwrap_or_default();
            let replicas = count(spec.replicas);
            (rollout(spec.strategy.as_ref(), replicas), replicas, spec.template)
        }
        Object::StatefulSet(set) => {
            let spec = set.spec.clone().unwrap_or_default();
            let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
            (OwnerKind::StatefulSet { parallel }, count(spec.replicas), spec.template)
        }
        Object::DaemonSet(set) => {
            let spec = set.spec.clone().unwrap_or_default();
            (OwnerKind::DaemonSet, 0, spec.template)
        }
        Object::Pod(pod) => {
            let template =
                PodTemplateSpec { metadata: Some(pod.metadata.clone()), spec: pod.spec.clone() };
            (OwnerKind::Pod, 1, template)
        }
        Object::Service(_)
        | Object::Namespace(_)
        | Object::ConfigMap(_)
        | Object::Secret(_)
        | Object::Gateway(_) => return None,
    };
    let hash = match kind {
        // Labels and annotations of a lone pod may change while it runs.
        OwnerKind::Pod => {
            template_hash(&PodTemplateSpec { metadata: None, spec: template.spec.clone() })
        }
        OwnerKind::Deployment { .. } | OwnerKind::StatefulSet { .. } | OwnerKind::DaemonSet => {
            template_hash(&template)
        }
    };
    Some(Owner { key: key.clone(), kind, replicas, template, hash })
}

fn count(replicas: Option<i32>) -> usize {
    usize::try_from(replicas.unwrap_or(1)).unwrap_or(0)
}

/// Rule: `RollingUpdateDeployment` of `apps/v1`: a quarter each by default, surge rounded up.
fn rollout(
    strategy: Option<&k8s_openapi::api::apps::v1::DeploymentStrategy>,
    replicas: usize,
) -> OwnerKind {
    let recreate = strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate");
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let surge = share(rolling.max_surge.as_ref(), replicas, true);
    let unavailable = share(rolling.max_unavailable.as_ref(), replicas, false);
    // Both zero would never move; Kubernetes refuses it, here one more is let exist.
    let surge = if surge == 0 && unavailable == 0 { 1 } else { surge };
    OwnerKind::Deployment { surge, unavailable, recreate }
}

fn share(value: Option<&IntOrString>, replicas: usize, round_up: bool) -> usize {
    let percent = |percent: usize| {
        let scaled = replicas * percent;
        if round_up { scaled.div_ceil(100) } else { scaled / 100 }
    };
    match value {
        None => percent(25),
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            text.trim_end_matches('%').parse().map_or_else(|_| percent(25), percent)
        }
    }
}

/// Letters of generated names: those of Kubernetes, which spell no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Ten letters that stand for the content of `template`.
fn template_hash(template: &PodTemplateSpec) -> String {
    let text = serde_json::to_vec(template).unwrap_or_default();
    Sha256::digest(text).iter().take(10).map(|byte| letter(usize::from(*byte))).collect()
}

fn letter(number: usize) -> char {
    ALPHABET.get(number % ALPHABET.len()).map_or('x', |letter| char::from(*letter))
}

/// Five letters, made of random bits.
fn suffix(roll: &mut dyn FnMut() -> u32) -> String {
    (0..5).map(|_| letter(usize::try_from(roll()).unwrap_or_default())).collect()
}

/// What brings the pods of `owner` nearer to what it wants. `have` are its pods, oldest first.
///
/// `nodes` is how many nodes there are. Empty when nothing is to do now; asked again
/// after every change of a pod.
pub fn steps(
    owner: &Owner,
    have: &[PodView],
    nodes: usize,
    roll: &mut dyn FnMut() -> u32,
) -> Vec<Step> {
    match owner.kind {
        OwnerKind::Deployment { surge, unavailable, recreate } => {
            deployment_steps(owner, have, Limits { surge, unavailable, recreate }, roll)
        }
        OwnerKind::StatefulSet { parallel } => stateful_set_steps(owner, have, parallel),
        OwnerKind::DaemonSet => daemon_set_steps(owner, have, nodes, roll),
        OwnerKind::Pod => pod_steps(owner, have),
    }
}

#[derive(Clone, Copy)]
struct Limits {
    surge: usize,
    unavailable: usize,
    recreate: bool,
}

fn delete(pod: &PodView) -> Step {
    Step::Delete { name: pod.name.clone() }
}

fn deployment_steps(
    owner: &Owner,
    have: &[PodView],
    limits: Limits,
    roll: &mut dyn FnMut() -> u32,
) -> Vec<Step> {
    let live: Vec<&PodView> = have.iter().filter(|pod| !pod.terminating).collect();
    let (new, old): (Vec<&PodView>, Vec<&PodView>) =
        live.iter().partition(|pod| pod.hash == owner.hash);
    let mut steps = Vec::new();

    // Too many of the right ones: the unready go first, then the youngest.
    let mut excess: Vec<&PodView> = new.iter().rev().copied().collect();
    excess.sort_by_key(|pod| pod.ready);
    steps.extend(
        excess.iter().take(new.len().saturating_sub(owner.replicas)).map(|pod| delete(pod)),
    );

    if limits.recreate {
        steps.extend(old.iter().map(|pod| delete(pod)));
        if have.iter().any(|pod| pod.hash != owner.hash) {
            return steps;
        }
    } else {
        let ready = live.iter().filter(|pod| pod.ready).count();
        let mut spare = ready.saturating_sub(owner.replicas.saturating_sub(limits.unavailable));
        for pod in &old {
            if !pod.ready {
                steps.push(delete(pod));
            } else if spare > 0 {
                spare -= 1;
                steps.push(delete(pod));
            }
        }
    }
    let most = if old.is_empty() { owner.replicas } else { owner.replicas + limits.surge };
    let missing = owner.replicas.saturating_sub(new.len()).min(most.saturating_sub(live.len()));
    steps.extend((0..missing).map(|_| Step::Create {
        name: format!("{}-{}-{}", owner.key.name, owner.hash, suffix(roll)),
        node: None,
    }));
    steps
}

fn stateful_set_steps(owner: &Owner, have: &[PodView], parallel: bool) -> Vec<Step> {
    let name = |ordinal: usize| format!("{}-{ordinal}", owner.key.name);
    let find = |ordinal: usize| have.iter().find(|pod| pod.name == name(ordinal));
    let mut steps = Vec::new();
    for ordinal in 0..owner.replicas {
        match find(ordinal) {
            None => {
                steps.push(Step::Create { name: name(ordinal), node: None });
                if !parallel {
                    return steps;
                }
            }
            Some(pod) if !parallel && (!pod.ready || pod.terminating) => {
                // One that can never become ready must not hold its replacement up.
                if pod.hash != owner.hash && !pod.terminating {
                    steps.push(delete(pod));
                }
                return steps;
            }
            Some(_) => {}
        }
    }
    let wanted: Vec<String> = (0..owner.replicas).map(name).collect();
    steps.extend(
        have.iter().filter(|pod| !pod.terminating && !wanted.contains(&pod.name)).map(delete),
    );
    let settled = have.iter().all(|pod| pod.ready && !pod.terminating);
    if steps.is_empty() && settled {
        // Rolling update runs from the highest ordinal down, one at a time.
        let last_old =
            (0..owner.replicas).rev().filter_map(find).find(|pod| pod.hash != owner.hash);
        steps.extend(last_old.map(delete));
    }
    steps
}

fn daemon_set_steps(
    owner: &Owner,
    have: &[PodView],
    nodes: usize,
    roll: &mut dyn FnMut() -> u32,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for node in 0..nodes {
        let here: Vec<&PodView> = have.iter().filter(|pod| pod.node == node).collect();
        if here.is_empty() {
            let name = format!("{}-{}", owner.key.name, suffix(roll));
            steps.push(Step::Create { name, node: Some(node) });
        }
    }
    let settled = have.iter().all(|pod| pod.ready && !pod.terminating) && steps.is_empty();
    let old = have.iter().find(|pod| pod.hash != owner.hash && !pod.terminating);
    steps.extend(old.filter(|pod| settled || !pod.ready).map(delete));
    steps
}

fn pod_steps(owner: &Owner, have: &[PodView]) -> Vec<Step> {
    match have.first() {
        None => vec![Step::Create { name: owner.key.name.clone(), node: None }],
        Some(pod) if pod.hash != owner.hash && !pod.terminating => vec![delete(pod)],
        Some(_) => Vec::new(),
    }
}

/// How many pods a node holds already.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Load {
    /// Pods of the same owner.
    pub same_owner: usize,
    /// Pods of all owners.
    pub all: usize,
}

/// The node, by index, for the next pod: spread by owner, then by number, then the first.
#[must_use]
pub fn place(loads: &[Load]) -> Option<usize> {
    loads.iter().enumerate().min_by_key(|(index, load)| (**load, *index)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
