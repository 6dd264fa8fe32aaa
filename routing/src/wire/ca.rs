// SPDX-License-Identifier: Apache-2.0

//! `istio.v1.auth`: a certificate is asked for and given.
//!
//! Owns what the fields mean. Leaves keys and certificates to the tunnel and
//! the controller.

use std::time::Duration;

use policy::identity::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::error::WireError;
pub use super::messages::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// Path of the gRPC method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Field of the metadata in which a node's tunnel names the pod identity.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// What is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateRequest {
    /// Certificate request in PEM.
    pub csr: String,
    /// Wanted life, in whole seconds; zero: as the server likes.
    pub life: Duration,
    /// Whose certificate, if not the caller's own.
    pub impersonated: Option<Identity>,
}

impl CertificateRequest {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`WireError::Value`] for a negative life and for an impersonated identity
    /// that is no text or names no workload: it never falls back to the caller's own.
    pub fn read(message: &IstioCertificateRequest) -> Result<Self, WireError> {
        let seconds = message.validity_duration;
        let life = u64::try_from(seconds)
            .map_err(|_| WireError::Value("validity_duration", seconds.to_string()))?;
        let fields = message.metadata.as_ref().map(|metadata| &metadata.fields);
        let value = fields.and_then(|fields| fields.get(IMPERSONATED_IDENTITY));
        let impersonated = value.map(|value| match &value.kind {
            Some(Kind::StringValue(text)) => {
                text.parse().map_err(|_| WireError::Value(IMPERSONATED_IDENTITY, text.clone()))
            }
            other => Err(WireError::Value(IMPERSONATED_IDENTITY, format!("{other:?}"))),
        });
        Ok(Self {
            csr: message.csr.clone(),
            life: Duration::from_secs(life),
            impersonated: impersonated.transpose()?,
        })
    }

    /// Writes a message.
    pub fn write(&self) -> IstioCertificateRequest {
        let metadata = self.impersonated.as_ref().map(|identity| {
            let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
            Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into() }
        });
        IstioCertificateRequest {
            csr: self.csr.clone(),
            validity_duration: i64::try_from(self.life.as_secs()).unwrap_or(i64::MAX),
            metadata,
        }
    }
}

/// A certificate chain in PEM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateChain {
    /// The certificate asked for.
    pub leaf: String,
    /// From the one that signed the leaf upwards.
    pub intermediates: Vec<String>,
    /// All roots of the mesh, one after the other.
    pub roots: String,
}

impl CertificateChain {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`WireError::Missing`] unless there are a leaf and roots.
    pub fn read(message: &IstioCertificateResponse) -> Result<Self, WireError> {
        match message.cert_chain.as_slice() {
            [leaf, intermediates @ .., roots] => Ok(Self {
                leaf: leaf.clone(),
                intermediates: intermediates.to_vec(),
                roots: roots.clone(),
            }),
            [] | [_] => Err(WireError::Missing("cert_chain")),
        }
    }

    /// Writes a message.
    pub fn write(&self) -> IstioCertificateResponse {
        let mut cert_chain = vec![self.leaf.clone()];
        cert_chain.extend(self.intermediates.iter().cloned());
        cert_chain.push(self.roots.clone());
        IstioCertificateResponse { cert_chain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let own = CertificateRequest {
            csr: "PEM".into(),
            life: Duration::from_secs(3600),
            impersonated: None,
        };
        let identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let other = CertificateRequest { impersonated: Some(identity), ..own.clone() };
        for request in [own, other] {
            assert_eq!(CertificateRequest::read(&request.write()), Ok(request));
        }
    }

    #[test]
    fn an_unreadable_identity_never_falls_back_to_the_callers_own() {
        let kinds = [
            None,
            Some(Kind::NumberValue(1.0)),
            Some(Kind::StringValue(String::new())),
            Some(Kind::StringValue("spiffe://td/ns/a".into())),
        ];
        for kind in kinds {
            let value = Value { kind: kind.clone() };
            let metadata = Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into() };
            let message =
                IstioCertificateRequest { metadata: Some(metadata), ..Default::default() };
            let read = CertificateRequest::read(&message);
            assert!(matches!(read, Err(WireError::Value(IMPERSONATED_IDENTITY, _))), "{kind:?}");
        }
    }

    #[test]
    fn a_chain_needs_leaf_and_roots() {
        let chain = |elements: &[&str]| IstioCertificateResponse {
            cert_chain: elements.iter().map(ToString::to_string).collect(),
        };
        for short in [&[][..], &["leaf"]] {
            let read = CertificateChain::read(&chain(short));
            assert_eq!(read, Err(WireError::Missing("cert_chain")));
        }
        for elements in [&["leaf", "roots"][..], &["leaf", "one", "two", "roots"]] {
            let message = chain(elements);
            assert_eq!(CertificateChain::read(&message).unwrap().write(), message);
        }
    }
}
