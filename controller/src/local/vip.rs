// SPDX-License-Identifier: Apache-2.0

//! Service addresses of a local world: what kube-proxy does on a node, by nftables.
//!
//! Owns: the table `services` in the root namespace and in every node's. A connection to a
//! Service or LoadBalancer address goes to one of its endpoints, picked at random; one that
//! no endpoint stands behind is refused at once.
//!
//! Keeps: a change is one transaction and touches only the Services that differ; the base
//! chains stay, so flows that run are translated on without a gap.
//!
//! Start at [`Table`], [`setup`] and [`change`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use serde_json::{Value, json};

use super::address;
use super::netns::{self, NetnsError};

/// Name of the nftables table, in family `inet`.
const TABLE: &str = "services";

/// Transport protocol of a Service port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The protocol of a Kubernetes port; none for those that are not served.
    #[must_use]
    pub fn of(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// An address and port that clients connect to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Front {
    /// Service or LoadBalancer address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl Front {
    /// Name of the chain that picks its endpoint.
    fn chain(&self) -> String {
        let address = self.address.to_string().replace(':', "-");
        format!("{}-{address}-{}", self.protocol.text(), self.port)
    }

    fn map(&self) -> &'static str {
        if self.address.is_ipv4() { "fronts4" } else { "fronts6" }
    }

    fn element(&self) -> Value {
        json!({"concat": [self.address.to_string(), self.protocol.text(), self.port]})
    }
}

/// All fronts with their ready endpoints, of the same family each.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Table {
    fronts: BTreeMap<Front, Vec<SocketAddr>>,
}

impl Table {
    /// Adds a front; one without endpoints is left out, so that it is refused.
    pub fn insert(&mut self, front: Front, endpoints: &[SocketAddr]) {
        let same_family = |endpoint: &&SocketAddr| endpoint.is_ipv4() == front.address.is_ipv4();
        let endpoints: Vec<SocketAddr> = endpoints.iter().filter(same_family).copied().collect();
        if !endpoints.is_empty() {
            self.fronts.insert(front, endpoints);
        }
    }

    /// Addresses of endpoints: one that reaches itself through a front needs masquerade.
    fn loops(&self) -> BTreeSet<IpAddr> {
        self.fronts.values().flatten().map(SocketAddr::ip).collect()
    }
}

/// Makes the empty table in every namespace of `nodes` and in that of this process.
///
/// # Errors
///
/// See [`NetnsError`].
pub fn setup(nodes: &[String]) -> Result<(), NetnsError> {
    apply_everywhere(nodes, &setup_commands())
}

/// Brings the tables of `nodes` and of this process's namespace from `old` to `new`.
///
/// # Errors
///
/// See [`NetnsError`]; a namespace that refused keeps what it had.
pub fn change(nodes: &[String], old: &Table, new: &Table) -> Result<(), NetnsError> {
    let commands = change_commands(old, new);
    if commands.is_empty() { Ok(()) } else { apply_everywhere(nodes, &commands) }
}

fn apply_everywhere(nodes: &[String], commands: &[Value]) -> Result<(), NetnsError> {
    let text = json!({ "nftables": commands }).to_string();
    std::thread::scope(|scope| {
        let text = &text;
        let others: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(move || netns::inside(node, || nft(text))?))
            .collect();
        let mut done = nft(text);
        for other in others {
            let result = other.join().unwrap_or_else(|_panic| {
                Err(NetnsError::Refused { tool: "nft", message: "its thread failed".to_owned() })
            });
            done = done.and(result);
        }
        done
    })
}

fn nft(text: &str) -> Result<(), NetnsError> {
    let mut command = Command::new("nft");
    command.args(["-j", "-f", "-"]);
    netns::feed("nft", command, text)
}

fn add(what: &str, mut body: Value) -> Value {
    with_table(&mut body);
    json!({"add": { what: body }})
}

fn other(verb: &str, what: &str, mut body: Value) -> Value {
    with_table(&mut body);
    json!({verb: { what: body }})
}

