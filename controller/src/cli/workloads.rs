// SPDX-License-Identifier: Apache-2.0

//! `waymark workloads`: what the mesh knows of each workload.
//!
//! Rule: columns of `istioctl ztunnel-config workload`, and the identity.

use std::process::ExitCode;

use serde_json::Value;

use super::Failure;
use super::format::{FormatArgs, show, text, texts};
use super::mesh::{Mesh, MeshArgs};

/// Arguments of `waymark workloads`.
#[derive(clap::Args, Debug)]
pub(super) struct WorkloadsArgs {
    /// Only those of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only those of this node.
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// Lists the workloads that `args` means, by namespace, name and node.
pub(super) fn workloads(args: &WorkloadsArgs) -> Result<ExitCode, Failure> {
    let mesh = Mesh::find(&args.mesh)?;
    let answer = mesh.ask("/workloads")?;
    let mut found: Vec<Value> = answer.as_array().cloned().unwrap_or_default();
    found.retain(|workload| {
        let fits = |wanted: &Option<String>, pointer| {
            wanted.as_ref().is_none_or(|wanted| text(workload, pointer) == *wanted)
        };
        fits(&args.namespace, "/namespace") && fits(&args.node, "/node")
    });
    found.sort_by_key(|workload| {
        ["/namespace", "/name", "/node"].map(|pointer| text(workload, pointer))
    });
    let titles = ["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL", "IDENTITY"];
    let mut head: Vec<String> = titles.map(str::to_owned).to_vec();
    if args.format.wide() {
        head.extend(["MESH", "HEALTHY", "SERVICES", "POLICIES"].map(str::to_owned));
    }
    let mut rows = vec![head];
    rows.extend(found.iter().map(|workload| row(workload, args.format.wide())));
    show(args.format, &Value::Array(found), rows)?;
    Ok(ExitCode::SUCCESS)
}

fn row(workload: &Value, wide: bool) -> Vec<String> {
    let mut row = vec![
        text(workload, "/namespace"),
        text(workload, "/name"),
        texts(workload, "/addresses").into_iter().next().unwrap_or_default(),
        text(workload, "/node"),
        waypoints(workload),
        text(workload, "/protocol"),
        text(workload, "/identity"),
    ];
    if wide {
        row.push(standing(workload.get("enrolment").unwrap_or(&Value::Null)));
        row.push(text(workload, "/healthy"));
        row.push(texts(workload, "/services").join(","));
        row.push(texts(workload, "/policies").join(","));
    }
    row
}

/// The waypoints in front of a workload: its own, else those of its Services; `None` without.
///
/// One of its own namespace goes by its bare name, as labels name it.
fn waypoints(workload: &Value) -> String {
    let own = text(workload, "/waypoint");
    let of = if own.is_empty() { texts(workload, "/serviceWaypoints") } else { vec![own] };
    let name = |key: &String| {
        let (namespace, host) = key.split_once('/')?;
        let name = host.split('.').next().filter(|_| host.contains(".svc."))?;
        let here = namespace == text(workload, "/namespace");
        Some(if here { name.to_owned() } else { format!("{namespace}/{name}") })
    };
    let names: Vec<String> =
        of.iter().map(|key| name(key).unwrap_or_else(|| key.clone())).collect();
    if names.is_empty() { "None".to_owned() } else { names.join(",") }
}

/// How a pod stands towards the mesh: `enrolled`, or what is missing.
pub(super) fn standing(enrolment: &Value) -> String {
    let wanted = enrolment.get("wanted").and_then(Value::as_bool).unwrap_or_default();
    let state = text(enrolment, "/state").to_ascii_lowercase();
    let reason = text(enrolment, "/reason");
    let word = match (wanted, state.as_str()) {
        (true, "") => "waiting".to_owned(),
        (false, "" | "released") => "outside".to_owned(),
        (_, state) => state.to_owned(),
    };
    if reason.is_empty() { word } else { format!("{word}: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn waypoints_go_by_their_short_names() {
        let cases = [
            (json!({"namespace": "n"}), "None"),
            (json!({"namespace": "n", "waypoint": "n/w.n.svc.cluster.local"}), "w"),
            (json!({"namespace": "n", "waypoint": "m/w.m.svc.cluster.local"}), "m/w"),
            (
                json!({"namespace": "n", "serviceWaypoints": ["n/w.n.svc.cluster.local", "m/v.m.svc.x"]}),
                "w,m/v",
            ),
            (json!({"namespace": "n", "waypoint": "net/10.0.0.1"}), "net/10.0.0.1"),
        ];
        for (workload, want) in cases {
            assert_eq!(waypoints(&workload), want, "{workload}");
        }
    }

    #[test]
    fn a_pod_stands_where_its_label_and_its_agent_say() {
        let cases = [
            (json!({"wanted": true, "state": null}), "waiting"),
            (json!({"wanted": false, "state": null}), "outside"),
            (json!({"wanted": false, "state": "RELEASED", "reason": ""}), "outside"),
            (json!({"wanted": true, "state": "Enrolled", "reason": ""}), "enrolled"),
            (json!({"wanted": true, "state": "Failed", "reason": "no proof"}), "failed: no proof"),
        ];
        for (enrolment, want) in cases {
            assert_eq!(standing(&enrolment), want, "{enrolment}");
        }
    }
}
