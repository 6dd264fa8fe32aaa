// SPDX-License-Identifier: Apache-2.0

//! What the controller says, for the eyes of the user of `waymark up`.
//!
//! Owns: questions to the controller's admin socket; a watch over files that are not in
//! force and objects that were refused, each told once as it comes.
//!
//! Start at [`ask`] and [`watch_problems`].

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::say;
use crate::local::paths;

/// From one look to the next.
const PERIOD: Duration = Duration::from_millis(300);

/// Looks until the proxies must follow.
const SETTLING: u8 = 66;

/// A refusal must last this many looks: conditions settle while things start.
const LOOKS: u8 = 20;

/// The JSON that the controller answers to a GET of `path`; none while it is away.
pub(super) async fn ask(path: &str) -> Option<Value> {
    let stream = UnixStream::connect(paths::CONTROLLER_SOCKET).await.ok()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request =
        http::Request::get(path).header("host", "controller").body(Empty::<Bytes>::new()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    let body = response.into_body().collect().await.ok()?.to_bytes();
    connection.abort();
    serde_json::from_slice(&body).ok()
}

/// Waits until the controller knows that the pods of these UIDs are ready, and every proxy
/// knows what it knows; twenty seconds at most.
pub(super) async fn settled(uids: &[String]) {
    for _ in 0..SETTLING {
        tokio::time::sleep(PERIOD).await;
        let known = ask("/workloads").await.is_some_and(|workloads| all_healthy(&workloads, uids));
        if known && ask("/status").await.is_some_and(|status| follows(&status)) {
            return;
        }
    }
}

/// Whether each of `uids` is a healthy workload.
fn all_healthy(workloads: &Value, uids: &[String]) -> bool {
    let healthy: BTreeSet<&str> = workloads
        .as_array()
        .into_iter()
        .flatten()
        .filter(|workload| workload.get("healthy") == Some(&Value::Bool(true)))
        .map(|workload| text(workload, "podUid"))
        .collect();
    uids.iter().all(|uid| healthy.contains(uid.as_str()))
}

/// Whether all clients have acknowledged the newest revision, a number or a plain yes.
fn follows(status: &Value) -> bool {
    match status.get("acknowledged") {
        Some(Value::Bool(truth)) => *truth,
        Some(Value::Number(acknowledged)) => {
            Some(acknowledged) == status.get("revision").and_then(Value::as_number)
        }
        Some(Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_)) | None => false,
    }
}

/// Tells problems of files and lasting refusals as they come and go.
pub(super) async fn watch_problems() {
    let mut files = BTreeSet::new();
    let mut refused: std::collections::BTreeMap<String, u8> = std::collections::BTreeMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(status) = ask("/status").await else { continue };
        let now: BTreeSet<String> = list(&status, "problems").map(problem).collect();
        for new in now.difference(&files) {
            say::error(new);
        }
        if now.is_empty() && !files.is_empty() {
            say::line("all files are in force again");
        }
        files = now;
        let bad: BTreeSet<String> = list(&status, "refused").map(refusal).collect();
        refused.retain(|text, _| bad.contains(text));
        for text in bad {
            let looks = refused.entry(text.clone()).or_default();
            *looks = looks.saturating_add(1);
            if *looks == LOOKS {
                say::error(&text);
            }
        }
    }
}

fn list<'a>(status: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    status.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `file:line: object: field: message`.
fn problem(value: &Value) -> String {
    let line = value.get("line").and_then(Value::as_u64).unwrap_or_default();
    let mut told = format!("{}:{line}", text(value, "file"));
    for part in ["object", "field", "message"] {
        if !text(value, part).is_empty() {
            told += &format!(": {}", text(value, part));
        }
    }
    if value.get("in_force") == Some(&Value::Bool(false)) {
        told += " (the last good state stays)";
    }
    told
}

fn refusal(value: &Value) -> String {
    format!(
        "{}: {} is not true, {}: {}",
        text(value, "object"),
        text(value, "type"),
        text(value, "reason"),
        text(value, "message")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_means_known_as_healthy_and_followed_by_all() {
        let workloads = json!([
            {"podUid": "a", "healthy": true},
            {"podUid": "b", "healthy": false},
        ]);
        assert!(all_healthy(&workloads, &["a".to_owned()]));
        assert!(!all_healthy(&workloads, &["a".to_owned(), "b".to_owned()]));
        assert!(!all_healthy(&workloads, &["c".to_owned()]), "not known yet");
        assert!(follows(&json!({"acknowledged": 7, "revision": 7})));
        assert!(!follows(&json!({"acknowledged": 6, "revision": 7})));
    }

    #[test]
    fn a_problem_names_file_line_object_and_field() {
        let value = json!({
            "file": "/f/a.yaml", "line": 7, "object": "HTTPRoute n/r", "field": "spec.rules",
            "message": "expected a list", "in_force": false,
        });
        let want =
            "/f/a.yaml:7: HTTPRoute n/r: spec.rules: expected a list (the last good state stays)";
        assert_eq!(problem(&value), want);
        assert_eq!(problem(&json!({"file": "a", "line": 0, "message": "m"})), "a:0: m");
    }
}
