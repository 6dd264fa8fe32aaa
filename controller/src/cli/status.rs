// SPDX-License-Identifier: Apache-2.0

//! `waymark status`: is the mesh well, who follows the newest configuration, what was
//! refused and why.
//!
//! Owns what counts as not well ([`ills`]) and the report. Exit code 0 if all is well, 1 if
//! something is not.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::format::{Format, FormatArgs, flag, items, number, show, text, texts};
use super::mesh::{Mesh, MeshArgs};
use super::workloads::standing;
use super::{Failure, get, out, table};

/// Arguments of `waymark status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Exit code: 0 all is well, 1 something is not, 3 nothing runs.")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// Shows the state of the mesh.
pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let mesh = Mesh::find(&args.mesh)?;
    let mut answer = mesh.ask("/status")?;
    for (field, kind) in [("nodes", "Node"), ("gateways", "Gateway")] {
        let listed = mesh.ask(&format!("/objects?kind={kind}"))?;
        if let Some(fields) = answer.as_object_mut() {
            fields.insert(field.to_owned(), listed.get("items").cloned().unwrap_or_default());
        }
    }
    let ills = ills(&answer);
    let code = if ills.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match args.format.output {
        Format::Table | Format::Wide => {
            out(&report(&mesh.name(), &answer, &ills, args.format.wide()));
        }
        Format::Json | Format::Yaml => {
            if let Some(fields) = answer.as_object_mut() {
                fields.insert("healthy".to_owned(), ills.is_empty().into());
                fields.insert("ills".to_owned(), json!(ills));
            }
            show(args.format, &answer, Vec::new())?;
        }
    }
    Ok(code)
}

/// Everything that is not well, one line each.
fn ills(status: &Value) -> Vec<String> {
    let bad = |problem: &&Value| !flag(problem, "/in_force");
    let mut ills: Vec<String> = items(status, "/problems").filter(bad).map(problem).collect();
    let refused = text(status, "/ca/refused");
    if !refused.is_empty() {
        ills.push(format!("certificate authority, the last good one stays: {refused}"));
    }
    ills.extend(refusals(status));
    ills.extend(items(status, "/pods").filter_map(pod_ill));
    let newest = number(status, "/revision");
    for client in items(status, "/clients") {
        let who = format!("{} {}", text(client, "/role"), text(client, "/pod"));
        for refusal in items(client, "/refused") {
            let [kind, name, reason] =
                ["/kind", "/name", "/reason"].map(|pointer| text(refusal, pointer));
            let kind = kind.rsplit('/').next().unwrap_or(&kind);
            ills.push(format!("{who} refused {kind} {name}: {reason}"));
        }
        if flag(client, "/silent") {
            ills.push(format!("{who} does not answer; nothing waits for it"));
        } else if number(client, "/acked") < newest {
            ills.push(format!("{who} does not follow the newest configuration yet"));
        }
    }
    match leadership(status) {
        Leadership::Here => ills.extend(missing(status)),
        // It knows its own clients alone.
        Leadership::Of(_) => {}
        Leadership::Nobodys => ills.push(
            "no controller leads: statuses and ordered changes wait until one holds the Lease \
             waymark-controller-leader"
                .to_owned(),
        ),
    }
    ills
}

/// Who leads, as the controller that was asked knows.
enum Leadership {
    /// It does itself.
    Here,
    /// Another does, of this name.
    Of(String),
    /// Nobody.
    Nobodys,
}

fn leadership(status: &Value) -> Leadership {
    let leader = text(status, "/leader");
    if !leader.is_empty() {
        Leadership::Of(leader)
    } else if flag(status, "/leads") {
        Leadership::Here
    } else {
        Leadership::Nobodys
    }
}

/// Conditions that say that something is wrong; those of one cause in one line.
fn refusals(status: &Value) -> impl Iterator<Item = String> {
    let mut causes: BTreeMap<[String; 3], Vec<String>> = BTreeMap::new();
    for refused in items(status, "/refused") {
        let cause = ["/object", "/reason", "/message"].map(|pointer| text(refused, pointer));
        causes.entry(cause).or_default().push(text(refused, "/type"));
    }
    causes.into_iter().map(|([object, reason, message], kinds)| {
        format!("{object}: {}: {reason}: {message}", kinds.join(", "))
    })
}

