// SPDX-License-Identifier: Apache-2.0

//! Ordered changes: what follows what, and when.
//!
//! Adding a waypoint: it is ready → it is published → every client acknowledged it → sessions
//! that went past it had time to end → the guard is on. Removing one: the guard is off → acknowledged → clients are told to go direct →
//! acknowledged → the waypoint is told, which some still entered until then.
//! A running pod that comes in, and every pod that leaves: see [`pods`]; those that come or leave
//! together wait for each other. What is so from the
//! first moment that is known of it is in force at once: nothing was ever sent past it. A
//! waypoint that is not there at all refuses at once.
//!
//! One controller decides; others [`begin`](Steps::begin), and go on when they [lead](Steps::take_over).
//!
//! Rule: *Order* of the guard: L7 policy that cannot be walked around. Start at [`Steps::settle`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Service};
use routing::discovery::GatewayAddress;

use crate::api;
use crate::settings::Mesh;
use crate::store::facts::{FactKey, Step};
use crate::store::index::Index;
use crate::store::lookup::Lookup;
use crate::store::{Kind, Name, ReadKey, Stores};
use crate::translate::leave;
use crate::translate::waypoint::{self, State};

use self::pods::Belonging;

mod pods;

/// How long traffic goes direct while a new waypoint starts; then it refuses like an absent one.
const START: Duration = Duration::from_secs(60);

/// How far the data plane is, and when this is.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The revision that every client has acknowledged.
    pub acked: u64,
    /// The newest revision; what changes now goes out with the next.
    pub revision: u64,
    /// Now.
    pub now: Instant,
    /// How long sessions past a new waypoint may go on before the guard ends them.
    pub drain: Duration,
}

/// What was known when last looked, and what is under way.
#[derive(Debug, Default)]
pub struct Steps {
    /// Service → its key on the wire and its waypoint.
    services: BTreeMap<Name, (String, Option<Waypoint>)>,
    /// Pod → its UID and whether it belongs in the mesh.
    pods: BTreeMap<Name, (String, bool)>,
    /// Service or pod → the revision whose acknowledgement its step waits for.
    acks: BTreeMap<String, u64>,
    /// Service → since when every client enters its new waypoint.
    draining: BTreeMap<String, Instant>,
    /// Service → since when its waypoint starts.
    starting: BTreeMap<String, Instant>,
    /// Pod → since when its agent is to let plain connections past.
    opening: BTreeMap<String, Instant>,
    /// Pod → since when it comes in.
    joining: BTreeMap<String, Instant>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Waypoint {
    state: State,
    address: Option<GatewayAddress>,
}

impl Steps {
    /// Moves every ordered change as far as it may go; returns the read keys that this touched.
    ///
    /// `touched` are the keys that changed before: what they concern is looked at, and what
    /// waits.
    pub fn settle(
        &mut self,
        stores: &mut Stores,
        mesh: &Mesh,
        touched: &[ReadKey],
        moment: Moment,
    ) -> Vec<ReadKey> {
        let mut moved = self.look_at(stores, mesh, touched, moment);
        moved.extend(self.acknowledged(stores, moment));
        moved.extend(self.overdue(stores, moment));
        moved
    }

    /// Begins ordered changes while another controller decides how they go on.
    ///
    /// That one may see an object later than this one: until it is heard, nothing may be
    /// published here that only the end of an ordered change allows. What it decides replaces
    /// what was begun; so facts, which are its word, begin nothing.
    pub fn begin(
        &mut self,
        stores: &mut Stores,
        mesh: &Mesh,
        touched: &[ReadKey],
        moment: Moment,
    ) -> Vec<ReadKey> {
        let objects = touched.iter().filter(|key| !matches!(key, ReadKey::Fact(_)));
        let objects: Vec<ReadKey> = objects.cloned().collect();
        self.look_at(stores, mesh, &objects, moment)
    }

    fn look_at(
        &mut self,
        stores: &mut Stores,
        mesh: &Mesh,
        touched: &[ReadKey],
        moment: Moment,
    ) -> Vec<ReadKey> {
        let mut moved = Vec::new();
        for name in concerned(touched, Kind::Service, &self.services, stores) {
            let now = service(&name, stores, mesh);
            moved.extend(self.look_at_service(stores, &name, now, moment));
        }
        for name in concerned(touched, Kind::Pod, &self.pods, stores) {
            let now = pods::belonging(&name, stores, mesh);
            moved.extend(self.look_at_pod(stores, &name, now, moment));
        }
        moved
    }

