// SPDX-License-Identifier: Apache-2.0

//! What the proxies would hold if the YAML of a folder ran: the controller's translators over
//! the folder, in this process.
//!
//! Owns: what a world would add to the folder. Pods as the local supervisor plans them, all of
//! them ready and, where their labels say so, proven enrolled; addresses from the local plan;
//! the objects of Gateways as the controller makes them.
//!
//! Start at [`known`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Known, running};
use crate::cli::{Failure, complain};
use crate::graph::Graph;
use crate::keys::{self, Keeper, Pace};
use crate::local::address::{self, Pool, ServiceAddresses};
use crate::local::manifest::{Folders, Object as Local, ObjectKey};
use crate::local::plan::{self, Load, Owner, PodView, Step};
use crate::local::supervise::object::{self, Birth};
use crate::output::{Output, Resource};
use crate::settings::Mesh;
use crate::source::{self, Problem};
use crate::store::facts::{PodFact, PodState};
use crate::store::lookup::Lookup;
use crate::store::{Kind, Object, Stores};
use crate::translate::pod::belongs;
use crate::translate::request_authentication::in_words;

/// Nodes of a world when nothing else is said.
const NODES: u8 = 2;

/// Reads `folder`; gives also what of it cannot be read.
pub(super) fn known(folder: &Path) -> Result<(Known, Vec<Problem>), Failure> {
    let unreadable = |cause| Failure {
        message: format!("cannot read the folder {}: {cause}", folder.display()),
        code: 2,
    };
    let root: PathBuf = std::fs::canonicalize(folder).map_err(unreadable)?;
    let (objects, problems) =
        source::folder::read(std::slice::from_ref(&root)).map_err(unreadable)?;
    let mut plan = Plan::default();
    for object in objects {
        plan.stores.put(object);
    }
    let mut owners = owners_of_folder(&root);
    owners.extend(plan.gateways()?);
    plan.services()?;
    for owner in owners {
        plan.pods(&owner)?;
    }
    plan.enrol();
    plan.fetch_keys()?;
    let pods: Vec<Value> = plan
        .stores
        .all::<Pod>()
        .filter_map(|pod| serde_json::to_value(pod.as_ref()).ok())
        .collect();
    let known = Known {
        snapshot: running::snapshot(plan.resources()?.into_iter())?,
        gateways: running::gateways(pods.iter()),
        origin: format!("{}, as if all of it ran", folder.display()),
    };
    Ok((known, problems))
}

fn owners_of_folder(root: &Path) -> Vec<Owner> {
    let mut folders = Folders::default();
    folders.refresh(root);
    let owners = folders.objects().map(|manifest| plan::owner_of(&manifest.key, &manifest.object));
    owners.flatten().collect()
}

/// A world on paper.
#[derive(Default)]
struct Plan {
    stores: Stores,
    mesh: Mesh,
    hosts: Vec<Pool>,
    loads: Vec<Load>,
    rolls: u32,
}

impl Plan {
    fn put(&mut self, kind: Kind, value: Value) -> Result<(), Failure> {
        let object = kind.read(value).map_err(Failure::from_error)?;
        self.stores.put(object);
        Ok(())
    }

    /// Takes the objects that run Gateways; gives the owners of their pods.
    fn gateways(&mut self) -> Result<Vec<Owner>, Failure> {
        let graph = Graph::full(&self.stores, &self.mesh);
        let mut owners = Vec::new();
        for (_, output) in graph.table.all() {
            let Output::Object(manifest) = output else { continue };
            // What the user wrote counts more than what is made.
            if self.stores.object(&manifest.key).is_some() {
                continue;
            }
            self.put(manifest.key.kind, manifest.value.clone())?;
            if manifest.key.kind == Kind::Deployment {
                let deployment =
                    serde_json::from_value(manifest.value.clone()).map_err(Failure::from_error)?;
                let key = ObjectKey {
                    kind: Kind::Deployment.as_str().to_owned(),
                    namespace: manifest.key.name.namespace.to_string(),
                    name: manifest.key.name.name.to_string(),
                };
                owners.extend(plan::owner_of(&key, &Local::Deployment(deployment)));
            }
        }
        owners.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(owners)
    }

