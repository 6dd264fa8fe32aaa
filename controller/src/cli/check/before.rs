// SPDX-License-Identifier: Apache-2.0

//! Whether the mesh fits into a cluster: versions, definitions, kernels, other meshes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::finding::{Finding, Level, some_of};
use crate::api::{CLASSES, GATEWAY_GROUP};

/// The oldest Kubernetes: ValidatingAdmissionPolicy is v1 from here on.
const KUBERNETES: (u32, u32) = (1, 30);
/// The oldest kernel: from here on chains of the family `inet` may change addresses.
const KERNEL: (u32, u32) = (5, 2);
/// The release of Gateway API that is tested; an older one may lack kinds and fields.
pub(in crate::cli) const BUNDLE: (u32, u32) = (1, 6);
/// How its definitions get into a cluster.
pub(in crate::cli) const GATEWAY_API: &str = "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/experimental-install.yaml";
/// Definitions without which nothing works.
const NEEDED: [&str; 5] =
    ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];
/// Definitions that are served where they are.
const SERVED: [&str; 5] =
    ["tlsroutes", "tcproutes", "udproutes", "backendtlspolicies", "listenersets"];
/// Annotations of the definitions.
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
const CHANNEL: &str = "gateway.networking.k8s.io/channel";
/// Label of a namespace: the pods that it takes.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Major and minor of a version such as `v1.34.4`, `1.6.3` or `6.1.0-13-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split('.');
    let number = |part: &str| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((number(parts.next()?)?, number(parts.next()?)?))
}

/// Whether the apiserver is new enough; `git_version` is what it calls itself.
pub(in crate::cli) fn kubernetes(git_version: &str) -> Finding {
    let found = |message: String| Finding::ok("kubernetes", "apiserver", message);
    match version(git_version) {
        Some(found_version) if found_version >= KUBERNETES => found(git_version.to_owned()),
        Some(_) => found(format!("is {git_version}, 1.30 or newer is needed"))
            .but(Level::Error, "upgrade the cluster"),
        None => found(format!("calls itself {git_version:?}, which is no version"))
            .but(Level::Warning, "see that it is Kubernetes 1.30 or newer: kubectl version"),
    }
}

/// Whether the definitions of Gateway API are there, and fit.
pub(in crate::cli) fn gateway_api(definitions: &[CustomResourceDefinition]) -> Vec<Finding> {
    let mut bundles: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut channels = BTreeSet::new();
    let mut there = BTreeSet::new();
    for definition in definitions.iter().filter(|found| found.spec.group == GATEWAY_GROUP) {
        let plural = definition.spec.names.plural.as_str();
        let annotation = |key| {
            let all = definition.metadata.annotations.as_ref();
            all.and_then(|all| all.get(key)).map(String::as_str)
        };
        there.insert(plural);
        bundles.entry(annotation(BUNDLE_VERSION).unwrap_or_default()).or_default().insert(plural);
        channels.extend(annotation(CHANNEL));
    }
    let lacks = |all: &[&str]| -> Vec<String> {
        all.iter().filter(|kind| !there.contains(*kind)).map(ToString::to_string).collect()
    };
    let found = |message: String| Finding::ok("gateway-api", GATEWAY_GROUP, message);
    let install = || format!("install it: {GATEWAY_API}");
    let missing = lacks(&NEEDED);
    if !missing.is_empty() {
        let message = format!("definitions are missing: {}", missing.join(", "));
        return vec![found(message).but(Level::Error, install())];
    }
    let mut findings: Vec<Finding> =
        bundles.iter().map(|(bundle, kinds)| bundle_fits(bundle, kinds)).collect();
    if bundles.len() > 1 {
        let message = format!(
            "definitions are of several releases: {}",
            bundles.keys().copied().collect::<Vec<_>>().join(", ")
        );
        findings
            .push(found(message).but(Level::Warning, format!("bring all to one: {GATEWAY_API}")));
    }
    let missing = lacks(&SERVED);
    if !missing.is_empty() {
        let message = format!("not in this cluster, so not served: {}", missing.join(", "));
        findings.push(found(message).but(Level::Note, format!("to have them: {GATEWAY_API}")));
    }
    if channels.contains("standard") {
        let message = "of the standard channel: fields of the experimental one cannot be written";
        findings.push(
            found(message.to_owned()).but(Level::Note, format!("to have them: {GATEWAY_API}")),
        );
    }
    findings
}

