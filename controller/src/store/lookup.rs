// SPDX-License-Identifier: Apache-2.0

//! Reads the stores for a translator and records each key that it asked for, found or not.
//!
//! What a translator did not ask for here it cannot know, so a change elsewhere cannot
//! change its output.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::facts::{FactKey, FetchedKeys, KeySource, Objection, PodFact, Step, Told};
use super::index::Index;
use super::{Key, Name, ReadKey, Stored, Stores};
use crate::output::OutputKey;
use crate::settings::Mesh;

/// The one way for a translator to see other objects.
#[derive(Debug)]
pub struct Lookup<'a> {
    stores: &'a Stores,
    mesh: &'a Mesh,
    reads: HashSet<ReadKey>,
    kept: HashSet<OutputKey>,
}

impl<'a> Lookup<'a> {
    /// Reads from `stores`.
    pub fn new(stores: &'a Stores, mesh: &'a Mesh) -> Self {
        Self { stores, mesh, reads: HashSet::new(), kept: HashSet::new() }
    }

    /// What holds for the whole mesh.
    pub fn mesh(&self) -> &'a Mesh {
        self.mesh
    }

    /// One object.
    pub fn get<K: Stored>(&mut self, namespace: &str, name: &str) -> Option<&'a Arc<K>> {
        let key = Key { kind: K::KIND, name: Name::new(namespace, name) };
        let found = K::store(self.stores).by_name.get(&key.name);
        self.reads.insert(ReadKey::Object(key));
        found
    }

    /// The UID of an object; none without an apiserver.
    pub fn uid(&mut self, key: &Key) -> Option<Arc<str>> {
        self.reads.insert(ReadKey::Object(key.clone()));
        self.stores.object(key)?.meta().uid.as_deref().map(Arc::from)
    }

    /// The objects under an index value, in order of their names.
    pub fn list<K: Stored>(&mut self, index: Index, value: &str) -> Vec<&'a Arc<K>> {
        self.reads.insert(ReadKey::Index(K::KIND, index, value.into()));
        self.stores.list::<K>(index, value)
    }

    /// The objects that select `labels` inside `namespace`.
    ///
    /// Selectors are asked for by their first label, and by none; `selector` tells the whole
    /// selector of a candidate, `None` for one that selects nothing at all.
    pub fn selecting<K: Stored>(
        &mut self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        selector: impl Fn(&K) -> Option<&BTreeMap<String, String>>,
    ) -> Vec<&'a Arc<K>> {
        let mut found = self.list::<K>(Index::Selects, &format!("{namespace}/"));
        for (key, value) in labels {
            found.extend(
                self.list::<K>(Index::Selects, &super::index::label(namespace, key, value)),
            );
        }
        found.retain(|object| {
            selector(object).is_some_and(|wanted| {
                wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
        });
        found
    }

    /// What the agent said about a pod.
    pub fn pod(&mut self, uid: &str) -> Option<&'a PodFact> {
        self.reads.insert(ReadKey::Fact(FactKey::Pod(uid.into())));
        self.stores.facts.pod(uid)
    }

    /// How far the ordered change of `what` has come.
    pub fn step(&mut self, what: &str) -> Step {
        self.reads.insert(ReadKey::Fact(FactKey::Step(what.into())));
        self.stores.facts.step(what)
    }

    /// What the agent of a pod is told.
    pub fn told(&mut self, uid: &str) -> Told {
        self.reads.insert(ReadKey::Fact(FactKey::Step(uid.into())));
        self.stores.facts.told(uid)
    }

    /// Roots that everybody is to trust.
    pub fn roots(&mut self) -> &'a [String] {
        self.reads.insert(ReadKey::Fact(FactKey::Roots));
        self.stores.facts.roots()
    }

    /// Keys of an issuer that are fetched; none: no try has ended yet.
    pub fn keys(&mut self, source: &KeySource) -> Option<&'a FetchedKeys> {
        self.reads.insert(ReadKey::Fact(FactKey::Keys(source.clone())));
        self.stores.facts.keys(source)
    }

    /// What stands against an object of a Gateway.
    pub fn objection(&mut self, key: &Key) -> Option<&'a Objection> {
        self.reads.insert(ReadKey::Fact(FactKey::Objection(key.clone())));
        self.stores.facts.objection(key)
    }

    /// Leaves an output as it was, if the translator made it before: what it would be made of
    /// now cannot be served.
    pub fn keep(&mut self, output: OutputKey) {
        self.kept.insert(output);
    }

    /// The keys that were asked for, and the outputs that stay as they were.
    pub fn finish(self) -> (HashSet<ReadKey>, HashSet<OutputKey>) {
        (self.reads, self.kept)
    }
}
