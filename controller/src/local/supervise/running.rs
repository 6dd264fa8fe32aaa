// SPDX-License-Identifier: Apache-2.0

//! One pod that exists: what was decided when it was made, and how it is now.
//!
//! Owns: the views of a pod that others take: of [`crate::local::plan`], of the apiserver's
//! readers, of the user. Leaves changes to [`super::state`].

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use super::create::Broken;
use super::object::{self, Health};
use super::pod::{Handle, Sandbox};
use crate::local::address::Pair;
use crate::local::manifest::ObjectKey;
use crate::local::plan::PodView;

/// A pod that exists.
#[derive(Debug)]
pub(super) struct Running {
    /// Metadata and spec.
    pub(super) object: Value,
    pub(super) owner: ObjectKey,
    pub(super) hash: String,
    pub(super) node: usize,
    /// Its number in the node's range; none on the node's own network.
    pub(super) host: Option<u8>,
    pub(super) addresses: Pair,
    pub(super) handle: Result<Handle, Broken>,
    pub(super) deleted: Option<(OffsetDateTime, Duration)>,
    pub(super) born: OffsetDateTime,
    pub(super) ready_since: (bool, OffsetDateTime),
    pub(super) system: bool,
    pub(super) restarts_seen: u32,
}

/// One pod, for the eyes of the user.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct PodLine {
    /// Namespace.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
    /// Node.
    pub(super) node: String,
    /// First address.
    pub(super) address: String,
    /// Service account.
    pub(super) account: String,
    /// UID.
    pub(super) uid: String,
    /// Takes traffic.
    pub(super) ready: bool,
    /// Is going.
    pub(super) going: bool,
    /// Why it does not run.
    pub(super) trouble: Option<String>,
}

impl Running {
    pub(super) fn text(&self, pointer: &str) -> String {
        self.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    pub(super) fn view(&self) -> PodView {
        PodView {
            name: self.text("/metadata/name"),
            hash: self.hash.clone(),
            ready: self.health().ready() && self.deleted.is_none(),
            terminating: self.deleted.is_some(),
            node: self.node,
        }
    }

    fn names(&self, list: &str) -> Vec<String> {
        let containers = self.object.pointer(list).and_then(Value::as_array).into_iter().flatten();
        containers
            .map(|container| {
                container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()
            })
            .collect()
    }

    pub(super) fn health(&self) -> Health {
        let (names, init_names) =
            (self.names("/spec/containers"), self.names("/spec/initContainers"));
        match &self.handle {
            Ok(handle) => Health {
                sandbox: handle.sandbox.borrow().clone(),
                containers: names
                    .into_iter()
                    .zip(handle.containers.iter().map(|state| state.borrow().clone()))
                    .collect(),
                init: init_names
                    .into_iter()
                    .zip(handle.init.iter().map(|state| state.borrow().clone()))
                    .collect(),
                broken: None,
            },
            Err(broken) => Health {
                sandbox: Sandbox::default(),
                containers: names
                    .into_iter()
                    .map(|name| (name, super::container::State::default()))
                    .collect(),
                init: Vec::new(),
                broken: Some(broken.clone()),
            },
        }
    }

    pub(super) fn restarts(&self) -> u32 {
        self.handle
            .as_ref()
            .map_or(0, |handle| handle.containers.iter().map(|state| state.borrow().restarts).sum())
    }

    pub(super) fn line(&self, uid: &str) -> PodLine {
        let health = self.health();
        let crashing = health.containers.iter().find(|(_, state)| state.waiting.is_some());
        let trouble = match (&health.broken, crashing) {
            (Some((reason, message)), _) => Some(format!("{reason}: {message}")),
            (None, Some((name, state))) => {
                let code =
                    state.exit_code.map_or_else(String::new, |code| format!(" (exit code {code})"));
                Some(format!("container {name} keeps ending{code}"))
            }
            (None, None) => health.sandbox.waiting.clone(),
        };
        PodLine {
            namespace: self.text("/metadata/namespace"),
            name: self.text("/metadata/name"),
            node: self.text("/spec/nodeName"),
            address: self.addresses.v4.to_string(),
            account: self.text("/spec/serviceAccountName"),
            uid: uid.to_owned(),
            ready: health.ready(),
            going: self.deleted.is_some(),
            trouble,
        }
    }

    /// The pod as an apiserver would show it; `node` are its node's addresses.
    pub(super) fn shown(&self, node: Pair) -> Value {
        let mut object = self.object.clone();
        let spec = object.get("spec").cloned().unwrap_or_default();
        let status =
            object::pod_status(&self.health(), node, self.addresses, &spec, self.ready_since.1);
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), status);
        }
        if let (Some((when, grace)), Some(map)) =
            (self.deleted, object.get_mut("metadata").and_then(Value::as_object_mut))
        {
            map.insert("deletionTimestamp".into(), object::timestamp(when + grace).into());
            map.insert("deletionGracePeriodSeconds".into(), grace.as_secs().into());
        }
        object
    }
}
