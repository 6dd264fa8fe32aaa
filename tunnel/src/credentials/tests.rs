// SPDX-License-Identifier: Apache-2.0

//! An authority for tests, and the life of certificates under it.

use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::*;

/// A root that signs whatever it is asked for.
pub(crate) struct TestAuthority {
    root: CertifiedIssuer<'static, KeyPair>,
    /// Life of what it signs.
    pub(crate) life: Duration,
    /// Requests so far.
    pub(crate) asked: AtomicUsize,
    /// Requests that fail, counted down.
    pub(crate) failures: AtomicUsize,
}

impl TestAuthority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let life = Duration::from_secs(3600);
        let (asked, failures) = Default::default();
        Self { root, life, asked, failures }
    }

    /// The root in PEM.
    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// A list, in PEM, that revokes `certificates`.
    pub(crate) fn revoke(&self, certificates: &[&CertificateDer<'_>]) -> String {
        let now = OffsetDateTime::now_utc();
        let serial = |one: &&CertificateDer<'_>| {
            let (_, parsed) = x509_parser::parse_x509_certificate(one).unwrap();
            SerialNumber::from_slice(parsed.raw_serial())
        };
        let revoked = |one| RevokedCertParams {
            serial_number: serial(one),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + self.life,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: certificates.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.root).unwrap().pem().unwrap()
    }

    pub(crate) fn sign_now(&self, csr: &str) -> Vec<String> {
        self.sign_aged(csr, Duration::ZERO)
    }

    fn sign_aged(&self, csr: &str, age: Duration) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let born = OffsetDateTime::now_utc() - age;
        request.params.not_before = born;
        request.params.not_after = born + self.life;
        request.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        vec![request.signed_by(&self.root).unwrap().pem(), self.root_pem()]
    }

    /// A credential without the way through [`Credentials`].
    pub(crate) fn credential(&self, identity: &str) -> Arc<Credential> {
        self.aged(identity, Duration::ZERO)
    }

    /// A credential whose life is over.
    pub(crate) fn expired(&self, identity: &str) -> Arc<Credential> {
        self.aged(identity, self.life * 2)
    }

    fn aged(&self, identity: &str, age: Duration) -> Arc<Credential> {
        let identity = identity.parse().unwrap();
        let material = Material::new(&identity).unwrap();
        let chain = self.sign_aged(&material.csr, age);
        Arc::new(Credential::new(&identity, &chain, material.key).unwrap())
    }
}

impl Authority for TestAuthority {
    fn sign<'a>(
        &'a self,
        _: &'a Identity,
        csr: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, AuthorityError>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let fail = self
                .failures
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            match fail {
                Ok(_) => Err(AuthorityError("not today".into())),
                Err(_) => Ok(self.sign_now(csr)),
            }
        })
    }
}

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

#[tokio::test]
async fn holders_share_one_certificate_and_the_last_one_ends_it() {
    let authority = Arc::new(TestAuthority::new());
    let credentials = Credentials::new(authority.clone(), Handle::current());
    let identity: Identity = CLIENT.parse().unwrap();
    let (a, b) = (credentials.hold(&identity), credentials.hold(&identity));
    let first = a.wait(Duration::from_secs(5)).await.unwrap();
    assert_eq!(first.epoch(), b.wait(Duration::ZERO).await.unwrap().epoch());
    assert_eq!((first.identity(), authority.asked.load(Ordering::SeqCst)), (&identity, 1));

    drop((a, b));
    assert!(credentials.states().is_empty());
    let again = credentials.hold(&identity).wait(Duration::from_secs(5)).await.unwrap();
    assert!(again.epoch() > first.epoch());
}

#[tokio::test(start_paused = true)]
async fn failed_requests_are_repeated_and_say_why_meanwhile() {
    let authority = Arc::new(TestAuthority::new());
    authority.failures.store(3, Ordering::SeqCst);
    let credentials = Credentials::new(authority.clone(), Handle::current());
    let held = credentials.hold(&CLIENT.parse().unwrap());
    let error = held.wait(Duration::from_millis(400)).await.unwrap_err();
    assert!(matches!(error, CredentialError::Authority(_)), "{error}");
    held.wait(Duration::from_secs(60)).await.unwrap();
    assert_eq!(authority.asked.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn certificate_is_renewed_at_half_of_its_life() {
    let authority = Arc::new(TestAuthority::new());
    let credentials = Credentials::new(authority.clone(), Handle::current());
    let held = credentials.hold(&CLIENT.parse().unwrap());
    let first = held.wait(Duration::from_secs(5)).await.unwrap();
    let mut changes = held.changes();
    let asked = tokio::time::Instant::now();
    changes.changed().await.unwrap();
    let waited = asked.elapsed();
    assert!(waited > Duration::from_secs(1750) && waited < Duration::from_secs(1850), "{waited:?}");
    assert!(held.current().unwrap().epoch() > first.epoch());
}

#[test]
fn answers_that_are_no_credential_are_refused() {
    let authority = TestAuthority::new();
    let other: Identity = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
    let material = Material::new(&CLIENT.parse().unwrap()).unwrap();
    let chain = authority.sign_now(&material.csr);
    let result = Credential::new(&other, &chain, material.key.clone_key());
    assert!(matches!(result, Err(CredentialError::OtherIdentity(_))));
    let cases: [&[String]; 3] = [&[], &chain[1..], &[chain[0].clone(), "garbage".to_owned()]];
    for (row, answer) in cases.into_iter().enumerate() {
        let identity = CLIENT.parse().unwrap();
        let result = Credential::new(&identity, answer, material.key.clone_key());
        assert!(result.is_err(), "row {row}");
    }
}
