// SPDX-License-Identifier: Apache-2.0

//! Puts the capture rules into a pod's network namespace, and takes them out.
//!
//! Owns: the calls of `nft` and `ip` inside the pod, and reading back what is
//! in force. Leaves the text of the rules to [`rules`] and the order of steps
//! to [`super::enrol`].
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

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::sys::NetworkNamespace;

pub mod rules;

pub use rules::Capture;

/// Longest time one `nft` or `ip` may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Preference of the policy rule, and its table.
const RULE_PREFERENCE: &str = "32764";
const ROUTE_TABLE: &str = "100";

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

    fn flags(self) -> impl Iterator<Item = &'static str> {
        std::iter::once("-4").chain(self.v6.then_some("-6"))
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
    for flag in Families::of(namespace)?.flags() {
        add_policy_route(namespace, flag).await?;
    }
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
/// When `nft` refuses. Routes that are not there are no error.
pub async fn remove(namespace: &NetworkNamespace) -> Result<(), CaptureError> {
    transact(namespace, &rules::removal()).await?;
    for flag in Families::of(namespace)?.flags() {
        let mark = fwmark();
        let rule =
            [flag, "rule", "del", "fwmark", &mark, "lookup", ROUTE_TABLE, "pref", RULE_PREFERENCE];
        let _gone = run(namespace, "ip", &rule, None).await?;
        let flush = [flag, "route", "flush", "table", ROUTE_TABLE];
        let _gone = run(namespace, "ip", &flush, None).await?;
    }
    Ok(())
}

/// What is in force now, comparable with an earlier answer for equality.
///
/// # Errors
///
/// When one of the listings fails.
pub async fn in_force(namespace: &NetworkNamespace) -> Result<Value, CaptureError> {
    let listing = json(namespace, "nft", &["-j", "list", "ruleset"]).await?;
    let mut parts = vec![rules::essence(&listing)];
    for flag in Families::of(namespace)?.flags() {
        let rule = ["-j", flag, "rule", "show", "pref", RULE_PREFERENCE];
        parts.push(json(namespace, "ip", &rule).await?);
        let route = ["-j", flag, "route", "show", "table", ROUTE_TABLE];
        // A table that was never used is an error to `ip`, and empty to us.
        parts
            .push(json(namespace, "ip", &route).await.unwrap_or_else(|_| Value::Array(Vec::new())));
    }
    Ok(Value::Array(parts))
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

async fn add_policy_route(namespace: &NetworkNamespace, flag: &str) -> Result<(), CaptureError> {
    let any = if flag == "-4" { "0.0.0.0/0" } else { "::/0" };
    let route = [flag, "route", "replace", "local", any, "dev", "lo", "table", ROUTE_TABLE];
    succeeded("ip", &run(namespace, "ip", &route, None).await?)?;
    let mark = fwmark();
    let rule =
        [flag, "rule", "add", "fwmark", &mark, "lookup", ROUTE_TABLE, "pref", RULE_PREFERENCE];
    let output = run(namespace, "ip", &rule, None).await?;
    match String::from_utf8_lossy(&output.stderr).contains("File exists") {
        true => Ok(()),
        false => succeeded("ip", &output),
    }
}

fn fwmark() -> String {
    format!("{:#x}/{:#x}", rules::CONNECTION_MARK, rules::MARK_MASK)
}

async fn json(
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
