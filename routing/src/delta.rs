// SPDX-License-Identifier: Apache-2.0

//! Turns a batch of changes into the next [`Snapshot`].
//!
//! Owns the order of application, the rejection of single resources, and that
//! unchanged parts are shared. Leaves decoding to [`crate::wire`] and transport
//! to the tunnel's session with the controller.
//!
//! Keeps: a snapshot is never seen half applied; a rejected resource leaves its
//! last good version in force; a security resource that never had one refuses
//! what it governs; the same changes give the same snapshot.
//!
//! Start at [`apply`].

use std::sync::Arc;

use policy::authz::{Authorization, PolicyName, Scope, Target};
use policy::jwt::RequestAuthentication;

use crate::backend::{BackendTls, Secret};
use crate::discovery::{Change as Place, Service, ServiceKey, Workload};
use crate::gateway::Gateway;
use crate::listener::Listener;
use crate::route::Rule;
use crate::snapshot::Snapshot;

/// A kind of resource.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies over sessions.
    Authorization,
    /// Settings of gateways.
    Gateway,
    /// Listeners of gateways.
    Listener,
    /// Rules of routes.
    Route,
    /// TLS to backends.
    BackendTls,
    /// Certificates.
    Secret,
    /// Policies over requests.
    GatewayAuthorization,
    /// Tokens of end users.
    RequestAuthentication,
}

impl Kind {
    /// All kinds that make up a snapshot.
    pub const ALL: [Self; 9] = [
        Self::Address,
        Self::Authorization,
        Self::Gateway,
        Self::Listener,
        Self::Route,
        Self::BackendTls,
        Self::Secret,
        Self::GatewayAuthorization,
        Self::RequestAuthentication,
    ];

    /// Name of its resources on the discovery stream.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Gateway => "type.googleapis.com/waymark.v1.Gateway",
            Self::Listener => "type.googleapis.com/waymark.v1.Listener",
            Self::Route => "type.googleapis.com/waymark.v1.Route",
            Self::BackendTls => "type.googleapis.com/waymark.v1.BackendTls",
            Self::Secret => "type.googleapis.com/waymark.v1.Secret",
            Self::GatewayAuthorization => "type.googleapis.com/waymark.v1.Authorization",
            Self::RequestAuthentication => "type.googleapis.com/waymark.v1.RequestAuthentication",
        }
    }

    /// The kind with this name on the discovery stream.
    pub fn of_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// A resource of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
    /// A policy over sessions.
    Authorization(Arc<Authorization>),
    /// Settings of a gateway.
    Gateway(Arc<Gateway>),
    /// A listener of a gateway.
    Listener(Arc<Listener>),
    /// A rule of a route.
    Rule(Arc<Rule>),
    /// TLS to a backend.
    BackendTls(Arc<BackendTls>),
    /// A certificate.
    Secret(Arc<Secret>),
    /// A policy over requests.
    GatewayAuthorization(Arc<Authorization>),
    /// Which tokens of end users are taken.
    RequestAuthentication(Arc<RequestAuthentication>),
}

/// What a policy that cannot be read governs, as far as that could be read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Governs {
    /// Not even that.
    #[default]
    Unknown,
    /// Sessions of this scope.
    Sessions(Scope),
    /// Requests to these.
    Requests(Vec<Target>),
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A resource is new or has changed.
    Put(Resource),
    /// A resource is gone.
    Gone(Kind, Arc<str>),
    /// A resource was sent and cannot be read.
    Unreadable {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: Arc<str>,
        /// Why, in one line.
        reason: Arc<str>,
        /// What it governs, if it is a policy.
        governs: Governs,
    },
}

/// A resource that was not taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Why, in one line.
    pub reason: Arc<str>,
}

/// The snapshot after `changes`, and those that were not taken.
pub fn apply(
    snapshot: &Snapshot,
    changes: impl IntoIterator<Item = Change>,
) -> (Snapshot, Vec<Rejected>) {
    let mut next = snapshot.clone();
    next.revision += 1;
    let mut rejected = Vec::new();
    let mut places = Vec::new();
    for change in changes {
        match change {
            Change::Put(Resource::Workload(workload)) => places.push(Place::Workload(workload)),
            Change::Put(Resource::Service(service)) => places.push(Place::Service(service)),
            Change::Put(resource) => put(&mut next, resource),
            // Uids and keys of services share one space of names.
            Change::Gone(Kind::Address, name) => {
                places.extend(name.parse::<ServiceKey>().map(Place::ServiceGone));
                places.push(Place::WorkloadGone(name));
            }
            Change::Gone(kind, name) => {
                if let Some(reason) = gone(&mut next, kind, &name) {
                    rejected.push(Rejected { kind, name, reason });
                }
            }
            Change::Unreadable { kind, name, reason, governs } => {
                unreadable(&mut next, kind, &name, &reason, governs);
                rejected.push(Rejected { kind, name, reason });
            }
        }
    }
    // All at once, so that a list of endpoints is copied once for the batch.
    next.discovery.apply(places);
    (next, rejected)
}

