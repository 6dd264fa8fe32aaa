// SPDX-License-Identifier: Apache-2.0

//! `waymark policies`: who decides over what, written policies and those that guards make.

use std::process::ExitCode;

use serde_json::Value;

use super::Failure;
use super::format::{FormatArgs, in_words, or_none, show, text, texts};
use super::mesh::{Mesh, MeshArgs};

/// Arguments of `waymark policies`.
#[derive(clap::Args, Debug)]
pub(super) struct PoliciesArgs {
    /// Only those of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// Lists the policies that `args` means.
pub(super) fn policies(args: &PoliciesArgs) -> Result<ExitCode, Failure> {
    let mesh = Mesh::find(&args.mesh)?;
    let answer = mesh.ask("/policies")?;
    let mut found: Vec<Value> = answer.as_array().cloned().unwrap_or_default();
    if let Some(namespace) = &args.namespace {
        found.retain(|policy| text(policy, "/name").split('/').next() == Some(namespace));
    }
    let mut head: Vec<String> =
        ["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE", "ENFORCED BY", "STATE"]
            .map(str::to_owned)
            .to_vec();
    if args.format.wide() {
        head.extend(["RULES", "TARGETS", "WORKLOADS"].map(str::to_owned));
    }
    let mut rows = vec![head];
    rows.extend(found.iter().map(|policy| row(policy, args.format.wide())));
    show(args.format, &Value::Array(found), rows)?;
    Ok(ExitCode::SUCCESS)
}

fn row(policy: &Value, wide: bool) -> Vec<String> {
    let full = text(policy, "/name");
    let (namespace, name) = full.split_once('/').unwrap_or(("", &full));
    let unsupported = text(policy, "/unsupported");
    let state = if !unsupported.is_empty() {
        format!("refuses: {unsupported}")
    } else if policy.get("dryRun") == Some(&Value::Bool(true)) {
        "dry run".to_owned()
    } else {
        "in force".to_owned()
    };
    let mut row = vec![
        namespace.to_owned(),
        name.to_owned(),
        text(policy, "/action"),
        text(policy, "/scope"),
        text(policy, "/enforcedBy"),
        state,
    ];
    if wide {
        row.push(text(policy, "/rules"));
        row.push(or_none(texts(policy, "/targets").join(",")));
        let workloads: Vec<String> =
            texts(policy, "/workloads").iter().map(|uid| in_words(uid)).collect();
        row.push(or_none(workloads.join(",")));
    }
    row
}
