// SPDX-License-Identifier: Apache-2.0

//! Puts the capture rules into a pod's network namespace, and takes them out.
//!
//! Owns: the calls of `nft` inside the pod, and reading back what is in force.
//! Leaves the text of the rules to [`rules`], policy routing to [`routes`] and
//! the order of steps to [`super::enrol`].
//!
//! Keeps: a change is one transaction, so no packet sees half of it; applying
//! twice is harmless, and open connections live through every call but
//! [`remove`], which is for pods whose captured connections have ended.
//!
//! Start at [`apply`].

use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::sys::NetworkNamespace;

mod routes;
pub mod rules;

use routes::Routes;
pub use rules::Capture;

/// Longest time one program may take, or the kernel to answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Programs that run at once on a node: of a hundred pods that start together more would only
/// take the time of those that are under way, until none is done in its own.
static TURNS: Semaphore = Semaphore::const_new(4);

/// Why rules could not be set or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The namespace cannot be entered.
    #[error("cannot enter the pod's network namespace")]
    Enter(#[source] io::Error),

    /// The program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Name of the program.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// The program refused.
    #[error("{program} refused: {message}")]
    Refused {
        /// Name of the program.
        program: &'static str,
        /// Its own words.
        message: String,
    },

    /// The kernel cannot be asked for rules and routes.
    #[error("cannot ask the kernel for policy routing")]
    Ask(#[source] io::Error),

    /// The kernel refused.
    #[error("the kernel refused {what}")]
    Kernel {
        /// What it was to do.
        what: &'static str,
        /// What it said.
        #[source]
        source: rtnetlink::Error,
    },

    /// The program printed something else than announced.
    #[error("{0} printed no JSON")]
    Unreadable(&'static str),
}

/// Address families that a namespace has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Families {
    /// Some interface has an IPv6 address.
    pub v6: bool,
}

impl Families {
    /// Looks into a namespace; IPv4 is always there.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn of(namespace: &NetworkNamespace) -> Result<Self, CaptureError> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/if_inet6");
        let addresses = namespace.enter(read).map_err(CaptureError::Enter)?;
        Ok(Self { v6: addresses.is_ok_and(|text| !text.trim().is_empty()) })
    }
}

/// Puts `capture` in force, whatever was there before.
///
/// Routes come first: a captured connection needs them for its replies.
///
/// # Errors
///
/// Nothing of the rules was changed then; routes may have been.
pub async fn apply(namespace: &NetworkNamespace, capture: &Capture) -> Result<(), CaptureError> {
    in_time(Routes::of(namespace)?.add()).await?;
    transact(namespace, &rules::capture(capture)).await
}

/// Captures nothing new; what is captured lives on.
///
/// # Errors
///
/// Nothing was changed then.
pub async fn release(namespace: &NetworkNamespace) -> Result<(), CaptureError> {
    transact(namespace, &rules::release()).await
}

/// Takes all rules away; captured connections that are still open stall.
///
/// # Errors
///
/// When `nft` or the kernel refuses. Routes that are not there are no error.
pub async fn remove(namespace: &NetworkNamespace) -> Result<(), CaptureError> {
    transact(namespace, &rules::removal()).await?;
    in_time(Routes::of(namespace)?.remove()).await
}

/// What is in force now, comparable with an earlier answer for equality.
///
/// # Errors
///
/// When one of the listings fails.
pub async fn in_force(namespace: &NetworkNamespace) -> Result<Value, CaptureError> {
    let listing = read(namespace, "nft", &["-j", "list", "ruleset"]).await?;
    let routes = in_time(Routes::of(namespace)?.in_force()).await?;
    Ok(json!([rules::essence(&listing), routes]))
}

/// Tells whether the pod's loopback is up. Without it nothing can be captured, and the routes
/// that capture needs are gone; a runtime takes it down first when it takes a pod down.
///
/// # Errors
///
/// When the namespace cannot be entered, or the kernel does not tell.
pub async fn loopback_is_up(namespace: &NetworkNamespace) -> Result<bool, CaptureError> {
    in_time(Routes::of(namespace)?.loopback_is_up()).await
}

