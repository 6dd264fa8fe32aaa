// SPDX-License-Identifier: Apache-2.0

//! Which controller writes to Kubernetes: the one that holds the Lease.
//!
//! Owns: when a Lease may be taken. A holder that has not renewed for the Lease's duration, by
//! this process' own clock, is gone; clocks of two machines are never compared. One that
//! cannot renew stops writing before another may begin.
//!
//! [`dirty`] holds what waits for a writer. Start at [`hold`].

pub mod dirty;

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

/// Name of the Lease.
pub const NAME: &str = "waymark-controller-leader";
/// How long a Lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How long a holder goes on that cannot renew.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the Lease is looked at, and renewed.
const PERIOD: Duration = Duration::from_secs(2);

/// One that wants to lead.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    namespace: String,
    me: String,
    observed: Observed,
}

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// It is mine: say so again.
    Renew,
    /// It is nobody's any more.
    Take,
    /// Another holds it.
    Wait,
}

/// The last state of the Lease that differed from the one before, and when it was seen.
#[derive(Debug, Default)]
struct Observed {
    last: Option<(LeaseSpec, Instant)>,
}

impl Observed {
    fn next(&mut self, lease: &LeaseSpec, me: &str, now: Instant) -> Next {
        let since = match &self.last {
            Some((known, since)) if known == lease => *since,
            Some(_) | None => {
                self.last = Some((lease.clone(), now));
                now
            }
        };
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        let seconds = lease.lease_duration_seconds.and_then(|n| u64::try_from(n).ok());
        let duration = seconds.map_or(DURATION, Duration::from_secs);
        if holder == me {
            Next::Renew
        } else if holder.is_empty() || now.duration_since(since) > duration {
            Next::Take
        } else {
            Next::Wait
        }
    }
}

impl Candidate {
    /// A candidate called `me` for the Lease of `namespace`.
    pub fn new(client: Client, namespace: &str, me: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        let (namespace, me) = (namespace.to_owned(), me.to_owned());
        Self { api, namespace, me, observed: Observed::default() }
    }

    /// Tries once; tells whether the Lease is held now.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(self.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return written(self.api.create(&PostParams::default(), &fresh).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if self.observed.next(&spec, &self.me, Instant::now()) == Next::Wait {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(spec)));
        // The version that was read goes along: of two that take it at once one is refused.
        written(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(self.me.as_str());
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| mine).or_else(|| Some(now.clone())),
            lease_transitions: Some(
                before.lease_transitions.unwrap_or_default().saturating_add(i32::from(!mine)),
            ),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// Lets the Lease go, if it is held, so that the next need not wait.
    pub async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() != Some(self.me.as_str()) {
            return;
        }
        spec.holder_identity = None;
        if let Err(error) = self.api.replace(NAME, &PostParams::default(), &lease).await {
            tracing::warn!(%error, "lease not let go; it ends by itself");
        }
    }
}

/// Another writer was quicker: not held.
fn written(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Holds the Lease whenever it can be had, and says in `leads` whether it is.
pub async fn hold(candidate: &mut Candidate, leads: &watch::Sender<bool>) {
    let mut renewed = Instant::now();
    loop {
        let attempt = tokio::time::timeout(DEADLINE, candidate.attempt()).await;
        let held = match attempt {
            Ok(Ok(held)) => {
                renewed = Instant::now();
                held
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "lease not renewed");
                *leads.borrow() && renewed.elapsed() < DEADLINE
            }
            Err(_) => false,
        };
        let changed = leads.send_if_modified(|leads| std::mem::replace(leads, held) != held);
        if changed {
            tracing::info!(leads = held, me = candidate.me, "leadership changed");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_its_holder_is_silent_for_its_duration() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut observed = Observed::default();
        assert_eq!(observed.next(&held("a", 1), "b", at(0)), Next::Wait);
        assert_eq!(observed.next(&held("a", 1), "b", at(15)), Next::Wait);
        // It was renewed meanwhile: the wait begins anew.
        assert_eq!(observed.next(&held("a", 2), "b", at(16)), Next::Wait);
        assert_eq!(observed.next(&held("a", 2), "b", at(31)), Next::Wait);
        assert_eq!(observed.next(&held("a", 2), "b", at(32)), Next::Take);
        assert_eq!(observed.next(&held("b", 3), "b", at(33)), Next::Renew);
        assert_eq!(observed.next(&held("", 3), "b", at(34)), Next::Take, "it was let go");
        assert_eq!(observed.next(&held("a", 4), "b", at(90)), Next::Wait, "first seen now");
    }
}
