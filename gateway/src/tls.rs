// SPDX-License-Identifier: Apache-2.0

//! TLS beside the mesh's own: certificates of listeners, and TLS towards backends.
//!
//! Owns how PEM from Secrets and ConfigMaps becomes rustls configurations.
//! They are made once per change, when a snapshot is taken into use; a
//! handshake only picks one. Mutual TLS of the mesh is the tunnel's.
//!
//! Keeps: trust stores and caches are never shared between configurations, so
//! two authorities with one name and serial number stay two.

/// How both kinds of verifiers check that a key was used: by what the provider in `self.$provider`
/// can do.
macro_rules! signatures_by {
    ($provider:tt) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.$provider.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, leaf, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.$provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.$provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

pub(crate) mod client;
pub(crate) mod server;

use std::sync::{Arc, LazyLock};

use routing::backend::Secret;
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Why certificates, keys or names make no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The PEM text does not parse.
    #[error("{0} is no PEM")]
    Pem(&'static str, #[source] pem::Error),
    /// There is no certificate where one must be.
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    /// A certificate or key cannot be used.
    #[error("certificate or key cannot be used")]
    Rustls(#[source] rustls::Error),
    /// A trusted root cannot be used, or client certificates cannot be checked by it.
    #[error("roots cannot be used")]
    Roots(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The name to ask for is none.
    #[error("{0:?} is no server name")]
    Name(Arc<str>),
    /// A Secret is named and not here.
    #[error("certificate {0} has not arrived")]
    Missing(Arc<str>),
}

/// The one cryptographic provider, with the versions and suites the public speaks.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::Pem(what, error))?;
    if all.is_empty() { Err(TlsError::Empty(what)) } else { Ok(all) }
}

fn certified_key(secret: &Secret) -> Result<CertifiedKey, TlsError> {
    let chain = certificates("certificate", &secret.certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(&secret.key_pem)
        .map_err(|error| TlsError::Pem("private key", error))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Rustls)
}

fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in certificates("authority", pem)? {
        store.add(root).map_err(|error| TlsError::Roots(error.into()))?;
    }
    Ok(Arc::new(store))
}

#[cfg(test)]
pub(crate) mod tests;
