// SPDX-License-Identifier: Apache-2.0

//! Keys of issuers, fetched where RequestAuthentications say and kept fresh.
//!
//! Owns one task for each place that is asked for: it fetches at once, again when the keys grow
//! old, and after a failure sooner, ever more slowly. What a try gave goes to the engine, which
//! keeps the last good keys ([`crate::store::facts`]). Of replicas the one that leads fetches.
//! What comes over the network is bounded ([`fetch`]).
//!
//! Start at [`Keeper`].

pub mod fetch;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use policy::jwt::Jwk;
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::istio::RequestAuthentication;
use crate::store::Stores;
use crate::store::facts::KeySource;
use crate::translate::request_authentication::sources;
use fetch::Client;

/// Results that wait for the engine.
const QUEUE: usize = 64;

/// What one try gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// Where.
    pub source: KeySource,
    /// The keys, or why there are none.
    pub result: Result<Vec<Jwk>, String>,
}

/// When keys are fetched.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time from one good try to the next. Rule: Istio's `PILOT_JWT_PUB_KEY_REFRESH_INTERVAL`.
    pub refresh: Duration,
    /// Time from a first failure to the next try; doubled at each further one.
    pub retry: Duration,
    /// The longest such time.
    pub retry_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let second = Duration::from_secs;
        Self { refresh: second(20 * 60), retry: second(1), retry_max: second(5 * 60) }
    }
}

impl Pace {
    /// Time to wait after so many failures in a row; a tenth of it is chance, so that replicas do
    /// not ask all at once.
    fn after(&self, failures: u32) -> Duration {
        let time = match failures.checked_sub(1) {
            None => self.refresh,
            Some(more) => self.retry.saturating_mul(2_u32.saturating_pow(more)).min(self.retry_max),
        };
        time.mul_f64(rand::rng().random_range(0.9..1.1))
    }
}

/// Places that are asked for, each with the time that a try may take.
pub type Wanted = BTreeMap<KeySource, Duration>;

/// What the objects of `stores` ask for; of several times the longest counts.
pub fn wanted(stores: &Stores) -> Wanted {
    let mut wanted = Wanted::new();
    for (source, millis) in stores.all::<RequestAuthentication>().flat_map(|one| sources(one)) {
        let time = wanted.entry(source).or_default();
        *time = (*time).max(Duration::from_millis(millis));
    }
    wanted
}

/// Keeps fetching what is asked for; the tasks end with it.
#[derive(Debug)]
pub struct Keeper {
    client: Client,
    pace: Pace,
    running: BTreeMap<KeySource, (Duration, AbortHandle)>,
    out: mpsc::Sender<Fetched>,
    results: mpsc::Receiver<Fetched>,
}

impl Keeper {
    /// One that fetches nothing yet.
    pub fn new(client: Client, pace: Pace) -> Self {
        let (out, results) = mpsc::channel(QUEUE);
        Self { client, pace, running: BTreeMap::new(), out, results }
    }

    /// Fetches what `wanted` asks for from now on, and nothing else.
    pub fn want(&mut self, wanted: &Wanted) {
        self.running.retain(|source, (time, task)| {
            let stays = wanted.get(source) == Some(time);
            if !stays {
                task.abort();
            }
            stays
        });
        for (source, time) in wanted {
            if !self.running.contains_key(source) {
                let what = (source.clone(), *time);
                let task = keep(self.client.clone(), what, self.pace, self.out.clone());
                let task = tokio::spawn(Box::pin(task)).abort_handle();
                self.running.insert(source.clone(), (*time, task));
            }
        }
    }

    /// What the next try gave. Cancel safe.
    pub async fn next(&mut self) -> Option<Fetched> {
        self.results.recv().await
    }

    /// What a first try of every place gave, as far as it ended within `limit`.
    pub async fn first(&mut self, limit: Duration) -> Vec<Fetched> {
        let until = Instant::now() + limit;
        let mut found: Vec<Fetched> = Vec::new();
        let told =
            |found: &[Fetched], source: &KeySource| found.iter().any(|one| one.source == *source);
        while self.running.keys().any(|source| !told(&found, source)) {
            match timeout_at(until, self.results.recv()).await {
                Ok(Some(fetched)) => found.push(fetched),
                Ok(None) | Err(_) => break,
            }
        }
        found
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, task)| task.abort());
    }
}

/// Fetches from `source` until nobody takes what it gives.
async fn keep(
    client: Client,
    (source, time): (KeySource, Duration),
    pace: Pace,
    out: mpsc::Sender<Fetched>,
) {
    let mut failures = 0_u32;
    loop {
        let result = fetch::keys(&client, &source, time).await;
        let result = result.map_err(|error| routing::wire::chain(&error));
        match &result {
            Ok(_) => failures = 0,
            Err(why) => {
                failures = failures.saturating_add(1);
                tracing::warn!(?source, why, "keys cannot be fetched; it is tried again");
            }
        }
        let fetched = Fetched { source: source.clone(), result };
        if out.send(fetched).await.is_err() {
            return;
        }
        sleep(pace.after(failures)).await;
    }
}
