// SPDX-License-Identifier: Apache-2.0

//! Which ports of the mesh NetworkPolicies keep closed.
//!
//! Calls inside the mesh come to port 15008 whatever port the application has, with the caller's
//! own address: peers that a rule names hold as before, its ports do not.
//!
//! Rule: `NetworkPolicySpec` of Kubernetes `networking/v1`: a pod that any policy selects takes
//! what any of them allows, and nothing else.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::finding::{Finding, Level, some_of};
use crate::api::{GATEWAY_NAME, HBONE_PORT};
use crate::settings::Mesh;
use crate::store::lookup::Lookup;
use crate::store::{Object, Stores};
use crate::translate::pod;

/// Where the controller is called.
const CONTROL_PORT: u16 = 15012;

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Direction {
    Ingress,
    Egress,
}

/// What a pod needs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Need {
    direction: Direction,
    port: u16,
    /// It needs it now; else once it is in the mesh.
    now: bool,
}

/// Policies that keep from pods what they need for the mesh.
///
/// `stores` holds the pods and namespaces of the cluster.
pub(in crate::cli) fn blocked(
    policies: &[NetworkPolicy],
    stores: &Stores,
    mesh: &Mesh,
) -> Vec<Finding> {
    let mut closed: BTreeMap<(Vec<String>, Need), Vec<String>> = BTreeMap::new();
    for found in stores.all::<Pod>() {
        for need in needs(found, stores, mesh) {
            let by = closing(policies, found, need);
            if !by.is_empty() {
                let (namespace, name) = name(found);
                closed.entry((by, need)).or_default().push(format!("{namespace}/{name}"));
            }
        }
    }
    if closed.is_empty() {
        return vec![Finding::ok("network-policy", "NetworkPolicies", "none is in the way")];
    }
    closed.iter().map(|((by, need), pods)| finding(by, *need, pods)).collect()
}

fn finding(by: &[String], need: Need, pods: &[String]) -> Finding {
    let (port, some) = (need.port, some_of(pods));
    let message = match need.direction {
        Direction::Ingress => format!("do not let port {port} in to {some}"),
        Direction::Egress => format!("do not let {some} out to port {port}"),
    };
    let key = match need.direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let todo = format!("allow it there: {key}: [{{ports: [{{protocol: TCP, port: {port}}}]}}]");
    let found = Finding::ok("network-policy", format!("NetworkPolicy {}", by.join(", ")), message);
    match need.now {
        true => found.but(Level::Error, todo),
        false => {
            found.but(Level::Note, format!("before its namespace comes into the mesh, {todo}"))
        }
    }
}

fn needs(found: &Pod, stores: &Stores, mesh: &Mesh) -> Vec<Need> {
    if pod::is_host_network(found) || pod::is_terminal(found) {
        return Vec::new();
    }
    let mut look = Lookup::new(stores, mesh);
    let (namespace, _) = name(found);
    let now = |direction, port| Need { direction, port, now: true };
    let label = |key: &str| {
        let labels = found.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(key)).map(String::as_str)
    };
    let own = namespace == &*mesh.root_namespace;
    match label("app") {
        Some("istiod") if own => return vec![now(Direction::Ingress, CONTROL_PORT)],
        Some("ztunnel") if own => return vec![now(Direction::Egress, CONTROL_PORT)],
        Some(_) | None => {}
    }
    if label(GATEWAY_NAME).is_some() {
        return vec![now(Direction::Egress, HBONE_PORT), now(Direction::Egress, CONTROL_PORT)];
    }
    if !pod::namespace_can_enrol(namespace, &look) {
        return Vec::new();
    }
    let inside = pod::belongs(found, &mut look);
    [Direction::Ingress, Direction::Egress]
        .map(|direction| Need { direction, port: HBONE_PORT, now: inside })
        .into()
}

/// The policies that select the pod for the need's direction, if none of them allows it.
fn closing(policies: &[NetworkPolicy], found: &Pod, need: Need) -> Vec<String> {
    let (namespace, _) = name(found);
    let concerned = |policy: &&NetworkPolicy| {
        policy.metadata.namespace.as_deref() == Some(namespace)
            && restricts(policy, need.direction)
            && policy.spec.as_ref().is_some_and(|spec| {
                spec.pod_selector.as_ref().is_none_or(|selector| {
                    selects(selector, found.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()))
                })
            })
    };
    let concerned: Vec<&NetworkPolicy> = policies.iter().filter(concerned).collect();
    if concerned.iter().any(|policy| allows(policy, need)) {
        return Vec::new();
    }
    let name =
        |policy: &&NetworkPolicy| policy.metadata.name.as_deref().unwrap_or_default().to_owned();
    concerned.iter().map(|policy| format!("{namespace}/{}", name(policy))).collect()
}

/// Whether a policy says anything of connections in this direction.
fn restricts(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let word = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    match (&spec.policy_types, direction) {
        (Some(types), _) => types.iter().any(|kind| kind == word),
        (None, Direction::Ingress) => true,
        (None, Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// Whether a policy allows the port from or to anybody at all.
fn allows(policy: &NetworkPolicy, need: Need) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let ports: Vec<Option<&Vec<NetworkPolicyPort>>> = match need.direction {
        Direction::Ingress => {
            spec.ingress.iter().flatten().map(|rule| rule.ports.as_ref()).collect()
        }
        Direction::Egress => spec.egress.iter().flatten().map(|rule| rule.ports.as_ref()).collect(),
    };
    ports.into_iter().any(|ports| match ports {
        None => true,
        Some(ports) => ports.is_empty() || ports.iter().any(|port| covers(port, need.port)),
    })
}

/// No application names its port for the mesh, so a named port is another one.
fn covers(rule: &NetworkPolicyPort, port: u16) -> bool {
    let tcp = rule.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let port = i32::from(port);
    tcp && match (&rule.port, rule.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(from)), Some(to)) => (*from..=to).contains(&port),
        (Some(IntOrString::Int(only)), None) => *only == port,
        (Some(IntOrString::String(_)), _) => false,
    }
}

