// SPDX-License-Identifier: Apache-2.0

//! Real signatures by every algorithm, made by another library, and what must not pass for one.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk as TheirJwk;
use jsonwebtoken::{Algorithm as Theirs, EncodingKey, Header, encode};
use policy::authz::PolicyName;
use policy::jwt::{Jwks, Place};
use serde_json::{Value, json};

use super::*;

fn rule(issuer: &str, keys: Vec<Jwk>) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys,
        places: Place::defaults(),
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        spaced_claims: Vec::new(),
    }
}

fn source(name: &str, targets: Vec<Target>, rules: Vec<JwtRule>) -> Arc<RequestAuthentication> {
    let name = PolicyName::new("ns", name);
    Arc::new(RequestAuthentication { name, targets, rules, unreadable: None })
}

fn signed(keys: Vec<Jwk>, token: &str) -> Result<(), InvalidToken> {
    let one = Authenticator::new(&source("a", Vec::new(), vec![rule("i", keys)]));
    one.rules().next().unwrap().signed(&Token::parse(token).unwrap())
}

fn read(jwk: &Value) -> Vec<Jwk> {
    Jwks::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap().keys
}

/// A key of theirs for `algorithm`, and the public half as JSON.
fn key(algorithm: Theirs) -> (EncodingKey, Value) {
    type Read = fn(&rcgen::KeyPair) -> EncodingKey;
    let ec: Read = |pair| EncodingKey::from_ec_der(&pair.serialize_der());
    let ed: Read = |pair| EncodingKey::from_ed_der(&pair.serialize_der());
    let rsa: Read = |pair| EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
    let kinds = [
        (Theirs::ES256, &rcgen::PKCS_ECDSA_P256_SHA256, ec),
        (Theirs::ES384, &rcgen::PKCS_ECDSA_P384_SHA384, ec),
        (Theirs::EdDSA, &rcgen::PKCS_ED25519, ed),
    ];
    let own = kinds.into_iter().find(|(own, ..)| *own == algorithm);
    let (_, kind, read) = own.unwrap_or((algorithm, &rcgen::PKCS_RSA_SHA256, rsa));
    let pair = rcgen::KeyPair::generate_for(kind).unwrap();
    let key = read(&pair);
    if algorithm == Theirs::EdDSA {
        // Their reader of public halves wants an older form of the key.
        let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        return (key, json!({"kty": "OKP", "crv": "Ed25519", "x": x}));
    }
    let jwk = TheirJwk::from_encoding_key(&key, algorithm).unwrap();
    (key, serde_json::to_value(jwk).unwrap())
}

/// `token` with one character of its part `index` changed.
fn damaged(token: &str, index: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let changed = if parts[index].starts_with('A') { "B" } else { "A" };
    parts[index].replace_range(0..1, changed);
    parts.join(".")
}

#[test]
fn every_algorithm_takes_its_own_signatures_and_no_other() {
    let claims = json!({"iss": "i", "sub": "s"});
    let rsa = key(Theirs::RS256);
    let algorithms = [
        Theirs::RS256,
        Theirs::RS384,
        Theirs::RS512,
        Theirs::PS256,
        Theirs::PS384,
        Theirs::PS512,
        Theirs::ES256,
        Theirs::ES384,
        Theirs::EdDSA,
    ];
    for algorithm in algorithms {
        let own = matches!(algorithm, Theirs::ES256 | Theirs::ES384 | Theirs::EdDSA);
        let (signing, mut jwk) = if own { key(algorithm) } else { rsa.clone() };
        jwk["alg"] = serde_json::to_value(algorithm).unwrap();
        let token = encode(&Header::new(algorithm), &claims, &signing).unwrap();
        assert_eq!(signed(read(&jwk), &token), Ok(()), "{algorithm:?}");
        let forged = damaged(&token, 2);
        assert_eq!(signed(read(&jwk), &forged), Err(InvalidToken::Signature), "{algorithm:?}");
        let other = key(algorithm).1;
        assert_eq!(signed(read(&other), &token), Err(InvalidToken::Signature), "{algorithm:?}");
        // A key without alg signs with whatever fits it.
        jwk.as_object_mut().unwrap().remove("alg");
        assert_eq!(signed(read(&jwk), &token), Ok(()), "{algorithm:?} without alg");
    }
}

