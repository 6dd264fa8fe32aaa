// SPDX-License-Identifier: Apache-2.0

//! `waymark explain`: what becomes of one connection or request, and who decided it.
//!
//! Owns: where the snapshot comes from (a running mesh, or a folder), the words around the
//! steps, the exit code: 0 if it is let through, 1 if it is refused. The answer itself is
//! [`routing::explain`]'s, which is the code that serves traffic.
//!
//! Start at [`explain`].

mod folder;
mod question;
mod running;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use http::{HeaderName, HeaderValue, Method};
use policy::jwt::Claims;
use routing::explain::{self as engine, Explanation, Verdict};
use routing::snapshot::Snapshot;
use serde_json::{Value, json};

use super::format::{Format, FormatArgs, in_words, show};
use super::mesh::MeshArgs;
use super::{Failure, complain, out};
use crate::local::address::FABRIC;
use question::{Asked, Caller};

/// Arguments of `waymark explain`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0 it is let through, 1 it is refused, 2 the question is wrong.\n\n\
    Examples:\n  \
    waymark explain --from bookinfo/productpage-v1 --to http://ratings.bookinfo:9080/ratings/0\n  \
    waymark explain --from outside --to http://localhost:8080/productpage --header 'end-user: jason'\n  \
    waymark explain --folder examples/bookinfo --from reviews-v2 --to http://ratings:9080/ratings/0\n  \
    waymark explain --from reviews-v1 --to 10.244.2.2:9080\n  \
    waymark explain --from outside --to http://localhost:8080/ --claims '{\"iss\": \"https://issuer.example\", \"sub\": \"joe\"}'"
)]
pub(super) struct ExplainArgs {
    /// Who calls: `NAMESPACE/POD`, the beginning of a pod's name, its Deployment, or `outside`.
    #[arg(long, value_name = "POD|outside")]
    from: String,
    /// What is called: a URL for a request; `NAMESPACE/SERVICE:PORT` or `IP:PORT` for a connection.
    #[arg(long, value_name = "URL|SERVICE|ADDRESS")]
    to: String,
    /// Method of the request; GET by default.
    #[arg(long)]
    method: Option<Method>,
    /// Header of the request, `NAME: VALUE`; may be said more than once.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = question::header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What a good token of the request says, as JSON: `{"iss": "ISSUER", "sub": "SUBJECT"}`. A
    /// token in a header is read as well; its signature is not checked here.
    #[arg(long, value_name = "JSON", value_parser = question::claims)]
    claims: Option<Claims>,
    /// Gateway where a caller from outside comes in, `NAMESPACE/NAME`; the only one by default.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    gateway: Option<String>,
    /// Address of a caller from outside; by default the one that users of localhost come from.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(FABRIC.v4))]
    client: IpAddr,
    /// Answer from the YAML of this folder instead of a running mesh.
    #[arg(long, conflicts_with_all = ["world", "kubeconfig", "context"])]
    folder: Option<PathBuf>,
    /// The chance that decides among equals: another number, another backend.
    #[arg(long, default_value_t = 0)]
    roll: u64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// What an answer is taken from.
struct Known {
    /// What all proxies hold.
    snapshot: Snapshot,
    /// Gateway, `namespace/name` → its pods, `namespace/name`.
    gateways: BTreeMap<String, Vec<String>>,
    /// Where it comes from.
    origin: String,
}

/// Answers the question of `args`.
pub(super) fn explain(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let known = match &args.folder {
        Some(folder) => {
            let (known, problems) = folder::known(folder)?;
            for problem in problems {
                complain(&format!("not in force: {problem}"));
            }
            known
        }
        None => running::known(&args.mesh)?,
    };
    let asked = question::read(args, &known)?;
    let explanation = engine::ask(&asked.question(args.roll), &known.snapshot);
    let permitted = !matches!(explanation.verdict, Verdict::Refused(_));
    match args.format.output {
        Format::Table | Format::Wide => out(&story(&known, &asked, &explanation)),
        Format::Json | Format::Yaml => {
            show(args.format, &value(&asked, &explanation, permitted), Vec::new())?;
        }
    }
    Ok(if permitted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The answer for people.
fn story(known: &Known, asked: &Asked, explanation: &Explanation) -> String {
    let mut text = format!("{}\n{}\n\n", known.origin, in_words(&asked.headline()));
    for note in &asked.notes {
        text += &format!("({note})\n");
    }
    let topics = explanation.steps.iter().map(|step| step.topic.to_string());
    let width = topics.clone().map(|topic| topic.len()).max().unwrap_or(0);
    for ((number, topic), step) in (1..).zip(topics).zip(&explanation.steps) {
        text += &format!("{number:>3}. {topic:<width$}  {}", in_words(&step.text));
        if let Some(by) = step.decided_by.as_deref().filter(|by| !step.text.contains(*by)) {
            text += &format!("  [{by}]");
        }
        text.push('\n');
    }
    text + &format!("\n{}\n", in_words(&verdict(explanation)))
}

/// What became of it, in one sentence.
fn verdict(explanation: &Explanation) -> String {
    let by = |text: &str| match deciders(explanation).as_slice() {
        [] => String::new(),
        some => format!(" {text} {}.", some.join(" and ")),
    };
    match &explanation.verdict {
        Verdict::Arrives { workload, port } => {
            format!("Let through: it arrives at {workload} port {port}.{}", by("Allowed by"))
        }
        Verdict::Leaves(address) => {
            format!("Let through: it leaves the mesh for {address}.")
        }
        Verdict::Answered(status) => {
            format!("Answered with {status} on the way; no backend is asked.")
        }
        Verdict::Refused(status) => {
            let with = status.map(|status| format!(" with {status}")).unwrap_or_default();
            match explanation.steps.last() {
                Some(step) => {
                    let by = step.decided_by.as_ref().map(|by| format!(" by {by}"));
                    format!("Refused{with}{} at: {}.", by.unwrap_or_default(), step.topic)
                }
                None => format!("Refused{with}."),
            }
        }
    }
}

/// The policies that decided.
fn deciders(explanation: &Explanation) -> Vec<&str> {
    let by = explanation.steps.iter().filter_map(|step| step.decided_by.as_deref());
    by.filter(|by| by.starts_with("policy ")).collect()
}

/// The answer for programs.
fn value(asked: &Asked, explanation: &Explanation, permitted: bool) -> Value {
    let from = match &asked.caller {
        Caller::Workload(source) => json!({
            "workload": source.uid.as_ref(),
            "identity": source.identity.to_string(),
        }),
        Caller::Outside(outside) => json!({
            "client": outside.client,
            "gateway": outside.gateway.as_str(),
            "port": outside.port,
        }),
    };
    let request = asked.http.as_ref().map(|parts| {
        let host = parts.headers.get(http::header::HOST);
        json!({
            "method": parts.method.as_str(),
            "host": host.and_then(|host| host.to_str().ok()),
            "path": parts.uri.to_string(),
        })
    });
    let step = |step: &engine::Step| {
        json!({
            "topic": step.topic.to_string(),
            "text": step.text,
            "decidedBy": step.decided_by,
        })
    };
    let verdict = match &explanation.verdict {
        Verdict::Arrives { workload, port } => {
            json!({ "outcome": "arrives", "workload": workload.as_ref(), "port": port })
        }
        Verdict::Leaves(address) => json!({ "outcome": "leaves", "address": address }),
        Verdict::Answered(status) => json!({ "outcome": "answered", "status": status }),
        Verdict::Refused(status) => json!({ "outcome": "refused", "status": status }),
    };
    json!({
        "from": from,
        "to": asked.to,
        "request": request,
        "notes": asked.notes,
        "steps": explanation.steps.iter().map(step).collect::<Vec<_>>(),
        "verdict": verdict,
        "permitted": permitted,
    })
}

#[cfg(test)]
mod tests;
