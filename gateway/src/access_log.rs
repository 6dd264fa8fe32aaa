// SPDX-License-Identifier: Apache-2.0

//! One line per request or connection, in Envoy's default text format or as JSON (`access_log/json.rs`).
//!
//! Owns the text and the queue to the one thread that writes. A core never
//! waits for it: a line that finds the queue full is dropped and counted.
//!
//! Rule: field order of Envoy's default access log as Istio configures it
//! (Istio's access log).

mod json;

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use policy::authz::{Denied, PolicyName};
use routing::gateway::LogFormat;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::reply::Flag;

/// Lines that may wait to be written.
const QUEUE: usize = 10_000;

/// Where lines go; cloning is cheap.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// A log written to `out` by a thread of its own, which ends with the last clone.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(&queue, out))?;
        Ok(Self { lines, dropped: Arc::default() })
    }

    /// Queues one line; never waits.
    pub(crate) fn write(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Lines dropped because the writer did not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

fn write(queue: &Receiver<String>, mut out: impl Write) {
    while let Ok(line) = queue.recv() {
        // Whatever waits goes out at once; a broken log is no reason to stop serving.
        let mut broken = writeln!(out, "{line}").is_err();
        while let Ok(line) = queue.try_recv() {
            broken |= writeln!(out, "{line}").is_err();
        }
        if broken || out.flush().is_err() {
            tracing::warn!("access log cannot be written");
        }
    }
}

/// What a line says.
pub(crate) struct Entry<'a> {
    pub(crate) start: SystemTime,
    pub(crate) http: Option<HttpEntry<'a>>,
    pub(crate) flag: Flag,
    pub(crate) detail: &'a str,
    /// The policy that refused.
    pub(crate) denied: Option<&'a Denied>,
    /// The RequestAuthentication that refused a token.
    pub(crate) authentication: Option<&'a PolicyName>,
    /// Why there was no connection to a backend.
    pub(crate) failure: Option<&'a str>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) duration: Duration,
    pub(crate) upstream: Option<SocketAddr>,
    /// Service behind the route, or what was asked for.
    pub(crate) cluster: Option<&'a str>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) sni: Option<&'a str>,
    /// The rule that answered.
    pub(crate) route: Option<&'a dyn fmt::Display>,
}

/// The part of a line that only requests have.
#[derive(Debug)]
pub(crate) struct HttpEntry<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: Cow<'a, str>,
    pub(crate) version: &'static str,
    pub(crate) code: u16,
    /// From the first byte sent upstream to the response head.
    pub(crate) service_time: Option<Duration>,
    pub(crate) forwarded_for: Option<&'a [u8]>,
    pub(crate) user_agent: Option<&'a [u8]>,
    pub(crate) request_id: Option<&'a [u8]>,
    pub(crate) authority: &'a str,
}

impl Entry<'_> {
    /// The line, without its end.
    pub(crate) fn line(&self, format: LogFormat) -> String {
        let mut line = String::with_capacity(match format {
            LogFormat::Text => 320,
            LogFormat::Json => 800,
        });
        // Writing to a string does not fail.
        let _ok = match format {
            LogFormat::Text => self.write_text(&mut line),
            LogFormat::Json => self.write_json(&mut line),
        };
        line
    }

    /// The policy that refused, after the detail.
    fn write_denied(&self, line: &mut String) -> fmt::Result {
        match (self.denied, self.authentication) {
            (Some(Denied::Rule(by)), _) => write!(line, "[{}-rule[{}]]", by.policy, by.rule),
            (Some(denied), _) => write!(line, "[{}]", denied.policy()),
            (None, Some(name)) => write!(line, "[{name}]"),
            (None, None) => Ok(()),
        }
    }

    fn write_text(&self, line: &mut String) -> fmt::Result {
        let start = OffsetDateTime::from(self.start).format(&Rfc3339).unwrap_or_default();
        write!(line, "[{start}] ")?;
        match &self.http {
            Some(http) => {
                line.push('"');
                push_safe(line, http.method.as_bytes());
                line.push(' ');
                push_safe(line, http.target.as_bytes());
                write!(line, " {}\" {} ", http.version, http.code)?;
            }
            None => line.push_str("\"- - -\" 0 "),
        }
        write!(line, "{} {}", self.flag.as_str(), self.detail)?;
        self.write_denied(line)?;
        line.push_str(" - ");
        push_quoted(line, self.failure.map(str::as_bytes));
        let millis = self.duration.as_millis();
        write!(line, " {} {} {millis} ", self.received, self.sent)?;
        match self.http.as_ref().and_then(|http| http.service_time) {
            Some(time) => write!(line, "{} ", time.as_millis())?,
            None => line.push_str("- "),
        }
        let http = self.http.as_ref();
        push_quoted(line, http.and_then(|http| http.forwarded_for));
        line.push(' ');
        push_quoted(line, http.and_then(|http| http.user_agent));
        line.push(' ');
        push_quoted(line, http.and_then(|http| http.request_id));
        line.push(' ');
        push_quoted(line, http.map(|http| http.authority.as_bytes()));
        match self.upstream {
            Some(upstream) => write!(line, " \"{upstream}\"")?,
            None => line.push_str(" \"-\""),
        }
        write!(line, " {} - {} {} ", self.cluster.unwrap_or("-"), self.local, self.remote)?;
        push_safe(line, self.sni.unwrap_or("-").as_bytes());
        match self.route {
            Some(route) => write!(line, " {route}"),
            None => line.write_str(" -"),
        }
    }
}

