// SPDX-License-Identifier: Apache-2.0

//! PeerAuthentication → DENY policies that every HBONE tunnel understands.
//!
//! Owns which PeerAuthentications concern a workload; what follows from them is
//! [`policy::mtls`]'s. Rule: Istio's `ambient/authorization.go`; Istio's names of the converted policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::authz::PolicyName;
use policy::mtls::{self, Effective, Mode, PeerAuthentication as Domain};
use routing::delta::Resource as Plane;

use crate::api::istio::{MutualTls, PeerAuthentication};
use crate::output::{Config, Output, Scope};
use crate::status::{Body, Condition, Status};
use crate::store::index::Index;
use crate::store::lookup::Lookup;
use crate::store::{Key, Kind, Name};

/// The policy that refuses all plaintext, as soon as any PeerAuthentication exists.
pub fn run_mesh(look: &mut Lookup<'_>) -> Vec<Output> {
    if look.list::<PeerAuthentication>(Index::All, "").is_empty() {
        return Vec::new();
    }
    let strict = mtls::static_strict(&look.mesh().root_namespace);
    vec![Config::plane(Plane::Authorization(strict.into()), Scope::Everyone)]
}

/// Outputs of one PeerAuthentication: the policy of its ports, if they differ, and its status.
pub fn run(name: &Name, look: &mut Lookup<'_>) -> Vec<Output> {
    let object = look.get::<PeerAuthentication>(&name.namespace, &name.name);
    let Some(object) = object else { return Vec::new() };
    let mut outputs = Vec::new();
    let (own, unknown) = domain(object);
    if selects(object) {
        let (mesh, namespace) = wider(&name.namespace, look);
        let holds = mtls::effective(mesh.as_ref(), namespace.as_ref(), Some(&own));
        let converted = mtls::converted(&own.name, &holds);
        outputs.extend(
            converted
                .map(|policy| Config::plane(Plane::Authorization(policy.into()), Scope::Everyone)),
        );
    }
    let condition = match unknown {
        Some(text) => Condition::new("Accepted", false, "Invalid", text),
        None if !selects(object) && !own.ports.is_empty() => Condition::new(
            "Accepted",
            false,
            "UnsupportedValue",
            "portLevelMtls acts with a selector only; the rest is in force".to_owned(),
        ),
        None => Condition::new("Accepted", true, "Accepted", "in force".to_owned()).after_ack(),
    };
    let key = Key { kind: Kind::PeerAuthentication, name: name.clone() };
    let generation = object.metadata.generation;
    outputs.push(Output::Status(
        Status { key, generation, body: Body::Conditions(vec![condition]) }.into(),
    ));
    outputs
}

/// The converted policies that a workload lists.
pub fn policies_of(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    look: &mut Lookup<'_>,
) -> Vec<PolicyName> {
    let (holds, own) = effective(namespace, labels, look);
    let converted = own.as_ref().and_then(|own| mtls::converted(&own.name, &holds));
    match converted {
        Some(policy) => vec![policy.name],
        None if holds.strict => {
            vec![PolicyName::new(&look.mesh().root_namespace, mtls::STATIC_STRICT)]
        }
        None => Vec::new(),
    }
}

/// What holds for a workload, and the selector policy that holds for it.
pub fn effective(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    look: &mut Lookup<'_>,
) -> (Effective, Option<Domain>) {
    let (mesh, within) = wider(namespace, look);
    let selecting = look.selecting::<PeerAuthentication>(namespace, labels, |policy| {
        policy
            .spec
            .selector
            .as_ref()
            .map(|selector| &selector.match_labels)
            .filter(|l| !l.is_empty())
    });
    let own = pick(selecting);
    (mtls::effective(mesh.as_ref(), within.as_ref(), own.as_ref()), own)
}

/// The policies of the mesh and of the namespace that hold.
fn wider(namespace: &str, look: &mut Lookup<'_>) -> (Option<Domain>, Option<Domain>) {
    let root = Arc::clone(&look.mesh().root_namespace);
    let mut of = |namespace: &str| {
        let all = look.list::<PeerAuthentication>(Index::Selects, &format!("{namespace}/"));
        pick(all.into_iter().filter(|policy| !selects(policy)))
    };
    let mesh = of(&root);
    let within = if *root == *namespace { None } else { of(namespace) };
    (mesh, within)
}

fn pick<'a>(all: impl IntoIterator<Item = &'a Arc<PeerAuthentication>>) -> Option<Domain> {
    let all: Vec<_> = all.into_iter().map(|policy| domain(policy).0).collect();
    mtls::oldest(&all).cloned()
}

fn selects(policy: &PeerAuthentication) -> bool {
    policy.spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty())
}

/// The policy in our own words; a mode or port that is not known counts as strict and is told.
fn domain(object: &PeerAuthentication) -> (Domain, Option<String>) {
    let mut unknown = None;
    let mut read = |mtls: Option<&MutualTls>, at: &str| match mtls.and_then(|m| m.mode.as_deref()) {
        None | Some("UNSET") => Mode::Unset,
        Some("DISABLE") => Mode::Disable,
        Some("PERMISSIVE") => Mode::Permissive,
        Some("STRICT") => Mode::Strict,
        Some(other) => {
            let text = format!(
                "{at}: {other:?} is unknown, wanted UNSET, DISABLE, PERMISSIVE or STRICT; STRICT is in force"
            );
            unknown.get_or_insert(text);
            Mode::Strict
        }
    };
    let meta = &object.metadata;
    let name = PolicyName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    );
    let mode = read(object.spec.mtls.as_ref(), "spec.mtls.mode");
    let mut ports = BTreeMap::new();
    let mut bad_port = None;
    for (port, mtls) in &object.spec.port_level_mtls {
        let at = format!("spec.portLevelMtls[{port}]");
        match port.parse() {
            Ok(number) => {
                ports.insert(number, read(Some(mtls), &at));
            }
            Err(_) => bad_port = Some(format!("{at}: {port:?} is no port")),
        }
    }
    let created = meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    (Domain { name, created, mode, ports }, unknown.or(bad_port))
}
