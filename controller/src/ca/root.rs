// SPDX-License-Identifier: Apache-2.0

//! The root of the mesh: ECDSA P-256, kept in two files or in a Secret.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::files;

/// Certificate of the root.
pub const CERT_FILE: &str = "root-cert.pem";
/// Key of the root.
pub const KEY_FILE: &str = "root-key.pem";
/// Life of a root that is made here.
const LIFE: Duration = Duration::days(3650);
/// How far the clocks of two machines may differ.
pub(super) const SKEW: Duration = Duration::minutes(2);

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file cannot be read or written.
    #[error("root certificate or key cannot be read or written")]
    File(#[source] std::io::Error),
    /// There is no certificate and key, or none that can sign.
    #[error("root certificate or key is not usable")]
    Unusable(#[source] rcgen::Error),
    /// The Secret cannot be read or made.
    #[error("Secret with the root cannot be read or made")]
    Secret(#[source] Box<kube::Error>),
    /// The Secret is there and lacks a part.
    #[error("Secret with the root has no {0:?}")]
    Lacks(&'static str),
}

/// The root that signs.
pub struct Root {
    /// Certificate, PEM.
    pub certificate: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}

impl Root {
    /// The root in `directory`, made if it is not there.
    ///
    /// # Errors
    ///
    /// See [`RootError`].
    pub fn load_or_make(directory: &Path, trust_domain: &str) -> Result<Self, RootError> {
        let (cert_path, key_path) = (directory.join(CERT_FILE), directory.join(KEY_FILE));
        if !cert_path.exists() {
            // The key goes first: a key alone can still get its certificate at the next start.
            let fresh = KeyPair::generate().map_err(RootError::Unusable)?;
            files::create(&key_path, fresh.serialize_pem().as_bytes(), true)
                .map_err(RootError::File)?;
            let key = read_key(&key_path)?;
            let certificate =
                params(trust_domain).self_signed(&key).map_err(RootError::Unusable)?;
            files::create(&cert_path, certificate.pem().as_bytes(), false)
                .map_err(RootError::File)?;
        }
        let key = read_key(&key_path)?;
        let certificate = std::fs::read_to_string(&cert_path).map_err(RootError::File)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(RootError::Unusable)?;
        Ok(Self { certificate, issuer })
    }

    /// The root of a certificate and its key, both PEM.
    ///
    /// # Errors
    ///
    /// [`RootError::Unusable`].
    pub fn read(certificate: &str, key: &str) -> Result<Self, RootError> {
        let key = KeyPair::from_pem(key).map_err(RootError::Unusable)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(RootError::Unusable)?;
        Ok(Self { certificate: certificate.to_owned(), issuer })
    }
}

/// Certificate and key of a new root, both PEM.
///
/// # Errors
///
/// [`RootError::Unusable`].
pub(super) fn make(trust_domain: &str) -> Result<(String, String), RootError> {
    let key = KeyPair::generate().map_err(RootError::Unusable)?;
    let certificate = params(trust_domain).self_signed(&key).map_err(RootError::Unusable)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn read_key(path: &Path) -> Result<KeyPair, RootError> {
    let pem = std::fs::read_to_string(path).map_err(RootError::File)?;
    KeyPair::from_pem(&pem).map_err(RootError::Unusable)
}

fn params(trust_domain: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + LIFE;
    params
}
