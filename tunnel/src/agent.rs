// SPDX-License-Identifier: Apache-2.0

//! Which pods of this node are in the mesh, and the proof of it.

pub mod capture;
pub mod host;
pub mod probe;
pub mod zds;
