// SPDX-License-Identifier: Apache-2.0

//! The certificate authority in Secrets of the controller's namespace.
//!
//! Owns: `cacerts`, which an operator writes, goes before `istio-ca-secret`, which is the
//! mesh's own and made if both are absent; of replicas that start at once one wins, and all
//! take its root. Names, keys and precedence are Istio's, so that an installation that follows
//! istiod keeps its trust. Both are followed: what may be in force is, at once.
//!
//! Keeps: a Secret that is gone or cannot be used leaves the last good authority in force.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use super::authority::{Authority, CERT, CHAIN, InForce, KEY, ROOTS, Texts};
use super::root::{self, RootError};
use crate::source::kubernetes::retry::retry;

/// Name of the Secret of the mesh's own root.
pub const OWN: &str = "istio-ca-secret";
/// Name of the Secret of an authority that is plugged in.
pub const PLUGGED: &str = "cacerts";
/// Type of the own one.
pub const TYPE: &str = "istio.io/ca-root";

/// The authority of the Secrets of `namespace`; the own one is made if there is none.
///
/// # Errors
///
/// See [`RootError`].
pub async fn load_or_make(
    client: &Client,
    namespace: &str,
    trust_domain: &str,
) -> Result<Authority, RootError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |error| RootError::Secret(Box::new(error));
    if let Some(plugged) = api.get_opt(PLUGGED).await.map_err(failed)? {
        return usable(&texts(namespace, PLUGGED, &plugged));
    }
    if let Some(own) = api.get_opt(OWN).await.map_err(failed)? {
        return usable(&texts(namespace, OWN, &own));
    }
    let fresh = fresh(namespace, trust_domain)?;
    let made = match api.create(&PostParams::default(), &fresh).await {
        Ok(made) => {
            tracing::info!(namespace, secret = OWN, "root made");
            made
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            api.get(OWN).await.map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    usable(&texts(namespace, OWN, &made))
}

fn usable(texts: &Texts) -> Result<Authority, RootError> {
    Authority::read(texts).map_err(|error| RootError::Unusable(texts.origin.clone(), error))
}

fn fresh(namespace: &str, trust_domain: &str) -> Result<Secret, RootError> {
    let (certificate, key) = root::make(trust_domain)?;
    let data = [(CERT, certificate), (KEY, key)];
    let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())));
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(OWN.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    })
}

/// The texts of a Secret; what is absent or no text is empty.
fn texts(namespace: &str, name: &str, secret: &Secret) -> Texts {
    let part = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).unwrap_or_default()
    };
    Texts {
        origin: format!("Secret {namespace}/{name}"),
        certificate: part(CERT),
        key: part(KEY),
        chain: part(CHAIN),
        roots: part(ROOTS),
    }
}

/// What is known of the Secrets.
#[derive(Debug, Default)]
struct Known {
    plugged: Option<Texts>,
    own: Option<Texts>,
    listed: (bool, bool),
    /// What was looked at last.
    seen: Option<Texts>,
}

impl Known {
    /// Puts in force what is new.
    fn look(&mut self, in_force: &InForce) {
        if self.listed != (true, true) {
            return;
        }
        let origin = in_force.now().origin().to_owned();
        let Some(next) = self.plugged.as_ref().or(self.own.as_ref()) else {
            if self.seen.take().is_some() {
                in_force.gone(&origin);
            }
            return;
        };
        if self.seen.as_ref() == Some(next) {
            return;
        }
        // An authority that is plugged in goes by a restart alone: a Secret that is replaced is
        // away for a moment.
        let withdrawn = self.plugged.is_none() && origin.ends_with(PLUGGED);
        if withdrawn {
            in_force.gone(&origin);
        } else {
            in_force.offer(next);
        }
        self.seen = Some(next.clone());
    }
}

fn take(
    slot: &mut Option<Texts>,
    listed: &mut bool,
    texts: impl Fn(&Secret) -> Texts,
    event: Event<Secret>,
) {
    match event {
        // Until a new list is read whole, nothing is known to be gone.
        Event::Init => (*slot, *listed) = (None, false),
        Event::InitDone => *listed = true,
        Event::InitApply(secret) | Event::Apply(secret) => *slot = Some(texts(&secret)),
        Event::Delete(_) => *slot = None,
    }
}

/// Follows the Secrets of `namespace`, for as long as the future lives.
pub async fn follow(client: Client, namespace: String, in_force: Arc<InForce>) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let one = |name: &str| {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        watcher(api.clone(), config).backoff(retry())
    };
    let (mut plugged, mut own) = (pin!(one(PLUGGED)), pin!(one(OWN)));
    let mut known = Known::default();
    loop {
        let failed = |error: watcher::Error| {
            tracing::warn!(%error, "watch of the certificate authority failed; it is tried again");
        };
        tokio::select! {
            Some(event) = plugged.next() => match event {
                Ok(event) => {
                    let read = |secret: &Secret| texts(&namespace, PLUGGED, secret);
                    take(&mut known.plugged, &mut known.listed.0, read, event);
                }
                Err(error) => failed(error),
            },
            Some(event) = own.next() => match event {
                Ok(event) => {
                    let read = |secret: &Secret| texts(&namespace, OWN, secret);
                    take(&mut known.own, &mut known.listed.1, read, event);
                }
                Err(error) => failed(error),
            },
        }
        known.look(&in_force);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(secret: &Secret) -> Texts {
        texts("ns", OWN, secret)
    }

    #[test]
    fn what_is_made_can_be_used_and_a_part_that_lacks_is_named() {
        let mut secret = fresh("ns", "cluster.local").unwrap();
        usable(&own(&secret)).unwrap();
        secret.data.as_mut().unwrap().remove(KEY);
        let error = usable(&own(&secret)).unwrap_err();
        let text = routing::wire::chain(&error);
        assert_eq!(
            text,
            "certificate authority of Secret ns/istio-ca-secret cannot be used: ca-key.pem lacks, \
             or is empty"
        );
    }

    #[test]
    fn the_plugged_in_authority_goes_first_and_one_that_is_gone_stays_in_force() {
        let own_secret = fresh("ns", "cluster.local").unwrap();
        let first = own(&own_secret);
        let in_force = InForce::new(Authority::read(&first).unwrap());
        let mut known = Known { own: Some(first.clone()), ..Known::default() };
        known.look(&in_force);
        assert_eq!(known.seen, None, "the other one is not told yet");
        known.listed = (true, true);
        known.look(&in_force);
        assert_eq!(in_force.refused(), None);

        // An operator's own authority takes over, of the same root here.
        let plugged = Texts { origin: "Secret ns/cacerts".into(), ..first };
        known.plugged = Some(plugged);
        known.look(&in_force);
        assert_eq!(in_force.now().origin(), "Secret ns/cacerts");
        known.plugged = None;
        known.look(&in_force);
        assert_eq!(in_force.now().origin(), "Secret ns/cacerts");
        assert!(in_force.refused().unwrap().contains("is gone"));
        known.own = None;
        known.look(&in_force);
        assert_eq!(in_force.now().origin(), "Secret ns/cacerts");
    }
}