/// One problem of a file: file, line, object, field, what was expected.
fn problem(problem: &Value) -> String {
    let mut line = text(problem, "/file");
    if number(problem, "/line") > 0 {
        line += &format!(":{}", number(problem, "/line"));
    }
    for part in [text(problem, "/object"), text(problem, "/field"), text(problem, "/message")] {
        if !part.is_empty() {
            line += &format!(": {part}");
        }
    }
    line
}

/// What is wrong with a pod that belongs in the mesh.
fn pod_ill(pod: &Value) -> Option<String> {
    let (name, standing) = (text(pod, "/pod"), standing(pod));
    if !flag(pod, "/wanted") || standing == "enrolled" {
        return None;
    }
    Some(if standing.starts_with("enrolled") {
        format!("pod {name}: the last proof of its capture failed, {standing}")
    } else {
        format!("pod {name} is not in the mesh, {standing}")
    })
}

/// Nodes without a tunnel or an agent.
fn missing(status: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for node in items(status, "/nodes").map(|node| text(node, "/metadata/name")) {
        for role in ["tunnel", "agent"] {
            let here =
                |client: &Value| text(client, "/role") == role && text(client, "/node") == node;
            if !items(status, "/clients").any(here) {
                missing.push(format!("node {node}: no {role} is connected"));
            }
        }
    }
    missing
}

/// The report for people.
fn report(name: &str, status: &Value, ills: &[String], wide: bool) -> String {
    let mut text_out = format!("{name}\n{}\n", summary(status));
    text_out += &format!("\n{}", clients(status, wide));
    for part in [gateways(status), pods(status, wide)].into_iter().flatten() {
        text_out += &format!("\n{part}");
    }
    if wide {
        let counts = status.get("resources").and_then(Value::as_object).into_iter().flatten();
        let rows = counts.map(|(kind, count)| {
            let short = kind.rsplit('/').next().unwrap_or(kind);
            vec![short.to_owned(), count.to_string()]
        });
        text_out +=
            &format!("\n{}", table::align([head(&["RESOURCE", "COUNT"])].into_iter().chain(rows)));
    }
    let notes = notes(status);
    if !notes.is_empty() {
        text_out += &format!("\nWorth knowing:\n  {}\n", notes.join("\n  "));
    }
    if ills.is_empty() {
        text_out += "\nAll is well.\n";
    } else {
        text_out += &format!("\nNot well:\n  {}\n", ills.join("\n  "));
    }
    text_out
}

/// What objects ask for that is not served; the same of several in one line.
fn not_served(status: &Value) -> impl Iterator<Item = String> {
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in items(status, "/notServed") {
        told.entry(text(one, "/message")).or_default().push(text(one, "/object"));
    }
    told.into_iter().map(|(message, objects)| match objects.as_slice() {
        [first, others @ ..] if !others.is_empty() => {
            format!("{first} and {} more: {message}", others.len())
        }
        objects => format!("{}: {message}", objects.concat()),
    })
}

/// The state of the whole, in one line.
fn summary(status: &Value) -> String {
    let pods: Vec<&Value> = items(status, "/pods").collect();
    let wanted = pods.iter().filter(|pod| flag(pod, "/wanted")).count();
    let enrolled = pods
        .iter()
        .filter(|pod| flag(pod, "/wanted") && standing(pod).starts_with("enrolled"))
        .count();
    let sum = |pointer| pods.iter().map(|pod| number(pod, pointer)).sum::<u64>();
    format!(
        "revision {}; {enrolled} of {wanted} pods enrolled; {} unguarded; \
         {} older connections; {} repairs",
        text(status, "/revision"),
        items(status, "/unguarded").count(),
        sum("/olderConnections"),
        sum("/repairs"),
    )
}

fn head(titles: &[&str]) -> Vec<String> {
    titles.iter().map(ToString::to_string).collect()
}

