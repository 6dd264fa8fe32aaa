// SPDX-License-Identifier: Apache-2.0

//! The objects of a folder that the supervisor acts on, and where they were written.
//!
//! Owns: reading YAML files into the kinds of [`Object`]; keeping the last good state of
//! a file that went bad. Leaves all other kinds, Gateway API and policies among them, to
//! the controller, which reads the same files.
//!
//! Keeps: an object that cannot be read leaves its last good version in force.
//! Which files may be read, and when, says [`crate::source::watch`].
//!
//! Start at [`Folders::refresh`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::source::folder::is_ours;
use crate::source::watch::{Text, read_file};

/// Name of the file that maps images to commands; it holds no objects.
pub const LOCAL_FILE: &str = "local.yaml";

/// Kind, namespace (empty for kinds of the whole cluster) and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectKey {
    /// Kind as written.
    pub kind: String,
    /// Namespace; `default` where a namespaced object names none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One object that the supervisor acts on.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Replicas of a pod.
    Deployment(Deployment),
    /// Replicas of a pod with ordinals.
    StatefulSet(StatefulSet),
    /// One pod per node.
    DaemonSet(DaemonSet),
    /// A pod by itself.
    Pod(Pod),
    /// Ports in front of pods.
    Service(Service),
    /// A namespace; pods start only in one that exists.
    Namespace(Namespace),
    /// Values for environments and files.
    ConfigMap(ConfigMap),
    /// The same, secret.
    Secret(Secret),
    /// A Gateway, by its class: somebody will make pods for it.
    Gateway(String),
}

/// One object with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Kind, namespace, name.
    pub key: ObjectKey,
    /// Line of the file where the object begins, from 1.
    pub line: usize,
    /// The object.
    pub object: Object,
}

/// What is wrong with a file.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct FileProblem {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 when the file could not be read at all.
    pub line: usize,
    /// The object, when it is known.
    pub object: Option<ObjectKey>,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The files of some folders, each with its last good objects.
#[derive(Debug, Default)]
pub struct Folders {
    files: BTreeMap<PathBuf, Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    objects: Vec<Manifest>,
    problems: Vec<FileProblem>,
}

impl Folders {
    /// Reads all files of `folder` again; files that are gone take their objects along.
    ///
    /// Files lie directly in the folder and end in `.yaml`, `.yml` or `.json`.
    pub fn refresh(&mut self, folder: &Path) {
        let found = in_folder(folder);
        self.files.retain(|path, _| path.parent() != Some(folder) || found.contains(path));
        for path in found {
            let text = read_file(&path);
            self.take(path, text);
        }
    }

    /// Takes what reading `path` gave; a file that is gone takes its objects along.
    pub fn take(&mut self, path: PathBuf, text: Text) {
        let text = match text {
            Ok(Some(text)) => Ok(text),
            Ok(None) => return self.forget(&path),
            Err(cause) => Err(cause),
        };
        let loaded = self.files.entry(path.clone()).or_default();
        match text {
            Ok(text) => loaded.read(&path, &text),
            Err(cause) => {
                loaded.problems = vec![FileProblem {
                    file: path,
                    line: 0,
                    object: None,
                    message: format!("cannot be read: {cause}"),
                }];
            }
        }
    }

    /// Lets the objects of all files but `present` go.
    pub fn retain(&mut self, present: &BTreeSet<PathBuf>) {
        self.files.retain(|path, _| present.contains(path));
    }

    /// Lets the objects of a removed file go.
    pub fn forget(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// All objects in force, in order of file name.
    pub fn objects(&self) -> impl Iterator<Item = &Manifest> {
        self.files.values().flat_map(|loaded| &loaded.objects)
    }

    /// Whether there is a Gateway that lets users in.
    #[must_use]
    pub fn has_ingress(&self) -> bool {
        self.objects().any(|manifest| {
            matches!(&manifest.object, Object::Gateway(class) if !class.ends_with("-waypoint"))
        })
    }

    /// What is wrong with the files now.
    pub fn problems(&self) -> impl Iterator<Item = &FileProblem> {
        self.files.values().flat_map(|loaded| &loaded.problems)
    }
}

/// The files directly in `folder` that hold objects; none if it cannot be listed.
pub fn in_folder(folder: &Path) -> BTreeSet<PathBuf> {
    let paths = std::fs::read_dir(folder)
        .into_iter()
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()));
    paths.filter(|path| is_ours(path)).collect()
}

impl Loaded {
    /// Takes over `text` as the file's content, object by object.
    fn read(&mut self, path: &Path, text: &str) {
        let mut objects = Vec::new();
        let mut problems = Vec::new();
        for (line, document) in documents(text) {
            let problem = |line, object, message| FileProblem {
                file: path.to_owned(),
                line,
                object,
                message,
            };
            match serde_saphyr::from_str::<Value>(document) {
                Ok(value) => {
                    for value in unpack(value) {
                        match read_object(value) {
                            Ok(Some((key, object))) => objects.push(Manifest { key, line, object }),
                            Ok(None) => {}
                            Err((key, message)) => {
                                objects.extend(self.last_good(key.as_ref()));
                                problems.push(problem(line, key, message));
                            }
                        }
                    }
                }
                Err(error) => {
                    // Which objects were meant cannot be known: all of the file stay.
                    let (at, message) = yaml_error(&error);
                    problems.push(problem(line + at.saturating_sub(1), None, message));
                    self.problems = problems;
                    return;
                }
            }
        }
        *self = Self { objects, problems };
    }

    fn last_good(&self, key: Option<&ObjectKey>) -> Option<Manifest> {
        self.objects.iter().find(|manifest| Some(&manifest.key) == key).cloned()
    }
}

