// SPDX-License-Identifier: Apache-2.0

//! Rules, clauses and matches: all-of, any-of, all-of.
//!
//! Owns the shape and how answers combine. Leaves single values to
//! [`super::matcher`]. `from`, `to` and each entry of `when` of an Istio
//! policy's rule are one [`Clause`] each.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::answer::Answer;
use super::matcher::{AccountMatch, PathMatch, StringMatch, host_matches};
use crate::jwt::{Claims, principal_matches};
use crate::request::{Http, Request};

/// Matches if all clauses do; without clauses it matches everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// All-of.
    pub clauses: Vec<Clause>,
}

impl Rule {
    pub(super) fn answer(&self, request: &Request<'_>) -> Answer {
        Answer::all_of(self.clauses.iter().map(|clause| clause.answer(request)))
    }
}

/// Matches if any of its matches does; without one it matches nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Clause {
    /// Any-of.
    pub matches: Vec<Match>,
}

impl Clause {
    fn answer(&self, request: &Request<'_>) -> Answer {
        Answer::any_of(self.matches.iter().map(|one| one.answer(request)))
    }
}

/// Values of one field: any of the first list (empty: any value), none of the second.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Field<T> {
    /// One of these must match, unless the list is empty.
    pub any: Vec<T>,
    /// None of these may match.
    pub not: Vec<T>,
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self { any: Vec::new(), not: Vec::new() }
    }
}

impl<T> Field<T> {
    /// True if neither list holds a value, so that the field asks nothing.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.not.is_empty()
    }

    fn answer(&self, test: impl Fn(&T) -> Answer) -> Answer {
        let any = match self.any.as_slice() {
            [] => Answer::Yes,
            values => Answer::any_of(values.iter().map(&test)),
        };
        any.min(Answer::any_of(self.not.iter().map(&test)).not())
    }

    fn matches(&self, test: impl Fn(&T) -> bool) -> Answer {
        self.answer(|value| Answer::from(test(value)))
    }
}

/// Values of one header: `request.headers[<name>]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeaderField {
    /// Name of the header.
    pub name: HeaderName,
    /// Its values.
    pub values: Field<StringMatch>,
}

/// Values of one claim of the request's token: `request.auth.claims[<name>][<name>]…`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClaimField {
    /// Names that lead to it, from the outside in; never empty.
    pub path: Vec<Arc<str>>,
    /// Its values, or those of its items.
    pub values: Field<StringMatch>,
}

/// Matches if every field that asks something does; if none asks, it matches nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Match {
    /// Namespace of the peer's identity.
    pub namespaces: Field<StringMatch>,
    /// Service account of the peer's identity, trust domain not looked at.
    pub service_accounts: Field<AccountMatch>,
    /// The peer's identity without `spiffe://`.
    pub principals: Field<StringMatch>,
    /// Address of the connection's other end.
    pub source_ips: Field<IpNet>,
    /// Address of the first client, as far as trusted hops tell.
    pub remote_ips: Field<IpNet>,
    /// Address of the destination.
    pub destination_ips: Field<IpNet>,
    /// Port of the destination.
    pub destination_ports: Field<u16>,
    /// Server name of the TLS hello (`connection.sni`).
    pub sni: Field<StringMatch>,
    /// Host, without case.
    pub hosts: Field<StringMatch>,
    /// Method.
    pub methods: Field<StringMatch>,
    /// Path without query.
    pub paths: Field<PathMatch>,
    /// Headers, each at most once.
    pub headers: Vec<HeaderField>,
    /// Issuer and subject of the request's token, with a slash between.
    pub request_principals: Field<StringMatch>,
    /// Claims of the request's token, each at most once.
    pub claims: Vec<ClaimField>,
}

impl Match {
    /// True if no field asks anything.
    pub fn is_empty(&self) -> bool {
        !self.asks_http()
            && self.namespaces.is_empty()
            && self.service_accounts.is_empty()
            && self.principals.is_empty()
            && self.source_ips.is_empty()
            && self.remote_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.destination_ports.is_empty()
            && self.sni.is_empty()
    }

