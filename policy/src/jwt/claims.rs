// SPDX-License-Identifier: Apache-2.0

//! What a proven token says, as policies ask it.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::authz::StringMatch;

/// Claims that always are lists with spaces between. Rule: Istio's `JWTRule.spaceDelimitedClaims`.
const SPACED: [&str; 2] = ["scope", "permission"];

/// The claims of a token whose signature was proven.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    all: Map<String, Value>,
    /// Claims as lists that the token has as one text.
    lists: Map<String, Value>,
}

impl Claims {
    /// The payload of a token that was proven; `spaced` names claims with spaces between, beside
    /// those that always are.
    pub fn new(all: Map<String, Value>, spaced: &[impl AsRef<str>]) -> Self {
        let names = SPACED.into_iter().chain(spaced.iter().map(AsRef::as_ref));
        let list = |name: &str| match all.get(name) {
            Some(Value::String(text)) => {
                let items = text.split(' ').filter(|item| !item.is_empty());
                Some((name.to_owned(), items.map(Value::from).collect()))
            }
            Some(_) | None => None,
        };
        let lists = names.filter_map(list).collect();
        Self { all, lists }
    }

    /// Who issued the token; empty if it does not say.
    pub fn issuer(&self) -> &str {
        self.text("iss")
    }

    /// Whom it is about; empty if it does not say.
    pub fn subject(&self) -> &str {
        self.text("sub")
    }

    fn text(&self, name: &str) -> &str {
        self.all.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Tells whether the claim at `path`, a text or a list of texts, holds one that `test` takes.
    ///
    /// # Rule
    ///
    /// `request.auth.claims` of Istio's "Authorization Policy Conditions": other types never match.
    pub(crate) fn any(&self, path: &[Arc<str>], test: impl Fn(&str) -> bool) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let first = self.lists.get(&**first).or_else(|| self.all.get(&**first));
        let found = rest.iter().try_fold(first, |at, name| Some(at?.get(&**name))).flatten();
        match found {
            Some(Value::String(text)) => test(text),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).any(test),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
                false
            }
        }
    }

    /// A claim as the value of a header; dots lead into objects. None for what is not there, and
    /// for lists and objects.
    ///
    /// # Rule
    ///
    /// `outputClaimToHeaders` of Istio's `JWTRule`: text, number or boolean.
    pub fn header_value(&self, name: &str) -> Option<String> {
        let nested = || {
            let mut names = name.split('.');
            let first = self.all.get(names.next()?);
            names.try_fold(first, |at, name| Some(at?.get(name))).flatten()
        };
        match self.all.get(name).or_else(nested)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(yes) => Some(yes.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// Tells whether `pattern` is over the principal `ISSUER/SUBJECT`.
///
/// The pattern is cut at its last slash, so no subject can pass for part of an issuer.
///
/// # Rule
///
/// Istio's `requestPrincipalGenerator`.
pub(crate) fn principal_matches(pattern: &StringMatch, claims: &Claims) -> bool {
    let (issuer, subject) = (claims.issuer(), claims.subject());
    if issuer.is_empty() || subject.is_empty() {
        return false;
    }
    match pattern {
        StringMatch::Presence => true,
        StringMatch::Exact(text) => text.rsplit_once('/') == Some((issuer, subject)),
        StringMatch::Prefix(text) => match text.rsplit_once('/') {
            Some((whole, begin)) => issuer == whole && subject.starts_with(begin),
            None => issuer.starts_with(&**text),
        },
        StringMatch::Suffix(text) => match text.rsplit_once('/') {
            Some((end, whole)) => issuer.ends_with(end) && subject == whole,
            None => subject.ends_with(&**text),
        },
    }
}
