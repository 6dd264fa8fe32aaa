// SPDX-License-Identifier: Apache-2.0

//! The few words of Helm's that the chart's templates are written in. Pure.
//!
//! Owns: `{{ .Values.path }}`, `{{ .Release.Namespace }}`, either after `toJson` or `quote`;
//! and, on lines of their own, `{{- if .Values.path }}` and
//! `{{- range $key, $value := .Values.path }}` (inside: `{{ $key }}`, `{{ $value }}`), each to its
//! `{{- end }}`. Anything else is refused: Helm might make something else of it.
//!
//! Start at [`render`].

use std::borrow::Cow;

use serde_json::Value;

use super::InstallError;

/// A template with its words replaced.
///
/// # Errors
///
/// [`InstallError::Word`].
pub(super) fn render(
    file: &'static str,
    template: &str,
    namespace: &str,
    values: &Value,
) -> Result<String, InstallError> {
    let lines: Vec<&str> = template.lines().collect();
    let mut rendering =
        Rendering { file, namespace, values, text: String::with_capacity(template.len()) };
    rendering.lines(&lines, None)?;
    Ok(rendering.text)
}

/// The element that a `range` is at.
type Element<'a> = Option<(&'a str, &'a Value)>;

struct Rendering<'a> {
    file: &'static str,
    namespace: &'a str,
    values: &'a Value,
    text: String,
}

impl<'a> Rendering<'a> {
    fn lines(&mut self, lines: &[&str], element: Element<'_>) -> Result<(), InstallError> {
        let mut rest = lines;
        while let [line, after @ ..] = rest {
            rest = after;
            let Some(block) = line.trim().strip_prefix("{{- ") else {
                self.line(line, element)?;
                continue;
            };
            let unknown = || self.unknown(line.trim());
            let block = block.strip_suffix(" }}").ok_or_else(unknown)?;
            let (inside, beyond) =
                end(after).and_then(|end| after.split_at_checked(end)).ok_or_else(unknown)?;
            rest = beyond.get(1..).unwrap_or_default();
            if let Some(path) = block.strip_prefix("if ") {
                if is_true(self.value(path)?) {
                    self.lines(inside, element)?;
                }
            } else if let Some(path) = block.strip_prefix("range $key, $value := ") {
                match self.value(path)? {
                    Value::Null => {}
                    Value::Array(all) => {
                        for (index, value) in all.iter().enumerate() {
                            self.lines(inside, Some((&index.to_string(), value)))?;
                        }
                    }
                    Value::Object(all) => {
                        for (key, value) in all {
                            self.lines(inside, Some((key, value)))?;
                        }
                    }
                    Value::Bool(_) | Value::Number(_) | Value::String(_) => return Err(unknown()),
                }
            } else {
                return Err(unknown());
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str, element: Element<'_>) -> Result<(), InstallError> {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("{{ ") {
            self.text.push_str(before);
            let (word, after) = after.split_once(" }}").ok_or_else(|| self.unknown(after))?;
            rest = after;
            let text = self.word(word, element)?;
            self.text.push_str(&text);
        }
        self.text.push_str(rest);
        self.text.push('\n');
        Ok(())
    }

    fn word(&self, word: &str, element: Element<'_>) -> Result<String, InstallError> {
        let (form, path) = match word.split_once(' ') {
            Some((form @ ("toJson" | "quote"), path)) => (form, path),
            _ => ("", word),
        };
        let value = match (path, element) {
            (".Release.Namespace", _) => Cow::Owned(Value::from(self.namespace)),
            ("$key", Some((key, _))) => Cow::Owned(Value::from(key)),
            ("$value", Some((_, value))) => Cow::Borrowed(value),
            (path, _) if path.starts_with('.') => Cow::Borrowed(self.value(path)?),
            _ => return Err(self.unknown(word)),
        };
        let plain = match &*value {
            value if form == "toJson" => return Ok(value.to_string()),
            Value::Object(_) | Value::Array(_) => return Err(self.unknown(word)),
            Value::Null => return Ok(String::new()),
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
        };
        Ok(if form == "quote" { Value::from(plain).to_string() } else { plain })
    }

    /// A value; null, if it was taken away.
    fn value(&self, path: &str) -> Result<&'a Value, InstallError> {
        let path = path.strip_prefix(".Values.").ok_or_else(|| self.unknown(path))?;
        let value = self.values.pointer(&format!("/{}", path.replace('.', "/")));
        Ok(value.unwrap_or(&Value::Null))
    }

