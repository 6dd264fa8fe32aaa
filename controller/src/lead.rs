// SPDX-License-Identifier: Apache-2.0

//! Which controller leads: the one that holds the Lease. It decides what no object says (the
//! order of steps, what is acknowledged) and writes to Kubernetes; all serve.
//!
//! Owns: when a Lease may be taken. A holder that has not renewed for the Lease's duration, by
//! this process' own clock, is gone; clocks of two machines are never compared. One that
//! cannot renew stops writing before another may begin. Where the leader is stands in the
//! Lease, too: [`follow`] is a follower's way to it, [`following`] how far the follower is,
//! [`words`] what decisions look like on the way.
//!
//! [`dirty`] holds what waits for a writer. Start at [`hold`].

pub mod dirty;
pub mod follow;
pub mod following;
pub mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

/// Annotation on the Lease: address and port at which its holder serves.
const ADDRESS: &str = "waymark.dev/address";
/// Name of the Lease.
pub const NAME: &str = "waymark-controller-leader";
/// How long a Lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How long a holder goes on that cannot renew.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is tried to write the Lease when others write it, too.
const TRIES: usize = 3;
/// How often the Lease is looked at, and renewed.
const PERIOD: Duration = Duration::from_secs(2);

/// Who leads, as far as is known here.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Leader {
    /// This controller.
    Me,
    /// Another one.
    Other {
        /// Name of its pod.
        name: String,
        /// Where it serves; none if it does not say so.
        address: Option<SocketAddr>,
    },
    /// Nobody, or it is not known yet.
    #[default]
    Nobody,
}

/// One that wants to lead.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    namespace: String,
    me: String,
    address: Option<SocketAddr>,
    observed: Observed,
    /// The Lease as it was last written here.
    written: Option<Lease>,
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
    /// A candidate called `me`, serving at `address`, for the Lease of `namespace`.
    pub fn new(client: Client, namespace: &str, me: &str, address: Option<SocketAddr>) -> Self {
        let api = Api::namespaced(client, namespace);
        let (namespace, me) = (namespace.to_owned(), me.to_owned());
        Self { api, namespace, me, address, observed: Observed::default(), written: None }
    }

    /// Tells who holds the Lease now, having taken or renewed it if that may be.
    async fn attempt(&mut self) -> kube::Result<Leader> {
        for _ in 0..TRIES {
            match self.try_once().await {
                // Somebody else wrote or removed it meanwhile: it is read anew.
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
                answer => return answer,
            }
        }
        Ok(Leader::Nobody)
    }

    async fn try_once(&mut self) -> kube::Result<Leader> {
        // Mostly it is as it was left here: renewing it takes no look at it before.
        let known = match self.written.take() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(NAME).await?,
        };
        let Some(mut lease) = known else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(self.namespace.clone()),
                    annotations: self.annotations(BTreeMap::new()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            self.written = Some(self.api.create(&PostParams::default(), &fresh).await?);
            return Ok(Leader::Me);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if self.observed.next(&spec, &self.me, Instant::now()) == Next::Wait {
            return Ok(holder(&lease.metadata, &spec));
        }
        let others = lease.metadata.annotations.take().unwrap_or_default();
        lease.metadata.annotations = self.annotations(others);
        lease.metadata.managed_fields = None;
        lease.spec = Some(self.spec(Some(spec)));
        // The version that was read goes along: of two that take it at once one is refused.
        self.written = Some(self.api.replace(NAME, &PostParams::default(), &lease).await?);
        Ok(Leader::Me)
    }

    /// `others`, and where this candidate serves.
    fn annotations(
        &self,
        mut others: BTreeMap<String, String>,
    ) -> Option<BTreeMap<String, String>> {
        match self.address {
            Some(address) => others.insert(ADDRESS.to_owned(), address.to_string()),
            None => others.remove(ADDRESS),
        };
        Some(others)
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

/// The other that holds a Lease.
fn holder(meta: &ObjectMeta, spec: &LeaseSpec) -> Leader {
    let address = meta.annotations.as_ref().and_then(|all| all.get(ADDRESS));
    Leader::Other {
        name: spec.holder_identity.clone().unwrap_or_default(),
        address: address.and_then(|address| address.parse().ok()),
    }
}

/// Who leads after an attempt that failed `elapsed` after the last one that did not.
fn without_answer(before: Leader, elapsed: Duration) -> Leader {
    match before {
        Leader::Me if elapsed >= DEADLINE => Leader::Nobody,
        // Who follows need not know better: the leader itself tells whether it leads.
        before @ (Leader::Me | Leader::Other { .. } | Leader::Nobody) => before,
    }
}

/// Holds the Lease whenever it can be had, and says in `leader` who does.
pub async fn hold(candidate: &mut Candidate, leader: &watch::Sender<Leader>) {
    let mut renewed = Instant::now();
    loop {
        let attempt = tokio::time::timeout(DEADLINE, candidate.attempt()).await;
        let now = match attempt {
            Ok(Ok(now)) => {
                renewed = Instant::now();
                now
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "lease not renewed");
                without_answer(leader.borrow().clone(), renewed.elapsed())
            }
            Err(_) => without_answer(leader.borrow().clone(), DEADLINE),
        };
        leader.send_if_modified(|leader| {
            let changed = *leader != now;
            if changed {
                tracing::info!(leader = ?now, me = candidate.me, "leadership changed");
                *leader = now;
            }
            changed
        });
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests;
