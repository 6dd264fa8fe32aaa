// SPDX-License-Identifier: Apache-2.0

//! Which object a refused resource came from.

use std::collections::BTreeMap;

use policy::mtls;

use crate::api;
use crate::output::Family;
use crate::serve::clients::Seen;
use crate::store::{Key, Kind, Name};

/// What clients refuse, by the object that it came from.
pub fn by_object(clients: &[Seen]) -> BTreeMap<Key, String> {
    let mut found = BTreeMap::new();
    for client in clients {
        for refusal in &client.refused {
            let Some(key) = Family::of(&refusal.kind).and_then(|f| object(f, &refusal.name)) else {
                continue;
            };
            let text = format!("{} {} refused it: {}", client.role, client.pod, refusal.reason);
            found.entry(key).or_insert(text);
        }
    }
    found
}

/// The object behind a resource; none if no object of a user stands behind it.
fn object(family: Family, name: &str) -> Option<Key> {
    let mut parts = name.split('/');
    let mut next = || parts.next();
    let (kind, namespace, name) = match family {
        Family::Route => {
            let kind = match next()? {
                "HTTPRoute" => Kind::HttpRoute,
                "GRPCRoute" => Kind::GrpcRoute,
                "TLSRoute" => Kind::TlsRoute,
                "TCPRoute" => Kind::TcpRoute,
                "UDPRoute" => Kind::UdpRoute,
                _ => return None,
            };
            (kind, next()?, next()?)
        }
        Family::Gateway => (Kind::Gateway, next()?, next()?),
        Family::Listener => {
            let (namespace, gateway) = (next()?, next()?);
            match (next()?, next(), next()) {
                (set_namespace, Some(set), Some(_)) => (Kind::ListenerSet, set_namespace, set),
                _ => (Kind::Gateway, namespace, gateway),
            }
        }
        Family::Authorization | Family::RequestAuthorization => {
            let (namespace, name) = (next()?, next()?);
            match name.strip_prefix(mtls::CONVERTED) {
                Some(source) => (Kind::PeerAuthentication, namespace, source),
                None => (Kind::AuthorizationPolicy, namespace, name),
            }
        }
        Family::RequestAuthentication => (Kind::RequestAuthentication, next()?, next()?),
        Family::Address => {
            let (namespace, host) = (next()?, next()?);
            let name = host.split('.').next()?;
            // Other hosts are those of ServiceEntries, which say nothing of the entry's name.
            if host != api::service_host(namespace, name) {
                return None;
            }
            (Kind::Service, namespace, name)
        }
        Family::Roots | Family::Secret | Family::BackendTls | Family::NodePod => return None,
    };
    Some(Key { kind, name: Name::new(namespace, name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_leads_back_to_its_object() {
        let cases = [
            (Family::Route, "HTTPRoute/ns/r/3", "HTTPRoute ns/r"),
            (Family::Listener, "ns/gw/http", "Gateway ns/gw"),
            (Family::Gateway, "ns/gw", "Gateway ns/gw"),
            (Family::Listener, "ns/gw/infra/set/http", "ListenerSet infra/set"),
            (Family::Authorization, "ns/p", "AuthorizationPolicy ns/p"),
            (
                Family::Authorization,
                "ns/converted_peer_authentication_p",
                "PeerAuthentication ns/p",
            ),
            (Family::RequestAuthentication, "ns/p", "RequestAuthentication ns/p"),
            (Family::Address, "ns/web.ns.svc.cluster.local", "Service ns/web"),
        ];
        for (family, name, want) in cases {
            assert_eq!(object(family, name).map(|key| key.to_string()).as_deref(), Some(want));
        }
        assert_eq!(object(Family::Secret, "ns/s"), None);
        for of_nobody in ["ns/web.example.com", "Kubernetes//Pod/ns/web"] {
            assert_eq!(object(Family::Address, of_nobody), None, "{of_nobody}");
        }
        assert_eq!(object(Family::Route, ""), None);
    }
}
