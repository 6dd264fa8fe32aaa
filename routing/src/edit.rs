// SPDX-License-Identifier: Apache-2.0

//! Changes to a head, as data.
//!
//! Filters produce [`Edits`]; whoever holds the head applies them, with the setters of its own
//! type or with [`Edits::apply_to_request`] and [`apply_headers`] for plain `http` heads. An
//! empty `Edits` owns no memory.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};

/// What is to change in a head, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Edits {
    /// Changes to headers, in order.
    pub headers: Vec<HeaderEdit>,
    /// New path and query; none leaves them.
    pub path_and_query: Option<PathAndQuery>,
    /// New host; none leaves it.
    pub authority: Option<Authority>,
}

/// One change to the headers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HeaderEdit {
    /// Takes away all values of this name.
    Remove(HeaderName),
    /// Replaces all values of this name by this one.
    Set(HeaderName, HeaderValue),
    /// Adds a value behind those that are there.
    Add(HeaderName, HeaderValue),
}

impl Edits {
    /// True if nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.path_and_query.is_none() && self.authority.is_none()
    }

    /// Applies all changes to a request head; a new authority also becomes the `host` header.
    pub fn apply_to_request(&self, head: &mut http::request::Parts) {
        if self.path_and_query.is_some() || self.authority.is_some() {
            let mut uri = std::mem::take(&mut head.uri).into_parts();
            if let Some(path) = &self.path_and_query {
                uri.path_and_query = Some(path.clone());
            }
            if let (Some(authority), Some(_)) = (&self.authority, &uri.authority) {
                uri.authority = Some(authority.clone());
            }
            // Parts of a legal URI with a legal part replaced: this cannot fail, and if it
            // did the empty URI would be refused further down.
            head.uri = http::Uri::from_parts(uri).unwrap_or_default();
        }
        if let Some(Ok(host)) = self.authority.as_ref().map(|host| host.as_str().parse()) {
            head.headers.insert(http::header::HOST, host);
        }
        apply_headers(&self.headers, &mut head.headers);
    }
}

/// Applies changes of headers, in order.
pub fn apply_headers(edits: &[HeaderEdit], headers: &mut HeaderMap) {
    for edit in edits {
        match edit {
            HeaderEdit::Remove(name) => {
                headers.remove(name);
            }
            HeaderEdit::Set(name, value) => {
                headers.insert(name.clone(), value.clone());
            }
            HeaderEdit::Add(name, value) => {
                headers.append(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str) -> http::request::Parts {
        let request = http::Request::builder().uri(uri).header("host", "old.example").body(());
        request.unwrap().into_parts().0
    }

    #[test]
    fn a_new_authority_reaches_uri_and_host_header() {
        let edits =
            Edits { authority: Some(Authority::from_static("new.example:81")), ..Edits::default() };
        let mut h2 = head("http://old.example/a?b");
        edits.apply_to_request(&mut h2);
        assert_eq!(h2.uri, "http://new.example:81/a?b");
        assert_eq!(h2.headers["host"], "new.example:81");

        let mut h1 = head("/a?b");
        edits.apply_to_request(&mut h1);
        assert_eq!(h1.uri, "/a?b", "an origin-form target stays one");
        assert_eq!(h1.headers["host"], "new.example:81");
    }

    #[test]
    fn a_new_path_keeps_scheme_and_authority() {
        let path = PathAndQuery::from_static("/x?y=1");
        let edits = Edits { path_and_query: Some(path), ..Edits::default() };
        let mut parts = head("https://old.example/a?b");
        edits.apply_to_request(&mut parts);
        assert_eq!(parts.uri, "https://old.example/x?y=1");
        assert_eq!(parts.headers["host"], "old.example");
    }

    #[test]
    fn header_changes_act_in_order() {
        let name = HeaderName::from_static("x-a");
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        headers.append("X-A", value("old"));
        let edits = [
            HeaderEdit::Remove(name.clone()),
            HeaderEdit::Set(name.clone(), value("1")),
            HeaderEdit::Add(name, value("2")),
        ];
        apply_headers(&edits, &mut headers);
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    }
}
