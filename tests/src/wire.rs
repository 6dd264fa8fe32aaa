// SPDX-License-Identifier: Apache-2.0

//! Listens to what crosses the links of network namespaces.
//!
//! Owns: packet sockets that see every frame of every device of a namespace, both ways,
//! and the search for a marker in them. Frames of a loopback device are left out: what a
//! pod says to itself crosses no link.
//!
//! Start at [`Capture::start`].

use std::io::{self, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// All protocols of a link, in the order of bytes that the kernel wants: `ETH_P_ALL`.
const ALL: u16 = 0x0003_u16.to_be();

/// Room for frames that wait to be looked at; a capture that loses some proves nothing.
const ROOM: usize = 256 << 20;

/// Longest frame: segments are joined up to 64 KiB on virtual links, and more on some.
const FRAME: usize = 1 << 20;

/// How often a listener looks whether it is told to end.
const LOOK: Duration = Duration::from_millis(20);

/// What was seen in one namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Name of the namespace.
    pub namespace: String,
    /// Occurrences of the marker.
    pub markers: usize,
    /// TCP frames to or from the HBONE port.
    pub hbone: usize,
}

/// Listeners in several namespaces.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<Seen>>>,
}

impl Capture {
    /// Listens in each of `namespaces` for frames that hold `marker`.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn start(namespaces: &[&Netns], marker: &[u8]) -> anyhow::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let mut threads = Vec::new();
        for namespace in namespaces {
            let socket = namespace.enter(listener)??;
            let (marker, stop) = (marker.to_vec(), Arc::clone(&stop));
            let seen = Seen { namespace: namespace.name().to_owned(), ..Seen::default() };
            threads.push(std::thread::spawn(move || listen(socket, &marker, &stop, seen)));
        }
        Ok(Self { stop, threads })
    }

    /// Looks at all frames up to now, and tells what was in them.
    ///
    /// # Errors
    ///
    /// When a socket failed: then what was seen proves nothing.
    pub fn finish(mut self) -> anyhow::Result<Vec<Seen>> {
        self.stop.store(true, Ordering::SeqCst);
        let threads = std::mem::take(&mut self.threads).into_iter();
        threads.map(|one| Ok(one.join().map_err(|_| anyhow!("a listener panicked"))??)).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn listener() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ALL))))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, ROOM)?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn listen(mut socket: Socket, marker: &[u8], stop: &AtomicBool, seen: Seen) -> io::Result<Seen> {
    let mut seen = seen;
    let mut frame = vec![0; FRAME];
    loop {
        // What was sent before the word to end waits in the socket already.
        let last = stop.load(Ordering::SeqCst);
        match socket.read(&mut frame) {
            Ok(length) => {
                let frame = frame.get(..length).unwrap_or_default();
                if !is_loopback(frame) {
                    seen.markers += count(frame, marker);
                    seen.hbone += usize::from(is_hbone(frame));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if last {
                    return Ok(seen);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Loopback devices have no hardware addresses: both ends are zero.
fn is_loopback(frame: &[u8]) -> bool {
    frame.get(..12).is_some_and(|ends| ends.iter().all(|byte| *byte == 0))
}

fn count(frame: &[u8], marker: &[u8]) -> usize {
    frame.windows(marker.len()).filter(|part| *part == marker).count()
}

/// Tells whether a frame is TCP to or from the HBONE port; extension headers of IPv6 are
/// not looked through, for nobody here sends them.
fn is_hbone(frame: &[u8]) -> bool {
    let at = |place: usize| frame.get(place).copied().unwrap_or_default();
    let (protocol, ports) = match (at(12), at(13)) {
        (0x08, 0x00) => (at(14 + 9), 14 + usize::from(at(14) & 0xf) * 4),
        (0x86, 0xdd) => (at(14 + 6), 14 + 40),
        _ => return false,
    };
    let port = |place: usize| u16::from_be_bytes([at(place), at(place + 1)]);
    protocol == 6 && [port(ports), port(ports + 2)].contains(&tunnel::hbone::PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart() {
        let mut frame = vec![0; 60];
        assert!(is_loopback(&frame));
        frame[0] = 2;
        (frame[12], frame[14], frame[23]) = (0x08, 0x45, 6);
        assert!(!is_loopback(&frame) && !is_hbone(&frame));
        frame[36..38].copy_from_slice(&15008_u16.to_be_bytes());
        assert!(is_hbone(&frame));
        frame[50..52].copy_from_slice(b"mm");
        frame[52] = b'm';
        assert_eq!(count(&frame, b"mm"), 2);
    }
}
