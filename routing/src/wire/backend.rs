// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.BackendTls` and `waymark.v1.Secret`, both ways.

use super::error::WireError;
use super::gateway::{optional, value};
use super::messages::waymark::v1 as wire;
use crate::backend::{BackendTls, Roots, Secret, SubjectAltName};

/// Reads a message.
///
/// A policy that cannot be followed may lack all but its name and the reason.
///
/// # Errors
///
/// See [`WireError`]; nothing is taken from a message that is wrong in part.
pub fn read_tls(message: &wire::BackendTls) -> Result<BackendTls, WireError> {
    let invalid = optional(&message.invalid, |reason| Ok(reason.into()))?;
    let roots = match (message.system_roots, message.ca_pem.as_str()) {
        (true, "") => Roots::System,
        (false, "") if invalid.is_none() => return Err(WireError::Missing("ca_pem")),
        (false, pem) => Roots::Pem(pem.into()),
        (true, _) => {
            return Err(WireError::Value("ca_pem", "beside the system's roots".to_owned()));
        }
    };
    if message.sni.is_empty() && invalid.is_none() {
        return Err(WireError::Missing("sni"));
    }
    let names = message.subject_alt_names.iter().map(|name| {
        Ok(match name.kind.as_ref().ok_or(WireError::Missing("subject_alt_names.kind"))? {
            wire::subject_alt_name::Kind::Hostname(host) => {
                SubjectAltName::Hostname(host.as_str().into())
            }
            wire::subject_alt_name::Kind::Uri(uri) => SubjectAltName::Uri(uri.as_str().into()),
        })
    });
    Ok(BackendTls {
        name: value("name", &message.name)?,
        sni: message.sni.as_str().into(),
        roots,
        subject_alt_names: names.collect::<Result<_, WireError>>()?,
        invalid,
    })
}

/// Writes a message.
#[must_use]
pub fn write_tls(tls: &BackendTls) -> wire::BackendTls {
    let (system_roots, ca_pem) = match &tls.roots {
        Roots::System => (true, String::new()),
        Roots::Pem(pem) => (false, pem.to_string()),
    };
    let names = tls.subject_alt_names.iter().map(|name| {
        let kind = match name {
            SubjectAltName::Hostname(host) => {
                wire::subject_alt_name::Kind::Hostname(host.to_string())
            }
            SubjectAltName::Uri(uri) => wire::subject_alt_name::Kind::Uri(uri.to_string()),
        };
        wire::SubjectAltName { kind: Some(kind) }
    });
    wire::BackendTls {
        name: tls.name.to_string(),
        sni: tls.sni.to_string(),
        system_roots,
        ca_pem,
        subject_alt_names: names.collect(),
        invalid: tls.invalid.as_ref().map_or_else(String::new, ToString::to_string),
    }
}

/// Reads a message.
///
/// # Errors
///
/// See [`WireError`]; nothing is taken from a message that is wrong in part.
pub fn read_secret(message: &wire::Secret) -> Result<Secret, WireError> {
    if message.certificate_pem.is_empty() {
        return Err(WireError::Missing("certificate_pem"));
    }
    if message.key_pem.is_empty() {
        return Err(WireError::Missing("key_pem"));
    }
    Ok(Secret {
        name: value("name", &message.name)?,
        certificate_pem: message.certificate_pem.as_slice().into(),
        key_pem: message.key_pem.as_slice().into(),
    })
}

/// Writes a message.
#[must_use]
pub fn write_secret(secret: &Secret) -> wire::Secret {
    wire::Secret {
        name: secret.name.to_string(),
        certificate_pem: secret.certificate_pem.to_vec(),
        key_pem: secret.key_pem.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> BackendTls {
        BackendTls {
            name: "ns/svc.ns.svc.cluster.local/443".parse().unwrap(),
            sni: "abc.example.com".into(),
            roots: Roots::Pem("-----BEGIN".into()),
            subject_alt_names: vec![
                SubjectAltName::Hostname("a.example.com".into()),
                SubjectAltName::Uri("spiffe://td/ns/a/sa/b".into()),
            ],
            invalid: None,
        }
    }

    #[test]
    fn policies_read_back_as_written() {
        let whole = BackendTls {
            name: "ns/svc/*".parse().unwrap(),
            roots: Roots::System,
            subject_alt_names: Vec::new(),
            ..tls()
        };
        let broken = BackendTls {
            roots: Roots::Pem("".into()),
            sni: "".into(),
            invalid: Some("no CA".into()),
            ..tls()
        };
        for policy in [tls(), whole, broken] {
            assert_eq!(read_tls(&write_tls(&policy)), Ok(policy));
        }
    }

    #[test]
    fn a_policy_without_roots_or_name_is_refused_unless_it_says_why() {
        let good = write_tls(&tls());
        let nameless = wire::SubjectAltName { kind: None };
        let bad = [
            wire::BackendTls { ca_pem: String::new(), ..good.clone() },
            wire::BackendTls { system_roots: true, ..good.clone() },
            wire::BackendTls { sni: String::new(), ..good.clone() },
            wire::BackendTls { name: "ns/svc".into(), ..good.clone() },
            wire::BackendTls { subject_alt_names: vec![nameless], ..good },
        ];
        for message in bad {
            assert!(read_tls(&message).is_err(), "{message:?}");
        }
    }

    #[test]
    fn secrets_have_both_halves() {
        let secret = Secret {
            name: "ns/tls".parse().unwrap(),
            certificate_pem: b"cert".as_slice().into(),
            key_pem: b"key".as_slice().into(),
        };
        let good = write_secret(&secret);
        assert_eq!(read_secret(&good), Ok(secret));
        assert!(read_secret(&wire::Secret { key_pem: Vec::new(), ..good.clone() }).is_err());
        assert!(read_secret(&wire::Secret { certificate_pem: Vec::new(), ..good }).is_err());
    }
}
