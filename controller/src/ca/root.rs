// SPDX-License-Identifier: Apache-2.0

//! The mesh's own root: ECDSA P-256, made where there is none, and kept in two files where
//! there is no cluster.
//!
//! Owns: how a root is made, and the files of local mode: `root-cert.pem` holds all roots to
//! trust, `root-key.pem` the key of the one that signs. A root is rotated by adding the next
//! one, exchanging the key, and taking the old one away.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authority::{self, Authority, AuthorityError, InForce, Texts};
use super::files;

/// All roots to trust.
pub const CERT_FILE: &str = "root-cert.pem";
/// Key of the root that signs.
pub const KEY_FILE: &str = "root-key.pem";
/// Life of a root that is made here.
const LIFE: Duration = Duration::days(3650);
/// How far the clocks of two machines may differ.
pub(super) const SKEW: Duration = Duration::minutes(2);
/// Time between looks at the files.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file cannot be read or written.
    #[error("root certificate or key cannot be read or written")]
    File(#[source] std::io::Error),
    /// None can be made.
    #[error("root certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// What is there cannot be used.
    #[error("certificate authority of {0} cannot be used")]
    Unusable(String, #[source] AuthorityError),
    /// The Secret cannot be read or made.
    #[error("Secret with the certificate authority cannot be read or made")]
    Secret(#[source] Box<kube::Error>),
}

/// The authority of the files in `directory`, made if they are not there.
///
/// # Errors
///
/// See [`RootError`].
pub fn load_or_make(directory: &Path, trust_domain: &str) -> Result<Authority, RootError> {
    let (cert_path, key_path) = (directory.join(CERT_FILE), directory.join(KEY_FILE));
    if !cert_path.exists() {
        // The key goes first: a key alone can still get its certificate at the next start.
        let fresh = KeyPair::generate().map_err(RootError::Make)?;
        files::create(&key_path, fresh.serialize_pem().as_bytes(), true)
            .map_err(RootError::File)?;
        let key = std::fs::read_to_string(&key_path).map_err(RootError::File)?;
        let key = KeyPair::from_pem(&key).map_err(RootError::Make)?;
        let certificate = params(trust_domain).self_signed(&key).map_err(RootError::Make)?;
        files::create(&cert_path, certificate.pem().as_bytes(), false).map_err(RootError::File)?;
    }
    let texts = read(directory).map_err(RootError::File)?;
    Authority::read(&texts).map_err(|error| RootError::Unusable(texts.origin, error))
}

/// Follows the files in `directory`, for as long as the future lives.
pub async fn follow(directory: &Path, in_force: Arc<InForce>) {
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK).await;
        // Files that are away for a moment are being replaced.
        let Ok(texts) = read(directory) else { continue };
        if seen.as_ref() != Some(&texts) {
            in_force.offer(&texts);
            seen = Some(texts);
        }
    }
}

/// The texts of the files: of the roots, the one that the key is of signs.
///
/// # Errors
///
/// Those of the file system.
pub fn read(directory: &Path) -> std::io::Result<Texts> {
    let roots = std::fs::read_to_string(directory.join(CERT_FILE))?;
    let key = std::fs::read_to_string(directory.join(KEY_FILE))?;
    let public = KeyPair::from_pem(&key).map(|key| key.subject_public_key_info());
    let signs = |der: &CertificateDer<'_>| {
        let parsed = X509Certificate::from_der(der).ok();
        parsed.is_some_and(|(_, parsed)| public.as_deref() == Ok(parsed.public_key().raw))
    };
    let all = CertificateDer::pem_slice_iter(roots.as_bytes()).flatten();
    let certificate = all.filter(signs).map(|der| authority::pem(&der)).next();
    let origin = directory.display().to_string();
    // Without one of its own, the key is found not to be that of the first.
    let certificate = certificate.unwrap_or_else(|| roots.clone());
    Ok(Texts { origin, certificate, key, chain: String::new(), roots })
}

/// Certificate and key of a new root, both PEM.
///
/// # Errors
///
/// [`RootError::Make`].
pub fn make(trust_domain: &str) -> Result<(String, String), RootError> {
    let key = KeyPair::generate().map_err(RootError::Make)?;
    let certificate = params(trust_domain).self_signed(&key).map_err(RootError::Make)?;
    Ok((certificate.pem(), key.serialize_pem()))
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
