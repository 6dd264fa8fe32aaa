// SPDX-License-Identifier: Apache-2.0

//! How far the nodes are on their way out, and in which order objects go. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cli::format::{flag, items, text};
use crate::install::owned::{identity, outlives, surplus};

/// Which nodes are cleared, and what the others wait for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    /// Nodes that are cleared.
    pub(super) cleared: BTreeSet<String>,
    /// Nodes that are not, and why.
    pub(super) waiting: BTreeMap<String, String>,
}

impl Progress {
    /// Nothing can be known of any node, for this reason.
    pub(super) fn unknown(nodes: &BTreeSet<String>, why: &str) -> Self {
        let waiting = nodes.iter().map(|node| (node.clone(), why.to_owned())).collect();
        Self { cleared: BTreeSet::new(), waiting }
    }

    /// What differs from `before`, for people.
    pub(super) fn news(&self, before: &Self) -> Vec<String> {
        let cleared = self.cleared.difference(&before.cleared);
        let cleared = cleared.map(|node| format!("node {node}: cleared"));
        let differs = |(node, why): &(&String, &String)| before.waiting.get(*node) != Some(*why);
        let waiting = self.waiting.iter().filter(differs);
        cleared.chain(waiting.map(|(node, why)| format!("node {node}: {why}"))).collect()
    }
}

/// How far `nodes` are with the order `id`, from what each controller answers as its status.
pub(super) fn of(nodes: &BTreeSet<String>, answers: &[Value], id: &str) -> Progress {
    let mut progress = Progress::default();
    for node in nodes {
        let reports = || {
            let all = answers.iter().flat_map(|answer| items(answer, "/agents"));
            all.filter(|agent| text(agent, "/node") == *node)
        };
        if reports().any(|agent| !id.is_empty() && text(agent, "/left") == id) {
            progress.cleared.insert(node.clone());
            continue;
        }
        progress.waiting.insert(node.clone(), why(node, answers, reports().next()));
    }
    progress
}

fn why(node: &str, answers: &[Value], report: Option<&Value>) -> String {
    let connected = answers.iter().flat_map(|answer| items(answer, "/clients")).any(|client| {
        let here = text(client, "/role") == "agent" && text(client, "/node") == node;
        here && flag(client, "/connected") && !flag(client, "/silent")
    });
    if !connected {
        return "its agent is not connected to the controller".to_owned();
    }
    let inside: BTreeSet<String> = answers
        .iter()
        .flat_map(|answer| items(answer, "/pods"))
        .filter(|pod| text(pod, "/node") == node)
        .filter(|pod| !["", "RELEASED"].contains(&text(pod, "/state").as_str()))
        .map(|pod| text(pod, "/pod"))
        .collect();
    if !inside.is_empty() {
        return format!("{} pods still leave: their connections drain", inside.len());
    }
    let reason = report.map(|report| text(report, "/reason")).unwrap_or_default();
    match reason.is_empty() {
        true => "pods are out, the agent clears the node".to_owned(),
        false => format!("pods are out, the agent clears the node: {reason}"),
    }
}

/// Tells whether an object stands for pods.
pub(super) fn has_pods(object: &Value) -> bool {
    matches!(text(object, "/kind").as_str(), "DaemonSet" | "Deployment")
}

/// The objects that go, in the order in which they do: the last that were made first, and what
/// the manifest of this version does not know before that.
pub(super) fn order(manifest: &[Value], owned: Vec<Value>) -> Vec<Value> {
    let mut all = surplus(owned, manifest);
    all.extend(manifest.iter().rev().filter(|object| !outlives(object)).map(identity));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(agents: Value, pods: Value) -> Value {
        let client = |node: &str, silent: bool| json!({"role": "agent", "node": node, "connected": true, "silent": silent});
        json!({"agents": agents, "pods": pods,
            "clients": [client("a", false), client("b", false), client("c", true)]})
    }

    #[test]
    fn a_node_is_cleared_when_any_controller_heard_so_of_this_order() {
        let nodes: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
        let pods = json!([
            {"pod": "n/x", "node": "b", "state": "ENROLLED"},
            {"pod": "n/y", "node": "b", "state": "RELEASED"},
            {"pod": "n/z", "node": "b", "state": "PENDING"},
        ]);
        let first = status(json!([{"node": "a", "left": "1"}, {"node": "b", "left": "0"}]), pods);
        let second = status(json!([{"node": "b", "left": ""}]), json!([]));
        let now = of(&nodes, &[first, second.clone()], "1");
        assert_eq!(now.cleared, ["a".to_owned()].into());
        let why: Vec<&str> = now.waiting.values().map(String::as_str).collect();
        let lines = [
            "2 pods still leave: their connections drain",
            "its agent is not connected to the controller",
        ];
        assert_eq!(why, lines);
        assert_eq!(
            now.news(&Progress::default()),
            ["node a: cleared", &format!("node b: {}", lines[0]), &format!("node c: {}", lines[1])]
        );
        assert_eq!(now.news(&now), [] as [&str; 0], "nothing new");

        let stuck = json!([{"node": "a", "left": "", "reason": "cannot write"}]);
        let later = of(&nodes, &[status(stuck, json!([]))], "1");
        assert_eq!(later.waiting["a"], "pods are out, the agent clears the node: cannot write");
        let silent = Progress::unknown(&nodes, "no controller");
        assert_eq!(silent.waiting.len(), 3);
        assert!(of(&nodes, &[second], "").cleared.is_empty(), "no order is carried out by nobody");
    }

    #[test]
    fn objects_go_in_the_reverse_order_and_nothing_that_outlives_an_installation() {
        let manifest = crate::install::objects("mesh", &[]).unwrap();
        let old = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "old", "namespace": "mesh"}});
        let all = order(&manifest, vec![old.clone(), identity(manifest.last().unwrap())]);
        assert_eq!(all[0], old);
        assert_eq!(all[1], identity(manifest.last().unwrap()));
        assert!(!all.iter().any(outlives));
        let wanted = manifest.iter().filter(|object| !outlives(object)).count() + 1;
        assert_eq!(all.len(), wanted, "each once");
        let with_pods: Vec<_> =
            all.iter().filter(|one| has_pods(one)).map(|one| text(one, "/metadata/name")).collect();
        assert_eq!(with_pods, ["waymark-agent", "ztunnel", "waymark-controller"]);
    }
}
