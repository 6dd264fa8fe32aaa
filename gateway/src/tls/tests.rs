// SPDX-License-Identifier: Apache-2.0

//! Handshakes between our two sides, over certificates made here.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use routing::backend::{BackendTls, Roots, SubjectAltName};
use routing::listener::{ClientValidation, ClientValidationMode, ListenerTls, TlsMode};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// An authority and what it signed. All authorities made here share name and serial number.
pub(crate) struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serial_number = Some(2024.into());
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> Arc<str> {
        self.0.pem().into()
    }

    pub(crate) fn secret(&self, name: &str, dns: &[&str], uris: &[&str]) -> Secret {
        let names = dns.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Secret {
            name: name.parse().unwrap(),
            certificate_pem: leaf.pem().into_bytes().into(),
            key_pem: key.serialize_pem().into_bytes().into(),
        }
    }
}

fn listener(names: &[&str], validation: Option<ClientValidation>) -> ListenerTls {
    let secrets = names.iter().map(|name| name.parse().unwrap()).collect();
    ListenerTls { mode: TlsMode::Terminate, secrets, client_validation: validation }
}

fn policy(sni: &str, ca: &Issuer, names: &[SubjectAltName]) -> BackendTls {
    BackendTls {
        name: "ns/svc.ns.svc/443".parse().unwrap(),
        sni: sni.into(),
        roots: Roots::Pem(ca.pem()),
        subject_alt_names: names.to_vec(),
        invalid: None,
    }
}

/// Common name-free check: the leaf that the client saw, if both sides agreed.
async fn handshake(
    server: Arc<rustls::ServerConfig>,
    client: &client::Client,
) -> Option<(CertificateDer<'static>, bool)> {
    let (near, far) = tokio::io::duplex(16 << 10);
    let server = TlsAcceptor::from(server).accept(far);
    let client = TlsConnector::from(Arc::clone(&client.any)).connect(client.name.clone(), near);
    let (server, client) = tokio::join!(server, client);
    let (server, client) = (server.ok()?, client.ok()?);
    assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let seen = client.get_ref().1.peer_certificates()?.first()?.clone().into_owned();
    Some((seen, server.get_ref().1.peer_certificates().is_some()))
}

fn leaf(secret: &Secret) -> CertificateDer<'static> {
    certificates("test", &secret.certificate_pem).unwrap().remove(0)
}

#[tokio::test]
async fn the_certificate_follows_the_name_and_falls_back_to_the_first() {
    let ca = Issuer::new();
    let secrets = [
        ca.secret("ns/a", &["a.example"], &[]),
        ca.secret("ns/b", &["b.example", "*.wild.example"], &[]),
    ];
    let find = |name: &routing::listener::SecretName| secrets.iter().find(|s| s.name == *name);
    let server = server::config(&listener(&["ns/a", "ns/b"], None), find, true).unwrap();
    for (name, want) in [("a.example", 0), ("b.example", 1), ("x.wild.example", 1)] {
        let client = client::config(&policy(name, &ca, &[]), None).unwrap();
        let (seen, _) = handshake(Arc::clone(&server), &client).await.unwrap();
        assert_eq!(seen, leaf(&secrets[want]), "{name}");
    }
    let other = client::config(&policy("other.example", &ca, &[]), None).unwrap();
    assert!(handshake(server, &other).await.is_none(), "the first certificate is not for it");
}

#[tokio::test]
async fn backends_are_checked_by_name_alternatives_and_authority() {
    let (ca, twin) = (Issuer::new(), Issuer::new());
    let uri = "spiffe://cluster.local/ns/a/sa/b";
    let secret = ca.secret("ns/a", &["a.example"], &[uri]);
    let server = server::config(&listener(&["ns/a"], None), |_| Some(&secret), true).unwrap();
    let host = |name: &str| SubjectAltName::Hostname(name.into());
    let cases = [
        ("name", policy("a.example", &ca, &[]), true),
        ("other name", policy("b.example", &ca, &[]), false),
        ("alternative host", policy("b.example", &ca, &[host("a.example")]), true),
        ("alternative URI", policy("b.example", &ca, &[SubjectAltName::Uri(uri.into())]), true),
        ("one of two", policy("b.example", &ca, &[host("x.example"), host("a.example")]), true),
        ("no alternative", policy("a.example", &ca, &[host("x.example")]), false),
        ("authority of the same name", policy("a.example", &twin, &[]), false),
    ];
    for (name, policy, want) in cases {
        let client = client::config(&policy, None).unwrap();
        let got = handshake(Arc::clone(&server), &client).await;
        assert_eq!(got.is_some(), want, "{name}");
    }
}

#[tokio::test]
async fn clients_are_asked_for_certificates_as_the_listener_says() {
    let (ca, twin) = (Issuer::new(), Issuer::new());
    let secret = ca.secret("ns/a", &["a.example"], &[]);
    let good = ca.secret("ns/client", &["client"], &[]);
    let foreign = twin.secret("ns/client", &["client"], &[]);
    let (strict, lax) =
        (ClientValidationMode::AllowValidOnly, ClientValidationMode::AllowInsecureFallback);
    let cases = [
        // mode, our certificate, accepted with a certificate
        (strict, Some(&good), Some(true)),
        (strict, Some(&foreign), None),
        (strict, None, None),
        (lax, Some(&foreign), Some(true)),
        (lax, None, Some(false)),
    ];
    for (mode, own, want) in cases {
        let validation = ClientValidation { ca_pem: ca.pem(), mode };
        let tls = listener(&["ns/a"], Some(validation));
        let server = server::config(&tls, |_| Some(&secret), true).unwrap();
        let client = client::config(&policy("a.example", &ca, &[]), own).unwrap();
        let got = handshake(server, &client).await.map(|(_, shown)| shown);
        assert_eq!(got, want, "{mode:?} with certificate: {}", own.is_some());
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let ca = Issuer::new();
    let good = ca.secret("ns/a", &["a.example"], &[]);
    let other = ca.secret("ns/b", &["a.example"], &[]);
    let mixed = Secret { key_pem: Arc::clone(&other.key_pem), ..good.clone() };
    let garbage = Secret { certificate_pem: b"x".as_slice().into(), ..good };
    for (name, secret) in
        [("missing", None), ("key of another", Some(&mixed)), ("garbage", Some(&garbage))]
    {
        assert!(server::config(&listener(&["ns/a"], None), |_| secret, true).is_err(), "{name}");
    }
    let one = client::config(&policy("a.example", &ca, &[]), None).unwrap();
    let two = client::config(&policy("a.example", &Issuer::new(), &[]), None).unwrap();
    assert_ne!(one.word, two.word, "authorities of one name differ in pool keys");
}