/// Line within the text and message of a YAML error.
pub(super) fn yaml_error(error: &serde_saphyr::Error) -> (usize, String) {
    let line = error.location().map_or(1, |location| usize::try_from(location.line()).unwrap_or(1));
    let message = error.to_string();
    (line, message.lines().next().unwrap_or_default().to_owned())
}

/// Splits a file at its `---` lines: line number of the start, from 1, and text.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with("---")
            && line.trim_end().trim_start_matches('-').trim_start().is_empty()
        {
            found.push((start_line, text.get(start..offset).unwrap_or_default()));
            start = offset + line.len();
            start_line = index + 2;
        }
        offset += line.len();
    }
    found.push((start_line, text.get(start..).unwrap_or_default()));
    found.retain(|(_, document)| has_content(document));
    // The first line that says something is where a person looks.
    for (line, document) in &mut found {
        *line += document.lines().take_while(|line| !has_content(line)).count();
        *document = document.trim_start_matches('\n');
    }
    found
}

fn has_content(text: &str) -> bool {
    text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
}

/// The items of a `List`, else the value itself.
fn unpack(mut value: Value) -> Vec<Value> {
    if value.is_null() {
        return Vec::new();
    }
    if value.get("kind").and_then(Value::as_str) != Some("List") {
        return vec![value];
    }
    let items = value.get_mut("items").map(Value::take);
    if let Some(Value::Array(items)) = items { items } else { Vec::new() }
}

type Read = Result<Option<(ObjectKey, Object)>, (Option<ObjectKey>, String)>;

/// Reads one object; none for kinds that the supervisor does not act on.
fn read_object(value: Value) -> Read {
    let text = |pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (kind, api) = (text("/kind"), text("/apiVersion"));
    if kind.is_empty() || api.is_empty() {
        return Err((None, "an object needs apiVersion and kind".to_owned()));
    }
    let mut key =
        ObjectKey { kind, namespace: text("/metadata/namespace"), name: text("/metadata/name") };
    if key.name.is_empty() {
        return Err((Some(key), "metadata.name: expected a name".to_owned()));
    }
    let gateway = key.kind == "Gateway" && api.starts_with("gateway.networking.k8s.io/");
    if !gateway && !["v1", "apps/v1"].contains(&api.as_str()) {
        return Ok(None);
    }
    if key.namespace.is_empty() && key.kind != "Namespace" {
        "default".clone_into(&mut key.namespace);
    }
    fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }
    let object = match key.kind.as_str() {
        "Deployment" => typed(value).map(Object::Deployment),
        "StatefulSet" => typed(value).map(Object::StatefulSet),
        "DaemonSet" => typed(value).map(Object::DaemonSet),
        "Pod" => typed(value).map(Object::Pod),
        "Service" => typed(value).map(Object::Service),
        "Namespace" => typed(value).map(Object::Namespace),
        "ConfigMap" => typed(value).map(Object::ConfigMap),
        "Secret" => typed(value).map(Object::Secret),
        "Gateway" if gateway => Ok(Object::Gateway(text("/spec/gatewayClassName"))),
        _ => return Ok(None),
    };
    match object {
        Ok(object) => Ok(Some((key, object))),
        Err(message) => Err((Some(key), message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# first\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\n\
                       apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b}\nspec:\n  replicas: 2\n  \
                       selector: {}\n  template: {}\n---\napiVersion: x/v1\nkind: Other\nmetadata: {name: c}\n";

    #[test]
    fn objects_are_found_with_their_lines_and_other_kinds_are_left() {
        let mut loaded = Loaded::default();
        loaded.read(Path::new("f.yaml"), TWO);
        assert_eq!(loaded.problems, []);
        let found: Vec<_> = loaded.objects.iter().map(|m| (m.line, m.key.to_string())).collect();
        assert_eq!(found, [(2, "Namespace a".to_owned()), (7, "Deployment default/b".to_owned())]);
    }

    #[test]
    fn a_bad_object_leaves_its_last_good_version_and_a_bad_file_all_of_them() {
        let mut loaded = Loaded::default();
        loaded.read(Path::new("f.yaml"), TWO);
        let good = loaded.objects.clone();

        loaded.read(Path::new("f.yaml"), &TWO.replace("replicas: 2", "replicas: two"));
        assert_eq!(loaded.objects, good, "the Deployment stays");
        let problem = loaded.problems.first().map(ToString::to_string).unwrap_or_default();
        assert!(problem.starts_with("f.yaml:7: Deployment default/b: "), "{problem}");

        loaded.read(Path::new("f.yaml"), &TWO.replace("replicas: 2", "replicas: [2"));
        assert_eq!(loaded.objects, good, "nothing of a file that does not parse");
        assert_eq!(loaded.problems.len(), 1);
        assert!(loaded.problems.iter().all(|problem| problem.line > 7), "{:?}", loaded.problems);

        loaded.read(Path::new("f.yaml"), "");
        assert_eq!((loaded.objects.len(), loaded.problems.len()), (0, 0));
    }

    #[test]
    fn a_file_that_is_gone_takes_its_objects_along() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, TWO).unwrap();
        std::fs::write(folder.path().join(LOCAL_FILE), "images: {}").unwrap();
        std::fs::write(folder.path().join(".hidden.yaml"), TWO).unwrap();
        let mut folders = Folders::default();
        folders.refresh(folder.path());
        assert_eq!(folders.objects().count(), 2);
        std::fs::remove_file(file).unwrap();
        folders.refresh(folder.path());
        assert_eq!(folders.objects().count(), 0);
    }
}
