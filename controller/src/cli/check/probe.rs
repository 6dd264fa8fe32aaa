// SPDX-License-Identifier: Apache-2.0

//! Asks parts of the mesh in a cluster for proof that they work.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_rustls::TlsConnector;

use super::after::Certificate;
use crate::cli::cluster::Asked;
use crate::cli::format::{items, text};

/// Where proxies call the controller.
const CONTROL_PORT: u16 = 15012;
/// Longest time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The end of the certificate by which a controller proves, under `root`, that it is that of
/// `namespace`.
///
/// # Errors
///
/// Why it does not, for people.
pub(super) async fn controller(
    asked: &Asked,
    root: Option<&str>,
    namespace: &str,
) -> Result<OffsetDateTime, String> {
    let root = root.ok_or("there is no ConfigMap istio-ca-root-cert to compare with")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(root.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("root: {error}"))?;
        roots.add(certificate).map_err(|error| format!("root: {error}"))?;
    }
    let mut config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(format!("istiod.{namespace}.svc"))
        .map_err(|error| format!("namespace {namespace}: {error}"))?;
    let handshake = async {
        let mut forwarded = asked.forwarded(CONTROL_PORT).await.map_err(|why| why.message)?;
        let stream = forwarded.take_stream(CONTROL_PORT).ok_or("its port was not forwarded")?;
        let connector = TlsConnector::from(Arc::new(config));
        let tls = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        chain.first().ok_or_else(|| "it shows no certificate".to_owned()).and_then(|der| end(der))
    };
    let waited = format!("no handshake within {} s", HANDSHAKE.as_secs());
    tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| waited)?
}

fn end(der: &[u8]) -> Result<OffsetDateTime, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|error| error.to_string())?;
    Ok(certificate.validity().not_after.to_datetime())
}

/// The end of the last of the certificates of a PEM text: while one follows another both are there.
///
/// # Errors
///
/// Why it cannot be read, for people.
pub(super) fn end_of_pem(pem: &str) -> Result<OffsetDateTime, String> {
    let mut last = None;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        last = last.max(Some(end(&certificate.map_err(|error| error.to_string())?)?));
    }
    last.ok_or_else(|| "it holds no certificate".to_owned())
}

/// The certificates that a tunnel holds.
///
/// # Errors
///
/// Why it cannot be asked, for people.
pub(super) async fn tunnel(asked: &Asked) -> Result<Vec<Certificate>, String> {
    let answer = asked.ask("/config_dump").await.and_then(|answer| answer.json());
    let answer = answer.map_err(|failure| failure.message)?;
    Ok(items(&answer, "/certificates").map(certificate).collect())
}

fn certificate(told: &Value) -> Certificate {
    let ends = OffsetDateTime::parse(&text(told, "/expirationTime"), &Rfc3339);
    Certificate { identity: text(told, "/identity"), state: text(told, "/state"), ends: ends.ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::root;
    use serde_json::json;

    #[test]
    fn the_end_of_a_root_is_read_and_what_is_none_is_said() {
        let (certificate, _key) = root::make("cluster.local").unwrap();
        let days = end_of_pem(&certificate).unwrap() - OffsetDateTime::now_utc();
        let days = days.whole_days();
        assert!((3649..=3650).contains(&days), "{days} days");
        assert!(end_of_pem("no certificate").is_err());
        assert!(
            end_of_pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err()
        );
    }

    #[test]
    fn a_tunnels_answer_tells_state_and_end_of_each_certificate() {
        let told = json!({"identity": "spiffe://x/ns/n/sa/s", "state": "Available",
            "expirationTime": "2026-11-30T01:00:00Z"});
        let read = certificate(&told);
        assert_eq!(
            (read.identity.as_str(), read.state.as_str()),
            ("spiffe://x/ns/n/sa/s", "Available")
        );
        assert_eq!(read.ends.unwrap().unix_timestamp(), 1_796_000_400);
        assert_eq!(certificate(&json!({"state": "Initializing"})).ends, None);
    }
}
