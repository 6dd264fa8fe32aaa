// SPDX-License-Identifier: Apache-2.0

//! The PROXY protocol, versions 1 and 2: who the client behind a balancer is.
//!
//! Owns parsing and reading of the header. A listener that asks for it refuses
//! connections without it, for else any client could claim any address.
//!
//! Rule: "The PROXY protocol", HAProxy `doc/proxy-protocol.txt`, §2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// Longest header of version 1, its end included.
const V1_MAX: usize = 107;
/// Longest header of version 2 that is taken, its type-length-values included.
const V2_MAX: usize = 4096;

/// What a header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Said {
    /// A connection on behalf of a client.
    Client {
        /// Address of the client.
        source: SocketAddr,
        /// Address that the client connected to.
        destination: SocketAddr,
    },
    /// A connection of the balancer itself, or of a family that has no address.
    Itself,
}

/// Why a connection has no usable header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyProtocolError {
    /// The first bytes are no header.
    #[error("connection does not begin with a PROXY protocol header")]
    Malformed,
    /// The connection ended or failed within the header.
    #[error("connection failed within the PROXY protocol header")]
    Io(#[source] io::Error),
}

/// Reads the header from `stream`; also gives what was read after it.
///
/// The caller sets the deadline. Dropping the future loses what was read.
pub(crate) async fn read<S>(stream: &mut S) -> Result<(Said, Bytes), ProxyProtocolError>
where
    S: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(512);
    loop {
        if let Some((said, length)) = parse(&buffer)? {
            return Ok((said, buffer.split_off(length).freeze()));
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) => return Err(ProxyProtocolError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(ProxyProtocolError::Io(error)),
        }
    }
}

/// Parses a header at the start of `bytes`; none while it may still be one.
///
/// Gives what it says and its length.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Said, usize)>, ProxyProtocolError> {
    let begins = |with: &[u8]| {
        let common = bytes.len().min(with.len());
        bytes.get(..common) == with.get(..common)
    };
    if begins(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(ProxyProtocolError::Malformed)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Said, usize)>, ProxyProtocolError> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_MAX { Ok(None) } else { Err(ProxyProtocolError::Malformed) };
    };
    if end + 2 > V1_MAX {
        return Err(ProxyProtocolError::Malformed);
    }
    let line = bytes.get(..end).and_then(|line| str::from_utf8(line).ok());
    let said = line.and_then(v1_line).ok_or(ProxyProtocolError::Malformed)?;
    Ok(Some((said, end + 2)))
}

