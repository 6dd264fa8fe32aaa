// SPDX-License-Identifier: Apache-2.0

//! One request and its response, from head to log line.
//!
//! Owns the order of the steps; each is one call into a file below:
//! *authenticate → match → admit → edit → choose → carry → finish*. A request loads the
//! snapshot once and keeps it to its end. A [`Refusal`] anywhere becomes the
//! answer, unless the response has begun.
//!
//! Start at [`run`].

mod admit;
mod authenticate;
mod carry;
mod choose;
mod edit;
mod finish;
mod forwarded;
mod match_route;
mod mirror;

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use policy::authz::Target;
use policy::identity::Identity;
use policy::jwt::Claims;
use policy::peer::Peer;
use routing::discovery::{Service, Workload};
use routing::filter::Reply;
use routing::matching::Head;

pub(crate) use admit::decide;
pub(crate) use choose::{Backend, Chosen, of_target};
pub(crate) use finish::{To, ends};

use crate::http::{Downstream, ResponseHead};
use crate::reply::Refusal;
use crate::state::OfCore;
use crate::trace::RequestSpan;
use crate::worker::Worker;
use finish::Record;
pub(crate) use forwarded::Told;

/// Where requests of a connection came in, and from whom.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// The other end of the connection, proven or not.
    pub(crate) peer: Arc<Peer>,
    /// Where it came in: the own address and port, or what a CONNECT asked for.
    pub(crate) local: SocketAddr,
    /// Whose routes answer.
    pub(crate) entry: Entry,
    /// What policies point at that are in force here, besides the gateway itself.
    pub(crate) targets: Vec<Target>,
    /// Waypoints that were passed before, as the peer says.
    pub(crate) visited: Option<Arc<str>>,
    /// The TLS session, if it ended here.
    pub(crate) tls: Option<TlsSession>,
    /// What backends are told about the peer.
    pub(crate) told: Told,
}

/// Whose routes answer the requests of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// Those of the listeners on this port of the process.
    Port(u16),
    /// Those of a service of the mesh, called at this port.
    Service(Arc<Service>, u16),
    /// Nobody's: a workload was called by its own address.
    Workload(Arc<Workload>),
}

/// What a TLS session told.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsSession {
    /// Server name the client asked for.
    pub(crate) sni: Option<Arc<str>>,
    /// The client's certificate as a value of `x-forwarded-client-cert`, if it showed one.
    pub(crate) client: Option<HeaderValue>,
    /// Whom the client has proven to be.
    pub(crate) identity: Option<Identity>,
}

impl Arrival {
    /// True if the client sees `https`.
    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Server name the client asked for.
    pub(crate) fn sni(&self) -> Option<&str> {
        self.tls.as_ref().and_then(|tls| tls.sni.as_deref())
    }
}

/// What is known of an exchange before anything is sent.
pub(crate) struct Asked<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) arrival: &'a Arrival,
    pub(crate) loaded: &'a Rc<OfCore>,
    /// Address of the first client, as far as trusted hops tell.
    pub(crate) remote: IpAddr,
    /// True if it is a gRPC call.
    pub(crate) grpc: bool,
    pub(crate) started: Instant,
    /// What the request's token proves, if it has one.
    pub(crate) claims: OnceCell<Claims>,
    /// The span of the request, if its trace is sampled.
    pub(crate) span: Option<RequestSpan>,
}

