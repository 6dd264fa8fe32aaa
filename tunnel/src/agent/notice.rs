// SPDX-License-Identifier: Apache-2.0

//! Tells when the rules of a pod's namespace change, whoever changes them.
//!
//! Owns: the kernel's notices about nftables, policy rules, routes and
//! addresses of one namespace. Leaves finding out what changed to
//! [`super::capture`].
//!
//! Keeps: a notice may come for nothing, or stand for many changes; none is
//! missed, since a queue that overflows is a notice too.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::{self, NetworkNamespace};

/// nftables: group 7 (`NFNLGRP_NFTABLES`).
const RULESET: u32 = 1 << 6;

/// Routes and policy rules of both families, and IPv6 addresses: groups 7, 8, 9,
/// 11 and 19 of `RTNLGRP_*`.
const ROUTING: u32 = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// Follows one namespace.
#[derive(Debug)]
pub struct RuleWatch {
    ruleset: AsyncFd<OwnedFd>,
    routing: AsyncFd<OwnedFd>,
}

impl RuleWatch {
    /// Follows `namespace` from now on.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or followed. Must be called inside a tokio runtime.
    pub fn open(namespace: &NetworkNamespace) -> io::Result<Self> {
        let (ruleset, routing) = namespace.enter(|| {
            Ok::<_, io::Error>((follow(Some(NETFILTER), RULESET)?, follow(None, ROUTING)?))
        })??;
        Ok(Self { ruleset: sys::watched(ruleset)?, routing: sys::watched(routing)? })
    }

    /// Waits for a change.
    ///
    /// Cancel safe: a notice that was not returned comes again.
    ///
    /// # Errors
    ///
    /// When the namespace can no longer be followed.
    pub async fn changed(&self) -> io::Result<()> {
        tokio::select! {
            outcome = notice(&self.ruleset) => outcome,
            outcome = notice(&self.routing) => outcome,
        }
    }
}

fn follow(protocol: Option<Protocol>, groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// One readiness, with all that was waiting.
async fn notice(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0; 8192];
    socket.async_io(Interest::READABLE, |fd| take(fd, &mut buffer)).await?;
    loop {
        match take(socket.get_ref(), &mut buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn take(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<()> {
    match recv(socket, buffer, RecvFlags::empty()) {
        // Notices were dropped: so there were some.
        Ok(_) | Err(rustix::io::Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
