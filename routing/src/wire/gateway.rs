// SPDX-License-Identifier: Apache-2.0

//! `waymark.v1.Gateway`: settings of one gateway, both ways.

use super::error::WireError;
use super::messages::waymark::v1 as wire;
use crate::gateway::{Gateway, GatewayKind, LogFormat, Tracing};

/// Reads a message.
///
/// # Errors
///
/// See [`WireError`]; nothing is taken from a message that is wrong in part.
pub fn read(message: &wire::Gateway) -> Result<Gateway, WireError> {
    Ok(Gateway {
        name: value("name", &message.name)?,
        kind: match message.kind() {
            wire::GatewayKind::Ingress => GatewayKind::Ingress,
            wire::GatewayKind::Waypoint => GatewayKind::Waypoint,
            wire::GatewayKind::Unspecified => {
                return Err(WireError::Unknown("kind", message.kind));
            }
        },
        class: message.class.as_str().into(),
        trusted_hops: message.trusted_hops,
        tracing: message.tracing.as_ref().map(read_tracing).transpose()?,
        access_log: read_log(message)?,
        client_certificate: optional(&message.client_certificate, |text| {
            value("client_certificate", text)
        })?,
    })
}

fn read_log(message: &wire::Gateway) -> Result<Option<LogFormat>, WireError> {
    let format = match wire::LogFormat::try_from(message.log_format) {
        Ok(wire::LogFormat::Text) => LogFormat::Text,
        Ok(wire::LogFormat::Json) => LogFormat::Json,
        Err(_) => return Err(WireError::Unknown("log_format", message.log_format)),
    };
    Ok(message.access_log.then_some(format))
}

fn read_tracing(message: &wire::Tracing) -> Result<Tracing, WireError> {
    if message.endpoint.is_empty() {
        return Err(WireError::Missing("endpoint"));
    }
    if message.sampled_per_million > 1_000_000 {
        let text = message.sampled_per_million.to_string();
        return Err(WireError::Value("sampled_per_million", text));
    }
    Ok(Tracing {
        endpoint: message.endpoint.as_str().into(),
        sampled_per_million: message.sampled_per_million,
    })
}

/// Writes a message.
#[must_use]
pub fn write(gateway: &Gateway) -> wire::Gateway {
    let kind = match gateway.kind {
        GatewayKind::Ingress => wire::GatewayKind::Ingress,
        GatewayKind::Waypoint => wire::GatewayKind::Waypoint,
    };
    wire::Gateway {
        name: gateway.name.to_string(),
        kind: kind.into(),
        class: gateway.class.to_string(),
        trusted_hops: gateway.trusted_hops,
        tracing: gateway.tracing.as_ref().map(|tracing| wire::Tracing {
            endpoint: tracing.endpoint.to_string(),
            sampled_per_million: tracing.sampled_per_million,
        }),
        access_log: gateway.access_log.is_some(),
        log_format: match gateway.access_log {
            None | Some(LogFormat::Text) => wire::LogFormat::Text,
            Some(LogFormat::Json) => wire::LogFormat::Json,
        }
        .into(),
        client_certificate: gateway
            .client_certificate
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
    }
}

/// A value with a grammar of its own.
pub(super) fn value<T>(field: &'static str, text: &str) -> Result<T, WireError>
where
    T: std::str::FromStr<Err: std::error::Error>,
{
    text.parse().map_err(|error: T::Err| WireError::Value(field, super::error::chain(&error)))
}

/// A text that may be empty, which stands for none.
pub(super) fn optional<T>(
    text: &str,
    read: impl FnOnce(&str) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Gateway {
        Gateway {
            name: "ns/gw".parse().unwrap(),
            kind: GatewayKind::Waypoint,
            class: "waymark-waypoint".into(),
            trusted_hops: 2,
            tracing: Some(Tracing { endpoint: "otel:4317".into(), sampled_per_million: 10_000 }),
            access_log: Some(LogFormat::Json),
            client_certificate: Some("ns/client".parse().unwrap()),
        }
    }

    #[test]
    fn gateways_read_back_as_written() {
        let bare = Gateway {
            kind: GatewayKind::Ingress,
            tracing: None,
            access_log: None,
            client_certificate: None,
            ..gateway()
        };
        let text = Gateway { access_log: Some(LogFormat::Text), ..gateway() };
        for gateway in [gateway(), bare, text] {
            assert_eq!(read(&write(&gateway)), Ok(gateway));
        }
    }

    #[test]
    fn a_message_that_is_wrong_in_part_is_refused() {
        let good = write(&gateway());
        let tracing = |endpoint: &str, sampled_per_million| {
            Some(wire::Tracing { endpoint: endpoint.into(), sampled_per_million })
        };
        let bad = [
            wire::Gateway { name: "gw".into(), ..good.clone() },
            wire::Gateway { kind: 0, ..good.clone() },
            wire::Gateway { kind: 9, ..good.clone() },
            wire::Gateway { log_format: 9, ..good.clone() },
            wire::Gateway { tracing: tracing("", 1), ..good.clone() },
            wire::Gateway { tracing: tracing("a:1", 1_000_001), ..good.clone() },
            wire::Gateway { client_certificate: "x".into(), ..good },
        ];
        for message in bad {
            assert!(read(&message).is_err(), "{message:?}");
        }
    }
}
