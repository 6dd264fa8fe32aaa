// SPDX-License-Identifier: Apache-2.0

//! What agents report about the pods of their node.
//!
//! Owns: a node speaks for its own pods only, each report is the full state of the node, and
//! what was proven outlives a restart of the controller (a file): otherwise enrolled pods would
//! be taken for plain ones until their agents call again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use k8s_openapi::api::core::v1::{Node, Pod};
use routing::wire::messages::waymark::v1::{self as wire, NodeReport, NodeReportAck, pod_state};
use routing::wire::node::write_leave;
use tokio::sync::oneshot;

use crate::app::State;
use crate::ca::files;
use crate::settings::Mesh;
use crate::store::facts::{Facts, NodeFact, PodFact, PodState};
use crate::store::index::Index;
use crate::store::lookup::Lookup;
use crate::store::{ReadKey, Stores};
use crate::translate::{leave, pod};

/// A report on its way to the engine.
#[derive(Debug)]
pub struct Report {
    /// The node, as its token proves.
    pub node: String,
    /// What it says.
    pub said: NodeReport,
    /// Where the answer goes.
    pub reply: oneshot::Sender<NodeReportAck>,
}

/// Takes a report in; returns the read keys that it touched.
pub fn apply(report: &Report, state: &mut State) -> Vec<ReadKey> {
    let mut touched = Vec::new();
    let node = state.stores.get::<Node>("", &report.node);
    let about = NodeFact {
        uid: node.and_then(|node| node.metadata.uid.clone()).unwrap_or_default(),
        serving: report.said.serving,
        reason: report.said.reason.clone(),
        left: report.said.left.clone(),
    };
    touched.extend(state.stores.facts.set_node(&report.node, about));
    let mut named = BTreeSet::new();
    for said in &report.said.pods {
        // Another node's pod is not this one's to speak of; one not seen yet may still come.
        let found = state.stores.list::<Pod>(Index::Uid, &said.uid);
        let foreign = found.first().is_some_and(|pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            node != Some(report.node.as_str())
        });
        if foreign {
            tracing::warn!(
                node = report.node,
                uid = said.uid,
                "report about a pod of another node"
            );
            continue;
        }
        named.insert(said.uid.as_str());
        let fact = fact(&report.node, said);
        touched.extend(state.stores.facts.set_pod(&said.uid, Some(fact)));
    }
    let gone: Vec<_> = state
        .stores
        .facts
        .pods()
        .filter(|(uid, fact)| fact.node == report.node && !named.contains(&***uid))
        .map(|(uid, _)| uid.clone())
        .collect();
    for uid in gone {
        touched.extend(state.stores.facts.set_pod(&uid, None));
    }
    touched
}

/// What the agent of `node` says of a pod.
pub fn fact(node: &str, said: &wire::PodState) -> PodFact {
    PodFact {
        node: node.to_owned(),
        state: match pod_state::State::try_from(said.state) {
            Ok(pod_state::State::Enrolled) => PodState::Enrolled,
            Ok(pod_state::State::Released) => PodState::Released,
            Ok(pod_state::State::Failed) => PodState::Failed,
            Ok(pod_state::State::Pending) | Err(_) => PodState::Pending,
        },
        reason: said.reason.clone(),
        older_connections: said.older_connections,
        repairs: said.repairs,
        plain_inbound: said.plain_inbound,
        observed_generation: said.observed_generation,
    }
}

/// What the agent is answered.
pub fn answer(report: &Report, stores: &Stores, mesh: &Mesh) -> NodeReportAck {
    let mut ack = NodeReportAck::default();
    for said in &report.said.pods {
        let Some(found) = stores.list::<Pod>(Index::Uid, &said.uid).into_iter().next() else {
            continue;
        };
        let mut look = Lookup::new(stores, mesh);
        let list = if pod::belongs(found, &mut look) { &mut ack.inside } else { &mut ack.outside };
        list.push(said.uid.clone());
    }
    let mut look = Lookup::new(stores, mesh);
    ack.outside_namespaces = pod::outside_namespaces(&mut look, stores);
    ack.leave = leave::order(&mut look).as_ref().map(write_leave);
    ack
}

/// The proven pods of an earlier run; none if there was none.
pub fn load(path: &Path) -> BTreeMap<String, PodFact> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "proven pods cannot be read; agents will report them");
            return BTreeMap::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "proven pods cannot be read; agents will report them");
        BTreeMap::new()
    })
}

/// Keeps the proven pods.
pub fn save(path: &Path, facts: &Facts) {
    let pods: BTreeMap<_, _> = facts.pods().map(|(uid, fact)| (uid.to_string(), fact)).collect();
    let saved = serde_json::to_vec(&pods)
        .map_err(std::io::Error::from)
        .and_then(|text| files::replace(path, &text, false));
    if let Err(error) = saved {
        tracing::error!(path = %path.display(), %error, "proven pods cannot be kept over a restart");
    }
}
