// SPDX-License-Identifier: Apache-2.0

//! What replicas tell each other, both ways: facts, keys of token issuers, certificates given.
//!
//! A fact is taken whole or refused whole: half of it would be another fact.

use policy::jwt::Jwk;
use routing::wire::authentication::{read_key, write_key};
use routing::wire::messages::waymark::v1::issuer_keys::Source;
use routing::wire::messages::waymark::v1::leading_fact::Step as WireStep;
use routing::wire::messages::waymark::v1::leading_told::Telling as WireTelling;
use routing::wire::messages::waymark::v1::pod_state::State;
use routing::wire::messages::waymark::v1::{
    GivenLeaf, IssuerKeys, LeadingFact, LeadingKeys, LeadingTold, PodState as WirePod,
};
use routing::wire::workload::{read_gateway, write_gateway};
use routing::wire::{WireError, chain};
use time::OffsetDateTime;

use crate::ca::ledger::{Holder, Leaf};
use crate::ca::token::{Bound, Named};
use crate::serve::reports;
use crate::store::facts::{
    Facts, FetchedKeys, KeySource, Known, PodFact, PodState, Step, Telling, Told,
};

/// What the leader says of a pod or service.
pub fn write(what: &str, known: &Known) -> LeadingFact {
    let (step, waypoint) = match &known.step {
        Step::Settled => (WireStep::Settled, None),
        Step::Waiting => (WireStep::Waiting, None),
        Step::Published => (WireStep::Published, None),
        Step::Leaving(address) => (WireStep::Leaving, Some(write_gateway(address))),
        Step::Left(address) => (WireStep::Left, Some(write_gateway(address))),
        Step::Joining => (WireStep::Joining, None),
        Step::Opening => (WireStep::Opening, None),
        Step::Releasing => (WireStep::Releasing, None),
    };
    let telling = |what: Telling| match what {
        Telling::Nothing => WireTelling::Nothing,
        Telling::Open => WireTelling::Open,
        Telling::Whole => WireTelling::Whole,
    };
    let pod = known.pod.as_ref();
    LeadingFact {
        what: what.to_owned(),
        node: pod.map(|fact| fact.node.clone()).unwrap_or_default(),
        pod: pod.map(|fact| write_pod(what, fact)),
        step: step.into(),
        waypoint,
        told: known.told.map(|told| LeadingTold {
            what: telling(told.what).into(),
            generation: told.generation,
            since: told.since,
        }),
    }
}

fn write_pod(uid: &str, fact: &PodFact) -> WirePod {
    let state = match fact.state {
        PodState::Pending => State::Pending,
        PodState::Enrolled => State::Enrolled,
        PodState::Failed => State::Failed,
        PodState::Released => State::Released,
    };
    WirePod {
        uid: uid.to_owned(),
        state: state.into(),
        reason: fact.reason.clone(),
        older_connections: fact.older_connections,
        repairs: fact.repairs,
        plain_inbound: fact.plain_inbound,
        observed_generation: fact.observed_generation,
    }
}

/// What a follower hears of a pod or service.
///
/// # Errors
///
/// [`WireError`] for a step or a word that is not known here, as from a newer controller.
pub fn read(said: &LeadingFact) -> Result<Known, WireError> {
    let unknown = WireError::Unknown;
    let step = WireStep::try_from(said.step).map_err(|_| unknown("step", said.step))?;
    let waypoint = || read_gateway(said.waypoint.as_ref().ok_or(WireError::Missing("waypoint"))?);
    let step = match step {
        WireStep::Settled => Step::Settled,
        WireStep::Waiting => Step::Waiting,
        WireStep::Published => Step::Published,
        WireStep::Leaving => Step::Leaving(waypoint()?),
        WireStep::Left => Step::Left(waypoint()?),
        WireStep::Joining => Step::Joining,
        WireStep::Opening => Step::Opening,
        WireStep::Releasing => Step::Releasing,
    };
    let told = |told: &LeadingTold| {
        let what = WireTelling::try_from(told.what).map_err(|_| unknown("told.what", told.what))?;
        let what = match what {
            WireTelling::Nothing => Telling::Nothing,
            WireTelling::Open => Telling::Open,
            WireTelling::Whole => Telling::Whole,
        };
        Ok(Told { what, generation: told.generation, since: told.since })
    };
    let told = said.told.as_ref().map(told).transpose()?;
    Ok(Known { pod: said.pod.as_ref().map(|pod| reports::fact(&said.node, pod)), step, told })
}

