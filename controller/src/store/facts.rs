// SPDX-License-Identifier: Apache-2.0

//! What the controller learnt outside objects: the proven state of pods, as their agents
//! report it, how far an ordered change has come, the roots to trust, the keys of token issuers,
//! what stands against the objects of Gateways.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use policy::jwt::Jwk;
use routing::discovery::GatewayAddress;
use serde::{Deserialize, Serialize};

use super::{Key, ReadKey};

/// Changes that are remembered for followers; one that is further behind is told everything.
const LOG: usize = 4096;

/// Names a fact.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum FactKey {
    /// State of the pod with this UID.
    Pod(Arc<str>),
    /// Step of the ordered change of this service or workload.
    Step(Arc<str>),
    /// Roots that everybody is to trust.
    Roots,
    /// Keys of an issuer that are fetched.
    Keys(KeySource),
    /// State of the node of this name.
    Node(Arc<str>),
    /// What stands against this object of a Gateway.
    Objection(Key),
}

/// Where keys of an issuer are fetched.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum KeySource {
    /// A key set is at this URI.
    Uri(Arc<str>),
    /// This issuer tells by OpenID Connect discovery where its key set is.
    Issuer(Arc<str>),
}

/// What fetching the keys of an issuer has given so far.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FetchedKeys {
    /// The last good ones; empty if there never were any.
    pub keys: Vec<Jwk>,
    /// Why the last try failed; none: it went well.
    pub trouble: Option<String>,
}

/// Why an object of a Gateway cannot be written, as its Gateway is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Objection {
    /// A reason of Gateway API for `Programmed=False`.
    pub reason: &'static str,
    /// The object, what stands against it, and what to do.
    pub message: String,
}

/// What stands against objects of Gateways; those that are not there are written.
pub type Objections = BTreeMap<Key, Objection>;

/// What an agent reports about its node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeFact {
    /// UID of the object that the node had then; one made anew under its name is another node.
    pub uid: String,
    /// A pod that starts now is captured.
    pub serving: bool,
    /// Why not; may be empty.
    pub reason: String,
    /// Id of the order to leave that is carried out; empty if there is none.
    pub left: String,
}

/// What an agent reports about a pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodFact {
    /// The node whose agent reported.
    pub node: String,
    /// How far enrolment is.
    pub state: PodState,
    /// Why it failed, or what was noticed; may be empty.
    pub reason: String,
    /// Connections that were open before enrolment and go on outside the tunnel.
    pub older_connections: u32,
    /// Rules that were lost and put back.
    pub repairs: u32,
    /// Plain connections to the pod are not captured.
    #[serde(default)]
    pub plain_inbound: bool,
    /// Generation of what the agent was told whose rules are in force; see [`Told`].
    #[serde(default)]
    pub observed_generation: u64,
}

/// How far the enrolment of a pod is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PodState {
    /// Work is going on.
    Pending,
    /// Capture and listeners are proven.
    Enrolled,
    /// Capture could not be proven.
    Failed,
    /// The pod is out of the mesh.
    Released,
}

/// How far an ordered change has come: of a service's waypoint, or of a pod's enrolment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Step {
    /// The waypoint was never ready since it was asked for: traffic goes as before.
    Waiting,
    /// The waypoint is published; not all clients have acknowledged it.
    Published,
    /// Nothing is under way: what is declared is in force, the guard included.
    #[default]
    Settled,
    /// The waypoint is not declared any more: the guard is off, traffic still enters it.
    Leaving(GatewayAddress),
    /// Clients are told to go direct; the waypoint itself, which some may still enter, is not.
    Left(GatewayAddress),
    /// A running pod comes into the mesh: its agent leaves plain connections to it alone until
    /// every client knows that it takes HBONE.
    Joining,
    /// The pod does not belong in the mesh any more: its agent is told to leave plain connections
    /// to it alone; clients are not told yet.
    Opening,
    /// Clients are told that it takes plain bytes; its agent is not told to let it go yet.
    Releasing,
}

/// What the agent of a pod is told, as far as the order of steps depends on it.
///
/// A report that was under way while the agent was told something else says nothing of it; so
/// each such change has a number, and reports name that of the rules in force.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Told {
    /// What.
    pub what: Telling,
    /// Counts the changes.
    pub generation: u64,
    /// Generation since which the agent is told of the pod without a break.
    pub since: u64,
}

