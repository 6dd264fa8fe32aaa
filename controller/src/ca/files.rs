// SPDX-License-Identifier: Apache-2.0

//! Small files that must be there whole or not at all: keys, certificates, state.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Replaces `path` by `content`, readable by its owner only if `secret`.
///
/// # Errors
///
/// Those of the file system; the old file is then untouched.
pub fn replace(path: &Path, content: &[u8], secret: bool) -> io::Result<()> {
    let next = write_beside(path, content, secret)?;
    fs::rename(&next, path)
}

/// Makes `path` with `content` unless it is there already; tells whether it was made.
///
/// # Errors
///
/// Those of the file system.
pub fn create(path: &Path, content: &[u8], secret: bool) -> io::Result<bool> {
    let next = write_beside(path, content, secret)?;
    // A link fails if the name is taken: of two processes that start at once one wins.
    let made = fs::hard_link(&next, path);
    fs::remove_file(&next)?;
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_beside(path: &Path, content: &[u8], secret: bool) -> io::Result<std::path::PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let next = path.with_file_name(name);
    let mut file = File::create(&next)?;
    if secret {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    Ok(next)
}
