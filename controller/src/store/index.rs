// SPDX-License-Identifier: Apache-2.0

//! Under which values an object can be found besides its name.
//!
//! An index holds what a translator would otherwise scan for, so that a change touches only
//! the outputs that could have seen it. A value is `namespace/text` where the namespace
//! bounds the search.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use gateway_api::backendtlspolicies::BackendTlsPolicy;
use gateway_api::experimental::gatewayclasses::GatewayClass;
use gateway_api::experimental::gateways::Gateway;
use gateway_api::listenersets::ListenerSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};

use super::Stored;
use crate::api;
use crate::api::gateway::{
    BackendRef, Filter, GrpcRoute, HttpRoute, ParentRef, TcpRoute, TlsRoute, UdpRoute,
};
use crate::api::istio::{AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry};
use crate::api::vip;

/// A way to find objects.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Index {
    /// Every object; the value is empty.
    All,
    /// By namespace.
    Namespace,
    /// By one label: `namespace/key=value`.
    Label,
    /// By the first label that the object selects, `namespace/key=value`; `namespace/` if it
    /// selects by none.
    Selects,
    /// Pods by node name.
    Node,
    /// Pods by UID.
    Uid,
    /// ServiceEntries by where the virtual addresses of their hosts are: [`vip::Place`].
    Place,
    /// Routes and ListenerSets by parent: `Kind/namespace/name`.
    Parent,
    /// Routes by the Services that they send to: `Service/namespace/name`.
    Backend,
    /// Gateways by class name.
    Class,
    /// Policies by what they point at: `Kind/namespace/name`.
    Target,
    /// Gateways, GatewayClasses, ListenerSets and policies by the Secret or ConfigMap they name:
    /// `Kind/namespace/name`.
    Refers,
}

