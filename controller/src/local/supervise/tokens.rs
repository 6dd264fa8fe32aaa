// SPDX-License-Identifier: Apache-2.0

//! Service account tokens of pods: when they are made and where they are mounted.
//!
//! Owns: the files, and renewal before the end, as a kubelet does. Leaves form and key to
//! [`crate::ca::token`], with which the controller checks them.
//!
//! Start at [`Tokens::write`].

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::record::write_whole;
use crate::ca::token::{Bound, Named, TokenKey};
use crate::local::{LocalError, paths};

/// Life of a token; it is renewed after four fifths.
const LIFE: Duration = Duration::from_secs(3600);

/// Signs tokens of pods.
#[derive(Debug)]
pub(super) struct Tokens {
    key: TokenKey,
}

impl Tokens {
    /// Makes the key, where the controller finds it.
    ///
    /// # Errors
    ///
    /// [`LocalError::Keys`].
    pub(super) fn new() -> Result<Self, LocalError> {
        let key = TokenKey::load_or_make(Path::new(paths::CA))
            .map_err(|error| LocalError::Keys(super::pod::describe(&error)))?;
        Ok(Self { key })
    }

    /// Writes the token of `pod` unless the one that is there will do for a while.
    ///
    /// # Errors
    ///
    /// Those of signing and of the file system.
    pub(super) fn write(&self, pod: &Value) -> std::io::Result<()> {
        let bound = bound(pod);
        let folder = Path::new(paths::TOKENS).join(&bound.pod.uid);
        let file = folder.join("istio-token");
        let age = std::fs::metadata(&file)
            .and_then(|meta| meta.modified())
            .map(|written| written.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age < LIFE * 4 / 5) {
            return Ok(());
        }
        std::fs::create_dir_all(&folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(std::io::Error::other)?;
        let token = self.key.issue(&bound, now, LIFE).map_err(std::io::Error::other)?;
        write_whole(&file, token.as_bytes())
    }
}

/// What the token of `pod` is bound to.
fn bound(pod: &Value) -> Bound {
    let text =
        |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let node = text("/spec/nodeName");
    Bound {
        namespace: text("/metadata/namespace"),
        service_account: text("/spec/serviceAccountName"),
        pod: Named { name: text("/metadata/name"), uid: text("/metadata/uid") },
        node: Named { uid: node.clone(), name: node },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_names_its_pod_node_and_account() {
        let folder = tempfile::tempdir().unwrap();
        let key = TokenKey::load_or_make(folder.path()).unwrap();
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "n", "uid": "u"},
            "spec": {"nodeName": "node-1", "serviceAccountName": "web"},
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let token = key.issue(&bound(&pod), now, LIFE).unwrap();
        let checked = key.check(&token).unwrap();
        assert_eq!(
            (checked.account(), checked.pod_name()),
            ("n/web".to_owned(), "n/web-0".to_owned())
        );
        assert_eq!((checked.pod.uid.as_str(), checked.node.name.as_str()), ("u", "node-1"));
    }
}
