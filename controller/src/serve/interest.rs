// SPDX-License-Identifier: Apache-2.0

//! What a client needs, by what it was proven to be.

use std::collections::BTreeSet;
use std::sync::Arc;

use routing::stream::server::{Versioned, View};

use super::config::{Entry, Published};
use crate::app::{Accounts, State};
use crate::ca::token::Bound;
use crate::output::{Family, Scope};
use crate::store::Name;

/// What a client is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Role {
    /// The tunnel of a node.
    Tunnel,
    /// The agent of this node.
    Agent(Arc<str>),
    /// A proxy of these Gateways.
    Gateway(BTreeSet<Name>),
}

impl Role {
    /// The role of `caller`; none if its account has none.
    pub fn of(caller: &Bound, state: &State, accounts: &Accounts) -> Option<Self> {
        let account = caller.account();
        if accounts.tunnels.contains(&account) {
            return Some(Self::Tunnel);
        }
        if accounts.agents.contains(&account) {
            return Some(Self::Agent(caller.node.name.as_str().into()));
        }
        let gateways = state.gateways.get(&account)?;
        Some(Self::Gateway(gateways.clone()))
    }

    /// In a word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Agent(_) => "agent",
            Self::Gateway(_) => "gateway",
        }
    }

    /// Tells whether the client may have resources of a family.
    pub fn may_have(&self, family: Family) -> bool {
        match family {
            Family::Roots => true,
            Family::Address | Family::Authorization => !matches!(self, Self::Agent(_)),
            Family::NodePod => matches!(self, Self::Agent(_)),
            Family::Secret
            | Family::RequestAuthorization
            | Family::RequestAuthentication
            | Family::BackendTls
            | Family::Gateway
            | Family::Listener
            | Family::Route => matches!(self, Self::Gateway(_)),
        }
    }

    fn needs(&self, scope: &Scope) -> bool {
        match (scope, self) {
            (Scope::Everyone, _) | (Scope::AllGateways, Self::Gateway(_)) => true,
            (Scope::Gateways(wanted), Self::Gateway(own)) => {
                wanted.iter().any(|gateway| own.contains(gateway))
            }
            (Scope::Node(node), Self::Agent(own)) => node == own,
            (Scope::AllGateways | Scope::Gateways(_), Self::Tunnel | Self::Agent(_))
            | (Scope::Node(_), Self::Tunnel | Self::Gateway(_)) => false,
        }
    }
}

/// What there is for one client.
#[derive(Clone, Copy, Debug)]
pub struct ClientView<'a> {
    /// The client.
    pub role: &'a Role,
    /// Its service account, `namespace/name`.
    pub account: &'a str,
    /// What is published.
    pub published: &'a Published,
}

impl<'a> ClientView<'a> {
    fn family(self, type_url: &str) -> Option<Family> {
        Family::of(type_url).filter(|family| self.role.may_have(*family))
    }

    fn allowed(self, entry: &'a Entry) -> Option<&'a Versioned> {
        let form = match entry.held.as_deref() {
            Some((account, older)) if account == self.account => older,
            Some(_) | None => &entry.versioned,
        };
        self.role.needs(entry.scope()).then_some(form)
    }
}

impl View for ClientView<'_> {
    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Versioned> + 'a> {
        match self.family(type_url) {
            Some(family) => {
                Box::new(self.published.all(family).filter_map(|entry| self.allowed(entry)))
            }
            None => Box::new(std::iter::empty()),
        }
    }

    fn get(&self, type_url: &str, name: &str) -> Option<&Versioned> {
        let family = self.family(type_url)?;
        self.allowed(self.published.get(family, name)?)
    }

    fn asked<'a>(&'a self, type_url: &str, name: &str) -> Vec<&'a Versioned> {
        let Some(family) = self.family(type_url) else { return Vec::new() };
        let found = self.published.asked(family, name).into_iter();
        found.filter_map(|entry| self.allowed(entry)).collect()
    }
}
