// SPDX-License-Identifier: Apache-2.0

//! The one form of a path that routes and policies look at, and that is forwarded.
//!
//! Dot segments are resolved, an escaped dot counts as a dot and a backslash as a slash, so no
//! spelling of a path walks around a rule. Doubled and escaped slashes stay as they are.
//!
//! Rule: RFC 3986 §5.2.4; Istio's path normalisation `BASE`.

/// The normal form of `path`, or none if it is already that.
pub(in crate::http) fn normal(path: &str) -> Option<String> {
    if !suspicious(path) {
        return None;
    }
    let plain = path.replace('\\', "/");
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = plain.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            Some(count) => {
                if count == 2 {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            None => kept.push(segment),
        }
    }
    Some(format!("/{}", kept.join("/")))
}

fn suspicious(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.contains(&b'\\')
        || bytes.windows(2).any(|two| two == b"/.")
        || bytes.windows(4).any(|four| four.eq_ignore_ascii_case(b"/%2e"))
}

/// One or two if the segment is so many dots, escaped or not.
fn dots(segment: &str) -> Option<usize> {
    let mut rest = segment;
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest.strip_prefix('.') {
            Some(rest) => rest,
            None if rest.get(..3).is_some_and(|three| three.eq_ignore_ascii_case("%2e")) => {
                rest.get(3..).unwrap_or_default()
            }
            None => return None,
        };
        count += 1;
    }
    (1..=2).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn paths_have_one_form() {
        let cases = [
            ("/", None),
            ("/a/b", None),
            ("/a//b", None),
            ("/a/b.c", None),
            ("/a%2fb", None),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/...", Some("/...")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/b/..", Some("/a/")),
            ("/a/b/.", Some("/a/b/")),
            ("/../../etc", Some("/etc")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/a\\..\\b", Some("/b")),
            ("/x/..\\admin", Some("/admin")),
        ];
        for (path, want) in cases {
            assert_eq!(normal(path).as_deref(), want, "{path}");
        }
    }
}
