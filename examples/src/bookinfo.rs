// SPDX-License-Identifier: Apache-2.0

//! The four Bookinfo services: productpage, details, reviews, ratings.
//!
//! Owns: their HTTP behaviour as Bookinfo users know it (paths, JSON forms, forwarded
//! headers, failures shown on the page). Which version a process is, is told by the
//! environment: `SERVICE_VERSION`, `ENABLE_RATINGS`, `STAR_COLOR`.
//!
//! Start at [`run`].

use std::fmt::Write as _;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};

pub mod details;
pub mod page;
pub mod productpage;
pub mod ratings;
pub mod reviews;

/// The port that all four services listen on.
pub const PORT: u16 = 9080;

/// Which of the four services a process is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Role {
    /// The page that people see; calls details and reviews.
    Productpage,
    /// Facts about a book.
    Details,
    /// Reviews of a book, with stars from ratings in versions 2 and 3.
    Reviews,
    /// Stars for the reviews.
    Ratings,
}

/// Serves `role` at `port` until SIGTERM.
///
/// # Errors
///
/// When the port cannot be had.
pub async fn run(role: Role, port: u16) -> anyhow::Result<()> {
    match role {
        Role::Productpage => productpage::run(port).await,
        Role::Details => details::run(port).await,
        Role::Reviews => reviews::run(port).await,
        Role::Ratings => ratings::run(port).await,
    }
}

/// Headers that a service passes on, so that one trace and one user stay together.
const FORWARDED: [&str; 23] = [
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "sw8",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
    "end-user",
    "b3",
    "x-client-trace-id",
    "x-envoy-force-trace",
];

/// The part of `headers` that goes along with calls made on behalf of this request.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    FORWARDED
        .iter()
        .filter_map(|name| Some((HeaderName::from_static(name), headers.get(*name)?.clone())))
        .collect()
}

/// The environment variable `name`, or `default` when it is unset or empty.
pub fn setting(name: &str, default: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        Ok(_) | Err(_) => default.to_owned(),
    }
}

/// `host:port` of a service this one calls, from `NAME_HOSTNAME`, `NAME_SERVICE_PORT`
/// and `SERVICES_DOMAIN`.
pub fn authority_of(service: &str) -> String {
    let upper = service.to_ascii_uppercase();
    let mut authority = setting(&format!("{upper}_HOSTNAME"), service);
    let domain = setting("SERVICES_DOMAIN", "");
    if !domain.is_empty() {
        authority.push('.');
        authority.push_str(&domain);
    }
    let port = setting(&format!("{upper}_SERVICE_PORT"), "9080");
    // Kubernetes itself may set NAME_SERVICE_PORT to the number, or NAME_PORT to a URL;
    // only a number is taken.
    let port = u16::from_str(&port).unwrap_or(PORT);
    // Writing to a String cannot fail.
    let _infallible = write!(authority, ":{port}");
    authority
}

/// The number at the end of a path such as `/details/0`, if it is one.
pub fn id_after(path: &str, prefix: &str) -> Option<Result<u64, ()>> {
    let id = path.strip_prefix(prefix)?.trim_end_matches('/');
    Some(id.parse().map_err(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_and_user_headers_go_along_and_others_do_not() {
        let mut headers = HeaderMap::new();
        headers.insert("end-user", "jason".parse().unwrap());
        headers.insert("traceparent", "00-1-2-01".parse().unwrap());
        headers.insert("host", "productpage:9080".parse().unwrap());
        headers.insert("content-length", "3".parse().unwrap());
        let along = forwarded(&headers);
        assert_eq!(along.len(), 2);
        assert_eq!(along["end-user"], "jason");
    }

    #[test]
    fn an_id_is_the_number_behind_the_prefix() {
        let cases = [
            ("/details/0", Some(Ok(0))),
            ("/details/17/", Some(Ok(17))),
            ("/details/seven", Some(Err(()))),
            ("/details/", Some(Err(()))),
            ("/other/1", None),
        ];
        for (path, want) in cases {
            assert_eq!(id_after(path, "/details/"), want, "{path}");
        }
    }
}
