// SPDX-License-Identifier: Apache-2.0

//! Matchers of single values: text, service account, path.
//!
//! Owns how a pattern is read and compared. Comparing allocates nothing but
//! for paths that servers read in more than one way: those are judged in both
//! readings, and where the two differ there is no answer.

use std::borrow::Cow;
use std::sync::Arc;

use super::answer::Answer;

/// Pattern over a text.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum StringMatch {
    /// The very text.
    Exact(Arc<str>),
    /// Begins with the text (`text*`).
    Prefix(Arc<str>),
    /// Ends with the text (`*text`).
    Suffix(Arc<str>),
    /// Is there and not empty (`*`).
    Presence,
}

impl StringMatch {
    /// Reads a pattern as Istio's policies write it: `text`, `text*`, `*text` or `*`.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] for empty text and for a `*` anywhere else, which
    /// Istio would take as a plain character and so match nothing.
    ///
    /// # Rule
    ///
    /// "Value matching" of Istio's AuthorizationPolicy reference.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why| Err(InvalidPattern(text.to_owned(), why));
        if text.is_empty() {
            return invalid("it is empty");
        }
        let (make, rest): (fn(Arc<str>) -> Self, &str) = if text == "*" {
            return Ok(Self::Presence);
        } else if let Some(rest) = text.strip_prefix('*') {
            (Self::Suffix, rest)
        } else if let Some(rest) = text.strip_suffix('*') {
            (Self::Prefix, rest)
        } else {
            (Self::Exact, text)
        };
        if rest.contains('*') {
            return invalid("a star stands at one end only");
        }
        Ok(make(rest.into()))
    }

    /// The same pattern over principals, which are written without `spiffe://`.
    #[must_use]
    pub fn without_scheme(self) -> Self {
        let strip = |text: &Arc<str>| text.strip_prefix("spiffe://").map(Arc::from);
        match &self {
            Self::Exact(text) => strip(text).map_or(self, Self::Exact),
            Self::Prefix(text) => strip(text).map_or(self, Self::Prefix),
            Self::Suffix(_) | Self::Presence => self,
        }
    }

    /// Tells whether `text` matches, case counting; no text matches nothing.
    pub fn matches(&self, text: Option<&str>) -> bool {
        let Some(text) = text else { return false };
        match self {
            Self::Exact(want) => text == &**want,
            Self::Prefix(want) => text.starts_with(&**want),
            Self::Suffix(want) => text.ends_with(&**want),
            Self::Presence => !text.is_empty(),
        }
    }

    /// Tells whether `text` matches, the case of ASCII letters not counting.
    pub fn matches_any_case(&self, text: &str) -> bool {
        let (text, same) = (text.as_bytes(), <[u8]>::eq_ignore_ascii_case);
        match self {
            Self::Exact(want) => same(text, want.as_bytes()),
            Self::Prefix(want) => {
                text.get(..want.len()).is_some_and(|head| same(head, want.as_bytes()))
            }
            Self::Suffix(want) => text
                .len()
                .checked_sub(want.len())
                .and_then(|start| text.get(start..))
                .is_some_and(|tail| same(tail, want.as_bytes())),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// Tells whether `pattern` matches the host of a request, with or without its port.
///
/// Case does not count, nor does the dot that may end a name.
pub(super) fn host_matches(pattern: &StringMatch, host: &str) -> bool {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    pattern.matches_any_case(host) || pattern.matches_any_case(name)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            // `[::1]:80` and `name:80` have a port, `::1` has none.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

/// A service account of a namespace, whatever its trust domain.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct AccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

impl AccountMatch {
    /// Reads `<account>` of `namespace`, or `<namespace>/<account>`.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] if a part is empty, holds a star or there are more than two.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, InvalidPattern> {
        let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
        let legal = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
        if legal(namespace) && legal(account) {
            Ok(Self { namespace: namespace.into(), service_account: account.into() })
        } else {
            Err(InvalidPattern(text.to_owned(), "wanted <account> or <namespace>/<account>"))
        }
    }
}

/// Pattern over a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathMatch {
    /// Exact, prefix, suffix or presence.
    Text(StringMatch),
    /// Istio's path template, such as `/products/{*}/reviews/{**}`.
    Template(PathTemplate),
}

impl PathMatch {
    /// Reads a path pattern: a template if it holds `{*}` or `{**}`, else a text pattern.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] as [`StringMatch::parse`] and [`PathTemplate::parse`] say.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.contains("{*}") || text.contains("{**}") {
            PathTemplate::parse(text).map(Self::Template)
        } else {
            StringMatch::parse(text).map(Self::Text)
        }
    }

    pub(super) fn answer(&self, path: &str) -> Answer {
        match plain_reading(path) {
            Cow::Borrowed(path) => Answer::from(self.covers(path)),
            Cow::Owned(other) => match (self.covers(path), self.covers(&other)) {
                (first, second) if first == second => Answer::from(first),
                _ => Answer::Unknown,
            },
        }
    }

    fn covers(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(Some(path)),
            Self::Template(template) => template.matches(path),
        }
    }
}

