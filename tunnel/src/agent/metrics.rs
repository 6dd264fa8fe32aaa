// SPDX-License-Identifier: Apache-2.0

//! What the agent counts.
//!
//! Names are those of Istio's node agent where it has the thing; others begin
//! with `waymark_`. No label grows with the number of pods.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges of one agent; clones share them.
#[derive(Clone, Debug, Default)]
pub struct AgentMetrics {
    plugin_requests: Counter,
    events: Family<EventLabels, Counter>,
    tunnel_connected: Gauge,
    pods: Family<PodLabels, Gauge>,
    proofs: Family<ProofLabels, Counter>,
    repairs: Counter,
}

/// Labels of a reconciled event.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EventLabels {
    r#type: &'static str,
}

/// Labels of the number of pods.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PodLabels {
    state: &'static str,
}

/// Labels of a proof.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ProofLabels {
    result: &'static str,
}

impl AgentMetrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        registry.register(
            "istio_cni_plugin_requests",
            "Calls of the CNI plug-in",
            all.plugin_requests.clone(),
        );
        registry.register(
            "nodeagent_reconcile_events",
            "Changes of pods that were taken in",
            all.events.clone(),
        );
        registry.register(
            "ztunnel_connected",
            "Tunnels that are connected and know all pods",
            all.tunnel_connected.clone(),
        );
        registry.register("waymark_agent_pods", "Pods of the node by state", all.pods.clone());
        registry.register(
            "waymark_agent_proofs",
            "Proofs of capture by result",
            all.proofs.clone(),
        );
        registry.register(
            "waymark_agent_repairs",
            "Times that lost capture rules were put back",
            all.repairs.clone(),
        );
        all
    }

    /// A call of the plug-in.
    pub fn plugin_request(&self) {
        self.plugin_requests.inc();
    }

    /// A pod of the controller was taken in (`add`) or let go (`delete`).
    pub fn event(&self, kind: &'static str) {
        self.events.get_or_create(&EventLabels { r#type: kind }).inc();
    }

    /// How many tunnels are connected.
    pub fn tunnels(&self, count: usize) {
        self.tunnel_connected.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many pods are in a state.
    pub fn pods(&self, state: &'static str, count: usize) {
        let gauge = self.pods.get_or_create(&PodLabels { state });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A proof that succeeded or failed.
    pub fn proof(&self, proven: bool) {
        let result = if proven { "proven" } else { "unproven" };
        self.proofs.get_or_create(&ProofLabels { result }).inc();
    }

    /// Lost rules were put back.
    pub fn repaired(&self) {
        self.repairs.inc();
    }
}