    /// Gives every Service its addresses.
    fn services(&mut self) -> Result<(), Failure> {
        let mut addresses = ServiceAddresses::default();
        let services: Vec<Service> =
            self.stores.all::<Service>().map(|service| service.as_ref().clone()).collect();
        for mut service in services {
            let Some(spec) = service.spec.as_mut() else { continue };
            let own = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty());
            if own || spec.type_.as_deref() == Some("ExternalName") {
                continue;
            }
            let meta = &service.metadata;
            let key = format!(
                "{}/{}",
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default()
            );
            let pair = addresses.service(&key).ok_or_else(|| used_up("Services"))?;
            spec.cluster_ips = Some(pair.texts());
            spec.cluster_ip = pair.texts().into_iter().next();
            self.stores.put(Object::Service(service.into()));
        }
        Ok(())
    }

    /// Makes the pods that `owner` wants, all of them ready.
    fn pods(&mut self, owner: &Owner) -> Result<(), Failure> {
        if self.hosts.is_empty() {
            self.nodes()?;
        }
        for load in &mut self.loads {
            load.same_owner = 0;
        }
        let mut have: Vec<PodView> = Vec::new();
        loop {
            let rolls = &mut self.rolls;
            let mut roll = || {
                *rolls = rolls.wrapping_add(1);
                rolls.wrapping_mul(7)
            };
            let steps = plan::steps(owner, &have, usize::from(NODES), &mut roll);
            let wanted: Vec<_> = steps
                .into_iter()
                .filter_map(|step| match step {
                    Step::Create { name, node } => Some((name, node)),
                    Step::Delete { .. } => None,
                })
                .collect();
            if wanted.is_empty() {
                return Ok(());
            }
            for (name, node) in wanted {
                let node = node.or_else(|| plan::place(&self.loads)).unwrap_or(0);
                self.pod(owner, &name, node)?;
                let hash = owner.hash.clone();
                have.push(PodView { name, hash, ready: true, terminating: false, node });
            }
        }
    }

    fn nodes(&mut self) -> Result<(), Failure> {
        for number in 1..=NODES {
            let name = format!("node-{number}");
            let now = OffsetDateTime::UNIX_EPOCH;
            self.put(Kind::Node, object::node(&name, &name, address::node(number), now))?;
            self.hosts.push(Pool::new(2, 254, false));
            self.loads.push(Load::default());
        }
        Ok(())
    }

    /// Makes one pod on the node with this index.
    fn pod(&mut self, owner: &Owner, name: &str, node: usize) -> Result<(), Failure> {
        let host = self.hosts.get_mut(node).and_then(Pool::take);
        let host = host.and_then(|host| u8::try_from(host).ok()).ok_or_else(|| used_up("pods"))?;
        let number = u8::try_from(node + 1).map_err(Failure::from_error)?;
        if let Some(load) = self.loads.get_mut(node) {
            load.same_owner += 1;
            load.all += 1;
        }
        let birth = Birth {
            name: name.to_owned(),
            uid: format!("planned-{}-{name}", owner.key.namespace),
            node: format!("node-{number}"),
            created: OffsetDateTime::UNIX_EPOCH,
        };
        let mut pod = object::pod(owner, &birth);
        let addresses = address::pod(number, host).texts();
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        if let Some(fields) = pod.as_object_mut() {
            let ready = json!([{ "type": "Ready", "status": "True" }]);
            let ip = addresses.first();
            let status =
                json!({ "phase": "Running", "podIP": ip, "podIPs": ips, "conditions": ready });
            fields.insert("status".to_owned(), status);
        }
        self.put(Kind::Pod, pod)
    }

    /// Takes every pod that belongs in the mesh for proven.
    fn enrol(&mut self) {
        let proven: Vec<String> = self
            .stores
            .all::<Pod>()
            .filter(|pod| belongs(pod, &mut Lookup::new(&self.stores, &self.mesh)))
            .filter_map(|pod| pod.metadata.uid.clone())
            .collect();
        for uid in proven {
            let fact = PodFact {
                node: String::new(),
                state: PodState::Enrolled,
                reason: String::new(),
                older_connections: 0,
                repairs: 0,
                plain_inbound: false,
                observed_generation: 0,
            };
            self.stores.facts.set_pod(&uid, Some(fact));
        }
    }

    /// Fetches the keys that RequestAuthentications name, as the controller would.
    fn fetch_keys(&mut self) -> Result<(), Failure> {
        /// So long people wait for an answer.
        const LIMIT: Duration = Duration::from_secs(5);
        let wanted = keys::wanted(&self.stores);
        if wanted.is_empty() {
            return Ok(());
        }
        let client = keys::fetch::Client::new().map_err(Failure::from_error)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let fetched = runtime.map_err(Failure::from_error)?.block_on(async {
            let mut keeper = Keeper::new(client, Pace::default());
            keeper.want(&wanted);
            keeper.first(LIMIT).await
        });
        for one in fetched {
            if let Err(why) = &one.result {
                let from = in_words(&one.source);
                complain(&format!("no keys from {from}: {why}; their tokens are refused"));
            }
            self.stores.facts.set_keys(&one.source, one.result);
        }
        Ok(())
    }

    /// What proxies would be sent: type and bytes of each resource.
    fn resources(&self) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let graph = Graph::full(&self.stores, &self.mesh);
        let mut resources = Vec::new();
        for (_, output) in graph.table.all() {
            let Output::Config(config) = output else { continue };
            if let Resource::Plane(_) = &config.resource {
                let body = config.resource.encode().map_err(Failure::from_error)?;
                resources.push((config.resource.family().type_url().to_owned(), body));
            }
        }
        Ok(resources)
    }
}

fn used_up(what: &str) -> Failure {
    Failure { message: format!("more {what} than a world has addresses for"), code: 1 }
}
