// SPDX-License-Identifier: Apache-2.0

//! What a gateway listens on: one [`Listener`] per entry of a Gateway or ListenerSet.
//!
//! Owns the values that say where a proxy binds, which protocol it speaks there and how it
//! proves itself. Which routes answer behind a listener is `table`'s; binding sockets is the
//! gateway's. A listener that reaches the data plane is sound: the controller sends none whose
//! certificates do not resolve.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::matching::HostPattern;

/// Text that is no `namespace/name` (or longer) resource name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no name of {1} parts")]
pub struct InvalidResourceName(String, usize);

fn check(text: &str, parts: usize, more: bool) -> Result<Arc<str>, InvalidResourceName> {
    let count = text.split('/').count();
    let counted = if more { count >= parts } else { count == parts };
    if counted && text.split('/').all(|part| !part.is_empty()) {
        Ok(text.into())
    } else {
        Err(InvalidResourceName(text.to_owned(), parts))
    }
}

/// Name of a Gateway: `namespace/name`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GatewayName(Arc<str>);

impl GatewayName {
    /// The name as text, `namespace/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace of the Gateway.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name of the Gateway without its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl FromStr for GatewayName {
    type Err = InvalidResourceName;

    fn from_str(text: &str) -> Result<Self, InvalidResourceName> {
        check(text, 2, false).map(Self)
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a listener: `namespace/gateway/section`.
///
/// An entry of a ListenerSet belongs to the Gateway that the set points at and is named
/// `namespace/gateway/set-namespace/set-name/section`, so it never meets a Gateway's own entry.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ListenerName(Arc<str>);

impl ListenerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The Gateway whose proxy serves this listener.
    #[must_use]
    pub fn gateway(&self) -> GatewayName {
        let mut parts = self.0.splitn(3, '/');
        let (namespace, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        GatewayName(format!("{namespace}/{name}").into())
    }

    /// The name of the entry within its Gateway or ListenerSet.
    #[must_use]
    pub fn section(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(_, section)| section)
    }
}

impl FromStr for ListenerName {
    type Err = InvalidResourceName;

    fn from_str(text: &str) -> Result<Self, InvalidResourceName> {
        check(text, 3, true).map(Self)
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a certificate with its key: `namespace/name`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SecretName(Arc<str>);

impl SecretName {
    /// The name as text, `namespace/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = InvalidResourceName;

    fn from_str(text: &str) -> Result<Self, InvalidResourceName> {
        check(text, 2, false).map(Self)
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One port a gateway answers on, for one hostname pattern.
///
/// Rule: `Listener` in Gateway API `apis/v1/gateway_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listener {
    /// Whose and which entry.
    pub name: ListenerName,
    /// The port as declared; redirects and parent references mean this one.
    pub port: u16,
    /// Where the process binds; equal to `port` unless the pod may not bind it.
    pub target_port: u16,
    /// What is spoken on the port.
    pub protocol: Protocol,
    /// Hosts this listener is for; [`HostPattern::Any`] if it names none.
    pub hostname: HostPattern,
    /// Present for `Https` and `Tls`.
    pub tls: Option<ListenerTls>,
    /// Every connection begins with a PROXY protocol header that names the client.
    pub proxy_protocol: bool,
}

/// What is spoken on a listener's port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// Cleartext HTTP/1.1 and HTTP/2 with prior knowledge.
    Http,
    /// HTTP inside TLS that ends here.
    Https,
    /// TLS by SNI; see [`TlsMode`].
    Tls,
    /// Bytes.
    Tcp,
    /// Datagrams.
    Udp,
    /// HTTP/2 CONNECT in mesh mTLS: the port of a waypoint.
    Hbone,
}

/// How a listener speaks TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenerTls {
    /// Where the TLS session ends.
    pub mode: TlsMode,
    /// Certificates to choose from by SNI; the first is the default. Empty for passthrough.
    pub secrets: Vec<SecretName>,
    /// Present if clients are asked for a certificate.
    pub client_validation: Option<ClientValidation>,
}

/// Where the TLS session of a client ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    /// Here.
    Terminate,
    /// At the backend; only the SNI is read.
    Passthrough,
}

/// Which client certificates a listener takes.
///
/// Rule: `FrontendTLSValidation` in Gateway API `apis/v1/gateway_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientValidation {
    /// Trusted roots, PEM, at least one certificate.
    pub ca_pem: Arc<str>,
    /// What happens without a certificate of those roots.
    pub mode: ClientValidationMode,
}

/// What happens to a client without a valid certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientValidationMode {
    /// The handshake fails.
    AllowValidOnly,
    /// A certificate is asked for, and any or none is taken.
    AllowInsecureFallback,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_right_number_of_parts() {
        assert!("ns/gw".parse::<GatewayName>().is_ok());
        for bad in ["", "ns", "ns/", "/gw", "ns/gw/x"] {
            assert!(bad.parse::<GatewayName>().is_err(), "{bad:?}");
        }
        for bad in ["ns/gw", "ns/gw/", "ns//section"] {
            assert!(bad.parse::<ListenerName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn listener_of_a_set_belongs_to_the_gateway() {
        let name: ListenerName = "infra/gw/team/set/https".parse().unwrap();
        assert_eq!(name.gateway().as_str(), "infra/gw");
        assert_eq!(name.section(), "https");
    }
}
