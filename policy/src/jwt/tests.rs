// SPDX-License-Identifier: Apache-2.0

//! Tables for the form of tokens, for where they are, and for what is done with several.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, Request};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::authz::StringMatch;

const NOW: u64 = 1_800_000_000;

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token whose signature is the word `signature`.
fn token(claims: &Value) -> String {
    let header = part(&json!({"alg": "RS256", "kid": "k"}));
    format!("{header}.{}.{}", part(claims), URL_SAFE_NO_PAD.encode("good"))
}

fn rule(issuer: &str, places: Vec<Place>) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys: Vec::new(),
        places,
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        spaced_claims: Vec::new(),
    }
}

fn claims(value: Value) -> Claims {
    let Value::Object(all) = value else { panic!("no object") };
    Claims::new(all, &["roles"])
}

fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn is_good(_: usize, token: &Token<'_>) -> Result<(), InvalidToken> {
    if token.signature() == b"good" { Ok(()) } else { Err(InvalidToken::Signature) }
}

#[test]
fn a_token_out_of_form_is_refused_with_the_reason() {
    let header = |value: Value| format!("{}.{}.c2ln", part(&value), part(&json!({})));
    let payload = |value: Value| token(&value);
    use InvalidToken as I;
    let cases = [
        ("", I::Form),
        ("a.b", I::Form),
        ("a.b.c.d", I::Form),
        ("!.e30.c2ln", I::HeaderBase64),
        ("e30=.e30.c2ln", I::HeaderBase64),
        ("WzFd.e30.c2ln", I::HeaderJson),
        (&header(json!({})), I::Algorithm),
        (&header(json!({"alg": "none"})), I::Algorithm),
        (&header(json!({"alg": "HS256"})), I::Algorithm),
        (&header(json!({"alg": "RS256", "kid": 1})), I::KeyId),
        (&header(json!({"alg": "RS256", "crit": ["b64"], "b64": false})), I::Critical),
        (&format!("{}.!.c2ln", part(&json!({"alg": "RS256"}))), I::PayloadBase64),
        (&format!("{}.WzFd.c2ln", part(&json!({"alg": "RS256"}))), I::PayloadJson),
        (&format!("{}.e30.!", part(&json!({"alg": "RS256"}))), I::SignatureBase64),
        (&payload(json!({"exp": "soon"})), I::Time),
        (&payload(json!({"nbf": -1})), I::Time),
    ];
    for (text, want) in cases {
        assert_eq!(Token::parse(text).unwrap_err(), want, "{text}");
    }
}

#[test]
fn times_have_a_leeway_and_audiences_must_meet() {
    let wants = |audiences: &[&str]| JwtRule {
        audiences: audiences.iter().map(|one| Arc::from(*one)).collect(),
        ..rule("i", Vec::new())
    };
    let any = wants(&[]);
    let shop = wants(&["shop", "https://shop.example/"]);
    use InvalidToken as I;
    let cases = [
        (json!({}), &any, Ok(())),
        (json!({"exp": NOW}), &any, Ok(())),
        (json!({"exp": NOW - LEEWAY}), &any, Ok(())),
        (json!({"exp": NOW - LEEWAY - 1}), &any, Err(I::Expired)),
        (json!({"exp": 0.5}), &any, Err(I::Expired)),
        (json!({"nbf": NOW + LEEWAY}), &any, Ok(())),
        (json!({"nbf": NOW + LEEWAY + 1}), &any, Err(I::NotYetValid)),
        (json!({"aud": "x"}), &any, Ok(())),
        (json!({"aud": "shop"}), &shop, Ok(())),
        (json!({"aud": ["x", "shop"]}), &shop, Ok(())),
        (json!({"aud": "http://shop.example"}), &shop, Ok(())),
        (json!({"aud": ["x"]}), &shop, Err(I::Audience)),
        (json!({"aud": 1}), &shop, Err(I::Audience)),
        (json!({}), &shop, Err(I::Audience)),
    ];
    for (claims, rule, want) in cases {
        let text = token(&claims);
        assert_eq!(Token::parse(&text).unwrap().suits(rule, NOW), want, "{claims}");
    }
}

