// SPDX-License-Identifier: Apache-2.0

//! What the controller says of a pod that belongs in the mesh.
//!
//! Owns: the domain form of `waymark.v1.NodePod` and what follows from it for
//! the rules. Keeps: a resource is taken whole or refused whole.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use routing::wire::WireError;
use routing::wire::messages::waymark::v1 as wire;
use routing::wire::node::read_pod;
use routing::wire::zds::PodName;
use serde::{Deserialize, Serialize};

use super::capture::Capture;

/// A pod that belongs in the mesh.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodSpec {
    /// Kubernetes UID of the pod.
    pub uid: Arc<str>,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Service account of the pod.
    pub service_account: String,
    /// Addresses of the pod, as far as the controller knows them.
    pub addresses: Vec<IpAddr>,
    /// Where the kubelet may go past the mesh; without an address, at all of the pod's.
    pub probes: Vec<(Option<IpAddr>, u16)>,
    /// Name queries are captured.
    pub dns: bool,
    /// Plain inbound connections are not captured.
    pub bypass_inbound: bool,
    /// Plain inbound connections are refused, older ones too.
    pub strict: bool,
    /// Counts what the controller said of the pod where the order of steps depends on it.
    #[serde(default)]
    pub generation: u64,
}

impl PodSpec {
    /// Takes in a resource of the controller.
    ///
    /// # Errors
    ///
    /// See [`WireError`]; nothing of the resource is used then.
    pub fn from_wire(pod: &wire::NodePod) -> Result<Self, WireError> {
        let pod = read_pod(pod)?;
        Ok(Self {
            uid: pod.uid,
            name: pod.name.to_string(),
            namespace: pod.namespace.to_string(),
            service_account: pod.service_account.to_string(),
            addresses: pod.addresses,
            probes: pod.probes.iter().map(|probe| (probe.address, probe.port)).collect(),
            dns: pod.dns_capture,
            bypass_inbound: pod.bypass_inbound,
            strict: pod.strict,
            generation: pod.generation,
        })
    }

    /// How the tunnel is told of it.
    #[must_use]
    pub fn who(&self) -> PodName {
        PodName {
            name: self.name.as_str().into(),
            namespace: self.namespace.as_str().into(),
            service_account: self.service_account.as_str().into(),
        }
    }

    /// The rules for this pod if it has `addresses`.
    ///
    /// A probe at an address that the pod does not have exempts nothing.
    #[must_use]
    pub fn capture(&self, addresses: &[IpAddr]) -> Capture {
        let mut probes = BTreeSet::new();
        for (ip, port) in &self.probes {
            let at = addresses.iter().filter(|own| ip.is_none_or(|ip| ip == **own));
            probes.extend(at.map(|own| SocketAddr::new(*own, *port)));
        }
        Capture { probes, dns: self.dns, inbound: !self.bypass_inbound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(address: &[u8], port: u32) -> wire::Probe {
        wire::Probe { address: address.to_vec(), port }
    }

    fn pod(probes: Vec<wire::Probe>) -> wire::NodePod {
        wire::NodePod {
            uid: "u".to_owned(),
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "seller".to_owned(),
            addresses: vec![vec![10, 244, 1, 5]],
            probes,
            dns_capture: true,
            ..Default::default()
        }
    }

    #[test]
    fn probes_exempt_pairs_of_own_addresses_and_named_ports() {
        let own: [IpAddr; 2] = ["10.244.1.5".parse().unwrap(), "fd00:10:244:1::5".parse().unwrap()];
        let cases: [(&str, Vec<wire::Probe>, &[&str]); 4] = [
            ("none", vec![], &[]),
            ("every address", vec![probe(&[], 80)], &["10.244.1.5:80", "[fd00:10:244:1::5]:80"]),
            ("own address", vec![probe(&[10, 244, 1, 5], 81)], &["10.244.1.5:81"]),
            ("foreign address", vec![probe(&[10, 244, 1, 6], 82)], &[]),
        ];
        for (name, probes, want) in cases {
            let spec = PodSpec::from_wire(&pod(probes)).unwrap();
            let want: BTreeSet<SocketAddr> = want.iter().map(|t| t.parse().unwrap()).collect();
            let capture = spec.capture(&own);
            assert_eq!(capture, Capture { probes: want, dns: true, inbound: true }, "{name}");
        }
    }
}
