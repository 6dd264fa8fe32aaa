// SPDX-License-Identifier: Apache-2.0

//! The proven other end of a connection.
//!
//! Owns what is known about who opened a connection and how it is known.
//! Verifying certificates is the tunnel's work; it makes a [`Peer`] from what
//! it has verified.

use std::net::SocketAddr;

use crate::identity::Identity;

/// How the identity of a peer is known.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Proof {
    /// Nothing was proven: a plain connection, or TLS without a mesh certificate.
    None,
    /// The peer holds the key of a certificate that chains to the mesh root.
    MutualTls,
}

/// The other end of a connection: who, from where, and how that is known.
///
/// An identity is there if and only if [`Peer::proof`] is [`Proof::MutualTls`];
/// the two constructors are the only way in.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Peer {
    /// SPIFFE name, if the peer proved one.
    pub identity: Option<Identity>,
    /// Address of the TCP connection's other end.
    pub address: SocketAddr,
}

impl Peer {
    /// A peer that proved nothing.
    pub fn plain(address: SocketAddr) -> Self {
        Self { identity: None, address }
    }

    /// A peer whose certificate names `identity`.
    pub fn proven(identity: Identity, address: SocketAddr) -> Self {
        Self { identity: Some(identity), address }
    }

    /// How the identity is known.
    pub fn proof(&self) -> Proof {
        if self.identity.is_some() { Proof::MutualTls } else { Proof::None }
    }
}
