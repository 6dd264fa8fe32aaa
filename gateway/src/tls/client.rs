// SPDX-License-Identifier: Apache-2.0

//! TLS towards a backend, as its BackendTLSPolicy asks.
//!
//! Rule: `BackendTLSPolicyValidation` in Gateway API
//! `apis/v1/backendtlspolicy_types.go`: the name is sent, and checked unless
//! there are alternative names, any of which must stand in the certificate.

use std::fmt::Write as _;
use std::sync::Arc;

use routing::backend::{BackendTls, Roots, Secret, SubjectAltName};
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsError, certified_key, provider, roots};

/// Where operating systems keep the roots they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// TLS towards one backend, ready for handshakes.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// For HTTP/1.1 and HTTP/2, as the backend chooses.
    pub(crate) any: Arc<ClientConfig>,
    /// For HTTP/2 only.
    pub(crate) http2: Arc<ClientConfig>,
    /// For bytes that are not HTTP of ours.
    pub(crate) raw: Arc<ClientConfig>,
    /// The name to ask for.
    pub(crate) name: ServerName<'static>,
    /// A text that differs wherever two of these differ; part of pool keys.
    pub(crate) word: Arc<str>,
}

/// Makes the configuration for `policy`; `own` is our certificate, if backends are shown one.
///
/// # Errors
///
/// [`TlsError`]; nothing may be sent to the backend then.
pub(crate) fn config(policy: &BackendTls, own: Option<&Secret>) -> Result<Client, TlsError> {
    let name = ServerName::try_from(policy.sni.to_string())
        .map_err(|_| TlsError::Name(Arc::clone(&policy.sni)))?;
    let roots = match &policy.roots {
        Roots::Pem(pem) => roots(pem.as_bytes())?,
        Roots::System => system_roots()?,
    };
    let names = policy.subject_alt_names.clone();
    let verifier = Arc::new(Verifier { roots, names, provider: provider() });
    let make = |alpn: &[&[u8]]| -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rustls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(secret) => {
                let key = Arc::new(certified_key(secret)?);
                builder
                    .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    };
    Ok(Client {
        any: make(&[b"h2", b"http/1.1"])?,
        http2: make(&[b"h2"])?,
        raw: make(&[])?,
        name,
        word: word(policy, own),
    })
}

/// Everything that makes one policy differ from another.
fn word(policy: &BackendTls, own: Option<&Secret>) -> Arc<str> {
    let mut word = format!("{:?}", (&policy.sni, &policy.roots, &policy.subject_alt_names));
    if let Some(own) = own {
        // Writing to a string does not fail.
        let _ok = write!(word, "{}", own.name.as_str());
        word.push_str(&String::from_utf8_lossy(&own.certificate_pem));
    }
    word.into()
}

fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let pem = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok());
    let mut store = RootCertStore::empty();
    // Systems carry roots that are out of use; those that do not parse are left out.
    let all = super::certificates("system roots", &pem.unwrap_or_default())?;
    store.add_parsable_certificates(all);
    Ok(Arc::new(store))
}

/// Checks the chain, then the names.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    /// Any of these; if none, the name that was asked for.
    names: Vec<SubjectAltName>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn is_named(&self, leaf: &CertificateDer<'_>, name: &SubjectAltName) -> bool {
        match name {
            SubjectAltName::Hostname(host) => {
                let (Ok(parsed), Ok(host)) =
                    (ParsedCertificate::try_from(leaf), ServerName::try_from(&**host))
                else {
                    return false;
                };
                verify_server_name(&parsed, &host).is_ok()
            }
            SubjectAltName::Uri(uri) => has_uri(leaf, uri),
        }
    }
}

fn has_uri(leaf: &CertificateDer<'_>, wanted: &str) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return false };
    let mut names = names.value.general_names.iter();
    names.any(|name| matches!(name, GeneralName::URI(uri) if *uri == wanted))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        if self.names.is_empty() {
            verify_server_name(&parsed, asked)?;
        } else if !self.names.iter().any(|name| self.is_named(leaf, name)) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_by!(provider);
}
