// SPDX-License-Identifier: Apache-2.0

//! `waymark up`: checks the folder and makes a world for it.

use std::process::ExitCode;

use super::Failure;
use crate::local::{LocalError, UpOptions, world};

/// Runs the world of `options` to its end.
pub(super) fn up(mut options: UpOptions) -> Result<ExitCode, Failure> {
    let folder = std::fs::canonicalize(&options.folder)
        .and_then(|folder| std::fs::read_dir(&folder).map(|_entries| folder))
        .map_err(|cause| Failure::from_error(LocalError::Folder(options.folder.clone(), cause)))?;
    options.folder = folder;
    world::launch(&options).map_err(Failure::from_error)
}
