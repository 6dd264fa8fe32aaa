// SPDX-License-Identifier: Apache-2.0

//! Attempts at a backend, until one answers, and the bodies both ways.
//!
//! Owns deadlines and retries. Moving bytes is `http::Carry`'s, which endpoint
//! is next is `choose`'s, and whether a failure is worth another attempt is
//! policy's.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::CONTENT_LENGTH;
use policy::retry::{Failure, Retry as RetryRule};
use policy::timeout::Timeouts;
use routing::wire::chain;
use tokio::time::{sleep_until, timeout_at};

use super::admit;
use super::choose::{Backend, Chosen};
use super::edit::Plan;
use super::finish::Record;
use super::match_route::Matched;
use super::{Asked, Entry, edit, forwarded};
use crate::dial::{DialError, Target};
use crate::http::{
    Carry, Downstream, Error, GetError, RequestHead, ResponseHead, Retry, Side, Upstream,
};
use crate::reply::Refusal;

/// One exchange with its backend.
pub(super) struct Carrying<'a> {
    asked: &'a Asked<'a>,
    backend: &'a Backend<'a>,
    plan: &'a Plan<'a>,
    bodies: Carry,
    /// Why the attempt before failed.
    last: Option<Refusal>,
    /// When the whole exchange must be over.
    deadline: Option<Instant>,
    timeouts: Timeouts,
    retry: Cow<'a, RetryRule>,
}

/// Why one attempt failed, and how far it got.
struct Fault {
    refusal: Refusal,
    failure: Option<Failure>,
}

impl<'a> Carrying<'a> {
    pub(super) fn new(
        asked: &'a Asked<'a>,
        matched: &'a Matched<'a>,
        backend: &'a Backend<'a>,
        plan: &'a Plan<'a>,
    ) -> Self {
        let timeouts = matched.rule.map_or_else(Timeouts::default, |rule| rule.timeouts);
        let retry = matched.rule.map(|rule| Cow::Borrowed(&rule.retry));
        let retry = retry.unwrap_or_else(|| Cow::Owned(RetryRule::default()));
        let deadline = timeouts.deadline(asked.started);
        let mut bodies = Carry::new(&asked.worker.shared.http_limits);
        if asked.grpc {
            bodies.count_messages();
        }
        Self { asked, backend, plan, last: None, bodies, deadline, timeouts, retry }
    }

    /// The bodies, before the first attempt.
    pub(super) fn bodies(&mut self) -> &mut Carry {
        &mut self.bodies
    }

    /// Tries endpoints until one answers, and delivers its answer.
    ///
    /// # Errors
    ///
    /// The refusal of the last attempt; the response may have begun.
    pub(super) async fn run(
        &mut self,
        down: &mut Downstream,
        head: RequestHead,
        record: &mut Record<'_>,
    ) -> Result<(), Refusal> {
        let protocol = self.backend.protocol(self.asked.grpc, down.upgrade().is_some());
        let Asked { worker, loaded, arrival, .. } = self.asked;
        let client = self.client(down);
        let visited = (client, arrival.visited.as_ref());
        let mut chosen = Chosen::new(worker, loaded, self.backend, protocol, visited)?;
        let mut head = Some(head);
        let result = loop {
            record.attempts += 1;
            let head = match head.take() {
                Some(head) => head,
                None => self.head_again(down, record)?,
            };
            let fault = match self.once(&mut chosen, down, head, record).await {
                Ok((up, answer)) => {
                    let answered = self.deliver(down, up, answer, record);
                    break Box::pin(answered).await;
                }
                Err(fault) => fault,
            };
            if !self.again(&fault, down, record.attempts) {
                break Err(fault.refusal);
            }
            self.last = Some(fault.refusal);
            self.pause(record.attempts).await;
        };
        record.moved = self.bodies.moved();
        record.grpc = self.bodies.grpc_status().or(record.grpc);
        result
    }

