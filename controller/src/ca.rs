// SPDX-License-Identifier: Apache-2.0

//! The certificate authority: who may ask for which identity.
//!
//! Owns the rules of `CreateCertificate`: a pod gets its own identity; a trusted node account
//! gets those of the pods on its own node, and no others. Every issue is logged by its caller
//! in [`crate::serve`]. Tokens are [`token`]'s, signing is [`sign`]'s, what
//! signs and is trusted is [`authority`]'s, the own root is [`root`]'s.
//!
//! Rule: Istio's `security/pkg/server/ca`. Start at [`authorise`].

pub mod authority;
pub mod files;
pub mod ledger;
pub mod review;
pub mod root;
pub mod secret;
pub mod sign;
pub mod token;

use k8s_openapi::api::core::v1::Pod;
use policy::identity::Identity;

use crate::store::Stores;
use crate::store::index::Index;
use crate::translate::pod;
use token::Bound;

/// Why a certificate is refused; the client is told only that it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The pod that the token names is not there, or is another one.
    #[error("pod {0} of the token does not exist, or not with that UID and service account")]
    CallerPod(String),
    /// The caller may not ask for others.
    #[error("account {0} may not ask for other identities")]
    NotTrusted(String),
    /// The asked identity is of another trust domain.
    #[error("identity {0} is of another trust domain")]
    TrustDomain(Identity),
    /// No pod of that account runs on the caller's node.
    #[error("no pod of {0} runs on node {1}")]
    NotOnNode(Identity, String),
    /// The caller's names make no identity.
    #[error("account {0} makes no identity")]
    Names(String),
}

/// Which identity `caller` gets, having asked for `asked` or for its own.
///
/// # Errors
///
/// See [`Refused`].
pub fn authorise(
    caller: &Bound,
    asked: Option<&Identity>,
    stores: &Stores,
    rules: &Rules<'_>,
) -> Result<Identity, Refused> {
    let account = caller.account();
    let own = own_pod(caller, stores).ok_or_else(|| Refused::CallerPod(caller.pod_name()))?;
    let Some(asked) = asked else {
        let names = || Refused::Names(account.clone());
        return Ok(Identity::new(
            &rules.trust_domain.parse().map_err(|_| names())?,
            &caller.namespace.parse().map_err(|_| names())?,
            &caller.service_account.parse().map_err(|_| names())?,
        ));
    };
    if !rules.trusted.contains(&account) {
        return Err(Refused::NotTrusted(account));
    }
    if asked.trust_domain() != rules.trust_domain {
        return Err(Refused::TrustDomain(asked.clone()));
    }
    let node = own.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let runs = stores.list::<Pod>(Index::Node, node).into_iter().any(|found| {
        found.metadata.namespace.as_deref() == Some(asked.namespace())
            && pod::service_account(found) == asked.service_account()
            && !pod::is_terminal(found)
    });
    if runs && !node.is_empty() {
        Ok(asked.clone())
    } else {
        Err(Refused::NotOnNode(asked.clone(), node.to_owned()))
    }
}

/// What the CA goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Trust domain of every identity.
    pub trust_domain: &'a str,
    /// Accounts, `namespace/name`, that may ask for the pods of their node.
    pub trusted: &'a [String],
}

/// The pod that a token is bound to, if it is there as the token says.
pub fn own_pod<'a>(caller: &Bound, stores: &'a Stores) -> Option<&'a Pod> {
    let found = stores.get::<Pod>(&caller.namespace, &caller.pod.name)?;
    let same = found.metadata.uid.as_deref() == Some(caller.pod.uid.as_str())
        && pod::service_account(found) == caller.service_account
        && !pod::is_terminal(found);
    same.then_some(found.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::document;
    use std::path::Path;
    use token::Named;

    fn stores() -> Stores {
        let pod = |ns: &str, name: &str, uid: &str, sa: &str, node: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {ns}, uid: {uid}}}\nspec: {{serviceAccountName: {sa}, nodeName: {node}, containers: []}}\n---\n"
            )
        };
        let text = pod("istio-system", "ztunnel-1", "z1", "ztunnel", "n1")
            + &pod("app", "web", "w1", "web", "n1")
            + &pod("app", "db", "d1", "db", "n2");
        let mut stores = Stores::default();
        for placed in document::parse(Path::new("f"), &text).objects {
            stores.put(placed.object);
        }
        stores
    }

    fn caller(ns: &str, pod: &str, uid: &str, sa: &str) -> Bound {
        let named = |name: &str, uid: &str| Named { name: name.into(), uid: uid.into() };
        Bound {
            namespace: ns.into(),
            service_account: sa.into(),
            pod: named(pod, uid),
            node: named("n1", "node-uid"),
        }
    }

    #[test]
    fn a_node_gets_its_own_pods_and_nobody_else_gets_another() {
        let stores = stores();
        let trusted = ["istio-system/ztunnel".to_owned()];
        let rules = Rules { trust_domain: "cluster.local", trusted: &trusted };
        let id = |text: &str| text.parse::<Identity>().unwrap();
        let web = id("spiffe://cluster.local/ns/app/sa/web");
        let db = id("spiffe://cluster.local/ns/app/sa/db");
        let foreign = id("spiffe://other/ns/app/sa/web");
        let tunnel = caller("istio-system", "ztunnel-1", "z1", "ztunnel");
        let own = caller("app", "web", "w1", "web");
        let cases = [
            // caller, asked, granted
            (&tunnel, Some(&web), Ok(web.clone())),
            (&tunnel, Some(&db), Err(Refused::NotOnNode(db.clone(), "n1".into()))),
            (&tunnel, Some(&foreign), Err(Refused::TrustDomain(foreign.clone()))),
            (&own, None, Ok(web.clone())),
            (&own, Some(&web), Err(Refused::NotTrusted("app/web".into()))),
            (&own, Some(&db), Err(Refused::NotTrusted("app/web".into()))),
        ];
        for (who, asked, want) in cases {
            assert_eq!(authorise(who, asked, &stores, &rules), want, "{who:?} {asked:?}");
        }
        let replaced = caller("istio-system", "ztunnel-1", "older", "ztunnel");
        let refused = authorise(&replaced, Some(&web), &stores, &rules);
        assert_eq!(refused, Err(Refused::CallerPod("istio-system/ztunnel-1".into())));
        let borrowed = caller("app", "web", "w1", "db");
        assert!(authorise(&borrowed, None, &stores, &rules).is_err(), "account of another pod");
    }
}