#[test]
fn tokens_are_found_where_rules_say_and_nowhere_else() {
    let header = |name: &'static str, prefix: &str| Place::Header {
        name: HeaderName::from_static(name),
        prefix: prefix.into(),
    };
    let good = token(&json!({"iss": "i"}));
    let bearer = format!("Bearer {good}");
    let lower = format!("bearer {good}");
    let cookies = format!("a=b; session={good}; c=d");
    let query = format!("/x?a=b&access_token={good}");
    type Case<'a> = (&'static str, &'a str, Vec<(&'static str, &'a str)>, Vec<Place>, bool);
    let cases: [Case<'_>; 10] = [
        ("none", "/", vec![], Place::defaults(), false),
        ("bearer", "/", vec![("authorization", &bearer)], Place::defaults(), true),
        ("schemes have no case", "/", vec![("authorization", &lower)], Place::defaults(), true),
        ("another scheme", "/", vec![("authorization", "Basic eA==")], Place::defaults(), false),
        ("parameter", &query, vec![], Place::defaults(), true),
        ("header", "/", vec![("x-token", &good)], vec![header("x-token", "")], true),
        ("prefix", "/", vec![("x-token", &bearer)], vec![header("x-token", "Bearer ")], true),
        (
            "not a default place",
            "/",
            vec![("authorization", &bearer)],
            vec![header("x-token", "")],
            false,
        ),
        ("cookie", "/", vec![("cookie", &cookies)], vec![Place::Cookie("session".into())], true),
        (
            "another cookie",
            "/",
            vec![("cookie", &cookies)],
            vec![Place::Cookie("sess".into())],
            false,
        ),
    ];
    for (name, uri, headers, places, found) in cases {
        let rule = rule("i", places);
        let judged = judge(&[&rule], &head(uri, &headers), NOW, is_good);
        assert_eq!(judged.unwrap().is_some(), found, "{name}");
    }
}

#[test]
fn every_token_must_be_good_for_a_rule_that_reads_it() {
    let place = |name: &'static str| {
        vec![Place::Header { name: HeaderName::from_static(name), prefix: "".into() }]
    };
    let rules = [rule("one", place("x-a")), rule("two", place("x-a")), rule("two", place("x-b"))];
    let rules: Vec<&JwtRule> = rules.iter().collect();
    let of = |issuer: &str| token(&json!({"iss": issuer, "sub": "s"}));
    let (one, two, three) = (of("one"), of("two"), of("three"));
    let forged = one.replace("Z29vZA", "YmFk");
    let refused = |rule, why| Err(Refused { rule, why });
    use InvalidToken as I;
    let cases = [
        (vec![], Ok(None)),
        (vec![("x-a", &one)], Ok(Some(0))),
        (vec![("x-a", &two)], Ok(Some(1))),
        (vec![("x-b", &two)], Ok(Some(2))),
        (vec![("x-a", &two), ("x-b", &two)], Ok(Some(1))),
        (vec![("x-a", &one), ("x-b", &two)], Ok(Some(0))),
        (vec![("x-a", &one), ("x-a", &two)], Ok(Some(0))),
        // Not read from there, so unknown there.
        (vec![("x-b", &one)], refused(2, I::UnknownIssuer)),
        (vec![("x-a", &three)], refused(0, I::UnknownIssuer)),
        (vec![("x-a", &forged)], refused(0, I::Signature)),
        // A good token is no cover for a bad one.
        (vec![("x-a", &one), ("x-a", &forged)], refused(0, I::Signature)),
        (vec![("x-a", &one), ("x-b", &three)], refused(2, I::UnknownIssuer)),
    ];
    for (headers, want) in cases {
        let headers: Vec<(&str, &str)> =
            headers.into_iter().map(|(name, value)| (name, value.as_str())).collect();
        let judged = judge(&rules, &head("/", &headers), NOW, is_good);
        let got = judged.map(|proven| proven.map(|proven| proven.rule));
        assert_eq!(got, want, "{headers:?}");
    }
}