    /// Who asks: within the mesh the first client that forwarding headers name, for its gateway
    /// at the edge is the same for all. Looked for only where it matters; a client that lies
    /// about it moves itself alone.
    fn client(&self, down: &Downstream) -> IpAddr {
        let within = !matches!(self.asked.arrival.entry, Entry::Port(_));
        let first = (within && self.backend.keeps_clients())
            .then(|| forwarded::first(&down.head().headers))
            .flatten();
        first.unwrap_or(self.asked.remote)
    }

    /// The head for another attempt: the first went with its attempt, for most need no other.
    fn head_again(&self, down: &Downstream, record: &Record<'_>) -> Result<RequestHead, Refusal> {
        let mut head = edit::request_head(self.asked, self.plan, down)?;
        if let Some(id) = record.request_id.clone() {
            let full = |_| Refusal::Internal("request head has no room");
            head.insert(forwarded::REQUEST_ID, id).map_err(full)?;
        }
        Ok(head)
    }

    /// Tells whether another attempt may be made after `fault`.
    fn again(&self, fault: &Fault, down: &Downstream, attempts: u32) -> bool {
        let method = &down.head().method;
        let in_time = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
        fault.failure.is_some_and(|failure| self.retry.allows(failure, method, attempts))
            && self.bodies.can_retry(down)
            && in_time
    }

    async fn pause(&self, attempts: u32) {
        let wait = self.retry.wait(attempts, self.asked.worker.fraction());
        if wait > Duration::ZERO {
            let until = Instant::now() + wait;
            let until = self.deadline.map_or(until, |deadline| until.min(deadline));
            sleep_until(until.into()).await;
        }
    }

    /// One attempt, up to the head of the response.
    async fn once(
        &mut self,
        chosen: &mut Chosen<'_>,
        down: &mut Downstream,
        head: RequestHead,
        record: &mut Record<'_>,
    ) -> Result<(Upstream, ResponseHead), Fault> {
        let begun = Instant::now();
        record.attempt_deadline = self.timeouts.attempt_deadline(begun, self.deadline);
        let limit = record.attempt_deadline;
        let (target, mut up) = match by(limit, Box::pin(self.connect(chosen, record))).await {
            Some(connected) => connected?,
            None => return Err(self.timed_out()),
        };
        let sent = self.bodies.respond(down, &mut up, head);
        let answered = match by(limit, sent).await {
            Some(answered) => answered,
            None => return Err(self.timed_out()),
        };
        let uid = target.endpoint().map(|endpoint| &endpoint.uid);
        match answered {
            Ok(answer) => {
                record.service_time = Some(begun.elapsed());
                if let Some(uid) = uid {
                    self.asked.worker.attempted(uid, true);
                }
                let failure = Failure::Status(answer.status.as_u16());
                let fault = Fault { refusal: Refusal::UpstreamGone, failure: Some(failure) };
                if self.again(&fault, down, record.attempts) {
                    return Err(fault);
                }
                Ok((up, answer))
            }
            Err(error) => {
                if let (Side::Upstream, Some(uid)) = (error.side(), uid) {
                    self.asked.worker.attempted(uid, false);
                }
                Err(fault(&error))
            }
        }
    }

    async fn connect(
        &self,
        chosen: &mut Chosen<'_>,
        record: &mut Record<'_>,
    ) -> Result<(Rc<Target>, Upstream), Fault> {
        let target = match chosen.next().await {
            Some(Ok(target)) => target,
            Some(Err(error)) => return Err(unreachable(&error)),
            None => return Err(self.out_of_endpoints()),
        };
        let worker = self.asked.worker;
        record.target = Some(Rc::clone(&target));
        let got = worker
            .upstreams
            .get(target.key(), target.protocol(), async || target.dial(worker).await);
        match got.await {
            Ok(up) => Ok((target, up)),
            Err(error) => {
                if let Some(endpoint) = target.endpoint() {
                    worker.attempted(&endpoint.uid, false);
                }
                Err(match error {
                    GetError::Dial(error) => unreachable(&error),
                    GetError::Http(error) => fault(&error),
                })
            }
        }
    }

