// SPDX-License-Identifier: Apache-2.0

//! Where to, as a user writes it: a URL, a Service or pod, an address.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Where to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    pub(super) place: Place,
    pub(super) port: Option<u16>,
    /// Path and query of a request.
    pub(super) path: String,
    /// A request over plain HTTP.
    pub(super) http: bool,
    /// A request inside TLS.
    pub(super) tls: bool,
    /// A URL of any scheme.
    url: bool,
}

/// What is named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// A name that DNS answers.
    Host(String),
    /// A Service, or a pod.
    Object {
        /// Its namespace; the caller's own when it is not said.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// An address.
    Address(IpAddr),
}

impl Target {
    /// A connection to `place`.
    fn connection(place: Place, port: Option<u16>) -> Self {
        Self { place, port, path: "/".to_owned(), http: false, tls: false, url: false }
    }

    /// Whether it was written as a URL.
    pub(super) fn is_url(&self) -> bool {
        self.url
    }

    /// The port of the scheme.
    pub(super) fn usual_port(&self) -> Option<u16> {
        match (self.http, self.tls) {
            (true, _) => Some(80),
            (_, true) => Some(443),
            _ => None,
        }
    }

    /// Whether it is this machine.
    pub(super) fn is_localhost(&self) -> bool {
        match &self.place {
            Place::Host(name) => name == "localhost",
            Place::Address(ip) => ip.is_loopback(),
            Place::Object { .. } => false,
        }
    }

    /// The host that a request names.
    pub(super) fn authority(&self) -> String {
        let host = match &self.place {
            Place::Host(name) | Place::Object { name, .. } => name.clone(),
            Place::Address(IpAddr::V4(ip)) => ip.to_string(),
            Place::Address(IpAddr::V6(ip)) => format!("[{ip}]"),
        };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return url(text);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::connection(Place::Address(address.ip()), Some(address.port())));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::connection(Place::Address(ip), None));
        }
        let (named, port) = match text.rsplit_once(':') {
            Some((named, port)) => (named, Some(number(port)?)),
            None => (text, None),
        };
        let (namespace, name) = match named.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, named),
        };
        if name.is_empty() || name.contains('/') || namespace.as_deref() == Some("") {
            return Err("no name in it".to_owned());
        }
        let place = if namespace.is_none() && name.contains('.') {
            Place::Host(name.to_owned())
        } else {
            Place::Object { namespace, name: name.to_owned() }
        };
        Ok(Self::connection(place, port))
    }
}

fn number(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{text:?} is no port"))
}

fn url(text: &str) -> Result<Target, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    let authority = uri.authority().ok_or("no host in it")?;
    let (http, tls) = match uri.scheme_str() {
        Some("http") => (true, false),
        Some("https") => (false, true),
        Some("tcp") => (false, false),
        other => return Err(format!("{} is not http, https or tcp", other.unwrap_or_default())),
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let place = match host.parse() {
        Ok(ip) => Place::Address(ip),
        Err(_) if host.is_empty() => return Err("no host in it".to_owned()),
        Err(_) => Place::Host(host.to_ascii_lowercase()),
    };
    let port = authority.port().map(|port| number(port.as_str())).transpose()?;
    let path = uri.path_and_query().map(ToString::to_string);
    let path = path.filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    Ok(Target { place, port, path, http, tls, url: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_people_write_them() {
        let host = |name: &str| Place::Host(name.to_owned());
        let object = |namespace: Option<&str>, name: &str| Place::Object {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        let cases = [
            // text, place, port, usual port, path
            (
                "http://ratings.bookinfo:9080/r/0?a=1",
                host("ratings.bookinfo"),
                Some(9080),
                Some(80),
                "/r/0?a=1",
            ),
            ("http://LOCALHOST", host("localhost"), None, Some(80), "/"),
            ("https://shop.example/x", host("shop.example"), None, Some(443), "/x"),
            (
                "http://[fd00::1]:80/",
                Place::Address("fd00::1".parse().unwrap()),
                Some(80),
                Some(80),
                "/",
            ),
            ("tcp://db.prod:5432", host("db.prod"), Some(5432), None, "/"),
            ("bookinfo/reviews:9080", object(Some("bookinfo"), "reviews"), Some(9080), None, "/"),
            ("bookinfo/reviews", object(Some("bookinfo"), "reviews"), None, None, "/"),
            ("reviews:9080", object(None, "reviews"), Some(9080), None, "/"),
            ("reviews.bookinfo.svc:9080", host("reviews.bookinfo.svc"), Some(9080), None, "/"),
            ("10.0.0.1:80", Place::Address("10.0.0.1".parse().unwrap()), Some(80), None, "/"),
            ("[fd00::1]:80", Place::Address("fd00::1".parse().unwrap()), Some(80), None, "/"),
            ("10.0.0.1", Place::Address("10.0.0.1".parse().unwrap()), None, None, "/"),
        ];
        for (text, place, port, usual, path) in cases {
            let target: Target = text.parse().unwrap();
            let got = (&target.place, target.port, target.usual_port(), target.path.as_str());
            assert_eq!(got, (&place, port, usual, path), "{text}");
        }
    }

    #[test]
    fn what_is_no_target_says_so() {
        for text in ["", "a/b/c", "/reviews", "reviews:http", "reviews:0", "ftp://x/", "http:///x"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_names_the_host_that_was_written() {
        let cases = [
            ("http://a.b:80/", "a.b:80"),
            ("http://a.b/", "a.b"),
            ("http://[fd00::1]:81/", "[fd00::1]:81"),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Target>().unwrap().authority(), want, "{text}");
        }
    }
}
