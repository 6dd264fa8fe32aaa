// SPDX-License-Identifier: Apache-2.0

//! Checks tokens: with the own key where a folder is the source, else by asking the apiserver.
//!
//! Owns: what an answer must hold to be believed, and how long it is remembered. A token must
//! be bound to a pod; who holds it is that pod. There is no setting that turns this off.
//!
//! Rule: `TokenReview` of `authentication.k8s.io/v1`; names of the extra fields in Kubernetes'
//! `pkg/serviceaccount/claims.go`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};

use super::token::{AUDIENCE, Bound, Named, TokenError, TokenKey};

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Most answers remembered.
const MOST: usize = 10_000;
/// What names of service accounts begin with.
const ACCOUNT: &str = "system:serviceaccount:";

/// Who knows which tokens are good.
#[derive(Debug)]
pub enum Tokens {
    /// The own key.
    Key(TokenKey),
    /// The apiserver.
    Review(Reviewer),
}

impl Tokens {
    /// What `token` is bound to.
    ///
    /// # Errors
    ///
    /// See [`TokenError`].
    pub async fn check(&self, token: &str) -> Result<Bound, TokenError> {
        match self {
            Self::Key(key) => key.check(token),
            Self::Review(reviewer) => reviewer.check(token).await,
        }
    }
}

/// Asks the apiserver.
pub struct Reviewer {
    api: Api<TokenReview>,
    answers: Mutex<HashMap<[u8; 32], (Bound, Instant)>>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    /// Asks by `client`.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), answers: Mutex::default() }
    }

    async fn check(&self, token: &str) -> Result<Bound, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.remembered(&digest, Instant::now()) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = self.api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| TokenError::Review(Box::new(error)))?;
        let bound = read(answer.status.unwrap_or_default())?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(digest, (bound.clone(), Instant::now()));
        Ok(bound)
    }

    fn remembered(&self, digest: &[u8; 32], now: Instant) -> Option<Bound> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (bound, at) = answers.get(digest)?;
        if now.duration_since(*at) < REMEMBERED {
            return Some(bound.clone());
        }
        answers.remove(digest);
        None
    }
}

/// What an answer says; anything missing is a refusal.
fn read(status: TokenReviewStatus) -> Result<Bound, TokenError> {
    if status.authenticated != Some(true) {
        return Err(TokenError::Refused(status.error.unwrap_or_default()));
    }
    // An apiserver that knows no audiences would take any token.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(TokenError::Refused(format!("it is not for {AUDIENCE}")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT).and_then(|account| account.split_once(':'));
    let (namespace, account) = account.ok_or_else(|| TokenError::Subject(name.clone()))?;
    let extra = user.extra.unwrap_or_default();
    let field = |key: &'static str| {
        let values = extra.get(key).map(Vec::as_slice);
        match values {
            Some([value]) if !value.is_empty() => Ok(value.clone()),
            _ => Err(TokenError::Unbound(key)),
        }
    };
    Ok(Bound {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: Named {
            name: field("authentication.kubernetes.io/pod-name")?,
            uid: field("authentication.kubernetes.io/pod-uid")?,
        },
        node: Named {
            name: field("authentication.kubernetes.io/node-name")?,
            uid: field("authentication.kubernetes.io/node-uid").unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
        let mut value = json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {
                "username": "system:serviceaccount:shop:web",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["web-1"],
                    "authentication.kubernetes.io/pod-uid": ["u1"],
                    "authentication.kubernetes.io/node-name": ["n1"],
                    "authentication.kubernetes.io/node-uid": ["nu1"],
                },
            },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    type Change = fn(&mut Value);

    #[test]
    fn only_a_good_token_that_is_bound_to_a_pod_says_who_calls() {
        let bound = read(status(|_| {})).unwrap();
        assert_eq!(
            (bound.account().as_str(), bound.pod_name().as_str()),
            ("shop/web", "shop/web-1")
        );
        assert_eq!((bound.pod.uid.as_str(), bound.node.name.as_str()), ("u1", "n1"));
        let cases: [(&str, Change); 6] = [
            ("not authenticated", |v| v["authenticated"] = json!(false)),
            ("of another audience", |v| v["audiences"] = json!(["https://kubernetes.default.svc"])),
            ("of no audience", |v| v["audiences"] = Value::Null),
            ("a person's", |v| v["user"]["username"] = json!("admin")),
            ("bound to no pod", |v| {
                v["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!([]);
            }),
            ("bound to two pods", |v| {
                v["user"]["extra"]["authentication.kubernetes.io/pod-name"] = json!(["a", "b"]);
            }),
        ];
        for (what, change) in cases {
            assert!(read(status(change)).is_err(), "a token that is {what}");
        }
    }
}
