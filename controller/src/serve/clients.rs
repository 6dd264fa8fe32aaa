// SPDX-License-Identifier: Apache-2.0

//! Who is connected, what each acknowledged, and what each refused.
//!
//! Owns which clients are waited for: those that answer. One that has not answered for the
//! silence limit is named and no longer waited for, until it answers again. One that hung up
//! while its pod goes on still serves by what it last had: it counts as silent from then on.
//! One whose pod is not ready yet takes no traffic: it is not waited for until it has everything.
//! Clients of followers count like own ones, by what their follower says.

mod connected;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use self::connected::Connected;

/// How many times the silence limit a client that hung up is named.
const REMEMBERED: u32 = 6;

/// A resource that a client refused.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// Its family's type URL.
    pub kind: String,
    /// Its name; empty if the client did not say.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// One connected client.
#[derive(Clone, Debug)]
pub struct Client {
    /// `tunnel`, `agent` or `gateway`.
    pub role: &'static str,
    /// `namespace/pod`.
    pub pod: String,
    /// Node of the pod.
    pub node: String,
    /// Where it calls from.
    pub address: Option<SocketAddr>,
    /// Newest revision that it acknowledged in full.
    pub acked: u64,
    /// Since when it owes an answer.
    pub owes_since: Option<Instant>,
    /// Its stream ended, and its pod goes on.
    pub gone: bool,
    /// Its pod was not ready when it came, and it has not acknowledged everything since.
    pub fresh: bool,
    /// It follows the roots to trust.
    pub follows_roots: bool,
    /// What it refuses.
    pub refused: Vec<Refusal>,
    /// The follower that it is connected to, `namespace/pod`; none if it is connected here.
    pub via: Option<Arc<str>>,
}

impl Client {
    /// What makes a difference to all besides how far it is.
    fn says(&self) -> (bool, bool, bool, &[Refusal]) {
        (self.gone, self.fresh, self.follows_roots, &self.refused)
    }
}

/// How far a client is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Newest revision that it acknowledged in full.
    pub acked: u64,
    /// It owes an answer.
    pub waiting: bool,
    /// It asked for the roots to trust, and refused none.
    pub follows_roots: bool,
    /// What it refuses.
    pub refused: Vec<Refusal>,
}

/// All connected clients.
#[derive(Debug)]
pub struct Clients {
    connected: Mutex<Connected>,
    /// Told when a client came, went or acknowledged.
    pub changed: watch::Sender<()>,
    /// Told when that makes a difference to all: the revision that every client has, who is
    /// there, what is refused. There is one such change where every client acknowledges.
    pub news: watch::Sender<()>,
    silence: Duration,
    limit: usize,
}

/// A line of the list of clients.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// `tunnel`, `agent` or `gateway`.
    pub role: &'static str,
    /// `namespace/pod`.
    pub pod: String,
    /// Node of the pod.
    pub node: String,
    /// Where it calls from.
    pub address: Option<String>,
    /// Newest revision that it acknowledged in full.
    pub acked: u64,
    /// Its stream is open.
    pub connected: bool,
    /// It has not answered for too long: nothing waits for it.
    pub silent: bool,
    /// It is told the roots to trust as they change, and takes them.
    pub follows_roots: bool,
    /// What it refuses.
    pub refused: Vec<Refusal>,
    /// The follower that it is connected to, `namespace/pod`; absent if that is this controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

impl Clients {
    /// No clients; `silence` is how long one may owe an answer, `limit` how many may be connected
    /// here.
    pub fn new(silence: Duration, limit: usize) -> Self {
        let (changed, news) = (watch::Sender::new(()), watch::Sender::new(()));
        let connected = Mutex::new(Connected::new(silence));
        Self { connected, changed, news, silence, limit }
    }

