// SPDX-License-Identifier: Apache-2.0

//! Authorities for tests: the mesh's, which signs requests, and those of the public, which
//! make certificates for hostnames. All of one kind share name and serial number, as real
//! test authorities do, so nothing may tell them apart by those.

#![expect(clippy::missing_errors_doc, reason = "a test fails with whatever failed")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use policy::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use routing::backend::Secret;
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ConfigBuilder, DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;
use tunnel::credentials::{Authority, AuthorityError, Credential, Credentials};

/// What certificates of the mesh are for.
const USAGES: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

/// How long the mesh's certificates last: from their signing back, and on.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Part of the life that is over when it is signed.
    pub past: std::time::Duration,
    /// Part that is left.
    pub left: std::time::Duration,
}

impl Default for Life {
    fn default() -> Self {
        let minute = std::time::Duration::from_secs(60);
        Self { past: minute, left: minute * 60 }
    }
}

/// A root, and what it signs.
pub struct Issuer {
    root: CertifiedIssuer<'static, KeyPair>,
    life: Mutex<Life>,
    signed: Mutex<BTreeMap<String, usize>>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuer")
    }
}

impl Issuer {
    /// A new root.
    pub fn new() -> anyhow::Result<Arc<Self>> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serial_number = Some(2024.into());
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Arc::new(Self { root, life: Mutex::default(), signed: Mutex::default() }))
    }

    /// How long certificates of the mesh last that are signed from now on.
    pub fn set_life(&self, life: Life) {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = life;
    }

    /// Certificates of the mesh that were signed for an account of this name.
    pub fn signed(&self, account: &str) -> usize {
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        signed.get(account).copied().unwrap_or_default()
    }

    /// The root in PEM.
    pub fn pem(&self) -> String {
        self.root.pem()
    }

    /// A certificate for these DNS names, under the name `ns/name`.
    pub fn secret(&self, name: &str, dns: &[&str]) -> anyhow::Result<Secret> {
        let names: Vec<String> = dns.iter().map(|&name| name.to_owned()).collect();
        self.certify(name, CertificateParams::new(names)?)
    }

    /// A certificate for one URI, under the name `ns/name`.
    pub fn secret_of(&self, name: &str, uri: &str) -> anyhow::Result<Secret> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        self.certify(name, params)
    }

    fn certify(&self, name: &str, params: CertificateParams) -> anyhow::Result<Secret> {
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.root)?;
        Ok(Secret {
            name: name.parse()?,
            certificate_pem: leaf.pem().into_bytes().into(),
            key_pem: key.serialize_pem().into_bytes().into(),
        })
    }

    /// A TLS server with the certificate of `secret`, offering `alpn`.
    pub fn server(secret: &Secret, alpn: &[&[u8]]) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let chain = CertificateDer::pem_slice_iter(&secret.certificate_pem);
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&secret.key_pem)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A TLS client that trusts this root, offers `alpn` and shows `own` if asked.
    pub fn client(
        &self,
        alpn: &[&[u8]],
        own: Option<&Secret>,
    ) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        finish_client(builder, alpn, own)
    }

    /// A certificate as a workload's, but with the URI name `uri`, or none, and for the time
    /// between two moments, counted from now.
    pub fn leaf(
        &self,
        uri: Option<&str>,
        from: time::Duration,
        to: time::Duration,
    ) -> anyhow::Result<Secret> {
        let mut params = CertificateParams::default();
        let names = uri.into_iter().map(|uri| anyhow::Ok(SanType::URI(uri.try_into()?)));
        params.subject_alt_names = names.collect::<anyhow::Result<_>>()?;
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + from, now + to);
        params.extended_key_usages = USAGES.to_vec();
        self.certify("ns/leaf", params)
    }

    /// A mesh certificate for `identity`, by the way that proxies take.
    pub async fn credential(
        self: &Arc<Self>,
        identity: &Identity,
    ) -> anyhow::Result<Arc<Credential>> {
        let authority: Arc<dyn Authority> = Arc::clone(self) as _;
        let credentials = Credentials::new(authority, tokio::runtime::Handle::current());
        let held = credentials.hold(identity);
        Ok(held.wait(std::time::Duration::from_secs(5)).await?)
    }

    fn sign_now(&self, identity: &Identity, csr: &str) -> anyhow::Result<Vec<String>> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)?;
        request.params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
        let (life, now) =
            (*self.life.lock().unwrap_or_else(PoisonError::into_inner), OffsetDateTime::now_utc());
        (request.params.not_before, request.params.not_after) = (now - life.past, now + life.left);
        request.params.extended_key_usages = USAGES.to_vec();
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        *signed.entry(identity.service_account().to_owned()).or_default() += 1;
        Ok(vec![request.signed_by(&self.root)?.pem(), self.pem()])
    }
}

impl Authority for Issuer {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, AuthorityError>> {
        let signed = self.sign_now(identity, csr);
        let signed = signed.map_err(|error| AuthorityError(error.to_string().into()));
        Box::pin(std::future::ready(signed))
    }
}

/// A TLS client that takes any server, offers `alpn` and shows `own` if asked: what the
/// server says to it is the server's own choice.
pub fn trusting(alpn: &[&[u8]], own: Option<&Secret>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(Arc::clone(&provider)));
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    finish_client(builder, alpn, own)
}

fn finish_client(
    builder: ConfigBuilder<rustls::ClientConfig, WantsClientCert>,
    alpn: &[&[u8]],
    own: Option<&Secret>,
) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = CertificateDer::pem_slice_iter(&own.certificate_pem);
            let chain = chain.collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&own.key_pem)?)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Believes every server.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the mesh speaks TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
