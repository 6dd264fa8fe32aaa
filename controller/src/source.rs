// SPDX-License-Identifier: Apache-2.0

//! What a source gives: objects put, objects gone, and what it could not read.
//!
//! A source never gives half an object, and what it cannot read leaves the last good state
//! in force. Batches are in order; the first one holds everything there is.

pub mod document;
pub mod folder;
pub mod kubernetes;
pub mod selected;
pub mod watch;

mod lines;
mod validate;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::store::{Key, Object};

/// A change of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is so now.
    Put(Object),
    /// There is no such object any more.
    Gone(Key),
}

impl Change {
    /// The key of the object.
    pub fn key(&self) -> Key {
        match self {
            Self::Put(object) => object.key(),
            Self::Gone(key) => key.clone(),
        }
    }
}

/// What changed at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Changes in order.
    pub changes: Vec<Change>,
    /// Everything that cannot be read at the moment.
    pub problems: Vec<Problem>,
}

/// Something that could not be read.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1; 0 when it concerns the whole file.
    pub line: u64,
    /// Kind, namespace and name, as far as they could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Path of the field inside the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong and what was expected.
    pub message: String,
    /// Whether the object is in force all the same.
    pub in_force: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}
