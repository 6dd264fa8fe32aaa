// SPDX-License-Identifier: Apache-2.0

//! How far a follower has come with what its leader publishes. Pure.
//!
//! Owns the way from own revisions to those of the leader. Both watch the same objects, but
//! not in the same batches, so their revisions count differently; what can be compared are the
//! resources, by [`mark`](crate::serve::config::Entry::mark). A revision of the leader is
//! contained in an own one when every resource that it touched was published here as there.
//! What a client has acknowledged of own revisions is told the leader in its revisions, never
//! too much.
//!
//! Start at [`Following::heard`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::output::{Family, OutputKey};
use crate::serve::config::{Named, Published};
use routing::wire::messages::waymark::v1::Leading;

/// Revisions that are remembered; a client that is further behind counts as having nothing.
const REMEMBERED: usize = 1024;
/// How long a follower may differ from its leader in one thing.
const STRAYS: Duration = Duration::from_secs(5);

/// Whether this controller decides what no object says, or goes by what another decided.
#[derive(Debug)]
pub enum Part {
    /// It decides.
    Leads {
        /// Since when.
        since: Instant,
        /// Every follower and client that is there has reported, or was waited for in vain.
        complete: bool,
    },
    /// Another does, or nobody.
    Follows(Following),
}

impl Default for Part {
    fn default() -> Self {
        Self::Follows(Following::default())
    }
}

impl Part {
    /// The part of a controller that has no others beside it.
    pub fn alone(now: Instant) -> Self {
        Self::Leads { since: now, complete: true }
    }

    /// Tells whether this controller decides.
    pub fn leads(&self) -> bool {
        matches!(self, Self::Leads { .. })
    }

    /// Tells whether acknowledgements count: they are those of all clients there are.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Leads { complete: true, .. })
    }

    /// Tells whether clients may be served: what was decided is known.
    pub fn may_serve(&self) -> bool {
        match self {
            Self::Leads { .. } => true,
            Self::Follows(following) => following.whole,
        }
    }
}

/// How far a follower is.
#[derive(Debug, Default)]
pub struct Following {
    /// Counts the streams with leaders; revisions are those of this one's leader.
    session: u64,
    /// The leader has told everything once.
    whole: bool,
    /// Newest revision of the leader that was told.
    newest: u64,
    /// Resources that differ here from there: the first revision of the leader that may have
    /// changed it so, and its mark.
    waiting: HashMap<Named, VecDeque<(u64, u64)>>,
    /// Revision of the leader → own revision that contains it.
    contained: VecDeque<(u64, u64)>,
    /// Since when something differs, and what was contained then.
    differs_since: Option<(Instant, u64)>,
}

impl Following {
    /// Tells whether a word is of the stream that is followed, or begins a newer one.
    pub fn continues(&self, session: u64, said: &Leading) -> bool {
        session == self.session || (session > self.session && said.whole)
    }

    /// Takes what the leader publishes; its facts are in force here already.
    pub fn heard(&mut self, session: u64, said: &Leading, published: &Published) {
        self.session = session;
        if said.whole {
            self.waiting.clear();
            self.contained.clear();
            self.whole = true;
        }
        let mut named: BTreeMap<Named, u64> = BTreeMap::new();
        if said.whole {
            named.extend(published.names().into_iter().map(|name| (name, 0)));
        }
        for resource in &said.resources {
            // One of a family that is not known here is never sent by this controller.
            let Some(family) = Family::of(&resource.kind) else { continue };
            named.insert((family, resource.name.as_str().into()), resource.mark);
        }
        // A word sums up all revisions since the one before; which of them changed what, is open.
        let first = if said.whole { 1 } else { self.newest + 1 };
        for (name, mark) in named {
            if published.mark(&name) == mark {
                self.waiting.remove(&name);
            } else {
                self.waiting.entry(name).or_default().push_back((first, mark));
            }
        }
        self.newest = said.revision;
        self.advance(published.revision());
    }

