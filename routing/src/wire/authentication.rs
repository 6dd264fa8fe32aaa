// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.RequestAuthentication`: tokens of end users, both ways.
//!
//! Keeps: a key, a place or a header that cannot be read refuses the whole resource.

use std::sync::Arc;

use http::HeaderName;
use policy::authz::Target;
use policy::jwt::{
    Algorithm, ClaimHeader, Curve, Jwk, JwtRule, Place, PublicKey, RequestAuthentication,
};

use super::authorization::gateway::{read_target, write_target};
use super::authorization::read_name;
use super::error::{WireError, each};
use super::messages::waymark::v1 as wire;

/// Reads a resource.
///
/// # Errors
///
/// See [`WireError`].
pub fn read(message: &wire::RequestAuthentication) -> Result<RequestAuthentication, WireError> {
    Ok(RequestAuthentication {
        name: read_name(&message.namespace, &message.name)?,
        targets: read_targets(message)?,
        rules: each(&message.rules, read_rule)?,
        unreadable: None,
    })
}

/// Reads only what the resource governs: enough to refuse there if the rest cannot be read.
///
/// # Errors
///
/// [`WireError::Missing`] without a target, or with an empty one.
pub fn read_targets(message: &wire::RequestAuthentication) -> Result<Vec<Target>, WireError> {
    let targets: Vec<Target> = each(&message.targets, read_target)?;
    if targets.is_empty() { Err(WireError::Missing("targets")) } else { Ok(targets) }
}

/// Writes a resource.
pub fn write(authentication: &RequestAuthentication) -> wire::RequestAuthentication {
    wire::RequestAuthentication {
        namespace: authentication.name.namespace().to_owned(),
        name: authentication.name.name().to_owned(),
        targets: authentication.targets.iter().map(write_target).collect(),
        rules: authentication.rules.iter().map(write_rule).collect(),
    }
}

fn read_rule(message: &wire::JwtRule) -> Result<JwtRule, WireError> {
    // Without keys a rule takes no token, whoever issued it.
    if message.issuer.is_empty() && !message.keys.is_empty() {
        return Err(WireError::Missing("rules.issuer"));
    }
    let texts = |texts: &[String]| texts.iter().map(|text| Arc::from(text.as_str())).collect();
    let places: Vec<Place> = each(&message.places, read_place)?;
    if places.is_empty() {
        return Err(WireError::Missing("rules.places"));
    }
    let payload_header = match message.payload_header.as_str() {
        "" => None,
        name => Some(header_name("rules.payload_header", name)?),
    };
    let claim_header = |one: &wire::ClaimHeader| {
        let header = header_name("rules.claim_headers.header", &one.header)?;
        if one.claim.is_empty() {
            return Err(WireError::Missing("rules.claim_headers.claim"));
        }
        Ok(ClaimHeader { header, claim: one.claim.as_str().into() })
    };
    Ok(JwtRule {
        issuer: message.issuer.as_str().into(),
        audiences: texts(&message.audiences),
        keys: each(&message.keys, read_key)?,
        places,
        forward: message.forward_original_token,
        payload_header,
        claim_headers: each(&message.claim_headers, claim_header)?,
        spaced_claims: texts(&message.space_delimited_claims),
    })
}

fn write_rule(rule: &JwtRule) -> wire::JwtRule {
    let texts = |texts: &[Arc<str>]| texts.iter().map(ToString::to_string).collect();
    let claim_header = |one: &ClaimHeader| wire::ClaimHeader {
        header: one.header.as_str().to_owned(),
        claim: one.claim.to_string(),
    };
    wire::JwtRule {
        issuer: rule.issuer.to_string(),
        audiences: texts(&rule.audiences),
        keys: rule.keys.iter().map(write_key).collect(),
        places: rule.places.iter().map(write_place).collect(),
        forward_original_token: rule.forward,
        payload_header: rule
            .payload_header
            .as_ref()
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default(),
        claim_headers: rule.claim_headers.iter().map(claim_header).collect(),
        space_delimited_claims: texts(&rule.spaced_claims),
    }
}

fn header_name(field: &'static str, text: &str) -> Result<HeaderName, WireError> {
    let name = HeaderName::from_bytes(text.as_bytes());
    name.map_err(|_| WireError::Value(field, text.to_owned()))
}

/// Reads a public key.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_key(message: &wire::JsonWebKey) -> Result<Jwk, WireError> {
    use wire::json_web_key::Key;
    let bytes = |bytes: &[u8]| Arc::from(bytes);
    let key = match &message.key {
        Some(Key::Rsa(rsa)) => PublicKey::Rsa { n: bytes(&rsa.n), e: bytes(&rsa.e) },
        Some(Key::Ec(ec)) => {
            let curve = match ec.curve.as_str() {
                "P-256" => Curve::P256,
                "P-384" => Curve::P384,
                "P-521" => Curve::P521,
                other => return Err(WireError::Value("rules.keys.ec.curve", other.to_owned())),
            };
            PublicKey::Ec { curve, x: bytes(&ec.x), y: bytes(&ec.y) }
        }
        Some(Key::Ed25519(x)) => PublicKey::Ed25519(bytes(x)),
        None => return Err(WireError::Missing("rules.keys.key")),
    };
    if !key.is_well_formed() {
        return Err(WireError::Value("rules.keys", "a key of another length".to_owned()));
    }
    let algorithm = match message.algorithm.as_str() {
        "" => None,
        word => {
            let known = Algorithm::of(word).filter(|algorithm| key.fits(*algorithm));
            let illegal = || WireError::Value("rules.keys.algorithm", word.to_owned());
            Some(known.ok_or_else(illegal)?)
        }
    };
    let id = message.id.as_str();
    Ok(Jwk { id: (!id.is_empty()).then(|| id.into()), algorithm, key })
}