fn bundle_fits(bundle: &str, kinds: &BTreeSet<&str>) -> Finding {
    let found = |message: String| Finding::ok("gateway-api", GATEWAY_GROUP, message);
    let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    match version(bundle) {
        Some((major, minor)) if major == BUNDLE.0 && minor == BUNDLE.1 => {
            found(format!("definitions of {bundle}"))
        }
        Some((major, _)) if major != BUNDLE.0 => {
            found(format!("{bundle} of {} cannot be read, v1 is", some_of(&kinds)))
                .but(Level::Error, format!("install v1.6: {GATEWAY_API}"))
        }
        Some((_, minor)) if minor > BUNDLE.1 => {
            found(format!("{bundle} is newer than v1.6, which is what was tested"))
                .but(Level::Note, "fields that are new there are not served")
        }
        Some(_) => found(format!(
            "{bundle} of {} is older than v1.6: kinds and fields may lack",
            some_of(&kinds)
        ))
        .but(Level::Warning, format!("bring them up to date: {GATEWAY_API}")),
        None => found(format!("{} do not say of which release they are", some_of(&kinds)))
            .but(Level::Warning, format!("bring them to a release: {GATEWAY_API}")),
    }
}

/// Whether the nodes can carry the mesh, as far as they tell.
pub(in crate::cli) fn nodes(nodes: &[Node]) -> Vec<Finding> {
    let mut old = Vec::new();
    let mut foreign = Vec::new();
    let mut architectures = BTreeSet::new();
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let Some(told) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else {
            continue;
        };
        if told.operating_system != "linux" {
            foreign.push(name.to_owned());
            continue;
        }
        architectures.insert(told.architecture.as_str());
        if version(&told.kernel_version).is_some_and(|kernel| kernel < KERNEL) {
            old.push(format!("{name} ({})", told.kernel_version));
        }
    }
    let found = |message: String| Finding::ok("nodes", "nodes", message);
    let mut findings = Vec::new();
    if !old.is_empty() {
        let message =
            format!("kernel is older than 5.2, pods cannot be captured: {}", some_of(&old));
        findings.push(found(message).but(Level::Error, "bring their kernels up to date"));
    }
    if !foreign.is_empty() {
        let message = format!("not Linux, their pods stay outside the mesh: {}", some_of(&foreign));
        findings.push(found(message).but(Level::Note, ""));
    }
    if architectures.len() > 1 {
        let all: Vec<_> = architectures.iter().copied().collect();
        let message = format!("nodes are of several architectures: {}", all.join(", "));
        let todo = "images of `waymark images` are of the machine that wrote them: see that the \
                    registry has each image for all";
        findings.push(found(message).but(Level::Warning, todo));
    }
    if findings.is_empty() {
        findings.push(found(format!("{} with a kernel that fits", nodes.len())));
    }
    findings
}

/// What another mesh or the network has in the cluster, by its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct Others {
    /// DaemonSets, `namespace/name`, that are not ours.
    pub(in crate::cli) daemon_sets: BTreeSet<String>,
    /// Deployments labelled `app=istiod`, `namespace/name`, that are not ours.
    pub(in crate::cli) controllers: BTreeSet<String>,
    /// MutatingWebhookConfigurations.
    pub(in crate::cli) webhooks: BTreeSet<String>,
    /// `controllerName` of each GatewayClass, by name.
    pub(in crate::cli) classes: BTreeMap<String, String>,
    /// `kube-system/cilium-config`.
    pub(in crate::cli) cilium: Option<ConfigMap>,
}

