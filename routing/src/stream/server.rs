// SPDX-License-Identifier: Apache-2.0

//! The controller's half of the delta stream: one client's session.
//!
//! Owns what the client asked for, what it has, and what it acknowledged.
//! Leaves to the caller which resources there are for this client, as a [`View`].
//!
//! Keeps: a client is sent what it lacks and nothing twice; the revision that
//! counts as acknowledged has been answered in all its parts.
//!
//! Start at [`Session::receive`] and [`Session::push`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Rejected, Resource, WILDCARD, rejected,
};

/// A resource ready to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Versioned {
    /// Its name, unique within its kind.
    pub name: Arc<str>,
    /// Changes whenever the content does.
    pub version: Arc<str>,
    /// Other names that it answers to, such as `network/address`.
    pub aliases: Vec<Arc<str>>,
    /// The encoded message.
    pub body: Bytes,
}

/// The resources that there are for one client.
pub trait View {
    /// All of a kind.
    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Versioned> + 'a>;

    /// The resource of this name, alias not included.
    fn get(&self, type_url: &str, name: &str) -> Option<&Versioned>;

    /// All that a client needs which asks for this name or alias: a service
    /// comes with its endpoints.
    fn asked<'a>(&'a self, type_url: &str, name: &str) -> Vec<&'a Versioned>;
}

/// What a request of the client came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Received {
    /// It changed what it wants of this kind: [`Session::sync`] is due.
    pub subscribed: bool,
    /// It answered a response; with these rejections if it refused any part.
    pub answered: Option<Vec<Rejected>>,
}

/// What a client wants of one kind, and has.
#[derive(Debug, Default)]
struct Watch {
    all: bool,
    names: BTreeSet<Arc<str>>,
    held: HashMap<Arc<str>, Arc<str>>,
    /// Names asked for that were said not to exist.
    absent: BTreeSet<Arc<str>>,
    /// A response is owed even if it is empty, since the client waits for it.
    owed: bool,
    rejected: BTreeMap<Arc<str>, Arc<str>>,
}

/// A response that was sent and not answered yet.
#[derive(Debug)]
struct InFlight {
    nonce: String,
    type_url: String,
    revision: u64,
    names: Vec<Arc<str>>,
}

/// One client on one connection.
#[derive(Debug, Default)]
pub struct Session {
    node: Option<Node>,
    watches: BTreeMap<String, Watch>,
    in_flight: VecDeque<InFlight>,
    sent: u64,
    reached: u64,
}

