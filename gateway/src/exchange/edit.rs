// SPDX-License-Identifier: Apache-2.0

//! Filters of a rule and its backend, onto heads; what they change is routing's.

use routing::edit::{Edits, HeaderEdit};
use routing::filter::{self, Context, Filter, Reply, ReplyReason, Scheme};
use routing::matching::Head;
use routing::route::BackendTarget;

use super::match_route::Matched;
use super::{Asked, Ending, forwarded};
use crate::http::{Downstream, Error, RequestHead, ResponseHead};
use crate::reply::Refusal;

/// What the filters of a rule, then those of its backend, ask for.
#[derive(Default)]
pub(super) struct Plan<'a> {
    parts: Vec<filter::Plan<'a>>,
}

/// Runs the filters of the rule.
///
/// # Errors
///
/// The answer of a filter, or that one cannot be applied.
pub(super) fn plan<'a>(
    asked: &Asked<'_>,
    matched: &Matched<'a>,
    head: &http::request::Parts,
) -> Result<Plan<'a>, Ending> {
    let mut plan = Plan::default();
    if let Some(rule) = matched.rule {
        plan.add(asked, matched, &rule.filters, head)?;
    }
    Ok(plan)
}

impl<'a> Plan<'a> {
    /// Runs more filters, after those that ran before.
    ///
    /// # Errors
    ///
    /// As [`plan`].
    pub(super) fn add(
        &mut self,
        asked: &Asked<'_>,
        matched: &Matched<'a>,
        filters: &'a [Filter],
        head: &http::request::Parts,
    ) -> Result<(), Ending> {
        let (Some(path), false) = (matched.path, filters.is_empty()) else { return Ok(()) };
        let secure = asked.arrival.is_secure();
        let context = Context {
            head: Head::of(head),
            scheme: if secure { Scheme::Https } else { Scheme::Http },
            listener_port: matched.listener_port,
            matched: path,
        };
        match filter::on_request(filters, &context, || asked.worker.roll()) {
            Ok(part) => {
                self.parts.push(part);
                Ok(())
            }
            Err(reply) => Err(self.ending(reply)),
        }
    }

    fn ending(&self, mut reply: Reply) -> Ending {
        match &reply.reason {
            ReplyReason::InvalidFilter(why) => {
                Ending::Refused(Refusal::Filter(std::sync::Arc::clone(why)))
            }
            ReplyReason::Unusable => {
                Ending::Refused(Refusal::Filter("it gives no legal host or path".into()))
            }
            ReplyReason::Redirect | ReplyReason::Preflight => {
                let before = self.parts.iter().flat_map(|part| part.response.iter().cloned());
                let mut edits: Vec<_> = before.collect();
                edits.append(&mut reply.response);
                reply.response = edits;
                Ending::Reply(reply)
            }
        }
    }

    /// Where copies of the request go.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = &'a BackendTarget> {
        self.parts.iter().flat_map(|part| part.mirrors.iter().copied())
    }

    /// Changes the head of the response.
    pub(super) fn response(&self, head: &mut ResponseHead) {
        for part in &self.parts {
            response(head, &part.response);
        }
    }
}

/// The head for the backend: the client's, told where it came from, and edited.
///
/// # Errors
///
/// [`Refusal::Internal`] when the head has no room for the changes.
pub(super) fn request_head(
    asked: &Asked<'_>,
    plan: &Plan<'_>,
    down: &Downstream,
) -> Result<RequestHead, Refusal> {
    let full = |_: Error| Refusal::Internal("request head has no room");
    let mut head = down.request_head();
    if !down.upgrade().is_some_and(|token| token.eq_ignore_ascii_case("websocket")) {
        head.without_upgrade();
    }
    forwarded::set(asked, &mut head).map_err(full)?;
    for part in &plan.parts {
        request(&mut head, &part.request).map_err(full)?;
    }
    Ok(head)
}

fn request(head: &mut RequestHead, edits: &Edits) -> Result<(), Error> {
    if let Some(target) = &edits.path_and_query {
        head.set_target(target.clone());
    }
    if let Some(authority) = &edits.authority {
        head.set_authority(authority.as_str())?;
    }
    for edit in &edits.headers {
        match edit {
            HeaderEdit::Remove(name) => head.remove(name),
            HeaderEdit::Set(name, value) => head.insert(name.clone(), value.clone())?,
            HeaderEdit::Add(name, value) => head.append(name.clone(), value.clone())?,
        }
    }
    Ok(())
}

/// Changes the head of a response; what no longer fits is left out, the response still goes.
pub(super) fn response(head: &mut ResponseHead, edits: &[HeaderEdit]) {
    for edit in edits {
        let fits = match edit {
            HeaderEdit::Remove(name) => {
                head.remove(name);
                Ok(())
            }
            HeaderEdit::Set(name, value) => head.insert(name.clone(), value.clone()),
            HeaderEdit::Add(name, value) => head.append(name.clone(), value.clone()),
        };
        if fits.is_err() {
            tracing::warn!("response head has no room for a header");
        }
    }
}
