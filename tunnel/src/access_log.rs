// SPDX-License-Identifier: Apache-2.0

//! One line per finished session, and the writer of all log lines.
//!
//! Owns the format of the access log and the thread that writes. Keeps: a
//! worker never waits for the disk; when ten thousand lines wait, it waits for
//! the writer rather than lose one.
//!
//! Rule: Istio's ztunnel, `src/proxy/metrics.rs`.

use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Lines that may wait for the writer.
const QUEUE: usize = 10_000;

/// Time of a line, as all lines print it.
const TIME: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Hands lines to the thread that writes them; cloning is cheap.
#[derive(Clone, Debug)]
pub struct LogWriter {
    lines: SyncSender<Vec<u8>>,
    json: bool,
}

/// How serious a line is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// A session that failed.
    Error,
    /// A session that never began.
    Warn,
    /// A session that ended.
    Info,
    /// A session that began.
    Debug,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// The value of a field.
#[derive(Clone, Debug)]
pub enum Value {
    /// Printed in quotes.
    Text(String),
    /// Printed as it is: addresses and numbers.
    Bare(String),
}

/// Fields of one line, in the order they are printed.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Adds text; nothing if it is empty.
    pub fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.0.push((key, Value::Text(value.to_owned())));
        }
    }

    /// Adds an address or number.
    pub fn bare(&mut self, key: &'static str, value: impl ToString) {
        self.0.push((key, Value::Bare(value.to_string())));
    }
}

/// The same fields, for a span.
impl IntoIterator for Fields {
    type Item = (&'static str, String);
    type IntoIter = std::iter::Map<
        std::vec::IntoIter<(&'static str, Value)>,
        fn((&'static str, Value)) -> (&'static str, String),
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().map(|(key, value)| match value {
            Value::Text(text) | Value::Bare(text) => (key, text),
        })
    }
}

impl LogWriter {
    /// Starts the writing thread.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub fn start(mut out: impl Write + Send + 'static, json: bool) -> io::Result<Self> {
        let (lines, queue) = sync_channel::<Vec<u8>>(QUEUE);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            while let Ok(line) = queue.recv() {
                // Lines that wait go out together; a broken pipe has nowhere to be told.
                let mut all = line;
                while let Ok(more) = queue.try_recv() {
                    all.extend_from_slice(&more);
                    if all.len() > 64 << 10 {
                        break;
                    }
                }
                drop(out.write_all(&all).and_then(|()| out.flush()));
            }
        })?;
        Ok(Self { lines, json })
    }

    /// Writes one access line.
    pub fn access(&self, level: Level, message: &str, fields: &Fields) {
        let line = match self.json {
            true => json_line(level, message, fields, SystemTime::now()),
            false => text_line(level, message, fields, SystemTime::now()),
        };
        drop(self.lines.send(line.into_bytes()));
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.send(line.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn now_text(now: SystemTime) -> String {
    OffsetDateTime::from(now).format(TIME).unwrap_or_default()
}

fn text_line(level: Level, message: &str, fields: &Fields, now: SystemTime) -> String {
    let mut line = format!("{}\t{}\taccess\t{message}\t", now_text(now), level.as_str());
    for (index, (key, value)) in fields.0.iter().enumerate() {
        let space = if index == 0 { "" } else { " " };
        line.push_str(space);
        line.push_str(key);
        line.push('=');
        match value {
            Value::Text(text) => line.push_str(&format!("{text:?}")),
            Value::Bare(text) => line.push_str(text),
        }
    }
    line.push('\n');
    line
}

fn json_line(level: Level, message: &str, fields: &Fields, now: SystemTime) -> String {
    let mut object = serde_json::Map::new();
    let mut put = |key: &str, value: &str| object.insert(key.to_owned(), value.into());
    put("level", level.as_str());
    put("time", &now_text(now));
    put("scope", "access");
    put("message", message);
    for (key, value) in &fields.0 {
        match value {
            Value::Text(text) | Value::Bare(text) => put(key, text),
        };
    }
    let mut line = serde_json::Value::Object(object).to_string();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let mut fields = Fields::default();
        fields.bare("src.addr", "10.244.1.2:38402");
        fields.text("src.workload", "a \"b\"");
        fields.text("src.cluster", "");
        fields.bare("bytes_sent", 283);
        fields
    }

    #[test]
    fn line_has_istios_columns() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(1_700_000_000_123_456);
        let line = text_line(Level::Info, "connection complete", &fields(), time);
        let want = "2023-11-14T22:13:20.123456Z\tinfo\taccess\tconnection complete\t\
                    src.addr=10.244.1.2:38402 src.workload=\"a \\\"b\\\"\" bytes_sent=283\n";
        assert_eq!(line, want);
        let json = json_line(Level::Error, "connection complete", &fields(), time);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["scope"], "access");
        assert_eq!(json["src.workload"], "a \"b\"");
    }
}
