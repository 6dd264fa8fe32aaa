// SPDX-License-Identifier: Apache-2.0

//! Writes the objects that run gateways, in local mode as files of a directory.
//!
//! Owns: one file per Gateway with all its objects, replaced atomically, removed with its
//! Gateway. What they look like is [`manifest`]'s, what users change of it [`overlay`]'s, for all
//! Gateways [`pods`]'; to
//! Kubernetes [`apply`] writes them, [`roots`] the root certificate, [`mark`] what is proven of
//! pods, [`events`] what of an object is not served; [`untaint`] takes the startup taint off nodes.

pub mod apply;
pub mod events;
pub mod manifest;
pub mod mark;
pub mod overlay;
pub mod pods;
pub mod roots;
pub mod untaint;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use crate::ca::files;
use crate::output::{Output, OutputKey, Table};
use crate::status::{Body, Status};
use crate::store::{Kind, Name};
use crate::translate::parameters::INVALID_PARAMETERS;

/// Writes changed objects into a directory.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    /// Whether files of an earlier run were looked at.
    swept: bool,
    /// Files with their last content, by Gateway.
    written: BTreeMap<Name, String>,
}

impl Writer {
    /// Writes into `directory`, which must exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, swept: false, written: BTreeMap::new() }
    }

    /// Brings the directory up to date; what fails is logged and tried with the next change.
    pub fn write(&mut self, table: &Table, changed: &BTreeSet<OutputKey>) {
        let concerned = |key: &OutputKey| match key {
            OutputKey::Object(_) => true,
            // Of a Gateway whose parameters were refused from the start nothing else goes.
            OutputKey::Status(of) => of.kind == Kind::Gateway && table.get(key).is_none(),
            OutputKey::Config(..) | OutputKey::Attached(_) | OutputKey::NotServed(_) => false,
        };
        let concerned = changed.iter().any(concerned);
        if !concerned && self.swept {
            return;
        }
        let mut wanted: BTreeMap<Name, BTreeMap<String, String>> = BTreeMap::new();
        for (key, output) in table.all() {
            let (OutputKey::Object(key), Output::Object(manifest)) = (key, output) else {
                continue;
            };
            // JSON is YAML; the supervisor and people read it alike.
            let text = serde_json::to_string_pretty(&manifest.value).unwrap_or_default();
            wanted.entry(manifest.owner.clone()).or_default().insert(key.to_string(), text);
        }
        let doubtful = doubtful(table);
        for name in doubtful.iter().filter(|name| !wanted.contains_key(name)) {
            // Written before a restart: it stays as it was.
            if let Ok(standing) = std::fs::read_to_string(self.path(name)) {
                self.written.insert(name.clone(), standing);
            }
        }
        let gone = self.written.keys();
        let gone = gone.filter(|name| !wanted.contains_key(name) && !doubtful.contains(name));
        let gone: Vec<Name> = gone.cloned().collect();
        for name in gone {
            self.note(&name, std::fs::remove_file(self.path(&name)));
            self.written.remove(&name);
        }
        for (name, objects) in wanted {
            let text = objects.into_values().collect::<Vec<_>>().join("\n---\n") + "\n";
            if self.written.get(&name) == Some(&text) {
                continue;
            }
            // After a restart the file mostly stands already: no reader need look at it again.
            if std::fs::read_to_string(self.path(&name)).is_ok_and(|standing| standing == text) {
                self.written.insert(name, text);
                continue;
            }
            let done = files::replace(&self.path(&name), text.as_bytes(), false);
            if self.note(&name, done) {
                self.written.insert(name, text);
            }
        }
        self.sweep();
    }

    fn path(&self, gateway: &Name) -> PathBuf {
        self.directory.join(format!("{}.{}.yaml", gateway.namespace, gateway.name))
    }

    fn note(&self, gateway: &Name, done: io::Result<()>) -> bool {
        match done {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%gateway, directory = %self.directory.display(), %error, "objects of a Gateway cannot be written");
                false
            }
        }
    }

    /// Removes files of Gateways that went while no controller ran.
    fn sweep(&mut self) {
        if std::mem::replace(&mut self.swept, true) {
            return;
        }
        let known: BTreeSet<PathBuf> = self.written.keys().map(|name| self.path(name)).collect();
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let ours = path.extension().is_some_and(|extension| extension == "yaml");
            if !ours || known.contains(&path) {
                continue;
            }
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "old file cannot be removed");
            }
        }
    }
}

/// Gateways whose parameters are refused: what they want cannot be told.
pub(crate) fn doubtful(table: &Table) -> BTreeSet<Name> {
    let refused = |status: &Status| match &status.body {
        Body::Gateway { conditions, .. } => {
            conditions.iter().any(|condition| condition.reason == INVALID_PARAMETERS)
        }
        Body::Conditions(_)
        | Body::Entry { .. }
        | Body::Set { .. }
        | Body::Class { .. }
        | Body::Parents { .. } => false,
    };
    let names = table.all().filter_map(|(_, output)| match output {
        Output::Status(status) if refused(status) => Some(status.key.name.clone()),
        Output::Status(_)
        | Output::Config(_)
        | Output::Object(_)
        | Output::Attached(_)
        | Output::NotServed(_) => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests;
