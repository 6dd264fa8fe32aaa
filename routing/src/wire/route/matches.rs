// SPDX-License-Identifier: Apache-2.0

//! Matches of a rule.

use super::super::error::{WireError, each};
use super::super::gateway::{optional, value};
use super::super::messages::waymark::v1 as wire;
use crate::matching::{
    GrpcMatch, HeaderMatch, PathMatch, Pattern, QueryMatch, RequestMatch, TextMatch,
};

pub(super) fn read_match(message: &wire::RouteMatch) -> Result<RequestMatch, WireError> {
    let headers = each(&message.headers, |header| {
        let name = value("headers.name", &header.name)?;
        Ok(HeaderMatch { name, value: read_text("headers.value", header.value.as_ref())? })
    })?;
    let query = each(&message.query, |query| {
        let name = query.name.as_str().into();
        Ok(QueryMatch { name, value: read_text("query.value", query.value.as_ref())? })
    })?;
    Ok(RequestMatch {
        path: message.path.as_ref().map_or_else(|| Ok(PathMatch::any()), read_path)?,
        method: optional(&message.method, |text| value("method", text))?,
        headers,
        query,
    })
}

pub(super) fn write_match(entry: &RequestMatch) -> wire::RouteMatch {
    let headers = entry.headers.iter().map(|header| wire::NamedMatch {
        name: header.name.to_string(),
        value: Some(write_text(&header.value)),
    });
    let query = entry.query.iter().map(|query| wire::NamedMatch {
        name: query.name.to_string(),
        value: Some(write_text(&query.value)),
    });
    wire::RouteMatch {
        path: Some(write_path(&entry.path)),
        method: entry.method.as_ref().map_or_else(String::new, ToString::to_string),
        headers: headers.collect(),
        query: query.collect(),
    }
}

fn read_path(message: &wire::PathMatch) -> Result<PathMatch, WireError> {
    let absolute = |path: &str| match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(WireError::Value("path", format!("{path:?} does not begin with a slash"))),
    };
    Ok(match message.kind.as_ref().ok_or(WireError::Missing("path.kind"))? {
        wire::path_match::Kind::Exact(path) => PathMatch::Exact(absolute(path)?),
        wire::path_match::Kind::Prefix(path) => PathMatch::Prefix(absolute(path)?),
        wire::path_match::Kind::Regex(source) => PathMatch::Regex(read_pattern("path", source)?),
        wire::path_match::Kind::Grpc(grpc) => PathMatch::Grpc(GrpcMatch {
            service: read_name("grpc.service", grpc.service.as_ref())?,
            method: read_name("grpc.method", grpc.method.as_ref())?,
        }),
    })
}

fn write_path(path: &PathMatch) -> wire::PathMatch {
    let kind = match path {
        PathMatch::Exact(path) => wire::path_match::Kind::Exact(path.to_string()),
        PathMatch::Prefix(path) => wire::path_match::Kind::Prefix(path.to_string()),
        PathMatch::Regex(pattern) => wire::path_match::Kind::Regex(pattern.source().to_owned()),
        PathMatch::Grpc(grpc) => wire::path_match::Kind::Grpc(wire::GrpcMatch {
            service: grpc.service.as_ref().map(write_text),
            method: grpc.method.as_ref().map(write_text),
        }),
    };
    wire::PathMatch { kind: Some(kind) }
}

/// A part of a gRPC path: as a fixed text it is one segment.
fn read_name(
    field: &'static str,
    message: Option<&wire::TextMatch>,
) -> Result<Option<TextMatch>, WireError> {
    let Some(message) = message else { return Ok(None) };
    match read_text(field, Some(message))? {
        TextMatch::Exact(text) if text.is_empty() || text.contains('/') => {
            Err(WireError::Value(field, text.to_string()))
        }
        text @ (TextMatch::Exact(_) | TextMatch::Regex(_)) => Ok(Some(text)),
    }
}

fn read_text(
    field: &'static str,
    message: Option<&wire::TextMatch>,
) -> Result<TextMatch, WireError> {
    let kind = message.and_then(|text| text.kind.as_ref());
    Ok(match kind.ok_or(WireError::Missing(field))? {
        wire::text_match::Kind::Exact(text) => TextMatch::Exact(text.as_str().into()),
        wire::text_match::Kind::Regex(source) => TextMatch::Regex(read_pattern(field, source)?),
    })
}

fn write_text(text: &TextMatch) -> wire::TextMatch {
    let kind = match text {
        TextMatch::Exact(text) => wire::text_match::Kind::Exact(text.to_string()),
        TextMatch::Regex(pattern) => wire::text_match::Kind::Regex(pattern.source().to_owned()),
    };
    wire::TextMatch { kind: Some(kind) }
}

fn read_pattern(field: &'static str, source: &str) -> Result<Pattern, WireError> {
    Pattern::new(source)
        .map_err(|error| WireError::Value(field, super::super::error::chain(&error)))
}
