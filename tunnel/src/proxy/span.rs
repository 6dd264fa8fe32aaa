// SPDX-License-Identifier: Apache-2.0

//! The span of one session.
//!
//! The bytes of a session are opaque, so its span belongs to a trace only if the CONNECT
//! that opened it says so; it says what the line in the access log says.

use http::{HeaderMap, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status};
use opentelemetry_sdk::trace::Span;
use rand::Rng as _;

use super::Core;
use crate::access_log::Fields;
use crate::metrics::Reporter;
use crate::trace;

/// A span that was sampled.
#[derive(Debug)]
pub(super) struct SessionSpan(Span);

impl Core {
    /// Begins a span, if there is a collector and it is to be sampled. `headers` are those of
    /// the CONNECT, if the session came in one.
    pub(super) fn span(
        &self,
        reporter: Reporter,
        headers: Option<&HeaderMap>,
    ) -> Option<SessionSpan> {
        let tracer = self.traces.as_ref()?;
        let (name, kind) = match reporter {
            Reporter::Source => ("outbound", SpanKind::Client),
            Reporter::Destination => ("inbound", SpanKind::Server),
        };
        let span = SpanBuilder::from_name(name).with_kind(kind);
        let parent = headers.and_then(trace::parent);
        tracer.begin(span, parent, rand::rng().random()).map(SessionSpan)
    }
}

impl SessionSpan {
    /// The header that makes the other end's span a child of this one.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        trace::header(self.0.span_context())
    }

    /// Ends the span.
    pub(super) fn end(mut self, fields: Fields, error: Option<String>) {
        for (key, value) in fields {
            self.0.set_attribute(KeyValue::new(key, value));
        }
        if let Some(error) = error {
            self.0.set_status(Status::error(error));
        }
        self.0.end();
    }
}