#[test]
fn p521_signatures_are_taken_too() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(66);
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = json!({"kty": "EC", "crv": "P-521", "x": text(x), "y": text(y)});
    let head = text(br#"{"alg":"ES512"}"#);
    let message = format!("{head}.{}", text(br#"{"iss":"i"}"#));
    let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    let token = format!("{message}.{}", text(signature.as_ref()));
    assert_eq!(signed(read(&jwk), &token), Ok(()));
    let forged = damaged(&token, 2);
    assert_eq!(signed(read(&jwk), &forged), Err(InvalidToken::Signature));
}

#[test]
fn names_and_algorithms_choose_among_keys() {
    let claims = json!({"iss": "i"});
    let (first, mut one) = key(Theirs::ES256);
    let (second, mut two) = key(Theirs::ES256);
    one["kid"] = "one".into();
    two["kid"] = "two".into();
    let keys: Vec<Jwk> = [&one, &two].into_iter().flat_map(read).collect();
    let token = |key: &EncodingKey, kid: Option<&str>| {
        let mut header = Header::new(Theirs::ES256);
        header.kid = kid.map(str::to_owned);
        encode(&header, &claims, key).unwrap()
    };
    let cases = [
        (token(&first, Some("one")), Ok(())),
        (token(&second, Some("two")), Ok(())),
        // Without a name every key is tried.
        (token(&second, None), Ok(())),
        (token(&second, Some("one")), Err(InvalidToken::Signature)),
        (token(&second, Some("three")), Err(InvalidToken::OtherKey)),
    ];
    for (token, want) in cases {
        assert_eq!(signed(keys.clone(), &token), want);
    }
    assert_eq!(signed(Vec::new(), &token(&first, None)), Err(InvalidToken::NoKeys));
    let (rsa, _) = key(Theirs::RS256);
    let other = encode(&Header::new(Theirs::RS256), &claims, &rsa).unwrap();
    assert_eq!(signed(keys, &other), Err(InvalidToken::OtherKey));
}

#[test]
fn a_point_off_its_curve_is_no_key() {
    let x = URL_SAFE_NO_PAD.encode([1; 32]);
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": x});
    let (signing, _) = key(Theirs::ES256);
    let token = encode(&Header::new(Theirs::ES256), &json!({"iss": "i"}), &signing).unwrap();
    assert_eq!(signed(read(&jwk), &token), Err(InvalidToken::NoKeys));
}

#[test]
fn what_has_not_changed_is_not_made_again() {
    let target = |name: &str| Target::Gateway(name.into());
    let mut now = Authentications::default();
    let first = Authenticators::default();
    assert!(first.is_empty());
    now.put(source("a", vec![target("ns/gw"), target("ns/other")], vec![rule("i", Vec::new())]));
    now.put(source("b", vec![target("ns/gw")], Vec::new()));
    let one = first.next(&now).unwrap();
    assert!(one.next(&now).is_none());
    now.put(source("b", vec![target("ns/other")], Vec::new()));
    now.unreadable(&PolicyName::new("ns", "c"), Vec::new(), "why");
    let two = one.next(&now).unwrap();
    let names = |all: &Authenticators, targets: &[Target]| -> Vec<String> {
        let found = all.of(targets.iter());
        found.iter().map(|one| one.source.name.name().to_owned()).collect()
    };
    assert_eq!(names(&one, &[target("ns/gw"), target("ns/other")]), ["a", "b"]);
    assert_eq!(names(&two, &[target("ns/gw")]), ["c", "a"]);
    assert_eq!(names(&two, &[target("ns/other")]), ["c", "a", "b"]);
    let gateway = target("ns/gw");
    let of = |all: &Authenticators| std::ptr::from_ref(&**all.by_target[&gateway].first().unwrap());
    assert_eq!(of(&one), of(&two), "keys are parsed once");
}
