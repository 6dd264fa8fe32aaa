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

use tokio::time::{Instant, sleep_until};

use super::state::{PodLine, State};
use crate::local::UpOptions;
use crate::local::manifest::FileProblem;

/// After this long the table is shown even if pods are not ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints what changes.
#[derive(Debug)]
pub(super) struct Say {
    port: u16,
    folder: PathBuf,
    nodes: u8,
    table_due: Option<Instant>,
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
        match self.table_due {
            Some(due) => {
                let ready = !lines.is_empty()
                    && !state.ingress_missing()
                    && lines.iter().all(|line| line.ready);
                if ready || Instant::now() >= due {
                    self.table_due = None;
                    self.table(state, &lines);
                    self.seen = lines.into_iter().map(|line| (line.uid.clone(), line)).collect();
                }
            }
            None => self.changes(lines),
        }
    }

    fn look_at_files(&mut self, state: &State) {
        let now: BTreeSet<FileProblem> =
            state.folders.problems().cloned().chain(self.local_problem.clone()).collect();
        for problem in now.difference(&self.problems) {
            error(&format!("{problem} (the last good state stays)"));
        }
        if now.is_empty() && !self.problems.is_empty() {
            line("all files can be read again");
        }
        self.problems = now;
    }

    fn table(&self, state: &State, lines: &[PodLine]) {
        let ready = lines.iter().filter(|line| line.ready).count();
        line(&format!(
            "\nwaymark: {} on {} nodes, {ready} of {} pods ready\n",
            self.folder.display(),
            self.nodes,
            lines.len()
        ));
        let rows = lines.iter().map(|line| {
            let what = line
                .trouble
                .clone()
                .unwrap_or_else(|| if line.ready { "ready" } else { "starting" }.to_owned());
            let identity = format!("{}/{}", line.namespace, line.account);
            [
                line.namespace.clone(),
                line.name.clone(),
                line.node.clone(),
                line.address.clone(),
                identity,
                what,
            ]
        });
        let head = ["NAMESPACE", "POD", "NODE", "ADDRESS", "ACCOUNT", "STATE"].map(str::to_owned);
        line(&crate::cli::table::align([head].into_iter().chain(rows).map(Vec::from)));
        match state.ingress.first() {
            Some((gateway, address)) => {
                line(&format!(
                    "http://localhost:{} leads to Gateway {gateway} ({address})",
                    self.port
                ));
            }
            None => line("there is no ingress Gateway yet; localhost leads nowhere"),
        }
        line(
            "Ctrl-C ends it. In another terminal: waymark status | workloads | get pods | logs POD | explain",
        );
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

/// One line for the user; one that is gone needs none.
pub(super) fn line(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// One line about something wrong.
pub(super) fn error(text: &str) {
    drop(writeln!(std::io::stderr(), "waymark: {text}"));
}
