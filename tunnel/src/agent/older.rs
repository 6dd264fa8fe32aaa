// SPDX-License-Identifier: Apache-2.0

//! Connections that a pod had before it was enrolled, and captured ones that
//! are still open.
//!
//! Owns: reading the kernel's table of TCP sockets in a pod, and closing those
//! that a STRICT pod must not keep. Leaves when to ask to [`super::enrol`].
//!
//! Keeps: a connection is known by the inode of its socket, so that one opened
//! later between the same ends is another one.
//!
//! Rule: columns of `/proc/net/tcp` (Linux `Documentation/networking/proc_net_tcp.rst`).

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::capture::{CaptureError, run};
use crate::sys::{NetworkNamespace, canonical};

/// Ports on which the tunnel takes connections inside a pod.
const TUNNEL_PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

/// Those for captured connections.
const CAPTURED_PORTS: [u16; 3] = [15001, 15006, 15053];

/// One TCP socket of a pod.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Connection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Number of the socket while it lives.
    pub inode: u64,
}

/// State of a TCP socket, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Bytes may still flow in some direction.
    Open,
    Listening,
    /// Both sides have ended it.
    Over,
}

/// All TCP sockets of a namespace at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sockets(Vec<(State, Connection)>);

impl Sockets {
    /// Reads the tables of both families.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn of(namespace: &NetworkNamespace) -> Result<Self, CaptureError> {
        let read = || {
            ["tcp", "tcp6"].map(|table| {
                let path = format!("/proc/thread-self/net/{table}");
                // Without IPv6 there is no such table.
                std::fs::read_to_string(path).unwrap_or_default()
            })
        };
        let tables = namespace.enter(read).map_err(CaptureError::Enter)?;
        Ok(Self(tables.iter().flat_map(|text| text.lines().filter_map(parse_line)).collect()))
    }

    /// Connections of the application with others that the tunnel does not carry.
    ///
    /// One that it carries ends in this very namespace: at its port for captured connections,
    /// or at the socket that it opened to the application.
    #[must_use]
    pub fn of_application(&self) -> BTreeSet<Connection> {
        let ends = |c: &Connection| (canonical(c.local), canonical(c.remote));
        let taken: HashSet<SocketAddr> = self
            .open()
            .filter(|c| CAPTURED_PORTS.contains(&c.local.port()))
            .map(|c| canonical(c.remote))
            .collect();
        let here: HashSet<_> = self.open().map(ends).collect();
        let is_plain = |c: &&Connection| {
            let (local, remote) = ends(c);
            let elsewhere = local.ip() != remote.ip() && !local.ip().is_loopback();
            let carried = taken.contains(&local) || here.contains(&(remote, local));
            elsewhere && !carried && !TUNNEL_PORTS.contains(&local.port())
        };
        self.open().filter(is_plain).cloned().collect()
    }

    /// Those of `older` that are still open.
    #[must_use]
    pub fn still_open(&self, older: &BTreeSet<Connection>) -> BTreeSet<Connection> {
        self.open().filter(|connection| older.contains(connection)).cloned().collect()
    }

    /// Those of `connections` that others opened to a listener of the pod.
    #[must_use]
    pub fn inbound(&self, connections: &BTreeSet<Connection>) -> Vec<Connection> {
        let listens = |port: u16| {
            self.0
                .iter()
                .any(|(state, socket)| *state == State::Listening && socket.local.port() == port)
        };
        connections.iter().filter(|c| listens(c.local.port())).cloned().collect()
    }

    /// Tells whether the tunnel carries connections of the pod's application: those it took
    /// on its ports for captured ones, and those it opened to the application, which show an
    /// address that is not the pod's own.
    #[must_use]
    pub fn carries(&self, own: &[IpAddr]) -> bool {
        let to_application = |c: &Connection| {
            let (local, remote) = (canonical(c.local).ip(), canonical(c.remote).ip());
            own.contains(&remote) && !own.contains(&local) && !local.is_loopback()
        };
        self.open().any(|c| CAPTURED_PORTS.contains(&c.local.port()) || to_application(c))
    }

    /// Tells whether the tunnel has any connection in the pod, idle ones with peers included.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.open().any(|c| TUNNEL_PORTS.contains(&c.local.port()))
    }

    fn open(&self) -> impl Iterator<Item = &Connection> {
        self.0.iter().filter(|(state, _)| *state == State::Open).map(|(_, socket)| socket)
    }
}

