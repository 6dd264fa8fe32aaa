// SPDX-License-Identifier: Apache-2.0

//! Whether every part of an installed mesh really works, from what the parts answered. Pure.
//!
//! A pod that is Ready proves little: each controller is asked and its certificate looked at,
//! each tunnel tells of the certificates it holds, and a pod counts as captured only as its
//! agent has proven it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use time::{Duration, OffsetDateTime};

use super::finding::{Finding, Level, some_of};
use crate::cli::format::{flag, items, number, text};
use crate::cli::get::condition;
use crate::cli::workloads::standing;

/// From when on the end of a root is worth a thought.
const ROOT_ENDS: Duration = Duration::days(30);

/// One controller, asked.
#[derive(Clone, Debug)]
pub(super) struct Controller {
    /// `namespace/name` of its pod.
    pub(super) pod: String,
    /// The kubelet says that it is ready.
    pub(super) ready: bool,
    /// Whether it answers at its admin port; why not.
    pub(super) answers: Result<(), String>,
    /// End of the certificate that it serves under the mesh's root; why that is not proven.
    pub(super) certificate: Result<OffsetDateTime, String>,
}

/// One certificate that a tunnel holds.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// Whose it is.
    pub(super) identity: String,
    /// `Available`, `Initializing`, or why it is not there.
    pub(super) state: String,
    /// Its end.
    pub(super) ends: Option<OffsetDateTime>,
}

/// One tunnel or agent.
#[derive(Clone, Debug)]
pub(super) struct NodePart {
    /// `tunnel` or `agent`.
    pub(super) role: &'static str,
    /// `namespace/name` of its pod.
    pub(super) pod: String,
    /// Its node.
    pub(super) node: String,
    /// The kubelet says that it is ready.
    pub(super) ready: bool,
    /// The certificates of a tunnel, or why it cannot be asked.
    pub(super) certificates: Result<Vec<Certificate>, String>,
}

/// Whether the controllers answer and prove who they are; `wanted` is how many there should be.
pub(super) fn controllers(all: &[Controller], wanted: usize, now: OffsetDateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    for one in all {
        let found =
            |message: String| Finding::ok("controller", format!("Pod {}", one.pod), message);
        let logs = || {
            let (namespace, name) = one.pod.split_once('/').unwrap_or_default();
            format!(
                "see why: kubectl -n {namespace} describe pod {name}; kubectl -n {namespace} logs {name}"
            )
        };
        findings.push(match (&one.answers, &one.certificate) {
            _ if !one.ready => found("is not ready".to_owned()).but(Level::Error, logs()),
            (Err(why), _) => found(format!("does not answer: {why}")).but(Level::Error, logs()),
            (Ok(()), Err(why)) => {
                let todo = "see whether ConfigMap istio-ca-root-cert is the root of Secret \
                            istio-ca-secret, then let the pod go: it gets a new certificate";
                found(format!("does not prove who it is: {why}")).but(Level::Error, todo)
            }
            (Ok(()), Ok(end)) if *end <= now => found(format!("its certificate ended {end}"))
                .but(Level::Error, "let the pod go: it gets a new one"),
            (Ok(()), Ok(end)) => {
                found(format!("answers, its certificate is good until {}", end.date()))
            }
        });
    }
    if all.len() < wanted {
        let message = format!("{} of {wanted} pods are there", all.len());
        let todo = "see why: kubectl get events -A --field-selector reason=FailedCreate";
        findings.push(
            Finding::ok("controller", "Deployment waymark-controller", message)
                .but(Level::Error, todo),
        );
    }
    findings
}

