// SPDX-License-Identifier: Apache-2.0

//! TLS that ends at a listener.

use std::sync::Arc;

use http::HeaderValue;
use policy::identity::{Identity, TrustDomain};
use routing::backend::Secret;
use routing::listener::{ClientValidation, ClientValidationMode, ListenerTls, SecretName};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tunnel::credentials::Credential;
use tunnel::credentials::verify::identity_of;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsError, certified_key, provider, roots};

/// What an HTTPS listener offers, the better first.
const HTTP: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The configuration of a listener that ends TLS; `http` if it speaks HTTP inside.
///
/// # Errors
///
/// [`TlsError`]; the listener then refuses every handshake.
pub(crate) fn config<'a>(
    tls: &ListenerTls,
    secret: impl Fn(&SecretName) -> Option<&'a Secret>,
    http: bool,
) -> Result<Arc<ServerConfig>, TlsError> {
    let keys = tls.secrets.iter().map(|name| {
        let secret = secret(name).ok_or_else(|| TlsError::Missing(name.as_str().into()))?;
        certified_key(secret).map(Arc::new)
    });
    let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err(TlsError::Empty("listener"));
    }
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?;
    let builder = match &tls.client_validation {
        None => builder.with_no_client_auth(),
        Some(validation) => builder.with_client_cert_verifier(client_verifier(validation)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(keys)));
    if http {
        config.alpn_protocols = HTTP.iter().map(|name| name.to_vec()).collect();
    }
    Ok(Arc::new(config))
}

/// Chooses the first certificate that is for the name asked for, else the first.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().find(|key| is_for(key, &name)));
        named.or_else(|| self.0.first()).map(Arc::clone)
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let leaf = key.end_entity_cert();
    let Ok(leaf) = leaf.and_then(|leaf| {
        webpki::EndEntityCert::try_from(leaf)
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))
    }) else {
        return false;
    };
    leaf.verify_is_valid_for_subject_name(name).is_ok()
}

fn client_verifier(validation: &ClientValidation) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    match validation.mode {
        ClientValidationMode::AllowValidOnly => {
            let roots = roots(validation.ca_pem.as_bytes())?;
            let built = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            built.map_err(|error| TlsError::Roots(error.into()))
        }
        ClientValidationMode::AllowInsecureFallback => Ok(Arc::new(AnyOrNone(provider()))),
    }
}

/// The certificate of a client as a value of `x-forwarded-client-cert`.
///
/// Rule: Envoy's XFCC: hash of the certificate, subject, and the names it carries.
pub(crate) fn client_certificate(leaf: &CertificateDer<'_>) -> Option<HeaderValue> {
    let mut value = String::from("Hash=");
    for byte in Sha256::digest(leaf.as_ref()) {
        value.push_str(&format!("{byte:02x}"));
    }
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let subject = parsed.subject().to_string();
    value.push_str(&format!(";Subject=\"{}\"", subject.replace('\\', "\\\\").replace('"', "\\\"")));
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            if let GeneralName::URI(uri) = name {
                value.push_str(&format!(";URI={}", quoted(uri)));
            } else if let GeneralName::DNSName(name) = name {
                value.push_str(&format!(";DNS={}", quoted(name)));
            }
        }
    }
    HeaderValue::try_from(value).ok()
}

/// Whom a client has proven to be, by the certificates that it showed to a listener with
/// `validation`; none if they were not checked, or name no workload.
///
/// The authorities of a listener may be anybody's, so a name of one of the mesh's own
/// `trust_domains` counts only if the roots of the mesh stand behind it too.
///
/// Rule: `source.principal` at an Istio gateway is the SPIFFE name of the verified certificate.
pub(crate) fn client_identity(
    shown: &[CertificateDer<'_>],
    validation: Option<&ClientValidation>,
    trust_domains: &[TrustDomain],
    mesh: Option<&Credential>,
) -> Option<Identity> {
    match validation?.mode {
        ClientValidationMode::AllowValidOnly => {}
        ClientValidationMode::AllowInsecureFallback => return None,
    }
    let (leaf, intermediates) = shown.split_first()?;
    let Ok(identity) = identity_of(leaf) else { return None };
    let ours = trust_domains.iter().any(|own| own.as_str() == identity.trust_domain());
    (!ours || is_of_mesh(leaf, intermediates, mesh?.roots())).then_some(identity)
}

fn is_of_mesh(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: Vec<CertificateDer<'static>>,
) -> bool {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    let built = WebPkiClientVerifier::builder_with_provider(store.into(), provider()).build();
    built.is_ok_and(|mesh| mesh.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok())
}

/// Quotes a value that would end its element.
fn quoted(text: &str) -> String {
    if text.contains([',', ';', '=', '"']) {
        format!("\"{}\"", text.replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

/// Asks for a certificate and takes any, or none; its key is still proven.
#[derive(Debug)]
struct AnyOrNone(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyOrNone {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    signatures_by!(0);
}
