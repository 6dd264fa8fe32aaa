// SPDX-License-Identifier: Apache-2.0

//! Conditions on query parameters.

use std::borrow::Cow;
use std::sync::Arc;

use super::TextMatch;

/// A query parameter that a request must carry.
///
/// Rule: `HTTPQueryParamMatch` in Gateway API `apis/v1/httproute_types.go`: names and values
/// compare exactly, with case; of a parameter sent several times the first counts. Names and
/// values are compared after decoding `%XX` and `+`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QueryMatch {
    /// Name of the parameter.
    pub name: Arc<str>,
    /// What its value must be.
    pub value: TextMatch,
}

impl QueryMatch {
    /// Tells whether `query` (without `?`) holds what is asked for.
    ///
    /// Allocates only for names and values with encoded bytes.
    #[must_use]
    pub fn matches(&self, query: &str) -> bool {
        query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(name, _)| *decode(name) == *self.name)
            .is_some_and(|(_, value)| self.value.matches(&decode(value)))
    }
}

/// Decodes `%XX` and `+`; text that is not UTF-8 then, or has a broken escape, stays as it is.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'+' => Some(b' '),
            b'%' => hex(bytes.next()).zip(hex(bytes.next())).map(|(high, low)| high << 4 | low),
            other => Some(other),
        };
        match decoded {
            Some(byte) => out.push(byte),
            None => return Cow::Borrowed(text),
        }
    }
    String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// Value of one hexadecimal digit.
pub(super) fn hex(digit: Option<u8>) -> Option<u8> {
    match digit? {
        d @ b'0'..=b'9' => Some(d - b'0'),
        d @ b'a'..=b'f' => Some(d - b'a' + 10),
        d @ b'A'..=b'F' => Some(d - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_parameter_of_the_name_decides() {
        let cases = [
            // query, matches animal=whale
            ("animal=whale", true),
            ("x=1&animal=whale&y", true),
            ("animal=whaledolphin", false),
            ("animal=Whale", false),
            ("Animal=whale", false),
            ("animal=dolphin&animal=whale", false),
            ("animal", false),
            ("", false),
            ("animal=%77hale", true),
            ("%61nimal=whale", true),
            ("animal=%7", false),
            ("animal=%ff", false),
        ];
        let condition =
            QueryMatch { name: "animal".into(), value: TextMatch::Exact("whale".into()) };
        for (query, want) in cases {
            assert_eq!(condition.matches(query), want, "{query}");
        }
    }

    #[test]
    fn plus_is_a_space() {
        let condition = QueryMatch { name: "q".into(), value: TextMatch::Exact("a b".into()) };
        assert!(condition.matches("q=a+b"));
        assert!(condition.matches("q=a%20b"));
    }
}
