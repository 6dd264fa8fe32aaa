// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets' checks over seeded inputs: good messages, damaged in small ways.
//!
//! The same checks run under cargo-fuzz in `tests/fuzz`; these runs are the
//! part of it that every change goes through.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../../tests/fuzz/checks.rs"]
mod checks;

use base64::Engine;
use prost::Message;
use routing::balance::Rolls;
use routing::delta::Kind;
use routing::stream::DeltaDiscoveryResponse;
use routing::wire::messages::envoy::service::discovery::v3::Resource;
use routing::wire::{messages, zds};

/// Damaged copies made of each good message.
const COPIES: u64 = 200;

/// What istiod sent: kind, name, bytes.
fn vectors() -> Vec<(Kind, String, Vec<u8>)> {
    let text = include_str!("vectors/istiod-bookinfo/resources.json");
    let resources: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let read = |resource: &serde_json::Value| {
        let text = |field: &str| resource[field].as_str().unwrap().to_owned();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text("base64")).unwrap();
        (Kind::of_type_url(&text("type")).unwrap(), text("name"), bytes)
    };
    resources.iter().map(read).collect()
}

/// `good` with one to three bytes flipped, dropped, doubled, or its end cut off.
fn damage(good: &[u8], rolls: &mut Rolls) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=rolls.below(3) {
        let end = u64::try_from(bytes.len()).unwrap();
        let place = usize::try_from(rolls.below(end)).unwrap();
        match rolls.below(5) {
            _ if bytes.is_empty() => bytes.push(0),
            0 => bytes[place] ^= 1 << rolls.below(8),
            1 => bytes[place] = u8::try_from(rolls.below(256)).unwrap(),
            2 => drop(bytes.remove(place)),
            3 => bytes.insert(place, bytes[place]),
            _ => bytes.truncate(place),
        }
    }
    bytes
}

/// Runs `check` on each good input and on damaged copies of it.
fn each(seed: u64, good: &[Vec<u8>], check: impl Fn(&[u8])) {
    let mut rolls = Rolls::new(seed);
    for bytes in good {
        check(bytes);
        for _ in 0..COPIES {
            check(&damage(bytes, &mut rolls));
        }
    }
}

#[test]
fn resources_of_every_kind() {
    let good: Vec<Vec<u8>> = vectors().into_iter().map(|(_, _, bytes)| bytes).collect();
    for (seed, kind) in (1..).zip(Kind::ALL) {
        // Messages of other kinds are odd messages of this one.
        each(seed, &good, |bytes| {
            checks::resource(kind, bytes);
            checks::response_of(kind, "bookinfo/name", bytes);
        });
    }
}

#[test]
fn gateway_resources() {
    use messages::waymark::v1 as own;
    let port = own::ServicePort { key: "default/a.example".into(), port: 80 };
    let target = own::Target { kind: Some(own::target::Kind::Service(port)) };
    let backend = own::RouteBackend { target: Some(target), weight: 1, ..Default::default() };
    let parent = own::RouteParent {
        parent: Some(own::route_parent::Parent::Listener("default/gw/http".into())),
        hostnames: vec!["*.example".into()],
    };
    let route = own::Route {
        name: "HTTPRoute/default/a/0".into(),
        parents: vec![parent],
        matches: vec![own::RouteMatch::default()],
        backends: vec![backend],
        ..Default::default()
    };
    let gateway = own::Gateway { name: "default/gw".into(), kind: 1, ..Default::default() };
    let secret = own::Secret {
        name: "default/s".into(),
        certificate_pem: b"c".to_vec(),
        key_pem: b"k".to_vec(),
    };
    let tls = own::BackendTls {
        name: "default/a.example/443".into(),
        sni: "a.example".into(),
        system_roots: true,
        ..Default::default()
    };
    let ed25519 = own::json_web_key::Key::Ed25519(vec![1; 32]);
    let rule = own::JwtRule {
        issuer: "https://i".into(),
        keys: vec![own::JsonWebKey { key: Some(ed25519), ..Default::default() }],
        places: vec![own::TokenPlace { kind: Some(own::token_place::Kind::Cookie("c".into())) }],
        ..Default::default()
    };
    let gateway_class = own::authorization_target::Kind::GatewayClass("c".into());
    let authentication = own::RequestAuthentication {
        namespace: "default".into(),
        name: "t".into(),
        targets: vec![own::AuthorizationTarget { kind: Some(gateway_class) }],
        rules: vec![rule],
    };
    let good = [
        (Kind::RequestAuthentication, authentication.encode_to_vec()),
        (Kind::Route, route.encode_to_vec()),
        (Kind::Gateway, gateway.encode_to_vec()),
        (Kind::Secret, secret.encode_to_vec()),
        (Kind::BackendTls, tls.encode_to_vec()),
    ];
    for (kind, bytes) in good {
        let read = routing::wire::discovery::read_resource(kind, &bytes, &mut Default::default());
        assert!(read.is_ok(), "{kind:?}: {read:?}");
        each(50, &[bytes], |bytes| {
            checks::resource(kind, bytes);
            checks::response_of(kind, "default/gw", bytes);
        });
    }
}

#[test]
fn whole_responses() {
    for kind in [Kind::Address, Kind::Authorization] {
        let mut message = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: "1".into(),
            removed_resources: vec!["bookinfo/gone".into()],
            ..Default::default()
        };
        for (_, name, value) in vectors().into_iter().filter(|(one, ..)| *one == kind) {
            let any = messages::Any { type_url: kind.type_url().into(), value };
            message.resources.push(Resource { name, resource: Some(any), ..Default::default() });
        }
        message.resources.truncate(8);
        let good = [message.encode_to_vec()];
        for seed in 0..5 {
            each(seed, &good, checks::delta_response);
        }
    }
}

#[test]
fn zds_packets() {
    let who = zds::PodName { name: "p".into(), namespace: "n".into(), service_account: "s".into() };
    let good = [
        zds::Request::Add(zds::Pod { uid: "1-2-3".into(), who: Some(who) }).write(),
        zds::Request::Keep("1-2-3".into()).write(),
        zds::Request::Delete("1-2-3".into()).write(),
        zds::Request::SnapshotSent.write(),
        zds::write_ack("no such pod"),
        zds::write_hello(),
    ];
    for seed in 0..10 {
        each(seed, &good, checks::zds_packet);
    }
}

#[test]
fn authorities() {
    let good = ["10.0.0.1:80", "[fd00::1]:443", "reviews.bookinfo.svc.cluster.local:9080"];
    let good = good.map(|text| text.as_bytes().to_vec());
    for seed in 0..20 {
        each(seed, &good, checks::authority);
    }
}

#[test]
fn tokens_and_key_sets() {
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"alg":"RS256","kid":"k"}"#);
    let payload = part(r#"{"iss":"https://i","sub":"s","exp":1800000000,"aud":["a","b"]}"#);
    let good = [format!("{header}.{payload}.{}", part("signature")).into_bytes()];
    let set = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE", "alg": "EdDSA"}]}"#;
    assert!(policy::jwt::Token::parse(str::from_utf8(&good[0]).unwrap()).is_ok());
    assert!(policy::jwt::Jwks::parse(set.as_bytes()).is_ok());
    for seed in 0..20 {
        each(seed, &good, checks::token);
        each(seed, &[set.as_bytes().to_vec()], checks::key_set);
    }
}
