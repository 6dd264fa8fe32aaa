// SPDX-License-Identifier: Apache-2.0

//! The root in a Secret of the controller's namespace.
//!
//! Owns: made if it is absent; of replicas that start at once one wins, and all take its root.
//! Name and keys are Istio's, so that an installation that follows istiod keeps its trust.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use super::root::{self, Root, RootError};

/// Name of the Secret.
pub const NAME: &str = "istio-ca-secret";
/// Its type.
const TYPE: &str = "istio.io/ca-root";
/// Its keys.
const CERT: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";

/// The root in the Secret of `namespace`, made if it is not there.
///
/// # Errors
///
/// See [`RootError`].
pub async fn load_or_make(
    client: &Client,
    namespace: &str,
    trust_domain: &str,
) -> Result<Root, RootError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |error| RootError::Secret(Box::new(error));
    if let Some(found) = api.get_opt(NAME).await.map_err(failed)? {
        return read(&found);
    }
    let fresh = fresh(namespace, trust_domain)?;
    match api.create(&PostParams::default(), &fresh).await {
        Ok(made) => {
            tracing::info!(namespace, secret = NAME, "root made");
            read(&made)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(&api.get(NAME).await.map_err(failed)?)
        }
        Err(error) => Err(failed(error)),
    }
}

fn fresh(namespace: &str, trust_domain: &str) -> Result<Secret, RootError> {
    let (certificate, key) = root::make(trust_domain)?;
    let data = [(CERT, certificate), (KEY, key)];
    let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())));
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    })
}

fn read(secret: &Secret) -> Result<Root, RootError> {
    let part = |name: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        let text = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
        text.filter(|text| !text.is_empty()).ok_or(RootError::Lacks(name))
    };
    Root::read(part(CERT)?, part(KEY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_can_be_read_and_a_part_that_lacks_is_named() {
        let mut secret = fresh("ns", "cluster.local").unwrap();
        let root = read(&secret).unwrap();
        assert!(root.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        secret.data.as_mut().unwrap().remove(KEY);
        assert!(matches!(read(&secret), Err(RootError::Lacks("ca-key.pem"))));
        let foreign = fresh("ns", "cluster.local").unwrap();
        let key = foreign.data.unwrap().remove(KEY).unwrap();
        secret.data.as_mut().unwrap().insert(KEY.into(), ByteString(b"no key".into()));
        assert!(read(&secret).is_err());
        secret.data.as_mut().unwrap().insert(KEY.into(), key);
        assert!(read(&secret).is_ok(), "a key alone says nothing of its certificate");
    }
}
