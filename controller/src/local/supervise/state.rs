// SPDX-License-Identifier: Apache-2.0

//! All that the supervisor knows, and how it brings the world to what the files ask for.
//!
//! Owns: pods by UID, addresses, what was written and sent last. One task holds it; nothing
//! here waits. Leaves what to do to [`crate::local::plan`] and [`super::services`].
//!
//! Keeps: what is written and sent is worked out anew from the whole after every event, and
//! only differences leave this file, so an event that was missed cannot matter.
//!
//! Start at [`State::reconcile`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use super::create::{self, Broken, Surroundings};
use super::object::{self, Birth};
use super::pod::{self, Event, Handle};
use super::probe::Prober;
use super::record::Record;
use super::running::{PodLine, Running};
use super::services::{self, Built, Member};
use super::{system, tokens::Tokens};
use crate::local::address::{self, FABRIC, Pair, Pool, ServiceAddresses};
use crate::local::dns::Zone;
use crate::local::manifest::{Folders, Manifest, Object};
use crate::local::plan::environment::Values;
use crate::local::plan::image::Images;
use crate::local::plan::{self, Load, Owner, PodView, Step};
use crate::local::vip::Table;
use crate::local::{netns, paths};

/// A node of the world.
#[derive(Debug)]
pub(super) struct Node {
    /// Its name.
    pub(super) name: String,
    /// Its number, from 1.
    pub(super) number: u8,
    uid: String,
    pool: Pool,
    prober: Prober,
}

impl Node {
    /// Node `number`, whose namespace exists.
    ///
    /// # Errors
    ///
    /// Those of [`Prober::new`].
    pub(super) fn new(number: u8, reuse: bool) -> std::io::Result<Self> {
        let name = format!("node-{number}");
        let prober = Prober::new(&name)?;
        Ok(Self { number, uid: object::new_uid(), pool: Pool::new(2, 254, reuse), prober, name })
    }
}

/// Where results go.
#[derive(Debug)]
pub(super) struct Outlets {
    /// To the task that programs translation.
    pub(super) table: watch::Sender<Arc<Table>>,
    /// To the DNS server.
    pub(super) zone: watch::Sender<Arc<Zone>>,
    /// To the user's door.
    pub(super) target: watch::Sender<Option<SocketAddr>>,
    /// From the pods.
    pub(super) told: mpsc::UnboundedSender<Event>,
}

/// What the supervisor knows.
#[derive(Debug)]
pub(super) struct State {
    /// The nodes.
    pub(super) nodes: Vec<Node>,
    /// Objects of the user's folder and of the controller's.
    pub(super) folders: Folders,
    /// Images and their commands.
    pub(super) images: Images,
    /// Ingress Gateways and where they listen.
    pub(super) ingress: Vec<(String, SocketAddr)>,
    /// A pod's replacement waits for its address.
    pub(super) reuse: bool,
    system: Vec<Manifest>,
    pods: BTreeMap<String, Running>,
    addresses: ServiceAddresses,
    record: Record,
    tokens: Tokens,
    outlets: Outlets,
    beside: PathBuf,
    started: OffsetDateTime,
}

impl State {
    /// The state of a world without pods.
    pub(super) fn new(
        nodes: Vec<Node>,
        system: Vec<Manifest>,
        tokens: Tokens,
        outlets: Outlets,
        beside: PathBuf,
    ) -> Self {
        Self {
            nodes,
            folders: Folders::default(),
            images: Images::default(),
            ingress: Vec::new(),
            system,
            pods: BTreeMap::new(),
            addresses: ServiceAddresses::default(),
            record: Record::new(paths::OBJECTS.as_ref()),
            tokens,
            outlets,
            beside,
            reuse: false,
            started: OffsetDateTime::now_utc(),
        }
    }

    /// Brings the world one step nearer to what the files ask for, and tells everyone concerned.
    ///
    /// # Errors
    ///
    /// If objects cannot be written; the next call tries again.
    pub(super) fn reconcile(&mut self) -> std::io::Result<()> {
        let owners = self.owners();
        let mut gone: Vec<String> = Vec::new();
        for (uid, running) in &self.pods {
            if !owners.iter().any(|(owner, _)| owner.key == running.owner) {
                gone.push(uid.clone());
            }
        }
        for uid in gone {
            self.delete(&uid, None);
        }
        for (owner, system) in &owners {
            self.follow(owner, *system);
        }
        self.notice_readiness();
        self.publish()
    }

