// SPDX-License-Identifier: Apache-2.0

//! Both halves against each other, and each against what Istio's other half does.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::client::Client;
use super::server::{Received, Session, Versioned, View};
use super::*;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const POLICY: &str = "type.googleapis.com/istio.security.Authorization";

/// What there is, by kind and name.
#[derive(Default)]
struct Resources(BTreeMap<(String, Arc<str>), Versioned>);

impl Resources {
    fn put(&mut self, type_url: &str, name: &str, version: &str) {
        let one = Versioned {
            name: name.into(),
            version: version.into(),
            aliases: vec![format!("net/{name}").into()],
            body: version.to_owned().into(),
        };
        self.0.insert((type_url.to_owned(), name.into()), one);
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        self.0.remove(&(type_url.to_owned(), name.into()));
    }
}

impl View for Resources {
    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Versioned> + 'a> {
        let type_url = type_url.to_owned();
        Box::new(self.0.iter().filter(move |((kind, _), _)| *kind == type_url).map(|(_, one)| one))
    }

    fn get(&self, type_url: &str, name: &str) -> Option<&Versioned> {
        self.0.get(&(type_url.to_owned(), name.into()))
    }

    fn asked<'a>(&'a self, type_url: &str, name: &str) -> Vec<&'a Versioned> {
        let named = |one: &&Versioned| *one.name == *name || one.aliases.contains(&name.into());
        self.all(type_url).filter(named).collect()
    }
}

fn node() -> Node {
    Node { id: "ztunnel~10.0.0.1~a.b~b.svc.cluster.local".into(), ..Node::default() }
}

/// A proxy with what it took, and a controller, joined by no wire at all.
struct Pair {
    client: Client,
    session: Session,
    have: BTreeMap<String, String>,
}

impl Pair {
    fn new(kinds: &[&str]) -> Self {
        let client = Client::new(node(), kinds.iter().copied());
        Self { client, session: Session::default(), have: BTreeMap::new() }
    }

    fn connect(&mut self, resources: &Resources, revision: u64) {
        self.session = Session::default();
        for request in self.client.connect() {
            self.request(request, resources, revision);
        }
        self.session.reached(revision);
    }

    fn request(&mut self, request: DeltaDiscoveryRequest, resources: &Resources, revision: u64) {
        let type_url = request.type_url.clone();
        if self.session.receive(request).subscribed
            && let Some(response) = self.session.sync(&type_url, resources, revision)
        {
            self.deliver(&response, &[]);
        }
    }

    fn push(&mut self, type_url: &str, name: &str, resources: &Resources, revision: u64) -> usize {
        let name = name.into();
        let response = self.session.push(type_url, [&name], resources, revision);
        self.session.reached(revision);
        let Some(response) = response else { return 0 };
        self.deliver(&response, &[]);
        response.resources.len() + response.removed_resources.len()
    }

    /// Applies a response but for what is rejected, and answers.
    fn deliver(&mut self, response: &DeltaDiscoveryResponse, rejected: &[Rejected]) -> Received {
        for resource in &response.resources {
            if !rejected.iter().any(|one| *one.name == *resource.name) {
                self.have.insert(resource.name.clone(), resource.version.clone());
            }
        }
        for name in &response.removed_resources {
            self.have.remove(name);
        }
        let answer = self.client.answer(response, rejected);
        self.session.receive(answer)
    }

    fn have(&self) -> Vec<(&str, &str)> {
        self.have.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect()
    }
}

