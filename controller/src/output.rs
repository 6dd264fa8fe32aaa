// SPDX-License-Identifier: Apache-2.0

//! What translators make: resources for the data plane, statuses, objects; by key.
//!
//! Owns the table of all outputs. Two tasks may make the same output (a policy that two pods
//! need): it stays until the last of them lets go, and the first by order is the one that
//! counts. Pure: [`Table::replace`] tells which keys differ from before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prost::Message;
use routing::delta::Resource as Plane;
use routing::discovery::{GatewayAddress, GatewayDestination};
use routing::wire::authorization::NotExpressible;
use routing::wire::discovery::write_resource;
use routing::wire::messages::waymark::v1::NodePod;
use routing::wire::roots::{ROOTS, ROOTS_URL, write_roots};

use crate::graph::TaskId;
use crate::provision::manifest::Manifest;
use crate::status::Status;
use crate::store::{Key, Name};
use crate::translate::not_served::NotServed;

/// The resource families of the delta stream.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// `istio.mesh.v1alpha1.ProxyConfig`: roots that everybody is to trust.
    Roots,
    /// `istio.security.Authorization`: policies for sessions.
    Authorization,
    /// `istio.workload.Address`: workloads and services.
    Address,
    /// `waymark.v1.Secret`.
    Secret,
    /// `waymark.v1.Authorization`: policies for requests.
    RequestAuthorization,
    /// `waymark.v1.RequestAuthentication`: tokens of end users.
    RequestAuthentication,
    /// `waymark.v1.BackendTls`.
    BackendTls,
    /// `waymark.v1.Gateway`.
    Gateway,
    /// `waymark.v1.Listener`.
    Listener,
    /// `waymark.v1.Route`: one rule.
    Route,
    /// `waymark.v1.NodePod`.
    NodePod,
}

impl Family {
    /// Every family, in the order in which they are sent: what is named goes before what names it.
    pub const ALL: [Self; 11] = [
        Self::Roots,
        Self::Authorization,
        Self::Address,
        Self::Secret,
        Self::RequestAuthorization,
        Self::RequestAuthentication,
        Self::BackendTls,
        Self::Gateway,
        Self::Listener,
        Self::Route,
        Self::NodePod,
    ];

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Roots => ROOTS_URL,
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Secret => "type.googleapis.com/waymark.v1.Secret",
            Self::RequestAuthorization => "type.googleapis.com/waymark.v1.Authorization",
            Self::RequestAuthentication => "type.googleapis.com/waymark.v1.RequestAuthentication",
            Self::BackendTls => "type.googleapis.com/waymark.v1.BackendTls",
            Self::Gateway => "type.googleapis.com/waymark.v1.Gateway",
            Self::Listener => "type.googleapis.com/waymark.v1.Listener",
            Self::Route => "type.googleapis.com/waymark.v1.Route",
            Self::NodePod => "type.googleapis.com/waymark.v1.NodePod",
        }
    }

    /// The family of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.type_url() == type_url)
    }
}

/// One resource, in domain words.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// Part of what proxies know.
    Plane(Plane),
    /// A pod that belongs in the mesh, for its agent.
    NodePod(Box<NodePod>),
    /// Roots that everybody is to trust, PEM each.
    Roots(Vec<String>),
}

impl Resource {
    /// Its family.
    pub fn family(&self) -> Family {
        match self {
            Self::Plane(Plane::Workload(_) | Plane::Service(_)) => Family::Address,
            Self::Plane(Plane::Authorization(_)) => Family::Authorization,
            Self::Plane(Plane::GatewayAuthorization(_)) => Family::RequestAuthorization,
            Self::Plane(Plane::RequestAuthentication(_)) => Family::RequestAuthentication,
            Self::Plane(Plane::Gateway(_)) => Family::Gateway,
            Self::Plane(Plane::Listener(_)) => Family::Listener,
            Self::Plane(Plane::Rule(_)) => Family::Route,
            Self::Plane(Plane::BackendTls(_)) => Family::BackendTls,
            Self::Plane(Plane::Secret(_)) => Family::Secret,
            Self::NodePod(_) => Family::NodePod,
            Self::Roots(_) => Family::Roots,
        }
    }

