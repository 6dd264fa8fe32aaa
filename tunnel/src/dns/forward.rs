// SPDX-License-Identifier: Apache-2.0

//! Queries that the node's resolver answers.
//!
//! Owns: reading its address, and asking it from inside the pod, marked so
//! that the query is not captured again. Each query has a socket of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use crate::inpod::pods::Pod;
use crate::proxy::Core;
use crate::sys::{self, SocketSettings};

/// Longest wait for one server.
const PATIENCE: Duration = Duration::from_secs(3);

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 65_535;

/// Bytes of a message's id, which an answer repeats.
const ID_LEN: usize = 2;

/// Asks the servers one after the other; none if nobody answers.
pub(super) async fn ask(core: &Core, pod: &Pod, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
    for server in servers(&core.settings.resolver) {
        let settings = SocketSettings { mark: core.settings.mark, ..SocketSettings::default() };
        let exchange = async {
            match tcp {
                true => over_tcp(pod, server, settings, query).await,
                false => over_udp(pod, server, settings, query).await,
            }
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%error, %server, "resolver cannot be asked"),
            Err(_) => tracing::debug!(%server, "resolver does not answer"),
        }
    }
    None
}

async fn over_udp(
    pod: &Pod,
    server: SocketAddr,
    settings: SocketSettings,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = pod.netns.enter(|| sys::bind_udp(any, settings))??;
    let socket = UdpSocket::from_std(socket)?;
    // Only that server's answers are taken from now on.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answer.get(..ID_LEN) == query.get(..ID_LEN) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(
    pod: &Pod,
    server: SocketAddr,
    settings: SocketSettings,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = pod.netns.enter(|| sys::client_tcp(server, None, settings))??;
    let mut stream = socket.connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Name servers of a `resolv.conf`; read each time, for it may change.
fn servers(path: &Path) -> Vec<SocketAddr> {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace());
    let servers = words.filter_map(|mut words| match words.next() {
        Some("nameserver") => words.next()?.parse::<IpAddr>().ok(),
        Some(_) | None => None,
    });
    servers.map(|ip| SocketAddr::new(ip, 53)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_order() {
        let text =
            "# a comment\nsearch a b\nnameserver 10.96.0.10\nnameserver fd00::a\nnameserver x\n";
        let want = ["10.96.0.10:53", "[fd00::a]:53"].map(|one| one.parse().unwrap());
        assert_eq!(parse(text), want);
    }
}