/// The index values of an object.
pub(super) fn of<K: Stored>(object: &K) -> Vec<(Index, Arc<str>)> {
    let meta = object.meta();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let mut values = Values { namespace, found: Vec::new() };
    values.add(Index::All, String::new());
    values.add(Index::Namespace, namespace.to_owned());
    let any = object as &dyn Any;
    if let Some(pod) = any.downcast_ref::<Pod>() {
        values.labels(meta.labels.as_ref());
        values.pod(pod);
    } else if let Some(service) = any.downcast_ref::<Service>() {
        values.labels(meta.labels.as_ref());
        values.selects(service.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
    } else if let Some(entry) = any.downcast_ref::<WorkloadEntry>() {
        values.labels(Some(&entry.all_labels()));
    } else if let Some(entry) = any.downcast_ref::<ServiceEntry>() {
        values.selects(entry.spec.workload_selector.as_ref().map(|selector| &selector.labels));
        for place in vip::places(entry) {
            values.add(Index::Place, place.text());
        }
    } else if let Some(policy) = any.downcast_ref::<PeerAuthentication>() {
        values.selects(policy.spec.selector.as_ref().map(|selector| &selector.match_labels));
    } else if let Some(policy) = any.downcast_ref::<AuthorizationPolicy>() {
        values.authorization(policy);
    } else if let Some(policy) = any.downcast_ref::<BackendTlsPolicy>() {
        values.backend_tls(policy);
    } else if let Some(gateway) = any.downcast_ref::<Gateway>() {
        values.gateway(gateway);
    } else if let Some(class) = any.downcast_ref::<GatewayClass>() {
        values.class(class);
    } else if let Some(map) = any.downcast_ref::<ConfigMap>() {
        // Of ConfigMaps no other label is asked for.
        let class = map.metadata.labels.as_ref().and_then(|l| l.get(api::DEFAULTS_FOR_CLASS));
        let class = class.map(|class| label(namespace, api::DEFAULTS_FOR_CLASS, class));
        values.found.extend(class.map(|class| (Index::Label, class.into())));
    } else if let Some(set) = any.downcast_ref::<ListenerSet>() {
        values.listener_set(set);
    } else {
        values.route(any);
    }
    values.found
}

/// The index value for a label inside a namespace.
pub fn label(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// The index value for an object that others point at.
pub fn object(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

struct Values<'a> {
    namespace: &'a str,
    found: Vec<(Index, Arc<str>)>,
}

impl Values<'_> {
    fn add(&mut self, index: Index, value: String) {
        self.found.push((index, value.into()));
    }

    fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) {
        for (key, value) in labels.into_iter().flatten() {
            self.add(Index::Label, label(self.namespace, key, value));
        }
    }

    fn selects(&mut self, labels: Option<&BTreeMap<String, String>>) {
        let first = labels.and_then(|labels| labels.first_key_value());
        let value = match first {
            Some((key, value)) => label(self.namespace, key, value),
            None => format!("{}/", self.namespace),
        };
        self.add(Index::Selects, value);
    }

    fn pod(&mut self, pod: &Pod) {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
            self.add(Index::Node, node);
        }
        if let Some(uid) = pod.metadata.uid.clone() {
            self.add(Index::Uid, uid);
        }
    }

    fn authorization(&mut self, policy: &AuthorizationPolicy) {
        self.selects(policy.spec.selector.as_ref().map(|selector| &selector.match_labels));
        for target in policy.spec.target_refs.iter().chain(&policy.spec.target_ref) {
            self.add(Index::Target, object(&target.kind, self.namespace, &target.name));
        }
    }

    fn backend_tls(&mut self, policy: &BackendTlsPolicy) {
        for target in &policy.spec.target_refs {
            self.add(Index::Target, object(&target.kind, self.namespace, &target.name));
        }
        for reference in policy.spec.validation.ca_certificate_refs.iter().flatten() {
            self.config_map(&reference.kind, None, &reference.name);
        }
    }

    /// A Secret that is named as holding a certificate and its key.
    fn secret(&mut self, namespace: Option<&str>, name: &str) {
        let namespace = namespace.unwrap_or(self.namespace);
        self.add(Index::Refers, object("Secret", namespace, name));
    }

    /// An object that is named as holding CA certificates or parameters: of no other kind is it
    /// read, of Secrets least of all.
    fn config_map(&mut self, kind: &str, namespace: Option<&str>, name: &str) {
        if kind == "ConfigMap" {
            let namespace = namespace.unwrap_or(self.namespace);
            self.add(Index::Refers, object(kind, namespace, name));
        }
    }

    fn class(&mut self, class: &GatewayClass) {
        if let Some(one) = &class.spec.parameters_ref {
            self.config_map(&one.kind, one.namespace.as_deref(), &one.name);
        }
    }

    fn gateway(&mut self, gateway: &Gateway) {
        self.add(Index::Class, gateway.spec.gateway_class_name.clone());
        for listener in &gateway.spec.listeners {
            let refs = listener.tls.as_ref().and_then(|tls| tls.certificate_refs.as_ref());
            for one in refs.into_iter().flatten() {
                self.secret(one.namespace.as_deref(), &one.name);
            }
        }
        let infrastructure = gateway.spec.infrastructure.as_ref();
        if let Some(one) = infrastructure.and_then(|i| i.parameters_ref.as_ref()) {
            self.config_map(&one.kind, None, &one.name);
        }
        let tls = gateway.spec.tls.as_ref();
        if let Some(frontend) = tls.and_then(|tls| tls.frontend.as_ref()) {
            let default = frontend.default.validation.iter();
            for one in default.flat_map(|validation| &validation.ca_certificate_refs) {
                self.config_map(&one.kind, one.namespace.as_deref(), &one.name);
            }
            let ports = frontend.per_port.iter().flatten();
            let ports = ports.filter_map(|port| port.tls.validation.as_ref());
            for one in ports.flat_map(|validation| &validation.ca_certificate_refs) {
                self.config_map(&one.kind, one.namespace.as_deref(), &one.name);
            }
        }
        let backend = tls.and_then(|tls| tls.backend.as_ref());
        if let Some(one) = backend.and_then(|tls| tls.client_certificate_ref.as_ref()) {
            self.secret(one.namespace.as_deref(), &one.name);
        }
    }

    fn listener_set(&mut self, set: &ListenerSet) {
        let parent = &set.spec.parent_ref;
        let namespace = parent.namespace.as_deref().unwrap_or(self.namespace);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        self.add(Index::Parent, object(kind, namespace, &parent.name));
        for listener in &set.spec.listeners {
            let refs = listener.tls.as_ref().and_then(|tls| tls.certificate_refs.as_ref());
            for one in refs.into_iter().flatten() {
                self.secret(one.namespace.as_deref(), &one.name);
            }
        }
    }

    fn backends<'b>(&mut self, backends: impl Iterator<Item = &'b BackendRef>) {
        for backend in backends {
            if backend.kind.as_deref().unwrap_or("Service") == "Service" {
                let namespace = backend.namespace.as_deref().unwrap_or(self.namespace);
                self.add(Index::Backend, object("Service", namespace, &backend.name));
            }
        }
    }

    /// Backends of rules over requests; mirrors are backends too.
    fn requests<'b>(&mut self, rules: impl Iterator<Item = (&'b [BackendRef], &'b [Filter])>) {
        for (backends, filters) in rules {
            let of_backends = backends.iter().flat_map(|backend| &backend.filters);
            let mirrors = filters.iter().chain(of_backends);
            let mirrors = mirrors.filter_map(|filter| filter.request_mirror.as_ref());
            self.backends(backends.iter().chain(mirrors.map(|mirror| &mirror.backend_ref)));
        }
    }

    fn route(&mut self, any: &dyn Any) {
        let parents: &[ParentRef] = if let Some(route) = any.downcast_ref::<HttpRoute>() {
            let rules = route.spec.rules.iter().flatten();
            let rules = rules.map(|rule| (&*rule.backend_refs, &*rule.filters));
            self.requests(rules);
            &route.spec.parent_refs
        } else if let Some(route) = any.downcast_ref::<GrpcRoute>() {
            let rules = route.spec.rules.iter().flatten();
            let rules = rules.map(|rule| (&*rule.backend_refs, &*rule.filters));
            self.requests(rules);
            &route.spec.parent_refs
        } else if let Some(route) = any.downcast_ref::<TlsRoute>() {
            self.backends(route.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
            &route.spec.parent_refs
        } else if let Some(route) = any.downcast_ref::<TcpRoute>() {
            self.backends(route.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
            &route.spec.parent_refs
        } else if let Some(route) = any.downcast_ref::<UdpRoute>() {
            self.backends(route.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
            &route.spec.parent_refs
        } else {
            return;
        };
        for parent in parents {
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            let namespace = parent.namespace.as_deref().unwrap_or(self.namespace);
            self.add(Index::Parent, object(kind, namespace, &parent.name));
        }
    }
}
