// SPDX-License-Identifier: Apache-2.0

//! Finds the network namespace of a pod that no CNI plug-in told of.
//!
//! Owns: the scan of `/proc` by cgroup, and the check that a namespace is the
//! pod's. Leaves remembering what was found to [`super::enrol`].
//!
//! Keeps: a namespace that is the node's own, or that holds none of the pod's
//! addresses, is never taken for the pod's: another pod's traffic would carry
//! its identity.

use std::fs::DirEntry;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::sys::NetworkNamespace;

/// Looks for a process of the pod `uid` below `proc`, and opens its namespace.
///
/// The oldest process counts, since younger ones may have left for another
/// namespace. `None` while the pod has no process yet.
#[must_use]
pub fn find(proc: &Path, uid: &str, node: &NetworkNamespace) -> Option<NetworkNamespace> {
    let mut found: Option<(u64, NetworkNamespace)> = None;
    for path in processes(proc, uid) {
        let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
        let Some(started) = start_time(&stat) else { continue };
        let Ok(namespace) = NetworkNamespace::open(&path.join("ns/net")) else { continue };
        let older = found.as_ref().is_none_or(|(best, _)| started < *best);
        if older && namespace.id() != node.id() {
            found = Some((started, namespace));
        }
    }
    found.map(|(_, namespace)| namespace)
}

/// Tells whether the pod `uid` has a process below `proc`.
#[must_use]
pub fn runs(proc: &Path, uid: &str) -> bool {
    processes(proc, uid).next().is_some()
}

/// Folders below `proc` of the processes of the pod `uid`.
fn processes(proc: &Path, uid: &str) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let is_process =
        |entry: &DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    entries.filter(is_process).map(|entry| entry.path()).filter(move |path| {
        std::fs::read_to_string(path.join("cgroup")).is_ok_and(|cgroup| names_pod(&cgroup, uid))
    })
}

/// Tells whether `namespace` has one of `addresses`.
///
/// # Errors
///
/// When the namespace cannot be entered.
pub fn holds_any(namespace: &NetworkNamespace, addresses: &[IpAddr]) -> io::Result<bool> {
    // Only a local address can be bound; nothing is sent.
    namespace.enter(|| addresses.iter().any(|ip| UdpSocket::bind((*ip, 0)).is_ok()))
}

/// Kubelets name cgroups after the pod's UID, with `-` or `_` inside.
fn names_pod(cgroup: &str, uid: &str) -> bool {
    !uid.is_empty() && (cgroup.contains(uid) || cgroup.contains(&uid.replace('-', "_")))
}

/// Start of a process in clock ticks since the boot: column 22.
fn start_time(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit(')').next()?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_name_their_pod() {
        let uid = "8d0aa1d4-1b0e-4f66-a3c1-0d8a4dd0f0b5";
        let systemd = "0::/kubepods.slice/kubepods-burstable.slice/\
            kubepods-burstable-pod8d0aa1d4_1b0e_4f66_a3c1_0d8a4dd0f0b5.slice/cri-containerd-1.scope";
        let cgroupfs = "0::/kubepods/burstable/pod8d0aa1d4-1b0e-4f66-a3c1-0d8a4dd0f0b5/4711";
        let cases = [
            (systemd, uid, true),
            (cgroupfs, uid, true),
            ("0::/system.slice/kubelet.service", uid, false),
            (cgroupfs, "", false),
        ];
        for (cgroup, uid, want) in cases {
            assert_eq!(names_pod(cgroup, uid), want, "{uid} in {cgroup}");
        }
    }

    #[test]
    fn start_times_are_read_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 4711 99 100";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn a_namespace_is_known_by_its_addresses() {
        let here = NetworkNamespace::current().unwrap();
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let foreign: IpAddr = "203.0.113.7".parse().unwrap();
        assert!(holds_any(&here, &[foreign, loopback]).unwrap());
        assert!(!holds_any(&here, &[foreign]).unwrap());
        assert!(!holds_any(&here, &[]).unwrap());
    }
}