/// Whether each node has a tunnel and an agent that are ready and follow the controller, and
/// captures pods that start. `status` is what the controller answers, with all nodes.
pub(super) fn nodes(status: &Value, parts: &[NodePart]) -> Vec<Finding> {
    let newest = number(status, "/revision");
    let mut findings = Vec::new();
    for node in items(status, "/nodes") {
        let name = text(node, "/metadata/name");
        let mut ills = Vec::new();
        for role in ["tunnel", "agent"] {
            let here = |part: &&NodePart| part.role == role && part.node == name;
            if !parts.iter().any(|part| here(&part) && part.ready) {
                let there = parts.iter().find(here);
                ills.push(there.map_or(format!("no {role} runs"), |part| {
                    format!("{role} {} is not ready", part.pod)
                }));
                continue;
            }
            let client = items(status, "/clients").find(|client| {
                text(client, "/role") == role
                    && text(client, "/node") == name
                    && flag(client, "/connected")
            });
            ills.extend(match client {
                None => Some(format!("its {role} is not connected to the controller")),
                Some(client) if flag(client, "/silent") => {
                    Some(format!("its {role} does not answer the controller"))
                }
                Some(client) if items(client, "/refused").next().is_some() => {
                    Some(format!("its {role} refuses configuration, see: waymark status"))
                }
                Some(client) if number(client, "/acked") < newest => {
                    Some(format!("its {role} does not follow the newest configuration yet"))
                }
                Some(_) => None,
            });
        }
        let report = items(status, "/agents").find(|one| text(one, "/node") == name);
        if let Some(report) = report.filter(|one| ills.is_empty() && !flag(one, "/serving")) {
            let reason = text(report, "/reason");
            ills.push(format!("a pod that starts there now is not captured: {reason}"));
        }
        let found = |message: String| Finding::ok("node", format!("Node {name}"), message);
        findings.push(if ills.is_empty() {
            found(
                "tunnel and agent follow the controller, a pod that starts is captured".to_owned(),
            )
        } else {
            let todo = "see the pods of that node: kubectl get pods -A -o wide --field-selector \
                        spec.nodeName=NODE; a node that is gone for good: kubectl delete node NODE";
            found(ills.join("; ")).but(Level::Error, todo.replace("NODE", &name))
        });
    }
    findings
}

/// Whether the pods that belong in the mesh are in it, by their agents' proofs; one line a node.
pub(super) fn capture(status: &Value) -> Vec<Finding> {
    let mut proven: BTreeMap<String, usize> = BTreeMap::new();
    let mut findings = Vec::new();
    for pod in items(status, "/pods").filter(|pod| flag(pod, "/wanted")) {
        let (name, standing) = (text(pod, "/pod"), standing(pod));
        if standing == "enrolled" {
            *proven.entry(text(pod, "/node")).or_default() += 1;
            continue;
        }
        let todo =
            "see what its node's agent says: kubectl -n istio-system logs -l app=waymark-agent";
        findings
            .push(Finding::ok("capture", format!("Pod {name}"), standing).but(Level::Error, todo));
    }
    findings.extend(proven.iter().map(|(node, count)| {
        Finding::ok(
            "capture",
            format!("Node {node}"),
            format!("{count} pods are proven to be captured"),
        )
    }));
    if findings.is_empty() {
        let message = "no pod belongs in the mesh yet: nothing to prove";
        let todo = "kubectl label namespace NAMESPACE istio.io/dataplane-mode=ambient";
        findings.push(Finding::ok("capture", "pods", message).but(Level::Note, todo));
    }
    findings
}

/// Whether the tunnels hold the certificates that they need.
pub(super) fn certificates(parts: &[NodePart], now: OffsetDateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in parts.iter().filter(|part| part.role == "tunnel" && part.ready) {
        let found =
            |message: String| Finding::ok("certificates", format!("Pod {}", part.pod), message);
        let held = match &part.certificates {
            Ok(held) => held,
            Err(why) => {
                let todo = "the right to forward ports to it is needed to look: pods/portforward";
                findings.push(found(format!("cannot be asked: {why}")).but(Level::Warning, todo));
                continue;
            }
        };
        let bad: Vec<String> = held.iter().filter_map(|one| ill(one, now)).collect();
        let soonest = held.iter().filter_map(|one| one.ends).min();
        findings.push(match (bad.is_empty(), soonest) {
            (false, _) => {
                let todo = "see what the controller says of it: kubectl -n istio-system logs -l app=istiod";
                found(some_of(&bad)).but(Level::Error, todo)
            }
            (true, Some(end)) => found(format!("{} held, the next ends {end}", held.len())),
            (true, None) => found("holds none: no pod of its node is in the mesh".to_owned()),
        });
    }
    findings
}

