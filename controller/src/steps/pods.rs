// SPDX-License-Identifier: Apache-2.0

//! Order of a pod's way into the mesh and out of it.
//!
//! While its clients change between plain bytes and HBONE, both must reach the application:
//! plain connections are not captured, so no policy of the mesh meets them, as none did before.
//!
//! Coming in while it runs: its agent captures all but plain inbound → proven → published as
//! HBONE → every client acknowledged → plain inbound is captured too. A pod that is new has no
//! clients and is captured whole before its containers start.
//! Leaving: its agent lets plain inbound past → clients are told that it takes plain bytes →
//! acknowledged → its agent lets it go.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::settings::Mesh;
use crate::store::facts::{PodFact, PodState, Step, Telling, Told};
use crate::store::lookup::Lookup;
use crate::store::{Name, Stores};
use crate::translate::pod;

/// How long an agent is waited for.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// Whether a pod belongs in the mesh, and whether others may be using it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Belonging {
    /// It belongs in the mesh.
    pub(super) inside: bool,
    /// It is ready.
    pub(super) in_use: bool,
}

/// A pod's UID and whether it belongs in the mesh; none if there is no such pod.
pub(super) fn belonging(name: &Name, stores: &Stores, mesh: &Mesh) -> Option<(String, Belonging)> {
    let found = stores.get::<Pod>(&name.namespace, &name.name)?;
    let uid = found.metadata.uid.clone()?;
    let inside = pod::belongs(found, &mut Lookup::new(stores, mesh));
    Some((uid, Belonging { inside, in_use: pod::is_ready(found) }))
}

/// Tells whether the agent lets plain connections past since it was told to: it may still be
/// about to do what it was told before.
fn takes_plain(fact: &PodFact, told: Told) -> bool {
    told.what == Telling::Open && fact.plain_inbound && fact.observed_generation == told.generation
}

/// Tells whether the agent has proven what it was told last.
pub(super) fn is_proven(fact: Option<&PodFact>, told: Told) -> bool {
    fact.is_some_and(|fact| {
        fact.state == PodState::Enrolled && fact.observed_generation >= told.generation
    })
}

/// What the agent is told at a step.
pub(super) fn telling(inside: bool, step: &Step) -> Telling {
    match step {
        Step::Joining | Step::Opening | Step::Releasing => Telling::Open,
        Step::Waiting | Step::Published | Step::Settled | Step::Leaving(_) | Step::Left(_) => {
            if inside {
                Telling::Whole
            } else {
                Telling::Nothing
            }
        }
    }
}

/// Namespace and name of a pod.
pub(super) fn name(found: &Pod) -> Name {
    let meta = &found.metadata;
    Name::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// The step that a pod is at now; `before` is whether it belonged in the mesh, if it was known.
pub(super) fn next(
    before: Option<bool>,
    now: Belonging,
    step: &Step,
    fact: Option<&PodFact>,
    told: Told,
) -> Step {
    let stays = before.is_none() || told.what != Telling::Nothing;
    let proven = fact.is_some_and(|fact| {
        let now = stays && fact.observed_generation >= told.since;
        fact.state == PodState::Enrolled && now
    });
    let plain = fact.is_none_or(|fact| takes_plain(fact, told));
    match (step, now.inside) {
        (Step::Joining, true) => Step::Joining,
        // Clients may have been told that it takes plain bytes.
        (Step::Releasing, true) => Step::Joining,
        (Step::Opening, true) => Step::Settled,
        (_, true) => {
            let comes = before != Some(true) && now.in_use && !proven;
            if comes { Step::Joining } else { Step::Settled }
        }
        (Step::Opening, false) => {
            if plain {
                Step::Releasing
            } else {
                Step::Opening
            }
        }
        (Step::Releasing, false) => Step::Releasing,
        // Of one that was never proven nobody thinks that it takes HBONE.
        (_, false) if before == Some(false) || !proven => Step::Settled,
        (_, false) => {
            if plain {
                Step::Releasing
            } else {
                Step::Opening
            }
        }
    }
}
