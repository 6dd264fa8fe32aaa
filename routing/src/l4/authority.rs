// SPDX-License-Identifier: Apache-2.0

//! What a CONNECT asks for: `address:port` or `name:port`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// What a CONNECT asks for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Authority {
    /// An address; printed with brackets if it is IPv6.
    Address(SocketAddr),
    /// A hostname in small letters, and a port.
    Name(Arc<str>, u16),
}

impl Authority {
    /// Its port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }

    /// Its address, unless it is a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(address.ip()),
            Self::Name(..) => None,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Text that is neither `address:port` nor `name:port`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not host:port")]
pub struct InvalidAuthority(pub String);

impl FromStr for Authority {
    type Err = InvalidAuthority;

    /// Reads an authority; the port must be there and not zero.
    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        let invalid = || InvalidAuthority(text.to_owned());
        let authority = match text.parse::<SocketAddr>() {
            Ok(address) => Self::Address(address),
            Err(_) => {
                let (name, port) = text.rsplit_once(':').ok_or_else(invalid)?;
                let digits = port.bytes().all(|b| b.is_ascii_digit());
                let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
                // All digits and dots would be an address that did not parse.
                let address = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
                if !digits || name.len() > 253 || address || !name.bytes().all(legal) {
                    return Err(invalid());
                }
                let port = port.parse().map_err(|_| invalid())?;
                Self::Name(name.to_ascii_lowercase().into(), port)
            }
        };
        if authority.port() == 0 { Err(invalid()) } else { Ok(authority) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_address_or_name_with_a_port() {
        let cases = [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("[fd00::1]:443", Some("[fd00::1]:443")),
            ("Reviews.bookinfo.svc:9080", Some("reviews.bookinfo.svc:9080")),
            ("10.0.0.1", None),
            ("10.0.0.1:0", None),
            ("10.0.0:80", None),
            ("fd00::1:443", None),
            ("name", None),
            ("name:", None),
            ("name:+80", None),
            ("name:65536", None),
            (":80", None),
            ("user@name:80", None),
            ("na me:80", None),
            ("", None),
        ];
        for (text, want) in cases {
            let authority = text.parse::<Authority>();
            let printed = authority.map(|authority| authority.to_string());
            let want = want.map(str::to_owned).ok_or(InvalidAuthority(text.to_owned()));
            assert_eq!(printed, want, "{text}");
        }
    }
}