    /// Its name on the wire.
    pub fn name(&self) -> Arc<str> {
        match self {
            Self::Plane(Plane::Workload(one)) => Arc::clone(&one.uid),
            Self::Plane(Plane::Service(one)) => one.key.to_string().into(),
            Self::Plane(Plane::Authorization(one) | Plane::GatewayAuthorization(one)) => {
                one.name.as_str().into()
            }
            Self::Plane(Plane::RequestAuthentication(one)) => one.name.as_str().into(),
            Self::Plane(Plane::Gateway(one)) => one.name.as_str().into(),
            Self::Plane(Plane::Listener(one)) => one.name.as_str().into(),
            Self::Plane(Plane::Rule(one)) => one.name.to_string().into(),
            Self::Plane(Plane::BackendTls(one)) => one.name.to_string().into(),
            Self::Plane(Plane::Secret(one)) => one.name.as_str().into(),
            Self::NodePod(pod) => pod.uid.as_str().into(),
            Self::Roots(_) => ROOTS.into(),
        }
    }

    /// Its bytes on the wire.
    ///
    /// # Errors
    ///
    /// [`NotExpressible`] for a policy that has no form of its family.
    pub fn encode(&self) -> Result<Vec<u8>, NotExpressible> {
        match self {
            Self::Plane(resource) => write_resource(resource).map(|(_, _, bytes)| bytes),
            Self::NodePod(pod) => Ok(pod.encode_to_vec()),
            Self::Roots(roots) => Ok(write_roots(roots)),
        }
    }
}

/// Who needs a resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Every client that asks for the family.
    Everyone,
    /// Every gateway.
    AllGateways,
    /// These gateways, in order.
    Gateways(Arc<[Name]>),
    /// The agent of this node.
    Node(Arc<str>),
}

/// A resource and who needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The resource.
    pub resource: Resource,
    /// Who needs it.
    pub scope: Scope,
    /// A waypoint that still gets an older form: some clients may enter it yet.
    pub held: Option<Box<Held>>,
}

/// An older form of a resource, and for whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Service account of the waypoint, `namespace/name`.
    pub account: String,
    /// The older form.
    pub resource: Resource,
}

impl Config {
    /// Part of what proxies know, for `scope`.
    pub fn of(resource: Plane, scope: Scope) -> Self {
        Self { resource: Resource::Plane(resource), scope, held: None }
    }

    /// The same, but the waypoint at `address` still gets `older`.
    #[must_use]
    pub fn held_for(self, address: &GatewayAddress, older: Plane) -> Self {
        let held = match &address.destination {
            GatewayDestination::Hostname(key) => Some(Box::new(Held {
                // Service and account of a waypoint bear one name.
                account: format!(
                    "{}/{}",
                    key.namespace,
                    key.hostname.split('.').next().unwrap_or_default()
                ),
                resource: Resource::Plane(older),
            })),
            GatewayDestination::Address(_) => None,
        };
        Self { held, ..self }
    }

    /// The output that sends `resource` to `scope`.
    pub fn output(resource: Resource, scope: Scope) -> Output {
        Output::Config(Arc::new(Self { resource, scope, held: None }))
    }

    /// The output that sends part of what proxies know to `scope`.
    pub fn plane(resource: Plane, scope: Scope) -> Output {
        Self::output(Resource::Plane(resource), scope)
    }
}

/// What a translator makes.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A resource of the data plane.
    Config(Arc<Config>),
    /// What an object is told.
    Status(Arc<Status>),
    /// An object that runs a gateway.
    Object(Arc<Manifest>),
    /// Which listeners a route is attached to: they count it.
    Attached(Arc<Attachment>),
    /// What of an object is not served.
    NotServed(Arc<NotServed>),
}

/// A route, and the listeners that count it.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The route.
    pub route: Key,
    /// Those that it is attached to.
    pub listeners: Box<[Listened]>,
}

/// A Gateway or ListenerSet, and the name of one of its listeners.
pub type Listened = (Key, Arc<str>);

/// Names an output.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum OutputKey {
    /// A resource by family and name.
    Config(Family, Arc<str>),
    /// The status of an object.
    Status(Key),
    /// An object of a gateway.
    Object(Key),
    /// The attachment of a route.
    Attached(Key),
    /// What of an object is not served.
    NotServed(Key),
}

impl Output {
    /// Its key.
    pub fn key(&self) -> OutputKey {
        match self {
            Self::Config(config) => {
                OutputKey::Config(config.resource.family(), config.resource.name())
            }
            Self::Status(status) => OutputKey::Status(status.key.clone()),
            Self::Object(manifest) => OutputKey::Object(manifest.key.clone()),
            Self::Attached(one) => OutputKey::Attached(one.route.clone()),
            Self::NotServed(told) => OutputKey::NotServed(told.key.clone()),
        }
    }
}

