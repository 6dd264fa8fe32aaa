// SPDX-License-Identifier: Apache-2.0

//! Ordered changes: what follows what, and when.
//!
//! A waypoint is added in steps: it is ready → it is published → every client acknowledged it
//! → the guard is on. A Service that has a waypoint from the first moment that is known of it
//! is guarded at once: nothing was ever sent past the waypoint.
//!
//! Rule: *Order* of `design.md` §5a.

use std::collections::BTreeMap;
use std::time::Instant;

use k8s_openapi::api::core::v1::Service;

use crate::api;
use crate::app::Hub;
use crate::store::facts::Step;
use crate::store::lookup::Lookup;
use crate::store::{ReadKey, Stores};
use crate::translate::waypoint::{self, State};

/// Which services have a waypoint, and how far those are that got one lately.
#[derive(Debug, Default)]
pub struct Steps {
    /// Service → had a waypoint when last looked at.
    known: BTreeMap<String, bool>,
    /// Service → the revision that published its waypoint.
    published: BTreeMap<String, u64>,
}

impl Steps {
    /// Moves every ordered change as far as it may go; returns the read keys that this touched.
    pub fn settle(&mut self, stores: &mut Stores, hub: &Hub, revision: u64) -> Vec<ReadKey> {
        let acked = hub.clients.acknowledged(revision, Instant::now());
        let bindings = bindings(stores, hub);
        let mut touched = Vec::new();
        self.known.retain(|service, _| bindings.contains_key(service));
        for (service, binding) in bindings {
            let had = self.known.insert(service.clone(), binding.is_some());
            let Some(state) = binding else {
                self.published.remove(&service);
                touched.extend(stores.facts.set_step(&service, Step::Guarded));
                continue;
            };
            let step = match (had, stores.facts.step(&service)) {
                (Some(false), _) if state == State::NotReady => Step::Waiting,
                (Some(false), _) if state == State::Ready => Step::Published,
                (_, Step::Waiting) if state != State::NotReady => Step::Published,
                (_, Step::Published) => match self.published.get(&service) {
                    Some(at) if *at <= acked => Step::Guarded,
                    Some(_) => Step::Published,
                    None => Step::Guarded,
                },
                (_, step) => step,
            };
            match step {
                // It goes out with the next revision.
                Step::Published => {
                    self.published.entry(service.clone()).or_insert(revision + 1);
                }
                Step::Waiting | Step::Guarded => {
                    self.published.remove(&service);
                }
            }
            touched.extend(stores.facts.set_step(&service, step));
        }
        touched
    }
}

/// Every Service with the state of its waypoint, if it has one.
fn bindings(stores: &Stores, hub: &Hub) -> BTreeMap<String, Option<State>> {
    let of = |service: &Service| {
        let meta = &service.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let key = api::service_key(namespace, meta.name.as_deref().unwrap_or_default());
        let mut look = Lookup::new(stores, &hub.mesh);
        (key, waypoint::of_service(meta, &mut look).map(|binding| binding.state))
    };
    stores.all::<Service>().map(|service| of(service)).collect()
}
