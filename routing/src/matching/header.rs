// SPDX-License-Identifier: Apache-2.0

//! Conditions on request headers.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::TextMatch;

/// A header that a request must carry.
///
/// Rule: `HTTPHeaderMatch` in Gateway API `apis/v1/httproute_types.go`. Names compare without
/// case; of two entries for one name only the first counts, which is for the translator to see
/// to. A header sent several times is compared as its values joined by `,` (RFC 9110, 5.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeaderMatch {
    /// Name of the header.
    pub name: HeaderName,
    /// What its value must be.
    pub value: TextMatch,
}

impl HeaderMatch {
    /// Tells whether `headers` holds what is asked for.
    ///
    /// Allocates only for a header that was sent more than once.
    #[must_use]
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.name).iter();
        match (values.next(), values.next()) {
            (None, _) => false,
            (Some(only), None) => self.matches_bytes(only.as_bytes()),
            (Some(_), Some(_)) => {
                let all: Vec<&[u8]> =
                    headers.get_all(&self.name).iter().map(HeaderValue::as_bytes).collect();
                self.matches_bytes(&all.join(&b','))
            }
        }
    }

    /// A value that is not UTF-8 matches nothing: both kinds of condition are text.
    fn matches_bytes(&self, value: &[u8]) -> bool {
        std::str::from_utf8(value).is_ok_and(|text| self.value.matches(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::Pattern;

    #[test]
    fn header_values_compare_exactly_and_whole() {
        let cases = [
            // sent values, condition, matches
            (vec!["one"], TextMatch::Exact("one".into()), true),
            (vec!["One"], TextMatch::Exact("one".into()), false),
            (vec!["one", "two"], TextMatch::Exact("one".into()), false),
            (vec!["one", "two"], TextMatch::Exact("one,two".into()), true),
            (vec![], TextMatch::Exact("".into()), false),
            (vec![""], TextMatch::Exact("".into()), true),
            (vec!["v12"], TextMatch::Regex(Pattern::new("v[0-9]+").unwrap()), true),
            (vec!["v12x"], TextMatch::Regex(Pattern::new("v[0-9]+").unwrap()), false),
        ];
        for (sent, value, want) in cases {
            let mut headers = HeaderMap::new();
            for text in &sent {
                headers.append("X-Version", HeaderValue::from_static(text));
            }
            let condition = HeaderMatch { name: HeaderName::from_static("x-version"), value };
            assert_eq!(condition.matches(&headers), want, "{sent:?} for {condition:?}");
        }
    }
}