/// All outputs by key, each with the tasks that make it.
#[derive(Debug, Default)]
pub struct Table {
    makers: HashMap<OutputKey, Makers>,
    attached: BTreeMap<Listened, usize>,
}

/// The tasks that make one output, and how each would have it.
#[derive(Debug)]
enum Makers {
    /// Almost always; a map for one takes ten times the memory.
    One(TaskId, Output),
    Several(BTreeMap<TaskId, Output>),
}

impl Makers {
    /// The output of the first task by order.
    fn first(&self) -> Option<&Output> {
        match self {
            Self::One(_, output) => Some(output),
            Self::Several(all) => all.first_key_value().map(|(_, output)| output),
        }
    }

    fn with(self, id: &TaskId, output: Output) -> Self {
        match self {
            Self::One(own, _) if own == *id => Self::One(own, output),
            Self::One(own, old) => {
                Self::Several(BTreeMap::from([(own, old), (id.clone(), output)]))
            }
            Self::Several(mut all) => {
                all.insert(id.clone(), output);
                Self::Several(all)
            }
        }
    }

    /// None if no task is left.
    fn without(self, id: &TaskId) -> Option<Self> {
        match self {
            Self::One(own, output) => (own != *id).then_some(Self::One(own, output)),
            Self::Several(mut all) => {
                all.remove(id);
                (!all.is_empty()).then_some(Self::Several(all))
            }
        }
    }
}

impl Table {
    /// The output of a key.
    pub fn get(&self, key: &OutputKey) -> Option<&Output> {
        self.makers.get(key)?.first()
    }

    /// The tasks that make the output of a key.
    pub fn makers(&self, key: &OutputKey) -> Vec<&TaskId> {
        match self.makers.get(key) {
            None => Vec::new(),
            Some(Makers::One(id, _)) => vec![id],
            Some(Makers::Several(all)) => all.keys().collect(),
        }
    }

    /// Every output, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&OutputKey, &Output)> {
        self.makers.iter().filter_map(|(key, makers)| Some((key, makers.first()?)))
    }

    /// What is not served, in order of its objects.
    pub fn not_served(&self) -> Vec<&NotServed> {
        let told = self.all().filter_map(|(_, output)| match output {
            Output::NotServed(told) => Some(told.as_ref()),
            Output::Config(_) | Output::Status(_) | Output::Object(_) | Output::Attached(_) => None,
        });
        let mut told: Vec<_> = told.collect();
        told.sort_by(|a, b| a.key.cmp(&b.key));
        told
    }

    /// How many routes a listener serves.
    pub fn attached(&self, listener: &Listened) -> usize {
        self.attached.get(listener).copied().unwrap_or(0)
    }

    /// Takes `outputs` of a task in place of those under `old`; notes keys that differ in `changed`.
    pub fn replace(
        &mut self,
        id: &TaskId,
        old: &[OutputKey],
        outputs: Vec<Output>,
        changed: &mut BTreeSet<OutputKey>,
    ) -> Vec<OutputKey> {
        let mut gives = Vec::with_capacity(outputs.len());
        for output in outputs {
            let key = output.key();
            self.put(id, &key, Some(output), changed);
            gives.push(key);
        }
        for key in old {
            if !gives.contains(key) {
                self.put(id, key, None, changed);
            }
        }
        gives
    }

    fn put(
        &mut self,
        id: &TaskId,
        key: &OutputKey,
        output: Option<Output>,
        changed: &mut BTreeSet<OutputKey>,
    ) {
        let before = self.get(key).cloned();
        let makers = match (self.makers.remove(key), output) {
            (None, None) => None,
            (None, Some(output)) => Some(Makers::One(id.clone(), output)),
            (Some(makers), Some(output)) => Some(makers.with(id, output)),
            (Some(makers), None) => makers.without(id),
        };
        if let Some(makers) = makers {
            self.makers.insert(key.clone(), makers);
        }
        let after = self.get(key).cloned();
        if before != after {
            changed.insert(key.clone());
            self.recount(before, -1, changed);
            self.recount(after, 1, changed);
        }
    }

    /// A route that came or went changes the statuses of those that count it.
    fn recount(&mut self, output: Option<Output>, by: isize, changed: &mut BTreeSet<OutputKey>) {
        let Some(Output::Attached(attachment)) = output else { return };
        for listener in &attachment.listeners {
            let count = self.attached.entry(listener.clone()).or_default();
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                self.attached.remove(listener);
            }
            changed.insert(OutputKey::Status(listener.0.clone()));
        }
    }
}
