// SPDX-License-Identifier: Apache-2.0

//! How results are shown: a table for people, JSON or YAML for programs.
//!
//! Start at [`show`].

use serde_json::Value;

use super::{Failure, out, table};

/// Form of a result.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Format {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The choice of the form.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(super) struct FormatArgs {
    /// Form of the result.
    #[arg(short, long = "output", value_enum, default_value_t)]
    pub(super) output: Format,
}

impl FormatArgs {
    /// Whether more columns are wanted.
    pub(super) fn wide(self) -> bool {
        self.output == Format::Wide
    }
}

/// Shows `value` as a program wants it, or `rows`, the heading first, as a person does.
pub(super) fn show(args: FormatArgs, value: &Value, rows: Vec<Vec<String>>) -> Result<(), Failure> {
    match args.output {
        Format::Table | Format::Wide => out(&table::align(rows.into_iter())),
        Format::Json => {
            let text = serde_json::to_string_pretty(value).map_err(Failure::from_error)?;
            out(&format!("{text}\n"));
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(Failure::from_error)?;
            out(&text);
        }
    }
    Ok(())
}

/// The text at `pointer`; a number or truth value as text; empty if there is nothing.
pub(super) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(truth)) => truth.to_string(),
        Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => String::new(),
    }
}

/// The texts of the list at `pointer`.
pub(super) fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The items of the list at `pointer`.
pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The number at `pointer`; zero if there is none.
pub(super) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// Whether `pointer` says `true`.
pub(super) fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// Uids of workloads as people name them: `Kubernetes//Pod/ns/name` is `pod ns/name`.
pub(super) fn in_words(text: &str) -> String {
    let word = |word: &str| match word.split_once("//Pod/") {
        Some((cluster, rest)) if !cluster.contains('/') => format!("pod {rest}"),
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What is shown where there is nothing.
pub(super) fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}