/// What of other meshes, or of the network, is in the way of an installation in `namespace`.
pub(in crate::cli) fn others(others: &Others, namespace: &str) -> Vec<Finding> {
    let mut findings = meshes(others, namespace);
    for (name, holder) in &others.classes {
        let built_in = CLASSES.iter().find(|class| class.name == name);
        if let Some(class) = built_in.filter(|class| class.controller != holder) {
            let message = format!("is served by {holder}, and cannot change hands");
            let todo = format!(
                "delete it, so that it is made for {}: kubectl delete gatewayclass {name}",
                class.controller
            );
            findings.push(
                Finding::ok("conflict", format!("GatewayClass {name}"), message)
                    .but(Level::Error, todo),
            );
        }
    }
    findings.extend(others.cilium.iter().flat_map(cilium));
    if findings.is_empty() {
        findings.push(Finding::ok("conflict", "cluster", "no other mesh is in the way"));
    }
    findings
}

fn meshes(others: &Others, namespace: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for daemon in &others.daemon_sets {
        let name = daemon.rsplit('/').next().unwrap_or_default();
        let (level, message) = match name {
            "istio-cni-node" => {
                (Level::Error, "Istio's node agent: two agents would set rules in one pod")
            }
            "ztunnel" => (Level::Error, "another tunnel takes the pods of each node"),
            "linkerd-cni" => (Level::Warning, "Linkerd's plug-in: a pod can be in one mesh only"),
            _ => continue,
        };
        let todo = "take its mesh away first, or keep namespaces apart";
        findings
            .push(Finding::ok("conflict", format!("DaemonSet {daemon}"), message).but(level, todo));
    }
    for controller in &others.controllers {
        let here = controller.split('/').next() == Some(namespace);
        let level = if here { Level::Error } else { Level::Warning };
        let message = "is another control plane with the same names";
        let todo = "take it away first: waymark's Service is called istiod, too";
        let subject = format!("Deployment {controller}");
        findings.push(Finding::ok("conflict", subject, message).but(level, todo));
    }
    for webhook in &others.webhooks {
        let what = if webhook.starts_with("istio-sidecar-injector") {
            "Istio"
        } else if webhook.starts_with("linkerd-proxy-injector") {
            "Linkerd"
        } else {
            continue;
        };
        let message = format!("{what} puts sidecars into pods; those are never enrolled");
        let todo = "take the injection's label off namespaces that come into this mesh";
        let subject = format!("MutatingWebhookConfiguration {webhook}");
        findings.push(Finding::ok("conflict", subject, message).but(Level::Warning, todo));
    }
    findings
}

/// Settings of Cilium that keep a chained plug-in or the tunnel from its work.
///
/// Rule: `cni.exclusive` and `socketLB.hostNamespaceOnly` in Cilium's documentation of Istio.
fn cilium(config: &ConfigMap) -> Vec<Finding> {
    let is_on = |key: &str| {
        config.data.as_ref().and_then(|data| data.get(key)).is_some_and(|value| value == "true")
    };
    let found = |message: &str| Finding::ok("conflict", "Cilium", message);
    let mut findings = Vec::new();
    if is_on("cni-exclusive") {
        let message = "takes other network configurations away, the mesh's plug-in among them";
        findings
            .push(found(message).but(Level::Error, "set cni.exclusive=false in its Helm values"));
    }
    let balances = is_on("bpf-lb-sock") || is_on("kube-proxy-replacement");
    if balances && !is_on("bpf-lb-sock-hostns-only") {
        let message = "resolves Services inside pods, before the tunnel can see which is called";
        let todo = "set socketLB.hostNamespaceOnly=true in its Helm values";
        findings.push(found(message).but(Level::Error, todo));
    }
    findings
}

/// Whether the namespace of the parts takes pods that need rights on their node.
pub(in crate::cli) fn pod_security(namespace: &Namespace) -> Finding {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let labels = namespace.metadata.labels.as_ref();
    let level = labels.and_then(|labels| labels.get(POD_SECURITY)).map(String::as_str);
    let found = |message: String| Finding::ok("pod-security", format!("Namespace {name}"), message);
    match level {
        Some(level @ ("baseline" | "restricted")) => {
            found(format!("takes {level} pods only, tunnels and agents need more")).but(
                Level::Error,
                format!("kubectl label --overwrite namespace {name} {POD_SECURITY}=privileged"),
            )
        }
        Some(_) | None => found("takes the pods of tunnels and agents".to_owned()),
    }
}

#[cfg(test)]
mod tests;
