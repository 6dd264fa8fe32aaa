// SPDX-License-Identifier: Apache-2.0

//! What the objects that run a gateway look like. Pure.

use crate::store::Key;

/// One object, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its key.
    pub key: Key,
    /// The whole object.
    pub value: serde_json::Value,
}
