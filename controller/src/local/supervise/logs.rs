// SPDX-License-Identifier: Apache-2.0

//! Keeps the output of containers from filling the memory that it lies in.
//!
//! Owns: cutting of log files. As a kubelet keeps one old file beside the new one, here a
//! file that has grown too long becomes `.log.1`, and its writer goes on at the beginning.
//!
//! Start at [`keep_short`].

use std::path::Path;
use std::time::Duration;

use crate::local::paths;

/// Bytes after which a log is cut.
const LONGEST: u64 = 16 * 1024 * 1024;

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(5);

/// Cuts logs that are too long, until dropped.
pub(super) async fn keep_short() {
    loop {
        tokio::time::sleep(PERIOD).await;
        // What cannot be cut now is looked at again.
        drop(tokio::task::spawn_blocking(|| cut_all(Path::new(paths::LOGS), LONGEST)).await);
    }
}

fn cut_all(folder: &Path, longest: u64) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let is_log = path.extension().is_some_and(|kind| kind == "log");
        if is_log && entry.metadata()?.len() > longest {
            std::fs::copy(&path, path.with_extension("log.1"))?;
            // Writers append, so the next line starts the file anew.
            std::fs::OpenOptions::new().write(true).open(&path)?.set_len(0)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_long_log_becomes_the_old_one_and_its_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (long, short) = (folder.path().join("a.log"), folder.path().join("b.log"));
        std::fs::write(&short, "one").unwrap();
        let mut writer = std::fs::OpenOptions::new().create(true).append(true).open(&long).unwrap();
        writer.write_all(b"first line\n").unwrap();
        cut_all(folder.path(), 5).unwrap();
        writer.write_all(b"next\n").unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&folder.path().join("a.log.1")), "first line\n");
        assert_eq!((read(&long), read(&short)), ("next\n".to_owned(), "one".to_owned()));
    }
}
