// SPDX-License-Identifier: Apache-2.0

//! Where the files of a local world lie, as seen from inside it.
//!
//! `/run` of a world is a fresh tmpfs of its own mount namespace, so these fixed
//! paths never meet the host's or those of another world.

use std::path::{Path, PathBuf};

/// Everything of the world lies below this folder.
pub const ROOT: &str = "/run/waymark";
/// Root certificate and keys; seen by the controller alone.
pub const CA: &str = "/run/waymark/ca";
/// What every pod gets to see of the CA: the root certificate.
pub const TRUST: &str = "/run/waymark/trust";
/// Objects that the supervisor writes for the controller.
pub const OBJECTS: &str = "/run/waymark/objects";
/// Objects that the controller writes for the supervisor.
pub const PROVISIONED: &str = "/run/waymark/provisioned";
/// Tokens of the pods, one folder per pod UID.
pub const TOKENS: &str = "/run/waymark/tokens";
/// Output of the containers.
pub const LOGS: &str = "/run/waymark/logs";
/// Files that stand in for those of `/etc` in single pods, one folder per pod UID.
pub const ETC: &str = "/run/waymark/etc";
/// The controller's admin socket.
pub const CONTROLLER_SOCKET: &str = "/run/waymark/controller.sock";
/// The supervisor's own socket: pods to delete, processes to enter.
pub const SUPERVISOR_SOCKET: &str = "/run/waymark/supervisor.sock";
/// Where `ip netns` keeps the names of network namespaces.
pub const NETNS: &str = "/run/netns";

/// Folders that must exist before anything starts.
pub const FOLDERS: [&str; 8] =
    [CA, TRUST, OBJECTS, PROVISIONED, TOKENS, LOGS, ETC, "/run/waymark/nodes"];

/// Folder of the sockets of `node`.
#[must_use]
pub fn node(node: &str) -> PathBuf {
    Path::new(ROOT).join("nodes").join(node)
}

/// The network namespace called `name`.
#[must_use]
pub fn netns(name: &str) -> PathBuf {
    Path::new(NETNS).join(name)
}

/// Where the output of one container goes.
#[must_use]
pub fn log(namespace: &str, pod: &str, container: &str) -> PathBuf {
    Path::new(LOGS).join(format!("{namespace}_{pod}_{container}.log"))
}

/// `path`, a path of the world, as seen from outside through its init process.
#[must_use]
pub fn from_outside(init: i32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{init}/root{path}"))
}
