// SPDX-License-Identifier: Apache-2.0

//! The rules of one pod, as `nft -j` reads them. Pure.
//!
//! Owns: tables, chains, sets and the order of rules, for IPv4 and IPv6 alike.
//! Leaves running them to [`super`].
//!
//! Keeps: each value is one transaction; only the first packet of a connection
//! is ever redirected, so a connection that is open stays as it is, whichever
//! rules come or go; what is exempt is named by address and port.
//!
//! Rule: names, marks and priorities are those of Istio's agent
//! (`cni/pkg/nftables`), so that either agent takes over from the other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

/// Table of redirections.
pub(super) const NAT: &str = "istio-ambient-nat";
/// Table of marks.
pub(super) const MANGLE: &str = "istio-ambient-mangle";
/// Table of connection tracking zones.
pub(super) const RAW: &str = "istio-ambient-raw";

/// Mark of packets that the tunnel sends.
pub const TUNNEL_MARK: u32 = 0x539;
/// Mark of connections that the tunnel opened, and of their replies.
pub const CONNECTION_MARK: u32 = 0x111;
/// Bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;

/// Where a pod sees the kubelet come from (IPv4).
pub const PROBE_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Where a pod sees the kubelet come from (IPv6).
pub const PROBE_SOURCE_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const HBONE_PORT: u16 = 15008;
const DNS_PORT: u16 = 15053;

/// Both families: protocol name, loopback, source of probes, suffix of the set.
const FAMILIES: [Family; 2] = [
    Family {
        protocol: "ip",
        loopback: IpAddr::V4(Ipv4Addr::LOCALHOST),
        probe_source: IpAddr::V4(PROBE_SOURCE_V4),
        address: "ipv4_addr",
        probes: "istio-inpod-probes-v4",
    },
    Family {
        protocol: "ip6",
        loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
        probe_source: IpAddr::V6(PROBE_SOURCE_V6),
        address: "ipv6_addr",
        probes: "istio-inpod-probes-v6",
    },
];

/// What differs between IPv4 and IPv6.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) protocol: &'static str,
    loopback: IpAddr,
    pub(crate) probe_source: IpAddr,
    address: &'static str,
    pub(crate) probes: &'static str,
}

impl Family {
    /// Both of them; rules are always written for both.
    pub(crate) const fn all() -> [Self; 2] {
        FAMILIES
    }

    /// Tells whether `address` is of this family.
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.loopback.is_ipv4()
    }
}

/// What is captured in one pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capture {
    /// Where the kubelet, coming from the probe source, is not captured.
    pub probes: BTreeSet<SocketAddr>,
    /// Name queries go to the tunnel.
    pub dns: bool,
    /// Plain inbound connections go to the tunnel.
    pub inbound: bool,
}

/// The transaction that puts `capture` in force, whatever was there before.
#[must_use]
pub fn capture(capture: &Capture) -> Value {
    let mut script = Script::default();
    script.table(NAT, "nat", -100, "nat");
    for family in Family::all() {
        script.probe_set(NAT, family, &capture.probes);
    }
    if capture.inbound {
        inbound(&mut script);
    }
    outbound(&mut script, capture.dns);
    marks(&mut script);
    zones(&mut script, capture.dns);
    script.finish()
}

/// The transaction that captures nothing new and keeps what is captured alive.
///
/// Open captured connections need address translation until they end, and the
/// kernel translates only while a rule that could translate is loaded: with the
/// last one it unhooks connection tracking and those connections stall. So one
/// rule that no packet matches stays, and the marks stay as they are.
#[must_use]
pub fn release() -> Value {
    let mut script = Script::default();
    script.table(NAT, "nat", -100, "nat");
    for family in Family::all() {
        script.probe_set(NAT, family, &BTreeSet::new());
    }
    for chain in ["istio-prerouting", "istio-output"] {
        script.rule(
            NAT,
            chain,
            vec![
                mark_is("==", TUNNEL_MARK),
                mark_is("==", CONNECTION_MARK),
                is_tcp(),
                redirect(OUTBOUND_PORT),
            ],
        );
    }
    marks(&mut script);
    zones(&mut script, false);
    script.finish()
}

/// The transaction that takes everything away; harmless if nothing is there.
#[must_use]
pub fn removal() -> Value {
    let mut script = Script::default();
    for table in [NAT, MANGLE, RAW] {
        script.add("table", json!({"family": "inet", "name": table}));
        script.push(json!({"delete": {"table": {"family": "inet", "name": table}}}));
    }
    script.finish()
}

