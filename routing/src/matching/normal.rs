// SPDX-License-Identifier: Apache-2.0

//! The one form of a path: what routes and policies look at, and what is forwarded.
//!
//! Gateways put every request through [`normalise`], and so does `explain`: no spelling of a
//! path walks around a rule, and no answer differs from what live traffic gets.

use std::borrow::Cow;

/// The path that routing, policy and backend all get to see, or none if it must be refused.
///
/// Dot segments are resolved, in plain and encoded form (RFC 3986, 5.2.4); percent-encoded
/// unreserved characters are decoded (RFC 3986, 6.2.2.2); backslashes become slashes. Other
/// escapes and repeated slashes stay as they are. A broken escape stays too, and nothing but dots
/// is decoded in its segment: what is left of it must not become part of another escape. An
/// encoded NUL is refused. Borrows when nothing changes.
///
/// Rule: Istio's path normalisation `BASE`.
#[must_use]
pub fn normalise(path: &str) -> Option<Cow<'_, str>> {
    let plain = is_plain(path)?;
    if plain && !dotted(path) && (path.starts_with('/') || path == "*") {
        return Some(Cow::Borrowed(path));
    }
    let mut segments: Vec<Cow<'_, str>> = Vec::new();
    let mut parts = path.strip_prefix(['/', '\\']).unwrap_or(path).split(['/', '\\']).peekable();
    while let Some(part) = parts.next() {
        let segment = decode(part);
        let dots = matches!(&*segment, "." | "..");
        match &*segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
        if dots && parts.peek().is_none() {
            segments.push(Cow::Borrowed(""));
        }
    }
    Some(Cow::Owned(format!("/{}", segments.join("/"))))
}

/// Tells whether no backslash and no escape to decode is there; none for an encoded NUL.
fn is_plain(path: &str) -> Option<bool> {
    let mut plain = true;
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        match first {
            b'\\' => plain = false,
            b'%' => match escaped(tail) {
                Some(0) => return None,
                Some(byte) => plain &= !is_unreserved(byte),
                None => {}
            },
            _ => {}
        }
        rest = tail;
    }
    Some(plain)
}

fn dotted(path: &str) -> bool {
    path.contains("/.") && path.split('/').any(|segment| matches!(segment, "." | ".."))
}

fn decode(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut escapes = segment.split('%').skip(1);
    let sound = escapes.all(|after| escaped(after.as_bytes()).is_some());
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment.chars();
    while let Some(character) = rest.next() {
        let byte = match character {
            '%' => escaped(rest.as_str().as_bytes()),
            _ => None,
        };
        match byte.filter(|byte| *byte == b'.' || sound && is_unreserved(*byte)) {
            Some(byte) => {
                out.push(byte.into());
                // The two digits of the escape.
                rest.next();
                rest.next();
            }
            None => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// The byte that the two digits after a percent sign stand for.
fn escaped(after: &[u8]) -> Option<u8> {
    let [high, low, ..] = after else { return None };
    Some(super::query::hex(Some(*high))? << 4 | super::query::hex(Some(*low))?)
}

/// Rule: RFC 3986, 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_have_one_form() {
        let cases = [
            ("/", Some("/")),
            ("*", Some("*")),
            ("/a/b", Some("/a/b")),
            ("/a//b", Some("/a//b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/b/..", Some("/a/")),
            ("/a/.", Some("/a/")),
            ("/..", Some("/")),
            ("/a/../../b", Some("/b")),
            ("/%2e%2e/b", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/%61dmin", Some("/admin")),
            ("/a%2fb%20c", Some("/a%2fb%20c")),
            ("/a%2f%2e%2e%2fb", Some("/a%2f..%2fb")),
            (r"/a\..\b", Some("/b")),
            (r"/x/..\admin", Some("/admin")),
            ("/a%00", None),
            ("/a%", Some("/a%")),
            ("/100%/%2e%2e/%61", Some("/a")),
            ("/100%/%61/%%61", Some("/100%/a/%%61")),
            ("/%%32e%%32e/b", Some("/%%32e%%32e/b")),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/a/...", Some("/a/...")),
        ];
        for (path, want) in cases {
            assert_eq!(normalise(path).as_deref(), want, "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_form_of_a_form_is_itself(path in r"/([a-z./\\]|%|%2[ef]|%[0-9a-f]{2}){0,12}") {
            if let Some(once) = normalise(&path) {
                let twice = normalise(&once);
                prop_assert_eq!(twice.as_deref(), Some(&*once), "{}", path);
                prop_assert!(once.split('/').all(|part| !matches!(part, "." | "..")), "{}", once);
            }
        }
    }
}
