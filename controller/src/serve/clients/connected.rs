// SPDX-License-Identifier: Apache-2.0

//! The clients by number, and how many of those that count have which revision: the slowest is
//! known without a look at all of them, whenever one of thousands acknowledges.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Client;

/// All clients.
#[derive(Debug)]
pub(super) struct Connected {
    silence: Duration,
    last: u64,
    clients: BTreeMap<u64, Entry>,
    /// Revision → how many that count have acknowledged it last.
    acked: BTreeMap<u64, usize>,
    /// How many hung up.
    gone: usize,
}

#[derive(Debug)]
struct Entry {
    client: Client,
    /// The revision under which it counts; none if it does not.
    counts: Option<u64>,
}

impl Connected {
    /// None yet; one that owes an answer for longer than `silence` does not count.
    pub(super) fn new(silence: Duration) -> Self {
        let (clients, acked) = (BTreeMap::new(), BTreeMap::new());
        Self { silence, last: 0, clients, acked, gone: 0 }
    }

    /// A number that no client had.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Client)> {
        self.clients.iter().map(|(id, entry)| (*id, &entry.client))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Client> {
        self.clients.values().map(|entry| &entry.client)
    }

    /// Puts a client in, in the place of one of that number.
    pub(super) fn put(&mut self, id: u64, client: Client, now: Instant) {
        self.remove(id);
        self.gone += usize::from(client.gone);
        let counts = self.counts(&client, now);
        if let Some(acked) = counts {
            *self.acked.entry(acked).or_default() += 1;
        }
        self.clients.insert(id, Entry { client, counts });
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Client> {
        let Entry { client, counts } = self.clients.remove(&id)?;
        self.leaves(counts);
        self.gone -= usize::from(client.gone);
        Some(client)
    }

    /// Removes those that hung up for which `is_over` holds.
    pub(super) fn forget(&mut self, is_over: impl Fn(&Client) -> bool) {
        if self.gone == 0 {
            return;
        }
        let over = self.iter().filter(|(_, client)| client.gone && is_over(client));
        let over: Vec<u64> = over.map(|(id, _)| id).collect();
        for id in over {
            self.remove(id);
        }
    }

    /// The oldest of the revisions that those have which count; none if none does. Who fell
    /// silent since [`Self::hush`] counts still.
    pub(super) fn least(&self) -> Option<u64> {
        self.acked.keys().next().copied()
    }

    /// Clients of followers that are behind `newest` owe an answer from now on.
    pub(super) fn owe(&mut self, newest: u64, now: Instant) {
        let all = self.clients.values_mut().map(|entry| &mut entry.client);
        for client in all.filter(|client| client.via.is_some() && client.acked < newest) {
            client.owes_since.get_or_insert(now);
        }
    }

    /// Lets those count no longer that have been silent for too long.
    pub(super) fn hush(&mut self, now: Instant) {
        let silent = |(id, entry): (&u64, &Entry)| {
            (entry.counts.is_some() && self.is_silent(&entry.client, now)).then_some(*id)
        };
        let silent: Vec<u64> = self.clients.iter().filter_map(silent).collect();
        for id in silent {
            let counts = self.clients.get_mut(&id).and_then(|entry| entry.counts.take());
            self.leaves(counts);
        }
    }

    pub(super) fn is_silent(&self, client: &Client, now: Instant) -> bool {
        client.owes_since.is_some_and(|since| now.duration_since(since) > self.silence)
    }

    fn counts(&self, client: &Client, now: Instant) -> Option<u64> {
        (!client.fresh && !self.is_silent(client, now)).then_some(client.acked)
    }

    fn leaves(&mut self, counts: Option<u64>) {
        let Some(acked) = counts else { return };
        if let Some(there) = self.acked.get_mut(&acked) {
            *there -= 1;
            if *there == 0 {
                self.acked.remove(&acked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(10);

    fn client(acked: u64, owes_since: Option<Instant>) -> Client {
        Client {
            role: "tunnel",
            pod: format!("a/{acked}"),
            node: String::new(),
            address: None,
            acked,
            owes_since,
            gone: false,
            fresh: acked == 0,
            follows_roots: false,
            refused: Vec::new(),
            via: None,
        }
    }

    /// The slowest of those that count, found by a look at all.
    fn slowest(connected: &Connected, now: Instant) -> Option<u64> {
        let counts = |client: &&Client| !client.fresh && !connected.is_silent(client, now);
        connected.all().filter(counts).map(|client| client.acked).min()
    }

    #[test]
    fn the_slowest_is_known_whatever_was_done() {
        let (mut connected, start) = (Connected::new(SILENCE), Instant::now());
        let mut state = 7_u64;
        let mut any = |of: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % of
        };
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..2_000 {
            let now = start + Duration::from_millis(step * 100);
            let (id, acked) = (any(8), any(5));
            match any(8) {
                0 => drop(connected.remove(id)),
                1 => connected.forget(|client| client.acked == acked),
                2 => connected.owe(acked, now),
                3 => {
                    let via = Some("a/follower".into());
                    connected.put(id, Client { via, ..client(acked, None) }, now);
                }
                4 => connected.put(id, Client { gone: true, ..client(acked, Some(now)) }, now),
                5 => connected.put(id, client(acked, Some(now)), now),
                _ => connected.put(id, client(acked, None), now),
            }
            connected.hush(now);
            assert_eq!(connected.least(), slowest(&connected, now), "step {step}");
            assert_eq!(connected.gone, connected.all().filter(|client| client.gone).count());
            seen.insert(connected.least());
        }
        assert!(seen.len() > 3, "{seen:?}");
    }
}
