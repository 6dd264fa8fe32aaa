// SPDX-License-Identifier: Apache-2.0

//! Files of a node, before and after.

use super::*;

const LIST: &str =
    r#"{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;

fn places(folder: &Path) -> Places {
    let places = Places {
        programs: folder.join("bin"),
        configurations: folder.join("net.d"),
        plugin: folder.join("own"),
        agent: "/var/run/istio-cni".into(),
    };
    fs::create_dir(&places.programs).unwrap();
    fs::create_dir(&places.configurations).unwrap();
    fs::write(&places.plugin, "plug-in").unwrap();
    places
}

fn types(path: &Path) -> Vec<String> {
    let read: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let plugins = read["plugins"].as_array().unwrap();
    plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_plugin_is_the_last_of_the_first_chain_and_is_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    assert!(matches!(install(&places), Err(InstallError::None(_))), "no network yet");
    let first = places.configurations.join("10-pods.conflist");
    let later = places.configurations.join("20-other.conflist");
    fs::write(&first, LIST).unwrap();
    fs::write(&later, LIST).unwrap();
    assert!(install(&places).unwrap());
    assert_eq!(types(&first), ["bridge", "portmap", PLUGIN]);
    assert_eq!(types(&later), ["bridge", "portmap"], "runtimes take the first only");
    assert_eq!(fs::read(places.programs.join(PLUGIN)).unwrap(), b"plug-in");
    assert!(!install(&places).unwrap(), "nothing to do");

    fs::write(&first, LIST).unwrap();
    fs::remove_file(places.programs.join(PLUGIN)).unwrap();
    assert!(install(&places).unwrap(), "somebody overwrote it");
    assert_eq!(types(&first), ["bridge", "portmap", PLUGIN]);
}

#[test]
fn a_configuration_of_one_plugin_becomes_a_list_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let single = places.configurations.join("10-pods.conf");
    fs::write(&single, r#"{"cniVersion":"0.3.1","name":"pods","type":"bridge"}"#).unwrap();
    assert!(install(&places).unwrap());
    assert!(!single.exists(), "it would come first");
    assert_eq!(types(&single.with_extension("conflist")), ["bridge", PLUGIN]);
    assert!(!install(&places).unwrap());
}

/// Every file below a folder, with its content.
fn files(folder: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = entries
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn nothing_is_left_of_it_when_it_is_taken_away() {
    let single = r#"{"cniVersion":"0.3.1","name":"pods","type":"bridge"}"#;
    for (name, text) in
        [("10-pods.conflist", LIST), ("10-pods.conf", single), ("10-pods.json", single)]
    {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        fs::write(places.configurations.join(name), text).unwrap();
        fs::write(places.configurations.join("20-other.conf"), "{").unwrap();
        assert!(install(&places).unwrap());
        remove(&places).unwrap();
        let left = files(&places.configurations);
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [name, "20-other.conf"]);
        let read: Value = serde_json::from_str(&left[0].1).unwrap();
        assert_eq!(read, serde_json::from_str::<Value>(text).unwrap(), "{name}");
        assert_eq!(files(&places.programs), [], "{name}");
        remove(&places).unwrap();
        assert_eq!(files(&places.configurations), left, "a second time changes nothing");
    }
}

#[test]
fn a_list_that_others_changed_keeps_what_they_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let single = places.configurations.join("10-pods.conf");
    fs::write(&single, r#"{"cniVersion":"0.3.1","name":"pods","type":"bridge"}"#).unwrap();
    assert!(install(&places).unwrap());
    let list = single.with_extension("conflist");
    let mut read: Value = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
    read["plugins"].as_array_mut().unwrap().insert(1, json!({"type": "portmap"}));
    fs::write(&list, read.to_string()).unwrap();
    remove(&places).unwrap();
    assert_eq!(types(&list), ["bridge", "portmap"]);
    assert_eq!(files(&places.configurations).len(), 1, "the older one is not kept");
}

#[tokio::test(start_paused = true)]
async fn it_comes_when_the_mesh_stays_and_goes_when_the_mesh_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let list = places.configurations.join("10-pods.conflist");
    fs::write(&list, LIST).unwrap();
    let (ready, is_ready) = watch::channel(true);
    let (orders, order) = watch::channel(Order::Unknown);
    let (standing, mut now) = watch::channel(Standing::Unknown);
    let kept = places.clone();
    let task = tokio::spawn(async move { keep(Some(&kept), is_ready, order, &standing).await });
    tokio::time::sleep(PERIOD * 3).await;
    assert_eq!(types(&list), ["bridge", "portmap"], "the controller has not spoken");
    orders.send_replace(Order::Stay);
    now.wait_for(|now| *now == Standing::InPlace).await.unwrap();
    assert_eq!(types(&list).last().unwrap(), PLUGIN);
    ready.send_replace(false);
    tokio::time::sleep(PERIOD).await;
    assert_eq!(*now.borrow(), Standing::InPlace, "it stays while the agent is not ready");
    orders.send_replace(Order::Leave("order".into()));
    now.wait_for(|now| *now == Standing::Removed).await.unwrap();
    assert_eq!(types(&list), ["bridge", "portmap"]);
    task.abort();
}

#[test]
fn what_is_no_configuration_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let path = places.configurations.join("10.conflist");
    for text in ["{", "{}", r#"{"plugins":[]}"#, r#"{"plugins":{}}"#] {
        fs::write(&path, text).unwrap();
        assert!(matches!(install(&places), Err(InstallError::Form(_))), "{text}");
        assert_eq!(fs::read(&path).unwrap(), text.as_bytes());
    }
}