/// Why an exchange ends without a backend.
pub(crate) enum Ending {
    /// A refusal.
    Refused(Refusal),
    /// An answer of a filter.
    Reply(Reply),
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Serves one request to its end.
pub(crate) async fn run(worker: &Rc<Worker>, arrival: &Arrival, down: &mut Downstream) {
    let loaded = worker.load();
    let trusted = if matches!(arrival.entry, Entry::Port(_)) { loaded.trusted_hops() } else { 0 };
    let asked = Asked {
        worker,
        arrival,
        loaded: &loaded,
        remote: forwarded::remote(&down.head().headers, arrival.peer.address.ip(), trusted),
        grpc: is_grpc(down.head()),
        started: Instant::now(),
        claims: OnceCell::new(),
        span: worker.shared.traces.begin(&down.head().headers, worker.roll()),
    };
    let mut record = Record::new(SystemTime::now());
    let place = worker.admit_request();
    let result = match &place {
        Some(_place) => attempt(&asked, down, &mut record).await,
        None => Err(Refusal::Overload.into()),
    };
    if let Err(ending) = result {
        end(&asked, down, ending, &mut record).await;
    }
    finish::finish(asked, down, record);
}

/// The steps, in order.
async fn attempt<'a>(
    asked: &Asked<'a>,
    down: &mut Downstream,
    record: &mut Record<'a>,
) -> Result<(), Ending> {
    let proven = authenticate::authenticate(asked, down);
    let matched = match_route::match_route(asked, &Head::of(down.head()));
    if let Ok(matched) = &matched {
        record.rule = matched.rule;
        record.service = matched.service;
    }
    // A bad token comes before a missing route, as with Istio's order of filters.
    proven?;
    let matched = matched?;
    let permit = admit::admit(asked.loaded, asked, down.head()).map_err(Refusal::Denied)?;
    let mut plan = edit::plan(asked, &matched, down.head())?;
    let backend = choose::backend(asked, &permit, &matched)?;
    plan.add(asked, &matched, backend.filters(), down.head())?;
    if let Backend::Service { service, .. } = &backend {
        record.service = record.service.or(Some(service));
    }
    let head = edit::request_head(asked, &plan, down)?;
    record.forwarded_for = head.headers.get(&forwarded::FOR).cloned();
    record.request_id = head.headers.get(&forwarded::REQUEST_ID).cloned();
    let mut carrying = carry::Carrying::new(asked, &matched, &backend, &plan);
    mirror::send(asked, &plan, &head, down, carrying.bodies());
    carrying.run(down, head, record).await?;
    Ok(())
}

/// Answers for the gateway itself.
async fn end(asked: &Asked<'_>, down: &mut Downstream, ending: Ending, record: &mut Record<'_>) {
    let (head, body) = match ending {
        Ending::Refused(refusal) => {
            let answer = refusal.answer();
            let challenged = matches!(refusal, Refusal::Token { .. });
            record.refused(refusal);
            if down.started() {
                // Too late for an answer: the connection, or stream, is cut off.
                return;
            }
            let (mut head, body) = refusal_head(asked.grpc, &answer);
            if challenged {
                authenticate::challenge(down.head(), asked.arrival.is_secure(), &mut head);
            }
            (head, body)
        }
        Ending::Reply(reply) => (reply_head(&reply), Bytes::new()),
    };
    record.code = head.status.as_u16();
    record.own_bytes = body.len() as u64;
    if down.reply(head, body).await.is_err() {
        record.refused(Refusal::ClientGone);
    }
}

fn refusal_head(grpc: bool, answer: &crate::reply::Answer) -> (ResponseHead, Bytes) {
    let mut head;
    let put = |head: &mut ResponseHead, name: HeaderName, value: &'static str| {
        // A head with three fields always has room for one more.
        drop(head.insert(name, HeaderValue::from_static(value)));
    };
    if grpc {
        head = ResponseHead::new(http::StatusCode::OK);
        put(&mut head, CONTENT_TYPE, "application/grpc");
        put(&mut head, HeaderName::from_static("grpc-status"), answer.grpc.as_str());
        if !answer.body.is_empty() {
            put(&mut head, HeaderName::from_static("grpc-message"), answer.body);
        }
        return (head, Bytes::new());
    }
    head = ResponseHead::new(answer.status);
    if !answer.body.is_empty() {
        put(&mut head, CONTENT_TYPE, "text/plain");
    }
    (head, Bytes::from_static(answer.body.as_bytes()))
}

fn reply_head(reply: &Reply) -> ResponseHead {
    let mut head = ResponseHead::new(reply.status);
    for (name, value) in &reply.headers {
        // Filters make a handful of fields at most, far below the limit of a head.
        drop(head.append(name.clone(), value.clone()));
    }
    edit::response(&mut head, &reply.response);
    head
}

fn is_grpc(head: &http::request::Parts) -> bool {
    let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.first().is_none_or(|next| matches!(next, b'+' | b';')))
}
