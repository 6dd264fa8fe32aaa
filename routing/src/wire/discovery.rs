// SPDX-License-Identifier: Apache-2.0

//! A response of the discovery stream as changes, and resources as bytes.
//!
//! Owns which message belongs to which kind. Keeps: what cannot be read is a
//! change too, with its name and the reason, so that it is answered for.

use std::sync::Arc;

use policy::authz::Authorization;
use prost::Message;

use super::authorization::NotExpressible;
use super::error::{Names, WireError, chain};
use super::messages::envoy::service::discovery::v3 as xds;
use super::messages::{istio, waymark::v1 as own};
use super::workload::Address;
use super::{authentication, authorization, backend, gateway, listener, route, workload};
use crate::delta::{Change, Governs, Kind, Resource};

/// The changes that a response tells of; none of a kind that is not known here.
///
/// # Errors
///
/// [`WireError::Kind`] for a response of another kind; it is refused as a whole.
pub fn read(response: &xds::DeltaDiscoveryResponse) -> Result<Vec<Change>, WireError> {
    let unknown = || WireError::Kind(response.type_url.clone());
    let kind = Kind::of_type_url(&response.type_url).ok_or_else(unknown)?;
    let mut names = Names::default();
    let changed = response.resources.iter().map(|resource| change(kind, resource, &mut names));
    let mut changes: Vec<Change> = changed.collect();
    let gone = response.removed_resources.iter();
    changes.extend(gone.map(|name| Change::Gone(kind, name.as_str().into())));
    Ok(changes)
}

fn change(kind: Kind, resource: &xds::Resource, names: &mut Names) -> Change {
    let body = match &resource.resource {
        Some(any) if any.type_url == kind.type_url() => any.value.as_slice(),
        Some(any) => return unreadable(kind, resource, &WireError::Kind(any.type_url.clone())),
        None => return unreadable(kind, resource, &WireError::Missing("resource")),
    };
    match read_resource(kind, body, names) {
        Ok((name, read)) if name == resource.name => Change::Put(read),
        Ok((name, _)) => unreadable(kind, resource, &WireError::OtherName(name)),
        Err(error) => unreadable(kind, resource, &error),
    }
}

fn unreadable(kind: Kind, resource: &xds::Resource, error: &WireError) -> Change {
    let body = resource.resource.as_ref().map_or(&[][..], |any| any.value.as_slice());
    Change::Unreadable {
        kind,
        name: resource.name.as_str().into(),
        reason: chain(error).into(),
        governs: governs(kind, body),
    }
}

/// What a policy governs that cannot be read in full.
fn governs(kind: Kind, body: &[u8]) -> Governs {
    match kind {
        Kind::Authorization => {
            let scope = decode::<istio::security::Authorization>(body)
                .and_then(|message| authorization::read_scope(&message));
            scope.map_or(Governs::Unknown, Governs::Sessions)
        }
        Kind::GatewayAuthorization => {
            let targets = decode::<own::Authorization>(body)
                .and_then(|message| authorization::gateway::read_targets(&message));
            targets.map_or(Governs::Unknown, Governs::Requests)
        }
        Kind::RequestAuthentication => {
            let targets = decode::<own::RequestAuthentication>(body)
                .and_then(|message| authentication::read_targets(&message));
            targets.map_or(Governs::Unknown, Governs::Requests)
        }
        Kind::Address
        | Kind::Gateway
        | Kind::Listener
        | Kind::Route
        | Kind::BackendTls
        | Kind::Secret => Governs::Unknown,
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, WireError> {
    M::decode(body).map_err(WireError::Message)
}

/// Reads one resource; gives its own name too.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_resource(
    kind: Kind,
    body: &[u8],
    names: &mut Names,
) -> Result<(String, Resource), WireError> {
    Ok(match kind {
        Kind::Address => match workload::read(&decode(body)?, names)? {
            Address::Workload(workload) => (workload.uid.to_string(), Resource::Workload(workload)),
            Address::Service(service) => (service.key.to_string(), Resource::Service(service)),
        },
        Kind::Authorization => {
            let policy = authorization::read(&decode(body)?)?;
            (policy.name.to_string(), Resource::Authorization(Arc::new(policy)))
        }
        Kind::Gateway => {
            let gateway = gateway::read(&decode(body)?)?;
            (gateway.name.to_string(), Resource::Gateway(Arc::new(gateway)))
        }
        Kind::Listener => {
            let listener = listener::read(&decode(body)?)?;
            (listener.name.to_string(), Resource::Listener(Arc::new(listener)))
        }
        Kind::Route => {
            let rule = route::read(&decode(body)?)?;
            (rule.name.to_string(), Resource::Rule(Arc::new(rule)))
        }
        Kind::BackendTls => {
            let tls = backend::read_tls(&decode(body)?)?;
            (tls.name.to_string(), Resource::BackendTls(Arc::new(tls)))
        }
        Kind::Secret => {
            let secret = backend::read_secret(&decode(body)?)?;
            (secret.name.to_string(), Resource::Secret(Arc::new(secret)))
        }
        Kind::GatewayAuthorization => {
            let policy = authorization::gateway::read(&decode(body)?)?;
            (policy.name.to_string(), Resource::GatewayAuthorization(Arc::new(policy)))
        }
        Kind::RequestAuthentication => {
            let read = authentication::read(&decode(body)?)?;
            (read.name.to_string(), Resource::RequestAuthentication(Arc::new(read)))
        }
    })
}

/// A resource as it goes over the wire: kind, name, bytes.
pub type Written = (Kind, String, Vec<u8>);

/// Writes one resource.
///
/// # Errors
///
/// [`NotExpressible`] for a policy that has no form of its kind.
pub fn write_resource(resource: &Resource) -> Result<Written, NotExpressible> {
    Ok(match resource {
        Resource::Workload(one) => {
            (Kind::Address, one.uid.to_string(), workload::write_workload(one).encode_to_vec())
        }
        Resource::Service(one) => {
            (Kind::Address, one.key.to_string(), workload::write_service(one).encode_to_vec())
        }
        Resource::Authorization(one) => {
            written(Kind::Authorization, one, |one| Ok(authorization::write(one)?.encode_to_vec()))?
        }
        Resource::Gateway(one) => {
            (Kind::Gateway, one.name.to_string(), gateway::write(one).encode_to_vec())
        }
        Resource::Listener(one) => {
            (Kind::Listener, one.name.to_string(), listener::write(one).encode_to_vec())
        }
        Resource::Rule(one) => {
            (Kind::Route, one.name.to_string(), route::write(one).encode_to_vec())
        }
        Resource::BackendTls(one) => {
            (Kind::BackendTls, one.name.to_string(), backend::write_tls(one).encode_to_vec())
        }
        Resource::Secret(one) => {
            (Kind::Secret, one.name.to_string(), backend::write_secret(one).encode_to_vec())
        }
        Resource::RequestAuthentication(one) => {
            let body = authentication::write(one).encode_to_vec();
            (Kind::RequestAuthentication, one.name.to_string(), body)
        }
        Resource::GatewayAuthorization(one) => written(Kind::GatewayAuthorization, one, |one| {
            Ok(authorization::gateway::write(one)?.encode_to_vec())
        })?,
    })
}

fn written(
    kind: Kind,
    policy: &Authorization,
    write: impl FnOnce(&Authorization) -> Result<Vec<u8>, NotExpressible>,
) -> Result<Written, NotExpressible> {
    Ok((kind, policy.name.to_string(), write(policy)?))
}

#[cfg(test)]
mod tests;
