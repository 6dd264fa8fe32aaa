// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.Listener`: where a gateway listens, both ways.

use super::error::{WireError, port};
use super::gateway::value;
use super::messages::waymark::v1 as wire;
use crate::listener::{
    ClientValidation, ClientValidationMode, Listener, ListenerTls, Protocol, TlsMode,
};
use crate::matching::HostPattern;

/// Reads a message.
///
/// # Errors
///
/// See [`WireError`]; nothing is taken from a message that is wrong in part.
pub fn read(message: &wire::Listener) -> Result<Listener, WireError> {
    let declared = port("port", message.port)?;
    let protocol = read_protocol(message)?;
    let tls = message.tls.as_ref().map(read_tls).transpose()?;
    let wants_tls = matches!(protocol, Protocol::Https | Protocol::Tls);
    match &tls {
        None if wants_tls => return Err(WireError::Missing("tls")),
        Some(_) if !wants_tls => {
            return Err(WireError::Value("tls", format!("not for {protocol:?}")));
        }
        Some(tls) if protocol == Protocol::Https && tls.mode == TlsMode::Passthrough => {
            return Err(WireError::Value("tls.mode", "HTTPS ends here".to_owned()));
        }
        _ => {}
    }
    Ok(Listener {
        name: value("name", &message.name)?,
        port: declared,
        target_port: match message.target_port {
            0 => declared,
            number => port("target_port", number)?,
        },
        protocol,
        hostname: read_host("hostname", &message.hostname)?,
        tls,
        proxy_protocol: message.proxy_protocol,
    })
}

fn read_protocol(message: &wire::Listener) -> Result<Protocol, WireError> {
    Ok(match message.protocol() {
        wire::ListenerProtocol::Http => Protocol::Http,
        wire::ListenerProtocol::Https => Protocol::Https,
        wire::ListenerProtocol::Tls => Protocol::Tls,
        wire::ListenerProtocol::Tcp => Protocol::Tcp,
        wire::ListenerProtocol::Udp => Protocol::Udp,
        wire::ListenerProtocol::Hbone => Protocol::Hbone,
        wire::ListenerProtocol::Unspecified => {
            return Err(WireError::Unknown("protocol", message.protocol));
        }
    })
}

fn read_tls(message: &wire::ListenerTls) -> Result<ListenerTls, WireError> {
    let mode = match message.mode() {
        wire::TlsMode::Terminate => TlsMode::Terminate,
        wire::TlsMode::Passthrough => TlsMode::Passthrough,
        wire::TlsMode::Unspecified => return Err(WireError::Unknown("tls.mode", message.mode)),
    };
    if mode == TlsMode::Terminate && message.secrets.is_empty() {
        return Err(WireError::Missing("tls.secrets"));
    }
    let secrets = message.secrets.iter().map(|name| value("tls.secrets", name));
    let validation = message.client_validation.as_ref().map(|validation| {
        if validation.ca_pem.is_empty() {
            return Err(WireError::Missing("client_validation.ca_pem"));
        }
        Ok(ClientValidation {
            ca_pem: validation.ca_pem.as_str().into(),
            mode: match validation.insecure_fallback {
                true => ClientValidationMode::AllowInsecureFallback,
                false => ClientValidationMode::AllowValidOnly,
            },
        })
    });
    Ok(ListenerTls {
        mode,
        secrets: secrets.collect::<Result<_, _>>()?,
        client_validation: validation.transpose()?,
    })
}

/// A host pattern; the empty text is any host.
pub(super) fn read_host(field: &'static str, text: &str) -> Result<HostPattern, WireError> {
    if text.is_empty() { Ok(HostPattern::Any) } else { value(field, text) }
}

/// What [`read_host`] reads.
pub(super) fn write_host(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Any => String::new(),
        HostPattern::Wildcard(_) | HostPattern::Exact(_) => pattern.to_string(),
    }
}

