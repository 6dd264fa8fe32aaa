// SPDX-License-Identifier: Apache-2.0

//! A mesh that works, and what is said of each part that does not.

use serde_json::json;

use super::*;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn errors(findings: &[Finding]) -> Vec<String> {
    assert!(findings.iter().all(|one| one.level == Level::Ok || !one.todo.is_empty()));
    let bad = findings.iter().filter(|finding| finding.level == Level::Error);
    bad.map(|finding| format!("{}: {}", finding.subject, finding.message)).collect()
}

fn part(role: &'static str, node: &str, ready: bool) -> NodePart {
    let pod = format!("s/{role}-{node}");
    NodePart { role, pod, node: node.to_owned(), ready, certificates: Ok(Vec::new()) }
}

#[test]
fn a_controller_must_answer_and_prove_who_it_is() {
    let good = Controller {
        pod: "s/c-1".to_owned(),
        ready: true,
        answers: Ok(()),
        certificate: Ok(now() + Duration::days(1)),
    };
    assert_eq!(errors(&controllers(std::slice::from_ref(&good), 1, now())), [] as [&str; 0]);
    let all = [
        Controller { ready: false, ..good.clone() },
        Controller { answers: Err("no answer".to_owned()), ..good.clone() },
        Controller { certificate: Err("another root".to_owned()), ..good.clone() },
        Controller { certificate: Ok(now()), ..good },
    ];
    let found = errors(&controllers(&all, 5, now()));
    let wanted =
        ["is not ready", "does not answer: no answer", "another root", "ended", "4 of 5 pods"];
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (line, words) in found.iter().zip(wanted) {
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn a_node_works_when_its_tunnel_and_agent_follow_the_controller() {
    let client = |role: &str, node: &str, acked: u64, silent: bool| json!({"role": role, "node": node, "acked": acked, "connected": true, "silent": silent});
    let mut refusing = client("agent", "refuses", 7, false);
    refusing["refused"] = json!([{"name": "x"}]);
    let names = ["good", "empty", "unready", "silent", "behind", "refuses", "alone", "chain"];
    let nodes_of = names.map(|name| json!({"metadata": {"name": name}}));
    let status = json!({
        "revision": 7,
        "nodes": nodes_of,
        "clients": [
            client("tunnel", "good", 7, false), client("agent", "good", 7, false),
            client("tunnel", "unready", 7, false), client("agent", "unready", 7, false),
            client("tunnel", "silent", 7, true), client("agent", "silent", 7, false),
            client("tunnel", "behind", 6, false), client("agent", "behind", 7, false),
            client("tunnel", "refuses", 7, false), refusing,
            client("tunnel", "alone", 7, false),
            client("tunnel", "chain", 7, false), client("agent", "chain", 7, false),
        ],
        "agents": [
            {"node": "good", "serving": true, "reason": ""},
            {"node": "chain", "serving": false, "reason": "the plug-in is not in place"},
        ],
    });
    let mut parts: Vec<NodePart> = names
        .iter()
        .filter(|name| **name != "empty")
        .flat_map(|name| ["tunnel", "agent"].map(|role| part(role, name, true)))
        .collect();
    parts
        .iter_mut()
        .filter(|part| part.pod == "s/agent-unready")
        .for_each(|part| part.ready = false);
    assert_eq!(
        errors(&nodes(&status, &parts)),
        [
            "Node empty: no tunnel runs; no agent runs",
            "Node unready: agent s/agent-unready is not ready",
            "Node silent: its tunnel does not answer the controller",
            "Node behind: its tunnel does not follow the newest configuration yet",
            "Node refuses: its agent refuses configuration, see: waymark status",
            "Node alone: its agent is not connected to the controller",
            "Node chain: a pod that starts there now is not captured: the plug-in is not in place",
        ]
    );
}

#[test]
fn a_pod_is_captured_when_its_agent_has_proven_it() {
    let status = json!({"pods": [
        {"pod": "n/in", "node": "a", "wanted": true, "state": "ENROLLED", "reason": ""},
        {"pod": "n/out", "node": "a", "wanted": true, "state": "FAILED", "reason": "no tunnel"},
        {"pod": "n/other", "node": "a", "wanted": false, "state": null},
    ]});
    let findings = capture(&status);
    let found = errors(&findings);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("Pod n/out: ") && found[0].contains("no tunnel"), "{found:?}");
    assert!(
        findings.iter().any(|one| one.message.starts_with("1 pods are proven")),
        "{findings:?}"
    );
    assert_eq!(capture(&json!({}))[0].level, Level::Note, "nothing to prove is no proof");
}

#[test]
fn certificates_must_be_there_and_not_ended() {
    let one =
        |state: &str, ends| Certificate { identity: "i".to_owned(), state: state.to_owned(), ends };
    let tunnel = |certificates| NodePart { certificates, ..part("tunnel", "n", true) };
    let day = Some(now() + Duration::days(1));
    for (what, held, want) in [
        ("none needed", Ok(Vec::new()), Level::Ok),
        ("good", Ok(vec![one("Available", day)]), Level::Ok),
        ("ended", Ok(vec![one("Available", day), one("Available", Some(now()))]), Level::Error),
        ("refused", Ok(vec![one("Unavailable: refused", None)]), Level::Error),
        ("not asked", Err("forbidden".to_owned()), Level::Warning),
    ] {
        let findings = certificates(&[tunnel(held)], now());
        assert_eq!(findings.iter().map(|one| one.level).collect::<Vec<_>>(), [want], "{what}");
    }
}

#[test]
fn the_root_must_be_good_and_known_where_it_is_needed() {
    let good = Roots {
        own: Some("pem".to_owned()),
        ends: Some(Ok(now() + Duration::days(365))),
        published: [("a", "pem"), ("b", "old")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        needed: ["a".to_owned()].into(),
    };
    let levels =
        |given: &Roots| roots(given, now()).iter().map(|one| one.level).collect::<Vec<_>>();
    assert_eq!(levels(&good), [Level::Ok]);
    let ends = |ends| Roots { ends, ..good.clone() };
    assert_eq!(levels(&ends(Some(Ok(now() + Duration::days(29))))), [Level::Warning]);
    assert_eq!(levels(&ends(Some(Ok(now())))), [Level::Error]);
    assert_eq!(levels(&ends(Some(Err("no PEM".to_owned())))), [Level::Error]);
    assert_eq!(levels(&ends(None)), [Level::Error]);
    let needed = ["a", "b", "c"].map(str::to_owned).into();
    let found = errors(&roots(&Roots { needed, ..good }, now()));
    assert_eq!(found, ["ConfigMap istio-ca-root-cert: lacks or is another one in b, c"]);
}

#[test]
fn gateways_of_ours_must_be_programmed_and_refusals_are_listed_once() {
    let gateway = |name: &str, conditions: Value| json!({"metadata": {"namespace": "n", "name": name}, "status": {"conditions": conditions}});
    let programmed = |status: &str| json!([{"type": "Programmed", "status": status, "reason": "Invalid", "message": "no address"}]);
    let status = json!({
        "gateways": [gateway("good", programmed("True")), gateway("bad", programmed("False")),
            gateway("foreign", json!([]))],
        "refused": [
            {"object": "HTTPRoute n/r", "type": "Accepted", "reason": "NoMatch", "message": "m"},
            {"object": "HTTPRoute n/r", "type": "ResolvedRefs", "reason": "NoMatch", "message": "m"},
        ],
    });
    let findings = gateways(&status);
    assert_eq!(findings.len(), 2);
    assert_eq!(errors(&findings), ["Gateway n/bad: is not programmed: Invalid: no address"]);
    assert_eq!(refused(&status).len(), 1);
}