fn push_quoted(line: &mut String, text: Option<&[u8]>) {
    line.push('"');
    push_safe(line, text.unwrap_or(b"-"));
    line.push('"');
}

/// Appends text of a client so that it cannot end the line or a quotation.
fn push_safe(line: &mut String, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' => {
                line.push('\\');
                line.push(char::from(byte));
            }
            b' '..=b'~' => line.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => {
                let _ok = write!(line, "\\x{byte:02x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// A request that a policy refused.
    pub(super) fn refused(denied: &Denied) -> Entry<'_> {
        Entry {
            start: SystemTime::UNIX_EPOCH,
            http: Some(HttpEntry {
                method: "GET",
                target: "/a\"b\n?c".into(),
                version: "HTTP/1.1",
                code: 403,
                service_time: None,
                forwarded_for: Some(b"10.0.0.9"),
                user_agent: Some(b"curl\xff"),
                request_id: Some(b"id-1"),
                authority: "reviews:9080",
            }),
            flag: Flag::Denied,
            detail: "rbac_access_denied_matched_policy",
            denied: Some(denied),
            authentication: None,
            failure: None,
            received: 0,
            sent: 19,
            duration: Duration::from_micros(1_900),
            upstream: None,
            cluster: Some("shop/reviews.shop.svc.cluster.local"),
            local: "10.96.0.5:9080".parse().unwrap(),
            remote: "10.244.1.2:40000".parse().unwrap(),
            sni: None,
            route: Some(&"HTTPRoute/shop/reviews/0"),
        }
    }

    #[test]
    fn a_line_has_the_fields_of_envoy_in_their_order() {
        let denied = Denied::NotAllowed(PolicyName::new("shop", "only-web"));
        let entry = refused(&denied);
        let want = "[1970-01-01T00:00:00Z] \"GET /a\\\"b\\x0a?c HTTP/1.1\" 403 DENY \
            rbac_access_denied_matched_policy[shop/only-web] - \"-\" 0 19 1 - \"10.0.0.9\" \
            \"curl\\xff\" \"id-1\" \"reviews:9080\" \"-\" shop/reviews.shop.svc.cluster.local - \
            10.96.0.5:9080 10.244.1.2:40000 - HTTPRoute/shop/reviews/0";
        assert_eq!(entry.line(LogFormat::Text), want);
    }

    #[test]
    fn a_writer_that_stands_still_costs_lines_and_no_time() {
        /// Says that it was reached, then waits for the lock.
        struct Stuck(std::sync::mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>);

        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.send(()).unwrap();
                self.1.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let (reached, told) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let held = written.lock().unwrap();
        let log = AccessLog::start(Stuck(reached, Arc::clone(&written))).unwrap();
        log.write("first".into());
        told.recv().unwrap();
        for _ in 0..QUEUE + 5 {
            log.write("more".into());
        }
        assert_eq!(log.dropped(), 5);
        drop(held);
        drop(log);
        // The writer's end of the channel goes with its thread.
        while told.recv().is_ok() {}
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count(), QUEUE + 1);
        assert_eq!(written.lines().next(), Some("first"));
    }
}