#[test]
fn a_proven_token_says_who_took_it() {
    let rule = rule("i", Place::defaults());
    let text = token(&json!({"iss": "i", "sub": "s", "n": 1}));
    let headers = [("authorization", format!("Bearer {text}"))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let proven = judge(&[&rule], &head("/", &headers), NOW, is_good).unwrap().unwrap();
    assert_eq!(proven.taken, [(0, text.clone())]);
    assert_eq!(proven.payload, text.split('.').nth(1).unwrap());
    assert_eq!((proven.claims.issuer(), proven.claims.subject()), ("i", "s"));
}

#[test]
fn principals_are_cut_at_the_last_slash() {
    let cases = [
        // pattern, issuer, subject, matches
        ("*", "https://i", "s", true),
        ("*", "https://i", "", false),
        ("*", "", "s", false),
        ("https://i/s", "https://i", "s", true),
        ("https://i/s", "https://i", "t", false),
        // Another issuer's subject cannot spell this one.
        ("https://i/a/s", "https://i", "a/s", false),
        ("https://i/a/s", "https://i/a", "s", true),
        ("https://i/*", "https://i", "s", true),
        ("https://i/*", "https://i", "", false),
        ("https://i/a*", "https://i", "abc", true),
        ("https://i/a*", "https://i", "b", false),
        ("joe*", "joe@x", "s", true),
        ("*/s", "https://i", "s", true),
        ("*/s", "https://i", "t", false),
        ("*@x/s", "joe@x", "s", true),
        ("*s", "i", "ss", true),
        ("i", "i", "s", false),
    ];
    for (pattern, iss, sub, want) in cases {
        let read = StringMatch::parse(pattern).unwrap();
        let claims = claims(json!({"iss": iss, "sub": sub}));
        assert_eq!(principal_matches(&read, &claims), want, "{pattern} over {iss} and {sub}");
    }
}

#[test]
fn claims_are_texts_or_lists_of_texts() {
    let claims = claims(json!({
        "iss": "i", "groups": ["a", "b"], "scope": "read  write", "roles": "x y", "other": "x y",
        "n": 1, "deep": {"er": {"list": ["c"]}}, "a.b": "dotted",
    }));
    let cases: [(&[&str], &str, bool); 12] = [
        (&["iss"], "i", true),
        (&["groups"], "b", true),
        (&["groups"], "c", false),
        (&["scope"], "write", true),
        (&["scope"], "read  write", false),
        (&["roles"], "y", true),
        (&["other"], "x", false),
        (&["other"], "x y", true),
        (&["n"], "1", false),
        (&["deep", "er", "list"], "c", true),
        (&["deep", "er"], "c", false),
        (&["a.b"], "dotted", true),
    ];
    for (path, value, want) in cases {
        let path: Vec<Arc<str>> = path.iter().map(|name| Arc::from(*name)).collect();
        assert_eq!(claims.any(&path, |text| text == value), want, "{path:?} {value}");
    }
    let headers = [
        ("iss", Some("i")),
        ("n", Some("1")),
        ("scope", Some("read  write")),
        ("a.b", Some("dotted")),
        ("deep.er", None),
        ("groups", None),
        ("none", None),
    ];
    for (name, want) in headers {
        assert_eq!(claims.header_value(name).as_deref(), want, "{name}");
    }
}

#[test]
fn a_key_set_gives_the_keys_that_can_be_used() {
    let n = URL_SAFE_NO_PAD.encode([255; 256]);
    let zero_led = URL_SAFE_NO_PAD.encode([&[0_u8][..], &[255; 256][..]].concat());
    let small = URL_SAFE_NO_PAD.encode([255; 128]);
    let (x, short) = (URL_SAFE_NO_PAD.encode([1; 32]), URL_SAFE_NO_PAD.encode([1; 31]));
    let cases = [
        (
            json!({"kty": "RSA", "n": n, "e": "AQAB", "kid": "a", "alg": "RS256", "use": "sig"}),
            true,
        ),
        (json!({"kty": "RSA", "n": zero_led, "e": "AQAB"}), true),
        (json!({"kty": "RSA", "n": small, "e": "AQAB"}), false),
        (json!({"kty": "RSA", "n": n, "e": "AQAB", "use": "enc"}), false),
        (json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "ES256"}), false),
        (json!({"kty": "RSA", "n": n}), false),
        (json!({"kty": "EC", "crv": "P-256", "x": x, "y": x}), true),
        (json!({"kty": "EC", "crv": "P-256", "x": short, "y": x}), true),
        (json!({"kty": "EC", "crv": "secp256k1", "x": x, "y": x}), false),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": x}), true),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": short}), false),
        (json!({"kty": "oct", "k": "c2VjcmV0"}), false),
        (json!("text"), false),
    ];
    for (key, want) in cases {
        let set = json!({"keys": [key]}).to_string();
        let read = Jwks::parse(set.as_bytes());
        assert_eq!(read.is_ok(), want, "{key}: {read:?}");
        let good = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
        let mixed = json!({"keys": [key, good]}).to_string();
        let mixed = Jwks::parse(mixed.as_bytes()).unwrap();
        assert_eq!(mixed.left_out.len(), usize::from(!want), "{key}: {mixed:?}");
    }
    for bad in ["", "[]", "{}", r#"{"keys": []}"#, r#"{"keys": {}}"#] {
        let error = Jwks::parse(bad.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("keys"), "{bad}: {error}");
    }
}

#[test]
fn what_is_taken_away_leaves_the_rest_as_it_was() {
    let query = "a=%20b&access_token=x&c&access%5Ftoken=y";
    assert_eq!(without_parameter(query, "access_token"), "a=%20b&c");
    let value = HeaderValue::from_static("a=b; token=x;token2=y");
    assert_eq!(without_cookie(&value, "token").unwrap(), "a=b; token2=y");
    assert_eq!(without_cookie(&HeaderValue::from_static("token=x"), "token"), None);
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_fall(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _either = Token::parse(&text);
        let _either = Jwks::parse(&bytes);
    }

    #[test]
    fn what_was_encoded_is_read_again(sub in "[ -~]{1,20}", exp in 0..u64::from(u32::MAX)) {
        let text = token(&json!({"iss": "i", "sub": sub, "exp": exp}));
        let token = Token::parse(&text).unwrap();
        prop_assert_eq!(token.issuer(), "i");
        let signed = token.signed().to_owned();
        prop_assert!(text.starts_with(&signed));
        let claims = token.into_claims(&["roles"]);
        prop_assert_eq!(claims.subject(), sub.as_str());
    }
}
