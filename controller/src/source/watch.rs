// SPDX-License-Identifier: Apache-2.0

//! Edits of files in folders, told by inotify.
//!
//! Owns the difference between a file that is being written and one that is finished: a file
//! counts as [`Edit::Finished`] at close or rename, and as [`Edit::Unfinished`] from its first
//! modified byte. Reading happens in [`super::folder`].

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Room for the events of one read.
const BUFFER: usize = 16 * 1024;

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
        Ok(Self { inotify, roots: watched })
    }

    /// Waits for edits. Cancel safe: nothing is taken before it is returned.
    ///
    /// # Errors
    ///
    /// Those of reading the inotify descriptor.
    pub async fn next(&mut self) -> io::Result<Vec<Edit>> {
        loop {
            self.inotify.readable().await?.retain_ready();
            let edits = self.pending()?;
            if !edits.is_empty() {
                return Ok(edits);
            }
            self.inotify.readable().await?.clear_ready();
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(edits),
                Err(error) => return Err(error),
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    edits.push(Edit::Lost);
                    continue;
                }
                let name = event.name.map(OsString::from);
                edits.extend(edit(&self.roots, &event.wd, event.mask, name));
            }
        }
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
