// SPDX-License-Identifier: Apache-2.0

//! Spans of requests, in OpenTelemetry's words, by OTLP.
//!
//! Owns the W3C context on both sides and the exporter, which is made anew when
//! the gateway's settings name another collector. Whoever began the trace has
//! decided whether it is sampled; traces that begin here are sampled by the
//! gateway's fraction. Export is off the request's path: a full queue drops spans.
//!
//! Rule: W3C Trace Context level 1; OpenTelemetry semantic conventions for HTTP.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _,
    TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span,
};
use routing::gateway::Tracing;

use crate::worker::Shared;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: &str = "tracestate";
const MILLION: u64 = 1_000_000;
/// Spans wait so long for others to be sent with.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// Where spans go, if anywhere.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    active: ArcSwapOption<Active>,
}

#[derive(Debug)]
struct Active {
    settings: Tracing,
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Drop for Active {
    fn drop(&mut self) {
        // Spans of requests that still run are lost with their collector.
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "spans were not all sent");
        }
    }
}

/// Keeps the exporter that of the gateway's settings; runs until dropped.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut changes = shared.state.changes();
    loop {
        changes.mark_unchanged();
        let loaded = shared.state.load();
        let gateway = loaded.serving().gateway(&loaded.gateway);
        let wanted = gateway.and_then(|gateway| gateway.tracing.as_ref());
        let active = shared.traces.active.load();
        if wanted != active.as_ref().map(|active| &active.settings) {
            let made = wanted.and_then(|wanted| activate(wanted, &shared));
            let old = shared.traces.active.swap(made);
            // Sending what is left may take a while, on a thread that may wait.
            tokio::task::spawn_blocking(move || drop(old));
        }
        drop(active);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn activate(settings: &Tracing, shared: &Shared) -> Option<Arc<Active>> {
    let endpoint = format!("http://{}", settings.endpoint);
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::error!(%error, endpoint = %settings.endpoint, "spans cannot be sent");
            return None;
        }
    };
    let gateway = &shared.settings.gateway;
    let resource = Resource::builder()
        .with_service_name(format!("{}.{}", gateway.name(), gateway.namespace()))
        .with_attribute(KeyValue::new("k8s.namespace.name", gateway.namespace().to_owned()))
        .with_attribute(KeyValue::new("k8s.pod.name", shared.settings.pod.clone()))
        .build();
    let batch = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).build();
    let spans = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(spans)
        // What is sampled was decided before a span is made.
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("waymark-gateway");
    Some(Arc::new(Active { settings: settings.clone(), provider, tracer }))
}

/// A span of one request.
#[derive(Debug)]
pub(crate) struct RequestSpan(Span);

/// What a span says at its end.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) head: &'a http::request::Parts,
    pub(crate) host: &'a str,
    pub(crate) code: u16,
    pub(crate) flag: &'static str,
    pub(crate) route: Option<String>,
    pub(crate) peer: Option<String>,
    pub(crate) upstream: Option<String>,
}

impl Traces {
    /// Begins a span for a request with `headers`, if it is to be sampled; `roll` is uniform.
    pub(crate) fn begin(&self, headers: &HeaderMap, roll: u64) -> Option<RequestSpan> {
        let active = self.active.load();
        let active = active.as_ref()?;
        let parent = parent(headers);
        let sampled = match &parent {
            Some(parent) => parent.is_sampled(),
            None => roll % MILLION < u64::from(active.settings.sampled_per_million),
        };
        if !sampled {
            return None;
        }
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name("request").with_kind(SpanKind::Server);
        Some(RequestSpan(builder.start_with_context(&active.tracer, &context)))
    }
}

impl RequestSpan {
    /// The header that makes the backend's spans children of this one.
    pub(crate) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let context = self.0.span_context();
        let text = format!("00-{}-{}-01", context.trace_id(), context.span_id());
        HeaderValue::try_from(text).map_or(None, |value| Some((TRACEPARENT, value)))
    }

    /// Ends the span.
    pub(crate) fn end(mut self, facts: Facts<'_>) {
        let method = facts.head.method.as_str();
        let name = facts
            .route
            .as_ref()
            .map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
        self.0.update_name(name);
        self.0.set_attribute(KeyValue::new("http.request.method", method.to_owned()));
        self.0.set_attribute(KeyValue::new("url.path", facts.head.uri.path().to_owned()));
        self.0.set_attribute(KeyValue::new("server.address", facts.host.to_owned()));
        self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(facts.code)));
        self.0.set_attribute(KeyValue::new("response_flags", facts.flag));
        for (name, value) in [
            ("http.route", facts.route),
            ("istio.source_principal", facts.peer),
            ("upstream.address", facts.upstream),
        ] {
            if let Some(value) = value {
                self.0.set_attribute(KeyValue::new(name, value));
            }
        }
        if facts.code >= 500 {
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}

/// The span that a request belongs to, if its headers name one.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
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
