// SPDX-License-Identifier: Apache-2.0

//! What rules may look at, borrowed from the session or the request.
//!
//! Owns the view, never the data. A session below HTTP has no [`Http`] part;
//! rules that ask for it then have no answer, which a DENY counts as a match
//! and an ALLOW does not (see [`crate::authz`]).

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};

use crate::jwt::Claims;
use crate::peer::Peer;

/// One session or request, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who opened the connection, proven.
    pub peer: &'a Peer,
    /// Address of the first client as far as trusted hops tell; without such
    /// hops the peer's own (`remote.ip`, `remoteIpBlocks`).
    pub remote: IpAddr,
    /// Address and port of the destination: the workload's at a tunnel, the
    /// Service's at a waypoint, the listener's at an ingress.
    pub destination: SocketAddr,
    /// Server name the client asked for in its TLS hello.
    pub sni: Option<&'a str>,
    /// The HTTP part, above L4 only.
    pub http: Option<Http<'a>>,
}

/// The HTTP part of a request.
#[derive(Clone, Copy, Debug)]
pub struct Http<'a> {
    /// Method, case counts.
    pub method: &'a Method,
    /// Path as it will be forwarded, query excluded.
    pub path: &'a str,
    /// Host of `:authority` or `Host`, port included if there was one.
    pub host: &'a str,
    /// Header fields.
    pub headers: &'a HeaderMap,
    /// What its token proves; none: it has no token.
    pub claims: Option<&'a Claims>,
}

impl<'a> Request<'a> {
    /// A session below HTTP from `peer` to `destination`.
    pub fn session(peer: &'a Peer, destination: SocketAddr) -> Self {
        Self { peer, remote: peer.address.ip(), destination, sni: None, http: None }
    }
}
