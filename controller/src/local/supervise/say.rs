// SPDX-License-Identifier: Apache-2.0

//! What the user of `waymark up` gets to read.
//!
//! Owns: the table of what runs where, once all pods are ready or have had their time; one
//! line for each change after that; file errors as they come.
//!
//! Start at [`Say::look`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::inquire;
use super::running::PodLine;
use super::state::State;
use crate::local::UpOptions;
use crate::local::manifest::FileProblem;

/// After this long the table is shown even if pods are not ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Said once, when all pods are ready for the first time.
const ALL_READY: &str = "All pods are ready.";

/// Prints what changes.
#[derive(Debug)]
pub(super) struct Say {
    port: u16,
    folder: PathBuf,
    nodes: u8,
    table_due: Option<Instant>,
    all_ready: bool,
    seen: BTreeMap<String, PodLine>,
    problems: BTreeSet<FileProblem>,
    local_problem: Option<FileProblem>,
}

impl Say {
    /// For the world of `options`.
    pub(super) fn new(options: &UpOptions) -> Self {
        Self {
            port: options.port,
            folder: options.folder.clone(),
            nodes: options.nodes,
            table_due: Some(Instant::now() + PATIENCE),
            all_ready: false,
            seen: BTreeMap::new(),
            problems: BTreeSet::new(),
            local_problem: None,
        }
    }

    /// Takes note of whether `local.yaml` can be read.
    pub(super) fn local_file(&mut self, problem: Option<(PathBuf, usize, String)>) {
        self.local_problem =
            problem.map(|(file, line, message)| FileProblem { file, line, object: None, message });
    }