    /// Goes on with what another controller decided until now: each step under way waits for
    /// its acknowledgement anew, and its time begins anew.
    pub fn take_over(&mut self, stores: &Stores, moment: Moment) {
        self.acks.clear();
        self.draining.clear();
        self.starting.clear();
        self.opening.clear();
        self.joining.clear();
        for (what, step) in stores.facts.steps() {
            let what = what.to_string();
            match step {
                // It is published here already.
                Step::Published | Step::Leaving(_) | Step::Left(_) | Step::Releasing => {
                    self.acks.insert(what, moment.revision);
                }
                Step::Waiting => {
                    self.starting.insert(what, moment.now);
                }
                Step::Opening => {
                    self.opening.insert(what, moment.now);
                }
                Step::Joining => {
                    if pods::is_proven(stores.facts.pod(&what), stores.facts.told(&what)) {
                        self.acks.insert(what.clone(), moment.revision);
                    }
                    self.joining.insert(what, moment.now);
                }
                Step::Settled => {}
            }
        }
    }

    fn look_at_service(
        &mut self,
        stores: &mut Stores,
        name: &Name,
        now: Option<(String, Option<Waypoint>)>,
        moment: Moment,
    ) -> Option<ReadKey> {
        let before = self.services.remove(name);
        let Some((key, waypoint)) = now else {
            let (key, _) = before?;
            return self.set(stores, &key, Step::Settled, moment);
        };
        let step = stores.facts.step(&key);
        let next = match (before.map(|(_, waypoint)| waypoint), &waypoint) {
            // Not seen before: nothing was ever sent past it.
            (None, _) => Step::Settled,
            (Some(None), Some(new)) => match new.state {
                State::NotReady => Step::Waiting,
                State::Ready => Step::Published,
                State::Absent | State::Denied | State::WrongTraffic => Step::Settled,
            },
            (Some(Some(_)), Some(new)) => match (step, new.state) {
                (Step::Waiting, State::NotReady) => Step::Waiting,
                (Step::Waiting, State::Ready) => Step::Published,
                (Step::Waiting, _) => Step::Settled,
                (step, _) => step,
            },
            // Another controller saw it first.
            (Some(Some(_)), None) if matches!(step, Step::Leaving(_) | Step::Left(_)) => step,
            (Some(Some(old)), None) => match (old.address, &step) {
                (Some(address), Step::Settled | Step::Published) if old.state == State::Ready => {
                    Step::Leaving(address)
                }
                _ => Step::Settled,
            },
            (Some(None), None) => step,
        };
        self.services.insert(name.clone(), (key.clone(), waypoint));
        self.set(stores, &key, next, moment)
    }

    fn look_at_pod(
        &mut self,
        stores: &mut Stores,
        name: &Name,
        now: Option<(String, Belonging)>,
        moment: Moment,
    ) -> Vec<ReadKey> {
        let before = self.pods.remove(name);
        let mut moved = Vec::new();
        if let Some((old, _)) = &before
            && now.as_ref().is_none_or(|(uid, _)| uid != old)
        {
            moved.extend(self.set(stores, old, Step::Settled, moment));
            stores.facts.forget(old);
        }
        let Some((uid, now)) = now else { return moved };
        let known = before.filter(|(old, _)| *old == uid).map(|(_, inside)| inside);
        let facts = &stores.facts;
        let next = pods::next(known, now, &facts.step(&uid), facts.pod(&uid), facts.told(&uid));
        moved.extend(stores.facts.tell(&uid, pods::telling(now.inside, &next)));
        let told = stores.facts.told(&uid);
        let proven = pods::is_proven(stores.facts.pod(&uid), told);
        if next == Step::Joining && stores.facts.step(&uid) != Step::Joining {
            // What clients acknowledge of an earlier step says nothing of this one.
            self.acks.remove(&uid);
        }
        if next == Step::Joining && proven {
            // It goes out as HBONE with the next revision.
            self.acks.entry(uid.clone()).or_insert(moment.revision + 1);
        }
        moved.extend(self.set(stores, &uid, next, moment));
        self.pods.insert(name.clone(), (uid, now.inside));
        moved
    }

    /// Moves on what waited for a revision that is acknowledged now.
    fn acknowledged(&mut self, stores: &mut Stores, moment: Moment) -> Vec<ReadKey> {
        let due = self.acks.iter().filter(|(_, revision)| **revision <= moment.acked);
        let mut due: Vec<String> = due.map(|(what, _)| what.clone()).collect();
        due.retain(|what| match stores.facts.step(what) {
            Step::Published => {
                let since = self.draining.entry(what.clone()).or_insert(moment.now);
                moment.now.duration_since(*since) >= moment.drain
            }
            // Once out it calls with plain bytes, which others may not take yet.
            Step::Releasing => self.opening.is_empty(),
            // Once in it takes no plain bytes, which others may still call with.
            Step::Joining => !self.some_still_join(moment),
            Step::Waiting | Step::Settled | Step::Leaving(_) | Step::Left(_) | Step::Opening => {
                true
            }
        });
        let after = |step: Step| match step {
            Step::Leaving(address) => Step::Left(address),
            Step::Waiting
            | Step::Published
            | Step::Settled
            | Step::Left(_)
            | Step::Joining
            | Step::Opening
            | Step::Releasing => Step::Settled,
        };
        let mut moved = Vec::new();
        for what in &due {
            let step = stores.facts.step(what);
            if matches!(step, Step::Joining | Step::Releasing) {
                moved.extend(
                    stores.facts.tell(what, pods::telling(step == Step::Joining, &Step::Settled)),
                );
            }
            moved.extend(self.set(stores, what, after(step), moment));
        }
        moved
    }

