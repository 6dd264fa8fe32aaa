// SPDX-License-Identifier: Apache-2.0

//! Which output read which key; changed keys → translators to run.
//!
//! Owns the record of every task's reads and what it made. Pure and deterministic: the same
//! changes give the same outputs, and running only what a change touches gives what running
//! everything would (the property test at the end).
//!
//! Start at [`Graph::run`].

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::output::{OutputKey, Table};
use crate::settings::Mesh;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name, ReadKey, Stores};
use crate::translate::Translator;

/// One translator at one primary object. Copies are one value in memory: each key that a task
/// reads and each output that it makes is told who it is.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TaskId(Arc<At>);

/// Which translator, and its primary object; empty for what concerns the whole mesh.
#[derive(Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct At {
    translator: Translator,
    name: Name,
}

impl TaskId {
    fn new(translator: Translator, name: Name) -> Self {
        Self(Arc::new(At { translator, name }))
    }

    /// The primary object; none for what concerns the whole mesh.
    pub fn primary(&self) -> Option<Key> {
        let kind = self.0.translator.primary()?;
        Some(Key { kind, name: self.0.name.clone() })
    }
}

/// What a task read and made. There are thousands, so both are kept as small as can be.
#[derive(Debug, Default)]
struct Task {
    /// Each once; shared with [`Graph::readers`].
    reads: Box<[Arc<ReadKey>]>,
    gives: Box<[OutputKey]>,
}

/// The tasks that read one key.
#[derive(Debug)]
enum Readers {
    /// Most often; a set for one takes several times the memory.
    One(TaskId),
    #[expect(
        clippy::box_collection,
        reason = "the other variant is a word, and of those there are thousands"
    )]
    Several(Box<HashSet<TaskId>>),
}

impl Readers {
    fn all(&self) -> impl Iterator<Item = &TaskId> {
        let (one, several) = match self {
            Self::One(id) => (Some(id), None),
            Self::Several(ids) => (None, Some(ids)),
        };
        one.into_iter().chain(several.into_iter().flat_map(|ids| ids.iter()))
    }

    fn add(&mut self, id: &TaskId) {
        match self {
            Self::One(own) if own == id => {}
            Self::One(own) => {
                *self = Self::Several(Box::new(HashSet::from([own.clone(), id.clone()])));
            }
            Self::Several(ids) => {
                ids.insert(id.clone());
            }
        }
    }

    /// Tells whether none is left.
    fn remove(&mut self, id: &TaskId) -> bool {
        match self {
            Self::One(own) => own == id,
            Self::Several(ids) => {
                ids.remove(id);
                ids.is_empty()
            }
        }
    }
}

/// All tasks, their reads and their outputs.
#[derive(Debug, Default)]
pub struct Graph {
    tasks: HashMap<TaskId, Task>,
    readers: HashMap<Arc<ReadKey>, Readers>,
    /// Every output by key.
    pub table: Table,
}

impl Graph {
    /// All outputs of `stores`, as of nothing before: what a folder means without a mesh.
    pub fn full(stores: &Stores, mesh: &Mesh) -> Self {
        let names = |kind: &Kind| {
            let kind = *kind;
            stores.names(kind).into_iter().map(move |name| ReadKey::Object(Key { kind, name }))
        };
        let touched: Vec<_> = Kind::ALL.iter().flat_map(names).collect();
        let mut graph = Self::default();
        graph.run(stores, mesh, &touched);
        graph
    }

    /// Runs what `touched` concerns; returns the keys whose outputs differ from before.
    pub fn run(
        &mut self,
        stores: &Stores,
        mesh: &Mesh,
        touched: &[ReadKey],
    ) -> BTreeSet<OutputKey> {
        let mut due: BTreeSet<TaskId> = BTreeSet::new();
        if self.tasks.is_empty() {
            due.insert(TaskId::new(Translator::Mesh, Name::new("", "")));
        }
        for key in touched {
            due.extend(self.readers.get(key).into_iter().flat_map(Readers::all).cloned());
            if let ReadKey::Object(key) = key {
                due.extend(tasks_of(key));
            }
        }
        let mut changed = BTreeSet::new();
        for id in due {
            self.run_task(stores, mesh, id, &mut changed);
        }
        changed
    }

