// SPDX-License-Identifier: Apache-2.0

//! What a node's agent is told and what it reports.
//!
//! Owns the values that controller and agent share. Leaves the messages to
//! [`crate::wire::node`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A pod of the agent's node that must be in the mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodePod {
    /// Kubernetes UID of the pod; a later pod never has that of an earlier one.
    pub uid: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// Its addresses; none while it has none yet.
    pub addresses: Vec<IpAddr>,
    /// Where the kubelet may reach it without the mesh.
    pub probes: Vec<Probe>,
    /// Names are answered by the tunnel.
    pub dns_capture: bool,
    /// Plain traffic to the pod is left alone.
    pub bypass_inbound: bool,
    /// Plain traffic to the pod is refused.
    pub strict: bool,
    /// Counts what the agent is told of the pod where the order of steps depends on it.
    pub generation: u64,
}

/// Where the kubelet probes a pod or calls a lifecycle hook.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Probe {
    /// Address; none: every address of the pod.
    pub address: Option<IpAddr>,
    /// TCP port; never zero.
    pub port: u16,
}

/// The full state of a node, each time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeReport {
    /// Name of the node.
    pub node: Arc<str>,
    /// Every pod that the agent knows.
    pub pods: Vec<PodState>,
    /// A pod that starts now is captured: the plug-in is in its place and a tunnel is connected.
    pub serving: bool,
    /// Why not; empty when it is.
    pub reason: Arc<str>,
    /// Id of the [`Leave`] that is carried out; empty if there is none.
    pub left: Arc<str>,
}

/// The mesh is taken out of the cluster: pods leave it, then everything that is on the node goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leave {
    /// Names the order; never empty.
    pub id: Arc<str>,
    /// Longest wait for captured connections of a pod, in whole seconds.
    pub drain: Duration,
}

/// How far a pod has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodState {
    /// Kubernetes UID of the pod.
    pub uid: Arc<str>,
    /// Step reached.
    pub step: Step,
    /// Why, if it failed or waits; else empty.
    pub reason: Arc<str>,
    /// Connections that were opened before the pod was enrolled and are still outside the mesh.
    pub older_connections: u32,
    /// How often lost capture rules were put back.
    pub repairs: u32,
    /// Plain connections to the pod are not captured.
    pub plain_inbound: bool,
    /// Generation of the [`NodePod`] whose rules are in force; 0 before any were.
    pub observed_generation: u64,
}

/// Steps of a pod into the mesh and out of it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Step {
    /// Not there yet.
    Pending,
    /// Capture was proven.
    Enrolled,
    /// Could not be enrolled; will be tried again.
    Failed,
    /// Out of the mesh again.
    Released,
}
