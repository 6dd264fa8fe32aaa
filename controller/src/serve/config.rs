// SPDX-License-Identifier: Apache-2.0

//! What is published: every resource, encoded once, with who needs it.
//!
//! Owns versions (a digest of the content, so they hold over restarts), aliases, and the log
//! of what changed at which revision: a session that follows pays for the change, not for the
//! whole. Pure; the lock around it is [`crate::app::Hub`]'s.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use routing::delta::Resource as Plane;
use routing::stream::server::Versioned;
use sha2::{Digest, Sha256};

use crate::output::{Config, Family, Held, Output, OutputKey, Resource, Scope, Table};

/// Revisions whose changes are remembered; older sessions compare everything.
const LOG: usize = 1024;

/// Names a resource.
pub type Named = (Family, Arc<str>);

/// A published resource.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The encoded resource.
    pub versioned: Versioned,
    /// Account of a waypoint that still gets an older form, and that form.
    pub held: Option<Box<(String, Versioned)>>,
    config: Arc<Config>,
}

impl Entry {
    /// Who needs it.
    pub fn scope(&self) -> &Scope {
        &self.config.scope
    }

    /// Differs whenever anything that a client may be sent of it does; never 0.
    ///
    /// The same in every controller, so that two can tell whether they publish the same.
    pub fn mark(&self) -> u64 {
        let mut digest = Sha256::new();
        digest.update(self.versioned.version.as_bytes());
        if let Some((account, older)) = self.held.as_deref() {
            digest.update(format!(" {account} {}", older.version));
        }
        digest.update(format!("{:?}", self.scope()));
        let digest: [u8; 32] = digest.finalize().into();
        let bytes = digest.first_chunk::<8>().copied().unwrap_or_default();
        u64::from_be_bytes(bytes).max(1)
    }
}

/// Everything published.
#[derive(Debug, Default)]
pub struct Published {
    revision: u64,
    families: HashMap<Family, HashMap<Arc<str>, Entry>>,
    aliases: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    endpoints: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    log: VecDeque<(u64, Vec<Named>)>,
}

impl Published {
    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes the changed outputs; the revision grows if any resource did change.
    pub fn update(&mut self, table: &Table, changed: &BTreeSet<OutputKey>) -> u64 {
        let mut names = Vec::new();
        for key in changed {
            let OutputKey::Config(family, name) = key else { continue };
            let config = match table.get(key) {
                Some(Output::Config(config)) => Some(config),
                _ => None,
            };
            if self.put(*family, name, config) {
                names.push((*family, Arc::clone(name)));
            }
        }
        if !names.is_empty() {
            self.revision += 1;
            self.log.push_back((self.revision, names));
            if self.log.len() > LOG {
                self.log.pop_front();
            }
        }
        self.revision
    }

    fn put(&mut self, family: Family, name: &Arc<str>, config: Option<&Arc<Config>>) -> bool {
        let entry = config.and_then(|config| encode(name, config));
        let resources = self.families.entry(family).or_default();
        let old = match entry {
            Some(entry) => resources.insert(Arc::clone(name), entry),
            None => resources.remove(name),
        };
        let new = resources.get(name).cloned();
        if let (Some(old), Some(new)) = (&old, &new)
            && old.versioned == new.versioned
            && old.scope() == new.scope()
            && old.held == new.held
        {
            return false;
        }
        let existed = old.is_some() || new.is_some();
        if let Some(old) = old {
            self.index(&old, false);
        }
        if let Some(new) = new {
            self.index(&new, true);
        }
        existed
    }

    fn index(&mut self, entry: &Entry, add: bool) {
        let name = &entry.versioned.name;
        for alias in &entry.versioned.aliases {
            change(&mut self.aliases, alias, name, add);
        }
        if let Resource::Plane(Plane::Workload(workload)) = &entry.config.resource {
            for service in workload.services.keys() {
                change(&mut self.endpoints, &service.to_string().into(), name, add);
            }
        }
    }

    /// What changed after `revision`; none if that is not remembered any more.
    pub fn since(&self, revision: u64) -> Option<Vec<Named>> {
        let oldest = self.log.front().map_or(self.revision + 1, |(first, _)| *first);
        if revision + 1 < oldest && revision < self.revision {
            return None;
        }
        let newer = self.log.iter().rev().take_while(|(at, _)| *at > revision);
        let names: BTreeSet<_> = newer.flat_map(|(_, names)| names.iter().cloned()).collect();
        Some(names.into_iter().collect())
    }