/// The keys that the leader fetched.
pub fn write_issuers(facts: &Facts) -> LeadingKeys {
    let write = |(source, fetched): (&KeySource, &FetchedKeys)| IssuerKeys {
        source: Some(match source {
            KeySource::Uri(uri) => Source::Uri(uri.to_string()),
            KeySource::Issuer(issuer) => Source::Issuer(issuer.to_string()),
        }),
        keys: fetched.keys.iter().map(write_key).collect(),
        trouble: fetched.trouble.clone().unwrap_or_default(),
    };
    LeadingKeys { issuers: facts.issuers().map(write).collect() }
}

/// What a follower hears of the keys of issuers. Of one whose keys are not understood no token
/// is taken.
pub fn read_issuers(said: &LeadingKeys) -> Vec<(KeySource, FetchedKeys)> {
    let read = |one: &IssuerKeys| {
        let source = match one.source.as_ref() {
            Some(Source::Uri(uri)) => KeySource::Uri(uri.as_str().into()),
            Some(Source::Issuer(issuer)) => KeySource::Issuer(issuer.as_str().into()),
            None => {
                tracing::error!("keys of an issuer that the leader does not name are left out");
                return None;
            }
        };
        let keys: Result<Vec<Jwk>, WireError> = one.keys.iter().map(read_key).collect();
        let fetched = match keys {
            Ok(keys) => {
                let trouble = (!one.trouble.is_empty()).then(|| one.trouble.clone());
                FetchedKeys { keys, trouble }
            }
            Err(error) => {
                let why = format!("not understood as the leader tells them: {}", chain(&error));
                tracing::error!(?source, why, "keys of an issuer refused");
                FetchedKeys { keys: Vec::new(), trouble: Some(why) }
            }
        };
        Some((source, fetched))
    };
    said.issuers.iter().filter_map(read).collect()
}

/// Certificates that were given.
pub fn write_leaves(leaves: Vec<(Holder, Leaf)>) -> Vec<GivenLeaf> {
    let nanos = |at: OffsetDateTime| i64::try_from(at.unix_timestamp_nanos()).unwrap_or(i64::MAX);
    let write = |(holder, leaf): (Holder, Leaf)| {
        let Holder { caller, asked } = holder;
        GivenLeaf {
            namespace: caller.namespace,
            service_account: caller.service_account,
            pod: caller.pod.name,
            pod_uid: caller.pod.uid,
            node: caller.node.name,
            node_uid: caller.node.uid,
            asked: asked.map(|identity| identity.to_string()).unwrap_or_default(),
            root: leaf.root,
            trusted: leaf.trusted,
            given_at: nanos(leaf.given_at),
            not_after: nanos(leaf.not_after),
        }
    };
    leaves.into_iter().map(write).collect()
}

/// What another controller says that it gave; what cannot be read is left out, so that the
/// holder counts as one of whom nothing is known.
pub fn read_leaves(said: Vec<GivenLeaf>) -> Vec<(Holder, Leaf)> {
    let read = |said: GivenLeaf| {
        let pod = format!("{}/{}", said.namespace, said.pod);
        let read = read_leaf(said);
        if let Err(error) = &read {
            tracing::error!(pod, error = chain(error), "certificate given elsewhere not noted");
        }
        read.ok()
    };
    said.into_iter().filter_map(read).collect()
}

fn read_leaf(said: GivenLeaf) -> Result<(Holder, Leaf), WireError> {
    let at = |field: &'static str, nanos: i64| {
        OffsetDateTime::from_unix_timestamp_nanos(nanos.into())
            .map_err(|error| WireError::Value(field, error.to_string()))
    };
    let asked = match said.asked.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| WireError::Value("asked", text.to_owned()))?),
    };
    let caller = Bound {
        namespace: said.namespace,
        service_account: said.service_account,
        pod: Named { name: said.pod, uid: said.pod_uid },
        node: Named { name: said.node, uid: said.node_uid },
    };
    let leaf = Leaf {
        root: said.root,
        trusted: said.trusted,
        given_at: at("given_at", said.given_at)?,
        not_after: at("not_after", said.not_after)?,
    };
    Ok((Holder { caller, asked }, leaf))
}