/// What an agent is told of a pod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Telling {
    /// Nothing: it is outside.
    #[default]
    Nothing,
    /// To leave plain connections to it alone.
    Open,
    /// To capture it whole.
    Whole,
}

/// Everything that is known of one pod or service besides objects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Known {
    /// What the agent of the pod reported.
    pub pod: Option<PodFact>,
    /// How far its ordered change has come.
    pub step: Step,
    /// What the agent of the pod is told.
    pub told: Option<Told>,
}

/// All facts.
#[derive(Debug, Default)]
pub struct Facts {
    pods: HashMap<Arc<str>, PodFact>,
    steps: HashMap<Arc<str>, Step>,
    told: HashMap<Arc<str>, Told>,
    roots: Vec<String>,
    keys: HashMap<KeySource, FetchedKeys>,
    nodes: HashMap<Arc<str>, NodeFact>,
    /// None: it was not tried to write them.
    objections: Option<Objections>,
    keys_revision: u64,
    revision: u64,
    /// Which pod or service changed at which revision.
    log: VecDeque<(u64, Arc<str>)>,
}

impl Facts {
    /// State of a node, by name.
    pub fn node(&self, name: &str) -> Option<&NodeFact> {
        self.nodes.get(name)
    }

    /// Takes the state of one node; returns the touched key if it changed.
    pub fn set_node(&mut self, name: &str, fact: NodeFact) -> Option<ReadKey> {
        if self.nodes.get(name) == Some(&fact) {
            return None;
        }
        let name: Arc<str> = name.into();
        self.nodes.insert(Arc::clone(&name), fact);
        Some(ReadKey::Fact(FactKey::Node(name)))
    }

    /// What stands against an object of a Gateway.
    pub fn objection(&self, key: &Key) -> Option<&Objection> {
        self.objections.as_ref()?.get(key)
    }

    /// Tells whether it was tried to write every object of a Gateway.
    pub fn knows_objections(&self) -> bool {
        self.objections.is_some()
    }

    /// Takes what stands against objects now, in the place of all that did; returns the touched
    /// keys.
    pub fn take_objections(&mut self, now: Option<Objections>) -> Vec<ReadKey> {
        let before = std::mem::replace(&mut self.objections, now).unwrap_or_default();
        let now = self.objections.as_ref();
        let keys: BTreeSet<&Key> =
            before.keys().chain(now.into_iter().flatten().map(|(key, _)| key)).collect();
        let differ = keys.into_iter().filter(|key| before.get(*key) != self.objection(key));
        differ.map(|key| ReadKey::Fact(FactKey::Objection(key.clone()))).collect()
    }

    /// State of a pod, by UID.
    pub fn pod(&self, uid: &str) -> Option<&PodFact> {
        self.pods.get(uid)
    }

    /// Every pod that an agent reported, by UID.
    pub fn pods(&self) -> impl Iterator<Item = (&Arc<str>, &PodFact)> {
        self.pods.iter()
    }

    /// Step of a service, by key, or of a pod, by UID.
    pub fn step(&self, what: &str) -> Step {
        self.steps.get(what).cloned().unwrap_or_default()
    }

    /// What the agent of the pod with this UID is told.
    pub fn told(&self, uid: &str) -> Told {
        self.told.get(uid).copied().unwrap_or_default()
    }

    /// Keys of an issuer; none: no try has ended yet.
    pub fn keys(&self, source: &KeySource) -> Option<&FetchedKeys> {
        self.keys.get(source)
    }

    /// Takes what a try to fetch keys gave; returns the touched key if that is new.
    ///
    /// After a failure the last good keys stay.
    pub fn set_keys(
        &mut self,
        source: &KeySource,
        fetched: Result<Vec<Jwk>, String>,
    ) -> Option<ReadKey> {
        let before = self.keys.get(source);
        let now = match fetched {
            Ok(keys) => FetchedKeys { keys, trouble: None },
            Err(why) => FetchedKeys {
                keys: before.map(|before| before.keys.clone()).unwrap_or_default(),
                trouble: Some(why),
            },
        };
        if before == Some(&now) {
            return None;
        }
        self.keys.insert(source.clone(), now);
        self.keys_revision += 1;
        Some(ReadKey::Fact(FactKey::Keys(source.clone())))
    }

