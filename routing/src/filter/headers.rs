// SPDX-License-Identifier: Apache-2.0

//! Header modifiers, for requests and responses alike.

use http::header::{HeaderName, HeaderValue};

use crate::edit::HeaderEdit;

/// Headers to take away, to set and to add.
///
/// Rule: `HTTPHeaderFilter` in Gateway API `apis/v1/httproute_types.go`. Names compare without
/// case. Where one name stands in several lists, it is taken away first, then set, then added.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderModifier {
    /// Replaced by this value, or put in.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Put in behind values that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Taken away.
    pub remove: Vec<HeaderName>,
}

impl HeaderModifier {
    /// Appends the changes to `edits`.
    pub(super) fn edit(&self, edits: &mut Vec<HeaderEdit>) {
        edits.extend(self.remove.iter().cloned().map(HeaderEdit::Remove));
        edits.extend(self.set.iter().cloned().map(|(name, value)| HeaderEdit::Set(name, value)));
        edits.extend(self.add.iter().cloned().map(|(name, value)| HeaderEdit::Add(name, value)));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::edit::apply_headers;

    fn pair(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    #[test]
    fn names_compare_without_case_and_add_keeps_what_is_there() {
        let change = HeaderModifier {
            set: vec![pair("x-set", "new")],
            add: vec![pair("x-add", "second"), pair("x-fresh", "1")],
            remove: vec![HeaderName::from_static("x-remove")],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("X-Set", "a"), ("X-Set", "b"), ("X-Add", "first"), ("X-Remove", "c")]
        {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut edits = Vec::new();
        change.edit(&mut edits);
        apply_headers(&edits, &mut headers);

        let all = |name| headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all("x-set"), ["new"]);
        assert_eq!(all("x-add"), ["first", "second"]);
        assert_eq!(all("x-fresh"), ["1"]);
        assert!(!headers.contains_key("x-remove"));
    }
}
