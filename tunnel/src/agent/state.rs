// SPDX-License-Identifier: Apache-2.0

//! What the agent keeps on disk, so that an agent that starts anew interrupts
//! no pod, and the CNI plug-in knows what to do while the agent is away.
//!
//! Owns: two files in the agent's folder: `state.json`, its own memory, and
//! `outside.json`, the namespaces whose pods a plug-in lets pass by itself.
//! Keeps: a reader sees the old text or the new one, never half.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::node::Record;

/// Name of the file of pods.
const STATE: &str = "state.json";

/// Name of the file that the plug-in reads.
const OUTSIDE: &str = "outside.json";

/// Namespaces whose pods are outside whatever the controller says.
const ALWAYS_OUTSIDE: [&str; 2] = ["kube-system", "istio-system"];

/// The agent's folder.
#[derive(Clone, Debug)]
pub struct StateFolder(PathBuf);

/// What the plug-in may know without the agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Outside {
    /// Namespaces whose pods are outside; a namespace that is not named counts as inside.
    pub namespaces: BTreeSet<String>,
}

impl Outside {
    /// What holds before the controller has spoken.
    #[must_use]
    pub fn at_first() -> Self {
        Self { namespaces: ALWAYS_OUTSIDE.map(str::to_owned).into() }
    }

    /// What the controller says, and what always holds.
    #[must_use]
    pub fn of(namespaces: impl IntoIterator<Item = String>) -> Self {
        let mut outside = Self::at_first();
        outside.namespaces.extend(namespaces);
        outside
    }

    /// Reads the file in `folder`; nothing is outside if it cannot be read.
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let text = std::fs::read(folder.join(OUTSIDE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_else(|_| Self::at_first())
    }
}

impl StateFolder {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// What an earlier agent left; an unreadable file counts as none, and is logged.
    #[must_use]
    pub fn load(&self) -> Vec<Record> {
        let path = self.0.join(STATE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                warn!(%error, "cannot read the agent's state");
                return Vec::new();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            warn!(%error, "the agent's state is not readable; pods are found anew");
            Vec::new()
        })
    }

    /// Keeps `records`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the last one stays.
    pub fn save(&self, records: &[Record]) -> io::Result<()> {
        self.replace(STATE, &serde_json::to_vec(records).map_err(io::Error::other)?)
    }

    /// Tells plug-ins which namespaces are outside.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the last one stays.
    pub fn save_outside(&self, outside: &Outside) -> io::Result<()> {
        self.replace(OUTSIDE, &serde_json::to_vec(outside).map_err(io::Error::other)?)
    }

    /// Removes the files; harmless if they are not there.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        for name in [STATE, OUTSIDE] {
            for name in [name.to_owned(), format!(".{name}.new")] {
                match std::fs::remove_file(self.0.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    fn replace(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let fresh = self.0.join(format!(".{name}.new"));
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, self.0.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::enrol::Phase;
    use super::super::pod::Remains;
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_rubbish_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path().join("run")).unwrap();
        assert_eq!(state.load(), []);
        let remains = Remains { phase: Phase::Enrolled, repairs: 2, ..Remains::default() };
        let record = Record {
            uid: "u".into(),
            spec: None,
            netns: Some("/run/netns/pod".into()),
            addresses: vec!["10.244.1.5".parse().unwrap()],
            remains,
        };
        state.save(std::slice::from_ref(&record)).unwrap();
        assert_eq!(state.load(), [record]);
        std::fs::write(folder.path().join("run").join(STATE), "[{").unwrap();
        assert_eq!(state.load(), []);
    }

    #[test]
    fn own_namespaces_are_outside_whatever_the_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path().to_owned()).unwrap();
        assert_eq!(Outside::read(folder.path()), Outside::at_first());
        state.save_outside(&Outside::of(["shop".to_owned()])).unwrap();
        let names: Vec<String> = Outside::read(folder.path()).namespaces.into_iter().collect();
        assert_eq!(names, ["istio-system", "kube-system", "shop"]);
        state.save(&[]).unwrap();
        state.clear().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        state.clear().unwrap();
    }
}
