// SPDX-License-Identifier: Apache-2.0

//! JSON as text: what is kept of thousands of objects and looked at seldom.

use serde_json::Value;

/// A value as text, which takes a fraction of the memory of a [`Value`].
///
/// Fields are in order, so equal values have equal texts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Packed(Box<str>);

impl From<&Value> for Packed {
    fn from(value: &Value) -> Self {
        if value.is_null() { Self::default() } else { Self(value.to_string().into()) }
    }
}

impl Packed {
    /// The value.
    pub fn value(&self) -> Value {
        // Null has no text, and any other text was written from a value.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_packed_value_is_the_value() {
        for value in [json!(null), json!({}), json!({"b": [1, {"c": null}], "a": "x\"y"})] {
            assert_eq!(Packed::from(&value).value(), value);
        }
        let (one, two) = (json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}));
        assert_eq!(Packed::from(&one), Packed::from(&two));
    }
}
