// SPDX-License-Identifier: Apache-2.0

//! What a rule does to a request on its way, and to the response.
//!
//! [`on_request`] runs the filters of a rule (or of one of its backends) over a head and says
//! what is to change, where copies go and what the response gets; or it answers at once, with
//! a [`Reply`]. Nothing here does IO: copies are sent and answers written by the caller.
//! A filter that needs neither is a new file below and a variant of [`Filter`].

mod cors;
mod headers;
mod mirror;
mod redirect;
mod rewrite;

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

pub use cors::{AllowList, Cors, InvalidOrigin, OriginPattern};
pub use headers::HeaderModifier;
pub use mirror::{Fraction, Mirror};
pub use redirect::{Redirect, Scheme};
pub use rewrite::{PathModifier, Rewrite};

use crate::edit::{Edits, HeaderEdit};
use crate::matching::{Head, PathMatch};
use crate::route::BackendTarget;

/// One filter of a rule or backend.
///
/// Rule: `HTTPRouteFilter` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Filter {
    /// Changes headers of the request.
    RequestHeaders(HeaderModifier),
    /// Changes headers of the response.
    ResponseHeaders(HeaderModifier),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes host or path.
    Rewrite(Rewrite),
    /// Sends a copy elsewhere and forgets about its response.
    Mirror(Mirror),
    /// Answers preflights and tells browsers who may read the response.
    Cors(Cors),
    /// A filter that does not resolve or is not known: it must not be skipped, so every
    /// request it would have seen gets a 500.
    Invalid {
        /// Why, for logs and `explain`.
        reason: Arc<str>,
    },
}

/// What a filter needs to know of a request, besides its head.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The head, as the client sent it.
    pub head: Head<'a>,
    /// The scheme the client used.
    pub scheme: Scheme,
    /// Port of the listener the request came in by, as declared.
    pub listener_port: u16,
    /// The path of the match that chose the rule; its prefix is what a prefix replacement replaces.
    pub matched: &'a PathMatch,
}

/// What filters make of a request that goes on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan<'a> {
    /// Changes to the request.
    pub request: Edits,
    /// Changes to the headers of the response, from wherever it comes.
    pub response: Vec<HeaderEdit>,
    /// Where copies of the request go.
    pub mirrors: Vec<&'a BackendTarget>,
}

/// An answer without a backend; its body is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// Status of the answer.
    pub status: StatusCode,
    /// Its headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Changes to those headers that filters before this one asked for.
    pub response: Vec<HeaderEdit>,
    /// Why there is no backend.
    pub reason: ReplyReason,
}

/// Why a filter answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReplyReason {
    /// The rule redirects.
    Redirect,
    /// A CORS preflight.
    Preflight,
    /// A filter that does not resolve.
    InvalidFilter(Arc<str>),
    /// A rewrite or redirect gave text that is no host or path.
    Unusable,
}

impl Reply {
    pub(crate) fn error(reason: ReplyReason) -> Self {
        let (headers, response) = (Vec::new(), Vec::new());
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, headers, response, reason }
    }
}

/// Runs `filters` over a request, in order.
///
/// `roll` gives uniform 64 bit numbers; it is asked once per mirror that takes a part of the
/// requests. Filters see the head as the client sent it: a redirect after a header change still
/// redirects from the original path.
///
/// # Errors
///
/// The [`Reply`] of the first filter that answers instead of a backend.
pub fn on_request<'a>(
    filters: &'a [Filter],
    context: &Context<'_>,
    mut roll: impl FnMut() -> u64,
) -> Result<Plan<'a>, Reply> {
    let mut plan = Plan::default();
    for filter in filters {
        let step = match filter {
            Filter::RequestHeaders(change) => {
                change.edit(&mut plan.request.headers);
                Ok(())
            }
            Filter::ResponseHeaders(change) => {
                change.edit(&mut plan.response);
                Ok(())
            }
            Filter::Redirect(redirect) => Err(redirect.reply(context)),
            Filter::Rewrite(rewrite) => rewrite.edit(context, &mut plan.request),
            Filter::Mirror(mirror) => {
                if mirror.takes(&mut roll) {
                    plan.mirrors.push(&mirror.backend);
                }
                Ok(())
            }
            Filter::Cors(cors) => cors.on_request(&context.head, &mut plan.response),
            Filter::Invalid { reason } => {
                Err(Reply::error(ReplyReason::InvalidFilter(Arc::clone(reason))))
            }
        };
        if let Err(mut reply) = step {
            reply.response = plan.response;
            return Err(reply);
        }
    }
    Ok(plan)
}
