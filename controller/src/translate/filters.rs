// SPDX-License-Identifier: Apache-2.0

//! Filters of routes, from the API to the data plane.
//!
//! A filter that is not served is never left out: it becomes one that answers every request
//! with an error, as the API demands.

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use routing::filter::{
    AllowList, Cors, Filter, Fraction, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite,
    Scheme,
};
use routing::matching::HostPattern;
use routing::wire::each;

use super::backend::{self, Problem};
use super::reference_grant::From;
use crate::api::gateway as api;
use crate::store::lookup::Lookup;

/// Filters of a rule or backend.
///
/// # Errors
///
/// What is wrong with the first value that is out of its grammar: the rule cannot be served.
pub fn read(
    filters: &[api::Filter],
    from: From<'_>,
    look: &mut Lookup<'_>,
    problem: &mut Problem,
) -> Result<Vec<Filter>, String> {
    each(filters, |filter| read_one(filter, from, look, problem))
}

fn read_one(
    filter: &api::Filter,
    from: From<'_>,
    look: &mut Lookup<'_>,
    problem: &mut Problem,
) -> Result<Filter, String> {
    let kind = filter.kind.as_str();
    let missing = || format!("filter {kind} lacks its member");
    Ok(match kind {
        "RequestHeaderModifier" => {
            let change = filter.request_header_modifier.as_ref().ok_or_else(missing)?;
            Filter::RequestHeaders(modifier(change)?)
        }
        "ResponseHeaderModifier" => {
            let change = filter.response_header_modifier.as_ref().ok_or_else(missing)?;
            Filter::ResponseHeaders(modifier(change)?)
        }
        "RequestRedirect" => {
            Filter::Redirect(redirect(filter.request_redirect.as_ref().ok_or_else(missing)?)?)
        }
        "URLRewrite" => {
            let rewrite = filter.url_rewrite.as_ref().ok_or_else(missing)?;
            Filter::Rewrite(Rewrite {
                host: rewrite.hostname.as_deref().map(host).transpose()?,
                path: rewrite.path.as_ref().map(path).transpose()?,
            })
        }
        "RequestMirror" => {
            let mirror = filter.request_mirror.as_ref().ok_or_else(missing)?;
            let backend = backend::resolve(&mirror.backend_ref, from, look, problem);
            Filter::Mirror(Mirror { backend, share: share(mirror)? })
        }
        "CORS" => Filter::Cors(cors(filter.cors.as_ref().ok_or_else(missing)?)?),
        "ExtensionRef" | "ExternalAuth" => {
            Filter::Invalid { reason: format!("filter {kind} is not served").into() }
        }
        other => return Err(format!("filter {other} is not known")),
    })
}

fn modifier(change: &api::HeaderModifier) -> Result<HeaderModifier, String> {
    let pair = |header: &api::NamedValue| -> Result<(HeaderName, HeaderValue), String> {
        Ok((name(&header.name)?, value(&header.value)?))
    };
    Ok(HeaderModifier {
        set: each(&change.set, pair)?,
        add: each(&change.add, pair)?,
        remove: each(&change.remove, |text| name(text))?,
    })
}

/// Name of a header.
pub(super) fn name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| format!("{text:?} is no header name"))
}

fn value(text: &str) -> Result<HeaderValue, String> {
    text.parse().map_err(|_| format!("{text:?} is no header value"))
}

fn host(text: &str) -> Result<std::sync::Arc<str>, String> {
    match text.parse::<HostPattern>() {
        Ok(HostPattern::Exact(host)) => Ok(host),
        Ok(HostPattern::Any | HostPattern::Wildcard(_)) | Err(_) => {
            Err(format!("{text:?} is no hostname"))
        }
    }
}

fn path(modifier: &api::PathModifier) -> Result<PathModifier, String> {
    let replacement = match modifier.kind.as_str() {
        "ReplaceFullPath" => modifier.replace_full_path.as_deref(),
        "ReplacePrefixMatch" => modifier.replace_prefix_match.as_deref(),
        other => return Err(format!("path modifier {other} is not known")),
    };
    let text = replacement.ok_or_else(|| format!("{} lacks its value", modifier.kind))?;
    if http::uri::PathAndQuery::try_from(format!("/{text}")).is_err() || text.contains(['?', '#']) {
        return Err(format!("{text:?} is no path"));
    }
    Ok(match modifier.kind.as_str() {
        "ReplaceFullPath" => PathModifier::Full(text.into()),
        _ => PathModifier::Prefix(text.into()),
    })
}

fn redirect(redirect: &api::Redirect) -> Result<Redirect, String> {
    let scheme = match redirect.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => return Err(format!("scheme {other} is not known")),
    };
    let code = redirect.status_code.unwrap_or(302);
    let status = match code {
        301 | 302 | 303 | 307 | 308 => u16::try_from(code).ok(),
        _ => None,
    };
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Redirect {
        scheme,
        host: redirect.hostname.as_deref().map(host).transpose()?,
        path: redirect.path.as_ref().map(path).transpose()?,
        port: redirect.port.map(port).transpose()?,
        status: status.ok_or_else(|| format!("a redirect cannot have status {code}"))?,
    })
}

fn port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is no port")),
    }
}

fn share(mirror: &api::Mirror) -> Result<Fraction, String> {
    let (numerator, denominator) = match (mirror.percent, &mirror.fraction) {
        (None, None) => return Ok(Fraction::ALL),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => return Err("percent and fraction exclude each other".to_owned()),
    };
    match (u32::try_from(numerator), u32::try_from(denominator)) {
        (Ok(numerator), Ok(denominator)) if denominator > 0 && numerator <= denominator => {
            Ok(Fraction { numerator, denominator })
        }
        _ => Err(format!("{numerator} of {denominator} is no share")),
    }
}

fn cors(cors: &api::Cors) -> Result<Cors, String> {
    let origin = |text: &String| text.parse().map_err(|_| format!("{text:?} is no origin"));
    for method in &cors.allow_methods {
        method.parse::<http::Method>().map_err(|_| format!("{method:?} is no method"))?;
    }
    for header in cors.allow_headers.iter().chain(&cors.expose_headers) {
        name(header)?;
    }
    // The API's own default; a longer cache would outlive an edit.
    let max_age = cors.max_age.unwrap_or(5);
    Ok(Cors {
        allow_origins: each(&cors.allow_origins, origin)?,
        allow_credentials: cors.allow_credentials.unwrap_or(false),
        allow_methods: list(&cors.allow_methods),
        allow_headers: list(&cors.allow_headers),
        expose_headers: list(&cors.expose_headers),
        max_age: u32::try_from(max_age).ok().filter(|&age| age > 0),
    })
}

fn list(names: &[String]) -> AllowList {
    if names.iter().any(|name| name == "*") {
        AllowList::Any
    } else {
        AllowList::Only(names.iter().map(|name| name.as_str().into()).collect())
    }
}
