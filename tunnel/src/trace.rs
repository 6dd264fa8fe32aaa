// SPDX-License-Identifier: Apache-2.0

//! Spans in OpenTelemetry's words, sent by OTLP; and the W3C context they belong to.
//!
//! Owns the exporter, which works off the path of the data (a full queue drops spans),
//! and who decides what is sampled: whoever began the trace, else a fraction. Leaves to
//! its users what a span is for and what it says.
//!
//! Start at [`Tracer::start`]. Rule: W3C Trace Context level 1; OTLP over gRPC.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span,
};

/// Header of a request that names the span it belongs to.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const TRACESTATE: &str = "tracestate";

/// Fractions of traces are told in parts of this.
pub const MILLION: u32 = 1_000_000;

/// Spans wait so long for others to be sent with.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// Makes spans, and has them sent. What waits is sent when it is dropped, which may take
/// a while: drop it where a thread may wait.
#[derive(Debug)]
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sampled_per_million: u32,
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Spans of what still runs are lost with their collector.
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "spans were not all sent");
        }
    }
}

impl Tracer {
    /// Sends spans to the collector at `endpoint`, a URL with scheme `http`, in the name of
    /// `service`, about which `more` is known. Of the traces that begin here
    /// `sampled_per_million` are sampled. The connection is made when it is needed, on the
    /// runtime of the caller.
    ///
    /// # Errors
    ///
    /// When the endpoint cannot be one.
    pub fn start(
        endpoint: String,
        service: String,
        more: impl IntoIterator<Item = (&'static str, String)>,
        sampled_per_million: u32,
    ) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let more = more.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let resource = Resource::builder().with_service_name(service).with_attributes(more).build();
        let batch = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).build();
        let spans = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(spans)
            // What is sampled was decided before a span is made.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("waymark");
        Ok(Self { provider, tracer, sampled_per_million })
    }

    /// Begins `span` below `parent`, if it is to be sampled; `roll` is uniform.
    #[must_use]
    pub fn begin(&self, span: SpanBuilder, parent: Option<SpanContext>, roll: u64) -> Option<Span> {
        let sampled = match &parent {
            Some(parent) => parent.is_sampled(),
            None => roll % u64::from(MILLION) < u64::from(self.sampled_per_million),
        };
        if !sampled {
            return None;
        }
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        Some(span.start_with_context(&self.tracer, &context))
    }
}

/// The value of [`TRACEPARENT`] that makes other spans children of a sampled one.
#[must_use]
pub fn header(context: &SpanContext) -> Option<HeaderValue> {
    let text = format!("00-{}-{}-01", context.trace_id(), context.span_id());
    HeaderValue::try_from(text).ok()
}

/// The span that a request belongs to, if its headers name one.
#[must_use]
pub fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let mut parts = value.to_str().ok()?.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (span, flags) = (parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !(known && hex(trace, 32) && hex(span, 16) && hex(flags, 2)) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let state = headers.get(TRACESTATE).and_then(|state| state.to_str().ok());
    let state = state.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let context = SpanContext::new(trace, span, flags, true, state);
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_the_standard_says() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let zero = "0".repeat(32);
        let cases = [
            // header, valid, sampled
            (format!("00-{trace}-{span}-01"), true, true),
            (format!("00-{trace}-{span}-00"), true, false),
            (format!("cc-{trace}-{span}-01-more"), true, true),
            (format!("00-{trace}-{span}-01-more"), false, false),
            (format!("ff-{trace}-{span}-01"), false, false),
            (format!("00-{zero}-{span}-01"), false, false),
            (format!("00-{}-{span}-01", trace.to_uppercase()), false, false),
            (format!("00-{trace}-{span}"), false, false),
            (String::new(), false, false),
        ];
        for (text, valid, sampled) in cases {
            let headers = HeaderMap::from_iter([(TRACEPARENT, text.parse().unwrap())]);
            let got = parent(&headers);
            assert_eq!(got.is_some(), valid, "{text}");
            assert_eq!(got.is_some_and(|got| got.is_sampled()), sampled, "{text}");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            twice.append(TRACEPARENT, format!("00-{trace}-{span}-01").parse().unwrap());
        }
        assert!(parent(&twice).is_none(), "two parents are none");
    }
}
