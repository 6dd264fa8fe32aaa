// SPDX-License-Identifier: Apache-2.0

//! The proxy's half of the delta stream.
//!
//! Owns subscriptions and the versions held; they outlive a connection, so that
//! after a reconnect the server sends only what changed. Start at [`Client::connect`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Rejected, WILDCARD, status};

/// Version that stands for a resource which was refused and never had a good
/// version. The server sends the resource again, or says that it is gone.
const NO_VERSION: &str = "";

/// What a proxy wants of one kind, and has.
#[derive(Clone, Debug, Default)]
struct Kind {
    /// Names besides, or instead of, all.
    names: BTreeSet<Arc<str>>,
    all: bool,
    held: BTreeMap<Arc<str>, Arc<str>>,
    answered: bool,
}

/// The proxy's half of a delta stream, over all its connections.
#[derive(Clone, Debug)]
pub struct Client {
    node: Node,
    /// In the order in which they are asked for.
    kinds: Vec<(String, Kind)>,
}

impl Client {
    /// A client that wants all resources of these kinds, given by type URL.
    pub fn new(node: Node, kinds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let all = || Kind { all: true, ..Kind::default() };
        Self { node, kinds: kinds.into_iter().map(|kind| (kind.into(), all())).collect() }
    }

    /// Wants only those resources of a kind that [`Self::subscribe`] names; before [`Self::connect`].
    #[must_use]
    pub fn on_demand(mut self, type_url: &str) -> Self {
        if let Some(kind) = self.kind_mut(type_url) {
            kind.all = false;
        }
        self
    }

    /// Does not wait for an answer of this kind: not every controller knows it.
    #[must_use]
    pub fn optional(mut self, type_url: &str) -> Self {
        if let Some(kind) = self.kind_mut(type_url) {
            kind.answered = true;
        }
        self
    }

    /// The first requests of a new connection, one for each kind.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut node = Some(self.node.clone());
        let first = |(type_url, kind): &mut (String, Kind)| {
            let names = kind.names.iter().map(ToString::to_string);
            // A first request without names means all; "*" with names too, or the names.
            let (mut subscribe, mut unsubscribe): (Vec<String>, _) = (names.collect(), Vec::new());
            if !kind.all {
                subscribe.insert(0, WILDCARD.to_owned());
                unsubscribe.push(WILDCARD.to_owned());
            } else if !subscribe.is_empty() {
                subscribe.insert(0, WILDCARD.to_owned());
            }
            let held = kind.held.iter();
            DeltaDiscoveryRequest {
                node: node.take(),
                type_url: type_url.clone(),
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                initial_resource_versions: held
                    .map(|(name, version)| (name.to_string(), version.to_string()))
                    .collect(),
                ..DeltaDiscoveryRequest::default()
            }
        };
        self.kinds.iter_mut().map(first).collect()
    }

    /// Asks for more names of a kind; none if it wants all or has asked before.
    pub fn subscribe(
        &mut self,
        type_url: &str,
        names: impl IntoIterator<Item = Arc<str>>,
    ) -> Option<DeltaDiscoveryRequest> {
        let kind = self.kind_mut(type_url)?;
        if kind.all {
            return None;
        }
        let new = names.into_iter().filter(|name| kind.names.insert(Arc::clone(name)));
        let new: Vec<String> = new.map(|name| name.to_string()).collect();
        (!new.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: new,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Asks for names no more; none if it had not asked for them.
    ///
    /// Resources of those names are no longer kept up to date; the caller drops them.
    pub fn unsubscribe(
        &mut self,
        type_url: &str,
        names: impl IntoIterator<Item = Arc<str>>,
    ) -> Option<DeltaDiscoveryRequest> {
        let kind = self.kind_mut(type_url)?;
        let old: Vec<Arc<str>> = names.into_iter().filter(|name| kind.names.remove(name)).collect();
        for name in &old {
            kind.held.remove(name);
        }
        (!old.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_unsubscribe: old.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Notes that a response was applied, but for `rejected`, and gives the answer to send.
    ///
    /// A response of a kind that was not asked for is refused.
    pub fn answer(
        &mut self,
        response: &DeltaDiscoveryResponse,
        rejected: &[Rejected],
    ) -> DeltaDiscoveryRequest {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: (!rejected.is_empty()).then(|| status(rejected)),
            ..DeltaDiscoveryRequest::default()
        };
        let Some(kind) = self.kind_mut(&response.type_url) else {
            let reason = "this kind was not asked for".into();
            answer.error_detail = Some(status(&[Rejected { name: "".into(), reason }]));
            return answer;
        };
        kind.answered = true;
        let refused: BTreeSet<&str> = rejected.iter().map(|one| &*one.name).collect();
        for resource in &response.resources {
            let name: Arc<str> = resource.name.as_str().into();
            if refused.contains(&*name) {
                // An older good version stays in force, and is what we have.
                kind.held.entry(name).or_insert_with(|| NO_VERSION.into());
            } else {
                kind.held.insert(name, resource.version.as_str().into());
            }
        }
        for name in &response.removed_resources {
            kind.held.remove(name.as_str());
        }
        answer
    }

    /// Tells whether every kind that is waited for had a response, on this connection or an earlier one.
    pub fn is_complete(&self) -> bool {
        self.kinds.iter().all(|(_, kind)| kind.answered)
    }

    /// Number of resources of a kind that are held, refused ones included.
    pub fn held(&self, type_url: &str) -> usize {
        let kind = self.kinds.iter().find(|(url, _)| url == type_url);
        kind.map_or(0, |(_, kind)| kind.held.len())
    }

    fn kind_mut(&mut self, type_url: &str) -> Option<&mut Kind> {
        self.kinds.iter_mut().find(|(url, _)| url == type_url).map(|(_, kind)| kind)
    }
}
