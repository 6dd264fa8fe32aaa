// SPDX-License-Identifier: Apache-2.0

//! Packets with descriptors, and addresses as the kernel prints them.

use super::*;
use crate::sys::packet::{PacketListener, PacketSocket};

#[tokio::test]
async fn packet_carries_bytes_and_a_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packets.sock");
    let listener = PacketListener::bind(&path).unwrap();
    let client = PacketSocket::connect(&path, 64).unwrap();
    let server = listener.accept(64).await.unwrap();

    let ours = NetworkNamespace::current().unwrap();
    client.send(b"add", Some(ours.as_fd())).await.unwrap();
    client.send(b"keep", None).await.unwrap();

    let first = server.receive().await.unwrap().unwrap();
    assert_eq!(first.bytes, b"add");
    let [fd]: [OwnedFd; 1] = first.descriptors.try_into().unwrap();
    assert_eq!(NetworkNamespace::from_fd(fd).unwrap().id(), ours.id());
    let second = server.receive().await.unwrap().unwrap();
    assert_eq!((second.bytes.as_slice(), second.descriptors.len()), (b"keep".as_slice(), 0));

    drop(client);
    assert!(server.receive().await.unwrap().is_none(), "a closed peer ends the stream");
}

#[tokio::test]
async fn packet_beyond_the_bound_is_an_error_not_a_cut_packet() {
    let (a, b) = PacketSocket::pair(4).unwrap();
    a.send(b"12345", None).await.unwrap();
    assert_eq!(b.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    a.send(b"1234", None).await.unwrap();
    assert_eq!(b.receive().await.unwrap().unwrap().bytes, b"1234");
}

#[test]
fn mapped_addresses_become_ipv4() {
    let cases = [
        ("[::ffff:10.1.2.3]:80", "10.1.2.3:80"),
        ("10.1.2.3:80", "10.1.2.3:80"),
        ("[fd00::1]:80", "[fd00::1]:80"),
    ];
    for (given, want) in cases {
        assert_eq!(canonical(given.parse().unwrap()), want.parse().unwrap(), "{given}");
    }
}
