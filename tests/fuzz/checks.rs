// SPDX-License-Identifier: Apache-2.0

//! What must hold for any bytes from the network.
//!
//! One function per parser, shared by the fuzz targets beside this file and by
//! the plain test `routing/tests/parsers.rs`, which feeds them seeded inputs.
//! Each has a judge of its own: what was read, written and read again is the
//! same, and what was refused left the snapshot as it was.

use policy::jwt::{Algorithm, Jwks, Token};
use prost::Message;
use routing::delta::{Change, Kind, Rejected, apply};
use routing::l4::Authority;
use routing::snapshot::Snapshot;
use routing::stream::DeltaDiscoveryResponse;
use routing::wire::discovery::{read, read_resource, write_resource};
use routing::wire::messages::Any;
use routing::wire::messages::envoy::service::discovery::v3::Resource;
use routing::wire::{Names, zds};

/// A resource that is read is the same after it was written and read again.
pub(crate) fn resource(kind: Kind, bytes: &[u8]) {
    let Ok((name, read)) = read_resource(kind, bytes, &mut Names::default()) else { return };
    let (written_kind, written_name, written) = write_resource(&read).expect("it was read");
    assert_eq!((written_kind, &written_name), (kind, &name));
    let again = read_resource(kind, &written, &mut Names::default());
    assert_eq!(again, Ok((name, read)));
}

/// A resource in a response is taken, or answered for by name; never both, never neither.
pub(crate) fn response_of(kind: Kind, name: &str, bytes: &[u8]) {
    let resource = Resource {
        name: name.to_owned(),
        resource: Some(Any { type_url: kind.type_url().to_owned(), value: bytes.to_vec() }),
        ..Resource::default()
    };
    response(&DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources: vec![resource],
        ..DeltaDiscoveryResponse::default()
    });
}

/// Bytes as a whole response.
pub(crate) fn delta_response(bytes: &[u8]) {
    if let Ok(message) = DeltaDiscoveryResponse::decode(bytes) {
        response(&message);
    }
}

fn response(message: &DeltaDiscoveryResponse) {
    let Ok(changes) = read(message) else { return };
    assert_eq!(changes.len(), message.resources.len() + message.removed_resources.len());
    let unreadable = |change: &Change| match change {
        Change::Unreadable { kind, name, reason, .. } => {
            Some(Rejected { kind: *kind, name: name.clone(), reason: reason.clone() })
        }
        Change::Put(_) | Change::Gone(..) => None,
    };
    let refused: Vec<Rejected> = changes.iter().filter_map(unreadable).collect();
    assert!(refused.iter().all(|one| !one.reason.is_empty()), "{refused:?}");
    let empty = Snapshot::default();
    let (snapshot, rejected) = apply(&empty, changes.clone());
    assert!(refused.iter().all(|one| rejected.contains(one)), "{refused:?} of {rejected:?}");
    assert_eq!(empty.discovery.workload_count() + empty.discovery.service_count(), 0);
    // Nothing is added by changes that were refused, but policies that refuse.
    let only_refused = changes.iter().all(|change| unreadable(change).is_some());
    if only_refused {
        assert_eq!(snapshot.discovery.workload_count() + snapshot.discovery.service_count(), 0);
        assert_eq!(snapshot.serving.rule_count(), 0);
        assert!(snapshot.authorizations.policies().all(|policy| policy.unsupported.is_some()));
    }
    // The same changes give the same snapshot, and twice is as good as once.
    let (again, _) = apply(&snapshot, changes);
    assert_eq!(counts(&again), counts(&snapshot));
}

fn counts(snapshot: &Snapshot) -> [usize; 4] {
    [
        snapshot.discovery.workload_count(),
        snapshot.discovery.service_count(),
        snapshot.authorizations.len(),
        snapshot.serving.rule_count(),
    ]
}

/// A packet that is read is the same after it was written and read again.
pub(crate) fn zds_packet(bytes: &[u8]) {
    if let Ok(request) = zds::Request::read(bytes) {
        assert_eq!(zds::Request::read(&request.write()), Ok(request));
    }
    if let Ok(error) = zds::read_ack(bytes) {
        let written = zds::write_ack(error.as_deref().unwrap_or_default());
        assert_eq!(zds::read_ack(&written), Ok(error));
    }
    if zds::read_hello(bytes).is_ok() {
        assert_eq!(zds::read_hello(&zds::write_hello()), Ok(()));
    }
}

/// An authority that is read is the same after it was printed and read again.
pub(crate) fn authority(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(authority) = text.parse::<Authority>() else { return };
    assert_ne!(authority.port(), 0);
    assert_eq!(authority.to_string().parse(), Ok(authority));
}

/// What passes for a token is three parts of its text, and asks for no algorithm but ours.
pub(crate) fn token(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(token) = Token::parse(text) else { return };
    let parts: Vec<&str> = text.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else {
        unreachable!("{text:?} has three parts")
    };
    assert_eq!(token.signed(), format!("{header}.{payload}"));
    assert_eq!(token.payload(), *payload);
    // Four characters hold three bytes.
    assert_eq!(token.signature().len(), signature.len() * 3 / 4, "{text:?}");
    assert!(Algorithm::ALL.contains(&token.algorithm()));
}

/// Every key of a set is one that its algorithm can use.
pub(crate) fn key_set(bytes: &[u8]) {
    let Ok(set) = Jwks::parse(bytes) else { return };
    assert!(!set.keys.is_empty());
    for one in &set.keys {
        assert!(one.key.is_well_formed(), "{one:?}");
        assert!(one.algorithm.is_none_or(|algorithm| one.key.fits(algorithm)), "{one:?}");
    }
}