/// Rule: `LabelSelector` of Kubernetes: all labels and all expressions hold.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal =
        selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let holds = selector.match_expressions.iter().flatten().all(|wanted| {
        let value = labels.get(&wanted.key);
        let named = || wanted.values.iter().flatten().any(|named| Some(named) == value);
        match wanted.operator.as_str() {
            "In" => value.is_some() && named(),
            "NotIn" => !named(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && holds
}

fn name(found: &Pod) -> (&str, &str) {
    let meta = &found.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Stores with these pods and namespaces, as deciding needs them.
pub(in crate::cli) fn stores(
    pods: Vec<Pod>,
    namespaces: Vec<k8s_openapi::api::core::v1::Namespace>,
) -> Stores {
    let mut stores = Stores::default();
    for namespace in namespaces {
        stores.put(Object::Namespace(namespace.into()));
    }
    for found in pods {
        stores.put(Object::Pod(found.into()));
    }
    stores
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use serde_json::{Value, json};

    use super::*;

    fn policy(name: &str, spec: Value) -> NetworkPolicy {
        let value = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        serde_json::from_value(value).unwrap()
    }

    fn cluster(ambient: bool) -> Stores {
        let pod = |namespace: &str, name: &str, labels: Value| -> Pod {
            let meta = json!({"namespace": namespace, "name": name, "uid": name, "labels": labels});
            serde_json::from_value(json!({"metadata": meta, "spec": {"containers": []}})).unwrap()
        };
        let labels =
            if ambient { json!({crate::api::DATAPLANE_MODE: "ambient"}) } else { json!({}) };
        let namespace = |name: &str, labels: &Value| -> Namespace {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        stores(
            vec![
                pod("shop", "web", json!({"app": "web"})),
                pod("shop", "db", json!({"app": "db", "tier": "data"})),
                pod("istio-system", "istiod-1", json!({"app": "istiod"})),
            ],
            vec![namespace("shop", &labels), namespace("istio-system", &json!({}))],
        )
    }

    /// What the policies keep closed, as `Direction namespace/pod`.
    fn closed(specs: &[Value]) -> Vec<String> {
        let policies: Vec<_> = specs.iter().map(|spec| policy("p", spec.clone())).collect();
        let (stores, mesh) = (cluster(true), Mesh::default());
        let mut all = Vec::new();
        for found in stores.all::<Pod>() {
            for need in needs(found, &stores, &mesh) {
                let (namespace, name) = name(found);
                if !closing(&policies, found, need).is_empty() {
                    assert!(need.now, "{name}");
                    all.push(format!("{:?} {namespace}/{name}", need.direction));
                }
            }
        }
        all.sort();
        all
    }

    #[test]
    fn a_port_is_closed_when_no_policy_of_a_pod_allows_it() {
        let web = json!({"matchLabels": {"app": "web"}});
        let data = json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]});
        let not_db =
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]});
        let application = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]});
        let range =
            json!([{"from": [{"podSelector": {}}], "ports": [{"port": 15000, "endPort": 15010}]}]);
        let udp = json!([{"ports": [{"port": 15008, "protocol": "UDP"}]}]);
        let dns = json!([{"ports": [{"port": "dns"}]}]);
        let cases: [(&str, Vec<Value>, &[&str]); 7] = [
            ("no policy", vec![], &[]),
            ("all ports", vec![json!({"podSelector": {}, "ingress": [{}]})], &[]),
            (
                "the application's port",
                vec![application.clone()],
                &["Ingress shop/db", "Ingress shop/web"],
            ),
            (
                "another policy allows it",
                vec![application, json!({"podSelector": web, "ingress": range})],
                &["Ingress shop/db"],
            ),
            (
                "UDP is another port",
                vec![json!({"podSelector": data, "ingress": udp})],
                &["Ingress shop/db"],
            ),
            (
                "all is denied",
                vec![json!({"podSelector": not_db, "policyTypes": ["Ingress", "Egress"]})],
                &["Egress shop/web", "Ingress shop/web"],
            ),
            (
                "egress by its rules",
                vec![json!({"podSelector": web, "ingress": [{}], "egress": dns})],
                &["Egress shop/web"],
            ),
        ];
        for (what, specs, want) in cases {
            assert_eq!(closed(&specs), want, "{what}");
        }
    }

    #[test]
    fn pods_outside_are_a_note_and_the_controllers_port_counts_at_once() {
        let closed = policy("deny", json!({"podSelector": {}}));
        let findings = blocked(std::slice::from_ref(&closed), &cluster(false), &Mesh::default());
        assert_eq!(findings.len(), 1);
        assert_eq!(
            (findings[0].level, findings[0].subject.as_str()),
            (Level::Note, "NetworkPolicy shop/deny")
        );
        let mut root = closed;
        root.metadata.namespace = Some("istio-system".to_owned());
        let findings = blocked(&[root], &cluster(false), &Mesh::default());
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Error);
        assert!(
            findings[0].message.contains("port 15012 in to istio-system/istiod-1"),
            "{findings:?}"
        );
    }
}
