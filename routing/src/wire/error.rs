// SPDX-License-Identifier: Apache-2.0

//! Why a message is no resource, and shared steps of reading one.
//!
//! Owns the error of this family of files, the readers of single values, and how lists are read.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use policy::authz::{InvalidPolicyName, PolicyName};
use policy::identity::{Identity, InvalidName, Namespace, ServiceAccount, TrustDomain};

use crate::discovery::{InvalidServiceKey, Port, ServiceKey};

/// Why a message is no resource. The resource is refused whole.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are no such message.
    #[error("message cannot be read")]
    Message(#[source] prost::DecodeError),
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An enum has a value that is not known here.
    #[error("{0} has the unknown value {1}")]
    Unknown(&'static str, i32),
    /// A value is known and not served.
    #[error("{0} {1} is not served")]
    NotServed(&'static str, &'static str),
    /// An address is neither 4 nor 16 bytes long.
    #[error("{0} has {1} bytes, wanted 4 or 16")]
    AddressLength(&'static str, usize),
    /// A prefix is longer than its address.
    #[error("{0} has the prefix length {1}")]
    PrefixLength(&'static str, u32),
    /// A number is no port.
    #[error("{0} is {1}, wanted a port")]
    Port(&'static str, u32),
    /// A name is out of grammar.
    #[error("{0} is not legal")]
    Name(&'static str, #[source] InvalidName),
    /// A key of a service is out of grammar.
    #[error("{0} is no service")]
    Service(&'static str, #[source] InvalidServiceKey),
    /// The name of a policy is out of grammar.
    #[error("{0} is no policy")]
    Policy(&'static str, #[source] InvalidPolicyName),
    /// A policy holds a condition that is not known here; without it, it would mean something else.
    #[error("extension {0:?} is not known")]
    Extension(String),
    /// The name inside the resource is not the one that it was sent under.
    #[error("resource calls itself {0:?}")]
    OtherName(String),
    /// The kind of resource is not known here.
    #[error("kind {0:?} is not known")]
    Kind(String),
    /// Another value is out of its grammar.
    #[error("{0} is not legal: {1}")]
    Value(&'static str, String),
}

/// All levels of an error in one line, for a refusal that travels back.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What comes of every entry of a list, without spare room: it is kept. Collecting results makes
/// room for four, and mostly there is one.
///
/// # Errors
///
/// The first that reading one gives.
pub fn each<M, T, E>(
    messages: &[M],
    mut read: impl FnMut(&M) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let mut all = Vec::with_capacity(messages.len());
    for message in messages {
        all.push(read(message)?);
    }
    Ok(all)
}

/// Values of one batch, each held once: the same ones come with every workload.
#[derive(Debug, Default)]
pub struct Names {
    texts: HashSet<Arc<str>>,
    namespaces: HashMap<String, Namespace>,
    services: HashMap<String, ServiceKey>,
    policies: HashMap<String, PolicyName>,
    ports: HashSet<Arc<[Port]>>,
    identities: HashSet<Identity>,
}

/// The value of `text` that was parsed before, or parses it.
fn known<T: Clone + FromStr>(known: &mut HashMap<String, T>, text: &str) -> Result<T, T::Err> {
    if let Some(value) = known.get(text) {
        return Ok(value.clone());
    }
    let value: T = text.parse()?;
    known.insert(text.to_owned(), value.clone());
    Ok(value)
}

impl Names {
    /// `text` as a shared string.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&shared));
        shared
    }

    /// `text` as a namespace.
    pub(crate) fn namespace(
        &mut self,
        field: &'static str,
        text: &str,
    ) -> Result<Namespace, WireError> {
        known(&mut self.namespaces, text).map_err(named(field))
    }

    /// `text` as the key of a service.
    pub(crate) fn service(
        &mut self,
        field: &'static str,
        text: &str,
    ) -> Result<ServiceKey, WireError> {
        known(&mut self.services, text).map_err(|error| WireError::Service(field, error))
    }

    /// `text` as the name of a policy.
    pub(crate) fn policy(
        &mut self,
        field: &'static str,
        text: &str,
    ) -> Result<PolicyName, WireError> {
        known(&mut self.policies, text).map_err(|error| WireError::Policy(field, error))
    }

    /// `ports` as a shared list.
    pub(crate) fn ports(&mut self, ports: &[Port]) -> Arc<[Port]> {
        if let Some(shared) = self.ports.get(ports) {
            return Arc::clone(shared);
        }
        let shared: Arc<[Port]> = ports.into();
        self.ports.insert(Arc::clone(&shared));
        shared
    }

    /// The identity of these three parts.
    pub(crate) fn identity(
        &mut self,
        trust_domain: &str,
        namespace: &Namespace,
        account: &str,
    ) -> Result<Identity, WireError> {
        let domain: TrustDomain = trust_domain.parse().map_err(named("trust_domain"))?;
        let account: ServiceAccount = account.parse().map_err(named("service_account"))?;
        let identity = Identity::new(&domain, namespace, &account);
        if let Some(shared) = self.identities.get(&identity) {
            return Ok(shared.clone());
        }
        self.identities.insert(identity.clone());
        Ok(identity)
    }
}

pub(crate) fn named(field: &'static str) -> impl Fn(InvalidName) -> WireError {
    move |error| WireError::Name(field, error)
}

pub(crate) fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6)),
        Err(_) => Err(WireError::AddressLength(field, bytes.len())),
    }
}

pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn range(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, WireError> {
    let address = address(field, bytes)?;
    let length = u8::try_from(length).map_err(|_| WireError::PrefixLength(field, length))?;
    let too_long = |_| WireError::PrefixLength(field, u32::from(length));
    Ok(IpNet::new(address, length).map_err(too_long)?.trunc())
}

/// A port that may be zero.
pub(crate) fn port_or_zero(field: &'static str, number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::Port(field, number))
}

pub(crate) fn port(field: &'static str, number: u32) -> Result<u16, WireError> {
    match port_or_zero(field, number)? {
        0 => Err(WireError::Port(field, 0)),
        port => Ok(port),
    }
}

/// `text`, or `default` if it is empty.
pub(crate) fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}
