// SPDX-License-Identifier: Apache-2.0

//! How a gateway speaks to backends that want TLS, and the certificates it holds.
//!
//! Owns the values. Certificates stay PEM here: parsing and checking them is for the crate that
//! makes TLS sessions, and for the controller before it sends them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::discovery::ServiceKey;
use crate::listener::SecretName;

/// TLS towards a service.
///
/// Rule: `BackendTLSPolicy` in Gateway API `apis/v1/backendtlspolicy_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendTls {
    /// Which service and port.
    pub name: BackendTlsName,
    /// Name to send, and to check unless there are alternative names.
    pub sni: Arc<str>,
    /// Whom to trust.
    pub roots: Roots,
    /// Any of these must stand in the certificate; if none are given, `sni` must.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// Why the policy cannot be followed: every request to the service fails then.
    pub invalid: Option<Arc<str>>,
}

impl BackendTls {
    /// A policy that cannot be followed.
    #[must_use]
    pub fn refusing(name: BackendTlsName, reason: &str) -> Self {
        Self {
            name,
            sni: "".into(),
            roots: Roots::Pem("".into()),
            subject_alt_names: Vec::new(),
            invalid: Some(reason.into()),
        }
    }
}

/// Which service and port a policy is for: `namespace/hostname/port`, or `*` for all ports.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BackendTlsName {
    /// The service.
    pub service: ServiceKey,
    /// Its service port; none is all that have no policy of their own.
    pub port: Option<u16>,
}

/// Text that is no `namespace/hostname/port`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no port of a service")]
pub struct InvalidBackendTlsName(String);

impl FromStr for BackendTlsName {
    type Err = InvalidBackendTlsName;

    fn from_str(text: &str) -> Result<Self, InvalidBackendTlsName> {
        let invalid = || InvalidBackendTlsName(text.to_owned());
        let (service, port) = text.rsplit_once('/').ok_or_else(invalid)?;
        let port = match port {
            "*" => None,
            port => match port.parse() {
                Ok(0) | Err(_) => return Err(invalid()),
                Ok(port) => Some(port),
            },
        };
        Ok(Self { service: service.parse().map_err(|_| invalid())?, port })
    }
}

impl fmt::Display for BackendTlsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}/{port}", self.service),
            None => write!(f, "{}/*", self.service),
        }
    }
}

/// Whose certificates are trusted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Roots {
    /// Those of the operating system.
    System,
    /// These, PEM.
    Pem(Arc<str>),
}

/// A name that a certificate carries.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SubjectAltName {
    /// A hostname; may begin with `*.`.
    Hostname(Arc<str>),
    /// A URI.
    Uri(Arc<str>),
}

/// A certificate with its key.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret {
    /// Which Secret it came from.
    pub name: SecretName,
    /// Certificate, then its issuers, PEM.
    pub certificate_pem: Arc<[u8]>,
    /// Private key, PEM; never printed.
    pub key_pem: Arc<[u8]>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written() {
        for text in ["ns/a.ns.svc.cluster.local/443", "ns/a.b/*"] {
            assert_eq!(text.parse::<BackendTlsName>().unwrap().to_string(), text);
        }
        for bad in ["", "ns/a", "ns/a/0", "ns/a/x", "ns/a/65536", "ns/a/b/1"] {
            assert!(bad.parse::<BackendTlsName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_never_printed() {
        let name = "ns/tls".parse().unwrap();
        let secret = Secret {
            name,
            certificate_pem: b"CERT".as_slice().into(),
            key_pem: b"KEYBYTES".as_slice().into(),
        };
        assert!(!format!("{secret:?}").contains("75"), "no byte of the key");
    }
}
