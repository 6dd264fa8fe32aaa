// SPDX-License-Identifier: Apache-2.0

//! Tells when files of a folder changed: closed after writing, renamed, or removed.
//!
//! Owns: one thread per folder that waits for the kernel's word. A burst of changes is one
//! message. Leaves reading to [`super::super::manifest`].

use std::path::{Path, PathBuf};

use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;

/// Sends `folder` to `changed` after each change of a file directly in it.
///
/// # Errors
///
/// Those of setting the watch; it lasts until the receiver is dropped.
pub(super) fn watch(folder: &Path, changed: mpsc::UnboundedSender<PathBuf>) -> std::io::Result<()> {
    let mut inotify = Inotify::init()?;
    let mask =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(folder, mask)?;
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        loop {
            match inotify.read_events_blocking(&mut buffer) {
                Ok(events) => drop(events),
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            if changed.send(folder.clone()).is_err() {
                return;
            }
        }
    });
    Ok(())
}