fn v1_line(line: &str) -> Option<Said> {
    let mut words = line.split(' ');
    let (_proxy, family) = (words.next()?, words.next()?);
    if family == "UNKNOWN" {
        return Some(Said::Itself);
    }
    let mut address = || -> Option<IpAddr> {
        match family {
            "TCP4" => words.next()?.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            "TCP6" => words.next()?.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    let (source, destination) = (address()?, address()?);
    let mut port = || words.next()?.parse::<u16>().ok();
    let (source_port, destination_port) = (port()?, port()?);
    if words.next().is_some() {
        return None;
    }
    Some(Said::Client {
        source: (source, source_port).into(),
        destination: (destination, destination_port).into(),
    })
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Said, usize)>, ProxyProtocolError> {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return Ok(None) };
    let [.., version, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if V2_FIXED + length > V2_MAX {
        return Err(ProxyProtocolError::Malformed);
    }
    let Some(body) = bytes.get(V2_FIXED..V2_FIXED + length) else { return Ok(None) };
    let said = match (version, family) {
        // LOCAL: a health check of the balancer.
        (0x20, _) => Some(Said::Itself),
        (0x21, 0x11) => v2_addresses::<4>(body),
        (0x21, 0x21) => v2_addresses::<16>(body),
        // Unspecified, datagrams, Unix sockets: no address of a TCP client.
        (0x21, _) => Some(Said::Itself),
        _ => None,
    };
    let said = said.ok_or(ProxyProtocolError::Malformed)?;
    Ok(Some((said, V2_FIXED + length)))
}

fn v2_addresses<const N: usize>(body: &[u8]) -> Option<Said>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let destination_port = rest.first_chunk::<2>()?;
    let address = |ip: &[u8; N], port: &[u8; 2]| {
        SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(*port))
    };
    Some(Said::Client {
        source: address(source, source_port),
        destination: address(destination, destination_port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(source: &str, destination: &str) -> Option<Said> {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Some(Said::Client { source, destination })
    }

    fn v2(version: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE.as_slice(), &[version, family], &length, body].concat()
    }

    #[test]
    fn headers_say_who_the_client_is() {
        let four = [10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0, 80];
        let six = [[0; 15].as_slice(), &[1], &[0; 15], &[2], &[0, 1, 0, 2]].concat();
        let with_tlv = [four.as_slice(), &[4, 0, 1, 0]].concat();
        let to = client("10.0.0.1:12345", "10.0.0.2:80");
        let cases = [
            ("v1 IPv4", b"PROXY TCP4 10.0.0.1 10.0.0.2 12345 80\r\n".to_vec(), to),
            ("v1 IPv6", b"PROXY TCP6 ::1 ::2 1 2\r\n".to_vec(), client("[::1]:1", "[::2]:2")),
            ("v1 unknown", b"PROXY UNKNOWN whatever\r\n".to_vec(), Some(Said::Itself)),
            ("v1 wrong family", b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(), None),
            ("v1 port", b"PROXY TCP4 10.0.0.1 10.0.0.2 70000 80\r\n".to_vec(), None),
            ("v1 one word more", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n".to_vec(), None),
            ("v1 datagram", b"PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(), None),
            ("v2 IPv4", v2(0x21, 0x11, &four), to),
            ("v2 with values", v2(0x21, 0x11, &with_tlv), to),
            ("v2 IPv6", v2(0x21, 0x21, &six), client("[::1]:1", "[::2]:2")),
            ("v2 local", v2(0x20, 0, &[]), Some(Said::Itself)),
            ("v2 short addresses", v2(0x21, 0x21, &four), None),
            ("v2 wrong version", v2(0x31, 0x11, &four), None),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), None),
        ];
        for (name, header, want) in cases {
            let got = parse(&header).map_or(None, |parsed| parsed);
            assert_eq!(got, want.map(|said| (said, header.len())), "{name}");
            if want.is_some() {
                for cut in 0..header.len() {
                    assert!(matches!(parse(&header[..cut]), Ok(None)), "{name} cut at {cut}");
                }
                let more = [header.as_slice(), b"GET"].concat();
                assert_eq!(parse(&more).unwrap().unwrap().1, header.len(), "{name} and more");
            }
        }
    }

    #[test]
    fn endless_headers_are_refused() {
        let mut long = b"PROXY TCP4 ".to_vec();
        long.resize(V1_MAX, b'1');
        assert!(parse(&long).is_err());
        let huge = [V2_SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(parse(&huge).is_err());
    }

    #[test]
    fn changed_headers_never_panic_and_never_claim_more_than_there_is() {
        let four = [10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0, 80];
        let seeds = [b"PROXY TCP4 10.0.0.1 10.0.0.2 12345 80\r\n".to_vec(), v2(0x21, 0x11, &four)];
        let mut rolls = routing::balance::Rolls::new(7);
        for _ in 0..20_000 {
            let mut bytes = seeds[usize::try_from(rolls.below(2)).unwrap()].clone();
            for _ in 0..=rolls.below(3) {
                let place = usize::try_from(rolls.below(bytes.len() as u64)).unwrap();
                bytes[place] = rolls.roll().to_be_bytes()[0];
            }
            bytes.truncate(usize::try_from(rolls.below(60)).unwrap());
            if let Ok(Some((_, length))) = parse(&bytes) {
                assert!(length <= bytes.len(), "{bytes:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_kept() {
        let mut stream = &b"PROXY TCP4 10.0.0.1 10.0.0.2 12345 80\r\nGET / HTTP/1.1"[..];
        let (said, rest) = read(&mut stream).await.unwrap();
        assert_eq!(Some(said), client("10.0.0.1:12345", "10.0.0.2:80"));
        assert_eq!(rest, "GET / HTTP/1.1");
        assert!(read(&mut &b"PROXY TCP4 10."[..]).await.is_err(), "cut short");
    }
}
