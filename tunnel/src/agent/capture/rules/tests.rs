// SPDX-License-Identifier: Apache-2.0

//! What must hold for every ruleset that is made; the kernel's view of them is
//! tested in real namespaces.

use super::*;

fn all_captures() -> Vec<(String, Capture)> {
    let probes: BTreeSet<SocketAddr> =
        ["10.244.1.5:8080", "[fd00:10:244:1::5]:8080"].map(|text| text.parse().unwrap()).into();
    let mut all = Vec::new();
    for dns in [false, true] {
        for inbound in [false, true] {
            for probes in [BTreeSet::new(), probes.clone()] {
                let name = format!("dns {dns}, inbound {inbound}, {} probes", probes.len());
                all.push((name, Capture { probes, dns, inbound }));
            }
        }
    }
    all
}

fn rules_of(script: &Value) -> Vec<(String, Vec<Value>)> {
    let commands = script["nftables"].as_array().unwrap();
    commands
        .iter()
        .filter_map(|command| command.get("add")?.get("rule"))
        .map(|rule| {
            let chain = format!("{}/{}", rule["table"], rule["chain"]).replace('"', "");
            (chain, rule["expr"].as_array().unwrap().clone())
        })
        .collect()
}

fn has(rule: &[Value], verb: &str) -> bool {
    rule.iter().any(|expression| expression.get(verb).is_some())
}

#[test]
fn only_first_packets_of_a_connection_are_redirected() {
    for (name, capture) in all_captures() {
        for (chain, rule) in rules_of(&super::capture(&capture)) {
            let udp = rule.contains(&compare("==", field("udp", "dport"), json!(53)));
            if has(&rule, "redirect") && !udp {
                assert!(rule.contains(&opens_connection()), "{name}: {chain}: {rule:?}");
            }
        }
    }
}

#[test]
fn packets_of_the_tunnel_are_never_redirected() {
    for (name, capture) in all_captures() {
        for (chain, rule) in rules_of(&super::capture(&capture)) {
            if has(&rule, "redirect") {
                assert!(rule.contains(&mark_is("!=", TUNNEL_MARK)), "{name}: {chain}: {rule:?}");
            }
        }
    }
}

#[test]
fn each_rule_of_one_family_has_its_twin_in_the_other() {
    let swap = |rule: &[Value]| {
        let text = Value::Array(rule.to_vec()).to_string();
        text.replace("\"ip\"", "\"ip6\"")
            .replace("127.0.0.1", "::1")
            .replace("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
            .replace("probes-v4", "probes-v6")
    };
    for (name, capture) in all_captures() {
        let rules = rules_of(&super::capture(&capture));
        let texts: Vec<String> =
            rules.iter().map(|(_, rule)| Value::Array(rule.clone()).to_string()).collect();
        for (_, rule) in rules.iter().filter(|(_, rule)| format!("{rule:?}").contains("\"ip\"")) {
            assert!(texts.contains(&swap(rule)), "{name}: no IPv6 twin of {rule:?}");
        }
    }
}

#[test]
fn the_kubelets_address_alone_exempts_nothing() {
    for (name, capture) in all_captures() {
        for (chain, rule) in rules_of(&super::capture(&capture)) {
            let text = format!("{rule:?}");
            if text.contains("169.254.7.127") || text.contains("fd16:9254:7127") {
                assert!(text.contains("@istio-inpod-probes-v"), "{name}: {chain}: {text}");
            }
        }
    }
}

#[test]
fn probes_go_to_the_set_of_their_family() {
    let (_, capture) = all_captures().pop().unwrap();
    let script = super::capture(&capture);
    let elements: Vec<&Value> = script["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|command| command.get("add")?.get("element"))
        .collect();
    assert_eq!(elements.len(), 2);
    assert_eq!(elements[0]["name"], "istio-inpod-probes-v4");
    assert_eq!(elements[0]["elem"], json!([{"concat": ["10.244.1.5", 8080]}]));
    assert_eq!(elements[1]["name"], "istio-inpod-probes-v6");
    assert_eq!(elements[1]["elem"], json!([{"concat": ["fd00:10:244:1::5", 8080]}]));
}

#[test]
fn release_redirects_no_packet_and_still_translates() {
    let rules = rules_of(&release());
    let nat: Vec<_> = rules.iter().filter(|(_, rule)| has(rule, "redirect")).collect();
    assert_eq!(nat.len(), 2, "one idle rule in each direction");
    for (chain, rule) in nat {
        let impossible =
            [mark_is("==", TUNNEL_MARK), mark_is("==", CONNECTION_MARK)].map(|m| rule.contains(&m));
        assert_eq!(impossible, [true, true], "{chain} asks for two marks at once");
    }
    let marks = rules.iter().filter(|(chain, _)| chain.starts_with(MANGLE)).count();
    assert_eq!(marks, 4, "replies of open connections still find the tunnel");
}

#[test]
fn listings_differ_by_rules_and_by_nothing_else() {
    let listing = |handle: u32, packets: u32, port: u16| {
        json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "foreign", "handle": handle}},
            {"table": {"family": "inet", "name": NAT, "handle": handle}},
            {"rule": {"family": "inet", "table": NAT, "chain": "istio-output", "handle": handle,
                "expr": [{"counter": {"packets": packets, "bytes": packets}},
                         {"redirect": {"port": port}}]}},
            {"rule": {"family": "inet", "table": "foreign", "chain": "x", "handle": handle}},
        ]})
    };
    assert_eq!(essence(&listing(1, 0, 15001)), essence(&listing(9, 77, 15001)));
    assert_ne!(essence(&listing(1, 0, 15001)), essence(&listing(1, 0, 15006)));
}
