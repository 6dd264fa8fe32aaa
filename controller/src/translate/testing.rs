// SPDX-License-Identifier: Apache-2.0

//! Objects from YAML, and what translators make of them; for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use routing::delta::Resource as Plane;
use routing::listener::Listener;
use routing::route::Rule;

use super::{Translator, guard};
use crate::graph::Graph;
use crate::output::{Family, Output, OutputKey, Resource, Scope, Table};
use crate::settings::Mesh;
use crate::source::document;
use crate::status::{Body, Condition, Status};
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name, ReadKey, Stores};

/// Objects of some YAML texts.
pub(crate) fn stores(texts: &[&str]) -> Stores {
    let mut stores = Stores::default();
    for text in texts {
        let parsed = document::parse_unchecked(Path::new("test.yaml"), text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        for placed in parsed.objects {
            stores.put(placed.object);
        }
    }
    stores
}

/// What a translator makes of one object.
pub(crate) fn run(stores: &Stores, translator: Translator, name: &str) -> Made {
    run_in(&Mesh::default(), stores, translator, name)
}

/// The same, in a mesh with other settings.
pub(crate) fn run_in(mesh: &Mesh, stores: &Stores, translator: Translator, name: &str) -> Made {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let name = Name::new(namespace, name);
    let mut look = Lookup::new(stores, mesh);
    let made = translator.run(&name, &mut look);
    assert_named(stores, &name, look);
    Made(made)
}

/// On a cluster only those Secrets and ConfigMaps can be read that an object names: see
/// [`crate::store::Object::named`].
fn assert_named(stores: &Stores, own: &Name, look: Lookup<'_>) {
    let objects = Kind::ALL.iter().flat_map(|kind| {
        stores.names(*kind).into_iter().filter_map(|name| stores.object(&Key { kind: *kind, name }))
    });
    let mut named: Vec<Key> = objects.flat_map(|object| object.named()).collect();
    named.push(guard::mesh_config(look.mesh()));
    for read in look.finish().0 {
        let ReadKey::Object(key) = read else { continue };
        let by_name = matches!(key.kind, Kind::Secret | Kind::ConfigMap) && key.name != *own;
        assert!(!by_name || named.contains(&key), "{key} is read and nothing names it");
    }
}

/// Objects that are edited, and what stands after each edit.
#[derive(Default)]
pub(crate) struct Edited {
    stores: Stores,
    graph: Graph,
}

impl Edited {
    /// Takes the objects of a text; tells which resources changed.
    pub(crate) fn put(&mut self, text: &str) -> Vec<String> {
        let parsed = document::parse_unchecked(Path::new("test.yaml"), text);
        let mut touched = Vec::new();
        for placed in parsed.objects {
            touched.extend(self.stores.put(placed.object));
        }
        let changed = self.graph.run(&self.stores, &Mesh::default(), &touched);
        let names = changed.into_iter().filter_map(|key| match key {
            OutputKey::Config(_, name) => Some(name.to_string()),
            OutputKey::Status(_)
            | OutputKey::Object(_)
            | OutputKey::Attached(_)
            | OutputKey::NotServed(_) => None,
        });
        names.collect()
    }

    /// Forgets an object; tells which outputs changed.
    pub(crate) fn remove(&mut self, kind: Kind, name: &str) -> BTreeSet<OutputKey> {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let touched = self.stores.remove(&Key { kind, name: Name::new(namespace, name) });
        self.graph.run(&self.stores, &Mesh::default(), &touched)
    }

    /// An object that runs a Gateway, as it is to be written.
    pub(crate) fn object(&self, kind: Kind, name: &str) -> Option<&serde_json::Value> {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let key = OutputKey::Object(Key { kind, name: Name::new(namespace, name) });
        match self.graph.table.get(&key)? {
            Output::Object(manifest) => Some(&manifest.value),
            Output::Config(_) | Output::Status(_) | Output::Attached(_) | Output::NotServed(_) => {
                None
            }
        }
    }

    /// All objects.
    pub(crate) fn stores(&self) -> &Stores {
        &self.stores
    }

    /// All outputs.
    pub(crate) fn table(&self) -> &Table {
        &self.graph.table
    }

    /// All resources by family and name.
    pub(crate) fn holds(&self, family: Family, name: &str) -> bool {
        self.graph.table.get(&OutputKey::Config(family, name.into())).is_some()
    }
}

/// What of a pod the level `restricted` does not take.
///
/// Rule: Kubernetes' Pod Security Standards.
pub(crate) fn unrestricted(pod: &serde_json::Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut want = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    for name in ["hostNetwork", "hostPID", "hostIPC"] {
        want(pod[name] != true, name);
    }
    let all = |at: &serde_json::Value| at.as_array().cloned().unwrap_or_default();
    for volume in all(&pod["volumes"]) {
        let kinds = ["configMap", "projected", "secret", "emptyDir", "downwardAPI"];
        want(kinds.iter().any(|kind| volume[kind].is_object()), "volumes");
    }
    for sysctl in all(&pod["securityContext"]["sysctls"]) {
        want(sysctl["name"] == "net.ipv4.ip_unprivileged_port_start", "sysctls");
    }
    for container in [all(&pod["containers"]), all(&pod["initContainers"])].concat() {
        let own = &container["securityContext"];
        let either = |name: &str| {
            if own[name].is_null() { &pod["securityContext"][name] } else { &own[name] }
        };
        want(own["privileged"] != true, "privileged");
        want(own["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation");
        want(all(&own["capabilities"]["drop"]).contains(&"ALL".into()), "capabilities.drop");
        want(all(&own["capabilities"]["add"]).is_empty(), "capabilities.add");
        want(*either("runAsNonRoot") == true, "runAsNonRoot");
        want(*either("runAsUser") != 0, "runAsUser");
        want(either("seccompProfile")["type"] == "RuntimeDefault", "seccompProfile");
        want(all(&container["ports"]).iter().all(|port| port["hostPort"].is_null()), "hostPort");
    }
    found
}

/// Outputs of a translator.
pub(crate) struct Made(pub(crate) Vec<Output>);

/// Status and reason by type of condition.
pub(crate) type Told = BTreeMap<&'static str, (bool, &'static str)>;

pub(crate) fn told(conditions: &[Condition]) -> Told {
    conditions.iter().map(|one| (one.kind, (one.status, one.reason))).collect()
}

impl Made {
    /// An object that runs a Gateway, as it is to be written.
    pub(crate) fn object(&self, kind: Kind) -> Option<&serde_json::Value> {
        self.0.iter().find_map(|output| match output {
            Output::Object(manifest) => (manifest.key.kind == kind).then_some(&manifest.value),
            Output::Config(_) | Output::Status(_) | Output::Attached(_) | Output::NotServed(_) => {
                None
            }
        })
    }

    pub(crate) fn status(&self) -> &Status {
        let found = self.0.iter().find_map(|output| match output {
            Output::Status(status) => Some(&**status),
            Output::Config(_) | Output::Object(_) | Output::Attached(_) | Output::NotServed(_) => {
                None
            }
        });
        found.expect("a status")
    }

    fn plane(&self) -> impl Iterator<Item = (&Plane, &Scope)> {
        self.0.iter().filter_map(|output| match output {
            Output::Config(config) => match &config.resource {
                Resource::Plane(plane) => Some((plane, &config.scope)),
                Resource::NodePod(_) | Resource::Roots(_) => None,
            },
            Output::Status(_) | Output::Object(_) | Output::Attached(_) | Output::NotServed(_) => {
                None
            }
        })
    }

    /// Rules, with the gateways that get them.
    pub(crate) fn rules(&self) -> Vec<(Arc<Rule>, &Scope)> {
        let rules = self.plane().filter_map(|(plane, scope)| match plane {
            Plane::Rule(rule) => Some((Arc::clone(rule), scope)),
            Plane::Workload(_)
            | Plane::Service(_)
            | Plane::Authorization(_)
            | Plane::Gateway(_)
            | Plane::Listener(_)
            | Plane::BackendTls(_)
            | Plane::Secret(_)
            | Plane::GatewayAuthorization(_)
            | Plane::RequestAuthentication(_) => None,
        });
        rules.collect()
    }

    pub(crate) fn listeners(&self) -> Vec<Arc<Listener>> {
        let listeners = self.plane().filter_map(|(plane, _)| match plane {
            Plane::Listener(listener) => Some(Arc::clone(listener)),
            Plane::Workload(_)
            | Plane::Service(_)
            | Plane::Authorization(_)
            | Plane::Gateway(_)
            | Plane::Rule(_)
            | Plane::BackendTls(_)
            | Plane::Secret(_)
            | Plane::GatewayAuthorization(_)
            | Plane::RequestAuthentication(_) => None,
        });
        listeners.collect()
    }

    pub(crate) fn backend_tls(&self) -> Vec<Arc<routing::backend::BackendTls>> {
        let policies = self.plane().filter_map(|(plane, _)| match plane {
            Plane::BackendTls(tls) => Some(Arc::clone(tls)),
            Plane::Workload(_)
            | Plane::Service(_)
            | Plane::Authorization(_)
            | Plane::Gateway(_)
            | Plane::Listener(_)
            | Plane::Rule(_)
            | Plane::Secret(_)
            | Plane::GatewayAuthorization(_)
            | Plane::RequestAuthentication(_) => None,
        });
        policies.collect()
    }

    /// What each parent says, in order.
    pub(crate) fn parents(&self) -> Vec<Told> {
        let Body::Parents { parents, .. } = &self.status().body else { panic!("no route") };
        parents.iter().map(|parent| told(&parent.conditions)).collect()
    }

    /// What a Gateway and its listeners say.
    pub(crate) fn gateway(&self) -> (Told, BTreeMap<String, (Vec<&'static str>, Told)>) {
        let Body::Gateway { conditions, listeners, .. } = &self.status().body else {
            panic!("no Gateway")
        };
        let listeners = listeners.iter().map(|listener| {
            let said = (listener.kinds.clone(), told(&listener.conditions));
            (listener.name.clone(), said)
        });
        (told(conditions), listeners.collect())
    }

    /// Sections that count the route.
    pub(crate) fn attached(&self) -> Vec<String> {
        let mut sections = Vec::new();
        for output in &self.0 {
            if let Output::Attached(one) = output {
                let at = one.listeners.iter();
                sections.extend(at.map(|(owner, at)| format!("{}/{at}", owner.name)));
            }
        }
        sections
    }
}

/// A certificate and its key, PEM.
pub(crate) fn certificate(host: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A TLS Secret as YAML.
pub(crate) fn secret(namespace: &str, name: &str, certificate: &str, key: &str) -> String {
    let indent = |text: &str| text.trim().replace('\n', "\n    ");
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        indent(certificate),
        indent(key)
    )
}
