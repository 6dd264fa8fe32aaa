// SPDX-License-Identifier: Apache-2.0

//! Text to compare with: exact, or a regular expression over the whole text.

use std::fmt;
use std::sync::Arc;

use regex::Regex;

/// A regular expression that must match a text from its first byte to its last.
///
/// RE2 syntax, as the `regex` crate has it, without look-around and back references, so the
/// time of a match is linear in the text. The compiled form is at most 1 MiB.
///
/// Rule: `RegularExpression` in Gateway API is implementation specific; Istio's proxies match
/// the full text with RE2, and so does this.
#[derive(Clone)]
pub struct Pattern {
    source: Arc<str>,
    regex: Regex,
}

/// Text that is no regular expression, or one too large.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is no regular expression")]
pub struct InvalidPattern(String, #[source] regex::Error);

impl Pattern {
    const MAX_COMPILED: usize = 1 << 20;

    /// Compiles `source`.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] if it cannot be compiled within the limit.
    pub fn new(source: &str) -> Result<Self, InvalidPattern> {
        let invalid = |error| InvalidPattern(source.to_owned(), error);
        // On its own first: `a)(b` must not become legal by the group around it.
        let compile = |text: &str| {
            regex::RegexBuilder::new(text).size_limit(Self::MAX_COMPILED).build().map_err(invalid)
        };
        compile(source)?;
        let regex = compile(&format!(r"\A(?:{source})\z"))?;
        Ok(Self { source: source.into(), regex })
    }

    /// The expression as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Tells whether all of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

/// What a name or value must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TextMatch {
    /// This text, byte for byte.
    Exact(Arc<str>),
    /// Any text the expression matches.
    Regex(Pattern),
}

impl TextMatch {
    /// Tells whether `text` is what is asked for.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Regex(pattern) => pattern.matches(text),
        }
    }

    /// Bytes of the text or of the expression.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Exact(text) => text.len(),
            Self::Regex(pattern) => pattern.source().len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_match_whole_texts() {
        let cases = [
            ("a|b", "a", true),
            ("a|b", "ab", false),
            ("a|b", "xb", false),
            ("v[0-9]+", "v12", true),
            ("v[0-9]+", "v12x", false),
            ("", "", true),
            ("", "a", false),
            ("^a$", "a", true),
        ];
        for (source, text, want) in cases {
            assert_eq!(Pattern::new(source).unwrap().matches(text), want, "{source} on {text}");
        }
    }

    #[test]
    fn broken_expressions_are_refused() {
        for bad in ["a)(b", "(", "[", r"(a)\1", "(?=a)", "(?:x{1000}){1000}"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }
}