    fn unknown(&self, word: &str) -> InstallError {
        InstallError::Word { file: self.file, word: word.to_owned() }
    }
}

/// How many lines stand before the end of a block that began above them.
fn end(lines: &[&str]) -> Option<usize> {
    let mut open = 0_usize;
    lines.iter().map(|line| line.trim()).position(|line| {
        if line == "{{- end }}" {
            let ends = open == 0;
            open = open.saturating_sub(1);
            return ends;
        }
        if line.starts_with("{{- ") {
            open += 1;
        }
        false
    })
}

/// What a condition takes for true.
///
/// Rule: truth of Go's `text/template`.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str, values: &Value) -> Result<String, InstallError> {
        render("t", template, "ns", values)
    }

    #[test]
    fn words_that_are_not_understood_are_refused() {
        let values = json!({"a": {"b": 1, "c": [1], "d": "it's"}, "z": null});
        for (template, want) in [
            ("x: {{ .Values.a.b }} {{ .Release.Namespace }}", "x: 1 ns\n"),
            ("x: {{ toJson .Values.a.c }}", "x: [1]\n"),
            ("x: {{ quote .Values.a.b }}", "x: \"1\"\n"),
            ("x: {{ quote .Values.a.d }}", "x: \"it's\"\n"),
            ("x: {{ .Values.z }}", "x: \n"),
        ] {
            assert_eq!(rendered(template, &values).unwrap(), want, "{template}");
        }
        for bad in [
            "{{ if .Values.a }}",
            "{{ .Values.a.c }}",
            "{{ quote .Values.a.c }}",
            "{{ upper .Values.a.d }}",
            "{{ .Values.a.b",
            "{{ $value }}",
        ] {
            assert!(matches!(rendered(bad, &values), Err(InstallError::Word { .. })), "{bad}");
        }
        let gone = "x: {{ .Values.y }}, {{ toJson .Values.y }}";
        assert_eq!(rendered(gone, &values).unwrap(), "x: , null\n");
    }

    #[test]
    fn lines_are_left_out_whose_condition_does_not_hold() {
        let values = json!({"on": true, "off": false, "none": [], "some": {"a": 1}, "empty": ""});
        let lines = |path: &str| {
            format!("a: 1\n  {{{{- if .Values.{path} }}}}\nb: 2\n{{{{- end }}}}\nc: 3\n")
        };
        for (path, holds) in [
            ("on", true),
            ("off", false),
            ("none", false),
            ("some", true),
            ("empty", false),
            ("gone", false),
        ] {
            let want = if holds { "a: 1\nb: 2\nc: 3\n" } else { "a: 1\nc: 3\n" };
            assert_eq!(rendered(&lines(path), &values).unwrap(), want, "{path}");
        }
        for bad in [
            "{{- if .Values.on }}\n",
            "{{- end }}\n",
            "{{- if not .Values.on }}\n{{- end }}\n",
            "{{- if .Values.on }}\n{{- if .Values.on }}\n{{- end }}\n",
            "{{- range $key, $value := .Values.on }}\n{{- end }}\n",
            "{{- range .Values.some }}\n{{- end }}\n",
        ] {
            assert!(matches!(rendered(bad, &values), Err(InstallError::Word { .. })), "{bad}");
        }
    }

    #[test]
    fn blocks_repeat_for_each_element_and_may_stand_in_each_other() {
        let values = json!({"list": ["a", "b"], "map": {"k": 1}, "none": null, "on": true});
        let block = |path: &str| {
            format!(
                "{{{{- if .Values.on }}}}\nall:\n{{{{- range $key, $value := .Values.{path} }}}}\n\
                 - {{{{ quote $key }}}}: {{{{ $value }}}}\n{{{{- end }}}}\n{{{{- end }}}}\nend\n"
            )
        };
        for (path, want) in [
            ("list", "all:\n- \"0\": a\n- \"1\": b\nend\n"),
            ("map", "all:\n- \"k\": 1\nend\n"),
            ("none", "all:\nend\n"),
        ] {
            assert_eq!(rendered(&block(path), &values).unwrap(), want, "{path}");
        }
    }
}
