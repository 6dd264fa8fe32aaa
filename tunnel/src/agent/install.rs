// SPDX-License-Identifier: Apache-2.0

//! Keeps the CNI plug-in where the container runtime finds it, until the mesh leaves the node.
//!
//! Owns: the copy of `waymark-cni` in the node's folder of plug-ins, and its place at the end
//! of the chain in the first network configuration, the one that runtimes take. Both are put
//! back when something overwrites them. What others wrote stays as it is.
//!
//! Keeps: the plug-in joins the chain only once the agent can answer it, and the controller has
//! said that the mesh stays. The agent's end takes nothing away: pods that start meanwhile wait
//! instead of escaping the mesh.
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

use super::leave::Order;

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

/// Where the plug-in is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Standing {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It is no business of this agent's: it was told of no places.
    NotOurs,
    /// The runtime calls it.
    InPlace,
    /// It could not be put in place, for this reason.
    Missing(String),
    /// Nothing of it is left.
    Removed,
    /// Something of it could not be taken away, for this reason.
    Stuck(String),
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

/// Puts the plug-in in place once `ready`, and keeps it there for as long as the mesh stays;
/// takes it away when the mesh leaves. Says in `standing` where it is.
pub async fn keep(
    places: Option<&Places>,
    mut ready: watch::Receiver<bool>,
    mut order: watch::Receiver<Order>,
    standing: &watch::Sender<Standing>,
) {
    let Some(places) = places else {
        standing.send_replace(Standing::NotOurs);
        return std::future::pending().await;
    };
    loop {
        let now = match &*order.borrow_and_update() {
            Order::Unknown => None,
            Order::Stay if !*ready.borrow_and_update() => None,
            Order::Stay => Some(stay(places)),
            Order::Leave(_) => Some(leave(places)),
        };
        if let Some(now) = now {
            standing.send_if_modified(|standing| {
                let changed = *standing != now;
                if changed {
                    tell(&now, places);
                    *standing = now;
                }
                changed
            });
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            Ok(()) = order.changed() => {}
            Ok(()) = ready.changed() => {}
        }
    }
}

fn tell(now: &Standing, places: &Places) {
    let configurations = places.configurations.display();
    match now {
        Standing::InPlace => info!(%configurations, "plug-in is in place"),
        Standing::Removed => info!(%configurations, "plug-in is taken away"),
        Standing::Missing(reason) => warn!(reason, "plug-in is not in place"),
        Standing::Stuck(reason) => warn!(reason, "plug-in cannot be taken away"),
        Standing::Unknown | Standing::NotOurs => {}
    }
}

fn stay(places: &Places) -> Standing {
    match install(places) {
        Ok(again) => {
            if again {
                info!(configurations = %places.configurations.display(), "plug-in put in place");
            }
            Standing::InPlace
        }
        Err(error) => Standing::Missing(super::text(error)),
    }
}

fn leave(places: &Places) -> Standing {
    match remove(places) {
        Ok(()) => Standing::Removed,
        Err(error) => Standing::Stuck(super::text(error)),
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
    replace(&list, &path, &wanted)?;
    if list != path {
        // It would come before the list, which stands for it now.
        let saved = format!("{}.{SAVED}", path.display());
        fs::rename(&path, saved).map_err(failed)?;
    }
    Ok(true)
}

/// The configuration that runtimes take: the first by name.
fn first(folder: &Path) -> Result<PathBuf, InstallError> {
    let found = configurations(folder)?.into_iter().min();
    found.ok_or_else(|| InstallError::None(folder.to_owned()))
}

fn configurations(folder: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries =
        fs::read_dir(folder).map_err(|error| InstallError::File(folder.to_owned(), error))?;
    let ours = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file()
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(ours).collect())
}

/// Takes everything away that [`install`] ever put there; harmless if nothing is there.
///
/// Out of the chain first: a runtime that finds a name there must find the program, too.
fn remove(places: &Places) -> Result<(), InstallError> {
    for path in configurations(&places.configurations)? {
        unchain(&path)?;
    }
    let leftovers = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(&format!(".{SAVED}")) || name.ends_with(".waymark-new")
    };
    let folder = &places.configurations;
    let entries =
        fs::read_dir(folder).map_err(|error| InstallError::File(folder.clone(), error))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(leftovers) {
        fs::remove_file(&path).map_err(|error| InstallError::File(path, error))?;
    }
    for name in [PLUGIN.to_owned(), format!(".{PLUGIN}.new")] {
        let path = places.programs.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InstallError::File(path, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Takes the plug-in out of one configuration; one that was made a list for it is what it was.
fn unchain(path: &Path) -> Result<(), InstallError> {
    let failed = |error| InstallError::File(path.to_owned(), error);
    let text = fs::read(path).map_err(failed)?;
    // What is not understood holds nothing of ours.
    let Ok(read) = serde_json::from_slice::<Value>(&text) else { return Ok(()) };
    let Some(without) = unchained(&read) else { return Ok(()) };
    let rest = without.get("plugins").and_then(Value::as_array);
    for single in ["conf", "json"].map(|extension| path.with_extension(extension)) {
        let saved = PathBuf::from(format!("{}.{SAVED}", single.display()));
        let before = fs::read(&saved).ok();
        let before = before.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        if before.is_some_and(|before| rest.is_some_and(|rest| *rest == [before])) {
            // Back first, so that there is a configuration at every moment.
            fs::rename(&saved, &single).map_err(failed)?;
            return fs::remove_file(path).map_err(failed);
        }
    }
    replace(path, path, &without)
}

/// The list without our plug-in; `None` if it is not in it.
fn unchained(read: &Value) -> Option<Value> {
    let mut list = read.clone();
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    let all = plugins.len();
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    (plugins.len() < all).then_some(list)
}

/// Writes `value` to `target`, with the rights of `like`; a reader sees the old text or the new.
fn replace(target: &Path, like: &Path, value: &Value) -> Result<(), InstallError> {
    let failed = |error| InstallError::File(target.to_owned(), error);
    let fresh = target.with_extension("waymark-new");
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.into()))?;
    fs::write(&fresh, text).map_err(failed)?;
    let mode = fs::metadata(like).map_err(failed)?.permissions();
    fs::set_permissions(&fresh, mode).map_err(failed)?;
    fs::rename(&fresh, target).map_err(failed)
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
mod tests;