    /// Forgets keys that nobody asks for any more.
    pub fn retain_keys(&mut self, wanted: impl Fn(&KeySource) -> bool) {
        let before = self.keys.len();
        self.keys.retain(|source, _| wanted(source));
        self.keys_revision += u64::from(self.keys.len() != before);
    }

    /// Counts the changes of keys.
    pub fn keys_revision(&self) -> u64 {
        self.keys_revision
    }

    /// The keys of every issuer that was tried.
    pub fn issuers(&self) -> impl Iterator<Item = (&KeySource, &FetchedKeys)> {
        self.keys.iter()
    }

    /// Takes the keys that another controller fetched, in the place of all others; returns the
    /// touched keys.
    pub fn take_keys(&mut self, fetched: Vec<(KeySource, FetchedKeys)>) -> Vec<ReadKey> {
        let before = std::mem::replace(&mut self.keys, fetched.into_iter().collect());
        let mut differ: BTreeSet<&KeySource> = BTreeSet::new();
        differ.extend(
            self.keys.keys().filter(|source| before.get(*source) != self.keys.get(*source)),
        );
        differ.extend(before.keys().filter(|source| !self.keys.contains_key(*source)));
        self.keys_revision += u64::from(!differ.is_empty());
        differ.into_iter().map(|source| ReadKey::Fact(FactKey::Keys(source.clone()))).collect()
    }

    /// The agent is to be told `what`; returns the touched key if that is new.
    pub fn tell(&mut self, uid: &str, what: Telling) -> Option<ReadKey> {
        let before = self.told.get(uid).copied();
        if before.unwrap_or_default().what == what {
            return None;
        }
        let generation = match (before, self.pods.get(uid)) {
            (Some(before), _) => before.generation + 1,
            // Told by an earlier controller.
            (None, Some(fact)) if fact.observed_generation > 0 => fact.observed_generation,
            (None, _) => 1,
        };
        let since = match before {
            Some(before) if before.what != Telling::Nothing => before.since,
            Some(_) | None => generation,
        };
        let uid: Arc<str> = uid.into();
        self.note(&uid);
        self.told.insert(Arc::clone(&uid), Told { what, generation, since });
        Some(ReadKey::Fact(FactKey::Step(uid)))
    }

    /// Roots that everybody is to trust, PEM each; that of new certificates first.
    pub fn roots(&self) -> &[String] {
        &self.roots
    }

    /// Takes the roots; returns the touched key if they changed.
    pub fn set_roots(&mut self, roots: Vec<String>) -> Option<ReadKey> {
        let changed = self.roots != roots;
        self.roots = roots;
        changed.then_some(ReadKey::Fact(FactKey::Roots))
    }

    /// The pod with this UID is gone.
    pub fn forget(&mut self, uid: &str) {
        if let Some((uid, _)) = self.told.remove_entry(uid) {
            self.note(&uid);
        }
    }

    /// Takes the state of one pod, or forgets it; returns the touched key if it changed.
    pub fn set_pod(&mut self, uid: &str, fact: Option<PodFact>) -> Option<ReadKey> {
        if self.pods.get(uid) == fact.as_ref() {
            return None;
        }
        let uid: Arc<str> = uid.into();
        self.note(&uid);
        match fact {
            Some(fact) => self.pods.insert(Arc::clone(&uid), fact),
            None => self.pods.remove(&uid),
        };
        Some(ReadKey::Fact(FactKey::Pod(uid)))
    }

    /// Takes the step of one change; returns the touched key if it moved.
    pub fn set_step(&mut self, what: &str, step: Step) -> Option<ReadKey> {
        if self.step(what) == step {
            return None;
        }
        let what: Arc<str> = what.into();
        self.note(&what);
        match step {
            Step::Settled => self.steps.remove(&what),
            step @ (Step::Waiting
            | Step::Published
            | Step::Leaving(_)
            | Step::Left(_)
            | Step::Joining
            | Step::Opening
            | Step::Releasing) => self.steps.insert(Arc::clone(&what), step),
        };
        Some(ReadKey::Fact(FactKey::Step(what)))
    }

