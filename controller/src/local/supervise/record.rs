// SPDX-License-Identifier: Apache-2.0

//! Objects that the supervisor writes for the controller, one file each.
//!
//! Owns: file names, writing whole or not at all, writing only what changed.
//!
//! Start at [`Record::replace`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The files written so far.
#[derive(Debug)]
pub(super) struct Record {
    folder: PathBuf,
    written: BTreeMap<String, String>,
}

impl Record {
    /// Writes into `folder`, which exists.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), written: BTreeMap::new() }
    }

    /// Makes the folder hold exactly `objects`.
    ///
    /// # Errors
    ///
    /// Those of the file system; what was not written is tried again at the next call.
    pub(super) fn replace(&mut self, objects: &[Value]) -> std::io::Result<()> {
        let mut wanted = BTreeMap::new();
        for object in objects {
            // JSON is YAML, and says the same to every parser.
            wanted.insert(file_name(object), serde_json::to_string_pretty(object)?);
        }
        for name in self.written.keys().filter(|name| !wanted.contains_key(*name)) {
            std::fs::remove_file(self.folder.join(name))?;
        }
        self.written.retain(|name, _| wanted.contains_key(name));
        for (name, text) in wanted {
            if self.written.get(&name) != Some(&text) {
                write_whole(&self.folder.join(&name), text.as_bytes())?;
                self.written.insert(name, text);
            }
        }
        Ok(())
    }
}

/// `Kind_namespace_name.yaml`.
fn file_name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{}_{}_{}.yaml", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// Writes a file so that a reader sees the old content or the new, never a part.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fresh = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&fresh, content)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_folder_holds_exactly_what_was_given_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = Record::new(folder.path());
        let pod = |name: &str, phase: &str| json!({"kind": "Pod", "metadata": {"namespace": "n", "name": name}, "status": {"phase": phase}});
        let files = || {
            let mut names: Vec<_> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        record.replace(&[pod("a", "Pending"), pod("b", "Running")]).unwrap();
        assert_eq!(files(), ["Pod_n_a.yaml", "Pod_n_b.yaml"]);
        record.replace(&[pod("a", "Running")]).unwrap();
        assert_eq!(files(), ["Pod_n_a.yaml"]);
        let text = std::fs::read_to_string(folder.path().join("Pod_n_a.yaml")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), pod("a", "Running"));
    }
}