/// Closes `connections` with a reset to both ends.
///
/// One that cannot be closed is logged and stays open; the next look finds it again.
pub async fn close(namespace: &NetworkNamespace, connections: &[Connection]) {
    for Connection { local, remote, .. } in connections {
        let (local, remote) = (local.to_string(), remote.to_string());
        let filter = ["-K", "-t", "-n", "src", &local, "dst", &remote];
        match run(namespace, "ss", &filter, None).await {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr);
                warn!(local, remote, %reason, "cannot close an older connection");
            }
            Err(error) => warn!(local, remote, %error, "cannot close an older connection"),
        }
    }
}

fn parse_line(line: &str) -> Option<(State, Connection)> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let local = parse_address(columns.get(1)?)?;
    let remote = parse_address(columns.get(2)?)?;
    let state = match *columns.get(3)? {
        // Established, both kinds of waiting for the other's end, half closed.
        "01" | "04" | "05" | "08" => State::Open,
        "0A" => State::Listening,
        _ => State::Over,
    };
    let inode = columns.get(9)?.parse().ok()?;
    Some((state, Connection { local, remote, inode }))
}

/// Addresses are printed as 32-bit words in the machine's own order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 10 1 0
   1: 0501F40A:1F90 0601F40A:C350 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0
   2: 0501F40A:D431 0701F40A:0050 08 00000000:00000000 00:00000000 00000000     0        0 12 1 0
   3: 0501F40A:D432 0701F40A:0050 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0
   4: 0100007F:D433 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0
   5: 0501F40A:D434 0501F40A:1F90 01 00000000:00000000 00:00000000 00000000     0        0 14 1 0
   6: 0501F40A:3A9E 0601F40A:C351 01 00000000:00000000 00:00000000 00000000     0        0 15 1 0
   9: 0601F40A:C352 0501F40A:1F90 01 00000000:00000000 00:00000000 00000000     0        0 18 1 0
  10: 0501F40A:3AA0 0601F40A:C353 01 00000000:00000000 00:00000000 00000000     0        0 19 1 0
   7: 000010FD440201000000000005000000:1F90 000010FD440201000000000006000000:C350 01 0:0 00:0 0 0 0 16
   8: nonsense
";

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_are_sorted_by_who_opened_them_to_whom() {
        let sockets = Sockets(TABLE.lines().filter_map(parse_line).collect());
        let older = sockets.of_application();
        let ends: Vec<String> = older.iter().map(|c| format!("{} {}", c.local, c.remote)).collect();
        let want = [
            "10.244.1.5:8080 10.244.1.6:50000",
            "10.244.1.5:54321 10.244.1.7:80",
            "10.244.1.6:50002 10.244.1.5:8080",
            "[fd10:0:1:244::5]:8080 [fd10:0:1:244::6]:50000",
        ];
        assert_eq!(ends.len(), want.len(), "{ends:?}");
        assert_eq!(ends[..3], want[..3]);
        let inbound: Vec<u64> = sockets.inbound(&older).iter().map(|c| c.inode).collect();
        assert_eq!(inbound, [11, 16], "port 8080 is listened on");
        let own: [IpAddr; 1] = ["10.244.1.5".parse().unwrap()];
        let only = |inode: u64| {
            Sockets(sockets.0.iter().filter(|(_, c)| c.inode == inode).cloned().collect())
        };
        let cases = [
            // inode, carries, connected
            (11, false, false),
            (15, true, true),
            (18, true, false),
            (19, false, true),
        ];
        for (inode, carries, connected) in cases {
            let one = only(inode);
            assert_eq!((one.carries(&own), one.connected()), (carries, connected), "{inode}");
        }
        assert_eq!(sockets.still_open(&older), older);
        let reused = older.iter().map(|c| Connection { inode: c.inode + 100, ..c.clone() });
        assert_eq!(sockets.still_open(&reused.collect()), BTreeSet::new(), "another socket");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn what_the_tunnel_carries_is_not_plain() {
        // Outbound: the application's socket, and the tunnel's on 15001. Inbound: the socket that
        // the tunnel opened with the caller's address, and the application's. Then two plain ones.
        let table = "\
   1: 0501F40A:D431 0701F40A:0050 01 0:0 00:0 0 0 0 1
   2: 0100007F:3A99 0501F40A:D431 01 0:0 00:0 0 0 0 2
   3: 0601F40A:C350 0501F40A:1F90 01 0:0 00:0 0 0 0 3
   4: 0501F40A:1F90 0601F40A:C350 01 0:0 00:0 0 0 0 4
   5: 0501F40A:D432 0701F40A:0050 01 0:0 00:0 0 0 0 5
   6: 0501F40A:1F90 0601F40A:C351 01 0:0 00:0 0 0 0 6
";
        let sockets = Sockets(table.lines().filter_map(parse_line).collect());
        let plain: Vec<u64> = sockets.of_application().iter().map(|c| c.inode).collect();
        assert_eq!(plain, [6, 5]);
    }
}