    /// Takes what changed here.
    pub fn published<'a>(
        &mut self,
        published: &Published,
        changed: impl IntoIterator<Item = &'a OutputKey>,
    ) {
        for key in changed {
            let OutputKey::Config(family, name) = key else { continue };
            let named = (*family, name.clone());
            let Some(waiting) = self.waiting.get_mut(&named) else { continue };
            let mark = published.mark(&named);
            // The leader may have gone on meanwhile: what came before this is contained, too.
            if let Some(at) = waiting.iter().rposition(|(_, wanted)| *wanted == mark) {
                waiting.drain(..=at);
            }
            if waiting.is_empty() {
                self.waiting.remove(&named);
            }
        }
        self.advance(published.revision());
    }

    fn advance(&mut self, own: u64) {
        let oldest = self.waiting.values().filter_map(VecDeque::front).map(|(at, _)| *at).min();
        let contained = oldest.map_or(self.newest, |at| at.saturating_sub(1).min(self.newest));
        match self.contained.back_mut() {
            Some((leaders, _)) if *leaders >= contained => return,
            Some((leaders, at)) if *at == own => *leaders = contained,
            Some(_) | None => self.contained.push_back((contained, own)),
        }
        if self.contained.len() > REMEMBERED {
            self.contained.pop_front();
        }
    }

    /// The newest revision of the leader that is contained here.
    pub fn contained(&self) -> u64 {
        self.contained.back().map_or(0, |(leaders, _)| *leaders)
    }

    /// The newest revision of the leader that a client has which acknowledged `own`; 0 before the
    /// leader of this stream has said what its revisions are.
    pub fn leaders(&self, session: u64, own: u64) -> u64 {
        if session != self.session {
            return 0;
        }
        let reached = self.contained.iter().rev().find(|(_, at)| *at <= own);
        reached.map_or(0, |(leaders, _)| *leaders)
    }

    /// Tells, once each time, whether something differs from the leader's for so long that
    /// it does not come to be the same by itself: everything has to be heard anew.
    pub fn strays(&mut self, now: Instant) -> bool {
        if self.waiting.is_empty() {
            self.differs_since = None;
            return false;
        }
        let contained = self.contained();
        match self.differs_since {
            Some((since, at)) if at == contained => {
                let strays = now.duration_since(since) > STRAYS;
                if strays {
                    self.differs_since = None;
                }
                strays
            }
            Some(_) | None => {
                self.differs_since = Some((now, contained));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use routing::wire::messages::waymark::v1::LeadingResource;

    use super::*;
    use crate::graph::Graph;
    use crate::settings::Mesh;
    use crate::source::document;
    use crate::store::Stores;

    /// A controller's outputs.
    #[derive(Default)]
    struct Side {
        stores: Stores,
        graph: Graph,
        published: Published,
    }

    impl Side {
        fn put(&mut self, text: &str) -> BTreeSet<OutputKey> {
            let mut touched = Vec::new();
            for placed in document::parse(Path::new("f"), text).objects {
                touched.extend(self.stores.put(placed.object));
            }
            let changed = self.graph.run(&self.stores, &Mesh::default(), &touched);
            self.published.update(&self.graph.table, &changed);
            changed
        }

        fn says(&self, whole: bool, since: u64) -> Leading {
            let names =
                if whole { self.published.names() } else { self.published.since(since).unwrap() };
            let resource = |named: &Named| LeadingResource {
                kind: named.0.type_url().into(),
                name: named.1.to_string(),
                mark: self.published.mark(named),
            };
            let resources = names.iter().map(resource).collect();
            let revision = self.published.revision();
            Leading { whole, revision, resources, ..Leading::default() }
        }
    }

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: app}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n---\n"
        )
    }

    #[test]
    fn acknowledgements_count_in_the_leaders_revisions_and_never_too_much() {
        let (mut leader, mut here) = (Side::default(), Side::default());
        let mut following = Following::default();
        // There in two batches, here in one.
        leader.put(&service("a", 1));
        leader.put(&service("b", 1));
        let changed = here.put(&(service("a", 1) + &service("b", 1)));
        following.published(&here.published, &changed);
        assert_eq!((leader.published.revision(), here.published.revision()), (2, 1));
        assert_eq!(following.leaders(1, 1), 0, "the leader is not known");
        following.heard(1, &leader.says(true, 0), &here.published);
        assert_eq!((following.leaders(1, 1), following.leaders(1, 0)), (2, 0));

        // The leader is ahead by two changes; here they come one by one.
        leader.put(&service("a", 2));
        following.heard(1, &leader.says(false, 2), &here.published);
        leader.put(&service("a", 3));
        following.heard(1, &leader.says(false, 3), &here.published);
        assert_eq!((following.contained(), following.leaders(1, 1)), (2, 2));
        let changed = here.put(&service("a", 2));
        following.published(&here.published, &changed);
        assert_eq!((following.leaders(1, 2), following.leaders(1, 1)), (3, 2));
        let changed = here.put(&service("a", 3));
        following.published(&here.published, &changed);
        assert_eq!(following.leaders(1, 3), 4);

        // Here is ahead; the leader follows.
        let changed = here.put(&service("b", 9));
        following.published(&here.published, &changed);
        assert_eq!((here.published.revision(), following.leaders(1, 4)), (4, 4));
        leader.put(&service("b", 9));
        following.heard(1, &leader.says(false, 4), &here.published);
        assert_eq!((following.leaders(1, 4), following.leaders(1, 3)), (5, 4));

        // Something is there that was not told: it is waited for until it is gone here.
        let changed = here.put(&service("c", 1));
        following.published(&here.published, &changed);
        following.heard(1, &leader.says(true, 0), &here.published);
        assert_eq!(following.leaders(1, 5), 0, "one differs, and it is open since when");
        leader.put(&service("c", 1));
        following.heard(1, &leader.says(false, 5), &here.published);
        assert_eq!(following.leaders(1, 5), 6);

        // Both see the same objects: what differs for long has to be heard anew.
        let start = Instant::now();
        let late = start + STRAYS + Duration::from_secs(1);
        assert!(!following.strays(start) && !following.strays(late), "nothing differs");
        leader.put(&service("d", 1));
        following.heard(1, &leader.says(false, 6), &here.published);
        assert!(!following.strays(start));
        assert!(following.strays(late));
        assert!(!following.strays(late), "it is told once");

        // Another leader counts differently.
        assert_eq!(following.leaders(2, 5), 0);
        assert!(!following.continues(2, &leader.says(false, 5)), "it begins with everything");
        assert!(following.continues(2, &leader.says(true, 0)));
    }
}
