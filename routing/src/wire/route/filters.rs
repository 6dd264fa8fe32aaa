// SPDX-License-Identifier: Apache-2.0

//! Filters of a rule or backend.

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::super::error::{WireError, each, port_or_zero};
use super::super::gateway::{optional, value};
use super::super::messages::waymark::v1 as wire;
use super::{read_target, write_target};
use crate::filter::{
    AllowList, Cors, Filter, Fraction, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite,
    Scheme,
};

pub(super) fn read_filters(messages: &[wire::RouteFilter]) -> Result<Vec<Filter>, WireError> {
    each(messages, read_filter)
}

fn read_filter(message: &wire::RouteFilter) -> Result<Filter, WireError> {
    use wire::route_filter::Kind;
    Ok(match message.kind.as_ref().ok_or(WireError::Missing("filters.kind"))? {
        Kind::RequestHeaders(change) => Filter::RequestHeaders(read_modifier(change)?),
        Kind::ResponseHeaders(change) => Filter::ResponseHeaders(read_modifier(change)?),
        Kind::Redirect(redirect) => Filter::Redirect(read_redirect(redirect)?),
        Kind::Rewrite(rewrite) => Filter::Rewrite(Rewrite {
            host: optional(&rewrite.host, read_host)?,
            path: rewrite.path.as_ref().map(read_modified_path).transpose()?,
        }),
        Kind::Mirror(mirror) => Filter::Mirror(read_mirror(mirror)?),
        Kind::Cors(cors) => Filter::Cors(read_cors(cors)?),
        Kind::Invalid(reason) => Filter::Invalid { reason: reason.as_str().into() },
    })
}

pub(super) fn write_filter(filter: &Filter) -> wire::RouteFilter {
    use wire::route_filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(change) => Kind::RequestHeaders(write_modifier(change)),
        Filter::ResponseHeaders(change) => Kind::ResponseHeaders(write_modifier(change)),
        Filter::Redirect(redirect) => Kind::Redirect(write_redirect(redirect)),
        Filter::Rewrite(rewrite) => Kind::Rewrite(wire::Rewrite {
            host: rewrite.host.as_deref().unwrap_or("").to_owned(),
            path: rewrite.path.as_ref().map(write_modified_path),
        }),
        Filter::Mirror(mirror) => Kind::Mirror(wire::Mirror {
            backend: Some(write_target(&mirror.backend)),
            numerator: mirror.share.numerator,
            denominator: mirror.share.denominator,
        }),
        Filter::Cors(cors) => Kind::Cors(write_cors(cors)),
        Filter::Invalid { reason } => Kind::Invalid(reason.to_string()),
    };
    wire::RouteFilter { kind: Some(kind) }
}

fn read_modifier(message: &wire::HeaderModifier) -> Result<HeaderModifier, WireError> {
    let pairs = |headers: &[wire::Header]| -> Result<Vec<(HeaderName, HeaderValue)>, WireError> {
        let pair = |header: &wire::Header| {
            Ok((value("header.name", &header.name)?, value("header.value", &header.value)?))
        };
        each(headers, pair)
    };
    Ok(HeaderModifier {
        set: pairs(&message.set)?,
        add: pairs(&message.add)?,
        remove: each(&message.remove, |name| value("header.name", name))?,
    })
}

