// SPDX-License-Identifier: Apache-2.0

//! Objects from YAML files in folders, and their edits.
//!
//! Owns: which file holds which object, and which of two wins (the later folder; inside a
//! folder the first file). A file is read when it was closed or renamed into place; a file
//! that is modified while it is read is read again at its close. What cannot be read leaves
//! the last good objects of that file in force, over a restart too ([`last_good`]).
//!
//! Start at [`read`] for one look, at [`Folders::next`] to follow edits.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::document::{self, Parsed, Placed};
use super::watch::{Edit, Text, Watcher, read_file};
use super::{Batch, Change, Problem};
use crate::store::{Key, Object};

use self::last_good::LastGood;

mod last_good;

/// Files that are no objects.
const IGNORED: [&str; 2] = ["local.yaml", "local.yml"];

/// Reads all objects of `roots` once; the last folder that holds an object wins.
///
/// # Errors
///
/// When a folder cannot be listed.
pub fn read(roots: &[PathBuf]) -> io::Result<(Vec<Object>, Vec<Problem>)> {
    let mut files = Files::new(roots);
    for path in files.list()? {
        let read = read_file(&path);
        files.take(path, read);
    }
    let batch = files.batch();
    let put = |change| match change {
        Change::Put(object) => Some(object),
        Change::Gone(_) => None,
    };
    Ok((batch.changes.into_iter().filter_map(put).collect(), batch.problems))
}

/// Follows the edits of folders.
#[derive(Debug)]
pub struct Folders {
    watcher: Watcher,
    files: Files,
    due: BTreeSet<PathBuf>,
    started: bool,
}

impl Folders {
    /// Watches `roots`, which must exist.
    ///
    /// # Errors
    ///
    /// When a folder is not there, cannot be listed, or cannot be watched.
    pub fn new(roots: &[PathBuf]) -> io::Result<Self> {
        let watcher = Watcher::new(roots)?;
        let files = Files::new(roots);
        let due = files.list()?;
        Ok(Self { watcher, files, due, started: false })
    }

    /// Gives files of `root`, which a person edits, time to be replaced by removal and making.
    #[must_use]
    pub fn patient_with(mut self, root: PathBuf) -> Self {
        self.watcher = self.watcher.patient_with(root);
        self
    }

    /// Keeps copies of good files in `folder`, for the next start.
    ///
    /// # Errors
    ///
    /// When the folder is not there and cannot be made.
    pub fn remembering(mut self, folder: PathBuf) -> io::Result<Self> {
        self.files.last_good = Some(LastGood::new(folder)?);
        Ok(self)
    }

    /// The next batch; the first holds everything there is, later ones wait for an edit.
    ///
    /// # Errors
    ///
    /// Those of reading the inotify descriptor.
    pub async fn next(&mut self) -> io::Result<Batch> {
        loop {
            self.read_due()?;
            let batch = self.files.batch();
            let problems_changed = self.files.problems_changed();
            if !self.started || problems_changed || !batch.changes.is_empty() {
                self.started = true;
                return Ok(batch);
            }
            let edits = self.watcher.next().await?;
            self.note(edits)?;
        }
    }

    /// Reads what is due, and again what was modified meanwhile.
    fn read_due(&mut self) -> io::Result<()> {
        while !self.due.is_empty() {
            let due = std::mem::take(&mut self.due);
            let (read, edits) = self.watcher.read(due)?;
            for (path, text) in read {
                self.files.take(path, text);
            }
            self.note(edits)?;
        }
        Ok(())
    }

    fn note(&mut self, edits: Vec<Edit>) -> io::Result<()> {
        for edit in edits {
            match edit {
                Edit::Finished(path) if is_ours(&path) => {
                    self.due.insert(path);
                }
                Edit::Unfinished(path) => {
                    self.due.remove(&path);
                }
                Edit::Removed(path) => {
                    self.due.remove(&path);
                    self.files.forget(&path);
                }
                Edit::Lost => {
                    self.due = self.files.list()?;
                    self.files.forget_absent(&self.due);
                }
                Edit::Finished(_) => {}
            }
        }
        Ok(())
    }
}

/// Whether `path` is named as files with objects are.
pub fn is_ours(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
        && !name.starts_with('.')
        && !IGNORED.contains(&name)
}

/// Rank of a file: the greatest wins.
type Rank = (usize, std::cmp::Reverse<PathBuf>);

/// All files and the objects that they hold.
#[derive(Debug)]
struct Files {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    holders: BTreeMap<Key, BTreeMap<Rank, Placed>>,
    /// What the outside was told.
    given: BTreeMap<Key, Object>,
    touched: BTreeSet<Key>,
    told: Vec<Problem>,
    last_good: Option<LastGood>,
}

#[derive(Debug, Default)]
struct File {
    keys: BTreeSet<Key>,
    problems: Vec<Problem>,
}

