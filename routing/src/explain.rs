// SPDX-License-Identifier: Apache-2.0

//! What becomes of one connection or request, step by step, and what decided.
//!
//! Owns the order of the questions and the words of the answers. Every answer
//! comes from the function that answers for live traffic: [`crate::l4::resolve`], the
//! tables of rules, [`crate::filter::on_request`], [`crate::split::choose`], the policies'
//! judges. So it holds for live traffic too, as long as the snapshot is the same.
//!
//! Start at [`ask`].

mod request;
mod session;
mod token;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use policy::authz::{Denied, Permit};
use policy::jwt::Claims;
use policy::peer::Peer;

use crate::balance::Rolls;
use crate::discovery::{TunnelProtocol, Workload};
use crate::edit::Edits;
use crate::listener::GatewayName;
use crate::matching::normalise;
use crate::snapshot::Snapshot;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Who opens the connection.
    pub from: From<'a>,
    /// The request on it; none asks about the connection alone.
    pub http: Option<&'a http::request::Parts>,
    /// What a good token of the request proves; none: its token is the one that its head has.
    pub claims: Option<&'a Claims>,
    /// The time, in seconds since 1970: tokens expire.
    pub now: u64,
    /// The chance that decides among equals.
    pub roll: u64,
}

/// Who opens the connection, and to where.
#[derive(Clone, Debug)]
pub enum From<'a> {
    /// A workload, to an address.
    Workload {
        /// The workload.
        source: &'a Arc<Workload>,
        /// Where its application connects to.
        to: SocketAddr,
    },
    /// Someone outside the mesh, to a gateway.
    Outside {
        /// Address of the client.
        client: IpAddr,
        /// The gateway.
        gateway: &'a GatewayName,
        /// A workload that runs it.
        at: &'a Arc<Workload>,
        /// Port of a listener, as declared.
        port: u16,
        /// Name in the TLS hello; none: no TLS.
        sni: Option<&'a str>,
    },
}

impl From<'_> {
    /// The address that it comes from.
    fn client(&self) -> IpAddr {
        match self {
            Self::Workload { source, .. } => {
                source.addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]))
            }
            Self::Outside { client, .. } => *client,
        }
    }
}

/// What a step is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Topic {
    /// Whether the source is in the mesh.
    Enrolment,
    /// What the address stands for.
    Destination,
    /// The way from there.
    Way,
    /// The listener of a gateway.
    Listener,
    /// The token of an end user, at a gateway.
    Token,
    /// Policies over requests, at a gateway.
    RequestPolicy,
    /// The rule of a route.
    Route,
    /// The filters of that rule.
    Filters,
    /// The backend of that rule.
    Backend,
    /// Policies over sessions, at the destination.
    SessionPolicy,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enrolment => "enrolment",
            Self::Destination => "destination",
            Self::Way => "way",
            Self::Listener => "listener",
            Self::Token => "token",
            Self::RequestPolicy => "request policy",
            Self::Route => "route",
            Self::Filters => "filters",
            Self::Backend => "backend",
            Self::SessionPolicy => "session policy",
        })
    }
}

/// One step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// What it is about.
    pub topic: Topic,
    /// What came out, for people.
    pub text: String,
    /// The object that decided, such as `policy ns/name` or `HTTPRoute/ns/name/0`.
    pub decided_by: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It arrives at this workload.
    Arrives {
        /// Uid of the workload.
        workload: Arc<str>,
        /// Its port.
        port: u16,
    },
    /// It leaves the mesh for this address; what happens there is not known.
    Leaves(SocketAddr),
    /// A gateway answers with this status and asks no backend.
    Answered(u16),
    /// It is refused: the connection is closed, or answered with this status by a gateway.
    Refused(Option<u16>),
}

/// The steps and what became of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// In the order in which live traffic takes them.
    pub steps: Vec<Step>,
    /// What became of it.
    pub verdict: Verdict,
}

