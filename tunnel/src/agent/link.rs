// SPDX-License-Identifier: Apache-2.0

//! The agent's link with the controller: which pods belong in the mesh, and
//! how far they have come.
//!
//! Owns: the kind of resource that the agent follows, and its report. Leaves
//! the stream to [`crate::control`] and the pods to [`super::node`].
//!
//! Keeps: a pod is let go only by a removal or the controller's explicit word;
//! a resource that cannot be read leaves its pod as it is. The report holds the
//! full state of the node, is sent at each change, and again after silence.
//!
//! Start at [`follow`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use routing::node::{NodeReport, PodState, Step};
use routing::stream::client::Client;
use routing::stream::{DeltaDiscoveryResponse, Node as StreamNode, Rejected};
use routing::wire::chain;
use routing::wire::messages::waymark::v1 as wire;
use routing::wire::node::{NODE_POD_URL, REPORT, read_leave, write_report};
use routing::wire::roots::ROOTS_URL;
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::Agent;
use super::enrol::Standing;
use super::leave::Order;
use super::node::PodReport;
use super::settings::Settings;
use super::spec::PodSpec;
use crate::control::backoff::Backoff;
use crate::control::client::{self, Apply};
use crate::control::{ControlError, Controller};
use crate::credentials::trust::Trust;

/// Longest wait for the answer to a report.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// A report is repeated after this silence, so that a new controller knows the node soon.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Time between reports while a plug-in waits to know whether its pod is in the mesh.
const DECISION_INTERVAL: Duration = Duration::from_millis(50);

/// Follows the controller and reports to it, for ever.
pub async fn follow(agent: &Arc<Agent>, settings: &Settings) {
    let controller = Controller {
        address: settings.controller.clone(),
        roots: settings.root_certificates.clone(),
        name: None,
        token: settings.token.clone(),
        cluster: settings.own.cluster.clone(),
        trust: Arc::default(),
    };
    let (again, due) = watch::channel(0);
    let mut sink = Sink {
        agent: Arc::clone(agent),
        inside: BTreeSet::new(),
        complete: false,
        again,
        trust: Arc::clone(&controller.trust),
    };
    let kinds = [ROOTS_URL, NODE_POD_URL];
    let stream = Client::new(stream_node(settings), kinds).optional(ROOTS_URL);
    tokio::join!(
        client::follow(&controller, stream, &mut sink),
        report(agent, &controller, settings, due),
    );
}

/// Who the agent says it is on the stream.
fn stream_node(settings: &Settings) -> StreamNode {
    let own = &settings.own;
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields: BTreeMap<String, Value> = [
        ("NODE_NAME", &settings.node),
        ("CLUSTER_ID", &own.cluster),
        ("NAMESPACE", &own.namespace),
        ("NAME", &own.name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), text(value)))
    .collect();
    StreamNode {
        id: format!(
            "agent~{}~{}.{}~{}.svc.cluster.local",
            own.ip, own.name, own.namespace, own.namespace
        ),
        metadata: Some(Struct { fields }),
        ..StreamNode::default()
    }
}

/// Takes the resources of the stream.
struct Sink {
    agent: Arc<Agent>,
    inside: BTreeSet<String>,
    complete: bool,
    /// Asks for a report after a new stream.
    again: watch::Sender<u64>,
    /// By what the controller's certificate may be proven.
    trust: Arc<Trust>,
}

impl Apply for Sink {
    fn apply(&mut self, response: &DeltaDiscoveryResponse) -> Vec<Rejected> {
        if response.type_url == ROOTS_URL {
            return self.trust.apply(response);
        }
        let mut rejected = Vec::new();
        for resource in &response.resources {
            self.inside.insert(resource.name.clone());
            let bytes = resource.resource.as_ref().map(|any| any.value.as_slice());
            match read(&resource.name, bytes.unwrap_or_default()) {
                Ok(spec) => self.agent.node().put(spec),
                Err(reason) => rejected
                    .push(Rejected { name: resource.name.as_str().into(), reason: reason.into() }),
            }
        }
        for name in &response.removed_resources {
            self.inside.remove(name);
            self.agent.node().let_go(name);
        }
        rejected
    }

