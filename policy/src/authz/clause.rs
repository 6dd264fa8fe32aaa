// SPDX-License-Identifier: Apache-2.0

//! Rules, clauses and matches: all-of, any-of, all-of.
//!
//! Owns the shape and how answers combine. Leaves single values to
//! [`super::matcher`]. `from`, `to` and each entry of `when` of an Istio
//! policy's rule are one [`Clause`] each.

use http::HeaderName;
use ipnet::IpNet;

use super::matcher::{AccountMatch, PathMatch, StringMatch};

/// Matches if all clauses do; without clauses it matches everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// All-of.
    pub clauses: Vec<Clause>,
}

/// Matches if any of its matches does; without one it matches nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Clause {
    /// Any-of.
    pub matches: Vec<Match>,
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
}

/// Values of one header: `request.headers[<name>]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeaderField {
    /// Name of the header.
    pub name: HeaderName,
    /// Its values.
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
}
