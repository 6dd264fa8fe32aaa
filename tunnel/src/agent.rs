// SPDX-License-Identifier: Apache-2.0

//! Which pods of this node are in the mesh, and the proof of it.

pub mod capture;
pub mod discover;
pub mod enrol;
pub mod host;
pub mod metrics;
pub mod node;
pub mod older;
pub mod pod;
pub mod probe;
pub mod spec;
pub mod state;
pub mod watch;
pub mod zds;