fn write_modifier(change: &HeaderModifier) -> wire::HeaderModifier {
    let pairs = |headers: &[(HeaderName, HeaderValue)]| {
        let pair = |(name, value): &(HeaderName, HeaderValue)| wire::Header {
            name: name.to_string(),
            // Only text comes in, by `read_modifier` or from Kubernetes, so nothing is lost.
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        headers.iter().map(pair).collect()
    };
    wire::HeaderModifier {
        set: pairs(&change.set),
        add: pairs(&change.add),
        remove: change.remove.iter().map(ToString::to_string).collect(),
    }
}

fn read_redirect(message: &wire::Redirect) -> Result<Redirect, WireError> {
    let status = match u16::try_from(message.status).map(StatusCode::from_u16) {
        Ok(Ok(status)) if status.is_redirection() => Some(status),
        Ok(Ok(_) | Err(_)) | Err(_) => None,
    };
    let scheme = optional(&message.scheme, |text| match text {
        "http" => Ok(Scheme::Http),
        "https" => Ok(Scheme::Https),
        other => Err(WireError::Value("redirect.scheme", other.to_owned())),
    });
    Ok(Redirect {
        scheme: scheme?,
        host: optional(&message.host, read_host)?,
        path: message.path.as_ref().map(read_modified_path).transpose()?,
        port: match port_or_zero("redirect.port", message.port)? {
            0 => None,
            port => Some(port),
        },
        status: status
            .ok_or_else(|| WireError::Value("redirect.status", message.status.to_string()))?,
    })
}

fn write_redirect(redirect: &Redirect) -> wire::Redirect {
    wire::Redirect {
        scheme: redirect.scheme.map_or("", Scheme::as_str).to_owned(),
        host: redirect.host.as_deref().unwrap_or("").to_owned(),
        path: redirect.path.as_ref().map(write_modified_path),
        port: redirect.port.unwrap_or(0).into(),
        status: redirect.status.as_u16().into(),
    }
}

/// A host that a request can be given: no port, no wildcard.
fn read_host(text: &str) -> Result<std::sync::Arc<str>, WireError> {
    match text.parse::<crate::matching::HostPattern>() {
        Ok(crate::matching::HostPattern::Exact(_)) => Ok(text.into()),
        Ok(_) | Err(_) => Err(WireError::Value("host", text.to_owned())),
    }
}

fn read_modified_path(message: &wire::PathModifier) -> Result<PathModifier, WireError> {
    let kind = message.kind.as_ref().ok_or(WireError::Missing("path.kind"))?;
    let (wire::path_modifier::Kind::Full(text) | wire::path_modifier::Kind::Prefix(text)) = kind;
    if http::uri::PathAndQuery::try_from(format!("/{text}")).is_err() || text.contains(['?', '#']) {
        return Err(WireError::Value("path", text.clone()));
    }
    Ok(match kind {
        wire::path_modifier::Kind::Full(path) => PathModifier::Full(path.as_str().into()),
        wire::path_modifier::Kind::Prefix(path) => PathModifier::Prefix(path.as_str().into()),
    })
}

fn write_modified_path(path: &PathModifier) -> wire::PathModifier {
    let kind = match path {
        PathModifier::Full(path) => wire::path_modifier::Kind::Full(path.to_string()),
        PathModifier::Prefix(path) => wire::path_modifier::Kind::Prefix(path.to_string()),
    };
    wire::PathModifier { kind: Some(kind) }
}

fn read_mirror(message: &wire::Mirror) -> Result<Mirror, WireError> {
    let share = match (message.numerator, message.denominator) {
        (_, 0) => Fraction::ALL,
        (numerator, denominator) if numerator <= denominator => Fraction { numerator, denominator },
        (numerator, denominator) => {
            let text = format!("{numerator} of {denominator}");
            return Err(WireError::Value("mirror.numerator", text));
        }
    };
    Ok(Mirror { backend: read_target(message.backend.as_ref())?, share })
}

fn read_cors(message: &wire::Cors) -> Result<Cors, WireError> {
    let headers = |names: &[String]| {
        for name in names.iter().filter(|name| *name != "*") {
            value::<HeaderName>("cors.headers", name)?;
        }
        Ok(read_list(names))
    };
    for method in &message.allow_methods {
        value::<http::Method>("cors.allow_methods", method)?;
    }
    Ok(Cors {
        allow_origins: each(&message.allow_origins, |text| value("cors.allow_origins", text))?,
        allow_credentials: message.allow_credentials,
        allow_methods: read_list(&message.allow_methods),
        allow_headers: headers(&message.allow_headers)?,
        expose_headers: headers(&message.expose_headers)?,
        max_age: (message.max_age != 0).then_some(message.max_age),
    })
}

fn write_cors(cors: &Cors) -> wire::Cors {
    wire::Cors {
        allow_origins: cors.allow_origins.iter().map(ToString::to_string).collect(),
        allow_credentials: cors.allow_credentials,
        allow_methods: write_list(&cors.allow_methods),
        allow_headers: write_list(&cors.allow_headers),
        expose_headers: write_list(&cors.expose_headers),
        max_age: cors.max_age.unwrap_or(0),
    }
}

/// A `*` anywhere is all names.
fn read_list(names: &[String]) -> AllowList {
    if names.iter().any(|name| name == "*") {
        AllowList::Any
    } else {
        AllowList::Only(names.iter().map(|name| name.as_str().into()).collect())
    }
}

fn write_list(list: &AllowList) -> Vec<String> {
    match list {
        AllowList::Any => vec!["*".to_owned()],
        AllowList::Only(names) => names.iter().map(ToString::to_string).collect(),
    }
}
