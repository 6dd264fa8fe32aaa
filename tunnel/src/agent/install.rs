// SPDX-License-Identifier: Apache-2.0

//! Keeps the CNI plug-in where the container runtime finds it.
//!
//! Owns: the copy of `waymark-cni` in the node's folder of plug-ins, and its place at the end
//! of the chain in the first network configuration, the one that runtimes take. Both are put
//! back when something overwrites them. What others wrote stays as it is.
//!
//! Keeps: the plug-in joins the chain only once the agent can answer it. The agent's end takes
//! nothing away: pods that start meanwhile wait instead of escaping the mesh.
//!
//! Rule: CNI specification 1.1.0, section 1; order of files as libcni sorts them.
//!
//! Start at [`keep`].

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

/// Name of the plug-in, and its type in configurations.
const PLUGIN: &str = "waymark-cni";
/// How often it is looked whether everything is in place.
const PERIOD: Duration = Duration::from_secs(1);
/// What a configuration of one plug-in is renamed to when it becomes a list.
const SAVED: &str = "waymark-saved";

/// Where the runtime looks, as the agent sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Places {
    /// Folder of plug-ins.
    pub programs: PathBuf,
    /// Folder of network configurations.
    pub configurations: PathBuf,
    /// The plug-in that is copied.
    pub plugin: PathBuf,
    /// The agent's folder, as the plug-in sees it.
    pub agent: PathBuf,
}

/// Why the plug-in is not in place.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// The plug-in cannot be copied.
    #[error("cannot copy the plug-in to {0}")]
    Copy(PathBuf, #[source] io::Error),
    /// There is no configuration yet: the network of the node is not set up.
    #[error("no network configuration in {0} yet")]
    None(PathBuf),
    /// A configuration cannot be read or written.
    #[error("cannot read or write {0}")]
    File(PathBuf, #[source] io::Error),
    /// A configuration is not understood.
    #[error("{0} is no network configuration")]
    Form(PathBuf),
}

/// Puts the plug-in in place once `ready`, and keeps it there.
pub async fn keep(places: Option<&Places>, mut ready: watch::Receiver<bool>) {
    let Some(places) = places else { return std::future::pending().await };
    if ready.wait_for(|ready| *ready).await.is_err() {
        return std::future::pending().await;
    }
    let mut said = String::new();
    loop {
        match install(places) {
            Ok(true) => {
                info!(configurations = %places.configurations.display(), "plug-in put in place")
            }
            Ok(false) => said.clear(),
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    warn!(error = &error as &dyn std::error::Error, "plug-in is not in place");
                }
                said = text;
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Puts everything in place; tells whether anything was not.
fn install(places: &Places) -> Result<bool, InstallError> {
    let copied = copy(places)?;
    let chained = chain(places)?;
    Ok(copied || chained)
}

/// Copies the plug-in unless one of its size is there that is no older.
fn copy(places: &Places) -> Result<bool, InstallError> {
    let target = places.programs.join(PLUGIN);
    let failed = |error| InstallError::Copy(target.clone(), error);
    let own = fs::metadata(&places.plugin).map_err(failed)?;
    if let Ok(there) = fs::metadata(&target)
        && there.len() == own.len()
        && there.modified().ok() >= own.modified().ok()
    {
        return Ok(false);
    }
    // A running plug-in keeps the file that it was started from.
    let fresh = places.programs.join(format!(".{PLUGIN}.new"));
    fs::copy(&places.plugin, &fresh).map_err(failed)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    fs::rename(&fresh, &target).map_err(failed)?;
    Ok(true)
}

/// Appends the plug-in to the first configuration unless it is its last already.
fn chain(places: &Places) -> Result<bool, InstallError> {
    let path = first(&places.configurations)?;
    let failed = |error| InstallError::File(path.clone(), error);
    let text = fs::read(&path).map_err(failed)?;
    let read: Value =
        serde_json::from_slice(&text).map_err(|_| InstallError::Form(path.clone()))?;
    let wanted = chained(&read, &places.agent).ok_or_else(|| InstallError::Form(path.clone()))?;
    if wanted == read {
        return Ok(false);
    }
    let list = path.with_extension("conflist");
    let fresh = path.with_extension("waymark-new");
    let text = serde_json::to_vec_pretty(&wanted).map_err(|error| failed(error.into()))?;
    fs::write(&fresh, text).map_err(failed)?;
    let mode = fs::metadata(&path).map_err(failed)?.permissions();
    fs::set_permissions(&fresh, mode).map_err(failed)?;
    fs::rename(&fresh, &list).map_err(failed)?;
    if list != path {
        // It would come before the list, which stands for it now.
        let saved = format!("{}.{SAVED}", path.display());
        fs::rename(&path, saved).map_err(failed)?;
    }
    Ok(true)
}

/// The configuration that runtimes take: the first by name.
fn first(folder: &Path) -> Result<PathBuf, InstallError> {
    let entries =
        fs::read_dir(folder).map_err(|error| InstallError::File(folder.to_owned(), error))?;
    let ours = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file()
    };
    let found = entries.flatten().map(|entry| entry.path()).filter(ours).min();
    found.ok_or_else(|| InstallError::None(folder.to_owned()))
}

/// The configuration with our plug-in at the end of its chain; `None` if it is none.
fn chained(read: &Value, agent: &Path) -> Option<Value> {
    let own = json!({"type": PLUGIN, "cni_agent_run_dir": agent});
    let mut list = if read.get("plugins").is_some() {
        read.clone()
    } else {
        read.get("type")?;
        let version = read.get("cniVersion").cloned().unwrap_or_else(|| "0.4.0".into());
        json!({"cniVersion": version, "name": read.get("name")?, "plugins": [read]})
    };
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    if plugins.is_empty() {
        return None;
    }
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    plugins.push(own);
    Some(list)
}

#[cfg(test)]
mod tests {
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
}