    /// Tells whether pods that come in together with others are not captured yet: a label on a
    /// namespace concerns pods that call each other.
    fn some_still_join(&self, moment: Moment) -> bool {
        self.joining.iter().any(|(uid, since)| {
            let waited_for = moment.now.duration_since(*since) <= pods::SILENCE;
            waited_for && !self.acks.contains_key(uid)
        })
    }

    /// Ends the grace of waypoints that do not come up.
    fn overdue(&mut self, stores: &mut Stores, moment: Moment) -> Vec<ReadKey> {
        let late = |since: &Instant| moment.now.duration_since(*since) > START;
        let due = self.starting.iter().filter(|(_, since)| late(since));
        let due: Vec<String> = due.map(|(what, _)| what.clone()).collect();
        for service in &due {
            tracing::warn!(service, "waypoint did not become ready in time: traffic is refused");
        }
        let silent = |since: &Instant| moment.now.duration_since(*since) > pods::SILENCE;
        let late = self.opening.iter().filter(|(_, since)| silent(since));
        let late: Vec<String> = late.map(|(uid, _)| uid.clone()).collect();
        for uid in &late {
            tracing::warn!(uid, "its agent does not let plain connections past: not waited for");
        }
        let mut moved: Vec<ReadKey> =
            due.iter().filter_map(|what| self.set(stores, what, Step::Settled, moment)).collect();
        moved.extend(late.iter().filter_map(|uid| self.set(stores, uid, Step::Releasing, moment)));
        moved
    }

    fn set(
        &mut self,
        stores: &mut Stores,
        what: &str,
        step: Step,
        moment: Moment,
    ) -> Option<ReadKey> {
        if stores.facts.step(what) != step {
            if step != Step::Joining {
                self.acks.remove(what);
            }
            self.starting.remove(what);
            self.draining.remove(what);
            self.opening.remove(what);
            self.joining.remove(what);
        }
        match step {
            Step::Published | Step::Leaving(_) | Step::Left(_) | Step::Releasing => {
                self.acks.entry(what.to_owned()).or_insert(moment.revision + 1);
            }
            Step::Waiting => {
                self.starting.entry(what.to_owned()).or_insert(moment.now);
            }
            Step::Opening => {
                self.opening.entry(what.to_owned()).or_insert(moment.now);
            }
            Step::Joining => {
                self.joining.entry(what.to_owned()).or_insert(moment.now);
            }
            Step::Settled => {}
        }
        stores.facts.set_step(what, step)
    }
}

/// The objects of a kind that a change concerns: themselves, or all, if what changed may decide
/// about any of them.
fn concerned<T>(
    touched: &[ReadKey],
    kind: Kind,
    known: &BTreeMap<Name, T>,
    stores: &Stores,
) -> BTreeSet<Name> {
    let decides = |key: &ReadKey| match key {
        ReadKey::Object(key) => {
            let of_gateways = matches!(key.kind, Kind::Gateway | Kind::GatewayClass);
            let leaves = kind == Kind::Pod && leave::is_about(key);
            key.kind == Kind::Namespace || (kind == Kind::Service && of_gateways) || leaves
        }
        // A proxy came, went, or changed its readiness.
        ReadKey::Index(Kind::Pod, Index::Label, label) => {
            kind == Kind::Service && label.contains(api::GATEWAY_NAME)
        }
        ReadKey::Index(..) | ReadKey::Fact(_) => false,
    };
    if touched.iter().any(decides) {
        return known.keys().cloned().chain(stores.names(kind)).collect();
    }
    let mut own = BTreeSet::new();
    for key in touched {
        match key {
            ReadKey::Object(key) if key.kind == kind => {
                own.insert(key.name.clone());
            }
            ReadKey::Fact(FactKey::Pod(uid)) if kind == Kind::Pod => {
                let found = stores.list::<Pod>(Index::Uid, uid).into_iter();
                own.extend(found.map(|found| pods::name(found)));
            }
            ReadKey::Object(_) | ReadKey::Index(..) | ReadKey::Fact(_) => {}
        }
    }
    own
}

/// A Service's key on the wire and its waypoint; none if there is no such Service.
fn service(name: &Name, stores: &Stores, mesh: &Mesh) -> Option<(String, Option<Waypoint>)> {
    let meta = &stores.get::<Service>(&name.namespace, &name.name)?.metadata;
    let key = api::service_key(&name.namespace, &name.name);
    let bound = waypoint::of_service(meta, &mut Lookup::new(stores, mesh));
    let waypoint = bound.map(|bound| Waypoint { state: bound.state, address: bound.address() });
    Some((key, waypoint))
}

#[cfg(test)]
mod tests;
