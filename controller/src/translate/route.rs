// SPDX-License-Identifier: Apache-2.0

//! From the rules of a route to one resource per rule, for all kinds of routes.
//!
//! Owns what the kinds share: names, backends, and what becomes of a rule that cannot be read
//! (its last good version stays, and the route is told). The kinds differ in [`super::http_route`],
//! [`super::grpc_route`] and [`super::l4_route`].

use std::sync::Arc;

use routing::delta::Resource as Plane;
use routing::filter::Filter;
use routing::matching::{Pattern, RequestMatch, TextMatch};
use routing::route::{BackendRef, Retry, RouteKind, Rule, RuleName, Timeouts};

use super::attach::{self, Attached, Route, Rules};
use super::backend::{self, Problem};
use super::filters;
use super::reference_grant::From;
use crate::api::gateway as written;
use crate::output::{Attachment, Config, Family, Output, OutputKey, Scope};
use crate::store::Name;
use crate::store::lookup::Lookup;

/// What a kind of route reads of one of its rules.
#[derive(Debug, Default)]
pub struct Parts {
    /// Name of the rule.
    pub name: Option<Arc<str>>,
    /// Matches; none for kinds that have none.
    pub matches: Vec<RequestMatch>,
    /// Filters.
    pub filters: Vec<Filter>,
    /// Backends.
    pub backends: Vec<BackendRef>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Retries.
    pub retry: Retry,
}

/// What rules are read with.
#[derive(Debug)]
pub struct Reader<'r, 's> {
    /// Whose rules they are.
    pub from: From<'r>,
    /// Where objects are looked up.
    pub look: &'r mut Lookup<'s>,
    /// What does not resolve.
    pub problem: Problem,
}

impl Reader<'_, '_> {
    /// Backends of a rule, with their filters.
    ///
    /// # Errors
    ///
    /// What is wrong with a filter.
    pub fn backends(
        &mut self,
        references: &[written::BackendRef],
    ) -> Result<Vec<BackendRef>, String> {
        let mut backends = Vec::with_capacity(references.len());
        for reference in references {
            let target = backend::resolve(reference, self.from, self.look, &mut self.problem);
            let filters = self.filters(&reference.filters)?;
            backends.push(BackendRef { target, weight: backend::weight(reference), filters });
        }
        Ok(backends)
    }

    /// Filters of a rule or backend.
    ///
    /// # Errors
    ///
    /// What is wrong with one.
    pub fn filters(&mut self, filters: &[written::Filter]) -> Result<Vec<Filter>, String> {
        filters::read(filters, self.from, self.look, &mut self.problem)
    }
}

/// Outputs of a route: a resource per rule, its status, and the listeners that count it.
pub fn outputs<R>(
    route: Route<'_>,
    rules: &[R],
    look: &mut Lookup<'_>,
    read: impl Fn(&R, &mut Reader<'_, '_>) -> Result<Parts, String>,
) -> Vec<Output> {
    let attached = attach::attach(route, look);
    if !attached.is_ours() {
        return Vec::new();
    }
    let namespace = route.meta.namespace.as_deref().unwrap_or_default();
    let from = From { kind: route.kind.as_str(), namespace };
    let mut reader = Reader { from, look, problem: Problem::default() };
    let mut wrong = None;
    let mut served = Vec::new();
    for (index, rule) in (0_u32..).zip(rules) {
        match read(rule, &mut reader) {
            Ok(parts) => served.push(resource(route, index, parts, &attached)),
            Err(message) => {
                if attached.is_whole() {
                    let name: Arc<str> = rule_name(route, index).to_string().into();
                    reader.look.keep(OutputKey::Config(Family::Route, name));
                }
                wrong.get_or_insert(format!("rule {index}: {message}"));
            }
        }
    }
    let problem = reader.problem;
    let rules = Rules::of(wrong, !served.is_empty());
    let mut outputs = vec![Output::Status(attached.status(route, &rules, &problem).into())];
    if matches!(rules, Rules::NoneServed(_)) {
        return outputs;
    }
    let listeners = attached.listeners.into_iter().collect();
    outputs.push(Output::Attached(Arc::new(Attachment { route: route.key(), listeners })));
    if !attached.gateways.is_empty() {
        let gateways: Arc<[Name]> = attached.gateways.into_iter().collect();
        let scope = || Scope::Gateways(Arc::clone(&gateways));
        outputs.extend(
            served.into_iter().map(|rule| Config::plane(Plane::Rule(Arc::new(rule)), scope())),
        );
    }
    outputs
}

fn resource(route: Route<'_>, index: u32, parts: Parts, attached: &Attached) -> Rule {
    let Parts { name, mut matches, filters, backends, timeouts, retry } = parts;
    if matches.is_empty() && matches!(route.kind, RouteKind::Http | RouteKind::Grpc) {
        matches = vec![RequestMatch::any()];
    }
    Rule {
        name: rule_name(route, index),
        rule_name: name,
        created: route.created(),
        parents: attached.parents.clone(),
        matches,
        filters,
        backends,
        timeouts,
        retry,
    }
}

fn rule_name(route: Route<'_>, index: u32) -> RuleName {
    RuleName {
        kind: route.kind,
        namespace: route.meta.namespace.as_deref().unwrap_or_default().into(),
        name: route.meta.name.as_deref().unwrap_or_default().into(),
        index,
    }
}

/// A condition on a text: exact unless it says otherwise.
///
/// # Errors
///
/// A type that is not known, or an expression that is none.
pub fn text(kind: Option<&str>, value: &str) -> Result<TextMatch, String> {
    match kind.unwrap_or("Exact") {
        "Exact" => Ok(TextMatch::Exact(value.into())),
        "RegularExpression" => Ok(TextMatch::Regex(pattern(value)?)),
        other => Err(format!("match type {other} is not known")),
    }
}

/// An expression.
///
/// # Errors
///
/// Text that is none.
pub fn pattern(source: &str) -> Result<Pattern, String> {
    Pattern::new(source).map_err(|error| error.to_string())
}

/// Conditions on headers; of two for one name the first counts, as the API says.
///
/// # Errors
///
/// A name or condition that is not legal.
pub fn headers(
    matches: &[written::NamedMatch],
) -> Result<Vec<routing::matching::HeaderMatch>, String> {
    let mut headers: Vec<routing::matching::HeaderMatch> = Vec::with_capacity(matches.len());
    for one in matches {
        let name = filters::name(&one.name)?;
        let value = text(one.kind.as_deref(), &one.value)?;
        if headers.iter().all(|known| known.name != name) {
            headers.push(routing::matching::HeaderMatch { name, value });
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
