// SPDX-License-Identifier: Apache-2.0

//! Ordered changes: what follows what, and when.
//!
//! Adding a waypoint: it is ready → it is published → every client acknowledged it → the guard
//! is on. Removing one: the guard is off → acknowledged → clients are told to go direct.
//! Releasing a pod: clients are told that it takes plain bytes → acknowledged → its agent lets
//! it go. What is so from the first moment that is known of it is in force at once: nothing was
//! ever sent past it. A waypoint that is not there at all refuses at once.
//!
//! Rule: *Order* of `design.md` §5a. Start at [`Steps::settle`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Service};
use routing::discovery::GatewayAddress;

use crate::api;
use crate::settings::Mesh;
use crate::store::facts::{FactKey, Step};
use crate::store::lookup::Lookup;
use crate::store::{Kind, ReadKey, Stores};
use crate::translate::pod;
use crate::translate::waypoint::{self, State};

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
}

/// What was known when last looked, and what is under way.
#[derive(Debug, Default)]
pub struct Steps {
    /// Service → its waypoint.
    waypoints: BTreeMap<String, Option<Waypoint>>,
    /// Pod UID → whether it belongs in the mesh.
    pods: HashMap<String, bool>,
    /// Service or pod → the revision whose acknowledgement its step waits for.
    acks: BTreeMap<String, u64>,
    /// Service → since when its waypoint starts.
    starting: BTreeMap<String, Instant>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Waypoint {
    state: State,
    address: Option<GatewayAddress>,
}

impl Steps {
    /// Moves every ordered change as far as it may go; returns the read keys that this touched.
    ///
    /// `touched` are the keys that changed before; without any, only what waits is looked at.
    pub fn settle(
        &mut self,
        stores: &mut Stores,
        mesh: &Mesh,
        touched: &[ReadKey],
        moment: Moment,
    ) -> Vec<ReadKey> {
        let mut moved = Vec::new();
        let about = |kinds: &[Kind]| {
            touched.iter().any(|key| match key {
                ReadKey::Object(key) => kinds.contains(&key.kind),
                ReadKey::Fact(FactKey::Pod(_)) => kinds.contains(&Kind::Pod),
                ReadKey::Fact(FactKey::Step(_)) | ReadKey::Index(..) => false,
            })
        };
        if about(&[Kind::Service, Kind::Namespace, Kind::Gateway, Kind::GatewayClass, Kind::Pod]) {
            let now = waypoints(stores, mesh);
            moved.extend(self.waypoints_changed(stores, now, moment));
        }
        if about(&[Kind::Pod, Kind::Namespace]) {
            let now = belonging(stores, mesh);
            moved.extend(self.pods_changed(stores, now, moment));
        }
        moved.extend(self.acknowledged(stores, moment));
        moved.extend(self.overdue(stores, moment));
        moved
    }

    fn waypoints_changed(
        &mut self,
        stores: &mut Stores,
        now: BTreeMap<String, Option<Waypoint>>,
        moment: Moment,
    ) -> Vec<ReadKey> {
        let before = std::mem::take(&mut self.waypoints);
        let mut moved = Vec::new();
        for service in before.keys().filter(|service| !now.contains_key(*service)) {
            moved.extend(self.set(stores, service, Step::Settled, moment));
        }
        for (service, waypoint) in &now {
            let step = stores.facts.step(service);
            let next = match (before.get(service), waypoint) {
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
                (Some(Some(old)), None) => match (&old.address, &step) {
                    (Some(address), Step::Settled | Step::Published)
                        if old.state == State::Ready =>
                    {
                        Step::Leaving(address.clone())
                    }
                    _ => Step::Settled,
                },
                (Some(None), None) => step,
            };
            moved.extend(self.set(stores, service, next, moment));
        }
        self.waypoints = now;
        moved
    }

    fn pods_changed(
        &mut self,
        stores: &mut Stores,
        now: HashMap<String, bool>,
        moment: Moment,
    ) -> Vec<ReadKey> {
        let before = std::mem::take(&mut self.pods);
        let mut moved = Vec::new();
        for uid in before.keys().filter(|uid| !now.contains_key(*uid)) {
            moved.extend(self.set(stores, uid, Step::Settled, moment));
        }
        for (uid, belongs) in &now {
            let left = before.get(uid) == Some(&true) && !belongs;
            // One that was never proven can be let go at once: nobody sends it HBONE.
            let proven = stores.facts.pod(uid).is_some();
            if left && proven {
                moved.extend(self.set(stores, uid, Step::Releasing, moment));
            } else if *belongs {
                moved.extend(self.set(stores, uid, Step::Settled, moment));
            }
        }
        self.pods = now;
        moved
    }

    /// Moves on what waited for a revision that is acknowledged now.
    fn acknowledged(&mut self, stores: &mut Stores, moment: Moment) -> Vec<ReadKey> {
        let due = self.acks.iter().filter(|(_, revision)| **revision <= moment.acked);
        let due: Vec<String> = due.map(|(what, _)| what.clone()).collect();
        due.iter().filter_map(|what| self.set(stores, what, Step::Settled, moment)).collect()
    }

    /// Ends the grace of waypoints that do not come up.
    fn overdue(&mut self, stores: &mut Stores, moment: Moment) -> Vec<ReadKey> {
        let late = |since: &Instant| moment.now.duration_since(*since) > START;
        let due = self.starting.iter().filter(|(_, since)| late(since));
        let due: Vec<String> = due.map(|(what, _)| what.clone()).collect();
        for service in &due {
            tracing::warn!(service, "waypoint did not become ready in time: traffic is refused");
        }
        due.iter().filter_map(|what| self.set(stores, what, Step::Settled, moment)).collect()
    }

    fn set(
        &mut self,
        stores: &mut Stores,
        what: &str,
        step: Step,
        moment: Moment,
    ) -> Option<ReadKey> {
        if stores.facts.step(what) != step {
            self.acks.remove(what);
            self.starting.remove(what);
        }
        match step {
            Step::Published | Step::Leaving(_) | Step::Releasing => {
                self.acks.entry(what.to_owned()).or_insert(moment.revision + 1);
            }
            Step::Waiting => {
                self.starting.entry(what.to_owned()).or_insert(moment.now);
            }
            Step::Settled => {}
        }
        stores.facts.set_step(what, step)
    }
}

/// Every Service with its waypoint, if it has one.
fn waypoints(stores: &Stores, mesh: &Mesh) -> BTreeMap<String, Option<Waypoint>> {
    let of = |service: &Arc<Service>| {
        let meta = &service.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let key = api::service_key(namespace, meta.name.as_deref().unwrap_or_default());
        let bound = waypoint::of_service(meta, &mut Lookup::new(stores, mesh));
        let waypoint = bound.map(|bound| Waypoint { state: bound.state, address: bound.address() });
        (key, waypoint)
    };
    stores.all::<Service>().map(of).collect()
}

/// Every pod with a UID, and whether it belongs in the mesh.
fn belonging(stores: &Stores, mesh: &Mesh) -> HashMap<String, bool> {
    let of = |found: &Arc<Pod>| {
        let uid = found.metadata.uid.clone()?;
        Some((uid, pod::belongs(found, &mut Lookup::new(stores, mesh))))
    };
    stores.all::<Pod>().filter_map(of).collect()
}

#[cfg(test)]
mod tests;