/// Writes a public key.
pub fn write_key(one: &Jwk) -> wire::JsonWebKey {
    use wire::json_web_key::Key;
    let key = match &one.key {
        PublicKey::Rsa { n, e } => Key::Rsa(wire::RsaKey { n: n.to_vec(), e: e.to_vec() }),
        PublicKey::Ec { curve, x, y } => {
            let curve = match curve {
                Curve::P256 => "P-256",
                Curve::P384 => "P-384",
                Curve::P521 => "P-521",
            };
            Key::Ec(wire::EcKey { curve: curve.to_owned(), x: x.to_vec(), y: y.to_vec() })
        }
        PublicKey::Ed25519(x) => Key::Ed25519(x.to_vec()),
    };
    wire::JsonWebKey {
        id: one.id.as_deref().unwrap_or_default().to_owned(),
        algorithm: one.algorithm.map(Algorithm::as_str).unwrap_or_default().to_owned(),
        key: Some(key),
    }
}

fn read_place(message: &wire::TokenPlace) -> Result<Place, WireError> {
    use wire::token_place::Kind;
    let named = |field: &'static str, name: &str| match name {
        "" => Err(WireError::Missing(field)),
        name => Ok(Arc::from(name)),
    };
    match &message.kind {
        Some(Kind::Header(header)) => Ok(Place::Header {
            name: header_name("rules.places.header.name", &header.name)?,
            prefix: header.prefix.as_str().into(),
        }),
        Some(Kind::Parameter(name)) => named("rules.places.parameter", name).map(Place::Parameter),
        Some(Kind::Cookie(name)) => named("rules.places.cookie", name).map(Place::Cookie),
        None => Err(WireError::Missing("rules.places.kind")),
    }
}

fn write_place(place: &Place) -> wire::TokenPlace {
    use wire::token_place::Kind;
    let kind = match place {
        Place::Header { name, prefix } => Kind::Header(wire::HeaderPlace {
            name: name.as_str().to_owned(),
            prefix: prefix.to_string(),
        }),
        Place::Parameter(name) => Kind::Parameter(name.to_string()),
        Place::Cookie(name) => Kind::Cookie(name.to_string()),
    };
    wire::TokenPlace { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::authz::PolicyName;

    fn full() -> RequestAuthentication {
        let bytes = |length: usize| -> Arc<[u8]> { vec![1; length].into() };
        let key = |id: Option<&str>, algorithm, key| Jwk { id: id.map(Arc::from), algorithm, key };
        let x = HeaderName::from_static("x-a");
        let rule = JwtRule {
            issuer: "https://i".into(),
            audiences: vec!["shop".into()],
            keys: vec![
                key(
                    Some("a"),
                    Some(Algorithm::Rs256),
                    PublicKey::Rsa { n: bytes(256), e: bytes(3) },
                ),
                key(None, None, PublicKey::Ec { curve: Curve::P256, x: bytes(32), y: bytes(32) }),
                key(None, None, PublicKey::Ec { curve: Curve::P384, x: bytes(48), y: bytes(48) }),
                key(None, None, PublicKey::Ec { curve: Curve::P521, x: bytes(66), y: bytes(66) }),
                key(Some("e"), Some(Algorithm::EdDsa), PublicKey::Ed25519(bytes(32))),
            ],
            places: vec![
                Place::Header { name: x.clone(), prefix: "Bearer ".into() },
                Place::Parameter("p".into()),
                Place::Cookie("c".into()),
            ],
            forward: true,
            payload_header: Some(x.clone()),
            claim_headers: vec![ClaimHeader { header: x, claim: "a.b".into() }],
            spaced_claims: vec!["roles".into()],
        };
        RequestAuthentication {
            name: PolicyName::new("ns", "n"),
            targets: vec![Target::Gateway("ns/gw".into()), Target::Service("ns/a.b".into())],
            rules: vec![rule],
            unreadable: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(read(&write(&full())), Ok(full()));
    }

    #[test]
    fn what_cannot_be_read_refuses_the_whole() {
        type Damage = fn(&mut wire::JwtRule);
        let cases: [(&str, Damage); 9] = [
            ("issuer", |rule| rule.issuer.clear()),
            ("places", |rule| rule.places.clear()),
            ("kind", |rule| rule.places = vec![wire::TokenPlace::default()]),
            ("payload_header", |rule| rule.payload_header = "a b".into()),
            ("claim", |rule| rule.claim_headers[0].claim.clear()),
            ("keys.key", |rule| rule.keys[0].key = None),
            ("algorithm", |rule| rule.keys[0].algorithm = "ES256".into()),
            ("algorithm", |rule| rule.keys[0].algorithm = "none".into()),
            ("keys", |rule| {
                rule.keys[0].key = Some(wire::json_web_key::Key::Ed25519(vec![1]));
            }),
        ];
        for (field, damage) in cases {
            let mut message = write(&full());
            damage(&mut message.rules[0]);
            let error = read(&message).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
            assert!(read_targets(&message).is_ok(), "{field}: its targets are still known");
        }
        let message = wire::RequestAuthentication { targets: Vec::new(), ..write(&full()) };
        assert_eq!(read(&message), Err(WireError::Missing("targets")));
    }
}
