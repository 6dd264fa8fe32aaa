// SPDX-License-Identifier: Apache-2.0

//! Objects of each kind by key, with indices; and facts that no object holds.
//!
//! Owns: the list of kinds that the controller reads, one typed [`Store`] for each, and the
//! index values under which an object can be found. Pure: a change tells which read keys it
//! touched, and [`crate::graph`] finds out what has to run again.
//!
//! Start at [`Stores::put`]; translators read through [`lookup::Lookup`].

pub mod facts;
pub mod index;
pub mod lookup;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use gateway_api::backendtlspolicies::BackendTlsPolicy;
use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use gateway_api::experimental::referencegrants::ReferenceGrant;
use gateway_api::listenersets::ListenerSet;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::gateway::{GrpcRoute, HttpRoute, TcpRoute, TlsRoute, UdpRoute};
use crate::api::istio::{
    AuthorizationPolicy, PeerAuthentication, RequestAuthentication, ServiceEntry, WorkloadEntry,
};
use facts::{FactKey, Facts};
use index::Index;

/// Namespace and name of an object; the namespace is empty for kinds of the whole cluster.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Name {
    /// Puts namespace and name together.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Kind, namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace and name.
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// What a translator asked for: one key changes, and those who read it run again.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ReadKey {
    /// One object.
    Object(Key),
    /// All objects of a kind under an index value.
    Index(Kind, Index, Arc<str>),
    /// One fact.
    Fact(FactKey),
}

/// An object of a kind that the controller reads.
pub trait Stored:
    kube::Resource<DynamicType = ()> + serde::Serialize + Send + Sync + 'static
{
    /// Its kind.
    const KIND: Kind;

    /// Where such objects lie.
    fn store(stores: &Stores) -> &Store<Self>
    where
        Self: Sized;
}

/// Declares the kinds: `Kind`, `Object`, `Stores` and their conversions.
macro_rules! kinds {
    ($($kind:ident, $field:ident, $type:ty, $text:literal, $groups:literal;)*) => {
        /// The kinds that the controller reads.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Kind { $(#[doc = concat!("`", $text, "`.")] $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The kind's own name, as objects write it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text,)* }
            }

            /// The kind of this `apiVersion` and `kind`, if the controller reads it.
            pub fn of(api_version: &str, kind: &str) -> Option<Self> {
                let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
                $(if kind == $text && group == $groups { return Some(Self::$kind); })*
                None
            }

            /// The API group; empty for core.
            pub fn group(self) -> &'static str {
                match self { $(Self::$kind => $groups,)* }
            }

            /// Reads one object of this kind with the given deserializer.
            ///
            /// # Errors
            ///
            /// Those of the deserializer.
            pub fn read<'de, D: serde::Deserializer<'de>>(self, from: D) -> Result<Object, D::Error> {
                use serde::Deserialize as _;
                match self {
                    $(Self::$kind => <$type>::deserialize(from).map(|object| Object::$kind(Arc::new(object))),)*
                }
            }
        }

        /// One object of any kind that the controller reads.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object { $(#[doc = concat!("`", $text, "`.")] $kind(Arc<$type>),)* }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Its metadata.
            pub fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => kube::Resource::meta(object.as_ref()),)* }
            }

            /// Its metadata, to fill in what an apiserver would.
            pub fn meta_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => kube::Resource::meta_mut(Arc::make_mut(object)),)* }
            }

            /// The object as JSON.
            ///
            /// # Errors
            ///
            /// Only if a value cannot be JSON, which no read object has.
            pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
                match self { $(Self::$kind(object) => serde_json::to_value(object.as_ref()),)* }
            }

            fn indices(&self) -> Vec<IndexValue> {
                match self { $(Self::$kind(object) => index::of(object.as_ref()),)* }
            }
        }

        /// All objects, by kind.
        #[derive(Debug, Default)]
        pub struct Stores {
            $($field: Store<$type>,)*
            /// What was learnt outside objects.
            pub facts: Facts,
        }

        $(impl Stored for $type {
            const KIND: Kind = Kind::$kind;
            fn store(stores: &Stores) -> &Store<Self> { &stores.$field }
        })*

        impl Stores {
            fn swap(&mut self, key: &Key, object: Option<Object>, values: Change<'_>) {
                match (key.kind, object) {
                    $(
                        (Kind::$kind, Some(Object::$kind(object))) =>
                            self.$field.put(key.name.clone(), object, values),
                        (Kind::$kind, None) => self.$field.remove(&key.name, values),
                    )*
                    (_, Some(_)) => {}
                }
            }

            /// One object.
            pub fn object(&self, key: &Key) -> Option<Object> {
                match key.kind {
                    $(Kind::$kind => self.$field.by_name.get(&key.name).cloned().map(Object::$kind),)*
                }
            }

            /// The names of all objects of a kind, in order.
            pub fn names(&self, kind: Kind) -> Vec<Name> {
                let mut names: Vec<Name> =
                    match kind { $(Kind::$kind => self.$field.by_name.keys().cloned().collect(),)* };
                names.sort_unstable();
                names
            }
        }
    };
}