/// The path as the most generous server reads it: escapes decoded, backslashes
/// turned, repeated slashes merged, dot segments resolved. Borrowed if that is
/// what it is already.
fn plain_reading(path: &str) -> Cow<'_, str> {
    let odd = |pair: &[u8]| matches!(pair, b"//" | b"/." | b"/;");
    let bytes = path.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'%' | b'\\')) && !bytes.windows(2).any(odd) {
        return Cow::Borrowed(path);
    }
    let decoded = decode(bytes);
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    let mut plain = String::with_capacity(decoded.len() + 1);
    for segment in &segments {
        plain.push('/');
        plain.push_str(segment);
    }
    let directory = decoded.ends_with(['/', '\\']) || decoded.ends_with("/.");
    if directory || decoded.ends_with("/..") || plain.is_empty() {
        plain.push('/');
    }
    if plain == path { Cow::Borrowed(path) } else { Cow::Owned(plain) }
}

fn decode(bytes: &[u8]) -> String {
    let hex = |b: &u8| char::from(*b).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (hex(high), hex(low))
            && let Ok(byte) = u8::try_from(high * 16 + low)
        {
            out.push(byte);
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path template: `{*}` is one segment, `{**}` the rest or a middle part.
///
/// `{*}` takes one segment that is not empty. `{**}` takes everything between
/// the slashes around it, possibly nothing; it stands once, after any `{*}`.
///
/// Rule: `to.operation.paths` of Istio's AuthorizationPolicy reference.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PathTemplate {
    head: Vec<Segment>,
    /// Literals after `{**}`; none if the template has no `{**}`.
    tail: Option<Vec<Arc<str>>>,
    text: Arc<str>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Segment {
    Literal(Arc<str>),
    One,
}

impl PathTemplate {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] if it does not begin with a slash, an operator is not
    /// a whole segment, or one follows `{**}`.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why| Err(InvalidPattern(text.to_owned(), why));
        if !text.starts_with('/') {
            return invalid("a path begins with a slash");
        }
        let (mut head, mut tail) = (Vec::new(), None::<Vec<Arc<str>>>);
        for segment in text.split('/') {
            match (segment, &mut tail) {
                ("{*}", None) => head.push(Segment::One),
                ("{**}", None) => tail = Some(Vec::new()),
                ("{*}" | "{**}", Some(_)) => return invalid("no operator may follow {**}"),
                (literal, _) if literal.contains(['{', '}', '*']) => {
                    return invalid("{*} and {**} are whole segments");
                }
                (literal, None) => head.push(Segment::Literal(literal.into())),
                (literal, Some(tail)) => tail.push(literal.into()),
            }
        }
        Ok(Self { head, tail, text: text.into() })
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Tells whether `path` has the shape of the template.
    pub fn matches(&self, path: &str) -> bool {
        let mut have = path.split('/');
        let front = self.head.iter().all(|want| match (want, have.next()) {
            (Segment::Literal(want), Some(text)) => **want == *text,
            (Segment::One, Some(text)) => !text.is_empty(),
            (_, None) => false,
        });
        let Some(tail) = &self.tail else { return front && have.next().is_none() };
        let back = tail.iter().rev().all(|want| have.next_back() == Some(&**want));
        front && back && have.next().is_some()
    }
}

/// A pattern out of grammar.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no legal pattern: {1}")]
pub struct InvalidPattern(pub String, pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_patterns_take_one_star_at_one_end() {
        let cases = [
            // pattern, text, matches
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc", "ABC", false),
            ("ab*", "abc", true),
            ("ab*", "ab", true),
            ("ab*", "a", false),
            ("*bc", "abc", true),
            ("*bc", "bcd", false),
            ("*", "x", true),
            ("*", "", false),
        ];
        for (pattern, text, want) in cases {
            let read = StringMatch::parse(pattern).unwrap();
            assert_eq!(read.matches(Some(text)), want, "{pattern} over {text}");
            assert!(!read.matches(None), "{pattern} over nothing");
        }
        for bad in ["", "a*b", "*a*", "**", "***"] {
            assert!(StringMatch::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn principals_lose_their_scheme_only_at_the_front() {
        for (pattern, want) in [
            ("spiffe://td/ns/a/sa/b", "td/ns/a/sa/b"),
            ("td/ns/a/sa/b", "td/ns/a/sa/b"),
            ("spiffe://td/ns/a/*", "td/ns/a/*"),
        ] {
            let read = StringMatch::parse(pattern).unwrap().without_scheme();
            assert_eq!(read, StringMatch::parse(want).unwrap(), "{pattern}");
        }
    }

    #[test]
    fn hosts_match_with_and_without_port() {
        let cases = [
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com:8080", true),
            ("Example.com", "example.com", true),
            ("example.com", "example.com.", true),
            ("example.com", "example.com.:80", true),
            ("example.com:80", "example.com:80", true),
            ("example.com:80", "example.com:81", false),
            ("*.example.com", "a.example.com:80", true),
            ("*.example.com", "example.com", false),
            ("example.*", "example.org:1", true),
            ("[::1]", "[::1]:80", true),
            ("::1", "::1", true),
            ("example.com", "notexample.com", false),
        ];
        for (pattern, host, want) in cases {
            let read = StringMatch::parse(pattern).unwrap();
            assert_eq!(host_matches(&read, host), want, "{pattern} over {host}");
        }
    }

    #[test]
    fn templates_follow_segments() {
        let cases = [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{*}", "/foo/bar/", false),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}", "/foo/a/b", true),
            ("/foo/{**}/bar", "/foo/a/b/bar", true),
            ("/foo/{**}/bar", "/foo//bar", true),
            ("/foo/{**}/bar", "/foo/bar", false),
            ("/{*}/{**}", "/a/b/c", true),
            ("/{*}/x/{**}", "/a/y/c", false),
            ("/{**}", "/", true),
        ];
        for (template, path, want) in cases {
            let read = PathTemplate::parse(template).unwrap();
            assert_eq!(read.matches(path), want, "{template} over {path}");
        }
        for bad in ["{*}", "/{**}/{*}", "/{**}/{**}", "/a{*}", "/{*}b", "/{a}", "/*"] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_with_two_readings_has_no_answer_where_they_differ() {
        let cases = [
            ("/admin*", "/admin", Answer::Yes),
            ("/admin*", "/public", Answer::No),
            ("/admin*", "//admin", Answer::Unknown),
            ("/admin*", "/./admin", Answer::Unknown),
            ("/admin*", "/public/../admin", Answer::Unknown),
            ("/admin*", "/%61dmin", Answer::Unknown),
            ("/admin*", "/public%2f..%2fadmin", Answer::Unknown),
            ("/admin*", "\\admin", Answer::Unknown),
            ("/admin*", "/admin/a%20b", Answer::Yes),
            ("/admin*", "/files/a%2fb", Answer::No),
            ("/public/*", "/public/../admin", Answer::Unknown),
            ("*", "//x", Answer::Yes),
        ];
        for (pattern, path, want) in cases {
            let read = PathMatch::parse(pattern).unwrap();
            assert_eq!(read.answer(path), want, "{pattern} over {path}");
        }
    }

    #[test]
    fn accounts_default_to_the_namespace_of_the_policy() {
        let read = AccountMatch::parse("web", "shop").unwrap();
        assert_eq!((&*read.namespace, &*read.service_account), ("shop", "web"));
        let read = AccountMatch::parse("other/web", "shop").unwrap();
        assert_eq!((&*read.namespace, &*read.service_account), ("other", "web"));
        for bad in ["", "a/", "/a", "a/b/c", "*", "a/*"] {
            assert!(AccountMatch::parse(bad, "shop").is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_path_reads_as_itself(path in "(/[a-z0-9_-]{1,6}){1,5}/?") {
            prop_assert!(matches!(plain_reading(&path), Cow::Borrowed(_)), "{}", path);
        }

        #[test]
        fn reading_twice_by_structure_changes_nothing(path in "(/|//|/\\./|/\\.\\./|[a-z]){1,10}") {
            let once = plain_reading(&path).into_owned();
            let twice = plain_reading(&once).into_owned();
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn any_template_that_parses_matches_its_own_filling(text in "(/[a-z]{1,3}|/\\{\\*\\}){1,5}(/\\{\\*\\*\\})?") {
            let template = PathTemplate::parse(&text).unwrap();
            let filled = text.replace("{**}", "a/b").replace("{*}", "x");
            prop_assert!(template.matches(&filled), "{} over {}", text, filled);
        }
    }
}
