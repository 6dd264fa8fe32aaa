// SPDX-License-Identifier: Apache-2.0

//! Pods on this node, as the agent hands them over.
//!
//! Owns: which pods are served ([`pods`]), the session with the agent
//! ([`protocol`]), and the tunnel's half of the proof of capture ([`proof`]).
//! Leaves what happens to their connections to [`crate::proxy`].

pub mod pods;
pub mod proof;
pub mod protocol;
pub mod sessions;
