// SPDX-License-Identifier: Apache-2.0

//! One thing that `waymark check` looked at. Pure.

use serde::Serialize;

/// How bad a finding is; the worst is the greatest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Level {
    /// Looked at, and well.
    Ok,
    /// Worth knowing; nothing need be done.
    Note,
    /// Works, and something should be done.
    Warning,
    /// Does not work, or will not.
    Error,
}

impl Level {
    /// As it is printed.
    pub(in crate::cli) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(in crate::cli) struct Finding {
    /// How bad it is.
    pub(in crate::cli) level: Level,
    /// What was looked at: a short name that scripts can rely on.
    pub(in crate::cli) check: &'static str,
    /// The object concerned.
    pub(in crate::cli) subject: String,
    /// What is so.
    pub(in crate::cli) message: String,
    /// What to do; empty where nothing need be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) todo: String,
}

impl Finding {
    /// Something that is well.
    pub(in crate::cli) fn ok(
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Ok,
            check,
            subject: subject.into(),
            message: message.into(),
            todo: String::new(),
        }
    }

    /// The same as bad as `level`, with what to do about it.
    #[must_use]
    pub(in crate::cli) fn but(self, level: Level, todo: impl Into<String>) -> Self {
        Self { level, todo: todo.into(), ..self }
    }
}

/// The worst of all findings; [`Level::Ok`] if there are none.
pub(in crate::cli) fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// Some names of many, for people: at most three, and how many more.
pub(in crate::cli) fn some_of(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
    match names.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_counts_and_many_names_are_cut() {
        let one = |level| Finding::ok("x", "s", "m").but(level, "");
        assert_eq!(worst(&[]), Level::Ok);
        assert_eq!(
            worst(&[one(Level::Note), one(Level::Error), one(Level::Warning)]),
            Level::Error
        );
        let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
        assert_eq!(some_of(&names), "a, b, c and 2 more");
        assert_eq!(some_of(&names[..2]), "a, b");
    }
}
