// SPDX-License-Identifier: Apache-2.0

//! A line as one JSON object.
//!
//! Rule: keys of Istio's `accessLogEncoding: JSON`; what there is not is null.

use std::fmt::{self, Write as _};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Entry;

impl Entry<'_> {
    pub(super) fn write_json(&self, line: &mut String) -> fmt::Result {
        let start = OffsetDateTime::from(self.start).format(&Rfc3339).unwrap_or_default();
        let http = self.http.as_ref();
        let mut object = Object { line, first: true };
        object.text("start_time", Some(start.as_bytes()))?;
        object.shown("route_name", self.route)?;
        object.text("method", http.map(|http| http.method.as_bytes()))?;
        object.text("path", http.map(|http| http.target.as_bytes()))?;
        object.text("protocol", http.map(|http| http.version.as_bytes()))?;
        object.number("response_code", Some(http.map_or(0, |http| http.code.into())))?;
        object.text("response_flags", Some(self.flag.as_str().as_bytes()))?;
        object.details(self)?;
        object.text("connection_termination_details", None)?;
        object.text("upstream_transport_failure_reason", self.failure.map(str::as_bytes))?;
        object.number("bytes_received", Some(self.received.into()))?;
        object.number("bytes_sent", Some(self.sent.into()))?;
        object.number("duration", Some(self.duration.as_millis()))?;
        let service = http.and_then(|http| http.service_time);
        object.number("upstream_service_time", service.map(|time| time.as_millis()))?;
        object.text("x_forwarded_for", http.and_then(|http| http.forwarded_for))?;
        object.text("user_agent", http.and_then(|http| http.user_agent))?;
        object.text("request_id", http.and_then(|http| http.request_id))?;
        object.text("authority", http.map(|http| http.authority.as_bytes()))?;
        object.shown("upstream_host", self.upstream.as_ref().map(|to| to as &dyn fmt::Display))?;
        object.text("upstream_cluster", self.cluster.map(str::as_bytes))?;
        object.text("upstream_local_address", None)?;
        object.shown("downstream_local_address", Some(&self.local))?;
        object.shown("downstream_remote_address", Some(&self.remote))?;
        object.text("requested_server_name", self.sni.map(str::as_bytes))?;
        line.write_char('}')
    }
}

/// An object as it grows.
struct Object<'a> {
    line: &'a mut String,
    first: bool,
}

impl Object<'_> {
    /// A key; it needs no escapes.
    fn key(&mut self, key: &'static str) -> fmt::Result {
        let before = if std::mem::take(&mut self.first) { '{' } else { ',' };
        write!(self.line, "{before}\"{key}\":")
    }

    fn number(&mut self, key: &'static str, value: Option<u128>) -> fmt::Result {
        self.key(key)?;
        match value {
            Some(value) => write!(self.line, "{value}"),
            None => self.line.write_str("null"),
        }
    }

    fn text(&mut self, key: &'static str, value: Option<&[u8]>) -> fmt::Result {
        let text = value.map(String::from_utf8_lossy);
        self.shown(key, text.as_ref().map(|text| text as &dyn fmt::Display))
    }

    fn shown(&mut self, key: &'static str, value: Option<&dyn fmt::Display>) -> fmt::Result {
        self.key(key)?;
        let Some(value) = value else { return self.line.write_str("null") };
        self.line.push('"');
        write!(Escaped(self.line), "{value}")?;
        self.line.write_char('"')
    }

    /// The detail, with the policy that refused; neither needs escapes.
    fn details(&mut self, entry: &Entry<'_>) -> fmt::Result {
        self.key("response_code_details")?;
        self.line.push('"');
        self.line.push_str(entry.detail);
        entry.write_denied(self.line)?;
        self.line.write_char('"')
    }
}

/// Writes text so that it stays inside a JSON string.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '"' | '\\' => {
                    self.0.push('\\');
                    self.0.push(character);
                }
                control if control.is_control() => {
                    let code = u32::from(control);
                    write!(self.0, "\\u{code:04x}")?;
                }
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use policy::authz::{Denied, PolicyName};
    use routing::gateway::LogFormat;

    use super::*;
    use crate::access_log::tests::refused;
    use crate::reply::Flag;

    #[test]
    fn a_request_has_the_keys_of_istio() {
        let denied = Denied::NotAllowed(PolicyName::new("shop", "only-web"));
        let entry = refused(&denied);
        let json: serde_json::Value = serde_json::from_str(&entry.line(LogFormat::Json)).unwrap();
        let want = serde_json::json!({
            "start_time": "1970-01-01T00:00:00Z",
            "route_name": "HTTPRoute/shop/reviews/0",
            "method": "GET",
            "path": "/a\"b\n?c",
            "protocol": "HTTP/1.1",
            "response_code": 403,
            "response_flags": "DENY",
            "response_code_details": "rbac_access_denied_matched_policy[shop/only-web]",
            "connection_termination_details": null,
            "upstream_transport_failure_reason": null,
            "bytes_received": 0,
            "bytes_sent": 19,
            "duration": 1,
            "upstream_service_time": null,
            "x_forwarded_for": "10.0.0.9",
            "user_agent": "curl\u{fffd}",
            "request_id": "id-1",
            "authority": "reviews:9080",
            "upstream_host": null,
            "upstream_cluster": "shop/reviews.shop.svc.cluster.local",
            "upstream_local_address": null,
            "downstream_local_address": "10.96.0.5:9080",
            "downstream_remote_address": "10.244.1.2:40000",
            "requested_server_name": null,
        });
        assert_eq!(json, want);
    }

    #[test]
    fn a_connection_has_the_same_keys_without_a_request() {
        let entry = Entry {
            start: SystemTime::UNIX_EPOCH,
            http: None,
            flag: Flag::None,
            detail: "-",
            denied: None,
            authentication: None,
            failure: Some("timed \"out\""),
            received: 3,
            sent: 4,
            duration: Duration::from_secs(2),
            upstream: Some("10.244.1.3:9000".parse().unwrap()),
            cluster: None,
            local: "10.96.0.5:9000".parse().unwrap(),
            remote: "10.244.1.2:40000".parse().unwrap(),
            sni: Some("a.example"),
            route: None,
        };
        let json: serde_json::Value = serde_json::from_str(&entry.line(LogFormat::Json)).unwrap();
        assert_eq!(json["response_code"], 0, "as Envoy has it for connections");
        assert_eq!(json["method"], serde_json::Value::Null);
        assert_eq!(json["upstream_transport_failure_reason"], "timed \"out\"");
        assert_eq!(json["upstream_host"], "10.244.1.3:9000");
        assert_eq!(json["requested_server_name"], "a.example");
        assert_eq!(json.as_object().unwrap().len(), 24);
    }
}
