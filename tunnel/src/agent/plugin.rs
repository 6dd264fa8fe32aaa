// SPDX-License-Identifier: Apache-2.0

//! The CNI plug-in: tells the agent of each pod, and waits for its word.
//!
//! Owns: the plug-in's side of the CNI protocol and the call to the agent.
//! Runs chained behind another plug-in, so its result is that one's result.
//!
//! Keeps: a pod of a namespace that the agent's file names as outside starts
//! at once, with the agent or without; any other waits, and fails while the
//! agent is away, so that the kubelet tries again. Unknown means inside. No
//! pod's end waits.
//!
//! Rule: CNI specification 1.1.0, sections 2 and 4; error codes of section 5.
//!
//! Start at [`run`].

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::server::{Call, PATIENCE, Refused};
use super::state::Outside;

/// Versions of the protocol that are spoken.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where the agent lives unless the configuration says otherwise.
const AGENT_FOLDER: &str = "/var/run/istio-cni";

/// Longest wait for an agent that has nothing to wait for.
const BRIEF: Duration = Duration::from_secs(2);

/// Name of the agent's socket in its folder.
pub const SOCKET: &str = "pluginevent.sock";

/// What the runtime asks; its environment variables.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`: pairs of the orchestrator.
    pub args: String,
}

/// What the plug-in prints, and whether it succeeded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Output {
    /// One JSON object, or nothing.
    pub text: Option<Value>,
    /// Exit code 0.
    pub success: bool,
}

/// The plug-in's part of the network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(default)]
    cni_version: String,
    #[serde(rename = "cni_agent_run_dir", default)]
    agent_folder: Option<PathBuf>,
    #[serde(default)]
    prev_result: Option<Value>,
}

/// Failure in the form of the specification.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Code 11: the runtime may try again.
    fn later(message: impl Into<String>) -> Self {
        Self::new(11, message)
    }
}

/// Serves one invocation, with the network configuration from standard input.
#[must_use]
pub fn run(invocation: &Invocation, input: &str) -> Output {
    if invocation.command == "VERSION" {
        let version = VERSIONS.last();
        let text = json!({"cniVersion": version, "supportedVersions": VERSIONS});
        return Output { text: Some(text), success: true };
    }
    let configuration: Configuration = match serde_json::from_str(input) {
        Ok(configuration) => configuration,
        Err(error) => return fail("", Failure::new(6, format!("configuration: {error}"))),
    };
    let version = configuration.cni_version.clone();
    if !VERSIONS.contains(&version.as_str()) {
        return fail(&version, Failure::new(1, format!("CNI version {version:?} is not spoken")));
    }
    let outcome = match invocation.command.as_str() {
        "ADD" => add(invocation, configuration).map(Some),
        "DEL" => {
            delete(invocation, &configuration);
            Ok(None)
        }
        "CHECK" | "GC" => Ok(None),
        "STATUS" => status(&configuration).map(|()| None),
        other => Err(Failure::new(4, format!("CNI_COMMAND {other:?} is not known"))),
    };
    match outcome {
        Ok(text) => Output { text, success: true },
        Err(failure) => fail(&version, failure),
    }
}

fn fail(version: &str, failure: Failure) -> Output {
    let version = if version.is_empty() { "1.0.0" } else { version };
    let text = json!({
        "cniVersion": version, "code": failure.code, "msg": failure.message, "details": "",
    });
    Output { text: Some(text), success: false }
}

fn add(invocation: &Invocation, configuration: Configuration) -> Result<Value, Failure> {
    let folder = folder(&configuration);
    let previous = configuration.prev_result.ok_or_else(|| {
        Failure::new(7, "prevResult is missing: this plug-in must be chained behind another")
    })?;
    let pod = |key| argument(&invocation.args, key).unwrap_or_default().to_owned();
    let namespace = pod("K8S_POD_NAMESPACE");
    let outside = Outside::read(&folder).namespaces.contains(&namespace);
    let call = Call {
        netns: invocation.netns.as_str().into(),
        pod_name: pod("K8S_POD_NAME"),
        pod_namespace: namespace,
        pod_uid: pod("K8S_POD_UID"),
        ips: addresses(&previous),
        outside,
    };
    if call.pod_uid.is_empty() && !outside {
        return Err(Failure::new(4, "CNI_ARGS name no K8S_POD_UID"));
    }
    let body = serde_json::to_vec(&call).map_err(|error| Failure::new(100, error.to_string()))?;
    let patience = if outside { BRIEF } else { PATIENCE + BRIEF };
    match post(&folder.join(SOCKET), "/cmdadd", &body, patience) {
        _ if outside => Ok(previous),
        Ok((200, _)) => Ok(previous),
        Ok((_, answer)) => {
            let reason = serde_json::from_slice(&answer).map(|Refused { error }| error);
            Err(Failure::later(reason.unwrap_or_else(|_| "the agent refused".to_owned())))
        }
        // What a read says that waited in vain.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let waited = patience.as_secs();
            Err(Failure::later(format!("the agent does not answer, after {waited} s")))
        }
        Err(error) => Err(Failure::later(format!("the agent cannot be reached: {error}"))),
    }
}

/// Tells the agent; it finds out by itself if it cannot be told.
fn delete(invocation: &Invocation, configuration: &Configuration) {
    let Some(uid) = argument(&invocation.args, "K8S_POD_UID") else { return };
    let body = json!({"podUid": uid, "netns": invocation.netns}).to_string();
    let _unheard = post(&folder(configuration).join(SOCKET), "/cmddel", body.as_bytes(), BRIEF);
}

/// Code 50: the plug-in cannot serve ADD now.
fn status(configuration: &Configuration) -> Result<(), Failure> {
    match UnixStream::connect(folder(configuration).join(SOCKET)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(50, format!("the agent cannot be reached: {error}"))),
    }
}

fn folder(configuration: &Configuration) -> PathBuf {
    configuration.agent_folder.clone().unwrap_or_else(|| AGENT_FOLDER.into())
}

/// A value of `KEY=VALUE;KEY=VALUE`.
fn argument<'a>(arguments: &'a str, key: &str) -> Option<&'a str> {
    let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next()
}

/// Addresses of a CNI result, without their prefix lengths.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    let address = |ip: &Value| {
        let text = ip.get("address")?.as_str()?;
        text.split('/').next()?.parse().ok()
    };
    ips.into_iter().flatten().filter_map(address).collect()
}

/// One HTTP call over a Unix socket: status and body of the answer.
///
/// The agent answers in time by itself; `patience` is for one that hangs.
fn post(
    socket: &std::path::Path,
    path: &str,
    body: &[u8],
    patience: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(BRIEF))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse_answer(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_answer(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let border = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(border + 4)?;
    let status = std::str::from_utf8(head).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_vec()))
}

#[cfg(test)]
mod tests;