#[test]
fn a_client_of_all_gets_what_there_is_and_then_only_changes() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "a", "1");
    resources.put(ADDRESS, "b", "1");
    let mut pair = Pair::new(&[ADDRESS, POLICY]);
    assert!(!pair.client.is_complete());
    pair.connect(&resources, 1);
    assert!(pair.client.is_complete(), "an empty kind is answered too");
    assert_eq!(pair.have(), [("a", "1"), ("b", "1")]);
    assert_eq!(pair.session.node(), Some(&node()));
    assert_eq!(pair.session.acknowledged(), 1);

    resources.put(ADDRESS, "a", "2");
    assert_eq!(pair.push(ADDRESS, "a", &resources, 2), 1);
    assert_eq!(pair.push(ADDRESS, "a", &resources, 3), 0, "nothing is sent twice");
    resources.remove(ADDRESS, "b");
    assert_eq!(pair.push(ADDRESS, "b", &resources, 4), 1);
    assert_eq!(pair.push(ADDRESS, "never", &resources, 5), 0, "what it never had is not removed");
    assert_eq!(pair.have(), [("a", "2")]);
    assert_eq!(pair.session.acknowledged(), 5);
}

#[test]
fn after_a_reconnect_only_what_changed_meanwhile_is_sent() {
    let mut resources = Resources::default();
    for name in ["same", "changed", "gone"] {
        resources.put(ADDRESS, name, "1");
    }
    let mut pair = Pair::new(&[ADDRESS]);
    pair.connect(&resources, 1);
    resources.put(ADDRESS, "changed", "2");
    resources.put(ADDRESS, "new", "1");
    resources.remove(ADDRESS, "gone");

    pair.session = Session::default();
    let request = pair.client.connect().remove(0);
    assert_eq!(request.initial_resource_versions.len(), 3);
    assert!(pair.session.receive(request).subscribed);
    let response = pair.session.sync(ADDRESS, &resources, 2).unwrap();
    let sent: Vec<_> = response.resources.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(
        (sent, response.removed_resources.clone()),
        (vec!["changed", "new"], vec!["gone".into()])
    );
    pair.deliver(&response, &[]);
    assert_eq!(pair.have(), [("changed", "2"), ("new", "1"), ("same", "1")]);
}

#[test]
fn a_refused_resource_is_named_and_the_rest_counts() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "bad", "1");
    resources.put(ADDRESS, "good", "1");
    let mut pair = Pair::new(&[ADDRESS]);
    let request = pair.client.connect().remove(0);
    pair.session.receive(request);
    let response = pair.session.sync(ADDRESS, &resources, 1).unwrap();
    pair.session.reached(1);
    assert_eq!(pair.session.acknowledged(), 0, "not before the answer");

    let refusal = Rejected { name: "bad".into(), reason: "uid is missing".into() };
    let answer = pair.client.answer(&response, std::slice::from_ref(&refusal));
    let status = answer.error_detail.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (3, "bad: uid is missing"));
    assert_eq!(pair.session.receive(answer).answered, Some(vec![refusal.clone()]));
    assert_eq!(pair.session.acknowledged(), 1, "refused is answered");
    let rejections: Vec<_> = pair.session.rejections().collect();
    assert_eq!(rejections, [(ADDRESS, refusal)]);
    assert_eq!(pair.push(ADDRESS, "bad", &resources, 2), 0, "it is not sent again as it is");

    resources.put(ADDRESS, "bad", "2");
    assert_eq!(pair.push(ADDRESS, "bad", &resources, 3), 1);
    assert_eq!(pair.session.rejections().count(), 0, "a later version clears it");
}

#[test]
fn after_a_reconnect_a_refused_resource_is_sent_again_or_said_to_be_gone() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "once-good", "1");
    let mut pair = Pair::new(&[ADDRESS]);
    pair.connect(&resources, 1);
    resources.put(ADDRESS, "once-good", "2");
    resources.put(ADDRESS, "never-good", "1");
    let response = pair.session.sync(ADDRESS, &resources, 2).unwrap();
    let refused =
        ["once-good", "never-good"].map(|name| Rejected { name: name.into(), reason: "no".into() });
    pair.deliver(&response, &refused);

    let versions = pair.client.connect().remove(0).initial_resource_versions;
    let versions: Vec<_> = versions.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(versions, [("never-good", ""), ("once-good", "1")]);
    resources.remove(ADDRESS, "never-good");
    pair.connect(&resources, 3);
    assert_eq!(pair.have(), [("once-good", "2")]);
    assert_eq!(pair.client.held(ADDRESS), 1);
}

