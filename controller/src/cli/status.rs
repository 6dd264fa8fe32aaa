// SPDX-License-Identifier: Apache-2.0

//! `waymark status`: is the mesh well, who follows the newest configuration, what was
//! refused and why.
//!
//! Exit code 0 if all is well, 1 if something is not.

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::format::{Format, FormatArgs, items, show, text};
use super::world::{World, WorldArgs};
use super::{Failure, out, table, workloads};
use crate::local::paths;

/// Arguments of `waymark status`.
#[derive(clap::Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    world: WorldArgs,
}

/// Shows the state of the mesh.
pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let world = World::find(&args.world)?;
    let answer = world.ask_json(paths::CONTROLLER_SOCKET, Method::GET, "/status")?;
    let ills = ills(&answer);
    let code = if ills.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if !matches!(args.format.output, Format::Table | Format::Wide) {
        show(args.format, &answer, Vec::new())?;
        return Ok(code);
    }
    out(&report(&world, &answer, &ills, args.format.wide()));
    Ok(code)
}

/// Everything that is not well, one line each.
fn ills(status: &Value) -> Vec<String> {
    let mut ills = Vec::new();
    for problem in items(status, "/problems") {
        let object = text(problem, "/object");
        let object = if object.is_empty() { object } else { format!(" {object}:") };
        let field = text(problem, "/field");
        let field = if field.is_empty() { field } else { format!(" {field}:") };
        ills.push(format!(
            "{}:{}:{object}{field} {}",
            text(problem, "/file"),
            text(problem, "/line"),
            text(problem, "/message")
        ));
    }
    for refused in items(status, "/refused") {
        let [object, kind, reason, message] =
            ["/object", "/type", "/reason", "/message"].map(|pointer| text(refused, pointer));
        ills.push(format!("{object}: {kind} is not true, {reason}: {message}"));
    }
    for pod in items(status, "/pods") {
        let wanted = pod.get("wanted") == Some(&Value::Bool(true));
        let standing = workloads::standing(pod);
        if wanted && standing != "enrolled" {
            ills.push(format!("pod {} is not in the mesh, {standing}", text(pod, "/pod")));
        }
    }
    if status.get("acknowledged") == Some(&Value::Bool(false)) {
        ills.push("some proxies do not follow the newest configuration yet".to_owned());
    }
    ills
}

fn report(world: &World, status: &Value, ills: &[String], wide: bool) -> String {
    let pods: Vec<&Value> = items(status, "/pods").collect();
    let enrolled = pods.iter().filter(|pod| workloads::standing(pod) == "enrolled").count();
    let wanted = pods.iter().filter(|pod| pod.get("wanted") == Some(&Value::Bool(true))).count();
    let older: u64 =
        pods.iter().filter_map(|pod| pod.get("olderConnections").and_then(Value::as_u64)).sum();
    let mut text_out = format!(
        "{}\nconfiguration {}, {enrolled} of {wanted} pods enrolled",
        world.folder.display(),
        text(status, "/revision")
    );
    if older > 0 {
        text_out += &format!(", {older} connections older than their pod's enrolment");
    }
    text_out += "\nUDP of applications is not captured; only DNS is.\n\n";
    text_out += &clients(status);
    if wide {
        let counts = status.get("resources").and_then(Value::as_object).into_iter().flatten();
        let rows = counts.map(|(kind, count)| {
            let short = kind.rsplit('/').next().unwrap_or(kind);
            vec![short.to_owned(), count.to_string()]
        });
        let head = ["RESOURCE", "COUNT"].map(str::to_owned).to_vec();
        text_out += &format!("\n{}", table::align([head].into_iter().chain(rows)));
    }
    if ills.is_empty() {
        text_out += "\nAll is well.\n";
    } else {
        text_out += &format!("\nNot well:\n  {}\n", ills.join("\n  "));
    }
    text_out
}

/// A table of the proxies and agents, whatever the controller tells of each.
fn clients(status: &Value) -> String {
    let clients: Vec<&Value> = items(status, "/clients").collect();
    let mut titles: Vec<String> = Vec::new();
    for client in &clients {
        for (key, value) in client.as_object().into_iter().flatten() {
            if !titles.contains(key) && !value.is_object() && !value.is_array() {
                titles.push(key.clone());
            }
        }
    }
    let row =
        |client: &&Value| titles.iter().map(|title| text(client, &format!("/{title}"))).collect();
    let head = titles.iter().map(|title| title.to_uppercase()).collect();
    table::align([head].into_iter().chain(clients.iter().map(row)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_that_is_not_well_is_said() {
        let status = json!({
            "acknowledged": false,
            "problems": [{"file": "a.yaml", "line": 3, "object": "Pod n/x", "message": "bad"}],
            "refused": [{"object": "HTTPRoute n/r", "type": "Accepted", "reason": "NoMatch", "message": "m"}],
            "pods": [
                {"pod": "n/in", "wanted": true, "state": "Enrolled", "reason": ""},
                {"pod": "n/out", "wanted": true, "state": null},
            ],
        });
        assert_eq!(
            ills(&status),
            [
                "a.yaml:3: Pod n/x: bad",
                "HTTPRoute n/r: Accepted is not true, NoMatch: m",
                "pod n/out is not in the mesh, waiting",
                "some proxies do not follow the newest configuration yet",
            ]
        );
        assert_eq!(ills(&json!({"acknowledged": true})), [] as [&str; 0]);
    }
}
