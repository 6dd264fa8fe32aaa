// SPDX-License-Identifier: Apache-2.0

//! Service account tokens of pods, as an apiserver signs and a kubelet mounts them.
//!
//! Owns: the key, the claims, when a token is renewed. The controller checks them with the
//! same key, as a cluster's would by TokenReview.
//!
//! Start at [`Tokens::write`].

use std::path::Path;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::record::write_whole;
use crate::local::{LocalError, paths};

/// Life of a token in seconds; renewed after four fifths, as a kubelet does.
const LIFE: i64 = 3600;

/// Signs tokens of pods.
pub(super) struct Tokens {
    key: EncodingKey,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// Makes a fresh key and leaves it where the controller finds it.
    ///
    /// # Errors
    ///
    /// [`LocalError::Keys`].
    pub(super) fn new() -> Result<Self, LocalError> {
        let failed = |cause: &dyn std::fmt::Display| LocalError::Keys(cause.to_string());
        let pair = rcgen::KeyPair::generate().map_err(|cause| failed(&cause))?;
        let pem = pair.serialize_pem();
        write_whole(&Path::new(paths::CA).join("token-key.pem"), pem.as_bytes())
            .map_err(|cause| failed(&cause))?;
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|cause| failed(&cause))?;
        Ok(Self { key })
    }

    /// Writes the token of `pod` unless the one that is there will do for a while.
    ///
    /// # Errors
    ///
    /// Those of signing and of the file system.
    pub(super) fn write(&self, pod: &Value) -> std::io::Result<()> {
        let uid = text(pod, "/metadata/uid");
        let folder = Path::new(paths::TOKENS).join(&uid);
        let file = folder.join("istio-token");
        let fresh =
            std::fs::metadata(&file).and_then(|meta| meta.modified()).is_ok_and(|written| {
                written.elapsed().is_ok_and(|age| {
                    i64::try_from(age.as_secs()).is_ok_and(|age| age < LIFE * 4 / 5)
                })
            });
        if fresh {
            return Ok(());
        }
        std::fs::create_dir_all(&folder)?;
        let claims = claims(pod, OffsetDateTime::now_utc().unix_timestamp());
        let token = encode(&Header::new(Algorithm::ES256), &claims, &self.key)
            .map_err(std::io::Error::other)?;
        write_whole(&file, token.as_bytes())
    }
}

fn text(pod: &Value, pointer: &str) -> String {
    pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The claims of a token bound to `pod`, issued at `now`, seconds since the epoch.
fn claims(pod: &Value, now: i64) -> Value {
    let (namespace, account) =
        (text(pod, "/metadata/namespace"), text(pod, "/spec/serviceAccountName"));
    let node = text(pod, "/spec/nodeName");
    json!({
        "iss": "https://kubernetes.default.svc",
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "aud": ["istio-ca"],
        "iat": now,
        "nbf": now,
        "exp": now + LIFE,
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": format!("{namespace}.{account}")},
            "pod": {"name": text(pod, "/metadata/name"), "uid": text(pod, "/metadata/uid")},
            "node": {"name": node, "uid": node},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_pod_node_and_account() {
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "n", "uid": "u"},
            "spec": {"nodeName": "node-1", "serviceAccountName": "web"},
        });
        let claims = claims(&pod, 1000);
        assert_eq!(claims["sub"], "system:serviceaccount:n:web");
        assert_eq!(claims["exp"], 1000 + LIFE);
        assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "web-0", "uid": "u"}));
        assert_eq!(claims["kubernetes.io"]["node"]["name"], "node-1");
    }
}