/// What `nft -j list ruleset` printed of our tables, without what traffic changes.
///
/// Two listings are equal exactly if the rules are; the order of tables means nothing.
#[must_use]
pub fn essence(listing: &Value) -> Value {
    let objects = listing.get("nftables").and_then(Value::as_array);
    let mut ours: Vec<(String, &Value)> = objects
        .into_iter()
        .flatten()
        .filter_map(|object| Some((table_of(object)?, object)))
        .filter(|(table, _)| [NAT, MANGLE, RAW].contains(&table.as_str()))
        .collect();
    ours.sort_by(|(one, _), (other, _)| one.cmp(other));
    ours.into_iter().map(|(_, object)| without_volatile(object.clone())).collect()
}

/// Name of the table that a listed object is, or belongs to.
fn table_of(object: &Value) -> Option<String> {
    let (kind, body) = object.as_object()?.iter().next()?;
    let name = if kind == "table" { "name" } else { "table" };
    body.get(name)?.as_str().map(str::to_owned)
}

fn without_volatile(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.remove("handle");
            if let Some(counter) = map.get_mut("counter") {
                *counter = Value::Null;
            }
            for child in map.values_mut() {
                *child = without_volatile(child.take());
            }
        }
        Value::Array(items) => {
            for item in items.iter_mut() {
                *item = without_volatile(item.take());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

fn inbound(script: &mut Script) {
    for family in Family::all() {
        script.rule(
            NAT,
            "istio-prerouting",
            vec![
                compare("==", field(family.protocol, "saddr"), json!(family.probe_source)),
                is_probed(family),
                counter(),
                accept(),
            ],
        );
    }
    for family in Family::all() {
        script.rule(
            NAT,
            "istio-prerouting",
            vec![
                compare("!=", field(family.protocol, "daddr"), json!(family.loopback)),
                compare("!=", field("tcp", "dport"), json!(HBONE_PORT)),
                mark_is("!=", TUNNEL_MARK),
                opens_connection(),
                counter(),
                redirect(INBOUND_PORT),
            ],
        );
    }
}

fn outbound(script: &mut Script, dns: bool) {
    let chain = "istio-output";
    let not_loopback =
        |family: Family| compare("!=", field(family.protocol, "daddr"), json!(family.loopback));
    if dns {
        let leaves = compare("!=", meta("oifname"), json!("lo"));
        let query = compare("==", field("udp", "dport"), json!(53));
        let rule = vec![leaves, query, mark_is("!=", TUNNEL_MARK), counter(), redirect(DNS_PORT)];
        script.rule(NAT, chain, rule);
        for family in Family::all() {
            let query = compare("==", field("tcp", "dport"), json!(53));
            let mine = mark_is("!=", TUNNEL_MARK);
            let rule = vec![
                not_loopback(family),
                query,
                mine,
                opens_connection(),
                counter(),
                redirect(DNS_PORT),
            ];
            script.rule(NAT, chain, rule);
        }
    }
    script.rule(NAT, chain, vec![is_tcp(), mark_is("==", CONNECTION_MARK), counter(), accept()]);
    for family in Family::all() {
        let itself = compare("==", meta("oifname"), json!("lo"));
        script.rule(NAT, chain, vec![itself, not_loopback(family), counter(), accept()]);
    }
    for family in Family::all() {
        let mine = mark_is("!=", TUNNEL_MARK);
        let rule = vec![
            not_loopback(family),
            mine,
            opens_connection(),
            counter(),
            redirect(OUTBOUND_PORT),
        ];
        script.rule(NAT, chain, rule);
    }
}

/// Connections that the tunnel opens towards the application carry the address
/// of their caller; the mark brings the replies back to the tunnel.
fn marks(script: &mut Script) {
    script.table(MANGLE, "filter", -150, "route");
    let keep = json!({"&": [{"ct": {"key": "mark"}}, !MARK_MASK]});
    let remember = json!({"mangle": {
        "key": {"ct": {"key": "mark"}},
        "value": {"|": [keep, CONNECTION_MARK]},
    }});
    let recall =
        json!({"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}});
    let ours = json!({"&": [{"ct": {"key": "mark"}}, MARK_MASK]});
    script.rule(MANGLE, "istio-prerouting", vec![mark_is("==", TUNNEL_MARK), counter(), remember]);
    script.rule(
        MANGLE,
        "istio-output",
        vec![compare("==", ours, json!(CONNECTION_MARK)), counter(), recall],
    );
}

/// The tunnel's own queries get a zone of their own: they may have the very
/// ports of the application's query that they answer.
fn zones(script: &mut Script, dns: bool) {
    script.table(RAW, "filter", -300, "filter");
    if !dns {
        return;
    }
    let zone = json!({"mangle": {"key": {"ct": {"key": "zone"}}, "value": 1}});
    for (chain, side, op) in [("istio-output", "dport", "=="), ("istio-prerouting", "sport", "!=")]
    {
        let query = compare("==", field("udp", side), json!(53));
        script.rule(RAW, chain, vec![query, mark_is(op, TUNNEL_MARK), counter(), zone.clone()]);
    }
}

/// Commands of one transaction, in order.
#[derive(Debug, Default)]
pub(crate) struct Script(Vec<Value>);

impl Script {
    pub(crate) fn push(&mut self, command: Value) {
        self.0.push(command);
    }

    pub(crate) fn add(&mut self, kind: &str, body: Value) {
        self.push(json!({"add": {kind: body}}));
    }

    /// An empty table: two hooked chains, each jumping to one of ours.
    fn table(&mut self, table: &str, prerouting: &str, priority: i32, output: &str) {
        self.add("table", json!({"family": "inet", "name": table}));
        for (hook, kind) in [("prerouting", prerouting), ("output", output)] {
            let target = format!("istio-{hook}");
            self.chain(
                table,
                json!({
                    "family": "inet", "table": table, "name": hook, "type": kind,
                    "hook": hook, "prio": priority, "policy": "accept",
                }),
            );
            self.chain(table, json!({"family": "inet", "table": table, "name": target}));
            self.rule(table, hook, vec![json!({"jump": {"target": target}})]);
        }
    }

    /// Makes a chain, or empties the one that is there.
    pub(crate) fn chain(&mut self, table: &str, chain: Value) {
        let name = chain.get("name").cloned().unwrap_or_default();
        self.add("chain", chain);
        self.push(json!({"flush": {"chain": {"family": "inet", "table": table, "name": name}}}));
    }

    /// The set of exempt (address, port) pairs of one family, filled anew.
    pub(crate) fn probe_set(&mut self, table: &str, family: Family, probes: &BTreeSet<SocketAddr>) {
        let name = family.probes;
        let set = json!({
            "family": "inet", "table": table, "name": name,
            "type": [family.address, "inet_service"],
        });
        self.add("set", set);
        self.push(json!({"flush": {"set": {"family": "inet", "table": table, "name": name}}}));
        let elements: Vec<Value> = probes
            .iter()
            .filter(|probe| family.holds(probe.ip()))
            .map(|probe| json!({"concat": [probe.ip(), probe.port()]}))
            .collect();
        if !elements.is_empty() {
            let element = json!({"family": "inet", "table": table, "name": name, "elem": elements});
            self.add("element", element);
        }
    }

    pub(crate) fn rule(&mut self, table: &str, chain: &str, expressions: Vec<Value>) {
        let rule = json!({
            "family": "inet", "table": table, "chain": chain, "expr": expressions,
        });
        self.add("rule", rule);
    }

    pub(crate) fn finish(self) -> Value {
        json!({"nftables": self.0})
    }
}

pub(crate) fn compare(op: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

pub(crate) fn field(protocol: &str, name: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": name}})
}

pub(crate) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

pub(crate) fn counter() -> Value {
    json!({"counter": null})
}

/// Destination address and port are a pair of the family's set.
pub(crate) fn is_probed(family: Family) -> Value {
    let pair = json!({"concat": [field(family.protocol, "daddr"), field("tcp", "dport")]});
    compare("==", pair, json!(format!("@{}", family.probes)))
}

fn accept() -> Value {
    json!({"accept": null})
}

fn redirect(port: u16) -> Value {
    json!({"redirect": {"port": port}})
}

fn is_tcp() -> Value {
    compare("==", meta("l4proto"), json!("tcp"))
}

fn mark_is(op: &str, mark: u32) -> Value {
    compare(op, json!({"&": [meta("mark"), MARK_MASK]}), json!(mark))
}

/// The first packet of a connection, and no later one.
fn opens_connection() -> Value {
    let flags = json!({"&": [field("tcp", "flags"), ["fin", "syn", "rst", "ack"]]});
    compare("==", flags, json!("syn"))
}

#[cfg(test)]
mod tests;
