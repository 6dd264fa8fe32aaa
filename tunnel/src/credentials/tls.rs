// SPDX-License-Identifier: Apache-2.0

//! TLS of the mesh: version, suites, key exchange, both directions.
//!
//! Rule: TLS 1.3 only, AES-GCM, ALPN `h2`, no resumption, client certificate
//! required (`ztunnel` `src/tls`).

use std::sync::{Arc, LazyLock};

use policy::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use routing::l4::Expected;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use super::CredentialError;
use super::verify::{ClientVerifier, Peers, ServerVerifier};

/// What both sides speak inside TLS.
const ALPN: &[u8] = b"h2";

/// A new key and the request for its certificate.
pub(super) struct Material {
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) csr: String,
}

impl Material {
    /// ECDSA P-256; the request holds the SPIFFE name and nothing else.
    pub(super) fn new(identity: &Identity) -> Result<Self, CredentialError> {
        let failed = |error: rcgen::Error| CredentialError::Key(error.to_string().into());
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.as_str().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let request = params.serialize_request(&key).map_err(failed)?;
        let csr = request.pem().map_err(failed)?;
        Ok(Self { key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), csr })
    }
}

/// The one cryptographic provider, cut down to what the mesh speaks.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let kx_groups = vec![
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::X25519MLKEM768,
        ];
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ],
            kx_groups,
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

pub(super) fn server(
    identity: &Identity,
    key: Arc<CertifiedKey>,
    peers: Peers,
) -> Result<Arc<ServerConfig>, CredentialError> {
    let verifier = ClientVerifier::new(identity, peers, provider()).map_err(refused)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub(super) fn client(
    key: Arc<CertifiedKey>,
    peers: Peers,
    expected: Expected,
) -> Result<Arc<ClientConfig>, CredentialError> {
    let verifier = ServerVerifier::new(peers, expected, provider());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn refused(error: impl ToString) -> CredentialError {
    CredentialError::Key(error.to_string().into())
}
