// SPDX-License-Identifier: Apache-2.0

//! Whether a selector ALLOW policy admits the waypoint in front of the pods that it selects.
//!
//! Behind a waypoint the destination sees the waypoint's identity, and no policy is widened for
//! it: whoever writes `ALLOW` for the callers themselves shuts the waypoint out, and is told so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use policy::authz::{Authorization, evaluate};
use policy::identity::Identity;
use policy::peer::Peer;
use policy::request::Request;

use crate::api;
use crate::api::istio::{AuthorizationPolicy, Selector};
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::translate::waypoint::{self, Binding};
use crate::translate::{pod, shape, workload};

/// The first waypoint that `policy` refuses, in words.
pub(super) fn refused_waypoint(
    object: &AuthorizationPolicy,
    policy: &Authorization,
    look: &mut Lookup<'_>,
) -> Option<String> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    for found in selected(object.spec.selector.as_ref(), namespace, look) {
        if waypoint::is_gateways_own(&found.metadata) {
            continue;
        }
        let labels = found.metadata.labels.clone().unwrap_or_default();
        for service in workload::selecting(namespace, &labels, look) {
            let Some(binding) = waypoint::of_service(&service.metadata, look) else { continue };
            let peer = Peer::proven(identity(&binding)?, address(&binding, look));
            let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            for port in listed {
                let Some(port) = workload::workload_port(&found, port) else { continue };
                let ip = pod::addresses(&found).into_iter().next();
                let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                let to = SocketAddr::new(ip, port.target_port);
                if evaluate([policy], &Request::session(&peer, to)).is_err() {
                    return Some(format!(
                        "waypoint {} of Service {namespace}/{} is refused at port {} of the pods that the policy selects: they see {} instead of the callers",
                        binding.gateway,
                        service.metadata.name.as_deref().unwrap_or_default(),
                        port.target_port,
                        binding.principal,
                    ));
                }
            }
        }
    }
    None
}

/// The pods of `namespace` that the policy selects.
pub(super) fn selected(
    selector: Option<&Selector>,
    namespace: &str,
    look: &mut Lookup<'_>,
) -> Vec<Arc<Pod>> {
    let labels = selector.map(|selector| &selector.match_labels);
    let first = labels.and_then(|labels| labels.first_key_value());
    let found = match first {
        Some((key, value)) => look.list::<Pod>(Index::Label, &index::label(namespace, key, value)),
        None => look.list::<Pod>(Index::Namespace, namespace),
    };
    let fits = |found: &&Arc<Pod>| {
        let own = found.metadata.labels.as_ref();
        labels
            .into_iter()
            .flatten()
            .all(|(key, value)| own.is_some_and(|own| own.get(key) == Some(value)))
    };
    found.into_iter().filter(fits).cloned().collect()
}

fn identity(binding: &Binding) -> Option<Identity> {
    format!("spiffe://{}", binding.principal).parse().ok()
}

/// Where the waypoint calls from: one of its pods, if there is one.
fn address(binding: &Binding, look: &mut Lookup<'_>) -> SocketAddr {
    let gateway = &binding.gateway;
    let value = index::label(&gateway.namespace, api::GATEWAY_NAME, &shape::bounded(&gateway.name));
    let pods = look.list::<Pod>(Index::Label, &value);
    let ip = pods.into_iter().find_map(|found| pod::addresses(found).into_iter().next());
    SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0)
}
