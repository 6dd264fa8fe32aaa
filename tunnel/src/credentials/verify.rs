// SPDX-License-Identifier: Apache-2.0

//! Who a peer's certificate says it is, and whether to believe it.
//!
//! Owns: reading the SPIFFE name and the two verifiers. Keeps: a certificate
//! without exactly the shape of a workload's name is refused; so is a client
//! of another trust domain, and a server that is none of those expected.

use std::sync::Arc;

use policy::identity::{Identity, InvalidIdentity};
use routing::l4::Expected;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::extensions::GeneralName;

use super::revocation::{Revocations, Role};
use super::trust::Trust;

/// Why a peer certificate does not name a workload that we take.
///
/// Every variant ends the handshake.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The certificate cannot be parsed.
    #[error("certificate cannot be parsed")]
    Unreadable,
    /// It carries no URI name.
    #[error("certificate carries no URI name")]
    NoName,
    /// Its URI name is not one of a workload.
    #[error("certificate names no workload")]
    Name(#[source] InvalidIdentity),
    /// A client of another trust domain.
    #[error("peer {0} is of another trust domain")]
    TrustDomain(Identity),
    /// A server that is not whom we wanted.
    #[error("peer is {0}, which is not expected here")]
    Unexpected(Identity),
}

impl From<CertificateError> for Error {
    fn from(error: CertificateError) -> Self {
        TlsCertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// The workload that a certificate names: its first URI name.
///
/// Says nothing about whether the certificate is to be believed.
///
/// # Errors
///
/// When it names none.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, CertificateError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| CertificateError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| CertificateError::Unreadable)?;
    let uri = names.and_then(|names| {
        names
            .value
            .general_names
            .iter()
            .find_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
    });
    uri.ok_or(CertificateError::NoName)?.parse().map_err(CertificateError::Name)
}

/// What any peer is held against.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    /// Roots that came with our certificate.
    pub(super) own: Arc<[CertificateDer<'static>]>,
    /// The same, for verifying.
    pub(super) store: Arc<RootCertStore>,
    /// Roots that were told since.
    pub(super) trust: Arc<Trust>,
    /// What their issuers have withdrawn.
    pub(super) revocations: Arc<Revocations>,
}

impl Peers {
    /// Every root that is trusted now.
    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        let beside = self.trust.beside(&self.own, &self.store);
        beside.unwrap_or_else(|| Arc::clone(&self.store))
    }
}

/// Checks clients: chain to the mesh roots, a workload's name, our trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    /// For the roots that came with our certificate.
    chain: Arc<dyn ClientCertVerifier>,
    peers: Peers,
    trust_domain: Box<str>,
    provider: Arc<CryptoProvider>,
}

impl ClientVerifier {
    pub(super) fn new(
        own: &Identity,
        peers: Peers,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let chain = of_roots(Arc::clone(&peers.store), Arc::clone(&provider))?;
        Ok(Self { chain, peers, trust_domain: own.trust_domain().into(), provider })
    }

    /// Checks the chain against `roots`: those of `self.chain`, unless more were told.
    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        roots: &Arc<RootCertStore>,
    ) -> Result<ClientCertVerified, Error> {
        if Arc::ptr_eq(roots, &self.peers.store) {
            return self.chain.verify_client_cert(leaf, intermediates, now);
        }
        let chain = of_roots(Arc::clone(roots), Arc::clone(&self.provider))
            .map_err(|error| Error::General(error.to_string()))?;
        chain.verify_client_cert(leaf, intermediates, now)
    }
}

fn of_roots(
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    WebPkiClientVerifier::builder_with_provider(roots, provider).build()
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let roots = self.peers.roots();
        let verified = self.verify_chain(leaf, intermediates, now, &roots)?;
        self.peers.revocations.admit(Role::Client, (leaf, intermediates), &roots)?;
        let identity = identity_of(leaf)?;
        if identity.trust_domain() != &*self.trust_domain {
            return Err(CertificateError::TrustDomain(identity).into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks servers: chain to the mesh roots and one of the expected identities.
///
/// The name that TLS was told is not looked at: peers are found by address.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    peers: Peers,
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    pub(super) fn new(peers: Peers, expected: Expected, provider: Arc<CryptoProvider>) -> Self {
        Self { peers, expected, provider }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let roots = self.peers.roots();
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        let identity = identity_of(leaf)?;
        if !self.expected.admits(&identity) {
            return Err(CertificateError::Unexpected(identity).into());
        }
        self.peers.revocations.admit(Role::Server, (leaf, intermediates), &roots)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