#[cfg(test)]
mod tests {
    use policy::jwt::Jwks;
    use routing::discovery::{GatewayAddress, GatewayDestination, ServiceKey};

    use super::*;

    #[test]
    fn a_fact_comes_over_as_it_was() {
        let key = ServiceKey::new("app".parse().unwrap(), "wp.app.svc.cluster.local");
        let address =
            GatewayAddress { destination: GatewayDestination::Hostname(key), hbone_port: 15008 };
        let pod = |state| PodFact {
            node: "n1".into(),
            state,
            reason: "why".into(),
            older_connections: 2,
            repairs: 3,
            plain_inbound: true,
            observed_generation: 4,
        };
        let told = |what| Told { what, generation: 7, since: 5 };
        let steps = [
            Step::Settled,
            Step::Waiting,
            Step::Published,
            Step::Leaving(address.clone()),
            Step::Left(address),
            Step::Joining,
            Step::Opening,
            Step::Releasing,
        ];
        let mut cases: Vec<Known> = vec![Known::default()];
        cases.extend(steps.map(|step| Known { step, ..Known::default() }));
        let states = [PodState::Pending, PodState::Enrolled, PodState::Failed, PodState::Released];
        cases.extend(states.map(|state| Known { pod: Some(pod(state)), ..Known::default() }));
        let words = [Telling::Nothing, Telling::Open, Telling::Whole];
        cases.extend(words.map(|what| Known { told: Some(told(what)), ..Known::default() }));
        for known in cases {
            assert_eq!(read(&write("u1", &known)).unwrap(), known);
        }
        let newer = LeadingFact { step: 99, ..LeadingFact::default() };
        assert!(read(&newer).is_err(), "a step of a newer controller");
        let half = LeadingFact { step: WireStep::Left.into(), ..LeadingFact::default() };
        assert!(read(&half).is_err(), "which waypoint is not said");
    }
    #[test]
    fn keys_come_over_as_they_were_and_those_not_understood_take_no_token() {
        let set = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;
        let keys = Jwks::parse(set.as_bytes()).unwrap().keys;
        let [uri, issuer] = [KeySource::Uri("http://a".into()), KeySource::Issuer("b".into())];
        let mut facts = Facts::default();
        facts.set_keys(&uri, Ok(keys.clone()));
        facts.set_keys(&uri, Err("away".into()));
        facts.set_keys(&issuer, Ok(keys));
        let mut other = Facts::default();
        assert_eq!(other.take_keys(read_issuers(&write_issuers(&facts))).len(), 2);
        for source in [&uri, &issuer] {
            assert_eq!(other.keys(source), facts.keys(source));
        }
        assert!(other.take_keys(read_issuers(&write_issuers(&facts))).is_empty(), "known already");

        let mut newer = write_issuers(&facts);
        for one in newer.issuers.iter_mut().flat_map(|one| &mut one.keys) {
            one.algorithm = "XS1".into();
        }
        for (_, fetched) in read_issuers(&newer) {
            assert!(fetched.keys.is_empty() && fetched.trouble.is_some(), "{fetched:?}");
        }
        let none = read_issuers(&LeadingKeys::default());
        assert_eq!(other.take_keys(none).len(), 2, "they are gone");
    }

    #[test]
    fn a_certificate_that_was_given_comes_over_as_it_was() {
        let named = |name: &str| Named { name: name.into(), uid: format!("{name}-uid") };
        let caller = Bound {
            namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
            pod: named("ztunnel-1"),
            node: named("n1"),
        };
        let leaf = Leaf {
            root: "new".into(),
            trusted: vec!["new".into(), "old".into()],
            given_at: OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap(),
            not_after: OffsetDateTime::from_unix_timestamp(1_700_003_600).unwrap(),
        };
        let web = "spiffe://cluster.local/ns/app/sa/web".parse().unwrap();
        let given: Vec<_> = [None, Some(web)]
            .map(|asked| (Holder { caller: caller.clone(), asked }, leaf.clone()))
            .into();
        let mut wire = write_leaves(given.clone());
        assert_eq!(read_leaves(wire.clone()), given);
        wire.iter_mut().for_each(|one| one.asked = "web".into());
        assert!(read_leaves(wire).is_empty());
    }
}
