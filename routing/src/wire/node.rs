// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.NodePod` and `NodeReport`: controller and agent.
//!
//! Owns the conversion both ways.

use std::sync::Arc;
use std::time::Duration;

use super::error::{WireError, address, address_bytes, each, port};
use super::messages::waymark::v1 as wire;
pub use super::messages::waymark::v1::NodeReportAck;
use crate::node::{Leave, NodePod, NodeReport, PodState, Probe, Step};

/// Path of the gRPC method that takes a [`wire::NodeReport`].
pub const REPORT: &str = "/waymark.v1.Node/Report";

/// Name of [`wire::NodePod`] on the discovery stream.
pub const NODE_POD_URL: &str = "type.googleapis.com/waymark.v1.NodePod";

/// Reads a pod.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_pod(message: &wire::NodePod) -> Result<NodePod, WireError> {
    let probe = |probe: &wire::Probe| {
        let all = probe.address.is_empty();
        let ip = (!all).then(|| address("probes.address", &probe.address)).transpose()?;
        Ok(Probe { address: ip, port: port("probes.port", probe.port)? })
    };
    Ok(NodePod {
        uid: needed("uid", &message.uid)?,
        name: needed("name", &message.name)?,
        namespace: needed("namespace", &message.namespace)?,
        service_account: needed("service_account", &message.service_account)?,
        addresses: each(&message.addresses, |bytes| address("addresses", bytes))?,
        probes: each(&message.probes, probe)?,
        dns_capture: message.dns_capture,
        bypass_inbound: message.bypass_inbound,
        strict: message.strict,
        generation: message.generation,
    })
}

/// Writes a pod.
pub fn write_pod(pod: &NodePod) -> wire::NodePod {
    let probe = |probe: &Probe| wire::Probe {
        address: probe.address.map(address_bytes).unwrap_or_default(),
        port: probe.port.into(),
    };
    wire::NodePod {
        uid: pod.uid.to_string(),
        name: pod.name.to_string(),
        namespace: pod.namespace.to_string(),
        service_account: pod.service_account.to_string(),
        addresses: pod.addresses.iter().copied().map(address_bytes).collect(),
        probes: pod.probes.iter().map(probe).collect(),
        dns_capture: pod.dns_capture,
        bypass_inbound: pod.bypass_inbound,
        strict: pod.strict,
        generation: pod.generation,
    }
}

/// Reads a report.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_report(message: &wire::NodeReport) -> Result<NodeReport, WireError> {
    use wire::pod_state::State;
    let state = |state: &wire::PodState| {
        let step = match State::try_from(state.state) {
            Ok(State::Pending) => Step::Pending,
            Ok(State::Enrolled) => Step::Enrolled,
            Ok(State::Failed) => Step::Failed,
            Ok(State::Released) => Step::Released,
            Err(_) => return Err(WireError::Unknown("pods.state", state.state)),
        };
        Ok(PodState {
            uid: needed("pods.uid", &state.uid)?,
            step,
            reason: state.reason.as_str().into(),
            older_connections: state.older_connections,
            repairs: state.repairs,
            plain_inbound: state.plain_inbound,
            observed_generation: state.observed_generation,
        })
    };
    Ok(NodeReport {
        node: needed("node", &message.node)?,
        pods: each(&message.pods, state)?,
        serving: message.serving,
        reason: message.reason.as_str().into(),
        left: message.left.as_str().into(),
    })
}

/// Writes a report.
pub fn write_report(report: &NodeReport) -> wire::NodeReport {
    use wire::pod_state::State;
    let state = |state: &PodState| {
        let step = match state.step {
            Step::Pending => State::Pending,
            Step::Enrolled => State::Enrolled,
            Step::Failed => State::Failed,
            Step::Released => State::Released,
        };
        wire::PodState {
            uid: state.uid.to_string(),
            state: step.into(),
            reason: state.reason.to_string(),
            older_connections: state.older_connections,
            repairs: state.repairs,
            plain_inbound: state.plain_inbound,
            observed_generation: state.observed_generation,
        }
    };
    wire::NodeReport {
        node: report.node.to_string(),
        pods: report.pods.iter().map(state).collect(),
        serving: report.serving,
        reason: report.reason.to_string(),
        left: report.left.to_string(),
    }
}

/// Reads the order to leave.
///
/// # Errors
///
/// [`WireError::Missing`] for an order without a name.
pub fn read_leave(message: &wire::Leave) -> Result<Leave, WireError> {
    let drain = Duration::from_secs(message.drain_seconds.into());
    Ok(Leave { id: needed("id", &message.id)?, drain })
}

/// Writes the order to leave; a drain that is too long becomes the longest there is.
pub fn write_leave(leave: &Leave) -> wire::Leave {
    let drain_seconds = u32::try_from(leave.drain.as_secs()).unwrap_or(u32::MAX);
    wire::Leave { id: leave.id.to_string(), drain_seconds }
}

fn needed(field: &'static str, text: &str) -> Result<Arc<str>, WireError> {
    if text.is_empty() { Err(WireError::Missing(field)) } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> NodePod {
        NodePod {
            uid: "1".into(),
            name: "a".into(),
            namespace: "b".into(),
            service_account: "c".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            probes: vec![
                Probe { address: None, port: 8080 },
                Probe { address: Some("10.0.0.1".parse().unwrap()), port: 9090 },
            ],
            dns_capture: true,
            bypass_inbound: false,
            strict: true,
            generation: 7,
        }
    }

    #[test]
    fn a_pod_is_read_as_it_was_written() {
        assert_eq!(read_pod(&write_pod(&pod())), Ok(pod()));
    }

    #[test]
    fn a_pod_that_is_wrong_in_part_is_refused_whole() {
        let refusal = |change: fn(&mut wire::NodePod)| {
            let mut message = write_pod(&pod());
            change(&mut message);
            read_pod(&message).unwrap_err()
        };
        assert_eq!(refusal(|pod| pod.uid.clear()), WireError::Missing("uid"));
        let account = refusal(|pod| pod.service_account.clear());
        assert_eq!(account, WireError::Missing("service_account"));
        let short = refusal(|pod| pod.addresses = vec![vec![1]]);
        assert_eq!(short, WireError::AddressLength("addresses", 1));
        let port = refusal(|pod| pod.probes = vec![wire::Probe::default()]);
        assert_eq!(port, WireError::Port("probes.port", 0));
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let steps = [Step::Pending, Step::Enrolled, Step::Failed, Step::Released];
        let pods = steps.into_iter().map(|step| PodState {
            uid: format!("{step:?}").into(),
            step,
            reason: "r".into(),
            older_connections: 1,
            repairs: 2,
            plain_inbound: true,
            observed_generation: 3,
        });
        let report = NodeReport {
            node: "n".into(),
            pods: pods.collect(),
            serving: true,
            reason: "why".into(),
            left: "order".into(),
        };
        let mut message = write_report(&report);
        assert_eq!(read_report(&message), Ok(report));
        message.pods[0].state = 4;
        assert_eq!(read_report(&message), Err(WireError::Unknown("pods.state", 4)));
    }

    #[test]
    fn an_order_to_leave_is_read_as_it_was_written_and_has_a_name() {
        let leave = Leave { id: "1".into(), drain: Duration::from_secs(60) };
        let mut message = write_leave(&leave);
        assert_eq!(read_leave(&message), Ok(leave));
        message.id.clear();
        assert_eq!(read_leave(&message), Err(WireError::Missing("id")));
    }
}