impl Session {
    /// Who the client says it is, once it has said so.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Kinds that the client asked for.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.watches.keys().map(String::as_str)
    }

    /// Tells whether the client asked for every resource of a kind.
    pub fn wants_all(&self, type_url: &str) -> bool {
        self.watches.get(type_url).is_some_and(|watch| watch.all)
    }

    /// Takes a request in.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Received {
        if self.node.is_none() {
            self.node = request.node;
        }
        let first = !self.watches.contains_key(&request.type_url);
        let watch = self.watches.entry(request.type_url.clone()).or_default();
        let subscribe = &request.resource_names_subscribe;
        let unsubscribe = &request.resource_names_unsubscribe;
        if first {
            watch.first(subscribe, request.initial_resource_versions);
        }
        watch.subscribe(subscribe);
        watch.unsubscribe(unsubscribe);
        let subscribed = first || !subscribe.is_empty() || !unsubscribe.is_empty();
        let refusal = request.error_detail.map(|status| rejected(&status));
        let answered = self.answered(&request.type_url, &request.response_nonce, refusal);
        Received { subscribed, answered }
    }

    /// Notes the answer to the response with this nonce; none if there is no such response.
    fn answered(
        &mut self,
        type_url: &str,
        nonce: &str,
        refusal: Option<Vec<Rejected>>,
    ) -> Option<Vec<Rejected>> {
        let same = |flight: &InFlight| flight.nonce == nonce && flight.type_url == type_url;
        let place = self.in_flight.iter().position(same)?;
        let flight = self.in_flight.remove(place)?;
        let watch = self.watches.get_mut(type_url)?;
        let refusal = refusal.unwrap_or_default();
        // A refusal that names nothing holds until a response is taken whole.
        watch.rejected.remove("");
        for name in &flight.names {
            watch.rejected.remove(name);
        }
        for one in &refusal {
            watch.rejected.insert(Arc::clone(&one.name), Arc::clone(&one.reason));
        }
        Some(refusal)
    }

    /// What is to be sent of a kind after the client subscribed, or after a
    /// change of which it is not known what it touched.
    pub fn sync(
        &mut self,
        type_url: &str,
        view: &impl View,
        revision: u64,
    ) -> Option<DeltaDiscoveryResponse> {
        let watch = self.watches.get_mut(type_url)?;
        let mut wanted: BTreeMap<Arc<str>, &Versioned> = BTreeMap::new();
        let mut gone = Vec::new();
        for name in &watch.names {
            let found = view.asked(type_url, name);
            if !found.is_empty() {
                watch.absent.remove(name);
            } else if watch.absent.insert(Arc::clone(name)) {
                gone.push(Arc::clone(name));
            }
            wanted.extend(found.into_iter().map(|one| (Arc::clone(&one.name), one)));
        }
        if watch.all {
            wanted.extend(view.all(type_url).map(|one| (Arc::clone(&one.name), one)));
        }
        gone.extend(watch.held.keys().filter(|name| !wanted.contains_key(*name)).cloned());
        gone.sort();
        gone.dedup();
        let changed = wanted.into_values().filter(|one| watch.lacks(one)).collect();
        self.respond(type_url, changed, gone, revision)
    }

    /// What is to be sent of a kind after the resources of these names changed,
    /// came or went. The cost is that of the names, if the client wants all.
    pub fn push<'a>(
        &mut self,
        type_url: &str,
        names: impl IntoIterator<Item = &'a Arc<str>>,
        view: &impl View,
        revision: u64,
    ) -> Option<DeltaDiscoveryResponse> {
        let watch = self.watches.get(type_url)?;
        if watch.owed || !watch.all || !watch.names.is_empty() {
            return self.sync(type_url, view, revision);
        }
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for name in names {
            match view.get(type_url, name) {
                Some(one) if watch.lacks(one) => changed.push(one),
                Some(_) => {}
                None if watch.held.contains_key(name) => gone.push(Arc::clone(name)),
                None => {}
            }
        }
        self.respond(type_url, changed, gone, revision)
    }

    fn respond(
        &mut self,
        type_url: &str,
        changed: Vec<&Versioned>,
        gone: Vec<Arc<str>>,
        revision: u64,
    ) -> Option<DeltaDiscoveryResponse> {
        let watch = self.watches.get_mut(type_url)?;
        if changed.is_empty() && gone.is_empty() && !watch.owed {
            return None;
        }
        watch.owed = false;
        for name in &gone {
            watch.held.remove(name);
        }
        for one in &changed {
            watch.held.insert(Arc::clone(&one.name), Arc::clone(&one.version));
        }
        self.sent += 1;
        let nonce = self.sent.to_string();
        let names = changed.iter().map(|one| Arc::clone(&one.name));
        self.in_flight.push_back(InFlight {
            nonce: nonce.clone(),
            type_url: type_url.to_owned(),
            revision,
            names: names.chain(gone.iter().cloned()).collect(),
        });
        let resource = |one: &Versioned| Resource {
            name: one.name.to_string(),
            version: one.version.to_string(),
            aliases: one.aliases.iter().map(ToString::to_string).collect(),
            resource: Some(prost_types::Any {
                type_url: type_url.to_owned(),
                value: one.body.to_vec(),
            }),
            ttl: None,
        };
        Some(DeltaDiscoveryResponse {
            system_version_info: revision.to_string(),
            resources: changed.into_iter().map(resource).collect(),
            type_url: type_url.to_owned(),
            removed_resources: gone.iter().map(ToString::to_string).collect(),
            nonce,
            control_plane: None,
        })
    }

    /// Notes that everything up to `revision` was handed to the client, or does not concern it.
    pub fn reached(&mut self, revision: u64) {
        self.reached = self.reached.max(revision);
    }

    /// The newest revision of which the client has answered every part.
    pub fn acknowledged(&self) -> u64 {
        let waiting = self.in_flight.iter().map(|flight| flight.revision).min();
        waiting.map_or(self.reached, |oldest| oldest.saturating_sub(1).min(self.reached))
    }

    /// Tells whether some response is not answered yet.
    pub fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// What the client refuses at present: kind and rejection.
    pub fn rejections(&self) -> impl Iterator<Item = (&str, Rejected)> {
        self.watches.iter().flat_map(|(type_url, watch)| {
            let rejected = watch.rejected.iter().map(|(name, reason)| Rejected {
                name: Arc::clone(name),
                reason: Arc::clone(reason),
            });
            rejected.map(move |one| (type_url.as_str(), one))
        })
    }
}

impl Watch {
    /// Takes in what only the first request of a kind says.
    fn first(&mut self, subscribe: &[String], held: BTreeMap<String, String>) {
        self.owed = true;
        self.all = subscribe.is_empty();
        self.held =
            held.into_iter().map(|(name, version)| (Arc::from(name), Arc::from(version))).collect();
    }

    fn subscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.all = true;
                self.owed = true;
                continue;
            }
            let name: Arc<str> = name.as_str().into();
            // Who asks again wants it again, or to hear that it is not there.
            if !self.owed {
                self.held.remove(&name);
            }
            self.absent.remove(&name);
            self.names.insert(name);
        }
    }

    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.all = false;
                // What it has from an earlier stream it goes on wanting.
                self.names.extend(self.held.keys().cloned());
                continue;
            }
            self.names.remove(name.as_str());
            self.absent.remove(name.as_str());
            if !self.all {
                self.held.remove(name.as_str());
            }
        }
    }

    fn lacks(&self, resource: &Versioned) -> bool {
        self.held.get(&resource.name) != Some(&resource.version)
    }
}