    fn lock(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client in; none if there are too many.
    pub fn connect(&self, client: Client) -> Option<u64> {
        let mut connected = self.lock();
        if connected.all().filter(|client| client.via.is_none()).count() >= self.limit {
            return None;
        }
        connected.forget(|old| old.pod == client.pod);
        let id = connected.number();
        connected.put(id, client, Instant::now());
        self.tell();
        Some(id)
    }

    /// Notes that a stream ended; `serves` tells that the pod behind it goes on.
    pub fn disconnect(&self, id: u64, serves: bool, now: Instant) {
        let mut connected = self.lock();
        let Some(mut client) = connected.remove(id) else { return };
        let again = connected.all().any(|other| other.pod == client.pod && !other.gone);
        if serves && !again && !client.fresh {
            client.gone = true;
            client.owes_since = client.owes_since.or(Some(now));
            connected.put(id, client, now);
        }
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_replace(());
        self.news.send_replace(());
    }

    /// Takes what a follower says of a client of its own, by its number here, if it has one; gives
    /// its number. `newest` is the newest revision.
    pub fn followed(
        &self,
        known: Option<u64>,
        said: Client,
        newest: u64,
        now: Instant,
    ) -> Option<u64> {
        let mut connected = self.lock();
        let least = connected.least();
        let before = known.and_then(|id| connected.remove(id));
        if said.gone {
            // It is back already, at another controller.
            if connected.all().any(|other| other.pod == said.pod && !other.gone) {
                self.tell();
                return None;
            }
        } else {
            connected.forget(|old| old.pod == said.pod);
        }
        let same = |old: &&Client| old.acked == said.acked && old.gone == said.gone;
        let owes = said.gone || said.acked < newest;
        let since = before.as_ref().filter(same).and_then(|old| old.owes_since);
        let owes_since = owes.then(|| since.unwrap_or(now));
        let id = known.unwrap_or_else(|| connected.number());
        let says_else = before.is_none_or(|before| before.says() != said.says());
        connected.put(id, Client { owes_since, ..said }, now);
        self.changed.send_replace(());
        if says_else || connected.least() != least {
            self.news.send_replace(());
        }
        Some(id)
    }

    /// There is a newer revision: from now on clients of followers owe an answer to it. Own ones
    /// do once it was sent.
    pub fn owe(&self, newest: u64, now: Instant) {
        self.lock().owe(newest, now);
    }

    /// The clients that are connected here, or were, by number.
    pub fn own(&self) -> Vec<(u64, Client)> {
        let connected = self.lock();
        let own = connected.iter().filter(|(_, client)| client.via.is_none());
        own.map(|(id, client)| (id, client.clone())).collect()
    }

    /// The pods whose stream is open, here or at a follower.
    pub fn pods(&self) -> BTreeSet<String> {
        let connected = self.lock();
        let open = connected.all().filter(|client| !client.gone);
        open.map(|client| client.pod.clone()).collect()
    }

    /// Forgets those that hung up and have been silent for long, or whose pod does not stay:
    /// `stays` tells that. A stream often ends before it is known that its pod goes.
    pub fn sweep(&self, now: Instant, stays: impl Fn(&str) -> bool) {
        let long = |since: Instant| now.duration_since(since) > self.silence * REMEMBERED;
        self.lock().forget(|client| client.owes_since.is_some_and(long) || !stays(&client.pod));
    }

    /// Notes how far a client is.
    pub fn progress(&self, id: u64, progress: Progress, now: Instant) {
        let Progress { acked, waiting, follows_roots, refused } = progress;
        let mut connected = self.lock();
        let least = connected.least();
        let Some(before) = connected.remove(id) else { return };
        let owes_since = match (waiting, before.acked != acked) {
            (false, _) => None,
            (true, true) => Some(now),
            (true, false) => before.owes_since.or(Some(now)),
        };
        let fresh = before.fresh && (waiting || acked == 0);
        let told = (before.follows_roots, before.fresh);
        let says_else = told != (follows_roots, fresh) || before.refused != refused;
        let client = Client { acked, owes_since, fresh, follows_roots, refused, ..before };
        connected.put(id, client, now);
        self.changed.send_replace(());
        if says_else || connected.least() != least {
            self.news.send_replace(());
        }
    }

    /// The revision that every client that answers has acknowledged; `newest` if there is none.
    pub fn acknowledged(&self, newest: u64, now: Instant) -> u64 {
        let mut connected = self.lock();
        connected.hush(now);
        connected.least().unwrap_or(newest)
    }

    /// Every client.
    pub fn list(&self, now: Instant) -> Vec<Seen> {
        let connected = self.lock();
        connected.all().map(|client| seen(client, connected.is_silent(client, now))).collect()
    }

    /// The clients that refuse something.
    pub fn refusing(&self, now: Instant) -> Vec<Seen> {
        let connected = self.lock();
        let refusing = connected.all().filter(|client| !client.refused.is_empty());
        refusing.map(|client| seen(client, connected.is_silent(client, now))).collect()
    }
}

fn seen(client: &Client, silent: bool) -> Seen {
    Seen {
        role: client.role,
        pod: client.pod.clone(),
        node: client.node.clone(),
        address: client.address.map(|address| address.to_string()),
        acked: client.acked,
        connected: !client.gone,
        silent,
        follows_roots: client.follows_roots,
        refused: client.refused.clone(),
        via: client.via.as_deref().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client {
            role: "tunnel",
            pod: "a/b".into(),
            node: "n".into(),
            address: None,
            acked: 0,
            owes_since: None,
            gone: false,
            fresh: false,
            follows_roots: false,
            refused: Vec::new(),
            via: None,
        }
    }

    fn at(acked: u64, waiting: bool) -> Progress {
        Progress { acked, waiting, follows_roots: true, refused: Vec::new() }
    }

    #[test]
    fn one_that_is_not_ready_is_waited_for_once_it_has_everything() {
        let clients = Clients::new(Duration::from_secs(10), 9);
        let now = Instant::now();
        let old = clients.connect(client()).unwrap();
        clients.progress(old, at(7, false), now);
        let new = clients.connect(Client { pod: "a/new".into(), fresh: true, ..client() }).unwrap();
        assert_eq!(clients.acknowledged(7, now), 7, "it takes no traffic yet");
        clients.progress(new, at(3, true), now);
        assert_eq!(clients.acknowledged(7, now), 7);
        clients.progress(new, at(7, false), now);
        clients.progress(new, at(7, true), now);
        clients.progress(old, at(8, false), now);
        assert_eq!(clients.acknowledged(8, now), 7, "from now on it counts");
        let never = clients.connect(Client { pod: "a/x".into(), fresh: true, ..client() }).unwrap();
        clients.disconnect(never, true, now);
        assert_eq!(clients.list(now).len(), 2, "one that never served is not remembered");
    }

    #[test]
    fn news_is_what_all_have_come_to() {
        let clients = Clients::new(Duration::from_secs(10), 9);
        let (mut news, now) = (clients.news.subscribe(), Instant::now());
        let mut is_news = || {
            let told = news.has_changed().unwrap();
            news.mark_unchanged();
            told
        };
        let first = clients.connect(client()).unwrap();
        let second = clients.connect(client()).unwrap();
        assert!(is_news(), "they are there");
        clients.progress(first, at(0, false), now);
        clients.progress(second, at(0, false), now);
        assert!(is_news(), "they follow the roots");
        clients.progress(first, at(5, false), now);
        assert!(!is_news(), "the other is behind");
        clients.progress(second, at(3, true), now);
        assert!(is_news(), "both have the third");
        clients.progress(second, at(3, true), now);
        assert!(!is_news());
        clients.progress(second, at(5, false), now);
        assert!(is_news());
        let refusal = Refusal { kind: "k".into(), name: "n".into(), reason: "r".into() };
        let refuses = || Progress { refused: vec![refusal.clone()], ..at(5, false) };
        clients.progress(first, refuses(), now);
        assert!(is_news());
        assert_eq!(clients.refusing(now).len(), 1);
        clients.progress(first, refuses(), now);
        assert!(!is_news(), "that is known");
        clients.disconnect(first, false, now);
        assert!(is_news());
    }

    #[test]
    fn the_slowest_that_answers_is_waited_for() {
        let clients = Clients::new(Duration::from_secs(10), 2);
        let start = Instant::now();
        assert_eq!(clients.acknowledged(7, start), 7, "nobody to wait for");
        let first = clients.connect(client()).unwrap();
        let second = clients.connect(client()).unwrap();
        assert_eq!(clients.connect(client()), None, "there is a limit");
        clients.progress(first, at(5, false), start);
        clients.progress(second, at(3, true), start);
        assert_eq!(clients.acknowledged(7, start + Duration::from_secs(10)), 3);
        let late = start + Duration::from_secs(11);
        assert_eq!(clients.acknowledged(7, late), 5, "a silent one is not waited for");
        assert!(clients.list(late)[1].silent);
        clients.progress(second, at(4, true), late);
        assert_eq!(clients.acknowledged(7, late), 4, "it answered again");
        clients.disconnect(second, false, late);
        assert_eq!(clients.acknowledged(7, late), 5);

        // One that hung up and still serves is waited for like one that does not answer.
        clients.disconnect(first, true, late);
        assert_eq!(clients.acknowledged(7, late + Duration::from_secs(10)), 5);
        assert_eq!(clients.acknowledged(7, late + Duration::from_secs(11)), 7);
        let third = clients.connect(client()).unwrap();
        assert_eq!(clients.list(late).len(), 1, "it is back");
        clients.disconnect(third, true, late);
        clients.sweep(late + Duration::from_secs(60), |_| true);
        assert_eq!(clients.list(late).len(), 1);
        clients.sweep(late + Duration::from_secs(61), |_| true);
        assert!(clients.list(late).is_empty());

        let fourth = clients.connect(client()).unwrap();
        clients.sweep(late, |_| false);
        assert_eq!(clients.list(late).len(), 1, "who is connected says that the pod is there");
        clients.disconnect(fourth, true, late);
        clients.sweep(late, |pod| pod != "a/b");
        assert!(clients.list(late).is_empty(), "its pod goes");
    }

    #[test]
    fn a_client_of_a_follower_counts_by_what_its_follower_says() {
        let clients = Clients::new(Duration::from_secs(10), 1);
        let start = Instant::now();
        let own = clients.connect(Client { pod: "a/own".into(), ..client() }).unwrap();
        clients.progress(own, at(5, false), start);
        let far = |acked: u64| Client { via: Some("m/c-2".into()), acked, ..client() };
        let mut news = clients.news.subscribe();
        let mut is_news = || {
            let told = news.has_changed().unwrap();
            news.mark_unchanged();
            told
        };
        let id = clients.followed(None, far(5), 5, start).expect("the limit is that of own ones");
        assert!(is_news(), "it is there");
        clients.followed(Some(id), far(5), 5, start);
        assert!(!is_news());
        clients.followed(Some(id), far(4), 5, start);
        assert!(is_news(), "it is the slowest now");
        clients.followed(Some(id), Client { follows_roots: true, ..far(4) }, 5, start);
        assert!(is_news());
        clients.followed(Some(id), far(5), 5, start);
        assert_eq!(clients.acknowledged(5, start), 5);
        // A newer revision: it owes an answer, though its follower has said nothing since.
        clients.owe(6, start);
        clients.progress(own, at(6, false), start);
        assert_eq!(clients.acknowledged(6, start + Duration::from_secs(10)), 5);
        let late = start + Duration::from_secs(11);
        assert_eq!(clients.acknowledged(6, late), 6, "silent, it is not waited for");
        assert_eq!(clients.followed(Some(id), far(6), 6, late), Some(id));
        assert_eq!((clients.acknowledged(6, late), clients.list(late)[1].silent), (6, false));
        assert_eq!(clients.own().len(), 1);

        // It moves from the follower to another one, whose word comes first.
        let moved = clients.followed(None, Client { via: Some("m/c-3".into()), ..far(6) }, 6, late);
        let gone = Client { gone: true, ..far(6) };
        assert_eq!(clients.followed(Some(id), gone.clone(), 6, late), None, "it is back already");
        clients.disconnect(moved.unwrap(), true, late);
        assert_eq!(clients.list(late).len(), 2, "waited for like an own one that hung up");
        assert_eq!(clients.acknowledged(7, late + Duration::from_secs(9)), 6);
        assert_eq!(clients.pods(), BTreeSet::from(["a/own".to_owned()]));
        clients.followed(None, Client { pod: "a/own".into(), ..gone }, 6, late);
        assert_eq!(clients.list(late).len(), 2);
    }
}
