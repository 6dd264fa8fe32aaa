// SPDX-License-Identifier: Apache-2.0

//! HTTPRoutes → one rule resource per rule, and their statuses.
//!
//! Rule: `HTTPRouteRule` in Gateway API `apis/v1/httproute_types.go`; durations GEP-2257,
//! retries GEP-1731.

use std::time::Duration;

use policy::duration::parse_duration;
use routing::filter::{Filter, PathModifier, Redirect, Rewrite};
use routing::matching::{PathMatch, QueryMatch, RequestMatch};
use routing::route::{Retry, RouteKind, Timeouts};
use routing::wire::each;

use super::attach::Route;
use super::route::{self, Parts, Reader};
use crate::api::gateway as written;
use crate::output::Output;
use crate::store::Name;
use crate::store::lookup::Lookup;

/// Outputs of one HTTPRoute.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(object) = look.get::<written::HttpRoute>(&name.namespace, &name.name) else {
        return Vec::new();
    };
    let spec = &object.spec;
    let route = Route {
        kind: RouteKind::Http,
        meta: &object.metadata,
        parents: &spec.parent_refs,
        hostnames: &spec.hostnames,
    };
    // A route without rules has one that matches everything and leads nowhere.
    let default = [written::HttpRule::default()];
    let rules = spec.rules.as_deref().filter(|rules| !rules.is_empty()).unwrap_or(&default);
    route::outputs(route, rules, look, read)
}

fn read(rule: &written::HttpRule, reader: &mut Reader<'_, '_>) -> Result<Parts, String> {
    let matches = each(&rule.matches, read_match)?;
    let filters = reader.filters(&rule.filters)?;
    let backends = reader.backends(&rule.backend_refs)?;
    let all = filters.iter().chain(backends.iter().flat_map(|backend| &backend.filters));
    if all.into_iter().any(replaces_prefix) && !matches.iter().all(has_prefix) {
        let message = "ReplacePrefixMatch needs matches of type PathPrefix only";
        return Err(message.to_owned());
    }
    Ok(Parts {
        name: rule.name.as_deref().map(Into::into),
        matches,
        filters,
        backends,
        timeouts: rule.timeouts.as_ref().map(timeouts).transpose()?.unwrap_or_default(),
        retry: rule.retry.as_ref().map(retry).transpose()?.unwrap_or_default(),
    })
}

fn replaces_prefix(filter: &Filter) -> bool {
    let path = match filter {
        Filter::Redirect(Redirect { path, .. }) | Filter::Rewrite(Rewrite { path, .. }) => path,
        Filter::RequestHeaders(_)
        | Filter::ResponseHeaders(_)
        | Filter::Mirror(_)
        | Filter::Cors(_)
        | Filter::Invalid { .. } => return false,
    };
    matches!(path, Some(PathModifier::Prefix(_)))
}

fn has_prefix(entry: &RequestMatch) -> bool {
    matches!(entry.path, PathMatch::Prefix(_))
}

fn read_match(entry: &written::HttpMatch) -> Result<RequestMatch, String> {
    let mut query: Vec<QueryMatch> = Vec::with_capacity(entry.query_params.len());
    for one in &entry.query_params {
        let value = route::text(one.kind.as_deref(), &one.value)?;
        // Of two for one name the first counts, as the API says.
        if query.iter().all(|known| *known.name != *one.name) {
            query.push(QueryMatch { name: one.name.as_str().into(), value });
        }
    }
    let method = entry
        .method
        .as_deref()
        .map(|text| text.parse().map_err(|_| format!("{text:?} is no method")));
    Ok(RequestMatch {
        path: entry.path.as_ref().map_or_else(|| Ok(PathMatch::any()), read_path)?,
        method: method.transpose()?,
        headers: route::headers(&entry.headers)?,
        query,
    })
}

fn read_path(path: &written::TypedValue) -> Result<PathMatch, String> {
    let value = path.value.as_deref().unwrap_or("/");
    let kind = path.kind.as_deref().unwrap_or("PathPrefix");
    if kind != "RegularExpression" && !value.starts_with('/') {
        return Err(format!("path {value:?} does not begin with a slash"));
    }
    match kind {
        "Exact" => Ok(PathMatch::Exact(value.into())),
        "PathPrefix" => Ok(PathMatch::Prefix(value.into())),
        "RegularExpression" => Ok(PathMatch::Regex(route::pattern(value)?)),
        other => Err(format!("path type {other} is not known")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Zero switches a limit off.
fn timeouts(written: &written::Timeouts) -> Result<Timeouts, String> {
    let limit = |text: &Option<String>| -> Result<Option<Duration>, String> {
        let read = text.as_deref().map(duration).transpose()?;
        Ok(read.filter(|limit| !limit.is_zero()))
    };
    let (request, backend_request) = (limit(&written.request)?, limit(&written.backend_request)?);
    match (request, backend_request) {
        (Some(whole), Some(one)) if one > whole => {
            Err("backendRequest is longer than request".to_owned())
        }
        _ => Ok(Timeouts { request, backend_request }),
    }
}

/// The pause before another attempt if the rule says none: a backend that answers a moment too
/// late should not still be at work on the first attempt.
const BACKOFF: Duration = Duration::from_millis(25);

fn retry(written: &written::Retry) -> Result<Retry, String> {
    let code = |code: &i64| match u16::try_from(*code) {
        Ok(code) if (400..=599).contains(&code) => Ok(code),
        _ => Err(format!("{code} is no status to retry")),
    };
    let attempts = match written.attempts {
        None => Retry::default().attempts,
        Some(count) => u32::try_from(count).map_err(|_| format!("{count} attempts"))?,
    };
    Ok(Retry {
        attempts,
        codes: each(&written.codes, code)?,
        backoff: written.backoff.as_deref().map(duration).transpose()?.unwrap_or(BACKOFF),
        asked: true,
    })
}
