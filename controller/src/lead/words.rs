// SPDX-License-Identifier: Apache-2.0

//! Facts as replicas tell them each other, both ways.
//!
//! A fact is taken whole or refused whole: half of it would be another fact.

use routing::wire::WireError;
use routing::wire::messages::waymark::v1::leading_fact::Step as WireStep;
use routing::wire::messages::waymark::v1::leading_told::Telling as WireTelling;
use routing::wire::messages::waymark::v1::{LeadingFact, LeadingTold, PodState as WirePod};
use routing::wire::workload::{read_gateway, write_gateway};

use crate::serve::reports;
use crate::store::facts::{Known, PodFact, PodState, Step, Telling, Told};
use routing::wire::messages::waymark::v1::pod_state::State;

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

#[cfg(test)]
mod tests {
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
}
