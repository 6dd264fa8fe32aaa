// SPDX-License-Identifier: Apache-2.0

//! The PROXY protocol v2 head that some applications ask for.
//!
//! Rule: haproxy `doc/proxy-protocol.txt` §2.2; the identity of the client is
//! in a TLV of type 0xD0, as Istio's ztunnel writes it.

use std::net::SocketAddr;

use policy::peer::Peer;

const SIGNATURE: [u8; 12] =
    [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];

/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;

/// TLV that holds the client's SPIFFE name.
const TLV_IDENTITY: u8 = 0xd0;

/// The head for a stream from `peer` that asked for `destination`; a mix of
/// families is written as IPv6.
pub(super) fn proxy_head(peer: &Peer, destination: SocketAddr) -> Vec<u8> {
    let mut body = Vec::new();
    let family: u8 = match (peer.address, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            body.extend_from_slice(&source.ip().octets());
            body.extend_from_slice(&destination.ip().octets());
            0x11
        }
        (source, destination) => {
            for address in [source, destination] {
                let ip = match address {
                    SocketAddr::V4(address) => address.ip().to_ipv6_mapped(),
                    SocketAddr::V6(address) => *address.ip(),
                };
                body.extend_from_slice(&ip.octets());
            }
            0x21
        }
    };
    body.extend_from_slice(&peer.address.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    if let Some(identity) = &peer.identity
        && let Ok(length) = u16::try_from(identity.as_str().len())
    {
        body.push(TLV_IDENTITY);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(identity.as_str().as_bytes());
    }
    let mut head = SIGNATURE.to_vec();
    head.extend_from_slice(&[VERSION_COMMAND, family]);
    // Addresses and one name: far below the bound of the length.
    head.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    head.extend_from_slice(&body);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_holds_addresses_and_the_clients_name() {
        let identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let peer = Peer::proven(identity, "10.0.0.1:1000".parse().unwrap());
        let head = proxy_head(&peer, "10.0.0.2:80".parse().unwrap());
        let length = 12 + 3 + 21;
        assert_eq!(head[..12], SIGNATURE);
        assert_eq!(head[12..16], [0x21, 0x11, 0, length]);
        assert_eq!(head[16..28], [10, 0, 0, 1, 10, 0, 0, 2, 0x03, 0xe8, 0, 80]);
        assert_eq!(head[28..31], [0xd0, 0, 21]);
        assert_eq!(&head[31..], b"spiffe://td/ns/a/sa/b");
        let mixed = proxy_head(&peer, "[fd00::1]:80".parse().unwrap());
        assert_eq!(mixed[13], 0x21);
    }
}
