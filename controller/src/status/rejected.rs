// SPDX-License-Identifier: Apache-2.0

//! Which object a refused resource came from.

use std::collections::BTreeMap;

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
        Family::Gateway | Family::Listener => (Kind::Gateway, next()?, next()?),
        Family::Authorization | Family::RequestAuthorization => {
            (Kind::AuthorizationPolicy, next()?, next()?)
        }
        Family::RequestAuthentication => (Kind::RequestAuthentication, next()?, next()?),
        Family::Address => {
            let (namespace, host) = (next()?, next()?);
            (Kind::Service, namespace, host.split('.').next()?)
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
            (Family::Authorization, "ns/p", "AuthorizationPolicy ns/p"),
            (Family::RequestAuthentication, "ns/p", "RequestAuthentication ns/p"),
            (Family::Address, "ns/web.ns.svc.cluster.local", "Service ns/web"),
        ];
        for (family, name, want) in cases {
            assert_eq!(object(family, name).map(|key| key.to_string()).as_deref(), Some(want));
        }
        assert_eq!(object(Family::Secret, "ns/s"), None);
        assert_eq!(object(Family::Route, ""), None);
    }
}
