// SPDX-License-Identifier: Apache-2.0

//! Unix sockets that keep packet borders and carry open descriptors.
//!
//! Owns: `SOCK_SEQPACKET` listeners and connections. Leaves the meaning of a
//! packet to its callers. Keeps: a packet is sent whole or not at all; one
//! that does not fit the reader's bounds is an error, never a cut packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Descriptors that one packet may carry; more is an error.
const MAX_DESCRIPTORS: usize = 4;

/// One received packet.
#[derive(Debug)]
pub struct Packet {
    /// The bytes of the packet.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it, now ours.
    pub descriptors: Vec<OwnedFd>,
}

/// One connection; sending and receiving take `&self` and may run at once.
#[derive(Debug)]
pub struct PacketSocket {
    fd: AsyncFd<OwnedFd>,
    max_packet: usize,
}

impl PacketSocket {
    /// Connects to a listener's path. `max_packet` bounds received packets, in bytes.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or outside a tokio runtime.
    pub fn connect(path: &Path, max_packet: usize) -> io::Result<Self> {
        let fd = new_socket()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Self::new(fd, max_packet)
    }

    /// Two sockets connected to each other.
    ///
    /// # Errors
    ///
    /// When descriptors run out, or outside a tokio runtime.
    pub fn pair(max_packet: usize) -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::new(a, max_packet)?, Self::new(b, max_packet)?))
    }

    fn new(fd: OwnedFd, max_packet: usize) -> io::Result<Self> {
        Ok(Self { fd: super::watched(fd)?, max_packet })
    }

    /// Sends one packet, with a descriptor if one is given.
    ///
    /// Cancel safe: a cancelled call has sent nothing.
    ///
    /// # Errors
    ///
    /// When the other side is gone.
    pub async fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let sent = self
            .fd
            .async_io(Interest::WRITABLE, |fd| send_now(fd.as_fd(), bytes, descriptor))
            .await?;
        match sent == bytes.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Receives one packet; `None` once the other side has closed.
    ///
    /// Cancel safe: a cancelled call has taken nothing.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a packet, or a set of descriptors, beyond the bounds.
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        let max = self.max_packet;
        self.fd.async_io(Interest::READABLE, |fd| receive_now(fd.as_fd(), max)).await
    }
}

/// A listener of [`PacketSocket`]s.
#[derive(Debug)]
pub struct PacketListener {
    fd: AsyncFd<OwnedFd>,
}

impl PacketListener {
    /// Listens at `path`; an older socket file there is replaced.
    ///
    /// # Errors
    ///
    /// When the path cannot be bound, or outside a tokio runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let fd = new_socket()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&fd, 16)?;
        Ok(Self { fd: super::watched(fd)? })
    }

    /// Takes the next connection. `max_packet` bounds its received packets.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`.
    pub async fn accept(&self, max_packet: usize) -> io::Result<PacketSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = self
            .fd
            .async_io(Interest::READABLE, |fd| Ok(rustix::net::accept_with(fd, flags)?))
            .await?;
        PacketSocket::new(fd, max_packet)
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn send_now(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let iov = [IoSlice::new(bytes)];
    Ok(rustix::net::sendmsg(socket, &iov, &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive_now(socket: BorrowedFd<'_>, max_packet: usize) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; max_packet];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if got.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    Ok(Some(Packet { bytes, descriptors }))
}