/// Follows a connection or request through `snapshot`, which must hold what
/// all proxies on the way hold.
pub fn ask(question: &Question<'_>, snapshot: &Snapshot) -> Explanation {
    let Some(head) = question.http.map_or(Some(None), |parts| normal(parts).map(Some)) else {
        let text = "refused: the path is not legal".to_owned();
        let steps = vec![Step { topic: Topic::Route, text, decided_by: None }];
        return Explanation { steps, verdict: Verdict::Refused(Some(400)) };
    };
    let mut trace = Trace {
        snapshot,
        http: head.as_ref(),
        claims: question.claims,
        now: question.now,
        client: question.from.client(),
        rolls: Rolls::new(question.roll),
        steps: Vec::new(),
        waypoints: Vec::new(),
    };
    let verdict = match &question.from {
        From::Workload { source, to } => trace.of_workload(source, *to),
        From::Outside { client, gateway, at, port, sni } => {
            let outside = request::Outside { client: *client, at, port: *port, sni: *sni };
            trace.of_outside(gateway, &outside)
        }
    };
    let verdict = verdict.unwrap_or_else(|end| end);
    Explanation { steps: trace.steps, verdict }
}

/// The head as gateways see it: with a path of one form; none: no gateway takes it.
fn normal(parts: &http::request::Parts) -> Option<http::request::Parts> {
    let path = normalise(parts.uri.path())?;
    let mut parts = parts.clone();
    if path != parts.uri.path() {
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let text = format!("{path}{query}");
        let Ok(path_and_query) = text.parse() else { return None };
        let edits = Edits { path_and_query: Some(path_and_query), ..Edits::default() };
        edits.apply_to_request(&mut parts);
    }
    Some(parts)
}

/// Either the verdict, or, as an error, one that came early.
type Outcome<T = Verdict> = Result<T, Verdict>;

/// An answer as it grows.
struct Trace<'a> {
    snapshot: &'a Snapshot,
    http: Option<&'a http::request::Parts>,
    claims: Option<&'a Claims>,
    now: u64,
    /// Address of whoever began it all.
    client: IpAddr,
    rolls: Rolls,
    steps: Vec<Step>,
    /// Services of waypoints passed already: each is entered at most once.
    waypoints: Vec<Arc<str>>,
}

impl Trace<'_> {
    fn say(&mut self, topic: Topic, text: impl Into<String>) {
        self.steps.push(Step { topic, text: text.into(), decided_by: None });
    }

    fn decide(&mut self, topic: Topic, text: impl Into<String>, by: impl fmt::Display) {
        let decided_by = Some(by.to_string());
        self.steps.push(Step { topic, text: text.into(), decided_by });
    }

    /// Says what a policy decided.
    fn judged(&mut self, topic: Topic, at: &str, judged: Result<Permit, Denied>) -> Outcome<()> {
        match judged {
            Ok(permit) => {
                match permit.by() {
                    Some(decision) => {
                        let by = format!("policy {} rule {}", decision.policy, decision.rule);
                        self.decide(topic, format!("allowed at {at}"), by);
                    }
                    None => self.say(topic, format!("no policy at {at} is against it")),
                }
                Ok(())
            }
            Err(denied) => {
                let by = match &denied {
                    Denied::Rule(decision) => {
                        format!("policy {} rule {}", decision.policy, decision.rule)
                    }
                    Denied::NotAllowed(_) | Denied::Unsupported { .. } | Denied::Missing(_) => {
                        format!("policy {}", denied.policy())
                    }
                };
                self.decide(topic, format!("refused at {at}: {denied}"), by);
                let http = topic == Topic::RequestPolicy && self.http.is_some();
                Err(Verdict::Refused(http.then_some(403)))
            }
        }
    }
}

/// The other end as the next proxy sees it.
fn peer(workload: &Workload) -> Peer {
    let ip = workload.addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let address = SocketAddr::new(ip, 0);
    match workload.tunnel {
        TunnelProtocol::Hbone => Peer::proven(workload.identity.clone(), address),
        TunnelProtocol::None => Peer::plain(address),
    }
}

#[cfg(test)]
mod tests;
