// SPDX-License-Identifier: Apache-2.0

//! Objects that could not be written: when they are tried again, and what their Gateway is told.
//!
//! What the apiserver refuses for what the object is, is told at once; what may pass by itself
//! (an apiserver that is away, a conflict) only when it lasts: a Gateway that serves is not said
//! to be in trouble for a moment's sake.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use routing::wire::chain;

use crate::api;
use crate::store::facts::{Objection, Objections};
use crate::store::{Key, Kind};

/// The shortest and the longest time until a refused object is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// So many failures in a row are told whatever they are; with [`BACKOFF`] some seven seconds.
const LASTING: u32 = 4;
/// The longest answer that is repeated, in characters.
const LONGEST: usize = 500;

/// Why an object was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// There is one of that name which is another's.
    #[error("an object of this name is there and not managed here; it is left alone")]
    Foreign,
    /// The apiserver did not take it.
    #[error(transparent)]
    Apiserver(#[from] kube::Error),
}

#[derive(Debug)]
struct Try {
    failures: u32,
    again: Instant,
    told: Option<Objection>,
}

/// Objects that could not be written.
#[derive(Debug, Default)]
pub(super) struct Objected {
    tries: BTreeMap<Key, Try>,
}

impl Objected {
    /// Takes how a try ended; tells whether Gateways are to be told otherwise than before.
    pub(super) fn take(&mut self, key: &Key, error: Option<WriteError>, now: Instant) -> bool {
        let before = self.tries.remove(key);
        let Some(error) = error else {
            return before.is_some_and(|before| before.told.is_some());
        };
        let failures = before.as_ref().map_or(0, |before| before.failures);
        let wait = BACKOFF.0.saturating_mul(1 << failures.min(8)).min(BACKOFF.1);
        let failures = failures.saturating_add(1);
        let is_told = is_about_the_object(&error) || failures >= LASTING;
        let told = is_told.then(|| objection(key, &error));
        let differs = before.as_ref().and_then(|before| before.told.as_ref()) != told.as_ref();
        if differs || failures == 1 {
            tracing::warn!(object = %key, error = said(&error), "object of a Gateway not written; it is tried again");
        }
        self.tries.insert(key.clone(), Try { failures, again: now + wait, told });
        differs
    }

    /// Those whose time has come.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<Key> {
        let due = self.tries.iter().filter(|(_, one)| one.again <= now);
        due.map(|(key, _)| key.clone()).collect()
    }

    /// When the next one is tried.
    pub(super) fn next(&self) -> Option<Instant> {
        self.tries.values().map(|one| one.again).min()
    }

    /// What Gateways are told now.
    pub(super) fn told(&self) -> Objections {
        let told = self.tries.iter().filter_map(|(key, one)| Some((key, one.told.as_ref()?)));
        told.map(|(key, objection)| (key.clone(), objection.clone())).collect()
    }
}

/// Tells whether the same object will meet the same answer, as far as the answer says.
fn is_about_the_object(error: &WriteError) -> bool {
    match error {
        WriteError::Foreign => true,
        WriteError::Apiserver(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 403 | 422) && !status.message.contains("being terminated")
        }
        WriteError::Apiserver(_) => false,
    }
}

/// What the Gateway of an object is told.
///
/// Rule: reasons of `Programmed` in Gateway API `apis/v1/gateway_types.go`: `Invalid` for what
/// the Gateway asks and cannot have, `NoResources` for what the cluster does not give.
fn objection(key: &Key, error: &WriteError) -> Objection {
    let name = &key.name;
    let kind = key.kind.as_str();
    let (reason, advice) = match error {
        WriteError::Foreign => {
            let message = format!(
                "{kind} {name} is there already and not made for this Gateway (it lacks label {}), so it is \
                 left alone: delete or rename it, or let annotation {} give the Gateway's objects another name",
                api::MANAGED,
                api::NAME_OVERRIDE
            );
            return Objection { reason: "NoResources", message };
        }
        WriteError::Apiserver(kube::Error::Api(status)) => match status.code {
            400 | 422 => ("Invalid", asked_by(key.kind)),
            403 => ("NoResources", "a quota, an admission policy or a right has to admit it"),
            _ => ("NoResources", "it is tried again"),
        },
        WriteError::Apiserver(_) => ("NoResources", "it is tried again"),
    };
    let short: String = said(error).chars().take(LONGEST).collect();
    let message = format!("the apiserver refuses {kind} {name}: {short}; {advice}");
    Objection { reason, message }
}