/// Writes a message.
#[must_use]
pub fn write(listener: &Listener) -> wire::Listener {
    let protocol = match listener.protocol {
        Protocol::Http => wire::ListenerProtocol::Http,
        Protocol::Https => wire::ListenerProtocol::Https,
        Protocol::Tls => wire::ListenerProtocol::Tls,
        Protocol::Tcp => wire::ListenerProtocol::Tcp,
        Protocol::Udp => wire::ListenerProtocol::Udp,
        Protocol::Hbone => wire::ListenerProtocol::Hbone,
    };
    wire::Listener {
        name: listener.name.to_string(),
        port: listener.port.into(),
        target_port: listener.target_port.into(),
        protocol: protocol.into(),
        hostname: write_host(&listener.hostname),
        tls: listener.tls.as_ref().map(write_tls),
        proxy_protocol: listener.proxy_protocol,
    }
}

fn write_tls(tls: &ListenerTls) -> wire::ListenerTls {
    let mode = match tls.mode {
        TlsMode::Terminate => wire::TlsMode::Terminate,
        TlsMode::Passthrough => wire::TlsMode::Passthrough,
    };
    let validation = tls.client_validation.as_ref().map(|validation| wire::ClientValidation {
        ca_pem: validation.ca_pem.to_string(),
        insecure_fallback: validation.mode == ClientValidationMode::AllowInsecureFallback,
    });
    wire::ListenerTls {
        mode: mode.into(),
        secrets: tls.secrets.iter().map(ToString::to_string).collect(),
        client_validation: validation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn https() -> Listener {
        Listener {
            name: "ns/gw/https".parse().unwrap(),
            port: 443,
            target_port: 8443,
            protocol: Protocol::Https,
            hostname: "*.example.com".parse().unwrap(),
            tls: Some(ListenerTls {
                mode: TlsMode::Terminate,
                secrets: vec!["ns/tls".parse().unwrap(), "ns/other".parse().unwrap()],
                client_validation: Some(ClientValidation {
                    ca_pem: "-----BEGIN".into(),
                    mode: ClientValidationMode::AllowInsecureFallback,
                }),
            }),
            proxy_protocol: true,
        }
    }

    #[test]
    fn listeners_read_back_as_written() {
        let passthrough = ListenerTls {
            mode: TlsMode::Passthrough,
            secrets: Vec::new(),
            client_validation: None,
        };
        let tls = Listener { protocol: Protocol::Tls, tls: Some(passthrough), ..https() };
        let plain =
            [Protocol::Http, Protocol::Tcp, Protocol::Udp, Protocol::Hbone].map(|protocol| {
                Listener { protocol, tls: None, hostname: HostPattern::Any, ..https() }
            });
        for listener in [https(), tls].into_iter().chain(plain) {
            assert_eq!(read(&write(&listener)), Ok(listener));
        }
    }

    #[test]
    fn a_message_that_is_wrong_in_part_is_refused() {
        let good = write(&https());
        let with_tls = |change: fn(&mut wire::ListenerTls)| {
            let mut message = good.clone();
            change(message.tls.as_mut().unwrap());
            message
        };
        let bad = [
            wire::Listener { name: "ns/gw".into(), ..good.clone() },
            wire::Listener { port: 0, ..good.clone() },
            wire::Listener { port: 65_536, ..good.clone() },
            wire::Listener { target_port: 65_536, ..good.clone() },
            wire::Listener { protocol: 0, ..good.clone() },
            wire::Listener { protocol: 1, ..good.clone() },
            wire::Listener { hostname: "*".into(), ..good.clone() },
            wire::Listener { tls: None, ..good.clone() },
            with_tls(|tls| tls.mode = 0),
            with_tls(|tls| tls.mode = 2),
            with_tls(|tls| tls.secrets.clear()),
            with_tls(|tls| tls.secrets[0] = "name".into()),
            with_tls(|tls| tls.client_validation = Some(wire::ClientValidation::default())),
        ];
        for message in bad {
            assert!(read(&message).is_err(), "{message:?}");
        }
    }
}
