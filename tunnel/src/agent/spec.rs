// SPDX-License-Identifier: Apache-2.0

//! What the controller says of a pod that belongs in the mesh.
//!
//! Owns: the domain form of `waymark.v1.NodePod` and what follows from it for
//! the rules. Keeps: a resource is taken whole or refused whole.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use routing::wire::messages::waymark::v1 as wire;
use routing::wire::zds::PodName;
use serde::{Deserialize, Serialize};

use super::capture::Capture;

/// Why a resource of the controller is refused.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// It names no pod.
    #[error("uid is empty")]
    Uid,

    /// An address is neither IPv4 nor IPv6.
    #[error("address of {0} bytes, wanted 4 or 16")]
    Address(usize),

    /// A probe has no port, or one that does not exist.
    #[error("probe port {0}, wanted 1 to 65535")]
    Port(u32),
}

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
}

impl PodSpec {
    /// Takes in a resource of the controller.
    ///
    /// # Errors
    ///
    /// See [`SpecError`]; nothing of the resource is used then.
    pub fn from_wire(pod: &wire::NodePod) -> Result<Self, SpecError> {
        if pod.uid.is_empty() {
            return Err(SpecError::Uid);
        }
        let addresses = pod.addresses.iter().map(|bytes| address(bytes));
        let probes = pod.probes.iter().map(|probe| {
            let port = u16::try_from(probe.port).ok().filter(|port| *port != 0);
            let port = port.ok_or(SpecError::Port(probe.port))?;
            let ip = if probe.address.is_empty() { None } else { Some(address(&probe.address)?) };
            Ok((ip, port))
        });
        Ok(Self {
            uid: pod.uid.as_str().into(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            addresses: addresses.collect::<Result<_, _>>()?,
            probes: probes.collect::<Result<_, _>>()?,
            dns: pod.dns_capture,
            bypass_inbound: pod.bypass_inbound,
            strict: pod.strict,
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

fn address(bytes: &[u8]) -> Result<IpAddr, SpecError> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| v6()).map_err(|_| SpecError::Address(bytes.len()))
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

    #[test]
    fn a_resource_is_refused_whole_with_its_reason() {
        let nameless = wire::NodePod { uid: String::new(), ..pod(vec![]) };
        let crooked = wire::NodePod { addresses: vec![vec![1, 2, 3]], ..pod(vec![]) };
        let cases = [
            (nameless, SpecError::Uid),
            (crooked, SpecError::Address(3)),
            (pod(vec![probe(&[], 0)]), SpecError::Port(0)),
            (pod(vec![probe(&[], 65_536)]), SpecError::Port(65_536)),
            (pod(vec![probe(&[1], 80)]), SpecError::Address(1)),
        ];
        for (resource, want) in cases {
            assert_eq!(PodSpec::from_wire(&resource), Err(want));
        }
    }
}
