// SPDX-License-Identifier: Apache-2.0

//! The node's side of the kubelet's exemption.
//!
//! Owns: the rule in the node's own namespace that gives the kubelet's probes
//! an address by which pods know them. Leaves what pods do with it to
//! [`super::capture`].
//!
//! Keeps: the address is given to connections of the kubelet's user towards
//! (address, port) pairs in the sets, and to nothing else. A root process that
//! calls any other port of a pod is an ordinary caller.
//!
//! Rule: chain and priority as Istio's agent has them (host rules, nftables).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::capture::rules::{Family, Script, compare, counter, is_probed, meta};
use super::capture::{CaptureError, transact};
use crate::sys::NetworkNamespace;

const TABLE: &str = "istio-ambient-nat";
const CHAIN: &str = "postrouting";

/// Makes `probes` the pairs that the kubelet, which runs as `user`, may call.
///
/// # Errors
///
/// Nothing was changed then.
pub async fn apply(
    node: &NetworkNamespace,
    probes: &BTreeSet<SocketAddr>,
    user: u32,
) -> Result<(), CaptureError> {
    let mut script = Script::default();
    script.add("table", json!({"family": "inet", "name": TABLE}));
    for family in Family::all() {
        script.probe_set(TABLE, family, probes);
    }
    script.chain(
        TABLE,
        json!({
            "family": "inet", "table": TABLE, "name": CHAIN, "type": "nat",
            "hook": "postrouting", "prio": 100, "policy": "accept",
        }),
    );
    for family in Family::all() {
        let kubelet = compare("==", meta("skuid"), json!(user));
        let source = json!({"snat": {"family": family.protocol, "addr": family.probe_source}});
        script.rule(TABLE, CHAIN, vec![is_probed(family), kubelet, counter(), source]);
    }
    transact(node, &script.finish()).await
}

/// Takes the rule away; harmless if it is not there.
///
/// # Errors
///
/// When `nft` refuses.
pub async fn remove(node: &NetworkNamespace) -> Result<(), CaptureError> {
    let mut script = Script::default();
    script.add("table", json!({"family": "inet", "name": TABLE}));
    script.push(json!({"delete": {"table": {"family": "inet", "name": TABLE}}}));
    transact(node, &script.finish()).await
}

/// The exemption of all pods of a node, kept in step with them.
#[derive(Debug)]
pub struct HostProbes {
    node: NetworkNamespace,
    user: u32,
    wanted: Mutex<Wanted>,
    /// How many changes the rule in force holds; held while it is set.
    in_force: tokio::sync::Mutex<u64>,
}

#[derive(Debug, Default)]
struct Wanted {
    pods: BTreeMap<Arc<str>, BTreeSet<SocketAddr>>,
    changes: u64,
}

impl HostProbes {
    /// No exemption yet; the kubelet runs as `user` in the namespace `node`.
    #[must_use]
    pub fn new(node: NetworkNamespace, user: u32) -> Self {
        Self { node, user, wanted: Mutex::default(), in_force: tokio::sync::Mutex::default() }
    }

    /// Makes `probes` the pairs of one pod. Pods that change while the rule is being set share
    /// the next one.
    ///
    /// # Errors
    ///
    /// When the rule cannot be set; it is tried again with the next change.
    pub async fn set(
        &self,
        uid: &Arc<str>,
        probes: BTreeSet<SocketAddr>,
    ) -> Result<(), CaptureError> {
        let (before, number) = {
            let mut wanted = self.wanted();
            let known = wanted.pods.get(uid);
            if known == Some(&probes) || (probes.is_empty() && known.is_none()) {
                return Ok(());
            }
            wanted.changes += 1;
            (wanted.pods.insert(Arc::clone(uid), probes), wanted.changes)
        };
        let mut in_force = self.in_force.lock().await;
        if *in_force >= number {
            return Ok(());
        }
        let (all, newest) = {
            let wanted = self.wanted();
            (wanted.pods.values().flatten().copied().collect(), wanted.changes)
        };
        let outcome = apply(&self.node, &all, self.user).await;
        match &outcome {
            Ok(()) => *in_force = newest,
            Err(_) => {
                let mut wanted = self.wanted();
                match before {
                    Some(before) => wanted.pods.insert(Arc::clone(uid), before),
                    None => wanted.pods.remove(uid),
                };
            }
        }
        outcome
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the node's rule away, whatever pairs there are; harmless if it is not there.
    ///
    /// # Errors
    ///
    /// When `nft` refuses.
    pub async fn remove(&self) -> Result<(), CaptureError> {
        let _nobody_sets = self.in_force.lock().await;
        remove(&self.node).await?;
        self.wanted().pods.clear();
        Ok(())
    }

    /// Takes back the pairs of one pod.
    ///
    /// # Errors
    ///
    /// As [`Self::set`].
    pub async fn forget(&self, uid: &Arc<str>) -> Result<(), CaptureError> {
        self.set(uid, BTreeSet::new()).await?;
        self.wanted().pods.remove(uid);
        Ok(())
    }
}
