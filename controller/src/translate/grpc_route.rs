// SPDX-License-Identifier: Apache-2.0

//! GRPCRoutes → one rule resource per rule, and their statuses.
//!
//! Rule: `GRPCRouteRule` in Gateway API `apis/v1/grpcroute_types.go`.

use routing::matching::{GrpcMatch, PathMatch, RequestMatch, TextMatch};
use routing::route::RouteKind;
use routing::wire::each;

use super::attach::Route;
use super::route::{self, Parts, Reader};
use crate::api::gateway as written;
use crate::output::Output;
use crate::store::Name;
use crate::store::lookup::Lookup;

/// Outputs of one GRPCRoute.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let Some(object) = look.get::<written::GrpcRoute>(&name.namespace, &name.name) else {
        return Vec::new();
    };
    let spec = &object.spec;
    let route = Route {
        kind: RouteKind::Grpc,
        meta: &object.metadata,
        parents: &spec.parent_refs,
        hostnames: &spec.hostnames,
    };
    route::outputs(route, spec.rules.as_deref().unwrap_or_default(), look, read)
}

fn read(rule: &written::GrpcRule, reader: &mut Reader<'_, '_>) -> Result<Parts, String> {
    Ok(Parts {
        name: rule.name.as_deref().map(Into::into),
        matches: each(&rule.matches, read_match)?,
        filters: reader.filters(&rule.filters)?,
        backends: reader.backends(&rule.backend_refs)?,
        ..Parts::default()
    })
}

fn read_match(entry: &written::GrpcMatch) -> Result<RequestMatch, String> {
    let path = entry.method.as_ref().map(read_method).transpose()?.unwrap_or_default();
    let headers = route::headers(&entry.headers)?;
    Ok(RequestMatch { path: PathMatch::Grpc(path), headers, ..RequestMatch::any() })
}

fn read_method(written: &written::GrpcMethod) -> Result<GrpcMatch, String> {
    let part = |part: &Option<String>| -> Result<Option<TextMatch>, String> {
        // An empty text stands for none, as in the CRD's default.
        let Some(value) = part.as_deref().filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        match route::text(written.kind.as_deref(), value)? {
            TextMatch::Exact(name) if name.contains('/') => Err(format!("{name:?} is no name")),
            text @ (TextMatch::Exact(_) | TextMatch::Regex(_)) => Ok(Some(text)),
        }
    };
    Ok(GrpcMatch { service: part(&written.service)?, method: part(&written.method)? })
}