    /// Takes note of something that happened to a pod.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Changed(uid) => self.notice_restart(&uid),
            Event::Gone(uid) => self.forget(&uid),
        }
    }

    /// Lets the pod of this name go within `grace`, or within its own grace period.
    pub(super) fn delete_named(
        &mut self,
        namespace: &str,
        name: &str,
        grace: Option<Duration>,
    ) -> bool {
        let found = self.pods.iter().find(|(_, running)| {
            let text = |pointer: &str| running.object.pointer(pointer).and_then(Value::as_str);
            text("/metadata/namespace") == Some(namespace) && text("/metadata/name") == Some(name)
        });
        let Some(uid) = found.map(|(uid, _)| uid.clone()) else { return false };
        self.delete(&uid, grace);
        true
    }

    /// Asks all pods to end within `grace`; true while any still runs.
    pub(super) fn stop_all(&mut self, grace: Duration) -> bool {
        for running in self.pods.values() {
            if let Ok(handle) = &running.handle {
                handle.stop(grace);
            }
        }
        !self.pods.is_empty()
    }

    /// Makes fresh tokens for all pods whose tokens near their end.
    ///
    /// # Errors
    ///
    /// Those of writing them.
    pub(super) fn renew_tokens(&self) -> std::io::Result<()> {
        for running in self.pods.values() {
            self.tokens.write(&running.object)?;
        }
        Ok(())
    }

    /// What there is to show of the pods, in order of name.
    pub(super) fn lines(&self) -> Vec<PodLine> {
        let mut lines: Vec<PodLine> =
            self.pods.iter().map(|(uid, running)| running.line(uid)).collect();
        lines.sort();
        lines
    }

    /// Whether a Gateway of the folder waits for its first pod or address.
    pub(super) fn ingress_missing(&self) -> bool {
        self.ingress.is_empty() && self.folders.has_ingress()
    }

    /// Tries pods that could not run as they were: an image may have got its command.
    pub(super) fn retry_broken(&mut self) {
        let broken: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, running)| running.handle.is_err() && running.deleted.is_none())
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in broken {
            let Some(mut running) = self.pods.remove(&uid) else { continue };
            running.handle = self.bring_to_life(
                &running.object,
                running.addresses,
                running.node,
                running.system,
            );
            self.pods.insert(uid, running);
        }
    }

    fn owners(&self) -> Vec<(Owner, bool)> {
        let owner = |manifest: &Manifest, system| {
            Some((plan::owner_of(&manifest.key, &manifest.object)?, system))
        };
        let system = self.system.iter().filter_map(|manifest| owner(manifest, true));
        let mut owners: Vec<(Owner, bool)> = system.collect();
        for manifest in self.folders.objects() {
            let known = owners.iter().any(|(owner, _)| owner.key == manifest.key);
            if !known {
                owners.extend(owner(manifest, false));
            }
        }
        owners
    }

    /// Takes the steps that `owner` needs now.
    fn follow(&mut self, owner: &Owner, system: bool) {
        let mut have: Vec<(OffsetDateTime, PodView)> = self
            .pods
            .values()
            .filter(|running| running.owner == owner.key)
            .map(|running| (running.born, running.view()))
            .collect();
        have.sort_by(|one, other| (one.0, &one.1.name).cmp(&(other.0, &other.1.name)));
        let views: Vec<PodView> = have.into_iter().map(|(_, view)| view).collect();
        // The address of a pod that is going is to come back under its replacement.
        let hold = self.reuse && views.iter().any(|view| view.terminating);
        for step in plan::steps(owner, &views, self.nodes.len(), &mut rand::random) {
            match step {
                Step::Create { .. } if hold => {}
                Step::Create { name, node } => self.create(owner, name, node, system),
                Step::Delete { name } => {
                    self.delete_named(&owner.key.namespace, &name, None);
                }
            }
        }
        if owner.kind == plan::OwnerKind::Pod {
            self.adopt_metadata(owner);
        }
    }

    /// Labels and annotations of a lone pod are changed while it runs.
    fn adopt_metadata(&mut self, owner: &Owner) {
        let Some(metadata) = &owner.template.metadata else { return };
        for running in self.pods.values_mut().filter(|running| running.owner == owner.key) {
            if let Some(map) =
                running.object.pointer_mut("/metadata").and_then(Value::as_object_mut)
            {
                map.insert("labels".into(), json!(metadata.labels.clone().unwrap_or_default()));
                map.insert(
                    "annotations".into(),
                    json!(metadata.annotations.clone().unwrap_or_default()),
                );
            }
        }
    }

    fn create(&mut self, owner: &Owner, name: String, node: Option<usize>, system: bool) {
        let Some(index) = node.or_else(|| self.place(owner)) else { return };
        let host_network =
            owner.template.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let Some(node) = self.nodes.get_mut(index) else { return };
        let host = if host_network {
            None
        } else {
            node.pool.take().and_then(|host| u8::try_from(host).ok())
        };
        let addresses = match host {
            Some(host) => address::pod(node.number, host),
            None if host_network => address::node(node.number),
            // The node is full; the step comes again when a pod has gone.
            None => return,
        };
        let born = OffsetDateTime::now_utc();
        let birth = Birth { name, uid: object::new_uid(), node: node.name.clone(), created: born };
        let object = object::pod(owner, &birth);
        let handle = self.bring_to_life(&object, addresses, index, system);
        let running = Running {
            object,
            owner: owner.key.clone(),
            hash: owner.hash.clone(),
            node: index,
            host,
            addresses,
            handle,
            deleted: None,
            born,
            ready_since: (false, born),
            system,
            restarts_seen: 0,
        };
        self.pods.insert(birth.uid, running);
    }

    fn place(&self, owner: &Owner) -> Option<usize> {
        let spec = owner.template.spec.as_ref();
        let asked = spec.and_then(|spec| {
            let selected =
                spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/hostname"));
            spec.node_name.as_ref().or(selected)
        });
        if let Some(name) = asked {
            return self.nodes.iter().position(|node| node.name == *name);
        }
        let mut loads = vec![Load::default(); self.nodes.len()];
        for running in self.pods.values().filter(|running| running.deleted.is_none()) {
            if let Some(load) = loads.get_mut(running.node) {
                load.all += 1;
                load.same_owner += usize::from(running.owner == owner.key);
            }
        }
        plan::place(&loads)
    }

    fn bring_to_life(
        &self,
        object: &Value,
        addresses: Pair,
        node: usize,
        system: bool,
    ) -> Result<Handle, Broken> {
        let invalid = |cause: String| ("CreateContainerConfigError", cause);
        let mut shown = object.clone();
        let node = self.nodes.get(node).ok_or_else(|| invalid("its node is gone".into()))?;
        if let Some(map) = shown.as_object_mut() {
            let host_ip = address::node(node.number).v4.to_string();
            let ips: Vec<Value> = addresses.texts().iter().map(|ip| json!({"ip": ip})).collect();
            map.insert(
                "status".into(),
                json!({"podIP": addresses.v4.to_string(), "podIPs": ips, "hostIP": host_ip}),
            );
        }
        let pod: Pod = serde_json::from_value(shown).map_err(|error| invalid(error.to_string()))?;
        self.tokens.write(object).map_err(|cause| invalid(format!("no token: {cause}")))?;
        let (config_maps, secrets) = self.values();
        let around = Surroundings {
            images: &self.images,
            values: Values { config_maps: &config_maps, secrets: &secrets },
            beside: &self.beside,
            prober: &node.prober,
            number: node.number,
            system,
            enrolled: !system && self.belongs_in_mesh(&pod),
        };
        create::prepare(&pod, addresses, around)
            .map(|plan| pod::start(plan, self.outlets.told.clone()))
    }

    /// Rule: labels of Istio's `cni/pkg/util`; the agent decides for good, this tells who waits for it.
    fn belongs_in_mesh(&self, pod: &Pod) -> bool {
        let label = |labels: &Option<BTreeMap<String, String>>| {
            labels.as_ref().and_then(|labels| labels.get(crate::api::DATAPLANE_MODE)).cloned()
        };
        match label(&pod.metadata.labels).as_deref() {
            Some("ambient") => true,
            Some("none") => false,
            _ => {
                let namespace = pod.metadata.namespace.as_deref();
                let found =
                    self.namespaces().find(|have| have.metadata.name.as_deref() == namespace);
                found.and_then(|namespace| label(&namespace.metadata.labels)).as_deref()
                    == Some("ambient")
            }
        }
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.folders.objects().filter_map(|manifest| {
            if let Object::Namespace(namespace) = &manifest.object { Some(namespace) } else { None }
        })
    }

    #[expect(clippy::type_complexity, reason = "two maps of the same shape, used at once")]
    fn values(
        &self,
    ) -> (BTreeMap<(String, String), ConfigMap>, BTreeMap<(String, String), Secret>) {
        let (mut config_maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        for manifest in self.folders.objects() {
            let key = (manifest.key.namespace.clone(), manifest.key.name.clone());
            if let Object::ConfigMap(map) = &manifest.object {
                config_maps.insert(key, map.clone());
            } else if let Object::Secret(secret) = &manifest.object {
                secrets.insert(key, secret.clone());
            }
        }
        (config_maps, secrets)
    }

    fn delete(&mut self, uid: &str, grace: Option<Duration>) {
        let Some(running) = self.pods.get_mut(uid) else { return };
        let own = running
            .object
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_u64)
            .unwrap_or(30);
        let grace = grace.unwrap_or(Duration::from_secs(own));
        match &running.handle {
            Ok(handle) => {
                let shorter = running.deleted.is_none_or(|(_, before)| grace < before);
                if shorter {
                    running.deleted = Some((OffsetDateTime::now_utc(), grace));
                    handle.stop(grace);
                }
            }
            Err(_) => self.forget(uid),
        }
    }

    fn forget(&mut self, uid: &str) {
        let Some(running) = self.pods.remove(uid) else { return };
        if let (Some(host), Some(node)) = (running.host, self.nodes.get_mut(running.node)) {
            node.pool.release(u16::from(host));
        }
        for folder in [paths::ETC, paths::TOKENS] {
            // Of a pod that could never run there may be nothing.
            drop(std::fs::remove_dir_all(PathBuf::from(folder).join(uid)));
        }
    }

    /// An agent that was started anew has to learn of the pods of its node.
    fn notice_restart(&mut self, uid: &str) {
        let Some(running) = self.pods.get_mut(uid) else { return };
        if !running.system || running.owner.name != "waymark-agent" {
            return;
        }
        let restarts = running.restarts();
        let node = running.node;
        if restarts > std::mem::replace(&mut running.restarts_seen, restarts) {
            let handles = self
                .pods
                .values()
                .filter(|pod| pod.node == node)
                .filter_map(|pod| pod.handle.as_ref().ok());
            for network in handles.filter_map(|handle| handle.network.clone()) {
                tokio::spawn(async move { pod::introduce(&network).await });
            }
        }
    }

    fn notice_readiness(&mut self) {
        for running in self.pods.values_mut() {
            let ready = running.health().ready();
            if ready != running.ready_since.0 {
                running.ready_since = (ready, OffsetDateTime::now_utc());
            }
        }
    }

    /// Writes objects, sends addresses and names.
    fn publish(&mut self) -> std::io::Result<()> {
        let services: Vec<Service> = self
            .folders
            .objects()
            .filter_map(|manifest| {
                let Object::Service(service) = &manifest.object else { return None };
                let mut service = service.clone();
                service.metadata.namespace = Some(manifest.key.namespace.clone());
                Some(service)
            })
            .collect();
        let pods: Vec<Value> = self
            .pods
            .values()
            .map(|running| running.shown(self.node_addresses(running.node)))
            .collect();
        let members: Vec<Member> = pods.iter().filter_map(Member::of_pod).collect();
        let built = services::build(&services, &members, &mut self.addresses);
        let mut objects: Vec<Value> =
            system::objects().into_iter().filter(|object| !self.is_in_folder(object)).collect();
        for node in &self.nodes {
            objects.push(object::node(
                &node.name,
                &node.uid,
                address::node(node.number),
                self.started,
            ));
        }
        objects.extend(pods);
        let Built { objects: services, table, zone, ingress } = built;
        objects.extend(services);
        self.record.replace(&objects)?;
        self.outlets.table.send_if_modified(|old| replace(old, table));
        self.outlets.zone.send_if_modified(|old| replace(old, zone));
        self.outlets.target.send_if_modified(|old| {
            let first = ingress.first().map(|(_, address)| *address);
            std::mem::replace(old, first) != first
        });
        self.ingress = ingress;
        Ok(())
    }

    fn node_addresses(&self, index: usize) -> Pair {
        self.nodes.get(index).map_or(FABRIC, |node| address::node(node.number))
    }

    /// Whether the user's folder has an object of this kind and name.
    fn is_in_folder(&self, object: &Value) -> bool {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        self.folders
            .objects()
            .any(|manifest| manifest.key.kind == kind && manifest.key.name == name)
    }
}

/// Puts `new` in the place of `old`; true if that changed anything.
fn replace<T: PartialEq>(old: &mut Arc<T>, new: T) -> bool {
    let changed = **old != new;
    if changed {
        *old = Arc::new(new);
    }
    changed
}

/// Makes node namespaces in order; `netns` does the work.
pub(super) fn make_nodes(count: u8, reuse: bool) -> Result<Vec<Node>, crate::local::LocalError> {
    let mut nodes = Vec::new();
    for number in 1..=count {
        netns::make_node(&format!("node-{number}"), number, count)?;
        nodes.push(Node::new(number, reuse).map_err(crate::local::LocalError::Launch)?);
    }
    Ok(nodes)
}