#[test]
fn a_foreign_refusal_in_words_stands_until_a_response_is_taken_whole() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "a", "1");
    let mut session = Session::default();
    session.receive(DeltaDiscoveryRequest { type_url: ADDRESS.into(), ..Default::default() });
    let response = session.sync(ADDRESS, &resources, 1).unwrap();
    let answer = |response: &DeltaDiscoveryResponse, words: Option<&str>| DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        response_nonce: response.nonce.clone(),
        error_detail: words.map(|words| Status { message: words.into(), ..Default::default() }),
        ..Default::default()
    };
    session.receive(answer(&response, Some("a: odd")));
    let (_, rejection) = session.rejections().next().unwrap();
    assert_eq!((&*rejection.name, &*rejection.reason), ("", "a: odd"));

    resources.put(ADDRESS, "a", "2");
    let response = session.push(ADDRESS, [&"a".into()], &resources, 2).unwrap();
    session.receive(answer(&response, None));
    assert_eq!(session.rejections().count(), 0);
}

#[test]
fn a_revision_counts_once_all_its_parts_are_answered() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "a", "1");
    resources.put(POLICY, "p", "1");
    let mut pair = Pair::new(&[ADDRESS, POLICY]);
    pair.connect(&resources, 1);
    resources.put(ADDRESS, "a", "2");
    resources.put(POLICY, "p", "2");
    let address = pair.session.push(ADDRESS, [&"a".into()], &resources, 2).unwrap();
    let policy = pair.session.push(POLICY, [&"p".into()], &resources, 2).unwrap();
    pair.session.reached(2);
    assert_eq!(pair.session.acknowledged(), 1);
    pair.deliver(&policy, &[]);
    assert_eq!(pair.session.acknowledged(), 1, "one of two");
    assert!(pair.session.is_waiting());
    pair.deliver(&address, &[]);
    assert_eq!(pair.session.acknowledged(), 2);
    assert!(!pair.session.is_waiting());
    pair.session.reached(9);
    assert_eq!(pair.session.acknowledged(), 9, "what does not concern it counts at once");
    assert_eq!(pair.deliver(&address, &[]).answered, None, "an answer counts once");
}

#[test]
fn a_client_on_demand_gets_what_it_names() {
    let mut resources = Resources::default();
    for name in ["a", "b", "c"] {
        resources.put(ADDRESS, name, "1");
    }
    let mut pair = Pair::new(&[ADDRESS]);
    pair.client = pair.client.clone().on_demand(ADDRESS);
    let request = pair.client.connect().remove(0);
    assert_eq!(request.resource_names_subscribe, ["*"]);
    assert_eq!(request.resource_names_unsubscribe, ["*"]);
    pair.connect(&resources, 1);
    assert!(pair.client.is_complete());
    assert_eq!(pair.have(), []);
    assert!(!pair.session.wants_all(ADDRESS));

    let names: [Arc<str>; 2] = ["net/a".into(), "missing".into()];
    let request = pair.client.subscribe(ADDRESS, names.clone()).unwrap();
    assert_eq!(pair.client.subscribe(ADDRESS, names), None, "it does not ask twice");
    assert!(pair.session.receive(request).subscribed);
    let response = pair.session.sync(ADDRESS, &resources, 1).unwrap();
    assert_eq!(response.removed_resources, ["missing"], "it is told what is not there");
    pair.deliver(&response, &[]);
    assert_eq!(pair.have(), [("a", "1")]);

    resources.put(ADDRESS, "missing", "1");
    resources.put(ADDRESS, "b", "2");
    assert_eq!(pair.push(ADDRESS, "missing", &resources, 2), 1);
    assert_eq!(pair.push(ADDRESS, "b", &resources, 3), 0, "it did not ask for b");
    assert_eq!(pair.have(), [("a", "1"), ("missing", "1")]);

    let request = pair.client.unsubscribe(ADDRESS, ["missing".into()]).unwrap();
    pair.request(request, &resources, 3);
    resources.put(ADDRESS, "missing", "2");
    assert_eq!(pair.push(ADDRESS, "missing", &resources, 4), 0);
}