    /// All resources of a family, in order of their names.
    pub fn all(&self, family: Family) -> impl Iterator<Item = &Entry> {
        let all = self.families.get(&family).into_iter().flatten();
        let mut all: Vec<_> = all.collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all.into_iter().map(|(_, entry)| entry)
    }

    /// Names of all resources, in no order.
    pub fn names(&self) -> Vec<Named> {
        let named = |(family, all): (&Family, &HashMap<Arc<str>, Entry>)| {
            let family = *family;
            all.keys().map(move |name| (family, Arc::clone(name))).collect::<Vec<_>>()
        };
        self.families.iter().flat_map(named).collect()
    }

    /// The mark of a resource; 0 if it is not there.
    pub fn mark(&self, (family, name): &Named) -> u64 {
        self.get(*family, name).map_or(0, Entry::mark)
    }

    /// One resource.
    pub fn get(&self, family: Family, name: &str) -> Option<&Entry> {
        self.families.get(&family)?.get(name)
    }

    /// What a client needs that asks for one address or service: it, and its endpoints.
    pub fn asked(&self, family: Family, name: &str) -> Vec<&Entry> {
        if family != Family::Address {
            return self.get(family, name).into_iter().collect();
        }
        let aliases = self.aliases.get(name).into_iter().flatten().map(AsRef::as_ref);
        let mut names: BTreeSet<&str> = aliases.chain([name]).collect();
        let services: Vec<&str> = names.iter().copied().collect();
        for service in services {
            names.extend(self.endpoints.get(service).into_iter().flatten().map(AsRef::as_ref));
        }
        names.into_iter().filter_map(|name| self.get(family, name)).collect()
    }

    /// The domain values of all resources that proxies know, in order of families and names.
    pub fn plane(&self) -> impl Iterator<Item = &Plane> {
        let all = Family::ALL.into_iter().flat_map(|family| self.all(family));
        all.filter_map(|entry| match &entry.config.resource {
            Resource::Plane(plane) => Some(plane),
            Resource::NodePod(_) | Resource::Roots(_) => None,
        })
    }

    /// How many resources of a family there are.
    pub fn count(&self, family: Family) -> usize {
        self.families.get(&family).map_or(0, HashMap::len)
    }
}

fn change(
    index: &mut HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    key: &Arc<str>,
    name: &Arc<str>,
    add: bool,
) {
    if add {
        index.entry(Arc::clone(key)).or_default().insert(Arc::clone(name));
    } else if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

/// The resource as it travels, with the older form that a waypoint may still get.
fn encode(name: &Arc<str>, config: &Arc<Config>) -> Option<Entry> {
    let older = |held: &Held| Some((held.account.clone(), version(name, &held.resource)?));
    Some(Entry {
        versioned: version(name, &config.resource)?,
        held: config.held.as_deref().and_then(older).map(Box::new),
        config: Arc::clone(config),
    })
}

/// A resource as it travels; one that has no form is not sent, and logged.
fn version(name: &Arc<str>, resource: &Resource) -> Option<Versioned> {
    let body = match resource.encode() {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(resource = %name, error = &error as &dyn std::error::Error, "resource has no form on the wire");
            return None;
        }
    };
    let digest = Sha256::digest(&body);
    let mut version = String::with_capacity(16);
    for byte in digest.iter().take(8) {
        let _no_failure = write!(version, "{byte:02x}");
    }
    let aliases = match resource {
        Resource::Plane(Plane::Workload(workload)) => {
            workload.network_addresses().map(|address| address.to_string().into()).collect()
        }
        Resource::Plane(Plane::Service(service)) => service
            .addresses
            .iter()
            .filter_map(|range| range.address().map(|ip| format!("{}/{ip}", range.network).into()))
            .collect(),
        Resource::Plane(_) | Resource::NodePod(_) | Resource::Roots(_) => Vec::new(),
    };
    Some(Versioned { name: Arc::clone(name), version: version.into(), aliases, body: body.into() })
}
