// SPDX-License-Identifier: Apache-2.0

//! Copies of files as they were when all of them could be used, so that a file that is broken
//! while the controller starts again leaves its last good objects in force too.
//!
//! Keeps: a copy holds what its file held, Secrets included, so only the owner reads it.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::ca::files;

/// A folder of copies.
#[derive(Debug)]
pub(super) struct LastGood(PathBuf);

impl LastGood {
    /// Copies in `folder`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(super) fn new(folder: PathBuf) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    /// Keeps the text of `path`; that it cannot be kept harms nothing yet, and is said.
    pub(super) fn keep(&self, path: &Path, text: &str) {
        if let Err(error) = files::replace(&self.place(path), text.as_bytes(), true) {
            tracing::error!(path = %path.display(), %error, "the good version of a file cannot be kept over a restart");
        }
    }

    /// The text of `path` when it was good; none if it never was.
    pub(super) fn of(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(self.place(path)).ok()
    }

    fn place(&self, path: &Path) -> PathBuf {
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name)
    }
}
