// SPDX-License-Identifier: Apache-2.0

//! Which object a refused resource came from.
//!
//! A name on the wire mostly says it; what it does not say, the table of outputs does: who made
//! the resource. A Secret has no status: those are told that name it.

use std::collections::BTreeMap;

use gateway_api::experimental::gateways::Gateway;
use gateway_api::listenersets::ListenerSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy::mtls;

use crate::api;
use crate::output::{Family, Output, OutputKey, Scope, Table};
use crate::serve::clients::Seen;
use crate::settings::Mesh;
use crate::store::index::{self, Index};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name, Stores};
use crate::translate::waypoint::label;
use crate::translate::{listener_set, shape};

/// What clients refuse, by the object that it came from.
pub type Rejections = BTreeMap<Key, Rejection>;

/// What clients refuse of one object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rejection {
    /// The object as a whole.
    all: Option<String>,
    /// Single listeners of it, by name.
    listeners: BTreeMap<String, String>,
    /// Something of it that concerns no listener.
    beside: Option<String>,
}

impl Rejection {
    /// The object as a whole is refused.
    pub fn of_all(text: &str) -> Self {
        Self { all: Some(text.to_owned()), ..Self::default() }
    }

    /// What the object is told.
    pub fn of_object(&self) -> Option<&str> {
        let first = || self.listeners.values().next();
        self.all.as_ref().or(self.beside.as_ref()).or_else(first).map(String::as_str)
    }

    /// What a listener of it is told.
    pub fn of_listener(&self, name: &str) -> Option<&str> {
        self.all.as_ref().or_else(|| self.listeners.get(name)).map(String::as_str)
    }

    fn take(&mut self, part: Part, text: &str) {
        let text = || text.to_owned();
        match part {
            Part::All => {
                self.all.get_or_insert_with(text);
            }
            Part::Beside => {
                self.beside.get_or_insert_with(text);
            }
            Part::Listener(name) => {
                self.listeners.entry(name).or_insert_with(text);
            }
        }
    }
}

/// What of an object a refused resource is.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    All,
    Listener(String),
    Beside,
}

/// What the objects of refused resources are found in.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Objects.
    pub stores: &'a Stores,
    /// Outputs, with those who make them.
    pub table: &'a Table,
    /// What holds for the mesh.
    pub mesh: &'a Mesh,
}

/// What clients refuse, by the object that it came from.
pub fn by_object(clients: &[Seen], known: Known<'_>) -> Rejections {
    let mut found = Rejections::new();
    for client in clients {
        for refusal in &client.refused {
            let Some(family) = Family::of(&refusal.kind) else { continue };
            let (name, reason) = (&refusal.name, &refusal.reason);
            let mut text = format!("{} {} refused it: {reason}", client.role, client.pod);
            let objects = if family == Family::Secret {
                text = format!("{} {} refused Secret {name}: {reason}", client.role, client.pod);
                known.naming(name, &client.pod)
            } else {
                object(family, name).map_or_else(|| known.made(family, name), |one| vec![one])
            };
            for (key, part) in objects {
                found.entry(key).or_default().take(part, &text);
            }
        }
    }
    found
}

impl Known<'_> {
    /// The objects that a resource is made of.
    fn made(self, family: Family, name: &str) -> Vec<(Key, Part)> {
        let makers = self.table.makers(&OutputKey::Config(family, name.into()));
        let keys = makers.into_iter().filter_map(|id| Some((id.primary()?, Part::All)));
        keys.collect()
    }

    /// Who names a Secret that the proxy in a pod refuses: listeners of its Gateway and of the
    /// Gateway's sets, and the Gateway itself for the certificate that backends are shown.
    fn naming(self, secret: &str, pod: &str) -> Vec<(Key, Part)> {
        let mut look = Lookup::new(self.stores, self.mesh);
        let config = self.table.get(&OutputKey::Config(Family::Secret, secret.into()));
        let (Some(Output::Config(config)), Some((namespace, name))) =
            (config, secret.split_once('/'))
        else {
            return Vec::new();
        };
        let Scope::Gateways(given) = &config.scope else { return Vec::new() };
        let own = |gateway: &Name| given.contains(gateway) && self.runs(pod, gateway);
        let value = index::object("Secret", namespace, name);
        let same = |own: &str, written: Option<&str>, named: &str| {
            named == name && written.unwrap_or(own) == namespace
        };
        let mut found = Vec::new();
        for gateway in look.list::<Gateway>(Index::Refers, &value) {
            let Some(at) = name_of(&gateway.metadata).filter(own) else { continue };
            let key = Key { kind: Kind::Gateway, name: at };
            for listener in &gateway.spec.listeners {
                let refs =
                    listener.tls.iter().flat_map(|tls| tls.certificate_refs.iter().flatten());
                let mut refs = refs.map(|one| (one.namespace.as_deref(), &one.name));
                if refs.any(|(written, named)| same(&key.name.namespace, written, named)) {
                    found.push((key.clone(), Part::Listener(listener.name.clone())));
                }
            }
            let backend = gateway.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
            let shown = backend.and_then(|backend| backend.client_certificate_ref.as_ref());
            if shown
                .is_some_and(|one| same(&key.name.namespace, one.namespace.as_deref(), &one.name))
            {
                found.push((key, Part::Beside));
            }
        }
        for set in look.list::<ListenerSet>(Index::Refers, &value) {
            let parent = listener_set::gateway_of(set, &mut look);
            let parent = parent.and_then(|gateway| name_of(&gateway.metadata));
            let Some(at) = name_of(&set.metadata).filter(|_| parent.as_ref().is_some_and(own))
            else {
                continue;
            };
            let key = Key { kind: Kind::ListenerSet, name: at };
            for listener in &set.spec.listeners {
                let refs =
                    listener.tls.iter().flat_map(|tls| tls.certificate_refs.iter().flatten());
                let mut refs = refs.map(|one| (one.namespace.as_deref(), &one.name));
                if refs.any(|(written, named)| same(&key.name.namespace, written, named)) {
                    found.push((key.clone(), Part::Listener(listener.name.clone())));
                }
            }
        }
        found
    }

    /// Tells whether a pod, `namespace/name`, runs a proxy of a Gateway; one that is not there any
    /// more may.
    fn runs(self, pod: &str, gateway: &Name) -> bool {
        let Some((namespace, name)) = pod.split_once('/') else { return true };
        let Some(pod) = self.stores.get::<Pod>(namespace, name) else { return true };
        let of = label(pod.metadata.labels.as_ref(), api::GATEWAY_NAME);
        *gateway.namespace == *namespace && of == Some(shape::bounded(&gateway.name).as_ref())
    }
}

fn name_of(meta: &ObjectMeta) -> Option<Name> {
    Some(Name::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

/// The object that the name of a resource names, and which part of it that is; none if the name
/// does not say.
fn object(family: Family, name: &str) -> Option<(Key, Part)> {
    let mut parts = name.split('/');
    let mut next = || parts.next();
    let mut part = Part::All;
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
            let (namespace, gateway, third) = (next()?, next()?, next()?);
            match (next(), next()) {
                (Some(set), Some(section)) => {
                    part = Part::Listener(section.to_owned());
                    (Kind::ListenerSet, third, set)
                }
                _ => {
                    part = Part::Listener(third.to_owned());
                    (Kind::Gateway, namespace, gateway)
                }
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
    Some((Key { kind, name: Name::new(namespace, name) }, part))
}

#[cfg(test)]
mod tests;