fn with_table(body: &mut Value) {
    if let Value::Object(map) = body {
        map.insert("family".to_owned(), "inet".into());
        map.insert("table".to_owned(), TABLE.into());
    }
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

/// The two families, as nftables spells them.
const FAMILIES: [(&str, &str, &str, &str); 2] =
    [("ip", "ipv4_addr", "fronts4", "loops4"), ("ip6", "ipv6_addr", "fronts6", "loops6")];

fn setup_commands() -> Vec<Value> {
    let mut commands = vec![json!({"add": {"table": {"family": "inet", "name": TABLE}}})];
    for (_, kind, fronts, loops) in FAMILIES {
        commands.push(add(
            "map",
            json!({"name": fronts, "type": [kind, "inet_proto", "inet_service"], "map": "verdict"}),
        ));
        commands.push(add("set", json!({"name": loops, "type": [kind, kind]})));
    }
    let chains = [
        ("prerouting", "nat", "prerouting", -100),
        ("output", "nat", "output", -100),
        ("postrouting", "nat", "postrouting", 100),
        ("refuse-forward", "filter", "forward", 0),
        ("refuse-output", "filter", "output", 0),
    ];
    for (name, kind, hook, priority) in chains {
        commands.push(add(
            "chain",
            json!({"name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept"}),
        ));
    }
    for (family, _, fronts, loops) in FAMILIES {
        let key = json!({"concat": [payload(family, "daddr"), {"meta": {"key": "l4proto"}}, payload("th", "dport")]});
        for chain in ["prerouting", "output"] {
            let expr = json!([{"vmap": {"key": key, "data": format!("@{fronts}")}}]);
            commands.push(add("rule", json!({"chain": chain, "expr": expr})));
        }
        let ends = json!({"concat": [payload(family, "saddr"), payload(family, "daddr")]});
        let expr = json!([
            {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}},
            {"match": {"op": "==", "left": ends, "right": format!("@{loops}")}},
            {"masquerade": null}
        ]);
        commands.push(add("rule", json!({"chain": "postrouting", "expr": expr})));
    }
    commands.extend(refusals());
    commands
}