fn ill(one: &Certificate, now: OffsetDateTime) -> Option<String> {
    let who = &one.identity;
    match (one.state.as_str(), one.ends) {
        ("Available", Some(end)) if end <= now => Some(format!("that of {who} ended {end}")),
        ("Available", _) => None,
        (state, _) => Some(format!("none for {who}: {state}")),
    }
}

/// What is known of the root certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Roots {
    /// The root that the namespace of the parts has, PEM.
    pub(super) own: Option<String>,
    /// Its end, or why it cannot be read.
    pub(super) ends: Option<Result<OffsetDateTime, String>>,
    /// The root in each namespace that has one.
    pub(super) published: BTreeMap<String, String>,
    /// Namespaces with pods that need it.
    pub(super) needed: BTreeSet<String>,
}

/// Whether the root is good, and known wherever it is needed.
pub(super) fn roots(roots: &Roots, now: OffsetDateTime) -> Vec<Finding> {
    let found = |message: String| Finding::ok("root", "ConfigMap istio-ca-root-cert", message);
    let mut findings = Vec::new();
    findings.push(match &roots.ends {
        None => found("is missing".to_owned())
            .but(Level::Error, "see the controller's log: it publishes it"),
        Some(Err(why)) => found(format!("is no certificate: {why}"))
            .but(Level::Error, "delete it: the controller publishes it anew"),
        Some(Ok(end)) if *end <= now => found(format!("ended {end}"))
            .but(Level::Error, "replace it: waymark rotate-root; one of your own: as README tells"),
        Some(Ok(end)) if *end <= now + ROOT_ENDS => found(format!("ends {end}")).but(
            Level::Warning,
            "replace it: waymark rotate-root; one of your own: as README tells",
        ),
        Some(Ok(end)) => found(format!("is good until {}", end.date())),
    });
    let stale = |namespace: &&String| roots.published.get(*namespace) != roots.own.as_ref();
    let stale: Vec<String> = roots.needed.iter().filter(stale).cloned().collect();
    if !stale.is_empty() {
        let message = format!("lacks or is another one in {}", some_of(&stale));
        let todo = "see the controller's log: the one that leads publishes it";
        findings.push(found(message).but(Level::Error, todo));
    }
    findings
}

/// Whether the Gateways of our classes are programmed.
pub(super) fn gateways(status: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for gateway in items(status, "/gateways") {
        let programmed = condition(gateway, "/status/conditions", "Programmed");
        // One of another controller's class has no condition of ours.
        if programmed.is_empty() {
            continue;
        }
        let name =
            format!("{}/{}", text(gateway, "/metadata/namespace"), text(gateway, "/metadata/name"));
        let found = |message: String| Finding::ok("gateway", format!("Gateway {name}"), message);
        let said = items(gateway, "/status/conditions")
            .find(|one| text(one, "/type") == "Programmed")
            .map(|one| format!("{}: {}", text(one, "/reason"), text(one, "/message")));
        findings.push(match programmed.as_str() {
            "True" => found("is programmed".to_owned()),
            _ => {
                let (namespace, name) = name.split_once('/').unwrap_or_default();
                let todo = format!(
                    "see its conditions: waymark get gateway {name} -n {namespace} -o yaml"
                );
                found(format!("is not programmed: {}", said.unwrap_or_default()))
                    .but(Level::Error, todo)
            }
        });
    }
    findings
}

/// What the controller refused of the objects in the cluster.
pub(super) fn refused(status: &Value) -> Vec<Finding> {
    let all: BTreeSet<(String, String)> = items(status, "/refused")
        .map(|one| {
            let [object, reason, message] =
                ["/object", "/reason", "/message"].map(|at| text(one, at));
            (object, format!("{reason}: {message}"))
        })
        .collect();
    let finding = |(object, message): (String, String)| {
        Finding::ok("object", object, message).but(Level::Warning, "change the object as it says")
    };
    all.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests;
