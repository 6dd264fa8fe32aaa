// SPDX-License-Identifier: Apache-2.0

//! What is left of an exchange: metrics and a line in the access log.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{HeaderValue, USER_AGENT};
use routing::discovery::{NetworkAddress, Service, Workload};
use routing::gateway::LogFormat;
use routing::matching::Head;
use routing::route::Rule;

use super::{Arrival, Asked};
use crate::access_log::{Entry, HttpEntry};
use crate::dial::Target;
use crate::http::{Downstream, Moved};
use crate::metrics::{Ends, Outcome, Reporter, RequestProtocol};
use crate::reply::{Flag, Refusal};
use crate::settings::Role;
use crate::state::Loaded;
use crate::trace::Facts;
use crate::worker::Worker;

/// What is noted while an exchange runs.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    start: SystemTime,
    pub(super) rule: Option<&'a Arc<Rule>>,
    pub(super) service: Option<&'a Arc<Service>>,
    /// The endpoint that was tried last.
    pub(super) target: Option<Rc<Target>>,
    pub(super) attempts: u32,
    pub(super) attempt_deadline: Option<Instant>,
    pub(super) code: u16,
    pub(super) grpc: Option<u16>,
    pub(super) moved: Moved,
    /// Bytes of a body that we made.
    pub(super) own_bytes: u64,
    pub(super) service_time: Option<Duration>,
    /// As the backend gets them.
    pub(super) forwarded_for: Option<HeaderValue>,
    pub(super) request_id: Option<HeaderValue>,
    refusal: Option<Refusal>,
}

impl Record<'_> {
    pub(super) fn new(start: SystemTime) -> Self {
        Self {
            start,
            rule: None,
            service: None,
            target: None,
            attempts: 0,
            attempt_deadline: None,
            code: 0,
            grpc: None,
            moved: Moved::default(),
            own_bytes: 0,
            service_time: None,
            forwarded_for: None,
            request_id: None,
            refusal: None,
        }
    }

    /// Notes why there was no, or no whole, answer.
    pub(super) fn refused(&mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
    }
}

/// Counts and logs an exchange that is over.
pub(super) fn finish(mut asked: Asked<'_>, down: &Downstream, record: Record<'_>) {
    let answer = record.refusal.as_ref().map(Refusal::answer);
    let flag = answer.map_or(Flag::None, |answer| answer.flag);
    let code = match (record.code, answer) {
        (0, Some(answer)) => answer.status.as_u16(),
        (code, _) => code,
    };
    let duration = asked.started.elapsed();
    let protocol = if asked.grpc { RequestProtocol::Grpc } else { RequestProtocol::Http };
    let outcome = Outcome {
        protocol,
        code,
        grpc: record.grpc,
        flag,
        duration,
        request_bytes: record.moved.request,
        response_bytes: record.moved.response + record.own_bytes,
        messages: record.moved.messages.unwrap_or_default(),
    };
    let target = record.target.as_deref();
    let to = To {
        service: record.service,
        endpoint: target.and_then(|target| target.endpoint()),
        tunnelled: target.is_some_and(|target| target.is_tunnelled()),
    };
    let ends = ends(asked.worker, asked.loaded, asked.arrival, to);
    let revision = asked.loaded.snapshot.revision;
    asked.worker.metrics.borrow_mut().request(revision, &ends, &outcome);
    if let Some(format) = asked.loaded.log_format() {
        let detail = answer.map_or("via_upstream", |answer| answer.detail);
        let line = line(&asked, down, &record, (&outcome, detail), format);
        asked.worker.shared.access_log.write(line);
    }
    if let Some(span) = asked.span.take() {
        let head = down.head();
        span.end(Facts {
            head,
            host: Head::of(head).host,
            code,
            flag: flag.as_str(),
            route: record.rule.map(|rule| rule.name.to_string()),
            peer: asked.arrival.peer.identity.as_ref().map(ToString::to_string),
            upstream: target.map(|target| target.address().to_string()),
        });
    }
}

/// Where a request or connection went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct To<'a> {
    pub(crate) service: Option<&'a Arc<Service>>,
    pub(crate) endpoint: Option<&'a Arc<Workload>>,
    /// In mutual TLS of the mesh.
    pub(crate) tunnelled: bool,
}

/// The ends of a request or connection, as the role of the process sees them.
pub(crate) fn ends<'a>(
    worker: &Worker,
    loaded: &'a Loaded,
    arrival: &'a Arrival,
    to: To<'a>,
) -> Ends<'a> {
    let (destination, service) = (to.endpoint, to.service);
    match worker.shared.settings.role {
        Role::Router => Ends {
            reporter: Reporter::Source,
            source: Some(&loaded.own),
            source_identity: Some(&loaded.own.identity),
            destination,
            service,
            mutual_tls: to.tunnelled,
        },
        Role::Waypoint => {
            let network = Arc::clone(&loaded.own.network);
            let address = NetworkAddress::new(network, arrival.peer.address.ip().to_canonical());
            let found = loaded.snapshot.discovery.workload_at(&address);
            let identity = arrival.peer.identity.as_ref();
            // An address that has moved on does not name the caller.
            let source = found.filter(|found| Some(&found.identity) == identity);
            Ends {
                reporter: Reporter::Waypoint,
                source,
                source_identity: source.map(|source| &source.identity).or(identity),
                destination,
                service,
                mutual_tls: identity.is_some(),
            }
        }
    }
}

fn line(
    asked: &Asked<'_>,
    down: &Downstream,
    record: &Record<'_>,
    (outcome, detail): (&Outcome, &'static str),
    format: LogFormat,
) -> String {
    let head = down.head();
    let field = |name: &http::HeaderName| head.headers.get(name).map(HeaderValue::as_bytes);
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let version = if head.version == http::Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
    let failure = match &record.refusal {
        Some(Refusal::Connect(why)) => Some(&**why),
        _ => None,
    };
    let cluster = record.service.map(|service| service.key.to_string());
    let entry = Entry {
        start: record.start,
        http: Some(HttpEntry {
            method: head.method.as_str(),
            target: target.into(),
            version,
            code: outcome.code,
            service_time: record.service_time,
            forwarded_for: record.forwarded_for.as_ref().map(HeaderValue::as_bytes),
            user_agent: field(&USER_AGENT),
            request_id: record.request_id.as_ref().map(HeaderValue::as_bytes),
            authority: Head::of(head).host,
        }),
        flag: outcome.flag,
        detail,
        denied: record.refusal.as_ref().and_then(Refusal::denied),
        authentication: record.refusal.as_ref().and_then(Refusal::authentication),
        failure,
        received: outcome.request_bytes,
        sent: outcome.response_bytes,
        duration: outcome.duration,
        upstream: record.target.as_deref().map(|target| target.address()),
        cluster: cluster.as_deref(),
        local: asked.arrival.local,
        remote: asked.arrival.peer.address,
        sni: asked.arrival.sni(),
        route: record.rule.map(|rule| &rule.name as &dyn std::fmt::Display),
    };
    entry.line(format)
}