    /// Resolves when something is to be said though nothing happened.
    pub(super) async fn due(&self) {
        match self.table_due {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Says what is new in `state`.
    pub(super) fn look(&mut self, state: &State) {
        self.look_at_files(state);
        let lines = state.lines();
        let ready =
            !lines.is_empty() && !state.ingress_missing() && lines.iter().all(|line| line.ready);
        match self.table_due {
            Some(due) => {
                if ready || Instant::now() >= due {
                    self.table_due = None;
                    self.all_ready = ready;
                    self.table(state, lines.clone(), ready);
                    self.seen = lines.into_iter().map(|line| (line.uid.clone(), line)).collect();
                }
            }
            None => {
                let uids = lines.iter().map(|line| line.uid.clone()).collect();
                self.changes(lines);
                if ready && !std::mem::replace(&mut self.all_ready, true) {
                    tokio::spawn(say_ready(uids));
                }
            }
        }
    }

    fn look_at_files(&mut self, state: &State) {
        // The controller reads the same files and tells of all kinds that it knows.
        let ours = |problem: &&FileProblem| {
            problem
                .object
                .as_ref()
                .is_some_and(|object| ["StatefulSet", "DaemonSet"].contains(&object.kind.as_str()))
        };
        let now: BTreeSet<FileProblem> = state
            .folders
            .problems()
            .filter(ours)
            .cloned()
            .chain(self.local_problem.clone())
            .collect();
        for problem in now.difference(&self.problems) {
            error(&format!("{problem} (the last good state stays)"));
        }
        self.problems = now;
    }

    fn table(&self, state: &State, lines: Vec<PodLine>, ready: bool) {
        let table = Table {
            title: format!("\n{} on {} nodes\n", self.folder.display(), self.nodes),
            port: self.port,
            ingress: state
                .ingress
                .first()
                .map(|(gateway, address)| (gateway.clone(), address.to_string())),
            lines,
            ready,
        };
        tokio::spawn(table.print());
    }

    fn changes(&mut self, lines: Vec<PodLine>) {
        let now: BTreeMap<String, PodLine> =
            lines.into_iter().map(|line| (line.uid.clone(), line)).collect();
        for (uid, pod) in &now {
            let before = self.seen.get(uid);
            let name = format!("pod {}/{}", pod.namespace, pod.name);
            match before {
                None => line(&format!("{name} starts on {} with {}", pod.node, pod.address)),
                Some(before) if !before.ready && pod.ready => line(&format!("{name} is ready")),
                Some(before) if !before.going && pod.going => line(&format!("{name} is going")),
                Some(before) if before.ready && !pod.ready && !pod.going => {
                    line(&format!("{name} is not ready any more"))
                }
                Some(_) => {}
            }
            if let Some(trouble) = &pod.trouble
                && before.is_none_or(|before| before.trouble.as_ref() != Some(trouble))
            {
                error(&format!("{name}: {trouble}"));
            }
        }
        for pod in self.seen.iter().filter(|(uid, _)| !now.contains_key(*uid)).map(|(_, pod)| pod) {
            line(&format!("pod {}/{} is gone", pod.namespace, pod.name));
        }
        self.seen = now;
    }
}

/// Says that all is ready, once the proxies know it too.
async fn say_ready(uids: Vec<String>) {
    inquire::settled(&uids).await;
    line(ALL_READY);
}

/// What runs where, as it is once all pods are ready.
struct Table {
    title: String,
    port: u16,
    ingress: Option<(String, String)>,
    lines: Vec<PodLine>,
    ready: bool,
}

impl Table {
    async fn print(self) {
        let workloads = inquire::ask("/workloads").await.unwrap_or_default();
        let routes = inquire::ask("/objects?kind=HTTPRoute").await.unwrap_or_default();
        line(&self.title);
        let head =
            ["NAMESPACE", "POD", "NODE", "ADDRESS", "IDENTITY", "MESH", "STATE"].map(str::to_owned);
        let rows = self.lines.iter().map(|pod| row(pod, &workloads));
        line(&crate::cli::table::align([Vec::from(head)].into_iter().chain(rows)));
        match &self.ingress {
            Some((gateway, address)) => {
                line(&format!(
                    "http://localhost:{} leads to Gateway {gateway} ({address}); try:",
                    self.port
                ));
                line(&format!(
                    "  curl http://localhost:{}{}",
                    self.port,
                    first_path(&routes, gateway)
                ));
            }
            None => line("there is no ingress Gateway; localhost leads nowhere. From a pod, try:"),
        }
        line(
            "  waymark status | workloads | policies | get gateways | logs POD | exec POD -- COMMAND",
        );
        line("Edit any file of the folder: it takes effect at once. Ctrl-C ends everything.");
        if self.ready {
            say_ready(self.lines.iter().map(|line| line.uid.clone()).collect()).await;
        }
    }
}

fn row(pod: &PodLine, workloads: &Value) -> Vec<String> {
    let text = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let all = workloads.as_array().into_iter().flatten();
    let known = all.into_iter().find(|workload| text(workload, "/podUid") == pod.uid);
    let identity = known.map(|workload| text(workload, "/identity")).unwrap_or_default();
    let mesh = known.map(|workload| {
        let wanted = workload.pointer("/enrolment/wanted") == Some(&Value::Bool(true));
        match text(workload, "/enrolment/state").to_ascii_lowercase().as_str() {
            "enrolled" => "enrolled",
            _ if wanted => "waiting",
            _ => "-",
        }
    });
    let state = pod
        .trouble
        .clone()
        .unwrap_or_else(|| if pod.ready { "ready" } else { "starting" }.to_owned());
    vec![
        pod.namespace.clone(),
        pod.name.clone(),
        pod.node.clone(),
        pod.address.clone(),
        identity.trim_start_matches("spiffe://").to_owned(),
        mesh.unwrap_or("-").to_owned(),
        state,
    ]
}

/// A path that a route of `gateway`, `namespace/name`, takes.
fn first_path(routes: &Value, gateway: &str) -> String {
    let name = gateway.split('/').nth(1).unwrap_or_default();
    let items = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let of_gateway = |route: &Value| {
        items(route, "/spec/parentRefs")
            .iter()
            .any(|parent| parent.get("name").and_then(Value::as_str) == Some(name))
    };
    let path = items(routes, "/items")
        .iter()
        .filter(|route| of_gateway(route))
        .flat_map(|route| items(route, "/spec/rules"))
        .flat_map(|rule| items(&rule, "/matches"))
        .find_map(|rule| rule.pointer("/path/value").and_then(Value::as_str).map(str::to_owned));
    path.unwrap_or_else(|| "/".to_owned())
}

/// One line for the user; one that is gone needs none.
pub(super) fn line(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// One line about something wrong.
pub(super) fn error(text: &str) {
    drop(writeln!(std::io::stderr(), "waymark: {text}"));
}
