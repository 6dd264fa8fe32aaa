// SPDX-License-Identifier: Apache-2.0

//! Finds the network namespace of a pod that no CNI plug-in told of.
//!
//! Owns: the scan of `/proc` by cgroup and by mounts, and the check that a namespace is the
//! pod's. Leaves remembering what was found to [`super::enrol`].
//!
//! Keeps: a namespace that is the node's own, or that holds none of the pod's
//! addresses, is never taken for the pod's: another pod's traffic would carry
//! its identity.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use crate::sys::NetworkNamespace;

/// Looks for processes of the pods `uids` below `proc`, once for all of them, and opens their
/// namespaces. Reads files of every process that is not in the node's own namespace: not for a
/// thread that serves others.
///
/// The oldest process of a pod counts, since younger ones may have left for another
/// namespace. A pod without a process is left out.
#[must_use]
pub fn find(
    proc: &Path,
    uids: &BTreeSet<Arc<str>>,
    node: &NetworkNamespace,
) -> BTreeMap<Arc<str>, NetworkNamespace> {
    let mut found: BTreeMap<Arc<str>, (u64, NetworkNamespace)> = BTreeMap::new();
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !is_process {
            continue;
        }
        let Ok(namespace) = NetworkNamespace::open(&path.join("ns/net")) else { continue };
        // Most processes are in the node's own: whose they are does not matter.
        if namespace.id() == node.id() {
            continue;
        }
        let Some(uid) = pod_of(&path).and_then(|uid| uids.get(&*uid)) else { continue };
        let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
        let Some(started) = start_time(&stat) else { continue };
        if found.get(uid).is_none_or(|(best, _)| started < *best) {
            found.insert(Arc::clone(uid), (started, namespace));
        }
    }
    found.into_iter().map(|(uid, (_, namespace))| (uid, namespace)).collect()
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

/// UID of the pod whose process has this folder, if it is one of a pod.
fn pod_of(process: &Path) -> Option<String> {
    let read = |file| std::fs::read_to_string(process.join(file)).ok();
    let by_cgroup = read("cgroup").and_then(|cgroup| pod_of_cgroup(&cgroup));
    by_cgroup.or_else(|| pod_of_mounts(&read("mountinfo")?))
}

/// Kubelets name cgroups after the pod's UID, behind `pod`, with `-` or `_` inside.
fn pod_of_cgroup(cgroup: &str) -> Option<String> {
    let folders = cgroup.lines().flat_map(|line| line.split('/'));
    folders.rev().find_map(|folder| {
        let uid = folder.rsplit_once("pod")?.1;
        let uid = uid.strip_suffix(".slice").unwrap_or(uid).replace('_', "-");
        (!uid.is_empty()).then_some(uid)
    })
}

/// Kubelets without a cgroup for each pod (`cgroupsPerQOS: false`) still mount files of the pod's
/// own folder into its containers: `/etc/hosts`, and what takes the termination message.
///
/// Rule: column 4 of a line is what of its file system is mounted (Linux
/// `Documentation/filesystems/proc.rst`, 3.5). Where it is mounted does not count: another pod
/// may see the folders of all pods.
fn pod_of_mounts(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (_, inside) = line.split(' ').nth(3)?.rsplit_once("/pods/")?;
        let (uid, file) = inside.split_once('/')?;
        (file == "etc-hosts" || file.starts_with("containers/")).then(|| uid.to_owned())
    })
}

/// Start of a process in clock ticks since the boot: column 22.
fn start_time(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit(')').next()?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8d0aa1d4-1b0e-4f66-a3c1-0d8a4dd0f0b5";

    #[test]
    fn cgroups_name_their_pod() {
        let systemd = "0::/kubepods.slice/kubepods-burstable.slice/\
            kubepods-burstable-pod8d0aa1d4_1b0e_4f66_a3c1_0d8a4dd0f0b5.slice/cri-containerd-1.scope";
        let cgroupfs = format!("0::/kubepods/burstable/pod{UID}/4711");
        let first = format!("12:pids:/kubepods/pod{UID}/4711\n0::/\n");
        let cases = [
            (systemd, Some(UID)),
            (&cgroupfs, Some(UID)),
            (&first, Some(UID)),
            ("0::/system.slice/kubelet.service", None),
            ("", None),
        ];
        for (cgroup, want) in cases {
            assert_eq!(pod_of_cgroup(cgroup).as_deref(), want, "{cgroup}");
        }
    }

    #[test]
    fn mounts_of_the_pods_own_folder_name_it() {
        let line = |root: &str, at: &str| {
            format!("721 698 8:1 {root} {at} rw,relatime - ext4 /dev/sda1 rw\n")
        };
        let proc = line("/", "/proc");
        let folder = format!("/var/lib/kubelet/pods/{UID}");
        let hosts = line(&format!("{folder}/etc-hosts"), "/etc/hosts");
        // The file system may begin at the kubelet's folder.
        let log = line(&format!("/pods/{UID}/containers/web/1b0e"), "/dev/termination-log");
        let volume = format!("{folder}/volumes/kubernetes.io~projected/token");
        let cases = [
            (proc.clone() + &hosts, Some(UID)),
            (proc.clone() + &log, Some(UID)),
            (proc, None),
            (line("/", &volume) + &line(&volume, "/host/token"), None),
        ];
        for (mountinfo, want) in cases {
            assert_eq!(pod_of_mounts(&mountinfo).as_deref(), want, "{mountinfo}");
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
