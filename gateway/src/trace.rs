// SPDX-License-Identifier: Apache-2.0

//! Spans of requests, in OpenTelemetry's words, by OTLP.
//!
//! Owns what a span of a request says, and the exporter's life: it is made anew when the
//! gateway's settings name another collector. Leaves export and the W3C context to
//! [`tunnel::trace`].
//!
//! Rule: OpenTelemetry semantic conventions for HTTP.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status};
use opentelemetry_sdk::trace::Span;
use routing::gateway::Tracing;
use tunnel::trace::{self, TRACEPARENT, Tracer};

use crate::worker::Shared;

/// Where spans go, if anywhere.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    active: ArcSwapOption<Active>,
}

#[derive(Debug)]
struct Active {
    settings: Tracing,
    tracer: Tracer,
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
    let gateway = &shared.settings.gateway;
    let own = [
        ("k8s.namespace.name", gateway.namespace().to_owned()),
        ("k8s.pod.name", shared.settings.pod.clone()),
    ];
    let service = format!("{}.{}", gateway.name(), gateway.namespace());
    match Tracer::start(endpoint, service, own, settings.sampled_per_million) {
        Ok(tracer) => Some(Arc::new(Active { settings: settings.clone(), tracer })),
        Err(error) => {
            tracing::error!(%error, endpoint = %settings.endpoint, "spans cannot be sent");
            None
        }
    }
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
        let span = SpanBuilder::from_name("request").with_kind(SpanKind::Server);
        active.tracer.begin(span, trace::parent(headers), roll).map(RequestSpan)
    }
}

impl RequestSpan {
    /// The header that makes the backend's spans children of this one.
    pub(crate) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        Some((TRACEPARENT, trace::header(self.0.span_context())?))
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