/// What still goes to a Service address after translation has nobody behind it.
fn refusals() -> Vec<Value> {
    let prefix =
        |(address, length): (String, u8)| json!({"prefix": {"addr": address, "len": length}});
    let ranges = [
        ("ip", prefix((address::SERVICES_V4.0.to_string(), address::SERVICES_V4.1))),
        ("ip", prefix((address::BALANCERS_V4.0.to_string(), address::BALANCERS_V4.1))),
        ("ip6", prefix((address::SERVICES_V6.0.to_string(), address::SERVICES_V6.1))),
        ("ip6", prefix((address::BALANCERS_V6.0.to_string(), address::BALANCERS_V6.1))),
    ];
    let mut commands = Vec::new();
    for (family, range) in &ranges {
        let reached =
            json!({"match": {"op": "==", "left": payload(family, "daddr"), "right": range}});
        let tcp =
            json!({"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}});
        for chain in ["refuse-forward", "refuse-output"] {
            let reset = json!([reached, tcp, {"reject": {"type": "tcp reset"}}]);
            let rest = json!([reached, {"reject": {"type": "icmpx", "expr": "port-unreachable"}}]);
            commands.push(add("rule", json!({"chain": chain, "expr": reset})));
            commands.push(add("rule", json!({"chain": chain, "expr": rest})));
        }
    }
    commands
}

fn change_commands(old: &Table, new: &Table) -> Vec<Value> {
    let mut commands = Vec::new();
    for (front, endpoints) in &new.fronts {
        let before = old.fronts.get(front);
        if before == Some(endpoints) {
            continue;
        }
        let chain = front.chain();
        let verb = if before.is_some() { "flush" } else { "add" };
        commands.push(other(verb, "chain", json!({"name": chain})));
        commands.extend(endpoint_rules(front, endpoints));
        if before.is_none() {
            let element = json!([[front.element(), {"goto": {"target": chain}}]]);
            commands.push(add("element", json!({"name": front.map(), "elem": element})));
        }
    }
    for front in old.fronts.keys().filter(|front| !new.fronts.contains_key(front)) {
        let chain = front.chain();
        let element = json!([[front.element(), {"goto": {"target": chain}}]]);
        commands.push(other("delete", "element", json!({"name": front.map(), "elem": element})));
        commands.push(other("flush", "chain", json!({"name": chain})));
        commands.push(other("delete", "chain", json!({"name": chain})));
    }
    let (before, after) = (old.loops(), new.loops());
    let set = |address: &IpAddr| if address.is_ipv4() { "loops4" } else { "loops6" };
    let both = |address: &IpAddr| json!([{"concat": [address.to_string(), address.to_string()]}]);
    for address in after.difference(&before) {
        commands.push(add("element", json!({"name": set(address), "elem": both(address)})));
    }
    for address in before.difference(&after) {
        commands.push(other(
            "delete",
            "element",
            json!({"name": set(address), "elem": both(address)}),
        ));
    }
    commands
}

/// One rule per endpoint; the first takes 1 of n, the next 1 of n-1, the last all that is left.
fn endpoint_rules(front: &Front, endpoints: &[SocketAddr]) -> Vec<Value> {
    let family = if front.address.is_ipv4() { "ip" } else { "ip6" };
    let protocol = json!({"match": {
        "op": "==", "left": {"meta": {"key": "l4proto"}}, "right": front.protocol.text()
    }});
    let rule = |(index, endpoint): (usize, &SocketAddr)| {
        let mut expr = vec![protocol.clone()];
        let left = endpoints.len() - index;
        if left > 1 {
            let roll = json!({"numgen": {"mode": "random", "mod": left, "offset": 0}});
            expr.push(json!({"match": {"op": "==", "left": roll, "right": 0}}));
        }
        let address = endpoint.ip().to_string();
        expr.push(json!({"dnat": {"family": family, "addr": address, "port": endpoint.port()}}));
        add("rule", json!({"chain": front.chain(), "expr": expr}))
    };
    endpoints.iter().enumerate().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(fronts: &[(&str, u16, &[&str])]) -> Table {
        let mut table = Table::default();
        for (address, port, endpoints) in fronts {
            let front =
                Front { address: address.parse().unwrap(), protocol: Protocol::Tcp, port: *port };
            let endpoints: Vec<SocketAddr> =
                endpoints.iter().map(|text| text.parse().unwrap()).collect();
            table.insert(front, &endpoints);
        }
        table
    }

    /// `verb what name` of each command.
    fn told(old: &Table, new: &Table) -> Vec<String> {
        let line = |command: &Value| {
            let (verb, body) = command.as_object().unwrap().iter().next().unwrap();
            let (what, body) = body.as_object().unwrap().iter().next().unwrap();
            let name = body.get("name").or(body.get("chain")).and_then(Value::as_str).unwrap();
            format!("{verb} {what} {name}")
        };
        change_commands(old, new).iter().map(line).collect()
    }

    #[test]
    fn only_services_that_differ_are_touched() {
        let one = ("10.96.0.1", 80, &["10.244.1.2:8080"][..]);
        let both = table(&[one, ("fd00:10:96::2", 80, &["[fd00::2]:8080", "[fd00::3]:8080"])]);
        let only = table(&[one]);
        let none = Table::default();
        assert_eq!(told(&both, &both), [] as [&str; 0]);
        assert_eq!(
            told(&none, &only),
            [
                "add chain tcp-10.96.0.1-80",
                "add rule tcp-10.96.0.1-80",
                "add element fronts4",
                "add element loops4"
            ]
        );
        assert_eq!(
            told(&both, &only),
            [
                "delete element fronts6",
                "flush chain tcp-fd00-10-96--2-80",
                "delete chain tcp-fd00-10-96--2-80",
                "delete element loops6",
                "delete element loops6"
            ]
        );
        let moved = table(&[("10.96.0.1", 80, &["10.244.1.2:8080", "10.244.2.2:8080"])]);
        assert_eq!(
            told(&only, &moved),
            [
                "flush chain tcp-10.96.0.1-80",
                "add rule tcp-10.96.0.1-80",
                "add rule tcp-10.96.0.1-80",
                "add element loops4"
            ]
        );
    }

    #[test]
    fn a_service_without_endpoints_of_its_family_is_left_to_the_refusal() {
        let table = table(&[("10.96.0.1", 80, &["[fd00::2]:8080"]), ("10.96.0.2", 80, &[])]);
        assert_eq!(table, Table::default());
    }
}
