// SPDX-License-Identifier: Apache-2.0

//! `waymark check`: does the mesh fit into a cluster; once it is there, does every part work.
//!
//! Owns: which of both is asked, the report, and exit codes. [`gather`] reads the cluster and
//! asks the parts; [`before`], [`network_policy`] and [`after`] decide, purely.

mod after;
pub(super) mod before;
pub(super) mod finding;
mod gather;
mod network_policy;
mod probe;

use std::process::ExitCode;

use serde_json::{Value, json};

use self::finding::{Finding, Level, worst};
use super::cluster::{ClusterArgs, runtime};
use super::format::{Format, FormatArgs, show};
use super::{Failure, out, table};
use crate::install::NAMESPACE;

/// Arguments of `waymark check`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0 no error was found (there may be warnings), 1 an error was found, \
                  2 the command line was wrong, 3 the cluster cannot be asked."
)]
pub(super) struct CheckArgs {
    /// Look only whether the mesh fits into the cluster, also where it is installed.
    #[arg(long)]
    before: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the mesh's own parts.
    #[arg(short = 'i', long, value_name = "NAMESPACE", default_value = NAMESPACE)]
    istio_namespace: String,
}

/// Looks at everything and reports.
pub(super) fn check(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let namespace = &args.istio_namespace;
    let (name, installed, findings) = runtime()?.block_on(async {
        let (client, name) = args.cluster.client().await?;
        let mut gatherer = gather::Gatherer::new(client, namespace);
        let installed = gatherer.installed(&name).await?;
        Box::pin(gatherer.before(installed)).await?;
        if installed && !args.before {
            Box::pin(gatherer.after(&name)).await?;
        }
        Ok::<_, Failure>((name, installed, gatherer.findings))
    })?;
    let healthy = worst(&findings) < Level::Error;
    match args.format.output {
        Format::Table | Format::Wide => out(&report(&name, installed, &findings)),
        Format::Json | Format::Yaml => {
            show(args.format, &structured(&name, installed, healthy, &findings), Vec::new())?;
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn structured(name: &str, installed: bool, healthy: bool, findings: &[Finding]) -> Value {
    json!({"cluster": name, "installed": installed, "healthy": healthy, "findings": findings})
}

/// The report for people: every finding, then what to do about those that need it.
fn report(name: &str, installed: bool, findings: &[Finding]) -> String {
    let heading = ["LEVEL", "CHECK", "OBJECT", "FINDING"].map(str::to_owned).to_vec();
    let row = |one: &Finding| {
        vec![
            one.level.as_str().to_owned(),
            one.check.to_owned(),
            one.subject.clone(),
            one.message.clone(),
        ]
    };
    let rows = table::align([heading].into_iter().chain(findings.iter().map(row)));
    let mut text = format!("{name}\n\n{rows}");
    let mut todo: Vec<&Finding> = findings.iter().filter(|one| !one.todo.is_empty()).collect();
    todo.sort_by_key(|one| std::cmp::Reverse(one.level));
    if !todo.is_empty() {
        text += "\nTo do:\n";
        for one in todo {
            text += &format!("  {} {}: {}\n", one.level.as_str(), one.subject, one.todo);
        }
    }
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let state = match (installed, worst(findings) < Level::Error) {
        (false, true) => "The mesh can be installed: waymark install",
        (false, false) => "The mesh cannot be installed like this.",
        (true, true) => "Every part that was looked at works.",
        (true, false) => "Not everything works.",
    };
    text += &format!(
        "\n{state} ({} ok, {} notes, {} warnings, {} errors)\n",
        count(Level::Ok),
        count(Level::Note),
        count(Level::Warning),
        count(Level::Error),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_is_so_and_then_what_to_do_the_worst_first() {
        let findings = [
            Finding::ok("kubernetes", "apiserver", "v1.34.4"),
            Finding::ok("conflict", "Cilium", "in the way").but(Level::Warning, "set a value"),
            Finding::ok("gateway-api", "group", "missing").but(Level::Error, "install it"),
        ];
        let text = report("here", false, &findings);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "here",
                "",
                "LEVEL    CHECK        OBJECT     FINDING",
                "ok       kubernetes   apiserver  v1.34.4",
                "warning  conflict     Cilium     in the way",
                "error    gateway-api  group      missing",
                "",
                "To do:",
                "  error group: install it",
                "  warning Cilium: set a value",
                "",
                "The mesh cannot be installed like this. (1 ok, 0 notes, 1 warnings, 1 errors)",
            ]
        );
        let value = structured("here", true, false, &findings[..2]);
        let wanted = json!({"cluster": "here", "installed": true, "healthy": false, "findings": [
            {"level": "ok", "check": "kubernetes", "subject": "apiserver", "message": "v1.34.4"},
            {"level": "warning", "check": "conflict", "subject": "Cilium", "message": "in the way",
             "todo": "set a value"},
        ]});
        assert_eq!(value, wanted);
    }
}