    /// True if a field asks what a session below HTTP cannot answer.
    pub fn asks_http(&self) -> bool {
        !(self.hosts.is_empty()
            && self.methods.is_empty()
            && self.paths.is_empty()
            && self.headers.iter().all(|header| header.values.is_empty())
            && self.request_principals.is_empty()
            && self.claims.iter().all(|claim| claim.values.is_empty()))
    }

    fn answer(&self, request: &Request<'_>) -> Answer {
        if self.is_empty() {
            return Answer::No;
        }
        let so_far = self.answer_below_http(request);
        if so_far == Answer::No {
            return Answer::No;
        }
        so_far.min(self.answer_http(request.http.as_ref()))
    }

    fn answer_below_http(&self, request: &Request<'_>) -> Answer {
        let who = request.peer.identity.as_ref();
        let within = |ip: IpAddr| move |net: &IpNet| contains(net, ip);
        let source = request.peer.address.ip();
        let to = request.destination;
        Answer::all_of([
            self.namespaces.matches(|want| want.matches(who.map(|id| id.namespace()))),
            self.service_accounts.matches(|want| {
                who.is_some_and(|id| {
                    id.namespace() == &*want.namespace
                        && id.service_account() == &*want.service_account
                })
            }),
            self.principals.matches(|want| want.matches(who.map(|id| id.principal()))),
            self.source_ips.matches(within(source)),
            self.remote_ips.matches(within(request.remote)),
            self.destination_ips.matches(within(to.ip())),
            self.destination_ports.matches(|port| *port == to.port()),
            self.sni.matches(|want| request.sni.is_some_and(|sni| want.matches_any_case(sni))),
        ])
    }

    fn answer_http(&self, http: Option<&Http<'_>>) -> Answer {
        let ask = |test: &dyn Fn(&Http<'_>) -> Answer| http.map_or(Answer::Unknown, test);
        let here = Answer::all_of([
            self.methods
                .answer(|want| ask(&|http| Answer::from(want.matches(Some(http.method.as_str()))))),
            self.hosts.answer(|want| ask(&|http| Answer::from(host_matches(want, http.host)))),
            self.paths.answer(|want| ask(&|http| want.answer(http.path))),
        ]);
        let headers = self.headers.iter().map(|field| {
            field.values.answer(|want| ask(&|http| header_answer(want, &field.name, http.headers)))
        });
        here.min(Answer::all_of(headers)).min(self.answer_token(http))
    }

    /// A request without a token has no principal and no claim.
    fn answer_token(&self, http: Option<&Http<'_>>) -> Answer {
        let ask = |test: &dyn Fn(&Claims) -> bool| {
            http.map_or(Answer::Unknown, |http| Answer::from(http.claims.is_some_and(test)))
        };
        let claims = self.claims.iter().map(|field| {
            field.values.answer(|want| {
                ask(&|claims| claims.any(&field.path, |text| want.matches(Some(text))))
            })
        });
        self.request_principals
            .answer(|want| ask(&|claims| principal_matches(want, claims)))
            .min(Answer::all_of(claims))
    }
}

fn contains(net: &IpNet, ip: IpAddr) -> bool {
    let (net, ip) = (net.trunc(), ip.to_canonical());
    net.contains(&ip)
}

/// Judges every value of a header: some servers read the first, some the last,
/// so values that do not agree give no answer. No value matches nothing.
fn header_answer(want: &StringMatch, name: &HeaderName, headers: &HeaderMap) -> Answer {
    let mut answers = headers.get_all(name).iter().map(|value| {
        str::from_utf8(value.as_bytes())
            .map_or(Answer::Unknown, |text| Answer::from(want.matches(Some(text))))
    });
    let Some(first) = answers.next() else { return Answer::No };
    if answers.all(|answer| answer == first) { first } else { Answer::Unknown }
}
