// SPDX-License-Identifier: Apache-2.0

//! Folders on disk, edited as users and editors do.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use super::*;
use crate::store::{Kind, Name};

fn map(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: n\ndata:\n  k: {value}\n---\n"
    )
}

fn key(name: &str) -> Key {
    Key { kind: Kind::ConfigMap, name: Name::new("n", name) }
}

fn value(change: &Change) -> (String, Option<String>) {
    match change {
        Change::Put(Object::ConfigMap(map)) => {
            (map.metadata.name.clone().unwrap(), Some(map.data.as_ref().unwrap()["k"].clone()))
        }
        Change::Put(other) => panic!("{other:?}"),
        Change::Gone(key) => (key.name.name.to_string(), None),
    }
}

async fn next(folders: &mut Folders) -> Batch {
    tokio::time::timeout(Duration::from_secs(10), folders.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn edits_are_followed_and_other_files_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), map("one", "1") + &map("two", "2")).unwrap();
    fs::write(at("local.yaml"), "images: {}").unwrap();
    fs::write(at("notes.txt"), "no yaml: [").unwrap();
    let mut folders = Folders::new(&[dir.path().to_owned()]).unwrap();
    let first = next(&mut folders).await;
    assert_eq!(first.changes.len(), 2);
    assert_eq!(first.problems, []);

    fs::write(at(".b.swp.yaml"), map("three", "3")).unwrap();
    fs::write(at("next"), map("one", "4")).unwrap();
    fs::rename(at("next"), at("a.yaml")).unwrap();
    let changed: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    assert_eq!(changed, [("one".into(), Some("4".into())), ("two".into(), None)]);

    fs::remove_file(at("a.yaml")).unwrap();
    assert_eq!(next(&mut folders).await.changes, [Change::Gone(key("one"))]);
}

#[tokio::test]
async fn a_file_is_never_seen_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, map("one", "1") + &map("two", "2")).unwrap();
    let mut folders = Folders::new(&[dir.path().to_owned()]).unwrap();
    next(&mut folders).await;

    let mut file = fs::File::create(&path).unwrap();
    file.write_all(map("one", "5").as_bytes()).unwrap();
    // Another file's edit must not make the open one be read.
    fs::write(dir.path().join("b.yaml"), map("other", "x")).unwrap();
    let changed: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    assert_eq!(changed, [("other".into(), Some("x".into()))]);

    file.write_all(map("two", "6").as_bytes()).unwrap();
    drop(file);
    let changed: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    assert_eq!(changed, [("one".into(), Some("5".into())), ("two".into(), Some("6".into()))]);
}

#[tokio::test]
async fn what_cannot_be_read_leaves_the_last_good_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, map("one", "1") + &map("two", "2")).unwrap();
    let mut folders = Folders::new(&[dir.path().to_owned()]).unwrap();
    next(&mut folders).await;

    let broken = map("two", "2").replace("data:\n  k: 2", "data: [1]");
    fs::write(&path, map("one", "7") + &broken).unwrap();
    let batch = next(&mut folders).await;
    assert_eq!(
        batch.changes.iter().map(value).collect::<Vec<_>>(),
        [("one".into(), Some("7".into()))]
    );
    let [problem] = batch.problems.as_slice() else { panic!("{:?}", batch.problems) };
    assert_eq!(problem.object.as_deref(), Some("ConfigMap n/two"));
    assert!(problem.message.contains("last good"), "{problem}");

    fs::write(&path, "kind: [").unwrap();
    let batch = next(&mut folders).await;
    assert_eq!(batch.changes, [], "nothing of the file is forgotten");
    assert_eq!(batch.problems.len(), 1);

    fs::write(&path, map("two", "8")).unwrap();
    let batch = next(&mut folders).await;
    assert_eq!(batch.changes.len(), 2);
    assert_eq!(batch.problems, []);
}

#[tokio::test]
async fn the_later_folder_wins_and_a_twin_in_one_folder_is_reported() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(first.path().join("a.yaml"), map("one", "folder")).unwrap();
    fs::write(first.path().join("b.yaml"), map("one", "twin")).unwrap();
    let roots = [first.path().to_owned(), second.path().to_owned()];
    let mut folders = Folders::new(&roots).unwrap();
    let batch = next(&mut folders).await;
    assert_eq!(value(&batch.changes[0]).1.as_deref(), Some("folder"));
    assert_eq!(batch.problems.len(), 1);
    assert_eq!(batch.problems[0].file, first.path().join("b.yaml"));

    let over = second.path().join("z.yaml");
    fs::write(&over, map("one", "runtime")).unwrap();
    let changed = next(&mut folders).await.changes;
    assert_eq!(value(&changed[0]).1.as_deref(), Some("runtime"));
    assert_eq!(changed.len(), 1);
    fs::remove_file(&over).unwrap();
    assert_eq!(value(&next(&mut folders).await.changes[0]).1.as_deref(), Some("folder"));
    assert_eq!(read(&roots).unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_file_that_is_broken_at_a_restart_keeps_what_it_held() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let start = || {
        let folders = Folders::new(&[dir.path().to_owned()]).unwrap();
        folders.remembering(state.path().join("last-good")).unwrap()
    };
    fs::write(at("a.yaml"), map("one", "1") + &map("two", "2")).unwrap();
    fs::write(at("b.yaml"), map("three", "3")).unwrap();
    let mut folders = start();
    next(&mut folders).await;

    fs::write(at("a.yaml"), map("one", "4") + "kind: [\n").unwrap();
    fs::remove_file(at("b.yaml")).unwrap();
    drop(folders);
    let first = next(&mut start()).await;
    let mut held: Vec<_> = first.changes.iter().map(value).collect();
    held.sort();
    assert_eq!(held, [("one".into(), Some("4".into())), ("two".into(), Some("2".into()))]);
    assert_eq!(first.problems.len(), 1, "{:?}", first.problems);
}

#[tokio::test]
async fn a_file_that_is_replaced_by_removal_and_making_was_never_gone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), map("one", "1") + &map("two", "2")).unwrap();
    fs::write(at("b.yaml"), map("other", "1")).unwrap();
    let root = dir.path().to_owned();
    let mut folders = Folders::new(std::slice::from_ref(&root)).unwrap().patient_with(root.clone());
    next(&mut folders).await;

    fs::remove_file(at("a.yaml")).unwrap();
    // Somebody else's edit wakes us while the file is away.
    fs::write(at("b.yaml"), map("other", "2")).unwrap();
    let changed: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    assert_eq!(changed, [("other".into(), Some("2".into()))]);
    fs::write(at("a.yaml"), map("one", "3") + &map("two", "2")).unwrap();
    let changed: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    assert_eq!(changed, [("one".into(), Some("3".into()))]);

    // A new name is no absence, and what stays away is gone.
    fs::rename(at("a.yaml"), at("c.yaml")).unwrap();
    fs::write(at("d.yaml"), map("last", "1")).unwrap();
    let changed: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    assert_eq!(changed, [("last".into(), Some("1".into()))]);
    fs::remove_file(at("c.yaml")).unwrap();
    let mut gone: Vec<_> = next(&mut folders).await.changes.iter().map(value).collect();
    gone.sort();
    assert_eq!(gone, [("one".into(), None), ("two".into(), None)]);
}
