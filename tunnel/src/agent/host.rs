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

use std::collections::BTreeSet;
use std::net::SocketAddr;

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
