// SPDX-License-Identifier: Apache-2.0

//! On which line of a YAML document a field stands.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A document of which only the places are kept.
#[derive(Debug)]
enum Node {
    Map(BTreeMap<String, Spanned<Self>>),
    List(Vec<Spanned<Self>>),
    Leaf,
}

/// The line, from 1, of the field at `path` (`spec.rules[0].name`), or of the closest thing
/// around it that is there; none if the text cannot be read.
pub(super) fn line_of(text: &str, path: &str) -> Option<u64> {
    let root: Spanned<Node> = serde_saphyr::from_str(text).ok()?;
    let mut at = &root;
    let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    for part in parts {
        let inner = match &at.value {
            Node::Map(map) => map.get(part),
            Node::List(list) => part.parse::<usize>().ok().and_then(|index| list.get(index)),
            Node::Leaf => None,
        };
        let Some(inner) = inner else { break };
        at = inner;
    }
    Some(at.referenced.line())
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Places)
    }
}

struct Places;

impl<'de> Visitor<'de> for Places {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut found = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Spanned<Node>>()? {
            found.insert(key, value);
        }
        Ok(Node::Map(found))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut found = Vec::new();
        while let Some(value) = list.next_element::<Spanned<Node>>()? {
            found.push(value);
        }
        Ok(Node::List(found))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(inner).map(|_| Node::Leaf)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_that_of_the_field_itself_not_of_a_namesake() {
        let text = "spec:\n  rules:\n    - name: a\n      weight: 1\n    - name: b\n      weight: -3\n      to: {port: 1}\n";
        for (path, line) in [
            ("spec.rules[1].weight", 6),
            ("spec.rules[0].weight", 4),
            ("spec.rules.1.to.port", 7),
            ("spec.rules[1].absent", 5),
        ] {
            assert_eq!(line_of(text, path), Some(line), "{path}");
        }
        assert_eq!(line_of("a: [", "a"), None);
    }
}