    fn complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.agent.node().complete(&self.inside);
            self.agent.set_ready();
            self.again.send_modify(|count| *count += 1);
        }
    }

    fn disconnected(&mut self, why: &ControlError) {
        warn!(error = %chain(why), "no stream with the controller; pods stay as they are");
        // The next controller may be one that knows nothing of this node.
        self.complete = false;
    }
}

fn read(name: &str, bytes: &[u8]) -> Result<PodSpec, String> {
    let pod = wire::NodePod::decode(bytes).map_err(|error| error.to_string())?;
    let spec = PodSpec::from_wire(&pod).map_err(|error| error.to_string())?;
    if *spec.uid != *name {
        return Err(format!("resource {name:?} describes the pod {:?}", spec.uid));
    }
    Ok(spec)
}

/// Reports each change, and takes in what the controller answers.
async fn report(
    agent: &Arc<Agent>,
    controller: &Controller,
    settings: &Settings,
    mut again: watch::Receiver<u64>,
) {
    let mut changed = agent.changed();
    let mut channel: Option<Channel> = None;
    let mut backoff = Backoff::CONTROLLER;
    loop {
        let _count = *changed.borrow_and_update();
        match send(agent, controller, &settings.node, &mut channel).await {
            Ok(answer) => {
                backoff.reset();
                take(agent, settings, &answer);
            }
            Err(why) => {
                channel = None;
                info!(error = %chain(&why), "no report to the controller");
                tokio::time::sleep(backoff.wait()).await;
                continue;
            }
        }
        let pause = if agent.node().undecided() { DECISION_INTERVAL } else { REPORT_INTERVAL };
        tokio::select! {
            _ = changed.changed() => {}
            _ = again.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn send(
    agent: &Arc<Agent>,
    controller: &Controller,
    node: &str,
    channel: &mut Option<Channel>,
) -> Result<wire::NodeReportAck, ControlError> {
    let open = match channel {
        Some(open) => open.clone(),
        None => channel.insert(controller.connect().await?).clone(),
    };
    let pods = agent.node().report().into_iter().map(pod_state).collect();
    let (serving, reason) = agent.serving();
    let left = Arc::clone(&agent.left.borrow());
    let question =
        write_report(&NodeReport { node: node.into(), pods, serving, reason: reason.into(), left });
    controller.call(open, REPORT, question, REPORT_PATIENCE).await
}

fn take(agent: &Arc<Agent>, settings: &Settings, answer: &wire::NodeReportAck) {
    answer.outside.iter().for_each(|uid| agent.node().stays_outside(uid));
    agent.outside(&answer.outside_namespaces.iter().cloned().collect());
    let order = match answer.leave.as_ref().map(read_leave) {
        None => {
            agent.node().set_drain(settings.drain);
            Order::Stay
        }
        Some(Ok(leave)) => {
            agent.node().set_drain(leave.drain);
            Order::Leave(leave.id)
        }
        Some(Err(error)) => {
            warn!(%error, "order of the controller is not understood; it is not carried out");
            return;
        }
    };
    agent.set_order(order);
}

fn pod_state(pod: PodReport) -> PodState {
    let step = match pod.standing {
        Standing::Pending => Step::Pending,
        Standing::Enrolled => Step::Enrolled,
        Standing::Failed => Step::Failed,
        Standing::Released => Step::Released,
    };
    PodState {
        uid: pod.uid,
        step,
        reason: pod.reason.into(),
        older_connections: u32::try_from(pod.older).unwrap_or(u32::MAX),
        repairs: pod.repairs,
        plain_inbound: pod.plain_inbound,
        observed_generation: pod.observed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_must_describe_the_pod_that_it_names() {
        let pod = |uid: &str| wire::NodePod {
            uid: uid.to_owned(),
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "seller".to_owned(),
            ..Default::default()
        };
        assert_eq!(&*read("a", &pod("a").encode_to_vec()).unwrap().uid, "a");
        let cases = [
            ("another pod", "a", pod("b").encode_to_vec()),
            ("no pod", "", pod("").encode_to_vec()),
            ("no message", "a", vec![0xff]),
        ];
        for (what, name, bytes) in cases {
            assert!(read(name, &bytes).is_err(), "{what}");
        }
    }
}
