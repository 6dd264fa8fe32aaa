// SPDX-License-Identifier: Apache-2.0

//! Generated messages are those of the `.proto` files.
//!
//! `protox` compiles, so no `protoc` is needed. To write the files instead of
//! comparing them, leave out what uses them, which may not build yet:
//! `WAYMARK_REGENERATE=1 cargo test -p waymark-routing --no-default-features --test generated`

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and this one works on files"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// All `.proto` files below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "proto") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn generated_messages_are_those_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = root.join("proto");
    let checked_in = root.join("src/wire/gen");
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gen");
    let regenerate = std::env::var_os("WAYMARK_REGENERATE").is_some();
    let out = if regenerate { checked_in.clone() } else { scratch };
    if out.exists() {
        std::fs::remove_dir_all(&out).unwrap();
    }
    std::fs::create_dir_all(&out).unwrap();

    let set = protox::compile(sources(&proto), [&proto]).unwrap();
    // Ordered maps: the same message is always the same bytes.
    prost_build::Config::new().btree_map(["."]).out_dir(&out).compile_fds(set).unwrap();

    assert_eq!(names(&out), names(&checked_in), "run once with WAYMARK_REGENERATE=1");
    for name in names(&out) {
        let (new, old) = (out.join(&name), checked_in.join(&name));
        let same = std::fs::read(new).unwrap() == std::fs::read(old).unwrap();
        assert!(same, "{name} is stale: run once with WAYMARK_REGENERATE=1");
    }
}
