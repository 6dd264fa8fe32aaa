// SPDX-License-Identifier: Apache-2.0

//! Which pods of this node are in the mesh, and the proof of it.

pub mod capture;
pub mod discover;
pub mod enrol;
pub mod host;
pub mod older;
pub mod probe;
pub mod watch;
pub mod zds;