kinds! {
    Namespace, namespaces, Namespace, "Namespace", "";
    Node, nodes, Node, "Node", "";
    Pod, pods, Pod, "Pod", "";
    Service, services, Service, "Service", "";
    ServiceAccount, accounts, ServiceAccount, "ServiceAccount", "";
    Secret, secrets, Secret, "Secret", "";
    ConfigMap, config_maps, ConfigMap, "ConfigMap", "";
    Deployment, deployments, Deployment, "Deployment", "apps";
    HorizontalPodAutoscaler, autoscalers, HorizontalPodAutoscaler, "HorizontalPodAutoscaler", "autoscaling";
    PodDisruptionBudget, budgets, PodDisruptionBudget, "PodDisruptionBudget", "policy";
    EndpointSlice, endpoint_slices, EndpointSlice, "EndpointSlice", "discovery.k8s.io";
    GatewayClass, gateway_classes, GatewayClass, "GatewayClass", "gateway.networking.k8s.io";
    Gateway, gateways, Gateway, "Gateway", "gateway.networking.k8s.io";
    ListenerSet, listener_sets, ListenerSet, "ListenerSet", "gateway.networking.k8s.io";
    HttpRoute, http_routes, HttpRoute, "HTTPRoute", "gateway.networking.k8s.io";
    GrpcRoute, grpc_routes, GrpcRoute, "GRPCRoute", "gateway.networking.k8s.io";
    TlsRoute, tls_routes, TlsRoute, "TLSRoute", "gateway.networking.k8s.io";
    TcpRoute, tcp_routes, TcpRoute, "TCPRoute", "gateway.networking.k8s.io";
    UdpRoute, udp_routes, UdpRoute, "UDPRoute", "gateway.networking.k8s.io";
    ReferenceGrant, grants, ReferenceGrant, "ReferenceGrant", "gateway.networking.k8s.io";
    BackendTlsPolicy, backend_tls, BackendTlsPolicy, "BackendTLSPolicy", "gateway.networking.k8s.io";
    AuthorizationPolicy, authorizations, AuthorizationPolicy, "AuthorizationPolicy", "security.istio.io";
    PeerAuthentication, peer_authentications, PeerAuthentication, "PeerAuthentication", "security.istio.io";
    RequestAuthentication, request_authentications, RequestAuthentication, "RequestAuthentication", "security.istio.io";
    ServiceEntry, service_entries, ServiceEntry, "ServiceEntry", "networking.istio.io";
    WorkloadEntry, workload_entries, WorkloadEntry, "WorkloadEntry", "networking.istio.io";
}

impl Object {
    /// Its key.
    pub fn key(&self) -> Key {
        let meta = self.meta();
        let name = Name::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        Key { kind: self.kind(), name }
    }
}

impl Object {
    /// The Secrets and ConfigMaps that it names as holding certificates or parameters.
    ///
    /// On Kubernetes these are followed, and no others: a translator that reads one by another
    /// way never sees it there. What names objects has [`Index::Refers`].
    pub fn named(&self) -> Vec<Key> {
        if !matches!(
            self.kind(),
            Kind::Gateway | Kind::GatewayClass | Kind::ListenerSet | Kind::BackendTlsPolicy
        ) {
            return Vec::new();
        }
        let refers = |(index, value): (Index, Arc<str>)| {
            let mut parts = value.split('/');
            let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
            let kind = Kind::of("v1", kind).filter(|_| index == Index::Refers)?;
            let by_name = matches!(kind, Kind::Secret | Kind::ConfigMap);
            by_name.then(|| Key { kind, name: Name::new(namespace, name) })
        };
        self.indices().into_iter().filter_map(refers).collect()
    }
}

