// SPDX-License-Identifier: Apache-2.0

//! What the admin endpoints answer about the certificate authority: what is in force, who
//! trusts it, who holds a leaf of which root. `waymark rotate-root` goes by it.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::app::{Hub, State};
use crate::ca::ledger::Leaf;
use crate::ca::{self, Rules};
use crate::serve::clients::Seen;
use crate::store::facts::PodState;
use crate::translate::pod;

/// Roots in force, which of them signs, who does not trust them yet, how many leaves of other
/// roots are in use, and why the newest texts are not in force, if so.
pub(super) fn summary(hub: &Hub, state: &State) -> Value {
    let authority = hub.ca.now();
    let root = |root: &ca::authority::Root| {
        json!({
            "fingerprint": root.fingerprint,
            "subject": root.subject,
            "notAfter": date(root.not_after),
            "signs": root.fingerprint == authority.signs(),
        })
    };
    let clients = hub.clients.list(Instant::now());
    let waiting = clients.iter().filter(|client| !trusts(hub, state, client));
    let waiting: Vec<&str> = waiting.map(|client| client.pod.as_str()).collect();
    let old = held(hub, state).filter(|(_, _, leaf)| leaf.root != authority.signs()).count();
    json!({
        "origin": authority.origin(),
        "notAfter": date(authority.not_after),
        "roots": authority.roots.iter().map(root).collect::<Vec<_>>(),
        // Before the roots are told to clients, what these acknowledged says nothing.
        "published": authority.roots.iter().map(|root| &root.pem).eq(state.stores.facts.roots()),
        "waiting": waiting,
        "oldLeaves": old,
        "refused": hub.ca.refused(),
    })
}

/// The same, with every client, and every holder of a leaf. The one that leads knows those of its
/// followers, and the ready proxies and controllers of which it has not heard.
pub(super) fn whole(hub: &Hub) -> Value {
    let state = hub.read();
    let mut answer = summary(hub, &state);
    let clients = hub.clients.list(Instant::now()).into_iter().map(|client| {
        let trusts = trusts(hub, &state, &client);
        json!({
            "role": client.role,
            "pod": client.pod,
            "silent": client.silent || !client.connected,
            "followsRoots": client.follows_roots,
            "trusts": trusts,
        })
    });
    let leaves = held(hub, &state).map(|(pod, identity, leaf)| {
        json!({
            "pod": pod,
            "identity": identity,
            "root": leaf.root,
            "givenAtMillis": millis(leaf.given_at),
            "notAfter": date(leaf.not_after),
        })
    });
    let (clients, leaves): (Vec<Value>, Vec<Value>) = (clients.collect(), leaves.collect());
    if let Some(fields) = answer.as_object_mut() {
        let leads = state.part.leads();
        let unheard = if leads { state.unheard(hub) } else { Vec::new() };
        fields.insert("leads".to_owned(), leads.into());
        fields.insert("unheard".to_owned(), unheard.into());
        fields.insert("clients".to_owned(), clients.into());
        fields.insert("leaves".to_owned(), leaves.into());
        fields.insert("holders".to_owned(), holders(hub, &state).into());
    }
    answer
}

/// Whether a client trusts all roots in force: it acknowledged them, or all its leaves came with
/// them. An agent that does not follow roots reads their file at each connection.
fn trusts(hub: &Hub, state: &State, client: &Seen) -> bool {
    if client.follows_roots {
        return client.acked >= state.roots_at;
    }
    if client.role == "agent" {
        return true;
    }
    let authority = hub.ca.now();
    let mut own = hub.ledger.alive(OffsetDateTime::now_utc());
    own.retain(|(holder, _)| holder.caller.pod_name() == client.pod);
    let knows =
        |leaf: &Leaf| authority.roots.iter().all(|root| leaf.trusted.contains(&root.fingerprint));
    !own.is_empty() && own.iter().all(|(_, leaf)| knows(leaf))
}

/// The leaves in use that controllers gave: pod, identity, leaf.
fn held<'a>(
    hub: &'a Hub,
    state: &'a State,
) -> impl Iterator<Item = (String, String, Leaf)> + use<'a> {
    let rules = Rules {
        trust_domain: &hub.mesh.trust_domain,
        trusted: &hub.settings.trusted_node_accounts,
    };
    let alive = hub.ledger.alive(OffsetDateTime::now_utc()).into_iter();
    alive.filter_map(move |(holder, leaf)| {
        // Who could not ask for it now does not use it any more.
        let asked = holder.asked.as_ref();
        let identity = ca::authorise(&holder.caller, asked, &state.stores, &rules).ok()?;
        Some((holder.caller.pod_name(), identity.to_string(), leaf))
    })
}

/// Who must hold a leaf: each tunnel those of the enrolled pods of its node, each gateway its own.
fn holders(hub: &Hub, state: &State) -> Vec<Value> {
    let clients = hub.clients.list(Instant::now());
    let of = |found: &Pod| {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            hub.mesh.trust_domain,
            found.metadata.namespace.as_deref().unwrap_or_default(),
            pod::service_account(found)
        )
    };
    let enrolled = |found: &&std::sync::Arc<Pod>| {
        let uid = found.metadata.uid.as_deref().unwrap_or_default();
        state.stores.facts.pod(uid).is_some_and(|fact| fact.state == PodState::Enrolled)
    };
    let mut found: Vec<(String, String)> = Vec::new();
    for client in &clients {
        if client.role == "tunnel" {
            let pods = state.stores.list::<Pod>(crate::store::index::Index::Node, &client.node);
            let pods = pods.into_iter().filter(enrolled);
            found.extend(pods.map(|one| (client.pod.clone(), of(one))));
        } else if client.role == "gateway"
            && let Some((namespace, name)) = client.pod.split_once('/')
            && let Some(one) = state.stores.get::<Pod>(namespace, name)
        {
            found.push((client.pod.clone(), of(one)));
        }
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|(pod, identity)| json!({"pod": pod, "identity": identity})).collect()
}

fn millis(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
}

fn date(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
