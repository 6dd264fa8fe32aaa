// SPDX-License-Identifier: Apache-2.0

//! The guard: L7 policy that cannot be walked around.
//!
//! On each pod behind a waypoint a DENY for all but the waypoint's principal, on the target
//! ports of every Service with a VIP and a waypoint, or on all ports if the pod itself is
//! bound. Any HBONE tunnel enforces it; plaintext has no principal, so it is refused too.
//!
//! Rule: scope and order of the guard: L7 policy that cannot be walked around.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use policy::authz::{
    Action, Authorization, Clause, Field, Match, PolicyName, Rule, Scope, StringMatch,
};
use routing::discovery::{ServiceKey, Workload};
use sha2::{Digest, Sha256};

use super::waypoint::{self, Binding, Serves};
use super::{routes, service};
use crate::settings::Mesh;
use crate::store::facts::Step;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// ConfigMap of the root namespace with what holds for the whole mesh.
pub const MESH_CONFIG: &str = "waymark";

/// Port, none for all, → principals that may enter.
type Guarded = BTreeMap<Option<u16>, BTreeSet<String>>;

/// The guard of a workload; none if nothing of it is guarded.
pub fn of(
    workload: &Workload,
    bound: Option<&Binding>,
    look: &mut Lookup<'_>,
) -> Option<Authorization> {
    let mut guarded = Guarded::new();
    if let Some(bound) = bound
        && matches!(bound.serves, Serves::Workload | Serves::All)
    {
        guarded.entry(None).or_default().insert(bound.principal.clone());
    }
    for (key, ports) in &workload.services {
        let Some(principals) = service_principals(key, look) else { continue };
        for port in ports.iter() {
            let port = if port.target_port == 0 { port.service_port } else { port.target_port };
            guarded.entry(Some(port)).or_default().extend(principals.iter().cloned());
        }
    }
    if guarded.is_empty() {
        return None;
    }
    let rules = rules(guarded);
    let name = name(workload, &rules);
    Some(Authorization {
        name,
        scope: Scope::Selector,
        action: Action::Deny,
        dry_run: observes(look),
        unsupported: None,
        rules,
    })
}

/// Who may enter the ports of a Service; none if it is not guarded (yet).
fn service_principals(key: &ServiceKey, look: &mut Lookup<'_>) -> Option<BTreeSet<String>> {
    let name = key.hostname.split('.').next().unwrap_or_default();
    let object = look.get::<Service>(key.namespace.as_str(), name)?;
    let spec = object.spec.as_ref()?;
    if service::addresses(spec).is_empty() {
        return None;
    }
    let binding = waypoint::of_service(&object.metadata, look)?;
    if look.step(&key.to_string()) != Step::Settled {
        return None;
    }
    let mut principals = BTreeSet::from([binding.principal]);
    if !service::ingress_uses(&object.metadata, look) {
        principals.extend(routes::principals_to(key.namespace.as_str(), name, look));
    }
    Some(principals)
}

/// Ports that admit the same principals share a rule.
fn rules(guarded: Guarded) -> Vec<Rule> {
    let everywhere = guarded.get(&None).cloned();
    let mut by_principals: BTreeMap<BTreeSet<String>, Vec<u16>> = BTreeMap::new();
    let mut named = Vec::new();
    for (port, mut principals) in guarded {
        let Some(port) = port else { continue };
        principals.extend(everywhere.iter().flatten().cloned());
        by_principals.entry(principals).or_default().push(port);
        named.push(port);
    }
    let mut rules: Vec<Rule> = by_principals
        .into_iter()
        .map(|(principals, ports)| rule(&principals, Field { any: ports, not: Vec::new() }))
        .collect();
    rules.extend(
        everywhere.map(|principals| rule(&principals, Field { any: Vec::new(), not: named })),
    );
    rules
}

fn rule(principals: &BTreeSet<String>, ports: Field<u16>) -> Rule {
    let exact = |text: &String| StringMatch::Exact(Arc::from(text.as_str()));
    let nobody_else = Field { any: Vec::new(), not: principals.iter().map(exact).collect() };
    let one = |one: Match| Clause { matches: vec![one] };
    let mut clauses = vec![one(Match { principals: nobody_else, ..Match::default() })];
    if !ports.is_empty() {
        clauses.push(one(Match { destination_ports: ports, ..Match::default() }));
    }
    Rule { clauses }
}

/// Workloads of one owner share their guard; the digest keeps two apart that differ.
fn name(workload: &Workload, rules: &[Rule]) -> PolicyName {
    let digest = Sha256::digest(format!("{rules:?}").as_bytes());
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("waymark-guard-{}-{short}", workload.workload_name);
    PolicyName::new(workload.namespace.as_str(), &name)
}

/// The ConfigMap with settings of the mesh; it is read without being named anywhere.
pub fn mesh_config(mesh: &Mesh) -> Key {
    Key { kind: Kind::ConfigMap, name: Name::new(&mesh.root_namespace, MESH_CONFIG) }
}

/// Tells whether the guard only records what it would refuse.
fn observes(look: &mut Lookup<'_>) -> bool {
    let root = Arc::clone(&look.mesh().root_namespace);
    let config = look.get::<ConfigMap>(&root, MESH_CONFIG);
    let value = config.and_then(|config| config.data.as_ref()?.get("guard"));
    value.is_some_and(|value| value == "observe")
}