/// What went wrong, once: the text of an answer holds it thrice.
fn said(error: &WriteError) -> String {
    match error {
        WriteError::Apiserver(kube::Error::Api(status)) => status.message.clone(),
        WriteError::Apiserver(_) | WriteError::Foreign => chain(error),
    }
}

/// Where a Gateway says what such an object looks like.
fn asked_by(kind: Kind) -> &'static str {
    if kind == Kind::Service {
        "put right what the Gateway asks: annotation networking.istio.io/service-type, spec.addresses, \
         spec.listeners, spec.infrastructure with its parameters"
    } else {
        "put right what the Gateway asks: spec.infrastructure with its parameters, and its class's"
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::store::Name;

    fn key() -> Key {
        Key { kind: Kind::Service, name: Name::new("n", "gw-waymark") }
    }

    fn answer(code: u16, message: &str) -> WriteError {
        let status = Status { code, message: message.to_owned(), ..Status::default() };
        WriteError::Apiserver(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_refused_object_waits_longer_each_time_up_to_a_limit() {
        let start = Instant::now();
        let mut objected = Objected::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            objected.take(&key(), Some(answer(422, "no")), start);
            waits.push(objected.next().unwrap().duration_since(start).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert!(objected.due(start + Duration::from_secs(29)).is_empty());
        assert_eq!(objected.due(start + Duration::from_secs(30)), BTreeSet::from([key()]));
    }

    #[test]
    fn what_is_about_the_object_is_told_at_once_and_the_rest_when_it_lasts() {
        let cases = [
            (WriteError::Foreign, 1),
            (answer(422, "no"), 1),
            (answer(400, "no"), 1),
            (answer(403, "exceeded quota: few"), 1),
            (answer(403, "unable to create: namespace n is being terminated"), LASTING),
            (answer(409, "the object has been modified"), LASTING),
            (answer(500, "failed calling webhook"), LASTING),
            (WriteError::Apiserver(kube::Error::LinesCodecMaxLineLengthExceeded), LASTING),
        ];
        for (error, tries) in cases {
            let (mut objected, now, text) =
                (Objected::default(), Instant::now(), error.to_string());
            // Each try meets the same.
            let again = || match &error {
                WriteError::Apiserver(kube::Error::Api(status)) => {
                    answer(status.code, &status.message)
                }
                WriteError::Apiserver(_) => {
                    WriteError::Apiserver(kube::Error::LinesCodecMaxLineLengthExceeded)
                }
                WriteError::Foreign => WriteError::Foreign,
            };
            for number in 1..=LASTING + 2 {
                let differs = objected.take(&key(), Some(again()), now);
                assert_eq!(differs, number == tries, "{text} {number}");
                assert_eq!(
                    objected.told().contains_key(&key()),
                    number >= tries,
                    "{text} {number}"
                );
            }
            assert!(objected.take(&key(), None, now), "{text} is taken back");
            assert!(objected.told().is_empty() && objected.next().is_none(), "{text}");
            assert!(!objected.take(&key(), None, now), "nothing was told");
        }
    }

    #[test]
    fn the_message_names_the_object_and_what_to_do() {
        let wrong = "Service \"gw-waymark\" is invalid: spec.type: Unsupported value: \"Wrong\"";
        let cases = [
            (answer(422, wrong), "Invalid", ["Unsupported value: \"Wrong\"", api::SERVICE_TYPE]),
            (
                answer(403, "exceeded quota: few"),
                "NoResources",
                ["exceeded quota: few", "has to admit"],
            ),
            (
                answer(500, "failed calling webhook"),
                "NoResources",
                ["failed calling webhook", "again"],
            ),
            (WriteError::Foreign, "NoResources", [api::MANAGED, api::NAME_OVERRIDE]),
        ];
        for (error, reason, parts) in cases {
            let told = objection(&key(), &error);
            assert_eq!(told.reason, reason, "{}", told.message);
            for part in parts.into_iter().chain(["Service n/gw-waymark"]) {
                assert!(told.message.contains(part), "{part} in {}", told.message);
            }
        }
        let long = objection(&key(), &answer(422, &"x".repeat(9000)));
        assert!(long.message.len() < 1000, "{}", long.message.len());
    }
}