/// What differs between two answers of [`in_force`], in a few words.
#[must_use]
pub fn difference(before: &Value, now: &Value) -> String {
    /// Longest text of one thing, in characters.
    const MOST: usize = 160;
    let things = |answer: &Value| -> Vec<String> {
        let parts = answer.as_array().into_iter().flatten();
        parts.flat_map(|part| part.as_array().into_iter().flatten()).map(Value::to_string).collect()
    };
    let (before, now) = (things(before), things(now));
    let lacking = |one: &[String], other: &[String], what: &str| {
        let gone: Vec<&String> = one.iter().filter(|thing| !other.contains(thing)).collect();
        let first = gone.first()?;
        let text: String = first.chars().take(MOST).collect();
        Some(format!("{} {what}, the first {text}", gone.len()))
    };
    let missing = lacking(&before, &now, "missing");
    let more = lacking(&now, &before, "that were not set");
    let all: Vec<String> = missing.into_iter().chain(more).collect();
    if all.is_empty() { "their order".to_owned() } else { all.join("; ") }
}

/// A kernel that does not answer is an error, like a program that does not end.
async fn in_time<T>(
    asked: impl Future<Output = Result<T, CaptureError>>,
) -> Result<T, CaptureError> {
    let answer = tokio::time::timeout(COMMAND_TIMEOUT, asked).await;
    answer.unwrap_or_else(|_| Err(CaptureError::Ask(io::ErrorKind::TimedOut.into())))
}

/// Runs one `nft` transaction in `namespace`.
///
/// # Errors
///
/// Nothing was changed then.
pub(crate) async fn transact(
    namespace: &NetworkNamespace,
    script: &Value,
) -> Result<(), CaptureError> {
    let output = run(namespace, "nft", &["-j", "-f", "-"], Some(script.to_string())).await?;
    succeeded("nft", &output)
}

async fn read(
    namespace: &NetworkNamespace,
    program: &'static str,
    arguments: &[&str],
) -> Result<Value, CaptureError> {
    let output = run(namespace, program, arguments, None).await?;
    succeeded(program, &output)?;
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_slice(&output.stdout).map_err(|_| CaptureError::Unreadable(program))
}

fn succeeded(program: &'static str, output: &Output) -> Result<(), CaptureError> {
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().next().unwrap_or("no reason given").trim().to_owned();
    Err(CaptureError::Refused { program, message })
}

/// Runs a program inside a namespace; a child stays where its parent was born.
pub(crate) async fn run(
    namespace: &NetworkNamespace,
    program: &'static str,
    arguments: &[&str],
    input: Option<String>,
) -> Result<Output, CaptureError> {
    let mut command = Command::new(locate(program));
    command
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let failed = |source| CaptureError::Run { program, source };
    // Nobody closes it: it is always there to be taken.
    let _turn = TURNS.acquire().await;
    let mut child =
        namespace.enter(|| command.spawn()).map_err(CaptureError::Enter)?.map_err(failed)?;
    let finish = async move {
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(COMMAND_TIMEOUT, finish).await {
        Ok(output) => output.map_err(failed),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

/// Where a tool lies: an ordinary user's `PATH` often lacks `sbin`.
fn locate(program: &str) -> std::path::PathBuf {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(program));
    found.into_iter().find(|path| path.exists()).unwrap_or_else(|| program.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_in_a_few_words() {
        let set = json!([[{"table": "nat"}, {"chain": "a"}], ["rule 1", "route 1"]]);
        let cases = [
            (json!([[{"table": "nat"}, {"chain": "a"}], []]), r#"2 missing, the first "rule 1""#),
            (
                json!([[{"table": "nat"}, {"chain": "b"}], ["rule 1", "route 1"]]),
                r#"1 missing, the first {"chain":"a"}; 1 that were not set, the first {"chain":"b"}"#,
            ),
            (json!([[{"chain": "a"}, {"table": "nat"}], ["rule 1", "route 1"]]), "their order"),
        ];
        for (now, told) in cases {
            assert_eq!(difference(&set, &now), told);
        }
    }
}
