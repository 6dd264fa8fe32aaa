// SPDX-License-Identifier: Apache-2.0

//! Tokens of local mode: made and checked as Kubernetes' bound service account tokens are.
//!
//! Owns the form (JWT, ES256, audience `istio-ca`) and the key. A token names account, pod and
//! node; who holds it is that pod. There is no setting that turns this off.

use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::files;

/// Who issues tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// Whom tokens are for.
pub const AUDIENCE: &str = "istio-ca";
/// Name of the key's file.
pub const KEY_FILE: &str = "token-key.pem";

/// What a token is bound to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bound {
    /// Namespace of the account and the pod.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// The pod.
    pub pod: Named,
    /// Its node.
    pub node: Named,
}

impl Bound {
    /// `namespace/account`.
    pub fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }

    /// `namespace/pod`.
    pub fn pod_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod.name)
    }
}

/// Name and UID of an object.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Named {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: u64,
    iat: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Debug, Deserialize, Serialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    pod: Named,
    node: Named,
}

/// Why a token is refused, or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours, expired, or for another audience.
    #[error("token is not valid")]
    Invalid(#[source] jsonwebtoken::errors::Error),
    /// The apiserver cannot be asked.
    #[error("apiserver cannot be asked about a token")]
    Review(#[source] Box<kube::Error>),
    /// The apiserver does not take it, for this reason.
    #[error("apiserver does not take the token: {0}")]
    Refused(String),
    /// The token is not bound to a pod.
    #[error("token is not bound to a pod: {0} is missing")]
    Unbound(&'static str),
    /// Subject and claims disagree.
    #[error("subject {0:?} is not the service account of the claims")]
    Subject(String),
    /// The key's file cannot be read or written.
    #[error("token key cannot be read or written")]
    File(#[source] std::io::Error),
    /// The key's file holds no P-256 key.
    #[error("token key is no P-256 key in PEM")]
    Key(#[source] rcgen::Error),
}

/// The key that signs and checks tokens.
pub struct TokenKey {
    signing: EncodingKey,
    checking: DecodingKey,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey").finish_non_exhaustive()
    }
}

impl TokenKey {
    /// The key at `directory/token-key.pem`, made if it is not there.
    ///
    /// # Errors
    ///
    /// [`TokenError::File`] and [`TokenError::Key`].
    pub fn load_or_make(directory: &Path) -> Result<Self, TokenError> {
        let path = directory.join(KEY_FILE);
        if !path.exists() {
            let key = rcgen::KeyPair::generate().map_err(TokenError::Key)?;
            files::create(&path, key.serialize_pem().as_bytes(), true).map_err(TokenError::File)?;
        }
        let pem = std::fs::read_to_string(&path).map_err(TokenError::File)?;
        let key = rcgen::KeyPair::from_pem(&pem).map_err(TokenError::Key)?;
        Ok(Self {
            signing: EncodingKey::from_ec_pem(pem.as_bytes()).map_err(TokenError::Invalid)?,
            checking: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())
                .map_err(TokenError::Invalid)?,
        })
    }

    /// A token for `bound`, from `now` (since 1970) for `life`; the account's UID is its name.
    ///
    /// # Errors
    ///
    /// [`TokenError::Invalid`] if signing fails.
    pub fn issue(
        &self,
        bound: &Bound,
        now: Duration,
        life: Duration,
    ) -> Result<String, TokenError> {
        let account = bound.service_account.clone();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: subject(&bound.namespace, &account),
            aud: vec![AUDIENCE.to_owned()],
            exp: (now + life).as_secs(),
            iat: now.as_secs(),
            kubernetes: Kubernetes {
                namespace: bound.namespace.clone(),
                serviceaccount: Named { uid: account.clone(), name: account },
                pod: bound.pod.clone(),
                node: bound.node.clone(),
            },
        };
        let header = Header::new(Algorithm::ES256);
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(TokenError::Invalid)
    }

    /// What a token is bound to.
    ///
    /// # Errors
    ///
    /// [`TokenError::Invalid`] and [`TokenError::Subject`].
    pub fn check(&self, token: &str) -> Result<Bound, TokenError> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.leeway = 5;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.checking, &rules)
            .map_err(TokenError::Invalid)?
            .claims;
        let Kubernetes { namespace, serviceaccount, pod, node } = claims.kubernetes;
        if claims.sub != subject(&namespace, &serviceaccount.name) {
            return Err(TokenError::Subject(claims.sub));
        }
        Ok(Bound { namespace, service_account: serviceaccount.name, pod, node })
    }
}

fn subject(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn bound() -> Bound {
        let named = |name: &str| Named { name: name.into(), uid: format!("{name}-uid") };
        Bound {
            namespace: "ns".into(),
            service_account: "sa".into(),
            pod: named("pod"),
            node: named("node"),
        }
    }

    #[test]
    fn a_token_says_who_holds_it_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let key = TokenKey::load_or_make(dir.path()).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let hour = Duration::from_secs(3600);
        let token = key.issue(&bound(), now, hour).unwrap();
        assert_eq!(key.check(&token).unwrap(), bound());
        let again = TokenKey::load_or_make(dir.path()).unwrap();
        assert_eq!(again.check(&token).unwrap(), bound(), "the key is kept");

        let old = key.issue(&bound(), now - 2 * hour, hour).unwrap();
        assert!(matches!(key.check(&old), Err(TokenError::Invalid(_))), "expired");
        let other = tempfile::tempdir().unwrap();
        let foreign = TokenKey::load_or_make(other.path()).unwrap();
        assert!(foreign.check(&token).is_err(), "signed by another key");
        let mut cut = token;
        cut.pop();
        for text in [cut.as_str(), "", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
            assert!(key.check(text).is_err(), "{text:?}");
        }
    }
}