    fn run_task(
        &mut self,
        stores: &Stores,
        mesh: &Mesh,
        id: TaskId,
        changed: &mut BTreeSet<OutputKey>,
    ) {
        let (id, old) = self.tasks.remove_entry(&id).unwrap_or_else(|| (id, Task::default()));
        let mut look = Lookup::new(stores, mesh);
        let outputs = id.0.translator.run(&id.0.name, &mut look);
        let (mut reads, kept) = look.finish();
        // Mostly a task reads what it has read before.
        let (mut noted, gone): (Vec<_>, Vec<_>) =
            old.reads.into_iter().partition(|key| reads.remove(&**key));
        for key in gone {
            self.forget(&key, &id);
        }
        noted.extend(reads.into_iter().map(|key| self.note(key, &id)));
        let (stay, old): (Vec<_>, Vec<_>) = old.gives.into_iter().partition(|k| kept.contains(k));
        let mut gives = self.table.replace(&id, &old, outputs, changed);
        gives.extend(stay);
        let alive = id.primary().is_none_or(|key| stores.object(&key).is_some());
        if alive || !gives.is_empty() {
            let task = Task { reads: noted.into(), gives: gives.into() };
            self.tasks.insert(id, task);
        } else {
            noted.iter().for_each(|key| self.forget(key, &id));
        }
    }

    /// Notes that a task reads `key`, and gives back the key as all tasks share it.
    fn note(&mut self, key: ReadKey, id: &TaskId) -> Arc<ReadKey> {
        let known = self.readers.get_key_value(&key).map(|(known, _)| Arc::clone(known));
        let key = known.unwrap_or_else(|| Arc::new(key));
        match self.readers.entry(Arc::clone(&key)) {
            Entry::Occupied(mut readers) => readers.get_mut().add(id),
            Entry::Vacant(nobody) => {
                nobody.insert(Readers::One(id.clone()));
            }
        }
        key
    }

    /// Notes that a task does not read `key` any more.
    fn forget(&mut self, key: &ReadKey, id: &TaskId) {
        if self.readers.get_mut(key).is_some_and(|readers| readers.remove(id)) {
            self.readers.remove(key);
        }
    }
}

/// The tasks whose primary object is `key`.
fn tasks_of(key: &Key) -> impl Iterator<Item = TaskId> {
    let translators: &[Translator] = match key.kind {
        Kind::Namespace => &[Translator::Namespace],
        Kind::Pod => &[Translator::Workload, Translator::NodePod],
        Kind::Service => &[Translator::Service],
        Kind::EndpointSlice => &[Translator::EndpointSlice],
        Kind::Secret => &[Translator::Secret],
        Kind::GatewayClass => &[Translator::GatewayClass],
        Kind::Gateway => &[Translator::Gateway],
        Kind::ListenerSet => &[Translator::ListenerSet],
        Kind::HttpRoute => &[Translator::HttpRoute],
        Kind::GrpcRoute => &[Translator::GrpcRoute],
        Kind::TlsRoute => &[Translator::TlsRoute],
        Kind::TcpRoute => &[Translator::TcpRoute],
        Kind::UdpRoute => &[Translator::UdpRoute],
        Kind::BackendTlsPolicy => &[Translator::BackendTls],
        Kind::AuthorizationPolicy => &[Translator::Authorization],
        Kind::PeerAuthentication => &[Translator::PeerAuthentication],
        Kind::RequestAuthentication => &[Translator::RequestAuthentication],
        Kind::ServiceEntry => &[Translator::ServiceEntry],
        Kind::WorkloadEntry => &[Translator::WorkloadEntry],
        Kind::Node
        | Kind::ServiceAccount
        | Kind::ConfigMap
        | Kind::Deployment
        | Kind::HorizontalPodAutoscaler
        | Kind::PodDisruptionBudget
        | Kind::ReferenceGrant => &[],
    };
    let name = key.name.clone();
    translators.iter().map(move |translator| TaskId::new(*translator, name.clone()))
}

#[cfg(test)]
mod tests;
