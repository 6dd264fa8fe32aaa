// SPDX-License-Identifier: Apache-2.0

//! What the kernel is asked for beyond plain sockets.
//!
//! Owns: network namespaces, marked and transparent sockets, the original
//! destination of a captured connection, and packets with descriptors over
//! Unix sockets. Leaves what they are used for to its callers.
//!
//! Keeps: a thread that entered a namespace leaves it again before anything
//! else runs on it, or the process ends. The only unsafe code of the crate lives
//! here; nearly everything is covered by the `rustix` and `socket2` wrappers.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::unix::AsyncFd;

pub mod packet;

thread_local! {
    /// The namespace this thread lives in, opened at its first visit elsewhere.
    static HOME: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct NetworkNamespace {
    fd: OwnedFd,
    id: NamespaceId,
}

/// Device and inode of a namespace: equal means the same namespace.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NetworkNamespace {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens a namespace by its file, such as `/proc/PID/ns/net`.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or inspected.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Takes a descriptor that was received from elsewhere.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be inspected.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let id = NamespaceId { device: stat.st_dev, inode: stat.st_ino };
        Ok(Self { fd, id })
    }

    /// Another handle of the same namespace.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, id: self.id })
    }

    /// What tells this namespace from others.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Runs `work` with the calling thread inside this namespace, then goes home.
    ///
    /// Sockets that `work` makes belong to the namespace for good. `work` must
    /// not block for long and cannot await, so no other task sees the visit.
    ///
    /// # Errors
    ///
    /// When the namespace may not be entered. Should the way home fail, the
    /// process aborts: its thread would act for the wrong pod.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        HOME.with_borrow_mut(|home| {
            let home: &OwnedFd = match home {
                Some(home) => home,
                None => home.insert(Self::current()?.fd),
            };
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            let result = work();
            if move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
                std::process::abort();
            }
            Ok(result)
        })
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lets the runtime watch a descriptor for readiness.
///
/// # Errors
///
/// When the descriptor cannot be watched. Must be called inside a tokio runtime.
#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is valid and open, always returns the same descriptor,
    // and is owned by the `AsyncFd` for as long as that lives.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// How a socket of the mesh differs from a plain one.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketSettings {
    /// `SO_MARK`, by which capture rules know our own traffic; 0 sets none.
    pub mark: u32,
    /// Lets an old and a new process listen side by side.
    pub reuse_port: bool,
    /// Lets the socket bind an address that is not local.
    pub transparent: bool,
}

/// Waiting connections of a listener before the kernel drops new ones.
const BACKLOG: i32 = 1024;

/// Opens a listening TCP socket; an IPv6 wildcard takes IPv4 as well.
///
/// # Errors
///
/// Those of the system calls; a mark or transparency needs `CAP_NET_ADMIN`.
pub fn listen_tcp(
    address: SocketAddr,
    settings: SocketSettings,
) -> io::Result<std::net::TcpListener> {
    let socket = bind(address, Type::STREAM, Protocol::TCP, settings)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens a bound UDP socket.
///
/// # Errors
///
/// As [`listen_tcp`].
pub fn bind_udp(address: SocketAddr, settings: SocketSettings) -> io::Result<std::net::UdpSocket> {
    Ok(bind(address, Type::DGRAM, Protocol::UDP, settings)?.into())
}

fn bind(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    settings: SocketSettings,
) -> io::Result<Socket> {
    let socket = new_socket(address, kind, protocol, settings)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(settings.reuse_port)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Makes an unconnected TCP socket towards `target`, optionally bound to a
/// source address that need not be local.
///
/// # Errors
///
/// Those of the system calls; a foreign source needs `CAP_NET_ADMIN`.
pub fn client_tcp(
    target: SocketAddr,
    source: Option<SocketAddr>,
    settings: SocketSettings,
) -> io::Result<tokio::net::TcpSocket> {
    let socket = new_socket(target, Type::STREAM, Protocol::TCP, settings)?;
    if let Some(source) = source {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
}

fn new_socket(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    settings: SocketSettings,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if settings.mark != 0 {
        socket.set_mark(settings.mark)?;
    }
    if settings.transparent {
        match address {
            SocketAddr::V4(_) => {
                socket.set_ip_transparent_v4(true)?;
                socket.set_freebind_v4(true)?;
            }
            SocketAddr::V6(_) => {
                socket.set_ip_transparent_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
    }
    Ok(socket)
}

/// Where a redirected connection was going before capture.
///
/// An IPv4 connection on a dual-stack socket is asked for as IPv4.
///
/// # Errors
///
/// When the connection was never redirected.
pub fn original_destination(socket: impl AsFd, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    let address = match canonical(peer).is_ipv4() {
        true => socket.original_dst_v4()?,
        false => socket.original_dst_v6()?,
    };
    address.as_socket().map(canonical).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Turns off Nagle's delay and asks the kernel to notice dead peers.
///
/// # Errors
///
/// Those of the system calls.
pub fn tune_tcp(socket: impl AsFd, keepalive: Option<Keepalive>) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        let probe = TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes);
        socket.set_tcp_keepalive(&probe)?;
    }
    Ok(())
}

/// TCP keep-alive of one socket.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without answer before the connection is dead.
    pub probes: u32,
}

/// The IPv4 address behind an IPv4-mapped IPv6 one, else the address itself.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Tells whether this kernel and namespace have IPv6.
#[must_use]
pub fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok_and(|socket| {
        let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
        socket.bind(&any.into()).is_ok()
    })
}

/// The wildcard address that listens for every family the namespace has.
#[must_use]
pub fn any_address(port: u16) -> SocketAddr {
    let ip = match has_ipv6() {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests;