    /// Passes the response on, to its end.
    async fn deliver(
        &mut self,
        down: &mut Downstream,
        up: Upstream,
        mut answer: ResponseHead,
        record: &mut Record<'_>,
    ) -> Result<(), Refusal> {
        self.plan.response(&mut answer);
        record.code = answer.status.as_u16();
        record.grpc = finish_grpc(&answer);
        let upgraded = answer.status == http::StatusCode::SWITCHING_PROTOCOLS;
        let limit = record.attempt_deadline.filter(|_| !upgraded);
        let asked = self.asked;
        // What may last is asked again at every change; the rest is over too soon for that.
        let lasts = upgraded || asked.grpc || !answer.headers.contains_key(CONTENT_LENGTH);
        let asking = lasts.then(|| down.head().clone());
        let delivered = by(limit, self.bodies.deliver(down, up, answer));
        let result = match asking {
            Some(head) => tokio::select! {
                biased;
                refusal = withdrawn(asked, &head) => return Err(refusal),
                result = delivered => result,
            },
            None => delivered.await,
        };
        match result {
            Some(done) => done.map_err(|error| fault(&error).refusal),
            None => Err(Refusal::Timeout),
        }
    }

    /// Nothing is left to try: the reason is that of the attempt before.
    fn out_of_endpoints(&self) -> Fault {
        let none = || Refusal::Connect("no endpoint is left".into());
        Fault { refusal: self.last.clone().unwrap_or_else(none), failure: None }
    }

    fn timed_out(&self) -> Fault {
        let over = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let failure = (!over).then_some(Failure::TimedOut);
        Fault { refusal: Refusal::Timeout, failure }
    }
}

/// Waits until a change of policy refuses what was let in before.
async fn withdrawn(asked: &Asked<'_>, head: &http::request::Parts) -> Refusal {
    let mut decided_at = asked.loaded.snapshot.revision;
    loop {
        let loaded = asked.worker.load();
        if loaded.snapshot.revision != decided_at {
            decided_at = loaded.snapshot.revision;
            if let Err(denied) = admit::admit(&loaded, asked, head) {
                return Refusal::Denied(denied);
            }
        }
        drop(loaded);
        asked.worker.changed().await;
    }
}

/// Runs `work` up to `limit`; none if it took longer.
async fn by<F: Future>(limit: Option<Instant>, work: F) -> Option<F::Output> {
    match limit {
        Some(limit) => timeout_at(limit.into(), work).await.ok(),
        None => Some(work.await),
    }
}

fn unreachable(error: &DialError) -> Fault {
    let failure = error.try_elsewhere().then_some(Failure::Unsent);
    Fault { refusal: error.refusal(), failure }
}

fn fault(error: &Error) -> Fault {
    let failure = match error.retry() {
        Retry::Always => Some(Failure::Unsent),
        Retry::IfUnsent => Some(Failure::Broken),
        Retry::Never => None,
    };
    let refusal = match error {
        Error::DownstreamGone | Error::DownstreamIo(_) => Refusal::ClientGone,
        Error::DownstreamBody(_) => Refusal::BadBody,
        Error::BodyTooLarge => Refusal::BodyTooLarge,
        Error::Order(what) | Error::Head(what) => Refusal::Internal(what),
        Error::UpstreamHandshake(_) => Refusal::Connect(chain(error).into()),
        Error::UpstreamClosed { .. }
        | Error::UpstreamRefused
        | Error::UpstreamReset(_)
        | Error::UpstreamIo(_) => Refusal::UpstreamGone,
        Error::UpstreamHead(_) | Error::UpstreamHeadTooLarge | Error::UpstreamBody(_) => {
            Refusal::UpstreamProtocol
        }
    };
    Fault { refusal, failure }
}

/// The gRPC status of a response without a body, which has it in its head.
fn finish_grpc(head: &ResponseHead) -> Option<u16> {
    let status = head.headers.get("grpc-status")?;
    status.to_str().ok()?.parse().ok()
}