impl Files {
    fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.to_vec(),
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            given: BTreeMap::new(),
            touched: BTreeSet::new(),
            told: Vec::new(),
            last_good: None,
        }
    }

    fn list(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        for root in &self.roots {
            for entry in std::fs::read_dir(root)? {
                let path = entry?.path();
                if is_ours(&path) && path.is_file() {
                    found.insert(path);
                }
            }
        }
        Ok(found)
    }

    fn rank(&self, path: &Path) -> Rank {
        let parent = path.parent();
        let root = self.roots.iter().rposition(|root| parent == Some(root.as_path()));
        (root.unwrap_or(0), std::cmp::Reverse(path.to_owned()))
    }

    /// Takes what reading `path` gave.
    fn take(&mut self, path: PathBuf, text: Text) {
        let parsed = match text {
            Ok(Some(text)) => {
                let parsed = document::parse(&path, &text);
                let good = parsed.broken.is_empty() && !parsed.keep_all;
                match &self.last_good {
                    Some(copies) if good => copies.keep(&path, &text),
                    Some(_) if !self.files.contains_key(&path) => self.recall(&path),
                    Some(_) | None => {}
                }
                parsed
            }
            Ok(None) => return self.forget(&path),
            Err(error) => {
                if !self.files.contains_key(&path) {
                    self.recall(&path);
                }
                let problems = vec![unreadable(&path, &error)];
                Parsed { keep_all: true, problems, ..Parsed::default() }
            }
        };
        self.merge(path, parsed);
    }

    /// What `path` held when an earlier run could use it.
    fn recall(&mut self, path: &Path) {
        let copy = self.last_good.as_ref().and_then(|copies| copies.of(path));
        if let Some(text) = copy {
            self.merge(path.to_owned(), document::parse(path, &text));
        }
    }

    fn merge(&mut self, path: PathBuf, parsed: Parsed) {
        let rank = self.rank(&path);
        let mut file = self.files.remove(&path).unwrap_or_default();
        let mut problems = parsed.problems;
        let mut now = BTreeMap::new();
        for placed in parsed.objects {
            let (key, line) = (placed.object.key(), placed.line);
            if now.insert(key.clone(), placed).is_some() {
                problems.push(twice(&path, line, &key));
            }
        }
        for problem in &mut problems {
            let broken = parsed.broken.iter().find(|key| Some(key.to_string()) == problem.object);
            if broken.is_some_and(|key| file.keys.contains(key)) {
                problem.message.push_str("; its last good version stays in force");
            }
        }
        let stay = |key: &Key| parsed.keep_all || parsed.broken.contains(key);
        for key in std::mem::take(&mut file.keys) {
            if !now.contains_key(&key) && stay(&key) {
                file.keys.insert(key);
            } else if !now.contains_key(&key) {
                self.drop_holder(&key, &rank);
            }
        }
        for (key, placed) in now {
            self.holders.entry(key.clone()).or_default().insert(rank.clone(), placed);
            self.touched.insert(key.clone());
            file.keys.insert(key);
        }
        file.problems = problems;
        self.files.insert(path, file);
    }

    fn drop_holder(&mut self, key: &Key, rank: &Rank) {
        if let Some(holders) = self.holders.get_mut(key) {
            holders.remove(rank);
            if holders.is_empty() {
                self.holders.remove(key);
            }
        }
        self.touched.insert(key.clone());
    }

    fn forget(&mut self, path: &Path) {
        let rank = self.rank(path);
        for key in self.files.remove(path).unwrap_or_default().keys {
            self.drop_holder(&key, &rank);
        }
    }

    fn forget_absent(&mut self, present: &BTreeSet<PathBuf>) {
        let absent: Vec<_> =
            self.files.keys().filter(|path| !present.contains(*path)).cloned().collect();
        for path in absent {
            self.forget(&path);
        }
    }

    /// What changed since the last call, and every problem there is.
    fn batch(&mut self) -> Batch {
        let mut changes = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let winner = self.holders.get(&key).and_then(|holders| holders.last_key_value());
            match winner {
                Some((_, placed)) => {
                    let old = self.given.get(&key);
                    let object = with_generation(placed.object.clone(), old);
                    if old != Some(&object) {
                        self.given.insert(key, object.clone());
                        changes.push(Change::Put(object));
                    }
                }
                None => {
                    if self.given.remove(&key).is_some() {
                        changes.push(Change::Gone(key));
                    }
                }
            }
        }
        Batch { changes, problems: self.problems() }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> =
            self.files.values().flat_map(|file| file.problems.iter().cloned()).collect();
        for (key, holders) in &self.holders {
            // Inside one folder the first file wins; between folders replacing is meant.
            let mut ranks = holders.iter().rev();
            let Some(((root, _), _)) = ranks.next() else { continue };
            for ((other, std::cmp::Reverse(path)), placed) in ranks {
                if other == root {
                    problems.push(twice(path, placed.line, key));
                }
            }
        }
        problems
    }

    /// Tells whether [`Self::problems`] differ from those at the last call.
    fn problems_changed(&mut self) -> bool {
        let problems = self.problems();
        let changed = problems != self.told;
        self.told = problems;
        changed
    }
}

/// Counts the generation as an apiserver does, for objects that bring none.
fn with_generation(mut object: Object, old: Option<&Object>) -> Object {
    if object.meta().generation.is_some() {
        return object;
    }
    let before = old.and_then(|old| old.meta().generation);
    object.meta_mut().generation = before.or(Some(1));
    if old.is_some_and(|old| *old != object) {
        object.meta_mut().generation = before.map(|generation| generation + 1);
    }
    object
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        file: path.to_owned(),
        line: 0,
        object: None,
        field: None,
        message: format!("cannot be read: {error}; what it held before stays in force"),
        in_force: false,
    }
}

fn twice(path: &Path, line: u64, key: &Key) -> Problem {
    Problem {
        file: path.to_owned(),
        line,
        object: Some(key.to_string()),
        field: None,
        message: "the same object stands elsewhere in this folder; only one of them counts".into(),
        in_force: false,
    }
}

#[cfg(test)]
mod tests;
