// SPDX-License-Identifier: Apache-2.0

//! Signing: leaf certificates of workloads, and the server's own.
//!
//! Of a request only the public key is taken; names, usages and life are set here.

use std::net::IpAddr;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::authority::Authority;
use super::root::SKEW;
use policy::identity::Identity;

/// Shortest life that is granted.
pub const MIN_LIFE: std::time::Duration = std::time::Duration::from_secs(60);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is no PEM request, or its signature is wrong.
    #[error("certificate request cannot be read")]
    Request(#[source] rcgen::Error),
    /// The identity does not fit into a certificate.
    #[error("identity cannot stand in a certificate")]
    Identity(#[source] rcgen::Error),
    /// Signing failed.
    #[error("signing failed")]
    Sign(#[source] rcgen::Error),
    /// A certificate or key that was just made cannot be read.
    #[error("certificate or key cannot be read")]
    Der(#[source] rustls::pki_types::pem::Error),
}

/// A signed leaf.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Leaf, intermediates, and all roots in the last element, PEM.
    pub chain: Vec<String>,
    /// Serial number, hex.
    pub serial: String,
    /// End of its life.
    pub not_after: OffsetDateTime,
}

/// Signs the key of `request` as `identity` for `life`.
///
/// # Errors
///
/// See [`SignError`].
pub fn sign(
    authority: &Authority,
    request: &str,
    identity: &Identity,
    life: std::time::Duration,
) -> Result<Signed, SignError> {
    let mut request =
        CertificateSigningRequestParams::from_pem(request).map_err(SignError::Request)?;
    let uri = identity.as_str().try_into().map_err(SignError::Identity)?;
    let mut params = leaf(vec![SanType::URI(uri)], life);
    params.not_after = params.not_after.min(authority.not_after);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let serial: [u8; 16] = rand::random();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let not_after = params.not_after;
    request.params = params;
    let certificate = request.signed_by(&authority.issuer).map_err(SignError::Sign)?;
    let mut chain = vec![certificate.pem()];
    chain.extend(authority.intermediates.iter().cloned());
    chain.push(authority.bundle());
    Ok(Signed {
        chain,
        serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        not_after,
    })
}

/// A leaf that nobody gets: it shows whether what `issuer` signs is believed.
///
/// # Errors
///
/// [`SignError::Sign`].
pub(super) fn probe(
    issuer: &Issuer<'static, KeyPair>,
) -> Result<CertificateDer<'static>, SignError> {
    let key = KeyPair::generate().map_err(SignError::Sign)?;
    let uri = "spiffe://probe/ns/probe/sa/probe".try_into().map_err(SignError::Identity)?;
    let mut params = leaf(vec![SanType::URI(uri)], MIN_LIFE);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, issuer).map_err(SignError::Sign)?;
    Ok(certificate.der().clone())
}

/// A certificate and key for the server itself.
///
/// # Errors
///
/// See [`SignError`].
pub fn server(
    authority: &Authority,
    names: &[String],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SignError> {
    let mut sans = Vec::new();
    for name in names {
        sans.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(SignError::Identity)?),
        });
    }
    let mut params = leaf(sans, std::time::Duration::from_secs(3600 * 24 * 90));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(SignError::Sign)?;
    params.not_after = params.not_after.min(authority.not_after);
    let certificate = params.signed_by(&key, &authority.issuer).map_err(SignError::Sign)?;
    let mut chain = vec![certificate.der().clone()];
    for above in &authority.intermediates {
        chain.push(CertificateDer::from_pem_slice(above.as_bytes()).map_err(SignError::Der)?);
    }
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((chain, key))
}

fn leaf(sans: Vec<SanType>, life: std::time::Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::try_from(life).unwrap_or(Duration::DAY);
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::root;
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

    #[test]
    fn only_the_key_of_a_request_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let root = root::load_or_make(dir.path(), "cluster.local").unwrap();
        let again = root::load_or_make(dir.path(), "cluster.local").unwrap();
        assert_eq!(root.bundle(), again.bundle(), "the root is kept");

        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::new(vec!["evil.example".into()]).unwrap();
        asked.is_ca = IsCa::NoCa;
        let csr = asked.serialize_request(&key).unwrap().pem().unwrap();
        let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let life = std::time::Duration::from_secs(600);
        let signed = sign(&root, &csr, &identity, life).unwrap();
        assert_eq!(signed.chain.len(), 2);

        let der = CertificateDer::from_pem_slice(signed.chain[0].as_bytes()).unwrap();
        let root_der = CertificateDer::from_pem_slice(signed.chain[1].as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let (_, ca) = X509Certificate::from_der(&root_der).unwrap();
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(san.value.general_names, [GeneralName::URI(identity.as_str())]);
        assert!(san.critical, "no subject, so the name must be understood");
        assert!(!leaf.is_ca());
        assert_eq!(leaf.issuer(), ca.subject());
        assert!(leaf.validity().time_to_expiration().unwrap().whole_seconds() <= 600);
        assert!(sign(&root, "no request", &identity, life).is_err());
    }
}
