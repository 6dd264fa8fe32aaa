// SPDX-License-Identifier: Apache-2.0

//! Leaves out what lies in namespaces that the mesh does not look at. Pure.
//!
//! For folders: everything read is at hand anyway, so a namespace that comes in brings its
//! objects along at once. Watches of a cluster leave out earlier, to hold less.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Batch, Change};
use crate::discovery::Selectors;
use crate::store::{Key, Kind, Object};

/// Every object, and which namespaces are left out.
#[derive(Debug)]
pub struct Selected {
    selectors: Selectors,
    labels: BTreeMap<Arc<str>, BTreeMap<String, String>>,
    objects: BTreeMap<Key, Object>,
}

impl Selected {
    /// Nothing yet.
    pub fn new(selectors: Selectors) -> Self {
        Self { selectors, labels: BTreeMap::new(), objects: BTreeMap::new() }
    }

    fn takes(&self, namespace: &str) -> bool {
        self.selectors.take(namespace, self.labels.get(namespace))
    }

    /// What a batch comes to.
    pub fn filter(&mut self, batch: Batch) -> Batch {
        if self.selectors.is_all() {
            return batch;
        }
        let mut changes = Vec::with_capacity(batch.changes.len());
        let mut moved = BTreeSet::new();
        let mut named: Vec<Key> = Vec::new();
        for change in batch.changes {
            let key = match &change {
                Change::Put(object) => object.key(),
                Change::Gone(key) => key.clone(),
            };
            if key.kind == Kind::Namespace {
                let before = self.takes(&key.name.name);
                match &change {
                    Change::Put(object) => {
                        let labels = object.meta().labels.clone().unwrap_or_default();
                        self.labels.insert(Arc::clone(&key.name.name), labels);
                    }
                    Change::Gone(_) => {
                        self.labels.remove(&key.name.name);
                    }
                }
                if self.takes(&key.name.name) != before {
                    moved.insert(Arc::clone(&key.name.name));
                }
            }
            if key.kind.is_cluster_wide() {
                changes.push(change);
                continue;
            }
            match change {
                Change::Put(object) => {
                    self.objects.insert(key.clone(), object);
                }
                Change::Gone(_) => {
                    self.objects.remove(&key);
                }
            }
            named.push(key);
        }
        let concerned = self.objects.keys().filter(|key| moved.contains(&key.name.namespace));
        named.extend(concerned.cloned());
        named.sort();
        named.dedup();
        for key in named {
            let shown = self.objects.get(&key).filter(|_| self.takes(&key.name.namespace));
            changes.push(match shown {
                Some(object) => Change::Put(object.clone()),
                None => Change::Gone(key),
            });
        }
        Batch { changes, problems: batch.problems }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::document;

    fn batch(text: &str) -> Batch {
        let placed = document::parse(Path::new("f"), text).objects.into_iter();
        let changes = placed.map(|placed| Change::Put(placed.object)).collect();
        Batch { changes, problems: Vec::new() }
    }

    fn told(batch: &Batch) -> Vec<String> {
        let told = batch.changes.iter().map(|change| match change {
            Change::Put(object) => format!("put {}", object.key()),
            Change::Gone(key) => format!("gone {key}"),
        });
        told.collect()
    }

    fn namespace(name: &str, labels: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n"
        )
    }

    fn service(namespace: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        )
    }

    #[test]
    fn objects_come_and_go_with_the_labels_of_their_namespace() {
        let selectors = r#"[{"matchLabels": {"mesh": "yes"}}]"#.parse::<Selectors>().unwrap();
        let mut selected = Selected::new(selectors.and_always(["istio-system".to_owned()]));
        // The namespace comes last, as it may.
        let first = service("in")
            + &service("out")
            + &service("istio-system")
            + &namespace("in", "mesh: 'yes'")
            + &namespace("out", "");
        let told_first = told(&selected.filter(batch(&first)));
        assert_eq!(
            told_first,
            [
                "put Namespace in",
                "put Namespace out",
                "put Service in/web",
                "put Service istio-system/web",
                "gone Service out/web",
            ]
        );
        let out = selected.filter(batch(&namespace("out", "mesh: 'yes'")));
        assert_eq!(told(&out), ["put Namespace out", "put Service out/web"]);
        let gone = selected.filter(batch(&namespace("in", "mesh: 'no'")));
        assert_eq!(told(&gone), ["put Namespace in", "gone Service in/web"]);
        let still = selected.filter(batch(&service("in")));
        assert_eq!(told(&still), ["gone Service in/web"], "it is not shown");

        let mut all = Selected::new(Selectors::default());
        assert_eq!(told(&all.filter(batch(&service("out")))), ["put Service out/web"]);
    }
}
