// SPDX-License-Identifier: Apache-2.0

//! Which texts make an authority, and which may follow which.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyUsagePurpose};
use time::Duration;

use super::*;
use crate::ca::root;
use policy::identity::Identity;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root_of(params: CertificateParams) -> Ca {
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn below(above: &Ca, params: CertificateParams) -> Ca {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), above).unwrap()
}

fn texts(ca: &Ca, chain: &[&Ca], roots: &[&Ca]) -> Texts {
    let join = |all: &[&Ca]| all.iter().map(|one| one.pem()).collect::<String>();
    Texts {
        origin: "Secret ns/cacerts".into(),
        certificate: ca.pem(),
        key: ca.key().serialize_pem(),
        chain: join(chain),
        roots: join(roots),
    }
}

fn names(authority: &Authority) -> Vec<&str> {
    authority.roots.iter().map(|root| root.subject.as_str()).collect()
}

#[test]
fn the_root_of_what_is_signed_stands_first_and_the_chain_holds_no_root() {
    let (old, new) = (root_of(params("old")), root_of(params("new")));
    let middle = below(&new, params("middle"));
    let low = below(&middle, params("low"));

    let own = Authority::read(&texts(&old, &[], &[])).unwrap();
    assert_eq!((names(&own), own.intermediates.len()), (vec!["CN=old"], 0), "no list of roots");
    let both = Authority::read(&texts(&new, &[], &[&old, &new, &old])).unwrap();
    assert_eq!(names(&both), ["CN=new", "CN=old"], "each once");

    // As Istio's tools write it: the chain begins with the certificate and ends with the root.
    let plugged = Authority::read(&texts(&low, &[&low, &middle, &new], &[&old, &new])).unwrap();
    assert_eq!((names(&plugged), plugged.intermediates.len()), (vec!["CN=new", "CN=old"], 2));
    assert!(plugged.bundle().matches("BEGIN CERTIFICATE").count() == 2);

    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let signed = sign::sign(&plugged, &csr, &identity, hour).unwrap();
    assert_eq!(signed.chain.len(), 4, "leaf, low, middle, all roots");
    assert_eq!(signed.chain.last().unwrap(), &plugged.bundle());
}

#[test]
fn a_leaf_does_not_outlive_what_signed_it() {
    let mut short = params("short");
    short.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    short.not_after = OffsetDateTime::now_utc() + Duration::minutes(30);
    let authority = Authority::read(&texts(&root_of(short), &[], &[])).unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let day = std::time::Duration::from_secs(86_400);
    let signed = sign::sign(&authority, &csr, &identity, day).unwrap();
    assert!(signed.not_after <= authority.not_after);
}

#[test]
fn what_no_peer_would_believe_is_refused_by_name() {
    let (ours, other) = (root_of(params("ours")), root_of(params("other")));
    let middle = below(&ours, params("middle"));
    let low = below(&middle, params("low"));
    let good = texts(&ours, &[], &[]);
    let with = |change: &dyn Fn(&mut Texts)| {
        let mut texts = good.clone();
        change(&mut texts);
        texts
    };
    let mut leaf = params("leaf");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let mut no_usage = params("no usage");
    no_usage.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut over = params("over");
    over.not_before = OffsetDateTime::now_utc() - Duration::days(2);
    over.not_after = OffsetDateTime::now_utc() - Duration::days(1);
    let rows = [
        // name, texts, part of the reason
        ("no certificate", with(&|texts| texts.certificate.clear()), "ca-cert.pem lacks"),
        ("no key", with(&|texts| texts.key.clear()), "ca-key.pem lacks"),
        ("a key that is none", with(&|texts| texts.key = "key".into()), "ca-key.pem cannot"),
        ("garbage roots", with(&|texts| texts.roots = "roots".into()), "root-cert.pem cannot"),
        ("garbage chain", with(&|texts| texts.chain = "chain".into()), "cert-chain.pem cannot"),
        (
            "the key of another",
            with(&|texts| texts.key = other.key().serialize_pem()),
            "of another certificate",
        ),
        ("a leaf", texts(&root_of(leaf), &[], &[]), "no certificate of an authority"),
        ("no right to sign", texts(&root_of(no_usage), &[], &[]), "no certificate of an authority"),
        ("one that is over", texts(&root_of(over), &[], &[]), "not now"),
        ("another root", texts(&ours, &[], &[&other]), "chains to no root"),
        ("a gap in the chain", texts(&low, &[], &[&ours]), "chains to no root"),
    ];
    for (name, texts, reason) in rows {
        let error = Authority::read(&texts).expect_err(name).to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn only_the_steps_of_a_rotation_in_their_order_are_taken_and_the_last_good_one_stays() {
    let (old, new) = (root_of(params("old")), root_of(params("new")));
    let in_force = InForce::new(Authority::read(&texts(&old, &[], &[])).unwrap());
    let steps = [
        // name, texts, taken, part of the reason
        ("at once", texts(&new, &[], &[]), Some("which is not in force")),
        ("signing first", texts(&new, &[], &[&new, &old]), Some("which is not in force")),
        ("trust", texts(&old, &[], &[&old, &new]), None),
        ("without the old", texts(&new, &[], &[&new]), Some("which signed until now")),
        ("sign", texts(&new, &[], &[&old, &new]), None),
        ("back", texts(&old, &[], &[&old, &new]), None),
        ("sign again", texts(&new, &[], &[&new, &old]), None),
        ("take away", texts(&new, &[], &[&new]), None),
    ];
    for (name, texts, reason) in steps {
        let before = in_force.now();
        assert_eq!(in_force.offer(&texts), reason.is_none(), "{name}");
        match reason {
            None => {
                assert_eq!(in_force.refused(), None, "{name}");
                assert_eq!(
                    in_force.now().roots.len(),
                    Authority::read(&texts).unwrap().roots.len()
                );
            }
            Some(reason) => {
                let refused = in_force.refused().unwrap();
                assert!(refused.contains(reason), "{name}: {refused}");
                assert!(Arc::ptr_eq(&before, &in_force.now()), "{name}");
            }
        }
    }
    assert_eq!(names(&in_force.now()), ["CN=new"]);
}

#[test]
fn keys_in_the_forms_that_openssl_writes_are_read() {
    let (certificate, key) = root::make("cluster.local").unwrap();
    assert!(key.contains("BEGIN PRIVATE KEY"), "PKCS#8");
    let texts = Texts { certificate, key, ..Texts::default() };
    Authority::read(&texts).unwrap();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let ca = CertifiedIssuer::self_signed(params("rsa"), rsa).unwrap();
    Authority::read(&self::texts(&ca, &[], &[])).unwrap();
}