    /// Counts the changes.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The pods and services that changed after `revision`; none if that is not remembered.
    pub fn since(&self, revision: u64) -> Option<BTreeSet<Arc<str>>> {
        let oldest = self.log.front().map_or(self.revision + 1, |(first, _)| *first);
        if revision > self.revision || (revision + 1 < oldest && revision < self.revision) {
            return None;
        }
        let newer = self.log.iter().filter(|(at, _)| *at > revision);
        Some(newer.map(|(_, what)| Arc::clone(what)).collect())
    }

    /// Every pod and service of which something is known.
    pub fn all(&self) -> BTreeSet<Arc<str>> {
        self.pods.keys().chain(self.steps.keys()).chain(self.told.keys()).cloned().collect()
    }

    /// Every ordered change under way.
    pub fn steps(&self) -> impl Iterator<Item = (&Arc<str>, &Step)> {
        self.steps.iter()
    }

    /// All that is known of a pod, by UID, or of a service, by key.
    pub fn known(&self, what: &str) -> Known {
        Known {
            pod: self.pods.get(what).cloned(),
            step: self.step(what),
            told: self.told.get(what).copied(),
        }
    }

    /// Takes all that another controller knows of a pod or service; returns the touched keys.
    pub fn take(&mut self, what: &str, known: Known) -> Vec<ReadKey> {
        let mut touched: Vec<ReadKey> = self.set_pod(what, known.pod).into_iter().collect();
        touched.extend(self.set_step(what, known.step));
        if self.told.get(what) != known.told.as_ref() {
            let what: Arc<str> = what.into();
            self.note(&what);
            match known.told {
                Some(told) => self.told.insert(Arc::clone(&what), told),
                None => self.told.remove(&what),
            };
            touched.push(ReadKey::Fact(FactKey::Step(what)));
        }
        touched
    }

    fn note(&mut self, what: &Arc<str>) {
        self.revision += 1;
        self.log.push_back((self.revision, Arc::clone(what)));
        if self.log.len() > LOG {
            self.log.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Name};
    use super::*;

    #[test]
    fn changes_are_remembered_and_another_store_can_take_them() {
        let mut facts = Facts::default();
        facts.tell("u1", Telling::Whole);
        facts.set_step("app/web", Step::Published);
        let seen = facts.revision();
        facts.set_step("app/web", Step::Settled);
        facts.forget("u1");
        facts.forget("u1");
        let changed = facts.since(seen).unwrap();
        assert_eq!(changed, ["app/web", "u1"].map(Arc::from).into());
        assert_eq!(facts.since(seen + 2).unwrap(), BTreeSet::new(), "nothing since");
        assert_eq!(facts.since(seen + 3), None, "of another controller");

        facts.tell("u1", Telling::Open);
        facts.tell("u1", Telling::Whole);
        let mut other = Facts::default();
        assert_eq!(other.take("u1", facts.known("u1")).len(), 1);
        assert_eq!(other.told("u1"), facts.told("u1"), "with its generation");
        assert!(other.take("u1", facts.known("u1")).is_empty(), "known already");
        assert_eq!(other.take("u1", Known::default()).len(), 1);
        assert!(other.all().is_empty());

        for _ in 0..LOG {
            facts.tell("u2", Telling::Open);
            facts.tell("u2", Telling::Whole);
        }
        assert_eq!(facts.since(seen), None, "too long ago");
    }

    #[test]
    fn objections_touch_what_differs_alone() {
        let key = |name: &str| Key { kind: Kind::Service, name: Name::new("n", name) };
        let said = |message: &str| Objection { reason: "Invalid", message: message.to_owned() };
        let touched = |names: &[&str]| -> Vec<ReadKey> {
            names.iter().map(|name| ReadKey::Fact(FactKey::Objection(key(name)))).collect()
        };
        let mut facts = Facts::default();
        assert!(!facts.knows_objections(), "nothing was tried");
        let both = || Some([(key("a"), said("no")), (key("b"), said("no"))].into());
        assert_eq!(facts.take_objections(both()), touched(&["a", "b"]));
        assert!(facts.take_objections(both()).is_empty(), "known already");
        let other = [(key("a"), said("never")), (key("c"), said("no"))];
        assert_eq!(facts.take_objections(Some(other.into())), touched(&["a", "b", "c"]));
        assert_eq!(facts.objection(&key("b")), None);
        assert_eq!(facts.take_objections(Some(Objections::new())), touched(&["a", "c"]));
        assert!(facts.take_objections(None).is_empty() && !facts.knows_objections());
    }
}