fn put(next: &mut Snapshot, resource: Resource) {
    match resource {
        Resource::Workload(workload) => next.discovery.apply([Place::Workload(workload)]),
        Resource::Service(service) => next.discovery.apply([Place::Service(service)]),
        Resource::Authorization(policy) => next.authorizations.put(policy),
        Resource::Gateway(gateway) => next.serving.put_gateway(gateway),
        Resource::Listener(listener) => next.serving.put_listener(listener),
        Resource::Rule(rule) => next.serving.put_rule(rule),
        Resource::BackendTls(tls) => next.serving.put_backend_tls(tls),
        Resource::Secret(secret) => next.serving.put_secret(secret),
        Resource::GatewayAuthorization(policy) => next.serving.put_policy(policy),
        Resource::RequestAuthentication(one) => next.serving.authentications.put(one),
    }
}

/// Takes a resource out by name; gives the reason if the name cannot be one of its kind.
fn gone(next: &mut Snapshot, kind: Kind, name: &str) -> Option<Arc<str>> {
    fn with<N: std::str::FromStr>(name: &str, remove: impl FnOnce(&N)) -> Result<(), Arc<str>>
    where
        N::Err: std::fmt::Display,
    {
        let parsed = name.parse().map_err(|error: N::Err| Arc::from(error.to_string()))?;
        remove(&parsed);
        Ok(())
    }
    let serving = &mut next.serving;
    let result = match kind {
        Kind::Address => Ok(()),
        Kind::Authorization => with(name, |name: &PolicyName| next.authorizations.remove(name)),
        Kind::Gateway => with(name, |name| serving.remove_gateway(name)),
        Kind::Listener => with(name, |name| serving.remove_listener(name)),
        Kind::Route => with(name, |name| serving.remove_rule(name)),
        Kind::BackendTls => with(name, |name| serving.remove_backend_tls(name)),
        Kind::Secret => with(name, |name| serving.remove_secret(name)),
        Kind::GatewayAuthorization => with(name, |name| serving.remove_policy(name)),
        Kind::RequestAuthentication => with(name, |name| serving.authentications.remove(name)),
    };
    result.err()
}

/// Lets a policy that cannot be read refuse; other resources just keep their last good version.
fn unreadable(next: &mut Snapshot, kind: Kind, name: &str, reason: &str, governs: Governs) {
    if let (Kind::BackendTls, Ok(name)) = (kind, name.parse()) {
        next.serving.unreadable_backend_tls(&name, reason);
    }
    let Ok(policy) = name.parse::<PolicyName>() else { return };
    match (kind, governs) {
        (Kind::Authorization, Governs::Sessions(scope)) => {
            next.authorizations.unreadable(&policy, Some(scope), reason);
        }
        (Kind::Authorization, Governs::Unknown | Governs::Requests(_)) => {
            next.authorizations.unreadable(&policy, None, reason);
        }
        (Kind::GatewayAuthorization, Governs::Requests(targets)) => {
            next.serving.unreadable_policy(&policy, targets, reason);
        }
        (Kind::GatewayAuthorization, Governs::Unknown | Governs::Sessions(_)) => {
            next.serving.unreadable_policy(&policy, Vec::new(), reason);
        }
        (Kind::RequestAuthentication, governs) => {
            let targets = match governs {
                Governs::Requests(targets) => targets,
                Governs::Unknown | Governs::Sessions(_) => Vec::new(),
            };
            next.serving.authentications.unreadable(&policy, targets, reason);
        }
        (
            Kind::Address
            | Kind::Gateway
            | Kind::Listener
            | Kind::Route
            | Kind::BackendTls
            | Kind::Secret,
            _,
        ) => {}
    }
}

#[cfg(test)]
mod tests;