impl Kind {
    /// Tells whether objects of this kind belong to no namespace.
    pub fn is_cluster_wide(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }
}

impl Stores {
    /// Takes `object` in place of the one of its key; returns the read keys that this touched.
    ///
    /// An object equal to the one it replaces touches nothing.
    pub fn put(&mut self, object: Object) -> Vec<ReadKey> {
        let key = object.key();
        let old = self.object(&key);
        if old.as_ref() == Some(&object) {
            return Vec::new();
        }
        let old = old.map(|old| old.indices()).unwrap_or_default();
        let new = object.indices();
        self.swap(&key, Some(object), Change { old: &old, new: &new });
        touched(key, old, new)
    }

    /// Forgets the object of `key`; returns the read keys that this touched.
    pub fn remove(&mut self, key: &Key) -> Vec<ReadKey> {
        let Some(old) = self.object(key) else { return Vec::new() };
        let old = old.indices();
        self.swap(key, None, Change { old: &old, new: &[] });
        touched(key.clone(), old, Vec::new())
    }

    /// All objects of a type, in order of their names.
    pub fn all<K: Stored>(&self) -> impl Iterator<Item = &Arc<K>> {
        let mut all: Vec<_> = K::store(self).by_name.iter().collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all.into_iter().map(|(_, object)| object)
    }

    /// One object of a type.
    pub fn get<K: Stored>(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        K::store(self).by_name.get(&Name::new(namespace, name))
    }

    /// The objects of a type under an index value, in order of their names.
    pub fn list<K: Stored>(&self, index: Index, value: &str) -> Vec<&Arc<K>> {
        let store = K::store(self);
        let names = store.indices.get(&index).and_then(|values| values.get(value));
        names.into_iter().flatten().filter_map(|name| store.by_name.get(name)).collect()
    }
}

/// The keys that a change of one object touches: its own, and the index values it left or took.
fn touched(key: Key, old: Vec<IndexValue>, new: Vec<IndexValue>) -> Vec<ReadKey> {
    let kind = key.kind;
    let values: BTreeSet<_> = old.into_iter().chain(new).collect();
    let indices = values.into_iter().map(|(index, value)| ReadKey::Index(kind, index, value));
    std::iter::once(ReadKey::Object(key)).chain(indices).collect()
}

/// A value under which an object can be found.
type IndexValue = (Index, Arc<str>);

/// The values of an object before and after it changed.
#[derive(Clone, Copy)]
struct Change<'a> {
    old: &'a [IndexValue],
    new: &'a [IndexValue],
}

/// Objects of one type by name, with indices.
#[derive(Debug)]
pub struct Store<K> {
    /// Hashed: comparing names all the way down a tree of thousands misses the caches each time.
    by_name: HashMap<Name, Arc<K>>,
    indices: HashMap<Index, HashMap<Arc<str>, BTreeSet<Name>>>,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), indices: HashMap::new() }
    }
}

impl<K: Stored> Store<K> {
    fn put(&mut self, name: Name, object: Arc<K>, values: Change<'_>) {
        self.index(&name, values);
        self.by_name.insert(name, object);
    }

    fn remove(&mut self, name: &Name, values: Change<'_>) {
        self.by_name.remove(name);
        self.index(name, values);
    }

    /// Files an object under its new values; those that stay are not touched.
    fn index(&mut self, name: &Name, Change { old, new }: Change<'_>) {
        for (index, value) in old.iter().filter(|value| !new.contains(value)) {
            let Some(values) = self.indices.get_mut(index) else { continue };
            let Some(names) = values.get_mut(value) else { continue };
            names.remove(name);
            if names.is_empty() {
                values.remove(value);
            }
        }
        for (index, value) in new.iter().filter(|value| !old.contains(value)) {
            let values = self.indices.entry(*index).or_default();
            match values.get_mut(value) {
                Some(names) => {
                    names.insert(name.clone());
                }
                None => {
                    values.insert(Arc::clone(value), BTreeSet::from([name.clone()]));
                }
            }
        }
    }
}