/// The proxies and agents, by role and node, and how far each is.
fn clients(status: &Value, wide: bool) -> String {
    let newest = number(status, "/revision");
    let mut titles = head(&["ROLE", "POD", "NODE", "REVISION", "STATE"]);
    if wide {
        titles.push("ADDRESS".to_owned());
    }
    let row = |client: &Value| {
        let refused = items(client, "/refused").count();
        let state = if flag(client, "/silent") {
            "silent".to_owned()
        } else if refused > 0 {
            format!("refuses {refused}")
        } else if number(client, "/acked") < newest {
            "behind".to_owned()
        } else {
            "up to date".to_owned()
        };
        let mut row: Vec<String> =
            ["/role", "/pod", "/node", "/acked"].map(|pointer| text(client, pointer)).to_vec();
        row.push(state);
        if wide {
            row.push(text(client, "/address"));
        }
        row
    };
    let mut rows: Vec<Vec<String>> = items(status, "/clients").map(row).collect();
    rows.sort();
    if rows.is_empty() {
        return "No proxy and no agent is connected.\n".to_owned();
    }
    table::align([titles].into_iter().chain(rows))
}

/// The Gateways, where each is reached, and whether it is programmed.
fn gateways(status: &Value) -> Option<String> {
    let row = |gateway: &Value| {
        let routes = items(gateway, "/status/listeners")
            .map(|listener| number(listener, "/attachedRoutes"))
            .sum::<u64>();
        let name =
            format!("{}/{}", text(gateway, "/metadata/namespace"), text(gateway, "/metadata/name"));
        let address = items(gateway, "/status/addresses").next();
        let programmed = get::condition(gateway, "/status/conditions", "Programmed");
        vec![
            name,
            text(gateway, "/spec/gatewayClassName"),
            address.map(|address| text(address, "/value")).unwrap_or_default(),
            if programmed.is_empty() { "not ours".to_owned() } else { programmed },
            routes.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = items(status, "/gateways").map(row).collect();
    let titles = head(&["GATEWAY", "CLASS", "ADDRESS", "PROGRAMMED", "ROUTES"]);
    (!rows.is_empty()).then(|| table::align([titles].into_iter().chain(rows)))
}

/// The pods of which there is something to tell; all of them if `wide`.
fn pods(status: &Value, wide: bool) -> Option<String> {
    let tells = |pod: &&Value| {
        wide || !["enrolled", "outside"].contains(&standing(pod).as_str())
            || number(pod, "/repairs") > 0
            || number(pod, "/olderConnections") > 0
    };
    let row = |pod: &Value| {
        vec![
            text(pod, "/pod"),
            text(pod, "/node"),
            text(pod, "/repairs"),
            text(pod, "/olderConnections"),
            standing(pod),
        ]
    };
    let rows: Vec<Vec<String>> = items(status, "/pods").filter(tells).map(row).collect();
    let titles = head(&["POD", "NODE", "REPAIRS", "OLDER CONNECTIONS", "MESH"]);
    (!rows.is_empty()).then(|| table::align([titles].into_iter().chain(rows)))
}

/// What is not wrong, and still worth a thought.
fn notes(status: &Value) -> Vec<String> {
    let mut notes: Vec<String> = items(status, "/problems")
        .filter(|problem| flag(problem, "/in_force"))
        .map(problem)
        .collect();
    notes.extend(not_served(status));
    if let Leadership::Of(leader) = leadership(status) {
        notes.push(format!(
            "the controller that answers follows {leader}, which alone knows of all proxies; to be \
             answered by that, you must be allowed to read Leases"
        ));
    }
    notes.extend(items(status, "/unguarded").map(|one| {
        format!(
            "pod {} is behind a waypoint and not in the mesh: its policies can be walked around",
            text(one, "/pod")
        )
    }));
    let waiting = texts(status, "/ca/waiting");
    if !waiting.is_empty() {
        notes.push(format!("not all roots are trusted yet by {}", waiting.join(", ")));
    }
    if number(status, "/ca/oldLeaves") > 0 {
        let count = number(status, "/ca/oldLeaves");
        notes.push(format!("{count} certificates are of a root that signs no more"));
    }
    let older = items(status, "/pods").filter(|pod| number(pod, "/olderConnections") > 0);
    notes.extend(older.map(|pod| {
        format!(
            "pod {}: {} connections opened before it was enrolled go on outside the mesh",
            text(pod, "/pod"),
            number(pod, "/olderConnections")
        )
    }));
    let udp = texts(status, "/udp");
    if !udp.is_empty() {
        notes.push(format!("UDP is not captured, it goes plain: {}", udp.join(", ")));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(role: &str, acked: u64) -> Value {
        json!({"role": role, "pod": format!("s/{role}"), "node": "node-1", "acked": acked})
    }

    #[test]
    fn everything_that_is_not_well_is_said() {
        let mut slow = client("gateway", 6);
        slow["refused"] = json!([{"kind": "type.googleapis.com/waymark.v1.Route", "name": "r/0", "reason": "why"}]);
        let mut silent = client("tunnel", 7);
        silent["silent"] = true.into();
        let mut status = json!({
            "revision": 7,
            "leads": true,
            "clients": [slow, silent],
            "nodes": [{"metadata": {"name": "node-1"}}],
            "problems": [
                {"file": "a.yaml", "line": 3, "object": "Pod n/x", "field": "spec.x", "message": "bad", "in_force": false},
                {"file": "b.yaml", "line": 0, "message": "odd", "in_force": true},
            ],
            "notServed": [
                {"object": "Pod n/a", "message": "label x=1 is not served: y"},
                {"object": "Pod n/b", "message": "label x=1 is not served: y"},
                {"object": "Service n/s", "message": "label z=1 is not served: y"},
            ],
            "refused": [
                {"object": "HTTPRoute n/r", "type": "Accepted", "reason": "NoMatch", "message": "m"},
                {"object": "HTTPRoute n/r", "type": "Programmed", "reason": "NoMatch", "message": "m"},
            ],
            "pods": [
                {"pod": "n/in", "wanted": true, "state": "ENROLLED", "reason": ""},
                {"pod": "n/odd", "wanted": true, "state": "ENROLLED", "reason": "no answer"},
                {"pod": "n/out", "wanted": true, "state": null},
                {"pod": "n/gone", "wanted": false, "state": "RELEASED", "reason": "left"},
            ],
        });
        assert_eq!(
            ills(&status),
            [
                "a.yaml:3: Pod n/x: spec.x: bad",
                "HTTPRoute n/r: Accepted, Programmed: NoMatch: m",
                "pod n/odd: the last proof of its capture failed, enrolled: no answer",
                "pod n/out is not in the mesh, waiting",
                "gateway s/gateway refused waymark.v1.Route r/0: why",
                "gateway s/gateway does not follow the newest configuration yet",
                "tunnel s/tunnel does not answer; nothing waits for it",
                "node node-1: no agent is connected",
            ]
        );
        let told = [
            "b.yaml: odd",
            "Pod n/a and 1 more: label x=1 is not served: y",
            "Service n/s: label z=1 is not served: y",
        ];
        assert_eq!(notes(&status), told);

        status["leads"] = false.into();
        assert!(ills(&status).last().unwrap().starts_with("no controller leads"));
        status["leader"] = "c-2".into();
        assert!(ills(&status).last().unwrap().starts_with("tunnel s/tunnel does not answer"));
        assert!(notes(&status).iter().any(|note| note.contains("follows c-2")));
    }

    #[test]
    fn a_mesh_that_is_well_has_no_ills_and_says_so() {
        let status = json!({
            "revision": 7,
            "leads": true,
            "clients": [client("tunnel", 7), client("agent", 7)],
            "nodes": [{"metadata": {"name": "node-1"}}],
            "pods": [{"pod": "n/in", "wanted": true, "state": "ENROLLED", "reason": "",
                      "olderConnections": 2, "repairs": 1}],
            "gateways": [{"metadata": {"namespace": "n", "name": "g"},
                          "spec": {"gatewayClassName": "istio"}, "status": {
                              "conditions": [{"type": "Programmed", "status": "True"}],
                              "addresses": [{"value": "10.97.0.1"}],
                              "listeners": [{"attachedRoutes": 2}, {"attachedRoutes": 1}]}}],
            "unguarded": [{"pod": "n/open", "services": ["n/s"]}],
            "udp": ["n/dns:53"],
        });
        let ills = ills(&status);
        assert_eq!(ills, [] as [&str; 0]);
        let text = report("/folder", &status, &ills, false);
        for words in [
            "1 of 1 pods enrolled; 1 unguarded; 2 older connections; 1 repairs",
            "tunnel  s/tunnel  node-1  7         up to date",
            "n/g      istio  10.97.0.1  True        3",
            "pod n/open is behind a waypoint",
            "UDP is not captured, it goes plain: n/dns:53",
            "All is well.",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }
}
