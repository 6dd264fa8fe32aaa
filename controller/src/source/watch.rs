// SPDX-License-Identifier: Apache-2.0

//! Edits of files in folders, told by inotify.
//!
//! Owns the difference between a file that is being written and one that is finished: a file
//! counts as [`Edit::Finished`] at close or rename, and as [`Edit::Unfinished`] from its first
//! modified byte; and the difference between a file that is gone and one that is replaced by
//! removing and making it again, as git and some editors do. Reading happens in
//! [`super::folder`] and, for what runs on this machine, in [`crate::local::manifest`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

/// Room for the events of one read.
const BUFFER: usize = 16 * 1024;

/// How long a file of a person's folder may be away before what it held is taken out.
pub const GRACE: Duration = Duration::from_millis(200);

/// Text of a file; none if it is gone.
pub type Text = io::Result<Option<String>>;

/// Texts that were read whole, and the edits that became known while they were read.
pub type Look = (Vec<(PathBuf, Text)>, Vec<Edit>);

/// What happened to a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Edit {
    /// Closed after writing, or renamed into place.
    Finished(PathBuf),
    /// Modified and not closed yet.
    Unfinished(PathBuf),
    /// Removed, or renamed away.
    Removed(PathBuf),
    /// Events were lost: everything has to be looked at again.
    Lost,
}

/// Watches a set of folders.
#[derive(Debug)]
pub struct Watcher {
    inotify: AsyncFd<Inotify>,
    roots: Vec<(WatchDescriptor, PathBuf)>,
    /// Where files may be away for [`GRACE`].
    patient: Option<PathBuf>,
    /// Files that are away, until when, and the cookie of a rename.
    away: BTreeMap<PathBuf, (Instant, u32)>,
}

impl Watcher {
    /// Watches `roots`, which must exist.
    ///
    /// # Errors
    ///
    /// When a folder is not there or the system's limit of watches is reached.
    pub fn new(roots: &[PathBuf]) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::ONLYDIR;
        let mut watched = Vec::new();
        for root in roots {
            let descriptor = inotify.watches().add(root, mask).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot watch {}: {error}", root.display()))
            })?;
            watched.push((descriptor, root.clone()));
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an owned descriptor keeps its promise"
        )]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Self { inotify, roots: watched, patient: None, away: BTreeMap::new() })
    }

    /// Gives files directly in `root` [`GRACE`] to come back before they count as removed.
    #[must_use]
    pub fn patient_with(mut self, root: PathBuf) -> Self {
        self.patient = Some(root);
        self
    }

    /// Waits for edits. Cancel safe: nothing is taken before it is returned.
    ///
    /// # Errors
    ///
    /// Those of reading the inotify descriptor.
    pub async fn next(&mut self) -> io::Result<Vec<Edit>> {
        loop {
            let due = self.away.values().map(|(until, _)| *until).min();
            let timer = async {
                match due {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                ready = self.inotify.readable() => ready?.retain_ready(),
                () = timer => {}
            }
            let edits = self.pending()?;
            if !edits.is_empty() {
                return Ok(edits);
            }
            tokio::select! {
                biased;
                ready = self.inotify.readable() => ready?.clear_ready(),
                () = std::future::ready(()) => continue,
            }
            // An event between the read and the clear would be missed without this look.
            let edits = self.pending()?;
            if !edits.is_empty() {
                return Ok(edits);
            }
        }
    }

    /// The edits that are known already.
    ///
    /// # Errors
    ///
    /// Those of reading the inotify descriptor.
    pub fn pending(&mut self) -> io::Result<Vec<Edit>> {
        let mut edits = Vec::new();
        let mut buffer = [0; BUFFER];
        loop {
            let events = match self.inotify.get_mut().read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    edits.push(Edit::Lost);
                    continue;
                }
                let name = event.name.map(OsString::from);
                let Some(edit) = edit(&self.roots, &event.wd, event.mask, name) else { continue };
                match &edit {
                    Edit::Removed(path) if self.patient.as_deref() == path.parent() => {
                        let until = Instant::now() + GRACE;
                        self.away.insert(path.clone(), (until, event.cookie));
                        continue;
                    }
                    Edit::Finished(path) | Edit::Unfinished(path) => {
                        self.away.remove(path);
                        // It is not away, it has another name now.
                        let renamed = |cookie| cookie != 0 && cookie == event.cookie;
                        let old = self.away.extract_if(.., |_, (_, cookie)| renamed(*cookie));
                        edits.extend(old.map(|(path, _)| Edit::Removed(path)));
                    }
                    Edit::Removed(_) | Edit::Lost => {}
                }
                edits.push(edit);
            }
        }
        let now = Instant::now();
        let over = self.away.extract_if(.., |_, (until, _)| *until <= now);
        // One that is there again is being written: its close is still to come.
        edits.extend(over.filter(|(path, _)| !path.exists()).map(|(path, _)| Edit::Removed(path)));
        Ok(edits)
    }

    /// Reads the files of `due`; leaves out those somebody writes to meanwhile.
    ///
    /// # Errors
    ///
    /// Those of reading the inotify descriptor.
    pub fn read(&mut self, due: BTreeSet<PathBuf>) -> io::Result<Look> {
        let mut read: BTreeMap<_, _> =
            due.into_iter().map(|path| (path.clone(), read_file(&path))).collect();
        let edits = self.pending()?;
        for edit in &edits {
            // Half written while we read: its close is still to come, or is in `edits`.
            if let Edit::Unfinished(path) | Edit::Finished(path) = edit {
                read.remove(path);
            }
        }
        // Away, and perhaps about to come back.
        let read = read.into_iter().filter(|(path, _)| !self.away.contains_key(path)).collect();
        Ok((read, edits))
    }
}

/// Reads one file whole.
///
/// # Errors
///
/// When it is there and cannot be read, or is not UTF-8.
pub fn read_file(path: &Path) -> Text {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn edit(
    roots: &[(WatchDescriptor, PathBuf)],
    watch: &WatchDescriptor,
    mask: EventMask,
    name: Option<OsString>,
) -> Option<Edit> {
    let (_, root) = roots.iter().find(|(descriptor, _)| descriptor == watch)?;
    let path = root.join(name?);
    // Kubelet volumes swap a link called `..data`: every file behind it is another one then.
    if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"..")) {
        return Some(Edit::Lost);
    }
    if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
        Some(Edit::Finished(path))
    } else if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
        Some(Edit::Removed(path))
    } else if mask.contains(EventMask::CREATE) && path.is_symlink() {
        Some(Edit::Finished(path))
    } else if mask.contains(EventMask::MODIFY) {
        Some(Edit::Unfinished(path))
    } else {
        None
    }
}