#[test]
fn a_client_on_demand_goes_on_with_what_it_has_after_a_reconnect() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "a", "1");
    resources.put(ADDRESS, "b", "1");
    let mut pair = Pair::new(&[ADDRESS]);
    pair.client = pair.client.clone().on_demand(ADDRESS);
    pair.connect(&resources, 1);
    let request = pair.client.subscribe(ADDRESS, ["a".into()]).unwrap();
    pair.request(request, &resources, 1);
    resources.put(ADDRESS, "a", "2");
    pair.connect(&resources, 2);
    assert_eq!(pair.have(), [("a", "2")]);

    // As Istio's ztunnel: only the versions say what it wants.
    let mut session = Session::default();
    let request = DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: vec!["*".into()],
        resource_names_unsubscribe: vec!["*".into()],
        initial_resource_versions: [("a".into(), "1".into()), ("z".into(), "1".into())].into(),
        ..Default::default()
    };
    assert!(session.receive(request).subscribed);
    let response = session.sync(ADDRESS, &resources, 2).unwrap();
    let sent: Vec<_> = response.resources.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((sent, response.removed_resources), (vec!["a"], vec!["z".into()]));
}

#[test]
fn who_asks_again_is_answered_again() {
    let mut resources = Resources::default();
    resources.put(ADDRESS, "a", "1");
    let mut session = Session::default();
    let ask = |names: &[&str]| DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    session.receive(ask(&["a", "missing"]));
    assert!(session.sync(ADDRESS, &resources, 1).is_some());
    assert!(session.sync(ADDRESS, &resources, 1).is_none());
    session.receive(ask(&["a", "missing"]));
    let response = session.sync(ADDRESS, &resources, 1).unwrap();
    assert_eq!(response.resources.len() + response.removed_resources.len(), 2);
}

#[test]
fn a_kind_that_was_not_asked_for_is_refused() {
    let mut client = Client::new(node(), [ADDRESS]);
    let response =
        DeltaDiscoveryResponse { type_url: POLICY.into(), nonce: "7".into(), ..Default::default() };
    let answer = client.answer(&response, &[]);
    assert_eq!((answer.type_url.as_str(), answer.response_nonce.as_str()), (POLICY, "7"));
    assert!(answer.error_detail.is_some());
}

#[test]
fn only_the_first_request_says_who_asks() {
    let mut client = Client::new(node(), [ADDRESS, POLICY]);
    let said: Vec<_> = client.connect().iter().map(|request| request.node.is_some()).collect();
    assert_eq!(said, [true, false]);
    let again: Vec<_> = client.connect().iter().map(|request| request.node.is_some()).collect();
    assert_eq!(again, [true, false], "on every connection");
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    Remove(usize),
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..6, 0_usize..3).prop_map(|(name, version)| Step::Put(name, version)),
        2 => (0_usize..6).prop_map(Step::Remove),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn whatever_happens_the_client_ends_with_what_there_is(steps in steps()) {
        let mut resources = Resources::default();
        let mut pair = Pair::new(&[ADDRESS]);
        pair.connect(&resources, 0);
        for (revision, step) in (1..).zip(steps) {
            match step {
                Step::Put(name, version) => {
                    let name = name.to_string();
                    resources.put(ADDRESS, &name, &version.to_string());
                    pair.push(ADDRESS, &name, &resources, revision);
                }
                Step::Remove(name) => {
                    let name = name.to_string();
                    resources.remove(ADDRESS, &name);
                    pair.push(ADDRESS, &name, &resources, revision);
                }
                Step::Reconnect => pair.connect(&resources, revision),
            }
            let want: Vec<_> = resources.all(ADDRESS).map(|one| (&*one.name, &*one.version)).collect();
            prop_assert_eq!(pair.have(), want);
            prop_assert_eq!(pair.session.acknowledged(), revision);
        }
    }
}
